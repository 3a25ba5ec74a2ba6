"""Casts against exact arithmetic: every 16-bit value, and hard cases of the others."""

import math
import struct
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import UsageError
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.verbs.options.dtypes import parse_target

# exponent bits, mantissa bits
FORMATS = {"float64": (11, 52), "float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}


def decode(bits: int, name: str) -> float | Fraction:
    """The exact value of a bit pattern; infinities and NaN as floats, negative zero as -0.0."""
    exponent_bits, mantissa_bits = FORMATS[name]
    sign = bits >> (exponent_bits + mantissa_bits)
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    if exponent == (1 << exponent_bits) - 1:
        return math.nan if mantissa else (-math.inf if sign else math.inf)
    if not exponent and not mantissa:
        return -0.0 if sign else 0.0
    bias = (1 << exponent_bits - 1) - 1
    significand = mantissa if exponent == 0 else mantissa + (1 << mantissa_bits)
    value = Fraction(significand) * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -value if sign else value


def encode(value: float | Fraction, name: str) -> int:
    """The nearest bit pattern, ties to even; from first principles."""
    exponent_bits, mantissa_bits = FORMATS[name]
    negative = value < 0 or (isinstance(value, float) and math.copysign(1, value) < 0)
    sign = int(negative) << (exponent_bits + mantissa_bits)
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    if isinstance(value, float):
        return sign | (infinity if math.isinf(value) else 0)
    magnitude, bias = abs(value), (1 << exponent_bits - 1) - 1
    exponent = max(math.floor(math.log2(magnitude)) if magnitude else 0, 1 - bias)
    while Fraction(2) ** exponent > magnitude and exponent > 1 - bias:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    units = magnitude / Fraction(2) ** (exponent - mantissa_bits)
    whole = units.numerator // units.denominator
    rest = units - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
    bits = (
        whole + ((exponent + bias - 1) << mantissa_bits) if whole >= 1 << mantissa_bits else whole
    )
    return sign | min(bits, infinity)


def cast_bits(patterns: list[int], source: str, target: str) -> tuple[list[int], object]:
    a, b = BY_NAME[source], BY_NAME[target]
    numbers = np.array(patterns, f"u{a.itemsize}").view(numpy_dtype(a))
    out = np.empty(numbers.size, numpy_dtype(b))
    count = cast_function(a, b)(numbers, out)
    return out.view(f"u{b.itemsize}").tolist(), count


def check(patterns: list[int], source: str, target: str) -> None:
    made, count = cast_bits(patterns, source, target)
    overflowed = underflowed = rounded = 0
    for bits, result in zip(patterns, made, strict=True):
        value = decode(bits, source)
        if isinstance(value, float) and math.isnan(value):
            assert math.isnan(decode(result, target)), f"{bits:#x} lost its NaN"
            continue
        assert result == encode(value, target), f"{source} {bits:#x} → {target} {result:#x}"
        back = decode(result, target)
        if isinstance(value, Fraction):
            overflowed += isinstance(back, float) and math.isinf(back)
            underflowed += back == 0
            rounded += (
                back != value and back != 0 and not (isinstance(back, float) and math.isinf(back))
            )
    assert (count.values, count.overflowed, count.underflowed, count.rounded) == (
        len(patterns),
        overflowed,
        underflowed,
        rounded,
    )


@pytest.mark.parametrize("target", ["bfloat16", "float16"])
@pytest.mark.parametrize("source", ["bfloat16", "float16"])
def test_every_16_bit_value(source, target):
    if source != target:
        check(list(range(1 << 16)), source, target)


@pytest.mark.parametrize("target", ["float32", "float64"])
@pytest.mark.parametrize("source", ["bfloat16", "float16"])
def test_widening_is_exact(source, target):
    check(list(range(0, 1 << 16, 7)), source, target)


def hard_cases(source: str) -> list[int]:
    """Values at and next to every rounding boundary of the narrower formats, and the special
    ones."""
    bits = []
    for target in ("bfloat16", "float16", "float32"):
        width = 1 << sum(FORMATS[target])
        for pattern in [
            0,
            1,
            2,
            3,
            0x3F,
            0x7F,
            0x80,
            0x81,
            0x3FF,
            0x400,
            0x401,
            width // 2,
            width - 3,
        ]:
            for sign in (0, 1):
                value = decode(pattern | sign << sum(FORMATS[target]), target)
                upper = decode(pattern + 1 | sign << sum(FORMATS[target]), target)
                for exact in (
                    value,
                    upper,
                    (value + upper) / 2
                    if isinstance(upper, Fraction) and isinstance(value, Fraction)
                    else value,
                ):
                    code = encode(exact, source)
                    bits += [
                        code,
                        max(code - 1, 0),
                        min(code + 1, (1 << BY_NAME[source].itemsize * 8) - 1),
                    ]
    return bits


@pytest.mark.parametrize(
    ("source", "target"),
    [(s, t) for s in FORMATS for t in FORMATS if BY_NAME[s].itemsize > max(BY_NAME[t].itemsize, 2)],
)
def test_narrowing_at_every_boundary(source, target):
    check(hard_cases(source), source, target)


@given(st.lists(st.floats(width=64), min_size=1, max_size=50))
def test_float64_to_bfloat16_rounds_once(values):
    check(
        [struct.unpack("<Q", struct.pack("<d", value))[0] for value in values],
        "float64",
        "bfloat16",
    )


def test_float64_to_bfloat16_where_two_roundings_would_go_wrong():
    # exactly between two bfloat16; a little more must go up, float32 alone would forget it
    halfway = 1 + 2**-8
    bits = struct.unpack("<Q", struct.pack("<d", halfway + 2**-40))[0]
    assert decode(cast_bits([bits], "float64", "bfloat16")[0][0], "bfloat16") == 1 + Fraction(
        1, 128
    )


def test_parse_target():
    assert parse_target("keep") is None and parse_target(None) is None
    assert parse_target("bf16").name == "bfloat16" and parse_target("float16").name == "float16"
    with pytest.raises(UsageError, match="fp8"):
        parse_target("fp8")


@given(st.lists(st.integers(0, 255), max_size=9), st.integers(0, 3))
def test_numbers_of_eight_bits_are_what_they_stand_for(codes, first):
    """In pairs and one alone, wherever they lie."""
    for source, target in product(("float8_e4m3fn", "float8_e5m2"), ("float32", "bfloat16")):
        raw = np.array([0] * first + codes, np.uint8)[first:]
        place = np.empty(first + len(codes), numpy_dtype(BY_NAME[target]))[first:]
        count = cast_function(BY_NAME[source], BY_NAME[target])(raw, place)
        expected = raw.view(numpy_dtype(BY_NAME[source])).astype(place.dtype)
        assert place.tobytes() == expected.tobytes() and count.values == len(codes)


@pytest.mark.parametrize("target", ["bfloat16", "float16"])
@pytest.mark.parametrize("odd", [None, np.nan, np.inf, 3.4e38])
def test_what_becomes_zero_or_infinite_is_counted_among_zeros(target, odd):
    numbers = np.array([0.0, -0.0, 1e-45, -1e-45, 1.0, 1.001], np.float32)
    numbers = np.append(numbers, np.float32([] if odd is None else [odd]))
    out = np.empty(numbers.size, numpy_dtype(BY_NAME[target]))
    count = cast_function(BY_NAME["float32"], BY_NAME[target])(numbers, out)
    assert (count.underflowed, count.rounded) == (2, 1)
    assert count.overflowed == (odd == 3.4e38)
