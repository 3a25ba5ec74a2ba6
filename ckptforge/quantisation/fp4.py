"""Floats of four bits (E2M1), two in a byte, the first in the low bits.

Sources: transformers' integrations/mxfp4.py (gpt-oss: `_blocks` and `_scales`) and
integrations/finegrained_fp8.py (experts in FP4), compressed-tensors'
compressors nvfp4_pack_quantized and mxfp4_pack_quantized, and NVIDIA ModelOpt's `NVFP4QTensor`; the
OCP Microscaling Formats specification, version 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ckptforge.dtypes import FLOAT4
from ckptforge.quantisation.packed import (
    Packed,
    Tensors,
    beside,
    modules_with,
    refused_codes,
    swapped,
    value_of_codes,
    viewed,
)
from ckptforge.quantisation.parts import rows_of
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.values import Fragment, Stored, Term, Value, kind_of

MICROSCALED = 32  # elements that share an exponent, in every MX format
_EXPONENTS = ("uint8", "float8_e8m0")
_GLOBAL = ("weight_global_scale", "weight_scale_2")
_BYTES = ("uint8", "int8")


class StackedMxfp4(msgspec.Struct, frozen=True):
    """Stacked experts: `NAME_blocks` [experts, outputs, groups, 16] and `NAME_scales` [experts,
    outputs, groups] make NAME [experts, inputs, outputs]."""

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for name, codes in modules_with(tensors, "_blocks"):
            yield self._weight(tensors, name, codes)

    def _weight(self, tensors: Tensors, name: str, codes: Stored) -> Packed:
        half = MICROSCALED // 2
        if codes.dtype.name != "uint8" or len(codes.shape) != 4 or codes.shape[3] != half:
            raise refused_codes(codes, f"uint8 of four axes, the last of {half} bytes")
        experts, outputs, groups, _ = codes.shape
        scales = beside(tensors, codes, f"{name}_scales", (experts, outputs, groups), *_EXPONENTS)
        inputs = groups * MICROSCALED
        shape = (experts, inputs, outputs)
        stored = viewed(codes, FLOAT4, (experts, outputs, inputs))
        fragments = []
        for expert in range(experts):  # so that the scales of one are held at a time
            part = rows_of(stored, expert, expert + 1)
            grid = Grid(stored=rows_of(scales, expert, expert + 1), exponents=True)
            step = Scaled(scale=grid, block=(1, 1, MICROSCALED))
            transfer = swapped(part.shape)
            transfer = msgspec.structs.replace(transfer, target=expert * inputs * outputs)
            fragments.append(Fragment(part, transfer.ordered(), (step,)))
        return Packed(
            name=name,
            value=Value(
                dtype=fragments[0].dtype if fragments else FLOAT4,
                shape=shape,
                terms=(Term(fragments=tuple(fragments)),),
                kind=kind_of(name),
            ),
            taken=(codes.name, scales.name),
            what=f"4-bit floats, with an exponent for {MICROSCALED} of a row",
        )


class Fp4(msgspec.Struct, frozen=True, kw_only=True):
    """Matrices [outputs, inputs / 2] of bytes, named `codes`, with a scale for each `group` of a
    row: under one of the names `scales`. With `outer` scales are of E4M3, and one number scales
    them all: `weight_global_scale` divides, `weight_scale_2` multiplies. Else they are exponents.
    """

    codes: str
    scales: tuple[str, ...]
    group: int
    outer: bool = False

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, self.codes):
            if codes.dtype.name not in _BYTES:
                continue
            ending = next((one for one in self.scales if module + one in tensors), None)
            if ending is not None or self.codes != "weight":
                yield self.weight(tensors, module, codes, ending or self.scales[0])

    def weight(self, tensors: Tensors, module: str, codes: Stored, ending: str) -> Packed:
        """The weight of one module, whose scales have this name. Raises `FormatError`."""
        if codes.dtype.name not in _BYTES:
            raise refused_codes(codes, f"{' or '.join(_BYTES)}, two numbers in each byte")
        if len(codes.shape) != 2 or codes.shape[1] * 2 % self.group:
            raise refused_codes(codes, f"two axes, the second of groups of {self.group // 2} bytes")
        outputs, inputs = codes.shape[0], codes.shape[1] * 2
        place, shape = f"{module}{ending}", (outputs, inputs // self.group)
        dtypes = ("float8_e4m3fn",) if self.outer else (*_EXPONENTS, "float32", "bfloat16")
        scales = beside(tensors, codes, place, shape, *dtypes)
        taken, outer, divides = [codes.name, scales.name], None, False
        if self.outer:
            known = next((one for one in _GLOBAL if module + one in tensors), _GLOBAL[0])
            outer, divides = (
                beside(tensors, codes, module + known, (1,), "float32"),
                known == _GLOBAL[0],
            )
            taken.append(outer.name)
        step = Scaled(
            scale=Grid(
                stored=scales,
                exponents=scales.dtype.name == "uint8",
                outer=outer,
                divides=divides,
            ),
            block=(1, self.group),
        )
        name, stored = f"{module}weight", viewed(codes, FLOAT4, (outputs, inputs))
        kind = "an exponent" if not self.outer else "a scale"
        more = ", and one of all" if self.outer else ""
        return Packed(
            name=name,
            value=value_of_codes(name, stored, stored.shape, None, step),
            taken=tuple(taken),
            what=f"4-bit floats, with {kind} for {self.group} of a row{more}",
        )
