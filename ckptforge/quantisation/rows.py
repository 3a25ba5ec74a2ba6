"""int8 weights with a scale for each row that no tensor holds as it is, or under another name, and
others of the programs that write these.

Sources: MindStudio ModelSlim 26.1 (modelslim_v1/save/ascendv1.py: `deq_scale` is the product of the
scales of activations and weights; as int64 it holds the bits of a float32), and bitsandbytes'
`int8_vectorwise_dequant` (`SCB` are the largest magnitudes of the rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from ckptforge.errors import shown
from ckptforge.quantisation.fp4 import MICROSCALED, Fp4
from ckptforge.quantisation.packed import (
    Packed,
    Tensors,
    beside,
    module_of,
    modules_with,
    refused_codes,
    value_of_codes,
    viewed,
)
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.steps.told import Told
from ckptforge.values import Step, Stored

_PER_STEP = 7.874015718698502e-3  # 1 / 127, as bitsandbytes writes it
_ROW_MAJOR = 0
STATIC, MIXED = "W8A8", "W8A8_MIX"
FOUR_BITS = ("W4A4_MXFP4", "W4A8_MXFP")
_FP4 = Fp4(codes="weight", scales=("weight_scale",), group=MICROSCALED)


class Bitsandbytes(msgspec.Struct, frozen=True):
    """`weight` int8 [outputs, inputs] and `SCB` float32 [outputs]: number · SCB ·
    7.874015718698502e-3, bitsandbytes' 1 / 127. Where `weight_format` is there, it must say that
    rows lie one after another."""

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for module, codes in modules_with(tensors, "weight"):
            if codes.dtype.name == "int8" and f"{module}SCB" in tensors:
                yield self._weight(tensors, module, codes)

    def _weight(self, tensors: Tensors, module: str, codes: Stored) -> Packed:
        if len(codes.shape) != 2:
            raise refused_codes(codes, "two axes")
        outputs, inputs = codes.shape
        scales = beside(tensors, codes, f"{module}SCB", (outputs,), "float32")
        taken, steps = [codes.name, scales.name], list[Step]()
        if (place := f"{module}weight_format") in tensors:
            form = beside(tensors, codes, place, (1,), "uint8", "int8", "int32", "int64")
            steps.append(Told(stored=form, numbers=(_ROW_MAJOR,)))
            taken.append(place)
        grid = Grid(stored=viewed(scales, scales.dtype, (outputs, 1)))
        steps.append(Scaled(scale=grid, block=(1, max(inputs, 1)), factor=_PER_STEP))
        return Packed(
            name=codes.name,
            value=value_of_codes(codes.name, codes, codes.shape, None, *steps),
            taken=tuple(taken),
            what="8 bits, with the largest magnitude of each row",
        )


class ModelSlim(msgspec.Struct, frozen=True):
    """ModelSlim's weights that aren't a number and a scale beside it, by their `types`: W8A8 has
    `deq_scale` [outputs], which divided by `input_scale` [1] is the weight's; W8A8_MIX has
    `weight_scale` beside these; floats of four bits lie two in a byte."""

    types: Mapping[str, str]

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights. Raises `FormatError`."""
        for name, kind in self.types.items():
            module = module_of(name, "weight")
            if module is None or name not in tensors:
                continue
            codes = tensors[name]
            if kind in FOUR_BITS:
                yield _FP4.weight(tensors, module, codes, "weight_scale")
            elif kind in (STATIC, MIXED):
                if codes.dtype.name != "int8" or len(codes.shape) != 2:
                    raise refused_codes(codes, f"int8 of two axes, as its type is {shown(kind)}")
                make = _static if kind == STATIC else _mixed
                yield make(tensors, module, codes)


def _static(tensors: Tensors, module: str, codes: Stored) -> Packed:
    outputs, inputs = codes.shape
    scales = beside(tensors, codes, f"{module}deq_scale", (outputs,), "float32", "int64")
    of_inputs = beside(
        tensors, codes, f"{module}input_scale", (1,), "float32", "float16", "bfloat16"
    )
    grid = Grid(
        stored=viewed(scales, scales.dtype, (outputs, 1)),
        outer=of_inputs,
        divides=True,
        low_halves=scales.dtype.name == "int64",
    )
    step = Scaled(scale=grid, block=(1, max(inputs, 1)))
    return Packed(
        name=codes.name,
        value=value_of_codes(codes.name, codes, codes.shape, None, step),
        taken=(codes.name, scales.name),
        beside=(of_inputs.name, *_there(tensors, module, "quant_bias", "input_offset")),
        what="8 bits, with a scale for each row that is given times that of its inputs",
    )


def _mixed(tensors: Tensors, module: str, codes: Stored) -> Packed:
    outputs, inputs = codes.shape
    scales, offsets = (
        beside(tensors, codes, f"{module}{one}", (outputs, 1), "float32")
        for one in ("weight_scale", "weight_offset")
    )
    step = Scaled(scale=Grid(stored=scales), offset=Grid(stored=offsets), block=(1, max(inputs, 1)))
    activations = ("deq_scale", "input_scale", "quant_bias", "input_offset")
    return Packed(
        name=codes.name,
        value=value_of_codes(codes.name, codes, codes.shape, None, step),
        taken=(codes.name, scales.name, offsets.name),
        beside=_there(tensors, module, *activations),
        what="8 bits, with a scale and an offset for each row",
    )


def _there(tensors: Tensors, module: str, *endings: str) -> tuple[str, ...]:
    return tuple(module + one for one in endings if module + one in tensors)
