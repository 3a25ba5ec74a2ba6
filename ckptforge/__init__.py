"""ckptforge: weight conversion and checkpoint surgery for large models, in constant memory.

    import ckptforge
    result = ckptforge.to_ms("hf_dir", "model.ckpt", layout="gmm", dtype="fp16")
    print(result.files, result.bytes, result.tensors, result.audit)

The verbs are those of the command line. Bad input raises `CkptforgeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge.errors import CkptforgeError
from ckptforge.version import __version__

if TYPE_CHECKING:
    from ckptforge.checking import Check, check
    from ckptforge.cleaning import clean
    from ckptforge.comparing import Comparison, compare
    from ckptforge.forward.verification import Verification, verify
    from ckptforge.inspection import Inspection, inspect
    from ckptforge.resharding import merge, reshard, split
    from ckptforge.result import Result
    from ckptforge.strategies import strategy
    from ckptforge.verbs import convert, plan, to_ms, to_torch

__all__ = [
    "Check",
    "CkptforgeError",
    "Comparison",
    "Inspection",
    "Result",
    "Verification",
    "__version__",
    "check",
    "clean",
    "compare",
    "convert",
    "inspect",
    "merge",
    "plan",
    "reshard",
    "split",
    "strategy",
    "to_ms",
    "to_torch",
    "verify",
]

_HOMES = {
    "Check": "checking",
    "Comparison": "comparing",
    "check": "checking",
    "clean": "cleaning",
    "compare": "comparing",
    "Inspection": "inspection",
    "Result": "result",
    "Verification": "forward.verification",
    "convert": "verbs",
    "inspect": "inspection",
    "merge": "resharding",
    "plan": "verbs",
    "reshard": "resharding",
    "split": "resharding",
    "strategy": "strategies",
    "to_ms": "verbs",
    "to_torch": "verbs",
    "verify": "forward.verification",
}


def __getattr__(name: str) -> Any:
    """Verbs are imported when first used, so that `import ckptforge` and `--help` need no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptforge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ckptforge.{_HOMES[name]}"), name)
