"""How a model's weights are quantised, as the files beside them say it.

Sources: `quantization_config` of config.json as transformers 5.24 reads it
(utils/quantization_config.py), the configuration of compressed-tensors 0.15 (`QuantizationConfig`),
NVIDIA ModelOpt's hf_quant_config.json, and MindStudio ModelSlim's quant_model_description.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.errors import shown
from ckptforge.foreign.files import entries_of, is_there
from ckptforge.foreign.json import read_object
from ckptforge.quantisation import packings
from ckptforge.quantisation.packed import Packing
from ckptforge.quantisation.rows import FOUR_BITS, MIXED, STATIC, ModelSlim

DESCRIPTION = "quant_model_description.json"
DESCRIBED = "quant_model_weight"  # begins the names of files that it is for
DESCRIPTIONS = ("quant_model_description*.json", "quantization_description.json")
MODEL_OPT = "hf_quant_config.json"
EARLIER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which AutoGPTQ and AutoAWQ said it before config.json did, and the methods."""
KEYS = ("quantization_config", "compression_config")
OF_EXPERTS = "expert_dtype"
"""In them, or beside them, as some models are published."""
_FLOATS = frozenset({"float8_e4m3fn", "float8_e5m2"})
_INTEGERS = frozenset({"int8"})
_FP8_BLOCK = [128, 128]  # transformers' FineGrainedFP8Config
_MICROSCALED = 32  # elements that share an exponent, in every MX format
# MindStudio's types of weights that (number - offset) · scale undoes; the others need more than the
# weight, or are packed.
_ASCEND = {
    "W8A8_DYNAMIC": _INTEGERS,
    "W8A16": _INTEGERS,
    "W4A4_DYNAMIC": _INTEGERS,
    "WFP8AFP8_DYNAMIC": _FLOATS,
    "W8A8_MXFP8": _FLOATS,
    STATIC: _INTEGERS,
    MIXED: _INTEGERS,
    **dict.fromkeys(FOUR_BITS, frozenset[str]()),
}
_PLAIN = "FLOAT"


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A way in which weights are quantised. `where` names the file that says it; `codes` the dtypes
    that their numbers may have; `blocks` the [rows, columns] that may share a scale, `groups` the
    elements of a row that may; `assumed`: nobody says so of all weights. `unread` says why it can't
    be undone; `packing` finds weights that are packed; `shifted`: all integers have zero points;
    `types` is MindStudio's type of each weight."""

    name: str
    where: str
    codes: frozenset[str] = _FLOATS
    blocks: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    assumed: bool = False
    exponents: bool = False
    unread: str | None = None
    packing: Packing | None = None
    shifted: bool = False
    types: Mapping[str, str] = msgspec.field(default_factory=dict)

    def refusal(self, weight: str) -> str | None:
        """Why one weight can't be undone, where others can."""
        kind = self.types.get(weight)
        if kind is None or kind in _ASCEND:
            return None
        if kind == _PLAIN:
            return f"its type is {shown(kind)}, which has neither codes nor scales"
        return f"its type is {shown(kind)}; {', '.join(_ASCEND)} are read"

    def codes_of(self, weight: str) -> frozenset[str]:
        """The dtypes that a weight's numbers may have."""
        return _ASCEND.get(self.types.get(weight, ""), self.codes)

    def are_exponents(self, weight: str) -> bool:
        """Whether scales in bytes are those of powers of two."""
        return self.exponents or "MX" in self.types.get(weight, "")


def is_description(name: str) -> bool:
    """Whether a file of that name describes weights that ModelSlim quantised."""
    return any(fnmatchcase(name, glob) for glob in DESCRIPTIONS)


def find_method(config: Mapping[str, Any], where: str, directory: Path) -> Method | None:
    """The method that config.json (`config`, from `where`), or a file in the model's directory,
    names; None where none does.

    Raises `FormatError` for a file that isn't what it should be.
    """
    for path in entries_of(directory):
        if is_description(path.name) and is_there(path):
            return _ascend(read_object(path), str(path))
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        for key in KEYS:
            if isinstance(found := holder.get(key), Mapping) and found:
                told = {OF_EXPERTS: holder[OF_EXPERTS]} if OF_EXPERTS in holder else {}
                return _of_config({**told, **found}, f"{key} in {where}")
    for name, method in EARLIER.items():
        if is_there(directory / name):
            found = {"quant_method": method, **read_object(directory / name)}
            return _of_config(found, str(directory / name))
    if is_there(directory / MODEL_OPT):
        found = read_object(directory / MODEL_OPT).get("quantization")
        if isinstance(found, Mapping):
            return _model_opt(found, str(directory / MODEL_OPT))
    return None


def _of_config(found: Mapping[str, Any], where: str) -> Method:
    method = found.get("quant_method")
    if method is None and ("config_groups" in found or "format" in found):
        method = "compressed-tensors"
    if method is None and found.get("load_in_8bit") is True:
        method = "bitsandbytes"  # as transformers takes it, too
    readers = {
        "fp8": _fp8,
        "mxfp8": _fp8,
        "fbgemm_fp8": lambda _, where: Method(name="fbgemm_fp8", where=where),
        "compressed-tensors": _compressed,
        "modelopt": _model_opt,
    }
    if isinstance(method, str) and method in readers:
        return readers[method](found, where)
    if method is None:
        return Method(
            name="a method without a name",
            where=where,
            blocks=tuple(_blocks(found.get("weight_block_size"))),
        )
    known = packings.packing_of(method, found) if isinstance(method, str) else None
    packing, unread = (None, "that method isn't read") if known is None else known
    return Method(
        name=_word(method), where=where, codes=frozenset(), packing=packing, unread=unread
    )


