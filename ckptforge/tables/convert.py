"""A model read as a layout in another layout of its table: each tensor, and what fills it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, product
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from ckptforge.composing import Composer
from ckptforge.dtypes import DType, holds
from ckptforge.errors import LayoutError, MissingTensorsError, PlanError
from ckptforge.spelling import command, flag, offered, option
from ckptforge.tables.axes import Pattern, in_parts
from ckptforge.tables.binding import Binding
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.pieces import Piece, fill, name_pieces, pieces, whole_pieces
from ckptforge.tables.table import Layout
from ckptforge.transfers import Transfer
from ckptforge.values import Value
from ckptforge.wording import counted, listing

Values = Mapping[str, Value]
Fillings = list[tuple[Value, Transfer]]  # what fills a tensor, and where it goes
Absent = dict[str, list[str]]


class Cutting(Protocol):
    """What cuts the tensors of a pattern into pieces, with so many of each axis in its name."""

    def __call__(self, pattern: Pattern, *, counts: Lengths) -> list[Piece]:
        """The pieces."""


class Conversion:
    """The tensors of a layout while they are put together."""

    def __init__(self, binding: Binding, target: Layout, values: Values, prefix: str) -> None:
        self.binding, self.target, self.values, self.prefix = binding, target, values, prefix
        table = binding.table
        self.present = [tensor for tensor in table.tensors if binding.holds(tensor)]
        self.origin = {tensor: binding.layout.holding(tensor) for tensor in self.present}
        self.wanted = [p for p in target.patterns if set(p.tensors) <= set(self.present)]
        self.counts = binding.sizes.lengths
        self.parts: dict[str, Fillings] = {}
        self.absent: Absent = {}
        self._read: dict[str, int] = {}  # name in the layout → elements that go somewhere
        self.shapes: dict[Pattern, tuple[int, ...]] = {}
        self._lengths: dict[str, dict[str, int]] = {}
        opaque = [pattern for pattern in self.wanted if self._same_inside(pattern)]
        for pattern in self.wanted:
            if pattern not in opaque:
                self._learn_lengths(pattern)
        for pattern in self.wanted:
            if pattern in opaque:
                self._move(pattern)
            else:
                self._rearrange(pattern)
        self._refuse_partial()

    def _same_inside(self, pattern: Pattern) -> bool:
        """Whether a stored tensor goes over as it is: one source pattern like it."""
        first, *others = [self.origin[tensor] for tensor in pattern.tensors]
        return first.stores_as(pattern) and all(origin is first for origin in others)

    def _learn_lengths(self, pattern: Pattern) -> None:
        sizes, table = self.binding.sizes, self.binding.table
        for tensor in pattern.tensors:
            for neighbour in (*pattern.tensors, *self.origin[tensor].tensors):
                source = self.origin[neighbour]
                target, shape = self.target.holding(neighbour), self.binding.shapes[source]
                lengths = sizes.telling(table, neighbour, source, target, shape)
                self._lengths[neighbour] = lengths

    def _move(self, pattern: Pattern) -> None:
        source = self.origin[pattern.tensors[0]]
        shape = self.shapes[pattern] = self.binding.shapes[source]
        self._pair(pattern, source, partial(whole_pieces, shape=shape), pattern.name_axes)

    def _rearrange(self, pattern: Pattern) -> None:
        self.shapes[pattern] = pattern.shape(lambda part, axis: self._lengths[part][axis])
        for tensor in pattern.tensors:
            source = self.origin[tensor]
            axes = self._axes(tensor, {**source.turns, **pattern.turns})
            cut = partial(pieces, tensor=tensor, axes=axes, lengths=self._lengths)
            self._pair(pattern, source, cut, axes)

    def _axes(self, tensor: str, turns: Mapping[str, int]) -> list[str]:
        """The axes of a logical tensor, those cut in parts of which parts take turns."""
        found: list[str] = []
        lengths = self._lengths[tensor]
        for axis in self.binding.table.tensors[tensor]:
            if (parts := turns.get(axis)) is None:
                found.append(axis)
                continue
            if lengths[axis] % parts:
                raise LayoutError(
                    f"axis {axis} of {tensor} is {lengths[axis]}, which can't be cut into {parts} "
                    f"parts, as layouts {self.binding.layout.name} and {self.target.name} differ "
                    "in."
                )
            found += in_parts(axis)
            lengths.update(zip(in_parts(axis), (parts, lengths[axis] // parts), strict=True))
        return found

    def _pair(self, pattern: Pattern, source: Pattern, cut: Cutting, axes: Sequence[str]) -> None:
        """Gathers what fills the tensors of a pattern. Those whose names differ in an axis that
        stands in both names, as the layers', are filled alike: the first of them is looked at."""
        both = [axis for axis in pattern.name_axes if axis in source.name_axes]
        first = self.counts.changed({axis: min(1, self.counts[axis]) for axis in both})
        own, other = (
            {name: index for index, name in name_pieces(one, first)} for one in (pattern, source)
        )
        found = fill(
            cut(pattern, counts=first),
            cut(source, counts=first),
            [i for i, axis in enumerate(axes) if axis in both],
        )
        pairs = [
            (
                _places(pattern, both, own[name]),
                [
                    (_places(source, both, other[one]), transfer, transfer.size)
                    for one, _, transfer in parts
                ],
            )
            for name, parts in found.items()
        ]
        names, prefix = self.binding.names.get(source, {}), self.prefix
        values, read = self.values, self._read
        name_of, stored_as = pattern.namer(self.counts), source.namer(self.counts)
        for numbers in product(*(range(self.counts[axis]) for axis in both)):
            for places, parts in pairs:
                filled: Fillings = []
                name = prefix + name_of(_index(places, numbers))
                for at, transfer, size in parts:
                    key = tuple([numbers[i] if of_both else i for of_both, i in at])
                    stored = prefix + (names.get(key) or stored_as(key))
                    if (value := values.get(stored)) is not None:
                        filled.append((value, transfer))
                        read[stored] = read.get(stored, 0) + size
                    else:
                        self.absent.setdefault(name, []).append(stored)
                if filled:
                    self.parts.setdefault(name, []).extend(filled)

    def _refuse_partial(self) -> None:
        for name, missing in self.absent.items():
            if name in self.parts:
                raise MissingTensorsError(
                    f"{name} can't be made, as some of its parts are missing:\n{listing(missing)}"
                    + f"\nGive {flag('weights_only')} to drop such state." * offered("weights_only")
                )

    def made(self, dtype: DType | None) -> tuple[dict[str, Value], list[tuple[str, Value]]]:
        """(the tensors that something fills, cast; those that keep their dtype by the table)."""
        kinds = {pattern: pattern.kind for pattern in self.wanted}
        found: dict[str, Value] = {}
        uncast: list[tuple[str, Value]] = []
        composer = Composer()
        for pattern, _, name in in_checkpoint_order(self.wanted, self.counts):
            full = self.prefix + name
            if full not in self.parts:
                continue
            parts = self.parts[full]
            sources = [source for source, _ in parts]
            kept = self.binding.table.keeps_dtype(pattern)
            if kept and not (dtype and all(holds(dtype, source.dtype) for source in sources)):
                wanted = None
            else:
                wanted = dtype
            found[full] = Value(
                dtype=_target_dtype(full, sources, wanted),
                shape=self.shapes[pattern],
                terms=tuple(composer.terms(parts)),
                kind=kinds[pattern],
            )
            own = found[full].dtype
            if kept and dtype is not None and own.floating and own != dtype:
                uncast.append((full, found[full]))
        return found, uncast

    def prove_used(self) -> None:
        """Every element of every tensor that was bound goes somewhere. Together with `fill`, which
        proves that no two meet, this is the proof that nothing is lost. Raises `PlanError`."""
        read, values = self._read, self.values
        for pattern, names in self.binding.names.items():
            bound = [self.prefix + name for name in names.values()]
            if set(map(read.get, bound)) == {math.prod(self.binding.shapes[pattern])}:
                continue
            for name in bound:
                value = values.get(name)
                if value is not None and (used := read.get(name, 0)) != value.elements:
                    raise PlanError(
                        f"{name}: {used} of {value.elements} elements are used; this is a defect "
                        "of the mapping."
                    )


