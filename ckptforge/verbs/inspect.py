"""What is in a checkpoint: format, model, layout, dtypes, sizes, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.manifest import find_manifest
from ckptforge.checkpoints.mindspore import choose_checkpoint, rank_directories, read_ranks
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import CkptforgeError, FormatError, InputNotFoundError, ModelUnknownError
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model
from ckptforge.reading.known import Choices, read_model_config
from ckptforge.reading.source import Source, bind_source
from ckptforge.reading.tied import notes as tied_notes
from ckptforge.reading.tied import tied
from ckptforge.run.budget import Budget
from ckptforge.tables.lora import holds_only_factors
from ckptforge.tables.shipped import candidate_tables
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import state_of
from ckptforge.verbs.choices import choices_of
from ckptforge.verbs.inspection import Amount, Entry, FileLine, Inspection, RankLine
from ckptforge.verbs.options import Inspect
from ckptforge.verbs.parts import parts_held
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import describes_itself, in_ranks, is_megatron, open_ranks, refuse_cut
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.adapters.adapter import Adapter

_VERIFY_UP_TO = 256 * 1024 * 1024


@verb(Inspect)
def inspect(options: Inspect) -> Inspection:
    """Says what is in a checkpoint of any kind, without reading its tensors. Returns an
    `Inspection`.

    Stored checksums of files up to 256 MiB are checked. An unknown model or layout is no error. Of
    rank directories it says which rank holds what, where it is known how they are cut.

    Raises `InputNotFoundError` and `FormatError` for what can't be read.
    """
    path, step, choices = options.path, options.step, choices_of(options)
    if describes_itself(path):
        return _iteration(path, choices)
    if is_megatron(path):
        return _bound(path, open_ranks(path, choices, None), choices)
    if not in_ranks(path, choices):
        return _bound(path, open_checkpoint(path, step), choices)
    from ckptforge.parallel.join import join_ranks
    from ckptforge.parallel.ranks import read_job, recorded_strategy, ways_to_say

    if choices.strategy_dir is None and choices.parallel_config is None:
        try:
            strategy = recorded_strategy(path, read_ranks(path, step)[0])
        except CkptforgeError as error:  # such as ranks that are missing, or at different steps
            return _first_rank(path, step, f"shards of one model: {error}")
        if isinstance(strategy, str):
            return _first_rank(path, step, f"shards of one model, and {strategy}. {ways_to_say()}")
    ranks, strategy = read_job(path, choices)
    model = join_ranks(path, ranks, strategy, None)
    # as the ranks hold them, from the first on
    names = dict.fromkeys(name for file in model.files for name in file.tensors)
    sharded = msgspec.structs.replace(model, values={name: model.values[name] for name in names})
    return replace(_bound(path, sharded, choices), parts=parts_held(model))


def _iteration(path: Path, choices: Choices) -> Inspection:
    """An iteration of MindFormers, and where its numbers say the training is."""
    from ckptforge.mindformers.kind import full_tensors, read_iteration

    refuse_cut(path, choices)
    opened = read_iteration(path, choices.step)
    model = full_tensors(path, opened, None)
    found = _bound(path, model, choices)
    said = dict(sorted(model.run.items(), key=lambda item: item[0] != "iteration"))
    run = ", ".join(f"{key} {value}" for key, value in said.items() if value is not None)
    return replace(
        found, parts=parts_held(model), notes=[*([f"{run}."] if run else []), *found.notes]
    )


def _names_of(files: Sequence[FileIndex]) -> list[str]:
    """The names of files, with their directories where several have one name."""
    plain = [file.path.name for file in files]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{file.path.parent.name}/{file.path.name}" for file in files]


def _first_rank(path: Path, step: int | None, reason: str) -> Inspection:
    """The files of ranks whose cut isn't known: each with its size, and what the first holds."""
    directories = rank_directories(path).items()
    files = {rank: read_file(choose_checkpoint(one, step)[0]) for rank, one in directories}
    ranks = [
        RankLine(
            rank=rank,
            file=f"{file.path.parent.name}/{file.path.name}",
            bytes=file.size,
            tensors=len(file.tensors),
        )
        for rank, file in files.items()
    ]
    described = _describe(path, open_checkpoint(next(iter(files.values())).path), None, reason)
    try:
        manifest = find_manifest(path, tuple(files.values()))
    except CkptforgeError:  # which the reason says
        manifest = None
    model = None if manifest is None else manifest.model
    return replace(described, model=model, ranks=ranks)


