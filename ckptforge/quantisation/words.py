"""Integers of four or eight bits, packed into words of 32: as GPTQ, AWQ and compressed-tensors do.

Sources: AutoGPTQ's and GPTQModel's quantised linear layers (`qweight`, `qzeros`, `scales`,
`g_idx`; the format gptq stores zero points less one, gptq_v2 as they are, and GPTQModel turns one
into the other by sums of whole words, `convert_gptq_v1_to_v2_format_module`), AutoAWQ's `pack_awq`
and `dequantize_gemm`, and compressed-tensors' `pack_to_int32`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ckptforge.boxes import row_major_strides
from ckptforge.dtypes import BY_NAME, UINT4, DType
from ckptforge.errors import shown
from ckptforge.quantisation.packed import (
    Packed,
    Tensors,
    beside,
    modules_with,
    refused_codes,
    strided,
    value_of_codes,
    viewed,
)
from ckptforge.steps.grid import Grid
from ckptforge.steps.grouped import Grouped
from ckptforge.steps.scaled import Scaled
from ckptforge.steps.told import Told
from ckptforge.values import Step, Stored

_SCALES = ("float16", "bfloat16", "float32")
_WORD = 32
BITS = (4, 8)


def code_dtype(bits: int) -> DType:
    """The dtype of unsigned codes of so many bits."""
    return UINT4 if bits == 4 else BY_NAME["uint8"]


class Gptq(msgspec.Struct, frozen=True, kw_only=True):
    """`qweight` [inputs / n, outputs]: a word holds n codes of one column, that follow each other
    along the inputs; `qzeros` [groups, outputs / n], along the outputs. `group` -1 is all inputs.
    `plus` is added to zero points. `shuffled`: only `g_idx` says which group an input is of."""

    bits: int
    group: int
    plus: int
    shuffled: bool = False

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "qweight"):
            yield self._weight(tensors, module, codes)

    def _weight(self, tensors: Tensors, module: str, codes: Stored) -> Packed:
        each, dtype = _WORD // self.bits, code_dtype(self.bits)
        if codes.dtype.name != "int32" or len(codes.shape) != 2 or codes.shape[1] % each:
            raise refused_codes(codes, f"int32 of two axes, the second a multiple of {each}")
        words, outputs = codes.shape
        inputs = words * each
        group = max(inputs, 1) if self.group == -1 else self.group
        groups = -(-inputs // group)
        scales = beside(tensors, codes, f"{module}scales", (groups, outputs), *_SCALES)
        zeros = beside(tensors, codes, f"{module}qzeros", (groups, outputs // each), "int32")
        scaled = Scaled(
            scale=Grid(stored=scales),
            offset=Grid(stored=viewed(zeros, dtype, (groups, outputs)), plus=self.plus),
            block=(max(group // each, 1), 1, each),
        )
        step: Step = scaled
        taken = [codes.name, scales.name, zeros.name]
        if self.shuffled or f"{module}g_idx" in tensors:
            index = beside(tensors, codes, f"{module}g_idx", (inputs,), "int32", "int64")
            step = Grouped(scaled=scaled, groups=index)
            taken.append(index.name)
        elif group % each:
            raise refused_codes(codes, f"groups of a multiple of {each}, as no g_idx is there")
        stored = viewed(codes, dtype, (words, outputs, each))
        to = strided(stored.shape, row_major_strides(stored.shape), (each, inputs, 1))
        return Packed(
            name=f"{module}weight",
            value=value_of_codes(f"{module}weight", stored, (outputs, inputs), to, step),
            taken=tuple(taken),
            what=f"{self.bits} bits, with a scale and a zero point for {group} of a row",
        )


class Awq(msgspec.Struct, frozen=True, kw_only=True):
    """`qweight` [inputs, outputs / 8] and `qzeros` [groups, outputs / 8] of four bits: a word holds
    eight of a row, in the order 0, 2, 4, 6, 1, 3, 5, 7. `group` -1 is all inputs."""

    group: int

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "qweight"):
            yield self._weight(tensors, module, codes)

    def _weight(self, tensors: Tensors, module: str, codes: Stored) -> Packed:
        if codes.dtype.name != "int32" or len(codes.shape) != 2:
            raise refused_codes(codes, "int32 of two axes")
        inputs, words = codes.shape
        outputs, group = 8 * words, max(inputs, 1) if self.group == -1 else self.group
        groups = -(-inputs // group)
        scales = beside(tensors, codes, f"{module}scales", (groups, outputs), *_SCALES)
        zeros = beside(tensors, codes, f"{module}qzeros", (groups, words), "int32")
        # in the order of the codes: the four even ones of a word, then the four odd ones
        pairs = viewed(scales, scales.dtype, (groups, words, 4, 2))
        step = Scaled(
            scale=Grid(stored=pairs, axes=(0, 1, 3, 2)),
            offset=Grid(stored=viewed(zeros, UINT4, (groups, outputs))),
            block=(group, 1),
        )
        stored = viewed(codes, UINT4, (inputs, outputs))
        shape, target = (inputs, words, 2, 4), (1, 8 * inputs, inputs, 2 * inputs)
        to = strided(shape, row_major_strides(shape), target)
        return Packed(
            name=f"{module}weight",
            value=value_of_codes(f"{module}weight", stored, (outputs, inputs), to, step),
            taken=(codes.name, scales.name, zeros.name),
            what=f"4 bits, with a scale and a zero point for {group} of a row",
        )


class PackQuantized(msgspec.Struct, frozen=True, kw_only=True):
    """compressed-tensors' `weight_packed` [outputs, words]: codes of a row that follow each other,
    raised to be unsigned; `weight_scale` for each group of a row, or each row; `weight_zero_point`
    packed along the outputs. `group` None is a whole row; `shifted`: all have zero points."""

    bits: int
    group: int | None
    shifted: bool = False

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "weight_packed"):
            if codes.dtype.name == "int32":
                yield self._weight(tensors, module, codes)

    def _weight(self, tensors: Tensors, module: str, codes: Stored) -> Packed:
        each, dtype = _WORD // self.bits, code_dtype(self.bits)
        if len(codes.shape) != 2:
            raise refused_codes(codes, "two axes")
        outputs, words = codes.shape
        name, inputs = f"{module}weight", words * each
        group = max(inputs, 1) if self.group is None else self.group
        if inputs % group:
            raise refused_codes(codes, f"rows of groups of {group}")
        groups = inputs // group
        scales = beside(tensors, codes, f"{name}_scale", (outputs, groups), *_SCALES)
        shape = beside(tensors, codes, f"{name}_shape", (2,), "int32", "int64")
        taken, offset = [codes.name, scales.name, shape.name], None
        if self.shifted or f"{name}_zero_point" in tensors:
            rows, place = -(-outputs // each), f"{name}_zero_point"
            zeros = beside(tensors, codes, place, (rows, groups), "int32")
            stored = viewed(zeros, dtype, (rows, groups, each))
            offset = Grid(stored=stored, axes=(0, 2, 1))
            taken.append(zeros.name)
        step = Scaled(
            scale=Grid(stored=scales),
            offset=offset,
            block=(1, group),
            shift=0.0 if offset is not None else float(1 << self.bits - 1),
        )
        if (other := f"{name}_g_idx") in tensors:
            raise refused_codes(codes, f"no {shown(other)} beside it")
        stored = viewed(codes, dtype, (outputs, inputs))
        told = Told(stored=shape, numbers=(outputs, inputs))
        value = value_of_codes(name, stored, stored.shape, None, told, step)
        shifted = " and a zero point" if offset is not None else ""
        return Packed(
            name=name,
            value=value,
            taken=tuple(taken),
            what=f"{self.bits} bits, with a scale{shifted} for {group} of a row",
        )
