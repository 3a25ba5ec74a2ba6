"""Values put together from others: what a function from model to model does with their fragments.
Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from ckptforge.boxes import Box, box_shape, dot, full_box, index_in, row_major_strides
from ckptforge.transfers import Reach, Transfer, within_source, within_target
from ckptforge.values import Fragment, Stored, Term, Value, kind_of, whole_transfer

Brought = list[tuple[int, Transfer]]


def terms_through(parts: Iterable[tuple[Value, Transfer]], fill: float | None = None) -> list[Term]:
    """See `Composer.terms`."""
    return Composer().terms(parts, fill)


class Composer:
    """Puts many values together, and works out once what is alike: layers, experts."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Transfer, ...], int] = {}  # of the transfers of a term
        self._reaches: list[Reach] = []
        self._through: dict[tuple[int, Transfer, tuple[int, ...]], Brought] = {}
        # the same by the ids of transfers, which are found faster than equal ones, and kept with it
        self._known: dict[tuple[Any, ...], tuple[Brought, Transfer, tuple[Transfer, ...]]] = {}

    def terms(
        self, parts: Iterable[tuple[Value, Transfer]], fill: float | None = None
    ) -> list[Term]:
        """The terms of a value that is put together from parts of others, each by a transfer.

        Values with the same weights share their terms; others get some of their own, which are 0
        where the others lie.
        """
        found: dict[tuple[tuple[float, float | None], ...], list[list[Fragment]]] = {}
        for value, transfer in parts:
            weights = tuple([(term.weight, term.fill) for term in value.terms])
            if (lists := found.get(weights)) is None:
                lists = found[weights] = [[] for _ in weights]
            for term, fragments in zip(value.terms, lists, strict=True):
                for i, part in self._brought(term, transfer, value.shape):
                    one = term.fragments[i]
                    fragments.append(Fragment(one.stored, part, one.steps))
        alone = len(found) <= 1
        return [
            Term(
                fragments=tuple(fragments),
                weight=weight,
                fill=own if own is not None else fill if alone else 0.0,
            )
            for weights, lists in found.items()
            for (weight, own), fragments in zip(weights, lists, strict=True)
        ] or [Term(fragments=(), fill=fill)]

    def _brought(self, term: Term, second: Transfer, shape: tuple[int, ...]) -> Brought:
        """What each fragment of a term of this shape brings of what a transfer takes from it, with
        the number of the fragment."""
        key = (id(second), shape, *[id(one.transfer) for one in term.fragments])
        known = self._known.get(key)
        if known is None:
            firsts = tuple([one.transfer for one in term.fragments])
            known = self._known[key] = self._worked_out(firsts, second, shape), second, firsts
        return known[0]

    def _worked_out(
        self, firsts: tuple[Transfer, ...], second: Transfer, shape: tuple[int, ...]
    ) -> Brought:
        number = self._numbers.setdefault(firsts, len(self._reaches))
        if number == len(self._reaches):
            self._reaches.append(Reach.of(firsts))
        key = number, second, shape
        found = self._through.get(key)
        if found is None:
            found = self._through[key] = []
            if firsts == (whole_transfer(shape),):
                found.append((0, second))
            elif second.size:
                for i in self._reaches[number].between(second.source, second.last_source):
                    found += ((i, part) for part in chained(firsts[i], second, shape))
        return found


def value_of_parts(shape: tuple[int, ...], parts: Mapping[Box, Stored]) -> Value:
    """Boxes of a tensor of this shape, each stored by itself, as the value that they make up."""
    first = next(iter(parts.values()))
    strides = row_major_strides(shape)
    fragments = []
    for box, stored in parts.items():
        start = dot([lo for lo, _ in box], strides)
        own = row_major_strides(stored.shape)
        fragments.append(Fragment(stored, Transfer(stored.shape, 0, own, start, strides).ordered()))
    term = Term(fragments=tuple(fragments))
    return Value(dtype=first.dtype, shape=shape, terms=(term,), kind=kind_of(first.name))


def part_of(value: Value, box: Box) -> Value:
    """The part of a value that lies in a box, counted from the box's start."""
    terms = [
        replace(
            term,
            fragments=tuple(
                Fragment(one.stored, part, one.steps)
                for one in term.fragments
                for part in within_target(one.transfer, value.shape, box)
            ),
        )
        for term in value.terms
    ]
    return replace(value, shape=box_shape(box), terms=tuple(terms))


