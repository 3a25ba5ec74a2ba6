"""How a user wants the tensors spread over files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckptforge.errors import UsageError
from ckptforge.formats.registry import format_by_ending
from ckptforge.model import Model
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import command, flag, option
from ckptforge.targets.distributed import DistributedTarget
from ckptforge.targets.huggingface import parse_size
from ckptforge.targets.mindspore import MindSporeTarget, UnifiedTarget, check_prefix
from ckptforge.targets.target import Target
from ckptforge.verbs.options.phrases import DCP, MEGATRON, MINDFORMERS
from ckptforge.verbs.options.record import options_of
from ckptforge.verbs.options.shared import MindSporeOutput

if TYPE_CHECKING:
    from ckptforge.mindformers.target import Training
    from ckptforge.parallel.config import ParallelConfig
    from ckptforge.parallel.strategy_files import Strategy


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How a user wants the output spread: `strategy` or `parallel_config` for the ranks of a job,
    else whole, in one file or a directory, by `format`. Made before anything is read: raises
    `UsageError` for a name that isn't right for what is written, and for options that contradict
    each other."""

    out: Path
    format: str | None = None
    prefix: str = ""
    strategy: Path | None = None
    parallel_config: Path | None = None
    training: Training | None = None
    max_shard_size: int | None = None

    @classmethod
    def of(cls, options: MindSporeOutput, out: Path, which: str | None = "") -> Spread:
        """What options say of an output; `which` is what the names of those begin with that say how
        it is cut, None where there are none. Raises `UsageError`."""
        names = () if which is None else (f"{which}strategy_dir", f"{which}parallel_config")
        cut = [getattr(options, name) for name in names] or [None, None]
        asked = {
            "iteration": options.iteration,
            "mindformers": options.mindformers,
            "remove_redundancy": options.remove_redundancy or None,
        }
        training = None
        if options.format == MEGATRON:
            asked.pop("iteration")
        given = [name for name, value in asked.items() if value is not None]
        if options.format == MINDFORMERS:
            from ckptforge.mindformers.target import Training

            training = Training(
                iteration=options.iteration,
                version=options.mindformers,
                remove_redundancy=options.remove_redundancy,
            )
        elif given:
            either = f" or {option('format', MEGATRON)}" if given[0] == "iteration" else ""
            raise UsageError(
                f"{option(given[0])} is of {option('format', MINDFORMERS)}{either}, which isn't "
                "asked for."
            )
        check_prefix(options.prefix)
        named_by_prefix = any(cut) or (
            options.format not in ("unified", DCP, MEGATRON) and format_by_ending(out) is None
        )
        if options.prefix != options_of(type(options))["prefix"].default and not named_by_prefix:
            raise UsageError(
                f"{option('prefix', options.prefix)} has no effect on {out}, in which no file "
                "is named after a rank; omit it."
            )
        return cls(
            out=out,
            format=options.format,
            prefix=options.prefix,
            strategy=cut[0],
            parallel_config=cut[1],
            training=training,
            max_shard_size=parse_size(getattr(options, "max_shard_size", None), "max_shard_size"),
        )

    def __post_init__(self) -> None:
        whole = self.format in ("unified", DCP)
        refuse_name(self.out, directory=self.cut or whole or self.training is not None)
        if self.strategy is not None and self.parallel_config is not None:
            raise UsageError(
                "a strategy and a parallel configuration both say how to split; give one."
            )
        if self.cut and whole:
            raise UsageError(
                f"{option('format', self.format)} holds whole tensors; it can't be split into "
                "ranks."
            )
        if self.training is not None and self.training.remove_redundancy and not self.cut:
            raise UsageError(
                f"{flag('remove_redundancy')} is for ranks that hold the same; give a strategy or "
                "a parallel configuration."
            )

    @property
    def cut(self) -> bool:
        """Whether the tensors are cut into ranks."""
        return self.strategy is not None or self.parallel_config is not None

    def place(self, model: Model, compute: Callable[[ParallelConfig], Strategy]) -> Target:
        """The target for a model; `compute` makes the strategy of a parallel configuration. Raises
        `UsageError`, and what reading raises."""
        if self.format == MEGATRON:
            raise UsageError(
                f"{option('format', MEGATRON)} is for layouts of Megatron's, which "
                f"{command('convert')} writes."
            )
        if self.max_shard_size is not None and (self.format != DCP or self.cut):
            raise UsageError(
                f"{option('max_shard_size')} is of directories of Hugging Face's and of "
                f"{option('format', DCP)}, which isn't what is written here; omit it."
            )
        strategy = self._strategy(compute) if self.cut else None
        if self.training is not None:
            return self.training.target(self.out, self.prefix, model, strategy)
        if strategy is not None:
            from ckptforge.parallel.target import RankTarget

            return RankTarget.of(self.out, self.format, self.prefix, strategy)
        if self.format == DCP:
            return DistributedTarget(output=self.out, max_file_size=self.max_shard_size)
        if self.format == "unified":
            return UnifiedTarget(self.out)
        return MindSporeTarget.of(self.out, self.format, self.prefix)

    def _strategy(self, compute: Callable[[ParallelConfig], Strategy]) -> Strategy:
        from ckptforge.parallel.config_file import read_parallel_config
        from ckptforge.parallel.strategy_files import read_strategy

        if self.strategy is not None:
            return read_strategy(self.strategy)
        assert self.parallel_config is not None
        config = read_parallel_config(self.parallel_config)
        if config.mesh is not None and self.training is None:
            raise UsageError(
                f"{self.parallel_config}: is of MindFormers' PyNative trainer, which loads "
                f"iteration directories: give {option('format', MINDFORMERS)}."
            )
        return compute(config)
