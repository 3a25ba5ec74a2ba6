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
from ckptforge.steps.grid import Grid
from ckptforge.values import Read, Stored, computing_dtype

if TYPE_CHECKING:
    from ckptforge.steps.scales import Scales

_TENSORS, _SMALL = 16, 256 * 1024  # that are kept at a time, if they take no more bytes


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers of a quantised tensor stand for: (number - offset - shift) · scale · factor,
    in this order, with one scale, and one offset, for each block of `block` elements by axis;
    blocks at the edges may be smaller."""

    scale: Grid
    block: tuple[int, ...]
    offset: Grid | None = None
    shift: float = 0.0
    factor: float = 1.0

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """The scales, and the offsets."""
        own = self.scale.inputs
        return own if self.offset is None else own + self.offset.inputs

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Those of the scales, and of the offsets."""
        return (self.scale,) if self.offset is None else (self.scale, self.offset)

    def gives(self, dtype: DType) -> DType:
        """float32, or float64 where the tensor or its scales are of that."""
        return computing_dtype((dtype, self.scale.stored.dtype))

    def memory(self, stored: Stored) -> int:
        """Scales and offsets as numbers and while they are read, of more tensors than one where
        they are small."""
        width = 8 if self.scale.wide else 4
        each = self.scale.memory(width)
        if self.offset is not None:
            each += self.offset.memory(width)
        return max(each, min(_TENSORS * each, _SMALL))

    def identity(self) -> bytes:
        """Its scales and offsets, and how they lie."""
        grids = b"".join(grid.identity() for grid in self.grids)
        return grids + repr(("scaled", self.block, self.shift, self.factor)).encode()

    def prepare(self, stored: Stored, read: Read) -> Scales:
        """The scales in memory. Raises `FormatError` for ones that aren't finite, or make numbers
        that aren't."""
        from ckptforge.steps.scales import Scales  # which needs numpy

        return Scales(stored, self, read)
