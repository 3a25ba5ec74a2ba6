"""Values: parts of parts, put together by transfers, are what numpy makes of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptforge.boxes import row_major_strides
from ckptforge.composing import Composer, chained, value_of_parts
from ckptforge.dtypes import BY_NAME
from ckptforge.tables.skeletons import skeleton_of, skeletons_of
from ckptforge.transfers import Transfer
from ckptforge.values import Stored, kind_of, kinds_of


def applied(transfer, source, target):
    """A transfer carried out element by element."""
    for index in np.ndindex(*transfer.shape):
        at = transfer.source + sum(
            i * s for i, s in zip(index, transfer.source_strides, strict=True)
        )
        to = transfer.target + sum(
            i * s for i, s in zip(index, transfer.target_strides, strict=True)
        )
        target[to] = source[at]


@st.composite
def views(draw, elements):
    """A strided view of a row-major tensor of so many elements, as (shape, offset, strides)."""
    lengths, left = [], elements
    while left > 1 and len(lengths) < 4:
        divisors = [n for n in range(1, left + 1) if left % n == 0]
        n = left if len(lengths) == 3 else draw(st.sampled_from(divisors))
        lengths.append(n)
        left //= n
    strides = row_major_strides(lengths)
    axes = draw(st.permutations(range(len(lengths))))
    shape, offset, found = [], 0, []
    for axis in axes:
        start = draw(st.integers(0, lengths[axis] - 1))
        step = draw(st.integers(1, 2))
        shape.append(draw(st.integers(1, (lengths[axis] - start + step - 1) // step)))
        offset += start * strides[axis]
        found.append(step * strides[axis])
    return tuple(shape), offset, tuple(found)


@st.composite
def chains(draw):
    """(shape of b, a transfer from a to b, one from b to c)."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    elements = int(np.prod(shape))
    lengths, target, to = draw(views(elements))
    order = draw(st.permutations(range(len(lengths))))
    dense = row_major_strides([lengths[i] for i in order])
    from_ = tuple(dense[order.index(i)] * 2 for i in range(len(lengths)))
    first = Transfer(lengths, draw(st.integers(0, 3)), from_, target, to)
    taken, source, strides = draw(views(elements))
    second = Transfer(taken, source, strides, draw(st.integers(0, 3)), row_major_strides(taken))
    if draw(st.booleans()):
        first = first.coalesced()
    return shape, first, second.coalesced() if draw(st.booleans()) else second


@settings(max_examples=150, deadline=None)
@given(chains())
def test_a_chain_of_two_transfers_brings_what_both_bring_one_after_the_other(case):
    shape, first, second = case
    a = np.arange(1, first.last_source + 2)
    b = np.zeros(int(np.prod(shape)), int)
    applied(first, a, b)
    expected = np.zeros(second.last_target + 1, int)
    applied(second, b, expected)
    got = np.zeros_like(expected)
    parts = chained(first, second, shape)
    for part in parts:
        applied(part, a, got)
    assert (got == expected).all()
    assert sum(part.size for part in parts) == np.count_nonzero(expected)
    assert all(part == part.ordered() for part in parts)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cuts=st.sets(st.integers(1, 5)))
def test_what_is_put_together_of_values_that_are_alike_is_of_each_its_own(data, cuts):
    """Worked out once for all, it is what one transfer after another brings."""
    shape, ends = (6, 4), sorted({0, *cuts, 6})
    boxes = {((lo, hi), (0, 4)): (hi - lo, 4) for lo, hi in pairwise(ends)}

    def value(name):
        stored = {
            box: Stored(
                path=Path(f"{name}{box[0]}"),
                name=name,
                dtype=BY_NAME["float32"],
                shape=shape,
                extents=(),
            )
            for box, shape in boxes.items()
        }
        return value_of_parts(shape, stored)

    taken = st.integers(0, 2), st.integers(1, 4), st.integers(0, 1), st.integers(1, 3)
    composer = Composer()
    for name in "aba":
        row, rows, column, columns = data.draw(st.tuples(*taken))
        one = value(name)
        second = Transfer((rows, columns), row * 4 + column, (4, 1), 0, (columns, 1)).ordered()
        (term,) = composer.terms([(one, second)])
        expected = [
            (fragment.stored, part)
            for fragment in one.terms[0].fragments
            for part in chained(fragment.transfer, second, shape)
        ]
        if one.terms[0].fragments[0].transfer.shape == (24,):  # goes over whole
            expected = [(one.terms[0].fragments[0].stored, second)]
        assert [(got.stored, got.transfer) for got in term.fragments] == expected


@given(st.lists(st.text(st.sampled_from("ab.#\n0019é٣\0\udc80"), max_size=8)))
def test_names_are_told_apart_at_once_as_one_by_one(names):
    assert list(kinds_of(names)) == list(map(kind_of, names))
    assert list(skeletons_of(names)) == list(map(skeleton_of, names))
