"""From values to the tensors of files: which fragments fill which place.

What is alike (layers, experts, replicas, the ranks of a stage) is cut and proved once. The
assemblies of a file are made when they are asked for, so that a plan takes memory for its values,
its kinds and its files, and not for the tensors of all ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, dot, row_major_strides
from ckptforge.errors import PlanError
from ckptforge.formats.layout import OutputFile
from ckptforge.planning.assembly import Assembly, prove_filled
from ckptforge.planning.positions import Position, Positions
from ckptforge.transfers import Reach, Transfer, within_target
from ckptforge.values import Fragment, Place, Term, Value

Overlap = list[tuple[int, Transfer]]  # number of a fragment, and what of it lies in a box

_FILES_TOGETHER = 64  # whose tensors are all listed in memory while they are put in order


class Part(msgspec.Struct, frozen=True):
    """Tensors of which a file holds the same box; without one all of each. `replica`: an earlier
    file holds just that, too."""

    names: tuple[str, ...]
    box: Box | None = None
    replica: bool = False


class PlacedFile(msgspec.Struct, frozen=True):
    """A file to be written, which part of its value each of its tensors is, and the rank that it is
    for, if there are any. `own` are values of this file's own, by its names, where it holds
    something else than boxes of the model's."""

    file: OutputFile
    parts: tuple[Part, ...]
    own: Mapping[str, Value] | None = None
    rank: int | None = None

    @classmethod
    def whole(cls, file: OutputFile) -> PlacedFile:
        """A file of whole tensors."""
        return cls(file, (Part(tuple(file.places)),))

    @classmethod
    def cut(cls, file: OutputFile, boxes: Mapping[str, Box], rank: int) -> PlacedFile:
        """A file of boxes, and of whole tensors where there is none."""
        alike: dict[Box | None, list[str]] = {}
        for name in file.places:
            alike.setdefault(boxes.get(name), []).append(name)
        return cls(file, tuple(Part(tuple(names), box) for box, names in alike.items()), rank=rank)


class Assemblies:
    """What fills files that hold these values or boxes of them."""

    def __init__(self, values: Mapping[str, Value], files: Sequence[PlacedFile]) -> None:
        self.values, self.files = values, tuple(files)
        self.outputs = tuple(placed.file for placed in files)
        self._kinds = _Kinds(values)
        self._cuts: dict[tuple[int, Box], list[Overlap]] = {}
        self._is_in_families = False
        self._proved: set[tuple[int, Box | None]] = set()
        self._own_proved: set[object] = set()

    def __iter__(self) -> Iterator[Assembly]:
        return (made for number in range(len(self.files)) for made in self.of(number))

    def of(self, number: int, first: int = 0, last: int | None = None) -> Iterator[Assembly]:
        """The assemblies of a file, or of its tensors `first` to before `last`."""
        placed = self.files[number]
        part_of = {name: part for part in placed.parts for name in part.names}
        for name, place in islice(placed.file.places.items(), first, last):
            value = None if placed.own is None else placed.own[name]
            yield self._assembly(part_of[name], name, place, value)

    def as_sources_lie(self) -> Iterator[Assembly]:
        """All of them, of so many files at a time together that what several are made of is read
        once: those first whose sources lie first, whichever file they go to. A single file goes
        from front to back, unless it holds codes, whose scales lie elsewhere in it."""
        encoded = any(value.encoding is not None for value in self.values.values())
        if len(self.files) < 2 and not encoded:
            yield from self
            return
        positions = Positions()
        known = positions.of(self.values)

        def rows(placed: PlacedFile) -> Iterator[tuple[Position, str, Part, PlacedFile]]:
            where = known if placed.own is None else positions.of(placed.own)
            found = [(where[name], name, part) for part in placed.parts for name in part.names]
            found.sort(key=itemgetter(0, 1))
            return ((*row, placed) for row in found)

        for first in range(0, len(self.files), _FILES_TOGETHER):
            files = self.files[first : first + _FILES_TOGETHER]
            for _, name, part, placed in heapq.merge(*map(rows, files), key=itemgetter(0)):
                value = None if placed.own is None else placed.own[name]
                yield self._assembly(part, name, placed.file.places[name], value)

    def only(self, number: int, first: int, last: int) -> Assemblies:
        """Those of a run of tensors of one file, with no more than they need, so that they can be
        sent elsewhere; what else the file holds isn't theirs to write."""
        made = list(self.of(number, first, last))
        values = {
            one.place.name: Value(
                dtype=one.place.dtype,
                shape=one.place.shape,
                terms=one.terms,
                kind=one.kind,
                encoding=one.encoding,
            )
            for one in made
        }
        self.prove([number])
        file = self.files[number].file
        places = {one.place.name: one.place for one in made}
        parts = [Part((one.place.name,), None, one.replica) for one in made]
        run = replace(file, places=places, literals=(), seals=())
        return Assemblies(values, (PlacedFile(run, tuple(parts)),))

    def in_families(self) -> Assemblies:
        """The same, with parts of one kind each, of which it is known which an earlier file
        holds."""
        boxed = [placed for placed in self.files if placed.own is None]
        families = self._kinds.families({part.names for one in boxed for part in one.parts})
        met: dict[Part, Part] = {}
        files = []
        for placed in self.files:
            if placed.own is None:
                parts = []
                for part in placed.parts:
                    for names in families[part.names]:
                        own = Part(names, part.box)
                        parts.append(met.get(own, own))
                        met[own] = replace(own, replica=True)
                placed = replace(placed, parts=tuple(parts))
            files.append(placed)
        self.files, self._is_in_families = tuple(files), True
        return self

    def prove(self, numbers: Iterable[int] | None = None) -> Assemblies:
        """The same, of which some files are proved, all unless it is said which: each kind once.
        Raises `PlanError`."""
        if not self._is_in_families:
            self.in_families()
        for number in range(len(self.files)) if numbers is None else numbers:
            placed = self.files[number]
            if placed.own is not None:
                _prove_own(placed, self._own_proved)
                continue
            for part in placed.parts:
                kind = self._kinds.number(part.names[0]), part.box
                if kind not in self._proved:
                    self._proved.add(kind)
                    place = placed.file.places[part.names[0]]
                    prove_filled(self._assembly(part, part.names[0], place))
        return self

    def _assembly(
        self, part: Part, name: str, place: Place, value: Value | None = None
    ) -> Assembly:
        value = self.values[name] if value is None else value
        terms = value.terms
        if part.box is not None:
            terms = tuple(map(_of_cut, terms, self._cut(name, value, part.box)))
        if part.box is not None and value.encoding is not None:
            raise PlanError(f"{name}: codes of whole blocks can't be cut into the parts of ranks.")
        return Assembly(
            place=place,
            terms=terms,
            kind=value.kind,
            replica=part.replica,
            encoding=value.encoding,
        )

    def _cut(self, name: str, value: Value, box: Box) -> list[Overlap]:
        kind = self._kinds.number(name)
        found = self._cuts.get((kind, box))
        if found is None:
            reach = self._kinds.reach(kind)
            cuts = map(_cut, value.terms, reach, repeat(value.shape), repeat(box))
            found = self._cuts[kind, box] = list(cuts)
        return found


