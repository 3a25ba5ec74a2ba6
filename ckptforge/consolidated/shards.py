"""Model-parallel shards of a release: which axis of a tensor they cut, as the [shard] rows of a
layout say, and how shards are put together by them.

Source: transformers' script for Meta's releases, `convert_*_weights_to_hf.py`; Meta's `model.py`,
whose `ColumnParallelLinear` cuts rows, `RowParallelLinear` columns, `ParallelEmbedding` columns
(releases 1 and 2) and `VocabParallelEmbedding` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ckptforge.boxes import Box, row_major_strides
from ckptforge.composing import Composer
from ckptforge.errors import ConfigError, FormatError, LayoutError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import recognise_names
from ckptforge.tables.sharding import Cut, stored_cuts
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.transfers import Transfer
from ckptforge.values import Value
from ckptforge.wording import counted, listing

FAMILY = "consolidated"
ShardTensors = Sequence[Mapping[str, Value]]  # the tensors of each shard
Shape = tuple[int, ...]


class Cuts(NamedTuple):
    """How shards of a layout are cut: its patterns with the names of each, by name the stored axis
    and what cuts it, and the names that aren't of the layout."""

    patterns: Mapping[Pattern, Sequence[str]]
    by_name: Mapping[str, tuple[int, Cut]]
    unknown: Sequence[str]


def is_cut(layout: Layout) -> bool:
    """Whether releases in a layout are cut into shards, as Meta's are."""
    return layout.family == FAMILY and layout.sharding is not None


def cuts_of(layout: Layout, names: Mapping[str, object]) -> Cuts:
    """How the tensors of these names are cut by the [shard] rows of a layout."""
    found, unknown = recognise_names(layout, names)
    by_name: dict[str, tuple[int, Cut]] = {}
    for pattern, own in found.items():
        for axis, cut in stored_cuts(pattern, layout.sharding or {}).items():
            by_name |= dict.fromkeys(own.values(), (axis, cut))
    return Cuts({pattern: tuple(own.values()) for pattern, own in found.items()}, by_name, unknown)


def boxes_of(
    layout: Layout, sizes: AxisSizes, shapes: Mapping[str, Shape], shards: int
) -> list[dict[str, Box]]:
    """By shard the boxes of the tensors that it has a part of. Raises `ConfigError` for an axis
    that can't be cut into so many."""
    found: list[dict[str, Box]] = [{} for _ in range(shards)]
    cuts = cuts_of(layout, shapes) if shards > 1 else Cuts({}, {}, ())
    for name, (axis, cut) in cuts.by_name.items():
        shape = shapes[name]
        length = sizes.get(cut.axis) or shape[axis]
        if length % shards:
            raise ConfigError(
                f"{option('shards', shards)}: axis {cut.axis} of {shown(name)} is {length}, which "
                f"can't be cut into {shards} parts; give a number that divides it."
            )
        for i in range(shards):
            found[i][name] = _box(shape, axis, shards, i)
    return found


def join(files: Sequence[FileIndex], parts: ShardTensors) -> tuple[dict[str, Value], Layout]:
    """(shards put together, the layout of a shipped table by whose rows). Raises `FormatError` for
    parts that aren't alike, and for tensors of which no table says how they are cut."""
    _check_alike(files, parts)
    shapes = {name: value.shape for name, value in parts[0].items()}
    layout, cuts = _layout_of(files, shapes)
    joined, composer = {}, Composer()
    for name, first in parts[0].items():
        if name not in cuts.by_name:
            joined[name] = first
            continue
        axis, _ = cuts.by_name[name]
        shape = _whole(shapes[name], axis, len(parts))
        strides = row_major_strides(shape)
        step, own = shapes[name][axis] * strides[axis], row_major_strides(shapes[name])
        terms = composer.terms(
            (part[name], Transfer(shapes[name], 0, own, i * step, strides).ordered())
            for i, part in enumerate(parts)
        )
        joined[name] = Value(dtype=first.dtype, shape=shape, terms=tuple(terms), kind=first.kind)
    return joined, layout


def _layout_of(files: Sequence[FileIndex], shapes: Mapping[str, Shape]) -> tuple[Layout, Cuts]:
    """The layout whose whole tensors have shapes that fit each other, which tells embeddings that
    are cut by rows from those by columns."""
    strange: list[str] = []
    misfit: LayoutError | None = None
    for table, layout in _layouts():
        cuts = cuts_of(layout, shapes)
        strange = [name for name in cuts.unknown if not table.is_ignored(layout, name)]
        if strange:
            continue
        whole = dict(shapes)
        for name, (axis, _) in cuts.by_name.items():
            whole[name] = _whole(shapes[name], axis, len(files))
        try:
            AxisSizes().learn_shapes(
                [(pattern, n, whole[n]) for pattern, own in cuts.patterns.items() for n in own]
            )
        except LayoutError as error:
            misfit = error
            continue
        return layout, cuts
    count = counted(len(files), "shard")
    if misfit is not None:
        raise FormatError(
            f"{files[0].path}: is one of {count}, which don't make up a model: {misfit} Are all "
            "shards there?"
        )
    raise FormatError(
        f"{files[0].path}: is one of {count} of a model, and no mapping says how these tensors are "
        f"cut:\n{listing(strange)}"
    )


def _layouts() -> Iterator[tuple[Table, Layout]]:
    for table in shipped_tables():
        for layout in table.layouts.values():
            if is_cut(layout):
                yield table, layout


def _check_alike(files: Sequence[FileIndex], parts: ShardTensors) -> None:
    for name, first in parts[0].items():
        for file, part in zip(files, parts, strict=True):
            value = part[name]
            if (value.shape, value.dtype) != (first.shape, first.dtype):
                raise FormatError(
                    f"{file.path}: {shown(name)} is {value.dtype} {list(value.shape)}, but "
                    f"{first.dtype} {list(first.shape)} in {files[0].path.name}; the shards of a "
                    f"release have equal parts ({counted(len(files), 'shard')})."
                )


def _whole(part: Shape, axis: int, shards: int) -> Shape:
    return (*part[:axis], part[axis] * shards, *part[axis + 1 :])


def _box(shape: Shape, axis: int, shards: int, i: int) -> Box:
    length = shape[axis] // shards
    return tuple(
        (i * length, (i + 1) * length) if k == axis else (0, n) for k, n in enumerate(shape)
    )
