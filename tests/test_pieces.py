"""Where bytes lie in memory on their way from one file offset to another."""

from hypothesis import given
from hypothesis import strategies as st

from ckptforge.run.pieces import between, slow_to_copy

offsets = st.integers(0, 1 << 40)


@given(offsets, st.integers(-5000, 5000) | offsets)
def test_neither_reading_nor_writing_is_slow(source, distance):
    target = abs(source + distance)
    address = source + between(source, target)
    assert not slow_to_copy(source, address) and not slow_to_copy(address, target)
