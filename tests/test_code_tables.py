"""Codes that are looked up, block by block, become what they become one by one."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.dtypes import BY_NAME
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.spans import Spans, windows
from ckptforge.steps import scales as scales_module
from ckptforge.steps.code_tables import every_code
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.values import Decoder, Stored
from tests.helpers import HUB, contents


def stored(name: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored(path=Path(), name=name, dtype=BY_NAME[dtype], shape=shape, extents=())


@st.composite
def some_codes(draw):
    """(step, prepared from memory, codes of some spans, their windows)."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    block = tuple(draw(st.integers(1, n + 2)) for n in shape)
    grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    size = draw(st.sampled_from([1e-45, 1e-40, 2.0**-9, 0.013, 1.0, 1e30]))
    numbers = {
        "scale": (rng.choice([1, 0.3, -2, 0, 1.75], grid) * size).astype(np.float32),
        "offset": rng.integers(-9, 9, grid).astype(np.float32),
    }
    matrix = stored(
        "x", draw(st.sampled_from(["float8_e4m3fn", "float8_e5m2", "int8", "uint8"])), shape
    )
    step = Scaled(
        scale=Grid(stored=stored("scale", "float32", grid)),
        offset=Grid(stored=stored("offset", "float32", grid)) if draw(st.booleans()) else None,
        shift=draw(st.sampled_from([0.0, 8.0])),
        factor=draw(st.sampled_from([1.0, 1 / 127])),
        block=block,
    )
    total, columns = math.prod(shape), shape[-1]
    start = draw(st.integers(0, total - 1))
    length = draw(st.integers(1, total - start))
    stride = draw(st.integers(length, total))
    count = draw(st.integers(1, (total - start - length) // stride + 1))
    spans = Spans(((count, stride),), length, (length, 1))
    codes = rng.integers(0, 256, spans.elements).astype(np.uint8)
    prepared = step.prepare(matrix, lambda one, dtype: numbers[one.name])
    return matrix, step, prepared, codes, list(windows(start, spans, columns))


@pytest.fixture
def however_small(monkeypatch):
    monkeypatch.setattr(scales_module, "_LARGE", 1)
    monkeypatch.setattr(scales_module, "_TABLES", 3)
    monkeypatch.setattr("ckptforge.steps.code_tables._PIECE", 7)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_codes(), st.sampled_from(["bfloat16", "float16"]))
def test_codes_looked_up_are_those_computed(however_small, case, target):
    matrix, step, prepared, codes, found = case
    target, made = BY_NAME[target], step.gives(matrix.dtype)
    assert isinstance(prepared, Decoder)
    if not prepared.decodes(target):
        assert matrix.dtype.name == "float8_e5m2"  # of infinities and scales of 0
        return
    numbers = np.empty(codes.size, numpy_dtype(made))
    cast_function(matrix.dtype, made)(codes, numbers)
    assert prepared.apply(numbers, found) == 0
    expected = np.empty(codes.size, numpy_dtype(target))
    count = cast_function(made, target)(numbers, expected)
    out = np.empty(codes.size, numpy_dtype(target))
    assert prepared.decode(codes, found, target, out) == count
    assert out.tobytes() == expected.tobytes()


def test_every_code_is_what_it_stands_for():
    for name, first in (("int8", -1.0), ("float8_e4m3fn", math.nan)):
        numbers = every_code(BY_NAME[name], BY_NAME["float32"])
        assert numbers[0] == 0 and np.array_equal(numbers[255:], [first], equal_nan=True)


@pytest.mark.parametrize("layout", ["gmm", "dense"])
def test_models_are_the_same_either_way(tmp_path, monkeypatch, layout):
    ckptforge.convert(HUB, tmp_path / "fp8", to="hub", quantise=["fp8-block128"])
    made = []
    for large in (1, 1 << 30):
        monkeypatch.setattr(scales_module, "_LARGE", large)
        output = tmp_path / f"{large}.safetensors"
        result = ckptforge.to_ms(tmp_path / "fp8", output, layout=layout, dtype="bf16")
        made.append((contents(output), result.audit))
    assert made[0] == made[1] and made[0][1].counts
