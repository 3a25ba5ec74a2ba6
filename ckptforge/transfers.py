"""Transfers: which elements of a tensor go where in another. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import product

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, box_shape, boxes_in_range, full_box, row_major_strides


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
        return math.prod(self.shape)

    @property
    def last_source(self) -> int:
        """The last flat element that is read, of a transfer that isn't empty."""
        return self.source + sum(
            (n - 1) * s for n, s in zip(self.shape, self.source_strides, strict=True)
        )

    @property
    def last_target(self) -> int:
        """The last flat element that is written, of a transfer that isn't empty."""
        return self.target + sum(
            (n - 1) * s for n, s in zip(self.shape, self.target_strides, strict=True)
        )

    def sub(self, box: Box) -> Transfer:
        """The transfer of a box of this one's box."""
        start = tuple(lo for lo, _ in box)
        return Transfer(
            box_shape(box),
            self.source + sum(i * s for i, s in zip(start, self.source_strides, strict=True)),
            self.source_strides,
            self.target + sum(i * s for i, s in zip(start, self.target_strides, strict=True)),
            self.target_strides,
        )

    def reversed(self) -> Transfer:
        """The transfer back."""
        return Transfer(
            self.shape, self.target, self.target_strides, self.source, self.source_strides
        )

    def ordered(self) -> Transfer:
        """The same transfer without axes of size 1, sorted by target stride, the slowest first."""
        axes = sorted(
            (
                (n, f, t)
                for n, f, t in zip(
                    self.shape, self.source_strides, self.target_strides, strict=True
                )
                if n != 1
            ),
            key=lambda axis: -axis[2],
        )
        return self._with(axes)

    def coalesced(self) -> Transfer:
        """The same transfer with the fewest axes: ordered, and neighbours joined where both sides
        run on. A plain copy of bytes comes out with at most one axis, of stride 1 on both sides."""
        ordered = self.ordered()
        joined: list[tuple[int, int, int]] = []
        for n, f, t in zip(
            ordered.shape, ordered.source_strides, ordered.target_strides, strict=True
        ):
            if joined and joined[-1][1] == f * n and joined[-1][2] == t * n:
                joined[-1] = (joined[-1][0] * n, f, t)
            else:
                joined.append((n, f, t))
        return self._with(joined)

    def _with(self, axes: Sequence[tuple[int, int, int]]) -> Transfer:
        return Transfer(
            tuple(n for n, _, _ in axes),
            self.source,
            tuple(f for _, f, _ in axes),
            self.target,
            tuple(t for _, _, t in axes),
        )

    @property
    def is_move(self) -> bool:
        """True for a coalesced transfer that moves one run of elements."""
        return not self.shape or (
            len(self.shape) == 1 and self.source_strides == self.target_strides == (1,)
        )


