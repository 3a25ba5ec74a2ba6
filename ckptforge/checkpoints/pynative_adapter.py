"""mindformers_adapter_config.json: what MindFormers' PyNative trainer says of an adapter that it
trained alone.

Source: MindFormers r2.1, `pynative/callback/checkpoint_callback.py` (`_write_adapter_manifest`) and
`pynative/config/config.py` (`LoraConfig`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ckptforge.errors import FormatError, shown
from ckptforge.foreign.files import is_there
from ckptforge.foreign.json import read_object

CONFIG = "mindformers_adapter_config.json"
_FORMAT = "mindformers_pynative_lora_adapter_v1"


class PyNativeAdapter(NamedTuple):
    """The rank and alpha of an adapter, and the file that says them."""

    path: Path
    rank: int
    alpha: int


def read_adapter_config(files: Iterable[Path]) -> PyNativeAdapter | None:
    """What is said beside the files of an adapter, or in the directory above; None where nothing
    is. Raises `FormatError` for a description of another kind."""
    directories = dict.fromkeys(file.parent for file in files)
    places = [*directories, *dict.fromkeys(one.parent for one in directories)]
    path = next((one / CONFIG for one in places if is_there(one / CONFIG)), None)
    if path is None:
        return None
    found = read_object(path)
    if found.get("format") != _FORMAT:
        raise FormatError(f"{path}: format is {shown(found.get('format'))}, expected {_FORMAT!r}.")
    said = found.get("lora_config")
    if not isinstance(said, dict):
        raise FormatError(f"{path}: lora_config is {shown(said)}, expected keys and values.")
    for key in ("lora_rank", "lora_alpha"):
        if not isinstance(said.get(key), int) or isinstance(said.get(key), bool):
            raise FormatError(
                f"{path}: lora_config.{key} is {shown(said.get(key))}, expected an integer."
            )
    return PyNativeAdapter(path, said["lora_rank"], said["lora_alpha"])


def adapter_json(modules: Iterable[str], rank: int, alpha: float, step: int) -> bytes:
    """The file for an adapter of some modules, by their names. The base model isn't known, which
    MindFormers then doesn't check."""
    targets = "|".join(rf".*\.{name}" for name in sorted({*modules}))
    whole = int(alpha) if alpha == int(alpha) else alpha
    content = {
        "format": _FORMAT,
        "base_load_path": "",
        "base_fingerprint": None,
        "lora_config": {"target_modules": targets, "lora_rank": rank, "lora_alpha": whole},
        "global_step": step,
        "consumed_samples": None,
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
