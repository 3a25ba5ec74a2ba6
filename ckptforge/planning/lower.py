"""From values to the tensors of files: which fragments fill which place.

What is alike (layers, experts, replicas, the ranks of a stage) is cut and proved once. The
assemblies of a file are made when they are asked for, so that a plan takes memory for its values,
its kinds and its files, and not for the tensors of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, dot, row_major_strides
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.assembly import Assembly, prove_filled
from ckptforge.transfers import Transfer, within_target
from ckptforge.values import Fragment, Place, Term, Value

Cut = list[tuple[int, Transfer]]  # number of a fragment, and what of it lies in a box


class Part(msgspec.Struct, frozen=True):
    """Tensors of which a file holds the same box; without one all of each. `replica`: an earlier
    file holds just that, too."""

    names: tuple[str, ...]
    box: Box | None = None
    replica: bool = False


class PlacedFile(msgspec.Struct, frozen=True):
    """A file to be written, and which part of its value each of its tensors is."""

    file: OutputFile
    parts: tuple[Part, ...]

    @classmethod
    def whole(cls, file: OutputFile) -> PlacedFile:
        """A file of whole tensors."""
        return cls(file, (Part(tuple(file.places)),))

    @classmethod
    def cut(cls, file: OutputFile, boxes: Mapping[str, Box]) -> PlacedFile:
        """A file of boxes, and of whole tensors where there is none."""
        alike: dict[Box | None, list[str]] = {}
        for name in file.places:
            alike.setdefault(boxes.get(name), []).append(name)
        return cls(file, tuple(Part(tuple(names), box) for box, names in alike.items()))


class Assemblies:
    """What fills files that hold these values or boxes of them. Raises `PlanError` where something
    isn't filled."""

    def __init__(self, values: Mapping[str, Value], files: Iterable[PlacedFile]) -> None:
        self.values = values
        self._kinds = _Kinds(values)
        self._cuts: dict[tuple[int, Box], list[Cut]] = {}
        self._run: tuple[int, int | None] = (0, None)
        self.files = tuple(self._by_kind(list(files)))
        self.outputs = tuple(placed.file for placed in self.files)

    def only(self, number: int, first: int, last: int) -> Assemblies:
        """Those of a run of tensors of one file; its seals are for the end."""
        found = copy(self)
        file, parts = self.files[number].file, self.files[number].parts
        found.outputs = (replace(file, seals=()),)
        found.files = (PlacedFile(found.outputs[0], parts),)
        found._run = (first, last)
        return found

    def __iter__(self) -> Iterator[Assembly]:
        return (made for number in range(len(self.files)) for made in self.of(number))

    def of(self, number: int) -> Iterator[Assembly]:
        """The assemblies of a file, in its order."""
        placed = self.files[number]
        part_of = {name: part for part in placed.parts for name in part.names}
        for name, place in islice(placed.file.places.items(), *self._run):
            part, value = part_of[name], self.values[name]
            yield self._assembly(value, part, place)

    def _assembly(self, value: Value, part: Part, place: Place) -> Assembly:
        terms = value.terms
        if part.box is not None:
            cuts = self._cut(self._kinds.number(part.names[0]), value, part.box)
            terms = tuple(map(_of_cut, terms, cuts))
        return Assembly(place=place, terms=terms, kind=value.kind, replica=part.replica)

    def _cut(self, kind: int, value: Value, box: Box) -> list[Cut]:
        found = self._cuts.get((kind, box))
        if found is None:
            reach = self._kinds.reach(kind)
            cuts = map(_cut, value.terms, reach, [value.shape] * len(reach), [box] * len(reach))
            found = self._cuts[kind, box] = list(cuts)
        return found

    def _by_kind(self, files: Sequence[PlacedFile]) -> Iterator[PlacedFile]:
        """The files with parts of tensors of one kind each, of which it is known which an earlier
        file holds. Proves each once. Raises `PlanError`."""
        kinds = self._kinds.families({part.names for placed in files for part in placed.parts})
        met: dict[Part, Part] = {}
        proved: set[tuple[int, Box | None]] = set()
        for placed in files:
            parts = []
            for part in placed.parts:
                for names in kinds[part.names]:
                    own = Part(names, part.box)
                    again = met.get(own)
                    if again is None:
                        met[own] = replace(own, replica=True)
                        if (
                            names
                            and (kind := (self._kinds.number(names[0]), own.box)) not in proved
                        ):
                            proved.add(kind)
                            place = placed.file.places[names[0]]
                            prove_filled(self._assembly(self.values[names[0]], own, place))
                    parts.append(again or own)
            yield PlacedFile(placed.file, tuple(parts))


class _Kinds:
    """Values by kind: those of a kind are cut by a box in the same way."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self._numbers: dict[str, int] = {}
        self._known: dict[object, int] = {}
        self._reach: dict[int, list[list[tuple[int, int]]]] = {}

    def number(self, name: str) -> int:
        """The kind of a value."""
        found = self._numbers.get(name)
        if found is None:
            value = self._values[name]
            kind = (value.shape, *map(self._of_term, value.terms))
            found = self._numbers[name] = self._known.setdefault(kind, len(self._known))
            if found not in self._reach:
                self._reach[found] = [
                    [(one.transfer.target, one.transfer.last_target) for one in term.fragments]
                    for term in value.terms
                ]
        return found

    @staticmethod
    def _of_term(term: Term) -> object:
        return term.fill, tuple((one.stored.elements, one.transfer) for one in term.fragments)

    def reach(self, kind: int) -> list[list[tuple[int, int]]]:
        """For each fragment of each term the first and last flat element that it fills."""
        return self._reach[kind]

    def families(
        self, wanted: Iterable[tuple[str, ...]]
    ) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """Lists of names → the same in pieces, so that all of a piece are of one kind, and that a
        name is in the same piece wherever it is."""
        lists = list(wanted)
        held: dict[str, tuple[int, ...]] = {}
        for i, names in enumerate(lists):
            for name in names:
                held[name] = (*held.get(name, ()), i)
        found = {}
        for names in lists:
            pieces: dict[object, list[str]] = {}
            for name in names:
                pieces.setdefault((self.number(name), held[name]), []).append(name)
            found[names] = [tuple(piece) for piece in pieces.values()]
        return found


def _cut(term: Term, reach: Sequence[tuple[int, int]], shape: tuple[int, ...], box: Box) -> Cut:
    strides = row_major_strides(shape)
    start, stop = dot([lo for lo, _ in box], strides), dot([hi - 1 for _, hi in box], strides)
    return [
        (i, part)
        for i, (first, last) in enumerate(reach)
        if first <= stop and start <= last
        for part in within_target(term.fragments[i].transfer, shape, box)
    ]


def _of_cut(term: Term, cut: Cut) -> Term:
    fragments = term.fragments
    parts = [Fragment(fragments[i].stored, part, fragments[i].steps) for i, part in cut]
    return Term(fragments=tuple(parts), weight=term.weight, fill=term.fill)


def in_memory(name: str, value: Value) -> Assembly:
    """The assembly of a value that goes into no file."""
    place = Place(path=Path(), name=name, dtype=value.dtype, shape=value.shape, extents=())
    return Assembly(place=place, terms=value.terms, kind=value.kind)