def chained(first: Transfer, second: Transfer, shape: tuple[int, ...]) -> list[Transfer]:
    """A transfer from a to b and one from b, which has this `shape`, to c, as transfers from a to
    c: what the first brings of what the second takes. They come out ordered.

    The first mustn't write an element of b twice.
    """
    if not first.size or not second.size:
        return []
    found = _as_box(first, shape)
    if found is None:
        return [part for row in _unrolled(first) for part in chained(row, second, shape)]
    fine, box, strides = found
    parts: list[Transfer] = []
    for part in within_source(_refined(second, fine), fine, box):
        parts += _from_box(part, box_shape(box), first.source, strides)
    return parts


@lru_cache(maxsize=1 << 12)
def _as_box(
    transfer: Transfer, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Box, tuple[int, ...]] | None:
    """(a shape of the target with the same flat order, the box in it that a transfer writes, the
    source's stride along each axis); None where it writes no box."""
    own = [unit for n, unit in zip(shape, row_major_strides(shape), strict=True) if n != 1]
    total = math.prod(shape)
    # the order of its numbers may be another than that of its axes
    return _box_along(transfer, own, total) or _box_along(transfer, (), total)


def _box_along(
    transfer: Transfer, own: Sequence[int], total: int
) -> tuple[tuple[int, ...], Box, tuple[int, ...]] | None:
    axes = {to: (n, from_) for n, from_, to in transfer.axes}
    units = sorted({*own, *axes, 1}, reverse=True)
    lengths = [outer // unit for outer, unit in zip([total, *units], units, strict=False)]
    if math.prod(lengths) != total or len(axes) != len(transfer.axes):
        return None
    along = [axes.get(unit, (1, 0)) for unit in units]
    starts = index_in(units, transfer.target)
    box = tuple((start, start + n) for start, (n, _) in zip(starts, along, strict=True))
    if any(stop > length for (_, stop), length in zip(box, lengths, strict=True)):
        return None
    return tuple(lengths), box, tuple(from_ for _, from_ in along)


def _refined(transfer: Transfer, shape: tuple[int, ...]) -> Transfer:
    """The same transfer with axes that run along several axes of the source's shape cut into one
    for each, where they can be."""
    axes = []
    for n, from_, to in transfer.axes:
        for unit in row_major_strides(shape):
            steps, rest = divmod(unit, from_) if from_ else (0, 1)
            if not rest and 1 < steps < n and not n % steps:
                axes.append((n // steps, unit, to * steps))
                n = steps
        axes.append((n, from_, to))
    lengths, source, target = zip(*axes, strict=True) if axes else ((), (), ())
    return Transfer(lengths, transfer.source, source, transfer.target, target).ordered()


def box_of(transfer: Transfer, shape: tuple[int, ...]) -> Box:
    """The box of a tensor of this shape that a transfer writes, of one whose axes are the
    tensor's."""
    strides = row_major_strides(shape)
    along = dict(zip(transfer.target_strides, transfer.shape, strict=True))
    starts = index_in(strides, transfer.target)
    return tuple(
        (start, start + (along.get(stride, 1) if n != 1 else 1))
        for start, stride, n in zip(starts, strides, shape, strict=True)
    )


def _unrolled(transfer: Transfer) -> Iterator[Transfer]:
    """A transfer cut into those of single steps along its slowest axis of the target."""
    ordered = transfer.ordered()
    rest = full_box(ordered.shape[1:])
    return (ordered.sub(((i, i + 1), *rest)).ordered() for i in range(ordered.shape[0]))


def _from_box(
    transfer: Transfer, lengths: tuple[int, ...], offset: int, strides: tuple[int, ...]
) -> Iterator[Transfer]:
    """A transfer whose source is a box, row-major, with the box in its place: at an offset, with
    these strides."""
    local = row_major_strides(lengths)
    starts = index_in(local, transfer.source)
    ends, from_ = list(starts), [0] * len(transfer.shape)
    for i, (n, stride) in enumerate(zip(transfer.shape, transfer.source_strides, strict=True)):
        if n == 1:
            continue
        axis = next(k for k, unit in enumerate(local) if stride >= unit and lengths[k] != 1)
        steps, uneven = divmod(stride, local[axis])
        ends[axis] += (n - 1) * steps
        if uneven or ends[axis] >= lengths[axis]:  # it runs on into the next row
            for row in _unrolled(transfer):
                yield from _from_box(row, lengths, offset, strides)
            return
        from_[i] = steps * strides[axis]
    yield replace(
        transfer, source=offset + dot(starts, strides), source_strides=tuple(from_)
    ).ordered()
