"""[pipeline]: where tensors lie when the layers of a model are divided among stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from ckptforge.tables.rows import at, check_known
from ckptforge.tables.selection import Selection

if TYPE_CHECKING:
    from ckptforge.tables.table import Layout, Logical
    from ckptforge.tables.table_file import PipelineSection

CountedAxes = tuple[tuple[str, str | None], ...]


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """Where tensors lie in a pipeline: `layers` are the axes that count layers, each with the axis
    whose length is added to its index, the first one that of all layers, which the stages divide;
    `first` and `last` are the tensors of the outer stages; `tied` is an optional tensor → the one
    that stands in for it on its stage when it is absent."""

    layers: CountedAxes
    first: tuple[str, ...]
    last: tuple[str, ...]
    tied: Mapping[str, str]


def make_pipeline(
    section: PipelineSection | None, logical: Logical, layouts: Mapping[str, Layout]
) -> Pipeline | None:
    """Raises `TableError` with the rule that the section breaks."""
    if section is None:
        return None
    layers = [section.layers] if isinstance(section.layers, str) else section.layers
    found = Pipeline(
        layers=tuple(map(_counted_axis, layers)),
        first=tuple(section.first),
        last=tuple(section.last),
        tied=section.tied,
    )
    with at("pipeline", "layers"):
        _check_layers(found.layers, logical)
    tied = (*found.tied, *found.tied.values())
    for key, tensors in (("first", found.first), ("last", found.last), ("tied", tied)):
        with at("pipeline", key):
            check_known(tensors, logical.tensors, "[tensors]")
    with at("pipeline"):
        _check_places(found, logical)
        for layout in layouts.values():
            if layout.sharding is not None:
                _check_not_stacked(found.layers, layout)
    return found


def _counted_axis(text: str) -> tuple[str, str | None]:
    axis, _, offset = text.partition("+")
    return axis.strip(), offset.strip() or None


def _check_layers(layers: CountedAxes, logical: Logical) -> None:
    """Axes that there are, of which the first counts all layers."""
    named = [axis for pair in layers for axis in pair if axis is not None]
    check_known(named, logical.axes, "[axes]")
    selected = bool(layers) and isinstance(logical.axes[layers[0][0]], Selection)
    if not layers or layers[0][1] is not None or selected:
        raise ValueError("layers must begin with the axis that counts all layers")


def _check_places(pipeline: Pipeline, logical: Logical) -> None:
    """Each tensor lies on one stage: by its layer, or as one of the first or the last."""
    outer: Sequence[str] = (*pipeline.first, *pipeline.last)
    for tensor, axes in logical.tensors.items():
        if tensor in logical.in_towers and tensor not in outer:
            continue
        if sum(axis in axes for axis, _ in pipeline.layers) + outer.count(tensor) != 1:
            raise ValueError(
                f"{tensor!r} must have the axis {pipeline.layers[0][0]!r} of the layers, or stand "
                "once in first or last"
            )


def _check_not_stacked(layers: CountedAxes, layout: Layout) -> None:
    """No tensor of a layout that is spread holds several layers."""
    counted = {axis for axis, _ in layers}
    for pattern in layout.patterns:
        if counted & set(pattern.factors(pattern.tensors[0])):
            raise ValueError(
                f"layout {layout.name} stacks the layers in {pattern.template!r}, which stages "
                "can't divide"
            )
