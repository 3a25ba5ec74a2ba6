"""Which numbers of a value share a scale: stored blocks, as they lie in the value."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptforge.boxes import index_in, row_major_strides
from ckptforge.steps.grouped import Grouped
from ckptforge.transfers import Transfer
from ckptforge.values import Value


def scale_block(value: Value, block: Sequence[int]) -> tuple[int, int] | None:
    """[rows, columns] of a value's last two axes that make up a block of `block` elements by axis
    of each of the tensors that it is stored in; None where these lie in it in several ways, in
    parts of blocks, or along other axes."""
    if len(value.shape) < 2 or not math.prod(value.shape):
        return None
    if any(isinstance(step, Grouped) for one in value.fragments for step in one.steps):
        return None  # any inputs may be of one group
    ways = {
        _way(fragment.transfer, fragment.stored.shape, block, value.shape)
        for fragment in value.fragments
    }
    return ways.pop() if len(ways) == 1 else None


def _way(
    transfer: Transfer, stored: Sequence[int], block: Sequence[int], shape: Sequence[int]
) -> tuple[int, int] | None:
    """That of one fragment."""
    if len(block) != len(stored):
        return None
    sides = [1] * len(shape)
    strides, own = row_major_strides(shape), row_major_strides(stored)
    starts = zip(index_in(own, transfer.source), block, stored, strict=True)
    if any(start % min(step, length) for start, step, length in starts):
        return None
    for step, length, stride in zip(block, stored, own, strict=True):
        if min(step, length) == 1:
            continue
        moved = _moved(transfer, stride, min(step, length))
        axes = [i for i, one in enumerate(strides) if one == moved and shape[i] > 1]
        if len(axes) != 1 or sides[axes[0]] > 1:
            return None
        sides[axes[0]] = step if step < length else shape[axes[0]]
    begun = zip(index_in(strides, transfer.target), sides, strict=True)
    if any(start % side for start, side in begun) or any(side > 1 for side in sides[:-2]):
        return None
    return sides[-2], sides[-1]


def _moved(transfer: Transfer, stride: int, step: int) -> int | None:
    """How far apart in the target lie neighbours that are `stride` apart in the source, of which
    there are `step` in a row."""
    for length, source, target in sorted(transfer.axes, key=lambda axis: -axis[1]):
        if source and stride % source == 0:
            times = stride // source
            return times * target if times * (step - 1) < length else None
    return None
