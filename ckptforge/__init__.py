"""ckptforge converts model weights between Hugging Face and MindSpore/MindFormers, and reshards any MindSpore checkpoint for another
parallel configuration: in one pass, in constant memory, without torch or mindspore.

    import ckptforge
    result = ckptforge.to_ms("hf_dir", "model.ckpt", layout="gmm", dtype="fp16")
    print(result.files, result.bytes, result.tensors, result.audit)

Most functions are commands of the command line, and their keywords its options; `plan` and `check` are `--dry-run` and `compare OUT`.
Bad input raises `CkptforgeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge import errors as _errors
from ckptforge.version import __version__

if TYPE_CHECKING:
    from ckptforge.checking import Check, check
    from ckptforge.cleaning import Cleaned, clean
    from ckptforge.comparing import Comparison, compare
    from ckptforge.engine.plan import Plan
    from ckptforge.errors import (
        CastOverflowError,
        CkptforgeError,
        ConfigError,
        FormatError,
        InputNotFoundError,
        LayoutError,
        LeftError,
        MissingTensorsError,
        ModelUnknownError,
        OutputError,
        PlanError,
        QuantisedError,
        ReadError,
        TableError,
        UnmappedTensorsError,
        UsageError,
        VerifyError,
    )
    from ckptforge.forward.verification import Verification, verify
    from ckptforge.inspection import Inspection, inspect
    from ckptforge.resharding import merge, reshard, split
    from ckptforge.result import Result
    from ckptforge.strategies import strategy
    from ckptforge.verbs import convert, plan, to_ms, to_torch

__all__ = [
    "CastOverflowError",
    "Check",
    "CkptforgeError",
    "Cleaned",
    "Comparison",
    "ConfigError",
    "FormatError",
    "InputNotFoundError",
    "Inspection",
    "LayoutError",
    "LeftError",
    "MissingTensorsError",
    "ModelUnknownError",
    "OutputError",
    "Plan",
    "PlanError",
    "QuantisedError",
    "ReadError",
    "Result",
    "TableError",
    "UnmappedTensorsError",
    "UsageError",
    "Verification",
    "VerifyError",
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
    "Cleaned": "cleaning",
    "Comparison": "comparing",
    "Inspection": "inspection",
    "Plan": "engine.plan",
    "Result": "result",
    "Verification": "forward.verification",
    "check": "checking",
    "clean": "cleaning",
    "compare": "comparing",
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


if not TYPE_CHECKING:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """What is public is imported when it is first used, so that `import ckptforge` and `--help` need no numpy."""
        if name not in __all__:
            from difflib import get_close_matches

            near = get_close_matches(name, __all__, 1)
            raise AttributeError(f"module 'ckptforge' has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if name not in _HOMES:
            return getattr(_errors, name)
        from importlib import import_module

        return getattr(import_module(f"ckptforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """For tab completion and `help`: what is public."""
    return list(__all__)
