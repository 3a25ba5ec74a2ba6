"""mindformers_adapter_config.json of an adapter that is written.

Source: MindFormers r2.1, `pynative/callback/checkpoint_callback.py` (`_write_adapter_manifest`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

FORMAT = "mindformers_pynative_lora_adapter_v1"


def adapter_json(modules: Iterable[str], rank: int, alpha: float, step: int) -> bytes:
    """The file for an adapter of some modules, by their names. The base model isn't known, which
    MindFormers then doesn't check."""
    targets = "|".join(rf".*\.{name}" for name in sorted({*modules}))
    whole = int(alpha) if alpha == int(alpha) else alpha
    content = {
        "format": FORMAT,
        "base_load_path": "",
        "base_fingerprint": None,
        "lora_config": {"target_modules": targets, "lora_rank": rank, "lora_alpha": whole},
        "global_step": step,
        "consumed_samples": None,
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
