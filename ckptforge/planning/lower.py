"""From values to the tensors of files: which fragments fill which place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ckptforge.boxes import Box
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.plan import Assembly, prove_filled
from ckptforge.transfers import Transfer, within_target
from ckptforge.values import Fragment, Place, Term, Value

Cut = list[tuple[int, Transfer]]  # number of a fragment, and what of it lies in a box


class PlacedFile(msgspec.Struct, frozen=True):
    """A file to be written, and which box of the value each of its tensors is; no box: all of
    it."""

    file: OutputFile
    boxes: Mapping[str, Box] = msgspec.field(default_factory=dict)


def lower(values: Mapping[str, Value], files: Sequence[PlacedFile]) -> tuple[Assembly, ...]:
    """The assemblies of files that hold these values or boxes of them. What is alike, as layers and
    replicas are, is cut and proved once. Raises `PlanError`."""
    made: list[Assembly] = []
    kinds = _kinds(values) if any(file.boxes for file in files) else {}
    cuts: dict[tuple[int, Box], list[Cut]] = {}
    seen: set[tuple[str, Box | None]] = set()
    for placed in files:
        for name, place in placed.file.places.items():
            value, box = values[name], placed.boxes.get(name)
            terms, proved = value.terms, False
            if box is not None:
                cut = cuts.get((kinds[name], box))
                proved = cut is not None
                if cut is None:
                    cut = cuts[kinds[name], box] = [_cut(t, value.shape, box) for t in value.terms]
                terms = tuple(map(_of_cut, value.terms, cut))
            replica = (name, box) in seen
            assembly = Assembly(place=place, terms=terms, kind=value.kind, replica=replica)
            seen.add((name, box))
            if not proved:
                prove_filled(assembly)
            made.append(assembly)
    return tuple(made)


def _cut(term: Term, shape: tuple[int, ...], box: Box) -> Cut:
    return [
        (i, part)
        for i, fragment in enumerate(term.fragments)
        for part in within_target(fragment.transfer, shape, box)
    ]


def _of_cut(term: Term, cut: Cut) -> Term:
    fragments = term.fragments
    parts = [Fragment(fragments[i].stored, part, fragments[i].steps) for i, part in cut]
    return Term(fragments=tuple(parts), weight=term.weight, fill=term.fill)


def _kinds(values: Mapping[str, Value]) -> dict[str, int]:
    """Name → number of its kind: the values of a kind are cut by a box in the same way."""
    numbers: dict[object, int] = {}

    def kind(term: Term) -> object:
        return term.fill, tuple((one.stored.elements, one.transfer) for one in term.fragments)

    return {
        name: numbers.setdefault((value.shape, *map(kind, value.terms)), len(numbers))
        for name, value in values.items()
    }


def in_memory(name: str, value: Value) -> Assembly:
    """The assembly of a value that goes into no file."""
    place = Place(path=Path(), name=name, dtype=value.dtype, shape=value.shape, extents=())
    return Assembly(place=place, terms=value.terms, kind=value.kind)
