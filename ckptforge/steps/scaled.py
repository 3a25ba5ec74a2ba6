"""Quantised tensors as what they stand for: (number - offset) · scale, in float32, where they are
read.

Sources: `weight_block_size` and per-tensor scales of transformers' FP8 configurations
(integrations/finegrained_fp8.py, `Fp8Dequantize`), which MindFormers' `weight_dequant` computes
alike; compressed-tensors' `dequantize`; MindStudio's ModelSlim ((weight - weight_offset) ·
weight_scale); the OCP microscaling formats for scales that are powers of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ckptforge.dtypes import DType
from ckptforge.values import Read, Stored, computing_dtype

if TYPE_CHECKING:
    from ckptforge.steps.scales import Scales

_TENSORS, _SMALL = 16, 256 * 1024  # that are kept at a time, if they take no more bytes


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers of a quantised tensor stand for: (number - offset) · scale, with one scale,
    and one offset, for each block of `block` elements by axis; blocks at the edges may be smaller.
    With `exponents` a scale is the byte of a power of two, 2 ** (byte - 127)."""

    scale: Stored
    block: tuple[int, ...]
    offset: Stored | None = None
    exponents: bool = False

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """The scales, and the offsets."""
        return (self.scale,) if self.offset is None else (self.scale, self.offset)

    def gives(self, dtype: DType) -> DType:
        """float32, or float64 where the tensor or its scales are of that."""
        return computing_dtype((dtype, self.scale.dtype))

    def memory(self, stored: Stored) -> int:
        """Scales and offsets as numbers and while they are read, of more tensors than one where
        they are small."""
        width = 8 if self.scale.dtype.name == "float64" else 4
        each = sum(tensor.nbytes + 2 * width * tensor.elements for tensor in self.inputs)
        return max(each, min(_TENSORS * each, _SMALL))

    def identity(self) -> bytes:
        """Its scales and offsets, and how they lie."""
        tensors = b"".join(tensor.identity() for tensor in self.inputs)
        return tensors + repr(("scaled", self.block, self.exponents)).encode()

    def prepare(self, stored: Stored, read: Read) -> Scales:
        """The scales in memory. Raises `FormatError` for ones that aren't finite, or make numbers
        that aren't."""
        from ckptforge.steps.scales import Scales  # which needs numpy

        return Scales(stored, self, read)
