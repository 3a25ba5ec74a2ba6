"""Tiles and spans against brute force: every element arrives, once, whatever the form of the tile."""

import math
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptforge.boxes import Transfer, row_major_strides
from ckptforge.engine import transpose
from ckptforge.engine.tiles import best_form, inside, spans_of, tiles
from ckptforge.engine.transpose import copy_strided


@st.composite
def transposed(draw):
    """(target shape, source array, transfer): a target tensor that is a permutation of the source's axes."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    source = np.arange(math.prod(shape), dtype=np.int64)
    target_shape = tuple(shape[axis] for axis in order)
    from_ = tuple(row_major_strides(shape)[axis] for axis in order)
    return target_shape, source, Transfer(target_shape, 0, from_, 0, row_major_strides(target_shape)).ordered()


def read(source, part, spans):
    """What a worker has in its buffer after reading the spans."""
    buffer = [source[part.source + start : part.source + start + spans.length] for start in spans.starts()]
    return np.concatenate(buffer) if buffer else source[:0]


@settings(max_examples=300)
@given(transposed(), st.data())
def test_any_tiling_assembles_the_tensor(case, data):
    shape, source, transfer = case
    total = math.prod(shape)
    axis = data.draw(st.integers(0, len(shape)))
    width = math.prod(shape[axis:])
    rows, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(1, width))
    limit = data.draw(st.integers(1, 2 * total))
    out = np.full(total, -1, np.int64)
    for tile in tiles(shape, width, rows, columns):
        made = np.full(tile.elements, -1, np.int64)
        for part in inside(transfer, tile):
            spans = spans_of(part, max(part.size, limit))
            buffer = read(source, part, spans)
            assert buffer.size == spans.elements <= max(part.size, limit)
            with patch.multiple(transpose, _ROWS=2, _ROW_BYTES=16, _WORTH=1):  # so that these small tensors have several blocks
                copy_strided(buffer, made, Transfer(part.shape, 0, spans.strides, part.target, part.to).coalesced())
        at = 0
        assert len(list(tile.runs())) == tile.run_count
        for first, count in tile.runs():
            assert (out[first : first + count] == -1).all()
            out[first : first + count] = made[at : at + count]
            at += count
    expected = np.lib.stride_tricks.as_strided(source, transfer.shape, [8 * s for s in transfer.from_]).reshape(-1)
    assert (out == expected).all() if transfer.shape else out[0] == 0


@given(transposed(), st.integers(1, 200))
def test_the_best_form_fits_and_tiles_everything(case, limit):
    shape, _, transfer = case
    width, rows, columns = best_form(shape, 2, (transfer,), limit)
    found = list(tiles(shape, width, rows, columns))
    assert all(tile.elements <= limit for tile in found)
    assert sum(tile.elements for tile in found) == math.prod(shape)


def test_a_plain_copy_gets_long_rows_and_a_transposition_a_broad_window():
    n = 4096
    plain = Transfer((n * n,), 0, (1,), 0, (1,))
    width, rows, columns = best_form((n, n), 2, (plain,), 1 << 20)
    assert rows * columns == 1 << 20 and (columns == width or rows == 1)
    turned = Transfer((n, n), 0, (1, n), 0, (n, 1))
    width, rows, columns = best_form((n, n), 2, (turned,), 1 << 20)
    assert 256 <= rows <= 4096 and 256 <= columns <= 4096
