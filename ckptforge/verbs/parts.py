"""Kinds of tensors, and which rank holds what of them: of an input, and of what a plan writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckptforge.boxes import Box, full_box
from ckptforge.model import Held, Model
from ckptforge.planning.plan import Plan
from ckptforge.tables.skeletons import numbers_of, skeleton_of
from ckptforge.values import Stored, Value
from ckptforge.verbs.inspection import PartLine


def parts_held(model: Model) -> list[PartLine]:
    """A line for each kind of tensor that a model's ranks hold; none where there are no ranks."""
    return lines_of(model.held() if model.held is not None else ())


def source_parts(plan: Plan) -> list[PartLine]:
    """A line for each kind of tensor that a plan reads."""
    if plan.held is not None:
        return lines_of(plan.held())
    return lines_of(_alike({n: one for file in plan.sources for n, one in file.tensors.items()}))


def target_parts(plan: Plan) -> list[PartLine]:
    """A line for each kind of tensor that a plan writes."""
    values = plan.assemblies.values
    if any(file.own is not None for file in plan.assemblies.files):  # not boxes of the model's
        return lines_of(_alike(values))
    held: dict[int, tuple[tuple[str, ...], dict[int, Box | None]]] = {}
    for file in plan.assemblies.files:
        for part in file.parts:  # proved plans have one tuple of names for all ranks
            boxes = held.setdefault(id(part.names), (part.names, {}))[1]
            if file.rank is not None:
                boxes[file.rank] = part.box
    found: dict[tuple[Any, ...], Held] = {}
    for names, boxes in held.values():
        for one in _alike({name: values[name] for name in names}):
            full = full_box(one.value.shape)
            own = {rank: full if box is None else box for rank, box in boxes.items()}
            key = skeleton_of(one.names[0])[0], one.value.dtype, one.value.shape, *own.items()
            found.setdefault(key, Held([], one.value, own)).names.extend(one.names)
    return lines_of(found.values())


def _alike(tensors: Mapping[str, Stored] | Mapping[str, Value]) -> Iterable[Held]:
    kinds: dict[tuple[Any, ...], Held] = {}
    for name, one in tensors.items():
        key = skeleton_of(name)[0], one.dtype, one.shape
        kinds.setdefault(key, Held([], one, {})).names.append(name)
    return kinds.values()


def lines_of(held: Iterable[Held]) -> list[PartLine]:
    """A line for each kind."""
    return [
        PartLine(
            tensor=one.names[0],
            count=len(one.names),
            numbers=numbers_of(one.names),
            shape=list(one.value.shape),
            dtype=one.value.dtype.name,
            boxes={rank: [list(side) for side in box] for rank, box in one.boxes.items()},
        )
        for one in held
    ]