class _Kinds:
    """Values by kind: those of a kind are cut by a box in the same way."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self._numbers: dict[str, int] = {}
        self._known: dict[object, int] = {}
        self._same: dict[object, int] = {}  # of the very same transfers
        self._reach: dict[int, list[Reach]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_same": {}}  # identities are of this process

    def number(self, name: str) -> int:
        """The kind of a value."""
        found = self._numbers.get(name)
        if found is None:
            value = self._values[name]
            same = _same_as(value)
            if (found := self._same.get(same)) is None:
                kind = _kind_of(value)
                found = self._same[same] = self._known.setdefault(kind, len(self._known))
                if found not in self._reach:
                    self._reach[found] = [
                        Reach.of([one.transfer for one in term.fragments]) for term in value.terms
                    ]
            self._numbers[name] = found
        return found

    def reach(self, kind: int) -> list[Reach]:
        """How far the fragments of each term reach."""
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


def _prove_own(placed: PlacedFile, known: set[object]) -> None:
    """Proves a file of values of its own, of each kind that isn't known one."""
    for name, value in (placed.own or {}).items():
        kind = _kind_of(value)
        if kind not in known:
            known.add(kind)
            place = placed.file.places[name]
            assembly = Assembly(
                place=place, terms=value.terms, kind=value.kind, encoding=value.encoding
            )
            prove_filled(assembly)


def _same_as(value: Value) -> object:
    """What two values of a kind have in common that were made together: the very same transfers,
    which are told apart faster by identity than by what they hold. Good as long as the values."""
    found: list[object] = [value.shape, id(value.encoding)]
    for term in value.terms:
        found.append(term.fill)
        for one in term.fragments:
            found += one.stored.shape, id(one.transfer)
    return tuple(found)


def _kind_of(value: Value) -> object:
    encoding = None if value.encoding is None else value.encoding.identity()
    return value.shape, encoding, *map(_kind_of_term, value.terms)


def _kind_of_term(term: Term) -> object:
    return term.fill, tuple((one.stored.elements, one.transfer) for one in term.fragments)


def _cut(term: Term, reach: Reach, shape: tuple[int, ...], box: Box) -> Overlap:
    strides = row_major_strides(shape)
    start, stop = dot([lo for lo, _ in box], strides), dot([hi - 1 for _, hi in box], strides)
    return [
        (i, part)
        for i in reach.between(start, stop)
        for part in within_target(term.fragments[i].transfer, shape, box)
    ]


def _of_cut(term: Term, cut: Overlap) -> Term:
    fragments = term.fragments
    parts = [Fragment(fragments[i].stored, part, fragments[i].steps) for i, part in cut]
    return Term(fragments=tuple(parts), weight=term.weight, fill=term.fill)


def in_memory(name: str, value: Value) -> Assembly:
    """The assembly of a value that goes into no file."""
    place = Place(path=Path(), name=name, dtype=value.dtype, shape=value.shape, extents=())
    return Assembly(place=place, terms=value.terms, kind=value.kind)
