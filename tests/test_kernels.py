"""The compiled kernels make the same bytes and counts as numpy does where they aren't."""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import QuantisedError
from ckptforge.kernels import library as library_module
from ckptforge.kernels.library import NAME, SWITCH, arithmetic, library
from ckptforge.kernels.seal import is_sealed, seal_of, sources_of
from ckptforge.run import casts, transpose
from ckptforge.run.transpose import copy_strided
from ckptforge.steps import encoder
from ckptforge.steps.code_tables import Tables
from ckptforge.steps.encoded import CODES, Encoded
from ckptforge.transfers import Transfer
from tests.helpers import HUB, contents

DIRECTORY = Path(library_module.__file__).parent
compiled = pytest.mark.skipif(library() is None, reason="the kernels aren't compiled here")
anyhow = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def both(monkeypatch, make):
    """What something makes with the kernels, and with numpy."""
    found = []
    for switch in ("on", "off"):
        with monkeypatch.context() as context:
            context.setenv(SWITCH, switch)
            assert (library() is None) == (switch == "off")
            found.append(make())
    return found


def same_counts(one, other):
    sums = ("error", "square", "worst")
    exact = [{k: v for k, v in asdict(count).items() if k not in sums} for count in (one, other)]
    assert exact[0] == exact[1]
    least = 1e-30 * max(other.square, 1)  # numpy divides and squares float32
    for name in sums:
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=least)


@st.composite
def numbers(draw):
    """A matrix, also one whose rows lie apart, of float32 or bfloat16."""
    shape = (
        draw(st.integers(1, 300)),
        draw(st.sampled_from([1, 2, 31, 32, 64, 128, 129, 600, 1100])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["normal", "small", "bits", "ties", "next", "zeros"]))
    if kind == "bits":
        made = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
        made = np.where(np.isfinite(made), made, np.float32(0))
    elif kind == "ties":
        made = rng.integers(-64, 65, shape).astype(np.float32) / 4
    elif kind == "next":
        made = (1 + rng.integers(0, 3, shape) * 2.0**-23).astype(np.float32)
    else:
        made = rng.standard_normal(shape).astype(np.float32)
        made *= {"normal": 1, "small": 1e-40, "zeros": 0}[kind]
    if draw(st.booleans()):
        made = np.clip(made, -3e38, 3e38).astype(ml_dtypes.bfloat16)
    return made[:, draw(st.integers(0, shape[1] - 1)) :]


@compiled
@anyhow
@given(numbers(), st.sampled_from(sorted(CODES)), st.sampled_from([1000, 1 << 19]))
def test_codes_and_scales(monkeypatch, matrix, name, piece):
    code = CODES[name]
    if code.dtype.per_byte == 2 or code.block[1] == 32:  # whose last block is whole
        matrix = matrix[:, : matrix.shape[1] // 32 * 32]
        if not matrix.size:
            return
    if name == "w8a8-dynamic":  # whose scales of greater magnitudes are refused
        matrix = np.clip(matrix, -3.3e38, 3.3e38).astype(matrix.dtype)
    monkeypatch.setattr(encoder, "_PIECE", piece)
    parts = [
        Encoded(code=code, part=part, shape=matrix.shape, source=BY_NAME["float32"])
        for part in ("codes", "scales")
    ]

    def encoded():
        into = [
            (one, np.zeros(math.prod(one.stored_shape) * one.stored_dtype.itemsize, np.uint8))
            for one in parts
        ]
        count = encoder.encode(into, matrix, "x")
        return [out.tobytes() for _, out in into], count

    (ours, count), (expected, other) = both(monkeypatch, encoded)
    assert ours == expected
    same_counts(count, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", sorted(CODES))
def test_numbers_that_are_not_finite_are_refused(name, dtype, bad):
    code, matrix = CODES[name], np.ones((200, 256), dtype)
    matrix[131, 77] = bad
    one = Encoded(code=code, part="codes", shape=matrix.shape, source=BY_NAME["float32"])
    with pytest.raises(QuantisedError, match="no code for NaN and infinities"):
        encoder.encode([(one, np.zeros(math.prod(one.stored_shape), np.uint8))], matrix, "x")


@compiled
@anyhow
@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([1, 3, 128, 40_000]),
    st.integers(1, 9),
    st.sampled_from(["float16", "bfloat16"]),
)
@example(0, 1, 1, 70_000, 2, "float16")
def test_codes_looked_up(monkeypatch, seed, grid, across, width, height, target):
    rng = np.random.default_rng(seed)
    shape = (grid, across, 256)
    size = rng.choice(np.float32([1e-42, 1e-6, 1, 1e3, 1e30]), (grid, across, 1))
    values = (rng.standard_normal(shape).astype(np.float32) * size).astype(np.float32)
    rows, blocks = rng.integers(0, grid, height), np.sort(rng.integers(0, across, width))
    codes = rng.integers(0, 256, height * width).astype(np.uint8)

    def decoded():
        raw = np.zeros(2 * codes.size + 1, np.uint8)  # numbers may lie at any address
        made = np.zeros(codes.size, np.uint16) if library() is None else raw[1:].view(np.uint16)
        tables = Tables(values, BY_NAME["float32"], BY_NAME[target])
        return tables.decode(codes, rows, blocks, made), made.tobytes()

    (count, ours), (other, expected) = both(monkeypatch, decoded)
    assert ours == expected
    same_counts(count, other)


@compiled
@pytest.mark.parametrize("pair", [("bfloat16", "float16"), ("float16", "bfloat16")])
@pytest.mark.parametrize("among", ["others", "any", "normal"])
def test_every_number_of_16_bits_is_cast(monkeypatch, pair, among):
    every = np.arange(1 << 16, dtype=np.uint16)
    if among == "any":
        every = np.random.default_rng(1).permutation(np.tile(every, 3))[:-5]
    elif among == "normal":
        numbers = np.full((every.size, 64), 1.5, casts.numpy_dtype(BY_NAME[pair[0]]))
        numbers.view(np.uint16)[:, 7] = every
        every = numbers.view(np.uint16).reshape(-1)
    source, target = (BY_NAME[name] for name in pair)

    def cast():
        made = np.zeros(every.size, np.uint16)
        casting = casts._table_cast(source, target)
        numbers = every.view(casts.numpy_dtype(source))
        return casting(numbers, made.view(casts.numpy_dtype(target))), made.tobytes()

    (count, ours), (other, expected) = both(monkeypatch, cast)
    assert ours == expected
    same_counts(count, other)


@compiled
@anyhow
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 3),
    st.integers(0, 7),
    st.integers(0, 9),
)
def test_matrices_are_turned(monkeypatch, itemsize, rows, columns, several, shift, gap):
    monkeypatch.setattr(transpose, "_WORTH", 1)
    column = rows + gap
    raw = np.random.default_rng(rows).integers(
        0, 256, shift + several * columns * column * itemsize
    )
    source = raw.astype(np.uint8)[shift:].view(f"u{itemsize}")
    shape, size = (several, rows, columns), several * rows * columns
    transfer = Transfer(shape, 0, (columns * column, 1, column), 0, (rows * columns, columns, 1))

    def turned():
        out = np.zeros(shift + size * itemsize, np.uint8)
        copy_strided(source, out[shift:].view(f"u{itemsize}"), transfer)
        return out.tobytes()

    ours, other = both(monkeypatch, turned)
    assert ours == other
    expected = source.reshape(several, columns, column)[:, :, :rows].transpose(0, 2, 1)
    assert ours[shift:] == expected.tobytes()


