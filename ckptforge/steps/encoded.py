"""Numbers as codes with scales: what a file holds of them is one of the tensors that blocks of
numbers make, in place of the numbers.

Sources: published FP8 weights with `weight_scale_inv` (amax of 128 × 128 over 448); MindStudio
ModelSlim's W8A8_DYNAMIC (amax of a row over 127); the OCP Microscaling Formats specification,
version 1.0, section 6.3 (the exponent of a block is floor(log2(amax)) less that of the largest
code; what lies beyond the largest code becomes that).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import msgspec

from ckptforge.dtypes import BY_NAME, FLOAT4, DType

ROW = 0  # all columns of a row


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A way to write numbers: codes of `dtype`, of magnitude `largest` at most, with one scale for
    each `block` of [rows, columns]. With `powers` scales are powers of two, and that is the
    exponent of the largest code; they are stored in bytes, as exponent + 127."""

    name: str
    dtype: DType
    block: tuple[int, int]
    largest: float
    powers: int | None = None

    @property
    def scale_dtype(self) -> DType:
        """The dtype of the scales."""
        return BY_NAME["float32" if self.powers is None else "uint8"]


FP8 = BY_NAME["float8_e4m3fn"]
CODES = {
    one.name: one
    for one in (
        Code(name="fp8-block128", dtype=FP8, block=(128, 128), largest=448.0),
        Code(name="mxfp4", dtype=FLOAT4, block=(1, 32), largest=6.0, powers=2),
        Code(name="mxfp8", dtype=FP8, block=(1, 32), largest=448.0, powers=8),
        Code(name="w8a8-dynamic", dtype=BY_NAME["int8"], block=(1, ROW), largest=127.0),
    )
}


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """The `codes` or the `scales` of a matrix, or of several along leading axes, of this shape and
    of numbers of `source`."""

    code: Code
    part: Literal["codes", "scales"]
    shape: tuple[int, ...]
    source: DType

    @property
    def block(self) -> tuple[int, int]:
        """The rows and columns that share a scale."""
        rows, columns = self.code.block
        return rows, columns if columns != ROW else max(self.shape[-1], 1)

    @property
    def made(self) -> DType:
        """The dtype of the codes."""
        return self.code.dtype

    @property
    def unit(self) -> tuple[int, int]:
        """The rows and columns that make one element of what is stored."""
        return self.block if self.part == "scales" else (1, self.code.dtype.per_byte)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what is stored."""
        rows, columns = self.unit
        return (*self.shape[:-2], -(-self.shape[-2] // rows), -(-self.shape[-1] // columns))

    @property
    def stored_dtype(self) -> DType:
        """Its dtype: packed codes are bytes."""
        if self.part == "scales":
            return self.code.scale_dtype
        return self.code.dtype if self.code.dtype.per_byte == 1 else BY_NAME["uint8"]

    def identity(self) -> bytes:
        """Bytes that differ wherever it does."""
        return repr(("encoded", self.code, self.part, self.shape)).encode()

    @property
    def family(self) -> Hashable:
        """Codes and scales of the same numbers are made together."""
        return self.code, self.shape

    def takes(self, dtype: DType) -> bool:
        """bfloat16, the half of a float32."""
        return dtype.name == "bfloat16"

    def encode(self, numbers: Any, name: str, into: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Fills bytes with what whole blocks of numbers make, [rows, columns]: codes,
        scales, or both, each for its own encoding. Returns for each what that did to the numbers,
        as the count of a cast; None for scales. Raises `QuantisedError`, with the tensor's `name`,
        for numbers that aren't finite."""
        from ckptforge.steps.encoder import encode  # which needs numpy

        count = encode(into, numbers, name)
        return [count if one.part == "codes" else None for one, _ in into]