def _fp8(found: Mapping[str, Any], where: str) -> Method:
    name = str(found["quant_method"])
    microscaled, experts = name == "mxfp8", found.get(OF_EXPERTS, "fp8")
    return Method(
        name=name,
        where=where,
        blocks=((1, _MICROSCALED),)
        if microscaled
        else tuple(_blocks(found.get("weight_block_size", _FP8_BLOCK))),
        assumed="weight_block_size" not in found,
        exponents=True,  # bytes can be nothing else, and transformers asks no more
        packing=packings.experts_in_fp4() if experts == "fp4" else None,
        unread=None if experts in ("fp8", "fp4") else f"experts in {shown(experts)} aren't read",
    )


_COMPRESSED = {
    "float-quantized": _FLOATS,
    "int-quantized": _INTEGERS,
    "naive-quantized": _FLOATS | _INTEGERS,
    "mxfp8-quantized": _FLOATS,
    "dense": frozenset(),
    **dict.fromkeys(packings.PACKED, frozenset[str]()),
}


def _compressed(found: Mapping[str, Any], where: str) -> Method:
    if isinstance(inner := found.get("quantization_config"), Mapping):
        found = {**found, **inner}  # as transformers wrote it for a while
    groups = found.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    schemes = [group for group in groups if isinstance(group, Mapping)]
    kinds = [found.get("format")] if found.get("format") not in (None, "mixed-precision") else []
    kinds += [scheme["format"] for scheme in schemes if scheme.get("format") is not None]
    kinds = kinds or ["naive-quantized"]
    weights = (scheme.get("weights") for scheme in schemes)
    arguments = [one for one in weights if isinstance(one, Mapping)]
    packing, unread = packings.compressed(kinds, schemes)
    return Method(
        name=f"compressed-tensors, {', '.join(dict.fromkeys(map(_word, kinds[:4])))}",
        where=where,
        codes=frozenset().union(*(_COMPRESSED.get(str(kind), frozenset()) for kind in kinds)),
        blocks=tuple(
            dict.fromkeys(
                block for one in arguments for block in _blocks(one.get("block_structure"))
            )
        ),
        groups=tuple({one["group_size"] for one in arguments if _is_count(one.get("group_size"))}),
        assumed=any(one.get("strategy") in ("tensor", "channel") for one in arguments),
        exponents="mxfp8-quantized" in kinds,
        unread=_compressed_refusal(found, kinds, arguments) or unread,
        packing=packing,
        shifted=packings.shifted(arguments),
    )


def _compressed_refusal(
    found: Mapping[str, Any], kinds: list[Any], arguments: list[Mapping[str, Any]]
) -> str | None:
    if other := [kind for kind in kinds if not isinstance(kind, str) or kind not in _COMPRESSED]:
        return f"the format {shown(other[0])} isn't read, only {', '.join(_COMPRESSED)} are"
    transforms = found.get("transform_config")
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        return "its weights are rotated by transforms (transform_config)"
    sparsity = found.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        return f"its weights are stored sparse ({shown(sparsity['format'])})"
    ordered = any(one.get("actorder") in packings.ORDERED for one in arguments)
    if ordered and {*kinds} != {packings.WORDS}:
        return "its columns are grouped in another order (actorder)"
    packs = any(kind in packings.PACKED for kind in kinds)
    if not packs and not all(map(_fills_a_byte, arguments)):
        return "its weights have other than 8 bits"
    return None


def _fills_a_byte(one: Mapping[str, Any]) -> bool:
    """Whether each number has a byte of its own where nothing is packed: integers of fewer bits
    have one, too."""
    bits = one.get("num_bits")
    fewer = one.get("type", "int") == "int" and type(bits) is int and 0 < bits < 8
    return bits is None or bits == 8 or fewer


def _model_opt(found: Mapping[str, Any], where: str) -> Method:
    algorithm = found.get("quant_algo")
    read = algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4")
    return Method(
        name=f"modelopt, {shown(algorithm)}",
        where=where,
        unread=None if read else f"quant_algo {shown(algorithm)} isn't read, FP8 and NVFP4 are",
        packing=packings.nvfp4() if algorithm == "NVFP4" else None,
    )


def _ascend(found: Mapping[str, Any], where: str) -> Method:
    texts = {name: kind for name, kind in found.items() if isinstance(kind, str)}
    types = {n: kind for n, kind in texts.items() if "." in n or n.endswith("weight")}
    metadata, optional, group = (found.get(k) for k in ("metadata", "optional", "group_size"))
    more = [*metadata] if isinstance(metadata, Mapping) else []
    more += [*optional] if isinstance(optional, Mapping) else []
    return Method(
        name=f"MindStudio ModelSlim, {shown(found.get('model_quant_type'))}",
        where=where,
        codes=_INTEGERS | _FLOATS,
        groups=(*((group,) if _is_count(group) else ()), _MICROSCALED),
        unread=f"it needs more than the weights ({', '.join(map(shown, more))})" if more else None,
        packing=ModelSlim(types),
        types=types,
    )


def _word(value: object) -> str:
    """A name that stood in a file, as it is, unless it is no name."""
    return value if isinstance(value, str) and len(value) < 40 else shown(value)


def _blocks(value: object) -> Iterator[tuple[int, int]]:
    """[rows, columns], also as compressed-tensors' "128x128"; else nothing."""
    numbers = value
    if isinstance(value, str) and len(value) < 30:
        numbers = [int(word) for word in value.split("x") if word.isdecimal()]
    if isinstance(numbers, list) and len(numbers) == 2 and all(map(_is_count, numbers)):
        yield numbers[0], numbers[1]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31
