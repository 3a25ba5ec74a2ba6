"""Transfers: which elements of a tensor go where in another, and what of them lies in a box. Pure
arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, product
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, box_shape, boxes_in_range, dot, index_in, row_major_strides


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Two grids over one box of `shape`: element i of the box goes from flat `source +
    i·source_strides` to flat `target + i·target_strides`."""

    shape: tuple[int, ...]
    source: int
    source_strides: tuple[int, ...]
    target: int
    target_strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers are moved."""
        return math.prod(self.shape)

    @property
    def last_source(self) -> int:
        """The last flat element that is read, of a transfer that isn't empty."""
        return self.source + dot([n - 1 for n in self.shape], self.source_strides)

    @property
    def last_target(self) -> int:
        """The last flat element that is written, of a transfer that isn't empty."""
        return self.target + dot([n - 1 for n in self.shape], self.target_strides)

    @property
    def axes(self) -> list[tuple[int, int, int]]:
        """(length, source's stride, target's stride) of the axes that are longer than 1, or
        empty."""
        axes = zip(self.shape, self.source_strides, self.target_strides, strict=True)
        return [axis for axis in axes if axis[0] != 1]

    def sub(self, box: Box) -> Transfer:
        """The transfer of a box of this one's box."""
        start = [lo for lo, _ in box]
        return Transfer(
            box_shape(box),
            self.source + dot(start, self.source_strides),
            self.source_strides,
            self.target + dot(start, self.target_strides),
            self.target_strides,
        )

    def reversed(self) -> Transfer:
        """The transfer back."""
        return Transfer(
            self.shape, self.target, self.target_strides, self.source, self.source_strides
        )

    def ordered(self) -> Transfer:
        """The same transfer without axes of size 1, sorted by target stride, the slowest first."""
        return self._with(sorted(self.axes, key=lambda axis: -axis[2]))

    def coalesced(self) -> Transfer:
        """The same transfer with the fewest axes: ordered, and neighbours joined where both sides
        run on. A plain copy of bytes comes out with at most one axis, of stride 1 on both sides."""
        joined: list[tuple[int, int, int]] = []
        for n, f, t in sorted(self.axes, key=lambda axis: -axis[2]):
            if joined and joined[-1][1] == f * n and joined[-1][2] == t * n:
                joined[-1] = (joined[-1][0] * n, f, t)
            else:
                joined.append((n, f, t))
        return self._with(joined)

    def _with(self, axes: Sequence[tuple[int, int, int]]) -> Transfer:
        shape, source, target = zip(*axes, strict=True) if axes else ((), (), ())
        return Transfer(shape, self.source, source, self.target, target)

    @property
    def is_move(self) -> bool:
        """True for a coalesced transfer that moves one run of elements."""
        return not self.shape or (
            len(self.shape) == 1 and self.source_strides == self.target_strides == (1,)
        )


class Reach(NamedTuple):
    """Which flat elements transfers to one tensor fill: their numbers in the order of the `first`
    one, and the furthest that each of them or one before it reaches."""

    order: list[int]
    first: list[int]
    furthest: list[int]

    @classmethod
    def of(cls, transfers: Sequence[Transfer]) -> Reach:
        """That of transfers."""
        order = sorted(range(len(transfers)), key=lambda i: transfers[i].target)
        furthest = accumulate((transfers[i].last_target for i in order), max)
        return cls(order, [transfers[i].target for i in order], list(furthest))

    def between(self, start: int, stop: int) -> list[int]:
        """Those that may fill elements from `start` to `stop`, in their order."""
        last = bisect_right(self.first, stop)
        return sorted(self.order[bisect_left(self.furthest, start) : last])


