"""Tiles and spans against brute force: every element arrives, once, whatever the form of the
tile."""

import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptforge.boxes import row_major_strides
from ckptforge.dtypes import BY_NAME
from ckptforge.run import spans as spans_module
from ckptforge.run import transpose
from ckptforge.run.forms import Sources, best_form, block_form
from ckptforge.run.spans import Spans, spans_of, strips, windows
from ckptforge.run.tiles import fits, inside, tiles
from ckptforge.run.transpose import copy_strided
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.transfers import Transfer
from ckptforge.values import Stored


@st.composite
def transposed(draw):
    """(target shape, source array, transfer): a target tensor that is a permutation of the source's
    axes."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    source = np.arange(math.prod(shape), dtype=np.int64)
    target_shape = tuple(shape[axis] for axis in order)
    from_ = tuple(row_major_strides(shape)[axis] for axis in order)
    return (
        target_shape,
        source,
        Transfer(target_shape, 0, from_, 0, row_major_strides(target_shape)).ordered(),
    )


def read(source, part, spans):
    """What a worker has in its buffer after reading the spans."""
    buffer = [
        source[part.source + start : part.source + start + spans.length] for start in spans.starts()
    ]
    return np.concatenate(buffer) if buffer else source[:0]


@settings(max_examples=300)
@given(transposed(), st.data())
def test_any_tiling_assembles_the_tensor(case, data):
    shape, source, transfer = case
    total = math.prod(shape)
    width = data.draw(
        st.sampled_from(
            [width for width in range(1, total + 1) if total % width == 0 and fits(transfer, width)]
        )
    )
    rows, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(1, width))
    limit = data.draw(st.integers(1, 2 * total))
    gap = data.draw(st.sampled_from([0, 16, 1000]))  # bytes that are rather read than skipped
    out = np.full(total, -1, np.int64)
    for tile in tiles(total, width, rows, columns):
        made = np.full(tile.elements, -1, np.int64)
        for part in inside(transfer, tile):
            for strip in strips(part, limit, 8):
                with patch.object(spans_module, "READ_CALL", gap):
                    spans = spans_of(strip, 8)
                buffer = read(source, strip, spans)
                assert buffer.size == spans.elements and (
                    gap or buffer.size <= max(limit, spans.length)
                )
                # so that these small tensors have several blocks
                with patch.multiple(transpose, _ROWS=2, _ROW_BYTES=16, _WORTH=1):
                    copy_strided(
                        buffer,
                        made,
                        Transfer(
                            strip.shape, 0, spans.strides, strip.target, strip.target_strides
                        ).coalesced(),
                    )
        at = 0
        assert len(list(tile.runs())) == tile.run_count
        for first, count in tile.runs():
            assert (out[first : first + count] == -1).all()
            out[first : first + count] = made[at : at + count]
            at += count
    expected = np.lib.stride_tricks.as_strided(
        source, transfer.shape, [8 * s for s in transfer.source_strides]
    ).reshape(-1)
    assert (out == expected).all() if transfer.shape else out[0] == 0


@given(transposed(), st.integers(1, 200), st.booleans())
def test_the_best_form_fits_and_tiles_everything(case, limit, far):
    shape, _, transfer = case
    width, rows, columns = best_form(math.prod(shape), 2, Sources((transfer,), 2, far), limit)
    found = list(tiles(math.prod(shape), width, rows, columns))
    assert fits(transfer, width)
    assert all(tile.elements <= limit for tile in found)
    assert sum(tile.elements for tile in found) == math.prod(shape)


def test_tiles_are_written_in_long_runs():
    n = 4096
    for transfer in (Transfer((n * n,), 0, (1,), 0, (1,)), Transfer((n, n), 0, (1, n), 0, (n, 1))):
        width, rows, columns = best_form(n * n, 2, Sources((transfer,), 2), 1 << 20)
        assert rows * columns == 1 << 20 and (columns == width or rows == 1)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 500),
    st.booleans(),
    st.booleans(),
)
def test_blocks_are_never_cut(shape, block, limit, turned, in_order):
    (height, width), (rows, columns) = shape, block
    source = (1, height) if turned else (width, 1)
    sources = Sources((Transfer(shape, 0, source, 0, (width, 1)),), 2)
    form = block_form(shape, block, sources, limit, in_order)
    if rows * columns > limit:
        assert form is None
        return
    assert form is not None
    high, broad = form
    assert high % rows == 0 and (broad % columns == 0 or broad == width) and high * broad <= limit


def test_turned_blocks_are_not_read_again_and_again():
    """Of experts side by side: 4096 columns, of which a tile wants as many as it has rows."""
    n, m = 7168, 2048
    sources = Sources((Transfer((m, n), 0, (1, 2 * m), 0, (n, 1)),), 2)
    form = block_form((m, n), (128, 128), sources, 1 << 22)
    assert form is not None and form[0] >= 512


def test_what_goes_through_steps_is_not_read_in_vain():
    half = Transfer((100, 1024), 0, (2048, 1), 0, (1024, 1))
    assert spans_of(half, 1).count == 1 and spans_of(half, 1 + 40).count == 100


def test_what_is_far_is_read_in_one_go():
    e, n, m = 4, 768, 3072
    moves = [Transfer((n, m), 0, (1, n), i * n * m, (m, 1)) for i in range(e)]
    width, rows, columns = best_form(e * n * m, 2, Sources(tuple(moves), 2, True), 1 << 20)
    assert (width, rows) == (m, n) and columns < m


def test_narrow_gaps_are_read_over_and_wide_ones_skipped():
    near = spans_of(Transfer((100, 64), 0, (128, 1), 0, (64, 1)), 2)
    assert (near.count, near.length) == (1, 99 * 128 + 64)
    far = spans_of(Transfer((100, 64), 0, (1 << 20, 1), 0, (64, 1)), 2)
    assert (far.count, far.length) == (100, 64)


@given(st.data())
def test_any_part_of_a_matrix_gets_its_own_scales(data):
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    block = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    shape = -(-rows // block[0]), -(-columns // block[1])
    scales = np.arange(1, math.prod(shape) + 1, dtype=np.float32)
    spread = np.kron(scales.reshape(shape), np.ones(block, np.float32))[:rows, :columns].reshape(-1)
    start = data.draw(st.integers(0, rows * columns - 1))
    length = data.draw(st.integers(1, rows * columns - start))
    stride = data.draw(st.integers(length, rows * columns))
    count = data.draw(st.integers(1, (rows * columns - start - length) // stride + 1))
    spans = Spans(((count, stride),), length, (length, 1))
    numbers = np.ones(spans.elements, np.float32)
    matrix, scale = (
        Stored(path=Path(), name=name, dtype=BY_NAME[dtype], shape=shape, extents=())
        for name, dtype, shape in (
            ("matrix", "float8_e4m3fn", (rows, columns)),
            ("scales", "float32", shape),
        )
    )
    step = Scaled(scale=Grid(stored=scale), block=block)
    prepared = step.prepare(matrix, lambda stored, dtype: scales.reshape(stored.shape))
    prepared.apply(numbers, list(windows(start, spans, columns)))
    assert (
        numbers == np.concatenate([spread[start + i : start + i + length] for i in spans.starts()])
    ).all()
