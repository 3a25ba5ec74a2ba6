"""Rank directories as inputs and outputs. What knows how a job is cut is a room of its own
(`parallel/`), which is imported only where something is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptforge.checkpoints.mindspore import is_unified, rank_directories
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import UsageError
from ckptforge.foreign.paths import is_directory
from ckptforge.formats.layout import TensorSpec
from ckptforge.model import Model
from ckptforge.reading.known import Choices
from ckptforge.reading.source import Source, bind_source
from ckptforge.spelling import option
from ckptforge.tables.table import Layout

if TYPE_CHECKING:
    from ckptforge.parallel.config import ParallelConfig
    from ckptforge.parallel.strategy_files import Strategy


def in_ranks(path: Path, choices: Choices) -> bool:
    """Whether an input is shards: rank directories, or what a strategy is given for."""
    if choices.strategy_dir is not None or choices.parallel_config is not None:
        return True
    if not is_directory(path) or is_unified(path):
        return False
    return list(rank_directories(path)) not in ([], [0])


def describes_itself(path: Path) -> bool:
    """Whether an input is an iteration of MindFormers, which says itself how it is cut."""
    if not is_directory(path):
        return False
    from ckptforge.mindformers.roots import is_iteration, is_root

    return is_root(path) or is_iteration(path)


def is_megatron(path: Path) -> bool:
    """Whether an input is a run of Megatron's, which says itself how it is cut."""
    if not is_directory(path):
        return False
    from ckptforge.megatron import roots

    return roots.is_megatron(path)


def refuse_cut(directory: Path, choices: Choices, whose: str = "MindFormers") -> None:
    """Raises `UsageError` where a user says how such an input is cut."""
    for name, given in (
        ("strategy_dir", choices.strategy_dir),
        ("parallel_config", choices.parallel_config),
    ):
        if given is not None:
            raise UsageError(
                f"{directory}: is an iteration of {whose}, which says itself how it is cut; omit "
                f"{option(name, given)}."
            )


def open_ranks(directory: Path, choices: Choices, check_replicas: bool | None = False) -> Model:
    """The ranks of a job as one model. Raises the errors of reading them, and `FormatError` for a
    strategy that isn't theirs."""
    if is_megatron(directory):
        refuse_cut(directory, choices, "Megatron")
        from ckptforge.megatron.reading import open_megatron

        return open_megatron(directory, choices, check_replicas)
    if describes_itself(directory):
        refuse_cut(directory, choices)
        return open_checkpoint(directory, choices.step, check_replicas)
    from ckptforge.parallel.join import join_ranks
    from ckptforge.parallel.ranks import read_job

    return join_ranks(directory, *read_job(directory, choices), check_replicas)


def open_whole(path: Path, choices: Choices) -> Model:
    """A checkpoint, as one file or directory or in ranks, as one model."""
    if is_megatron(path) or in_ranks(path, choices):
        return open_ranks(path, choices)
    return open_checkpoint(path, choices.step)


def open_source(path: Path, choices: Choices) -> Source:
    """Opens a checkpoint, whole or in ranks, and finds its layout."""
    return bind_source(open_whole(path, choices), choices)


def compute_strategy(
    config: ParallelConfig, source: Source, layout: Layout, specs: Sequence[TensorSpec]
) -> Strategy:
    """The strategy by which a job cuts a model in a layout. Raises `ConfigError`."""
    from ckptforge.parallel import compute

    sizes = source.binding.sizes
    return compute.compute_strategy(config, source.table, layout, sizes, specs)
