"""Opening an input that may lie in the rank directories of a job: by a strategy, by a parallel
configuration, or by the manifest that ckptforge wrote with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptforge.boxes import Box
from ckptforge.checkpoints.manifest import DIRECTORY_NAME, read_manifest
from ckptforge.checkpoints.mindspore import read_ranks
from ckptforge.checkpoints.unfinished import refuse_unfinished
from ckptforge.errors import (
    CkptforgeError,
    ConfigError,
    FormatError,
    LayoutError,
    UsageError,
    shown,
)
from ckptforge.foreign.files import is_there
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model
from ckptforge.parallel.config import ParallelConfig
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.cut import recorded_cut
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.solve import solve_strategy
from ckptforge.parallel.strategy_files import Strategy, read_strategy
from ckptforge.reading.known import Choices, known_of
from ckptforge.spelling import option
from ckptforge.storage.files import read_range
from ckptforge.tables.layout_choice import Hints
from ckptforge.tables.names import recognise_names
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.table_choice import choose_table
from ckptforge.values import Stored, value_of
from ckptforge.wording import counted

Ranks = tuple[list[FileIndex], list[str]]
_SAMPLE = 1 << 16  # bytes
_FEW = 4  # different bytes, as numbers that are all alike have


def read_job(directory: Path, choices: Choices) -> tuple[Ranks, Strategy]:
    """The files of a job's ranks, and the strategy that they are cut by.

    Raises `UsageError` for two ways to say how they are cut, and `FormatError` for none, saying why
    their manifest can't tell; the errors of reading ranks, of strategies, and of parallel
    configurations that don't fit.
    """
    if choices.strategy_dir is not None and choices.parallel_config is not None:
        raise UsageError(
            f"{option('strategy_dir')} and {option('parallel_config')} both say how {directory} is "
            "cut; give one."
        )
    refuse_unfinished(directory)
    if choices.strategy_dir is not None:
        strategy = read_strategy(choices.strategy_dir)
        return read_ranks(directory, choices.step), strategy
    given = choices.parallel_config
    config = None if given is None else read_parallel_config(given)
    ranks = read_ranks(directory, choices.step)
    found = (
        recorded_strategy(directory, ranks[0])
        if config is None
        else _computed(directory, ranks[0], config, choices)
    )
    if isinstance(found, str):
        raise FormatError(
            f"{directory}: holds {counted(len(ranks[0]), 'rank directory')}, the shards of one "
            f"model, and {found}. {ways_to_say()}"
        )
    return ranks, found


def ways_to_say() -> str:
    """What a user can do about rank directories whose cut isn't known."""
    return (
        f"Give the strategy of their job with {option('strategy_dir')}, or its parallel "
        f"configuration with {option('parallel_config')}; or name the directory of one rank if "
        "each holds the whole model."
    )


def recorded_strategy(directory: Path, files: Sequence[FileIndex]) -> Strategy | str:
    """What the manifest says that was written with these files, or why it can't be taken from
    there. Raises `FormatError` for a manifest that is damaged."""
    path = directory / DIRECTORY_NAME
    if not is_there(path):
        return "there is no ckptforge manifest that says how they are cut"
    manifest = read_manifest(path)
    if (reason := manifest.distrust(directory, tuple(files))) is not None:
        return reason
    cut = recorded_cut(manifest)
    if cut.ranks != len(files):
        raise FormatError(
            f"{path}: is of {counted(cut.ranks, 'rank')}, but names {counted(len(files), 'file')}; "
            "damaged."
        )
    return cut.strategy(path, list(map(list, _tensors_by_stage(files, cut.devices))))


def _tensors_by_stage(files: Sequence[FileIndex], devices: int) -> list[dict[str, Stored]]:
    """By stage, a part of each tensor that its ranks hold."""
    found: list[dict[str, Stored]] = []
    for first in range(0, len(files), devices):
        own: dict[str, Stored] = {}
        for file in files[first : first + devices]:
            for name, entry in file.tensors.items():
                own.setdefault(name, entry)
        found.append(own)
    return found