def within_source(transfer: Transfer, shape: Sequence[int], box: Box) -> list[Transfer]:
    """The parts of a transfer whose source elements lie in a box of the source tensor, which has
    this shape; in them the source is counted in the box's own row-major elements.

    Where each axis of the transfer runs along one axis of the tensor, as those of most layouts do,
    there are few; else some for each run of the box's elements in the tensor.
    """
    full, local = row_major_strides(shape), row_major_strides(box_shape(box))
    groups: list[list[int]] = [[] for _ in shape]
    for i, stride in sorted(enumerate(transfer.source_strides), key=lambda item: -item[1]):
        if transfer.shape[i] != 1:
            groups[
                next(axis for axis, unit in enumerate(full) if stride >= unit and shape[axis] != 1)
            ].append(i)
    starts, rest = [], transfer.source
    for unit in full:
        start, rest = divmod(rest, unit) if unit else (0, rest)
        starts.append(start)
    if not all(map(partial(_along, transfer), groups, shape, full, starts)):
        return list(_run_by_run(transfer, shape, box))
    choices = [
        boxes_in_range(
            [transfer.shape[i] for i in group],
            [transfer.source_strides[i] // full[axis] for i in group],
            box[axis][0] - start,
            box[axis][1] - start,
        )
        for axis, (group, start) in enumerate(zip(groups, starts, strict=True))
    ]
    from_ = [0] * len(transfer.shape)
    for axis, group in enumerate(groups):
        for i in group:
            from_[i] = transfer.source_strides[i] // full[axis] * local[axis]
    found = []
    for combination in product(*choices):
        ranges = [(0, 1)] * len(transfer.shape)
        for group, part in zip(groups, combination, strict=True):
            for i, chosen in zip(group, part, strict=True):
                ranges[i] = chosen
        sub = transfer.sub(tuple(ranges))
        source, rest = 0, sub.source
        for axis, unit in enumerate(full):
            index, rest = divmod(rest, unit) if unit else (0, rest)
            source += (index - box[axis][0]) * local[axis]
        found.append(Transfer(sub.shape, source, tuple(from_), sub.target, sub.target_strides))
    return found


def _along(transfer: Transfer, group: Sequence[int], length: int, unit: int, start: int) -> bool:
    """Whether some axes of a transfer, together and from `start` on, stay within one axis of the
    source."""
    last = sum((transfer.shape[i] - 1) * transfer.source_strides[i] for i in group)
    return (
        all(transfer.source_strides[i] % unit == 0 for i in group)
        and start * unit + last < length * unit
    )


def _run_by_run(transfer: Transfer, shape: Sequence[int], box: Box) -> Iterator[Transfer]:
    full, local = row_major_strides(shape), row_major_strides(box_shape(box))
    # the axes from here on are whole, so that the box's elements lie one after another
    inner = len(shape)
    while inner and box[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    inner = max(inner - 1, 0)
    length = math.prod(box_shape(box[inner:]))
    order = sorted(
        (i for i, n in enumerate(transfer.shape) if n != 1),
        key=lambda i: -transfer.source_strides[i],
    )
    sizes, strides = [transfer.shape[i] for i in order], [transfer.source_strides[i] for i in order]
    met = (transfer.source // full[0], transfer.last_source // full[0] + 1)
    sides = [
        (max(lo, met[0]), min(hi, met[1])) if not axis else (lo, hi)
        for axis, (lo, hi) in enumerate(box[:inner])
    ]
    for index in product(*(range(*side) for side in sides)):
        start = sum((i - lo) * unit for i, (lo, _), unit in zip(index, box, local, strict=False))
        lo = sum(
            i * unit
            for i, unit in zip((*index, *(side[0] for side in box[inner:])), full, strict=True)
        )
        for part in boxes_in_range(
            sizes, strides, lo - transfer.source, lo + length - transfer.source
        ):
            chosen = dict(zip(order, part, strict=True))
            sub = transfer.sub(tuple(chosen.get(i, (0, 1)) for i in range(len(transfer.shape))))
            yield replace(sub, source=sub.source - lo + start)


@lru_cache(maxsize=1 << 14)
def within_target(transfer: Transfer, shape: tuple[int, ...], box: Box) -> tuple[Transfer, ...]:
    """`within_source` for the target side; the parts come out ordered. Kept, as layers and replicas
    are cut alike."""
    return tuple(
        part.reversed().ordered() for part in within_source(transfer.reversed(), shape, box)
    )


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
    for part in within_source(second, fine, box):
        parts += _from_box(part, box_shape(box), first.source, strides)
    return parts


@lru_cache(maxsize=1 << 12)
def _as_box(
    transfer: Transfer, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Box, tuple[int, ...]] | None:
    """(a shape of the target with the same flat order, the box in it that a transfer writes, the
    source's stride along each axis); None where it writes no box."""
    axes = {to: (n, from_) for n, from_, to in _axes(transfer)}
    own = [unit for n, unit in zip(shape, row_major_strides(shape), strict=True) if n != 1]
    units = sorted({*own, *axes, 1}, reverse=True)
    total = math.prod(shape)
    lengths = [outer // unit for outer, unit in zip([total, *units], units, strict=False)]
    if math.prod(lengths) != total or len(axes) != len(_axes(transfer)):
        return None
    box, strides, rest = [], [], transfer.target
    for length, unit in zip(lengths, units, strict=True):
        start, rest = divmod(rest, unit)
        n, from_ = axes.get(unit, (1, 0))
        if start + n > length:
            return None
        box.append((start, start + n))
        strides.append(from_)
    return tuple(lengths), tuple(box), tuple(strides)


def box_of(transfer: Transfer, shape: tuple[int, ...]) -> Box:
    """The box of a tensor of this shape that a transfer writes, of one whose axes are the
    tensor's."""
    starts, rest = [], transfer.target
    for stride in row_major_strides(shape):
        start, rest = divmod(rest, stride) if stride else (0, rest)
        starts.append(start)
    along = dict(zip(transfer.target_strides, transfer.shape, strict=True))
    strides = row_major_strides(shape)
    lengths = [
        along.get(stride, 1) if n != 1 else 1 for n, stride in zip(shape, strides, strict=True)
    ]
    return tuple((start, start + n) for start, n in zip(starts, lengths, strict=True))


def _axes(transfer: Transfer) -> list[tuple[int, int, int]]:
    """(length, source's stride, target's stride) of the axes that are longer than 1."""
    axes = zip(transfer.shape, transfer.source_strides, transfer.target_strides, strict=True)
    return [axis for axis in axes if axis[0] != 1]


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
    starts, rest = [], transfer.source
    for unit in local:
        start, rest = divmod(rest, unit)
        starts.append(start)
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
    source = offset + sum(i * stride for i, stride in zip(starts, strides, strict=True))
    yield Transfer(
        transfer.shape, source, tuple(from_), transfer.target, transfer.target_strides
    ).ordered()
