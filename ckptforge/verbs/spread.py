"""How a user wants the tensors spread over files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckptforge.errors import UsageError
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import option
from ckptforge.targets.mindspore import MindSporeTarget, UnifiedTarget
from ckptforge.targets.target import Target
from ckptforge.verbs.options.shared import MindSporeOutput

if TYPE_CHECKING:
    from ckptforge.parallel.config import ParallelConfig
    from ckptforge.parallel.strategy_files import Strategy


class Spread(msgspec.Struct, frozen=True):
    """How a user wants the output spread: `strategy` or `parallel_config` for rank directories,
    else one file or one directory of unified safetensors, by `format`. Made before anything is
    read: raises `UsageError` for a name that isn't right for what is written."""

    out: Path
    format: str | None = None
    prefix: str = ""
    strategy: Path | None = None
    parallel_config: Path | None = None

    def __post_init__(self) -> None:
        refuse_name(self.out, directory=self.cut or self.format == "unified")

    @classmethod
    def of(cls, options: MindSporeOutput, out: Path, which: str | None = "") -> Spread:
        """What options say of an output; `which` is what the names of those begin with that say how
        it is cut, None where there are none."""
        names = () if which is None else (f"{which}strategy_dir", f"{which}parallel_config")
        cut = (getattr(options, name) for name in names)
        return cls(out, options.format, options.prefix, *cut)

    @property
    def cut(self) -> bool:
        """Whether the tensors are cut into ranks."""
        return self.strategy is not None or self.parallel_config is not None

    def place(self, compute: Callable[[ParallelConfig], Strategy]) -> Target:
        """The target; `compute` makes a configuration's strategy. Raises `UsageError`."""
        if not self.cut:
            if self.format == "unified":
                return UnifiedTarget(self.out)
            return MindSporeTarget.of(self.out, self.format, self.prefix)
        if self.strategy is not None and self.parallel_config is not None:
            raise UsageError(
                "a strategy and a parallel configuration both say how to split; give one."
            )
        if self.format == "unified":
            raise UsageError(
                f"{option('format', 'unified')} holds whole tensors; it can't be split into ranks."
            )
        from ckptforge.parallel.config_file import read_parallel_config
        from ckptforge.parallel.strategy_files import read_strategy
        from ckptforge.parallel.target import RankTarget

        if self.strategy is not None:
            strategy = read_strategy(self.strategy)
        else:
            assert self.parallel_config is not None
            strategy = compute(read_parallel_config(self.parallel_config))
        return RankTarget.of(self.out, self.format, self.prefix, strategy)