def _computed(
    directory: Path, files: list[FileIndex], config: ParallelConfig, choices: Choices
) -> Strategy:
    job = config.degrees
    if config.mesh is not None:
        raise ConfigError(
            f"{config.path}: is of MindFormers' PyNative trainer, which writes iteration "
            f"directories; {directory} holds ranks of another."
        )
    if len(files) != job.ranks:
        stages = f"{counted(job.pipeline, 'stage')} of {counted(job.devices, 'device')}"
        raise FormatError(
            f"{directory}: holds {counted(len(files), 'rank')}, but {config.path} is of a job with "
            f"{job.ranks} ({stages}); it isn't the configuration of these ranks."
        )
    parts: dict[str, Stored] = {}
    for own in reversed(_tensors_by_stage(files, job.devices)):
        parts.update(own)
    model = Model(
        path=directory,
        format=files[0].format,
        directory=directory,
        files=tuple(files),
        values={name: value_of(part) for name, part in parts.items()},
        ranks=len(files),
    )
    known = known_of(model, choices)
    shapes = {name: entry.shape for name, entry in parts.items() if not is_state(name)}
    try:
        table = choose_table(known.tables, shapes, known.hints)
    except CkptforgeError as error:
        raise type(error)(
            f"{directory}: {error} A parallel configuration says how a model is cut only where a "
            f"mapping knows it; of others give the strategy files with {option('strategy_dir')}."
        ) from error
    layouts = _layouts(table, shapes, known.hints)
    try:
        strategy = solve_strategy(config, table, known.hints, layouts, list(parts.values()))
    except LayoutError as error:
        raise type(error)(f"{directory}: {error}", error.tensors) from error
    _check_samples(files, strategy)
    return strategy


def _check_samples(files: Sequence[FileIndex], strategy: Strategy) -> None:
    """Parts of one weight of each kind, by their first bytes: those that are said to be replicas
    must be equal, and those that are said to be different parts not all be the same. Shapes alone
    don't tell a configuration of other degrees. Raises `FormatError`."""
    kinds: dict[tuple[int, str], tuple[str, DeviceLayout]] = {}
    for stage, layouts in enumerate(strategy.stages):
        for name, layout in layouts.items():
            if not is_state(name):
                kinds.setdefault((stage, skeleton_of(name)[0]), (name, layout))
    equal, differ = [], False
    for (stage, _), (name, layout) in kinds.items():
        samples: dict[Box, tuple[bytes, Path]] = {}
        for device in range(strategy.devices):
            entry = files[stage * strategy.devices + device].tensors.get(name)
            if entry is None or layout.full_shape is None:
                continue
            sample = bytearray(min(entry.nbytes, _SAMPLE))
            read_range(entry, 0, memoryview(sample))
            box = layout.box(layout.full_shape, device)
            kept, path = samples.setdefault(box, (bytes(sample), entry.path))
            if kept != sample:
                raise FormatError(
                    f"{entry.path}: {shown(name)} differs from that in {path}, of which "
                    f"{strategy.path} says that it is the same part; it isn't the configuration of "
                    "these ranks."
                )
        found = {sample for sample, _ in samples.values()}
        differ = differ or len(found) > 1
        if len(samples) > 1 and len(found) == 1 and len(set(next(iter(found)))) > _FEW:
            equal.append(name)
    if equal and not differ:
        raise FormatError(
            f"{files[0].path.parent.parent}: every rank holds the same of {shown(equal[0])}, which "
            f"{strategy.path} says is cut; it isn't the configuration of these ranks."
        )


def _layouts(table: Table, names: dict[str, tuple[int, ...]], hints: Hints) -> list[Layout]:
    """The layouts that may be meant: a named one, else those with the most of these names."""
    if hints.layout is not None:
        return [table.layout(hints.layout)]
    if hints.recorded_layout in table.layouts:
        return [table.layouts[hints.recorded_layout]]
    layouts = (table.layouts[name] for name in table.names_of("mindspore"))
    of_mindspore = [layout for layout in layouts if not layout.by_name_only]
    strange = {layout.name: len(recognise_names(layout, names)[1]) for layout in of_mindspore}
    fewest = min(strange.values(), default=0)
    best = [layout for layout in of_mindspore if strange[layout.name] == fewest]
    return [layout for layout in best if layout.sharding is not None] or best