def damaged(tmp_path, how):
    """A library in a directory of its own, with sources if it is of others."""
    place = tmp_path / NAME
    if how == "another library":
        shutil.copy(ml_dtypes._ml_dtypes_ext.__file__, place)
    elif how == "sealed, without functions":
        library = Path(ml_dtypes._ml_dtypes_ext.__file__).read_bytes()
        place.write_bytes(library + seal_of(library, bytes(32)))
    elif how != "none":
        if not (DIRECTORY / NAME).exists():
            pytest.skip("the kernels aren't compiled here")
        whole = (DIRECTORY / NAME).read_bytes()
        if how.startswith("cut off"):
            place.write_bytes(whole[: int(len(whole) * float(how.split()[-1]))])
        elif how == "with zeros":
            place.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
        else:
            place.write_bytes(whole)
            (tmp_path / "encode.c").write_text("/* newer */")


@pytest.mark.parametrize(
    "how",
    ["none", "another library", "sealed, without functions", "with zeros", "of other sources"]
    + [f"cut off at {part}" for part in (0, 0.001, 0.02, 0.5, 0.9, 0.999)],
)
def test_without_them_numpy_does_it(tmp_path, monkeypatch, how):
    damaged(tmp_path, how)
    monkeypatch.setattr(library_module, "_DIRECTORY", tmp_path)
    library_module._loaded.cache_clear()
    try:
        assert library() is None
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", dtype="fp16")
    finally:
        library_module._loaded.cache_clear()


def test_a_seal_is_of_a_file_and_of_its_sources(tmp_path):
    (tmp_path / "x.c").write_text("int x;")
    sources = sources_of(tmp_path)
    file = b"library" + seal_of(b"library", sources)
    assert is_sealed(file, sources) and is_sealed(file, b"")  # a wheel has no sources
    (tmp_path / "x.c").write_text("int y;")
    assert not is_sealed(file, sources_of(tmp_path))
    for at in range(len(file)):
        assert not is_sealed(file[:at], sources)
        assert not is_sealed(file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :], b"")


@pytest.mark.parametrize("said", ["off", "OFF"])
def test_they_can_be_switched_off(monkeypatch, said):
    monkeypatch.setenv(SWITCH, said)
    assert library() is None and "numpy" in arithmetic()


@compiled
def test_a_whole_run_gives_the_same_bytes(tmp_path):
    """In processes of their own, as a user would switch them off."""
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", dtype="bf16")
    for switch in ("on", "off"):
        given = [tmp_path / "x.ckpt", tmp_path / switch, "--config", HUB]
        command = [sys.executable, "-m", "ckptforge", "to-torch", *map(str, given)]
        subprocess.run(
            [*command, "--quantise", "fp8-block128", "--quiet"],
            env={**os.environ, SWITCH: switch},
            check=True,
        )
    assert contents(tmp_path / "on") == contents(tmp_path / "off")
