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

from ckptforge.version import __version__ as __version__

if TYPE_CHECKING:
    from ckptforge.errors import CastOverflowError as CastOverflowError
    from ckptforge.errors import CkptforgeError as CkptforgeError
    from ckptforge.errors import ConfigError as ConfigError
    from ckptforge.errors import ConfigNeededError as ConfigNeededError
    from ckptforge.errors import DamagedError as DamagedError
    from ckptforge.errors import FormatError as FormatError
    from ckptforge.errors import InputNotFoundError as InputNotFoundError
    from ckptforge.errors import LayoutError as LayoutError
    from ckptforge.errors import LeftError as LeftError
    from ckptforge.errors import MissingTensorsError as MissingTensorsError
    from ckptforge.errors import ModelUnknownError as ModelUnknownError
    from ckptforge.errors import OutputError as OutputError
    from ckptforge.errors import PlanError as PlanError
    from ckptforge.errors import QuantisedError as QuantisedError
    from ckptforge.errors import ReadError as ReadError
    from ckptforge.errors import TableError as TableError
    from ckptforge.errors import UnmappedTensorsError as UnmappedTensorsError
    from ckptforge.errors import UsageError as UsageError
    from ckptforge.errors import VerifyError as VerifyError
    from ckptforge.planning.plan import Plan as Plan
    from ckptforge.verbs.average import average as average
    from ckptforge.verbs.check import Check as Check
    from ckptforge.verbs.check import check as check
    from ckptforge.verbs.clean import Cleaned as Cleaned
    from ckptforge.verbs.clean import clean as clean
    from ckptforge.verbs.compare import compare as compare
    from ckptforge.verbs.comparison import Comparison as Comparison
    from ckptforge.verbs.convert import convert as convert
    from ckptforge.verbs.convert import plan as plan
    from ckptforge.verbs.convert import to_ms as to_ms
    from ckptforge.verbs.convert import to_torch as to_torch
    from ckptforge.verbs.edit import edit as edit
    from ckptforge.verbs.extract import extract as extract
    from ckptforge.verbs.finish import finish as finish
    from ckptforge.verbs.inspect import inspect as inspect
    from ckptforge.verbs.inspection import Inspection as Inspection
    from ckptforge.verbs.opened import OpenedModel as OpenedModel
    from ckptforge.verbs.opened import open as open
    from ckptforge.verbs.reshard import merge as merge
    from ckptforge.verbs.reshard import reshard as reshard
    from ckptforge.verbs.reshard import split as split
    from ckptforge.verbs.result import Result as Result
    from ckptforge.verbs.side_by_side import SideBySide as SideBySide
    from ckptforge.verbs.stats import Statistics as Statistics
    from ckptforge.verbs.stats import stats as stats
    from ckptforge.verbs.strategy import strategy as strategy
    from ckptforge.verbs.verify import Verification as Verification
    from ckptforge.verbs.verify import verify as verify

# Module → what is public of it, which is imported when it is first used, so that `import ckptforge`
# and `--help` need no numpy.
_PUBLIC = {
    "errors": (
        "CastOverflowError CkptforgeError ConfigError ConfigNeededError DamagedError "
        "FormatError InputNotFoundError LayoutError LeftError MissingTensorsError "
        "ModelUnknownError OutputError PlanError QuantisedError ReadError TableError "
        "UnmappedTensorsError UsageError VerifyError"
    ),
    "planning.plan": "Plan",
    "verbs.average": "average",
    "verbs.check": "Check check",
    "verbs.clean": "Cleaned clean",
    "verbs.compare": "compare",
    "verbs.comparison": "Comparison",
    "verbs.convert": "convert plan to_ms to_torch",
    "verbs.edit": "edit",
    "verbs.extract": "extract",
    "verbs.finish": "finish",
    "verbs.inspect": "inspect",
    "verbs.inspection": "Inspection",
    "verbs.opened": "OpenedModel open",
    "verbs.reshard": "merge reshard split",
    "verbs.result": "Result",
    "verbs.stats": "Statistics stats",
    "verbs.strategy": "strategy",
    "verbs.side_by_side": "SideBySide",
    "verbs.verify": "Verification verify",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = [*_HOMES, "__version__"]

if not TYPE_CHECKING:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> Any:
        """Imports what is public, which is looked for here once it isn't found."""
        if name not in _HOMES:
            from difflib import get_close_matches

            near = get_close_matches(name, __all__, 1)
            raise AttributeError(
                f"module 'ckptforge' has no attribute {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        from importlib import import_module

        return getattr(import_module(f"ckptforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """For tab completion and `help`: what is public."""
    return list(__all__)