def in_checkpoint_order(
    patterns: Iterable[Pattern], counts: Lengths
) -> Iterator[tuple[Pattern, dict[str, int], str]]:
    """(pattern, index, name) of every tensor: neighbouring patterns that begin with the same axis
    (the layers) take turns."""
    for axis, group in groupby(patterns, key=lambda pattern: pattern.name_axes[:1]):
        members = list(group)
        if not axis:
            for pattern in members:
                yield from ((pattern, *piece) for piece in name_pieces(pattern, counts))
            continue
        turns: dict[int, list[tuple[Pattern, dict[str, int], str]]] = {}
        for pattern in members:
            for pinned, name in name_pieces(pattern, counts):
                turns.setdefault(pinned[axis[0]], []).append((pattern, pinned, name))
        for turn in sorted(turns):
            yield from turns[turn]


Places = list[tuple[bool, int]]


def _places(pattern: Pattern, both: Sequence[str], index: Mapping[str, int]) -> Places:
    """Where each number in a name comes from: (True, which of the axes that both names have) or
    (False, the number)."""
    return [
        (True, both.index(axis)) if axis in both else (False, index[axis])
        for axis in pattern.name_axes
    ]


def _index(places: Places, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple([numbers[i] if of_both else i for of_both, i in places])


class Converted(NamedTuple):
    """The tensors of a layout in its order, and those that a cast left as they are."""

    values: dict[str, Value]
    uncast: list[tuple[str, Value]]


def convert(
    binding: Binding,
    target: Layout,
    values: Values,
    dtype: DType | None,
    prefix: str = "",
    copied: Callable[[str], bool] = lambda _: True,
    partly: bool = False,
) -> Converted:
    """Every tensor of `target` from the tensors of a binding, cast to `dtype` unless that is None,
    except those that keep theirs by the table.

    Of the copies that `target` has of some tensors, those are made that are `copied`. With a
    `prefix`, the same for the tensors that bear it before their weight's name (optimizer state);
    those whose sources are all absent are left away. Raises `PlanError` when tensors that become
    one differ in dtype, and, unless `partly`, when something would be lost, and `ConfigError` when
    a size is needed that nothing tells.
    """
    conversion = Conversion(binding, target, values, prefix)
    if not partly:
        conversion.prove_used()
    made, uncast = conversion.made(dtype)
    for copy in () if prefix else target.copies:
        if binding.holds(copy.tensors[0]) and all(a in conversion.counts for a in copy.name_axes):
            for _, name in name_pieces(copy, conversion.counts):
                if copied(name):
                    made[name] = made[target.holding(copy.tensors[0]).template]
    homeless = []
    for name in binding.passed:
        if (value := values.get(prefix + name)) is None:
            continue
        own = value.dtype if dtype is None or not value.dtype.floating else dtype
        if (renamed := binding.layout.renamed(name, target)) is None:
            homeless.append(name)
        else:
            made[prefix + renamed] = replace(value, dtype=own)
    if homeless:
        raise LayoutError(
            f"layout {target.name} has no place for {counted(len(homeless), 'tensor')} of a tower, "
            f"which the mapping {binding.table.name} knows by no row:\n{listing(homeless)}\n"
            f"Leave them out first, with {option('drop')} of {command('edit')}.",
            tuple(homeless),
        )
    return Converted(made, uncast)


def uncast_note(
    uncast: Sequence[tuple[str, Value]], dtype: DType | None, keyword: str = "dtype"
) -> tuple[str, ...]:
    """A sentence about the tensors that a cast by the option `keyword` left, if any."""
    if dtype is None or not uncast:
        return ()
    counts = sorted(Counter(value.dtype.name for _, value in uncast).items())
    found = " and ".join(f"{n} tensor{'s' if n > 1 else ''} in {name}" for name, n in counts)
    example = f"{'such as ' if len(uncast) > 1 else ''}{uncast[0][0]}"
    asked = option(keyword, dtype.name)
    return (f"{asked} left {found}, as the model's table says: {example}.",)


def _target_dtype(name: str, sources: Sequence[Value], dtype: DType | None) -> DType:
    dtypes = {value.dtype.name: value for value in sources}
    if dtype is not None and all(value.dtype.floating for value in dtypes.values()):
        return dtype
    if len(dtypes) > 1:
        origins = [(value.origin, value.dtype) for value in dtypes.values()]
        found = "; ".join(f"{one.name} is {own} in {one.path}" for one, own in origins)
        raise PlanError(
            f"{name} is made of tensors of different dtypes: {found}. Cast them all with "
            f"{option('dtype')}."
        )
    return sources[0].dtype
