"""How a network spreads tensors over devices, as a table's [shard] rows say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import shown
from ckptforge.tables.axes import Axis, Concat, Pattern, axis_factors
from ckptforge.tables.rows import means

BY_AXES = ("megatron",)  # families whose ranks hold tensors of shorter axes, not boxes of the whole
DIMENSIONS = ("ep", "mp")  # expert and model parallel, in the order of the device matrix
# keys of a parallel configuration that a row may depend on
FLAGS = ("vocab_emb_dp", "parallel_optimizer")
_CUT = re.compile(r"([A-Za-z_]\w*):(ep|mp)(\??)")

FlagName = Annotated[
    Literal["vocab_emb_dp", "parallel_optimizer"],
    Meta(extra={"expected": " or ".join(FLAGS), "known": FLAGS}),
]
DTypeName = Annotated[
    str,
    Meta(
        extra={"expected": "a dtype, such as float32", "known": [*BY_NAME]},
        extra_json_schema={"enum": [*BY_NAME]},
    ),
]


class ShardRow(msgspec.Struct, frozen=True):
    """How a network spreads one logical tensor over the devices of a stage."""

    cut: Annotated[
        str,
        means(
            "which dimension of a parallel configuration cuts which axis, as axis:mp "
            "(model parallel) or axis:ep (expert parallel), with ? where an axis that doesn't "
            "divide stays whole; the tensor is whole if omitted"
        ),
    ] = ""
    whole_if: Annotated[
        FlagName | None, means("the flag of a parallel configuration under which it isn't cut")
    ] = None
    optimizer: Annotated[
        bool | FlagName,
        means(
            "whether optimizer parallelism may cut it once more: yes, no, or by a flag",
            expected=f"true, false, {' or '.join(FLAGS)}",
            known=FLAGS,
        ),
    ] = True
    fsdp: Annotated[
        str | None,
        means(
            "the axis that fully sharded data parallelism of the PyNative trainer cuts, where that "
            "isn't the first"
        ),
    ] = None
    dtype: Annotated[
        DTypeName | None, means("what the network holds it in, where that isn't the model's dtype")
    ] = None


class Cut(msgspec.Struct, frozen=True):
    """An axis that a parallel dimension cuts; `optional`: only where it divides."""

    axis: str
    dimension: str
    optional: bool


class Sharding(msgspec.Struct, frozen=True):
    """How one logical tensor is spread.

    `whole_if` names a flag under which it isn't cut. `optimizer` says whether optimizer parallelism
    may cut it once more: yes, no, or by a flag; `fsdp` which axis fully sharded data parallelism
    cuts where that isn't the first. `dtype` is what the network holds it in where that isn't the
    model's dtype (for size limits).
    """

    cuts: tuple[Cut, ...] = ()
    whole_if: str | None = None
    optimizer: bool | str = True
    fsdp: str | None = None
    dtype: str | None = None


def parse_sharding(row: ShardRow, axes: tuple[str, ...]) -> Sharding:
    """Checks a row against the axes of its tensor. Raises `ValueError` with what is wrong."""
    cuts = []
    for word in row.cut.split():
        match = _CUT.fullmatch(word)
        if not match:
            raise ValueError(f"{shown(word)} isn't of the form 'axis:mp' or 'axis:ep'")
        if match[1] not in axes:
            raise ValueError(f"the tensor has no axis {shown(match[1])}; it has {' '.join(axes)!r}")
        cuts.append(Cut(match[1], match[2], bool(match[3])))
    if len(cuts) > len(DIMENSIONS):
        raise ValueError(
            f"there are {len(cuts)} cuts, at most one by each of {', '.join(DIMENSIONS)}"
        )
    for what in ([cut.axis for cut in cuts], [cut.dimension for cut in cuts]):
        if len(set(what)) < len(what):
            raise ValueError(f"{shown(row.cut)} names {shown(max(what, key=what.count))} twice")
    if row.fsdp is not None and row.fsdp not in axes:
        raise ValueError(f"the tensor has no axis {shown(row.fsdp)}; it has {' '.join(axes)!r}")
    if row.fsdp is not None and row.optimizer is False:
        raise ValueError("fsdp names an axis to be cut, and optimizer = false says that none is")
    return Sharding(tuple(cuts), row.whole_if, row.optimizer, row.fsdp, row.dtype)


def stored_cuts(pattern: Pattern, rows: Mapping[str, Sharding]) -> dict[int, Cut]:
    """Index of the stored axis → the cut that falls on it. Raises `ValueError`."""
    found: dict[int, Cut] = {}
    shardings = {rows.get(tensor, Sharding()) for tensor in pattern.tensors}
    for tensor in pattern.tensors:
        for cut in rows.get(tensor, Sharding()).cuts:
            place = _place(pattern, cut.axis)
            if found.setdefault(place, cut).dimension != cut.dimension:
                raise ValueError(
                    f"{pattern.template!r}: one axis is cut by {found[place].dimension} and by "
                    f"{cut.dimension}"
                )
    fsdp = stored_fsdp(pattern, shardings)
    if fsdp > 0 and fsdp in found:
        raise ValueError(
            f"{pattern.template!r}: one axis is cut by {found[fsdp].dimension} and by fsdp"
        )
    alike = {(row.whole_if, row.optimizer, row.fsdp, row.dtype, len(row.cuts)) for row in shardings}
    if len(alike) > 1:
        raise ValueError(
            f"{pattern.template!r} holds {', '.join(pattern.tensors)}, which are spread in "
            "different ways"
        )
    return found


def stored_fsdp(pattern: Pattern, rows: Iterable[Sharding]) -> int:
    """Index of the stored axis that fully sharded data parallelism cuts. Raises `ValueError`."""
    axis = next((row.fsdp for row in rows if row.fsdp is not None), None)
    return 0 if axis is None else _place(pattern, axis)


def _place(pattern: Pattern, cut: str) -> int:
    """Index of the stored axis that is cut where this one is. Raises `ValueError`."""
    places = [i for i, axis in enumerate(pattern.axes) if cut in axis_factors(axis)]
    if pattern.reshaped:
        raise ValueError(
            f"{pattern.template!r} has another shape than the order of its numbers, of which no "
            "axis can be cut"
        )
    if not places:
        raise ValueError(
            f"axis {cut!r} stands in the name {pattern.template!r}, where nothing can be cut"
        )
    if cut not in _leading(pattern.axes[places[0]]):
        raise ValueError(
            f"axis {cut!r} isn't the slowest of its axis in {pattern.template!r}, so it can't be "
            "cut in one piece"
        )
    return places[0]


def _leading(axis: Axis) -> set[str]:
    first = axis[0]
    if isinstance(first, Concat):
        return {part.factors[0] for part in first.parts if part.factors}
    return {first} if isinstance(first, str) else set()