def within_source(transfer: Transfer, shape: Sequence[int], box: Box) -> list[Transfer]:
    """The parts of a transfer whose source elements lie in a box of the source tensor, which has
    this shape; in them the source is counted in the box's own row-major elements.

    Where each axis of the transfer runs along one axis of the tensor, as those of most layouts do,
    there are few; else some for each run of the box's elements in the tensor.
    """
    full, local = row_major_strides(shape), row_major_strides(box_shape(box))
    rank, strides = len(transfer.shape), transfer.source_strides
    groups: list[list[int]] = [[] for _ in shape]
    for i in sorted(range(rank), key=lambda i: -strides[i]):
        if transfer.shape[i] != 1:
            runs = (
                axis for axis, unit in enumerate(full) if strides[i] >= unit and shape[axis] != 1
            )
            groups[next(runs)].append(i)
    starts = index_in(full, transfer.source)
    choices, from_ = [], [0] * rank
    for group, (lo, hi), length, unit, step, start in zip(
        groups, box, shape, full, local, starts, strict=True
    ):
        last = sum((transfer.shape[i] - 1) * strides[i] for i in group)
        if any(strides[i] % unit for i in group) or start * unit + last >= length * unit:
            return list(_run_by_run(transfer, shape, box))  # not along one axis
        for i in group:
            from_[i] = strides[i] // unit * step
        sizes, units = [transfer.shape[i] for i in group], [strides[i] // unit for i in group]
        choices.append(boxes_in_range(sizes, units, lo - start, hi - start))
    found = []
    for combination in product(*choices):
        ranges = [(0, 1)] * rank
        for group, part in zip(groups, combination, strict=True):
            for i, chosen in zip(group, part, strict=True):
                ranges[i] = chosen
        sub = transfer.sub(tuple(ranges))
        index = index_in(full, sub.source)
        source = dot([i - lo for i, (lo, _) in zip(index, box, strict=True)], local)
        found.append(Transfer(sub.shape, source, tuple(from_), sub.target, sub.target_strides))
    return found


def _run_by_run(transfer: Transfer, shape: Sequence[int], box: Box) -> Iterator[Transfer]:
    full, local = row_major_strides(shape), row_major_strides(box_shape(box))
    # the axes from here on are whole, so that the box's elements lie one after another
    inner = len(shape)
    while inner and box[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    inner = max(inner - 1, 0)
    length = math.prod(box_shape(box[inner:]))
    order = [i for i, n in enumerate(transfer.shape) if n != 1]
    order.sort(key=lambda i: -transfer.source_strides[i])
    sizes, strides = [transfer.shape[i] for i in order], [transfer.source_strides[i] for i in order]
    outer = [range(*side) for side in box[:inner]]
    if outer:  # of the first axis, what the transfer meets
        met = (transfer.source // full[0], transfer.last_source // full[0] + 1)
        outer[0] = range(max(box[0][0], met[0]), min(box[0][1], met[1]))
    for index in product(*outer):
        whole = (*index, *(lo for lo, _ in box[inner:]))
        start = dot([i - lo for i, (lo, _) in zip(whole, box, strict=True)], local)
        lo = dot(whole, full) - transfer.source
        for part in boxes_in_range(sizes, strides, lo, lo + length):
            chosen = dict(zip(order, part, strict=True))
            sub = transfer.sub(tuple(chosen.get(i, (0, 1)) for i in range(len(transfer.shape))))
            yield replace(sub, source=sub.source - lo - transfer.source + start)


def within_target(transfer: Transfer, shape: tuple[int, ...], box: Box) -> tuple[Transfer, ...]:
    """`within_source` for the target side; the parts come out ordered."""
    if not box or not (row := math.prod(shape[1:])) or not (start := transfer.target // row):
        return _within_target(transfer, shape, box)
    # the parts are counted from the box's start: they are the same wherever both lie along axis 0
    (lo, hi), *others = box
    moved = replace(transfer, target=transfer.target - start * row)
    return _within_target(moved, shape, ((lo - start, hi - start), *others))


@lru_cache(maxsize=1 << 14)
def _within_target(transfer: Transfer, shape: tuple[int, ...], box: Box) -> tuple[Transfer, ...]:
    """Kept, as layers, experts and replicas are cut alike."""
    return tuple(
        part.reversed().ordered() for part in within_source(transfer.reversed(), shape, box)
    )
