"""ckptforge converts model weights between Hugging Face and MindSpore/MindFormers, and reshards any
MindSpore checkpoint for another parallel configuration: in one pass, in constant memory, without
torch or mindspore.

    import ckptforge
    result = ckptforge.to_ms("hf_dir", "model.ckpt", layout="gmm", dtype="fp16")
    print(result.files, result.bytes, result.tensors, result.audit)

Most functions are commands of the command line, and their keywords its options; `plan` and `check`
are `--dry-run` and `compare OUT`. Bad input raises `CkptforgeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge import errors as _errors
from ckptforge.version import __version__

if TYPE_CHECKING:
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
    from ckptforge.planning.plan import Plan
    from ckptforge.verbs.average import average
    from ckptforge.verbs.check import Check, check
    from ckptforge.verbs.clean import Cleaned, clean
    from ckptforge.verbs.compare import compare
    from ckptforge.verbs.comparison import Comparison
    from ckptforge.verbs.convert import convert, plan, to_ms, to_torch
    from ckptforge.verbs.edit import edit
    from ckptforge.verbs.extract import extract
    from ckptforge.verbs.finish import finish
    from ckptforge.verbs.inspect import inspect
    from ckptforge.verbs.inspection import Inspection
    from ckptforge.verbs.opened import OpenedModel, open
    from ckptforge.verbs.reshard import merge, reshard, split
    from ckptforge.verbs.result import Result
    from ckptforge.verbs.stats import Statistics, stats
    from ckptforge.verbs.strategy import strategy
    from ckptforge.verbs.verify import Verification, verify

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
    "OpenedModel",
    "OutputError",
    "Plan",
    "PlanError",
    "QuantisedError",
    "ReadError",
    "Result",
    "Statistics",
    "TableError",
    "UnmappedTensorsError",
    "UsageError",
    "Verification",
    "VerifyError",
    "__version__",
    "average",
    "check",
    "clean",
    "compare",
    "convert",
    "edit",
    "extract",
    "finish",
    "inspect",
    "merge",
    "open",
    "plan",
    "reshard",
    "split",
    "stats",
    "strategy",
    "to_ms",
    "to_torch",
    "verify",
]

_HOMES = {
    "Check": "verbs.check",
    "Cleaned": "verbs.clean",
    "Comparison": "verbs.comparison",
    "OpenedModel": "verbs.opened",
    "open": "verbs.opened",
    "Inspection": "verbs.inspection",
    "Plan": "planning.plan",
    "Result": "verbs.result",
    "Statistics": "verbs.stats",
    "Verification": "verbs.verify",
    "average": "verbs.average",
    "check": "verbs.check",
    "clean": "verbs.clean",
    "compare": "verbs.compare",
    "convert": "verbs.convert",
    "edit": "verbs.edit",
    "extract": "verbs.extract",
    "finish": "verbs.finish",
    "inspect": "verbs.inspect",
    "merge": "verbs.reshard",
    "plan": "verbs.convert",
    "reshard": "verbs.reshard",
    "split": "verbs.reshard",
    "stats": "verbs.stats",
    "strategy": "verbs.strategy",
    "to_ms": "verbs.convert",
    "to_torch": "verbs.convert",
    "verify": "verbs.verify",
}


if not TYPE_CHECKING:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """What is public is imported when it is first used, so that `import ckptforge` and `--help`
        need no numpy."""
        if name not in __all__:
            from difflib import get_close_matches

            near = get_close_matches(name, __all__, 1)
            raise AttributeError(
                f"module 'ckptforge' has no attribute {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if name not in _HOMES:
            return getattr(_errors, name)
        from importlib import import_module

        return getattr(import_module(f"ckptforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """For tab completion and `help`: what is public."""
    return list(__all__)
