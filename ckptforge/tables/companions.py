"""The tensors that stand beside a quantised weight, recognised by their names.

Sources: transformers' quantizers and integrations, compressed-tensors' `compressors`, NVIDIA
ModelOpt's and MindStudio ModelSlim's exported files, AutoGPTQ, AutoAWQ and bitsandbytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

SCALES = ("_scale_inv", "_scale")  # after a weight's name
OFFSETS = ("_zero_point", "_offset")

# The last part of a name → what it is. The first that fits is taken.
_KINDS = (
    (
        "a scale of activations",
        r"(?:.*_)?(?:input|output|activation|act|[qkv]|kv|[kv]_cache|kv_cache|attn|prob)_"
        r"(?:global_)?(?:scale|scale_ub|zero_point|offset)",
    ),
    ("a zero point", r"(?:.*_)?(?:zero_points?|qzeros|zeros)|weight_offset"),
    (
        "a scale",
        r"(?:.*_)?(?:scale_inv|scales?|scale_2|global_scale|pre_quant_scale|deq_scale|absmax|SCB|quant_bias)",
    ),
    (
        "packed codes or a part of them",
        r"qweight|(?:weight_)?g_idx|weight_packed|weight_shape|(?:nested_)?quant_map|weight_format|codes|codebooks|"
        r"bitmask|.*_blocks|W_q|_data|_?weight:?_qdata",
    ),
)
_QUANT_STATE = ".quant_state."
_OF_ATTENTION = ("fa_q", "fa_k", "fa_v")  # modules of ModelSlim's, which have scales and offsets
_COMPILED = tuple((kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _KINDS)
# Last parts of names that only one kind of program writes.
_WRITERS = (
    ("GPTQ or AWQ", ("qweight", "qzeros")),
    ("bitsandbytes", ("absmax", "quant_map", "nested_absmax", "SCB")),
    ("compressed-tensors", ("weight_packed",)),
    ("AQLM", ("codebooks",)),
    ("HQQ", ("W_q",)),
    ("torchao", ("weight_qdata", "_weight_qdata", "weight:_qdata")),
    ("ModelOpt in NVFP4", ("weight_scale_2",)),
)
_WRITER_OF = {ending: writer for writer, endings in _WRITERS for ending in endings}


def kind_of(name: str) -> str | None:
    """What a tensor is that belongs to a quantised weight, by its name; else None."""
    if _QUANT_STATE in name:
        return "packed codes or a part of them"
    module, _, last = name.rpartition(".")
    if last in ("scale", "offset") and module.rpartition(".")[2] in _OF_ATTENTION:
        return "a scale of activations"
    return _kind_of_last(last)


@lru_cache(maxsize=1 << 10)
def _kind_of_last(last: str) -> str | None:
    return next((kind for kind, pattern in _COMPILED if pattern.fullmatch(last)), None)


def is_of_activations(name: str) -> bool:
    """Whether only the quantised model's activations need a tensor."""
    return kind_of(name) == "a scale of activations"


def scale_of(weight: str, names: Collection[str]) -> str | None:
    """The name of a weight's scales among `names`: behind its own, or in place of `weight`."""
    found = _followed(weight, SCALES, names)
    if found is None and weight.endswith(".weight"):
        beside = weight.removesuffix("weight") + "scale"
        return beside if beside in names else None
    return found


def offset_of(weight: str, names: Collection[str]) -> str | None:
    """The name of a weight's offsets, or zero points, among `names`."""
    return _followed(weight, OFFSETS, names)


def _followed(weight: str, endings: tuple[str, ...], names: Collection[str]) -> str | None:
    for ending in endings:
        if (found := weight + ending) in names:
            return found
    return None


def writer_of(names: Iterable[str]) -> tuple[str, str] | None:
    """(which program quantises so, the name that shows it), where names show it."""
    for name in names:
        if (writer := _WRITER_OF.get(name.rpartition(".")[2])) is not None:
            return writer, name
        if _QUANT_STATE in name:
            return "bitsandbytes", name
    return None
