"""Integers of four or eight bits, packed into words of 32: as GPTQ, AWQ and compressed-tensors do.

Sources: AutoGPTQ's and GPTQModel's quantised linear layers (`qweight`, `qzeros`, `scales`,
`g_idx`; the format gptq stores zero points less one, gptq_v2 as they are, and GPTQModel turns one
into the other by sums of whole words, `convert_gptq_v1_to_v2_format_module`), AutoAWQ's `pack_awq`
and `dequantize_gemm`, and compressed-tensors' `pack_to_int32` and `dequantize` (until 2026 with
`weight_g_idx`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from ckptforge.boxes import row_major_strides
from ckptforge.dtypes import BY_NAME, UINT4, DType
from ckptforge.errors import QuantisedError, shown
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
TENSOR = 0
"""In place of a group's size: all of a tensor has one scale."""


def code_dtype(bits: int) -> DType:
    """The dtype of unsigned codes of so many bits."""
    return UINT4 if bits == 4 else BY_NAME["uint8"]


Group = TypeVar("Group", int, int | None)


def kind_of_codes(
    codes: Stored, kinds: Sequence[tuple[int, Group]], fits: Callable[[int, Group], bool]
) -> tuple[int, Group]:
    """Which of the (bits, group) that a model has some codes are of, by the shapes of what lies
    beside them; the first where none fits. Raises `QuantisedError` where several do."""
    fitting = [kind for kind in kinds if fits(*kind)] if len(kinds) > 1 else []
    if len(fitting) > 1:
        named = {None: "rows", -1: "rows", TENSOR: "tensors"}
        either = " or ".join(
            f"{bits} bits in {named.get(group, f'groups of {group}')}" for bits, group in fitting
        )
        raise QuantisedError(
            f"{codes.path}: {shown(codes.name)} is {codes.dtype} {list(codes.shape)}, which may be "
            f"{either}: its scales don't tell. Take the model before it was quantised, or "
            "dequantise it with the program that did it."
        )
    return fitting[0] if fitting else kinds[0]


def _of_row(group: int | None, inputs: int) -> int:
    """The numbers of a group, of which a row is one where there is none."""
    return max(inputs, 1) if group in (None, -1) else group


class Gptq(msgspec.Struct, frozen=True, kw_only=True):
    """`qweight` [inputs / n, outputs]: a word holds n codes of one column, that follow each other
    along the inputs; `qzeros` [groups, outputs / n], along the outputs. `kinds` are the (bits,
    group) that weights may have, which shapes tell apart; group -1 is all inputs.
    `plus` is added to zero points. `shuffled`: only `g_idx` says which group an input is of."""

    kinds: tuple[tuple[int, int], ...]
    plus: int
    shuffled: bool = False

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "qweight"):
            yield self._weight(tensors, module, codes)

    def _weight(self, tensors: Tensors, module: str, codes: Stored) -> Packed:
        if codes.dtype.name != "int32" or len(codes.shape) != 2:
            raise refused_codes(codes, "int32 of two axes")
        words, outputs = codes.shape
        beside_it = tensors.get(f"{module}scales"), tensors.get(f"{module}qzeros")
        shapes = tuple(None if one is None else one.shape for one in beside_it)

        def shapes_of(bits: int, group: int) -> tuple[tuple[int, int], tuple[int, int]]:
            groups = -(-words * (_WORD // bits) // _of_row(group, words * (_WORD // bits)))
            return (groups, outputs), (groups, outputs // (_WORD // bits))

        bits, group = kind_of_codes(codes, self.kinds, lambda *kind: shapes_of(*kind) == shapes)
        each, dtype = _WORD // bits, code_dtype(bits)
        if outputs % each:
            raise refused_codes(codes, f"a second axis that is a multiple of {each}")
        inputs = words * each
        group = _of_row(group, inputs)
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
            what=f"{bits} bits, with a scale and a zero point for {group} of a row",
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
    raised to be unsigned; `weight_scale` for each group of a row, each row, or the tensor;
    `weight_zero_point` packed along the outputs, that of a tensor by itself. `kinds` are the (bits,
    group) that weights may have, which shapes tell apart; group None is a whole row, `TENSOR` all
    rows. `shifted`: all have zero points. `shuffled`: only `weight_g_idx` says which group of its
    row an input is of."""

    kinds: tuple[tuple[int, int | None], ...]
    shifted: bool = False
    shuffled: bool = False

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "weight_packed"):
            if codes.dtype.name == "int32":
                yield self._weight(tensors, f"{module}weight", codes)

    def _weight(self, tensors: Tensors, name: str, codes: Stored) -> Packed:
        if len(codes.shape) != 2:
            raise refused_codes(codes, "two axes")
        outputs, words = codes.shape
        scale = tensors.get(f"{name}_scale")

        def fits(bits: int, group: int | None) -> bool:
            inputs = words * (_WORD // bits)
            if scale is None or group == TENSOR:
                return scale is not None and scale.shape in ((), (1,))
            groups, rest = divmod(inputs, _of_row(group, inputs))
            return not rest and scale.shape == (outputs, groups)

        bits, group = kind_of_codes(codes, self.kinds, fits)
        inputs = words * (_WORD // bits)
        shape = beside(tensors, codes, f"{name}_shape", (2,), "int32", "int64")
        step = self._step(tensors, name, codes, bits, group)
        stored = viewed(codes, code_dtype(bits), (outputs, inputs))
        told = Told(stored=shape, numbers=(outputs, inputs))
        scaled = step.scaled if isinstance(step, Grouped) else step
        shifted = " and a zero point" if scaled.offset is not None else ""
        return Packed(
            name=name,
            value=value_of_codes(name, stored, stored.shape, None, told, step),
            taken=(codes.name, shape.name, *(one.name for one in step.inputs)),
            what=f"{bits} bits, with a scale{shifted} for "
            + ("all of it" if group == TENSOR else f"{scaled.block[-1]} of a row"),
        )

    def _step(
        self, tensors: Tensors, name: str, codes: Stored, bits: int, of_group: int | None
    ) -> Scaled | Grouped:
        each, outputs = _WORD // bits, codes.shape[0]
        inputs, index = codes.shape[1] * each, f"{name}_g_idx"
        whole = of_group == TENSOR
        group = inputs if whole else _of_row(of_group, inputs)
        if group and inputs % group:
            raise refused_codes(codes, f"rows of groups of {group}")
        groups = inputs // max(group, 1)
        expected = (1,) if whole else (outputs, groups)
        scales = beside(tensors, codes, f"{name}_scale", expected, *_SCALES)
        raised, offset = float(1 << bits - 1), None
        if self.shifted or f"{name}_zero_point" in tensors:
            rows, place = -(-outputs // each), f"{name}_zero_point"
            if whole:
                offset = Grid(stored=beside(tensors, codes, place, (1,), "int8"))
            else:
                zeros = beside(tensors, codes, place, (rows, groups), "int32")
                stored = viewed(zeros, code_dtype(bits), (rows, groups, each))
                offset, raised = Grid(stored=stored, axes=(0, 2, 1)), 0.0  # as the codes are
        scaled = Scaled(
            scale=Grid(stored=scales),
            offset=offset,
            block=(outputs if whole else 1, group),
            shift=raised,
        )
        if index not in tensors and not (self.shuffled and groups > 1):
            return scaled
        if whole:
            raise refused_codes(codes, f"no {shown(index)} beside it")
        members = beside(tensors, codes, index, (inputs,), "int32", "int64")
        return Grouped(scaled=scaled, groups=members)