def _bound(path: Path, model: Model, choices: Choices) -> Inspection:
    if holds_only_factors(model):
        return _adapter(path, model, choices)
    try:
        source = bind_source(model, choices)
    except InputNotFoundError:
        raise
    except CkptforgeError as error:
        return _describe(path, model, None, str(error))
    return _describe(path, model, source, None)


def _adapter(path: Path, model: Model, choices: Choices) -> Inspection:
    """An adapter alone: every model and layout that has its names."""
    from ckptforge.adapters.adapter import describe_adapter, read_kept
    from ckptforge.adapters.adapter_layout import adapter_tables, telling

    try:
        kept = read_kept(model)
        config, where = ({}, "") if choices.config is None else read_model_config(choices.config)
        tables, said = candidate_tables(choices.mapping), config.get("model_type")
        candidates = adapter_tables(tables, path, model.values, said, choices.model, kept.model)
    except (ModelUnknownError, FormatError) as error:
        return _describe(path, model, None, str(error))
    found: list[Adapter] = []
    errors: list[CkptforgeError] = []
    for table in candidates:
        sizes = AxisSizes()
        try:
            sizes.learn_config(table, config, where)
            found.append(describe_adapter(model, kept, table, sizes.lengths))
        except CkptforgeError as error:
            errors.append(error)
    if not found:
        return _describe(path, model, None, str(telling(errors)))
    first = found[0]
    ranks = ", ".join(map(str, first.ranks))
    scale = f"scale {', '.join(f'{s:g}' for s in first.scales)}"
    if kept.config is None:
        scale = "its lora_alpha isn't recorded"
    weights = counted(len(first.factors) + len(first.stacks), "weight")
    described = _describe(path, model, None, None)
    return replace(
        described,
        model=" or ".join(dict.fromkeys(one.table.name for one in found)),
        layout=" or ".join(dict.fromkeys(one.layout.name for one in found)),
        notes=[
            f"a LoRA adapter of {weights}, rank {ranks}, {scale}.",
            *(f"it holds {text}." for text in first.whole_texts),
            *first.notes,
            *described.notes,
        ],
    )


def _describe(path: Path, model: Model, source: Source | None, reason: str | None) -> Inspection:
    read = source.model if source else model
    fragments = (fragment for value in read.values.values() for fragment in value.fragments)
    scales = {one.name for fragment in fragments for step in fragment.steps for one in step.inputs}
    notes = list(read.notes)
    if source is not None and (pairs := tied(source)):
        small = all(pair.values[0].nbytes <= _VERIFY_UP_TO for pair in pairs)
        notes += tied_notes(pairs, Budget.of(1, None) if small else None)
    buffer = memoryview(bytearray(1 << 20))
    for file in model.files:
        if file.checksum is not None and file.size <= _VERIFY_UP_TO:
            file.verify(buffer)
            notes.append(f"{file.path.name}: the stored crc32 is right.")
        elif file.checksum is not None:
            notes.append(f"{file.path.name}: has a crc32, which is checked when it is converted.")
    sizes: dict[str, list[int]] = {}
    for value in model.values.values():
        sizes.setdefault(value.dtype.name, []).append(value.nbytes)
    state = {name for name in model.values if state_of(model, name)}
    return Inspection(
        path=str(path),
        format=model.format,
        model=source.table.name if source else None,
        layout=source.binding.layout.name if source else None,
        layout_reason=reason,
        tensors=len(model.values),
        parameters=sum(
            entry.elements
            for name, entry in model.values.items()
            if name not in state and name not in scales
        ),
        bytes=model.nbytes,
        dtypes={name: Amount(tensors=len(each), bytes=sum(each)) for name, each in sizes.items()},
        axes={axis: size for axis, (size, _) in source.binding.sizes.known.items()}
        if source
        else {},
        files=[
            FileLine(file=name, bytes=file.size, tensors=len(file.tensors))
            for name, file in zip(_names_of(model.files), model.files, strict=True)
        ],
        ranks=[],
        state=len(state),
        unmapped=list(source.unmapped) if source else [],
        notes=notes,
        entries={
            name: Entry(entry.dtype.name, entry.shape) for name, entry in model.values.items()
        },
    )
