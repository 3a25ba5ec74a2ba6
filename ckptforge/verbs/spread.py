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

if TYPE_CHECKING:
    from ckptforge.parallel.config import ParallelConfig
    from ckptforge.parallel.strategy_files import Strategy


class Spread(msgspec.Struct, frozen=True):
    """How a user wants the output spread: `strategy` or `parallel_config` for rank directories,
    else one file or one directory of unified safetensors, by `format`. Made before anything is
    read: raises `UsageError` for a name that isn't right for what is written."""

    out: Path
    format: str | None
    prefix: str
    strategy: Path | None = None
    parallel_config: Path | None = None

    def __post_init__(self) -> None:
        refuse_name(self.out, directory=self.cut or self.format == "unified")

    @property
    def cut(self) -> bool:
        """Whether the tensors are cut into ranks."""
        return self.strategy is not None or self.parallel_config is not None

    def place(self, compute: Callable[[ParallelConfig], Strategy]) -> Target:
        """The target; `compute` makes the strategy of a parallel configuration. Raises
        `UsageError`, and what reading raises."""
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
