"""Box arithmetic against brute force."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptforge.boxes import boxes_in_range, full_box, row_major_strides
from ckptforge.covering import intersect, uncovered, volume
from ckptforge.transfers import Transfer, within_source, within_target


@st.composite
def boxes(draw, rank, limit=5):
    return tuple(
        tuple(sorted((draw(st.integers(0, limit)), draw(st.integers(0, limit)))))
        for _ in range(rank)
    )


def elements(box):
    return set(product(*(range(lo, hi) for lo, hi in box)))


@given(st.data(), st.integers(0, 3))
def test_intersect_and_volume_are_those_of_the_elements(data, rank):
    a, b = data.draw(boxes(rank)), data.draw(boxes(rank))
    common = intersect(a, b)
    assert (elements(common) if common is not None else set()) == elements(a) & elements(b)
    assert volume(a) == len(elements(a))


@given(st.data(), st.integers(1, 3))
def test_uncovered_finds_gaps_overlaps_and_strays(data, rank):
    box = data.draw(boxes(rank, 4))
    parts = data.draw(st.lists(boxes(rank, 4), max_size=6))
    counts = dict.fromkeys(elements(box), 0)
    stray = any(
        lo < box_lo or hi > box_hi
        for part in parts
        for (lo, hi), (box_lo, box_hi) in zip(part, box, strict=True)
    )
    for part in parts:
        for element in elements(part):
            counts[element] = counts.get(element, 0) + 1
    exact = not stray and all(count == 1 for count in counts.values())
    assert (uncovered(box, parts) is None) == exact


def test_uncovered_accepts_a_real_tiling_and_names_the_place_of_a_hole():
    box = ((0, 4), (0, 6))
    tiling = [((0, 2), (0, 6)), ((2, 4), (0, 3)), ((2, 4), (3, 6))]
    assert uncovered(box, tiling) is None
    assert uncovered(box, tiling[:2]) == ("gap", ((2, 4), (3, 6)))
    assert uncovered(box, [*tiling, ((0, 1), (0, 1))]) == ("overlap", ((0, 1), (0, 1)))


@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_boxes_in_range_are_exactly_the_elements_of_the_range(shape, data):
    padding = [data.draw(st.integers(0, 3)) for _ in shape]
    strides, run = [], data.draw(st.integers(1, 3))
    for n, pad in zip(reversed(shape), reversed(padding), strict=True):
        strides.append(run)
        run = run * n + pad
    strides.reverse()
    lo, hi = sorted((data.draw(st.integers(-3, run + 3)), data.draw(st.integers(-3, run + 3))))
    found = boxes_in_range(shape, strides, lo, hi)
    listed = [element for box in found for element in elements(box)]
    expected = {
        e
        for e in elements(full_box(shape))
        if lo <= sum(i * s for i, s in zip(e, strides, strict=True)) < hi
    }
    assert len(listed) == len(set(listed)) and set(listed) == expected
    assert len(found) <= max(1, 2 * len(shape))


@st.composite
def transfers(draw):
    """A transfer between two axis orders of one box, each side inside a larger row-major tensor."""
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))
    from_order, to_order = (draw(st.permutations(range(len(shape)))) for _ in range(2))
    sides = []
    for order in (from_order, to_order):
        strides = [0] * len(shape)
        for axis, stride in zip(order, row_major_strides([shape[a] for a in order]), strict=True):
            strides[axis] = stride
        sides.append((draw(st.integers(0, 5)), tuple(strides)))
    return Transfer(tuple(shape), sides[0][0], sides[0][1], sides[1][0], sides[1][1])


def pairs(transfer):
    """{(source element, target element)}: what a transfer does."""
    return {
        (
            transfer.source
            + sum(i * s for i, s in zip(index, transfer.source_strides, strict=True)),
            transfer.target
            + sum(i * s for i, s in zip(index, transfer.target_strides, strict=True)),
        )
        for index in elements(full_box(transfer.shape))
    }


@given(transfers())
def test_ordered_and_coalesced_transfers_do_the_same(transfer):
    assert pairs(transfer.ordered()) == pairs(transfer.coalesced()) == pairs(transfer)
    coalesced = transfer.coalesced()
    assert len(coalesced.shape) <= len(transfer.shape)
    contiguous = {target - source for source, target in pairs(transfer)}
    assert coalesced.is_move == (len(contiguous) == 1)


def test_row_major_strides_are_numpys():
    for shape in [(), (3,), (2, 3, 4)]:
        strides = np.empty(shape, np.uint8).strides
        assert row_major_strides(shape) == strides and math.prod(shape) >= 1


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer((2, 3), 0, (3, 1), 0, (3, 1)),
        Transfer((6,), 4, (1,), 7, (1,)),
        Transfer((), 0, (), 0, ()),
    ],
)
def test_plain_copies_are_moves(transfer):
    assert transfer.coalesced().is_move


@st.composite
def factored(draw):
    """(tensor shape, transfer): a transfer whose source axes are the tensor's, some cut into
    factors, in another order."""
    tensor, sizes, strides = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        factors = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        tensor.append(math.prod(factors))
        sizes.append(factors)
    for factors, unit in zip(sizes, row_major_strides(tensor), strict=True):
        strides += [unit * stride for stride in row_major_strides(factors)]
    flat = [n for factors in sizes for n in factors]
    order = draw(st.permutations(range(len(flat))))
    shape = tuple(flat[i] for i in order)
    if draw(st.booleans()):  # the same numbers in another shape
        tensor = draw(st.permutations(flat))
    return tensor, Transfer(shape, 0, tuple(strides[i] for i in order), 0, row_major_strides(shape))


@given(factored(), st.data())
def test_within_source_is_what_a_shard_gives(case, data):
    tensor, transfer = case
    box = tuple(
        tuple(sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in tensor
    )
    numbers = np.arange(math.prod(tensor)).reshape(tensor)
    shard = numbers[tuple(slice(*side) for side in box)].reshape(-1)
    found = (
        [pair for part in within_source(transfer, tensor, box) for pair in pairs(part)]
        if volume(box)
        else []
    )
    assert len(found) == len(set(found))
    assert {(int(shard[source]), target) for source, target in found} == {
        (s, t) for s, t in pairs(transfer) if s in set(shard.tolist())
    }
    back = transfer.reversed()
    made = (
        [pair for part in within_target(back, tuple(tensor), box) for pair in pairs(part)]
        if volume(box)
        else []
    )
    assert {(source, int(shard[target])) for source, target in made} == {
        (t, s) for s, t in pairs(transfer) if s in set(shard.tolist())
    }
