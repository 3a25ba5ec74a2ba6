"""Which packing the settings of a method name, or why it can't be undone.

Sources: transformers 5's `GPTQConfig`, `AwqConfig`, `BitsAndBytesConfig` and `Mxfp4Config`
(utils/quantization_config.py), GPTQModel's `QuantizeConfig`, compressed-tensors'
`QuantizationConfig`, NVIDIA ModelOpt's hf_quant_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.errors import shown
from ckptforge.quantisation.fp4 import MICROSCALED, Fp4, StackedMxfp4
from ckptforge.quantisation.packed import Packing
from ckptforge.quantisation.rows import Bitsandbytes
from ckptforge.quantisation.words import BITS, TENSOR, Awq, Gptq, PackQuantized

Settings = Mapping[str, Any]
Found = tuple[Packing | None, str | None]  # a packing, or why there is none

WORDS = "pack-quantized"
PACKED = (WORDS, "nvfp4-pack-quantized", "mxfp4-pack-quantized")
ORDERED = ("group", "Group", True)
"""`actorder` of compressed-tensors, where `weight_g_idx` says which group an input is of."""
_NVFP4_GROUP = 16
_PLUS = {"gptq": 1, "gptq_v2": 0}  # what is added to GPTQ's zero points, by format
_NOT_GPTQ = ("is_marlin_format", "rotation")  # keys by which codes mean something else
_LLM_AWQ = "llm-awq"
_SCALES = ("weight_scale_inv", "weight_scale", "scale")


def packing_of(method: str, found: Settings) -> Found | None:
    """The packing of a `quant_method`; None for one that has none."""
    makers = {
        "gptq": _gptq,
        "awq": _awq,
        "mxfp4": lambda _: (StackedMxfp4(), None),
        "bitsandbytes": _bitsandbytes,
    }
    return makers[method](found) if method in makers else None


def _gptq(found: Settings) -> Found:
    form = _form(found, ("checkpoint_format", "format"), "gptq")
    bits, group = found.get("bits"), _group(found)
    if form not in _PLUS:
        return None, f"checkpoint_format {shown(form)} isn't read, only gptq and gptq_v2 are"
    if type(bits) is not int or bits not in BITS:
        return None, f"bits {shown(bits)} aren't read, only 4 and 8 are"
    if group is None:
        return None, f"group_size {shown(found.get('group_size'))} isn't a number of elements"
    kinds, other = _dynamic(found.get("dynamic"), (bits, group))
    if other is not None:
        return None, f"some of its layers are quantised in other ways (dynamic: {other})"
    if other := next((key for key in _NOT_GPTQ if found.get(key)), None):
        return None, f"{other} {shown(found[other])} isn't read"
    if found.get("pack_dtype") not in (None, "int32"):
        return None, f"pack_dtype {shown(found['pack_dtype'])} isn't read, only int32 is"
    rules = found.get("dynamic")
    said = [found, *(rules.values() if isinstance(rules, Mapping) else ())]
    shuffled = any(isinstance(one, Mapping) and one.get("desc_act") is True for one in said)
    return Gptq(kinds=kinds, plus=_PLUS[form], shuffled=shuffled), None


_OF_SHAPES = ("bits", "group_size")
_NOT_OF_CODES = ("sym", "desc_act", "mse", "damp_percent", "static_groups", "lm_head", "adapter")


def _dynamic(
    rules: object, default: tuple[int, int]
) -> tuple[tuple[tuple[int, int], ...], str | None]:
    """The (bits, group) that weights may have where rules are for some modules, which shapes tell
    apart, or a rule that isn't read. Rules that begin with "-:" leave modules as they are."""
    if not rules:
        return (default,), None
    if not isinstance(rules, Mapping):
        return (default,), shown(rules)
    found = dict.fromkeys([default])
    for name, rule in rules.items():
        if str(name).startswith("-:") or not rule:
            continue
        known = isinstance(rule, Mapping) and set(rule) <= {*_OF_SHAPES, *_NOT_OF_CODES}
        bits = rule.get("bits", default[0]) if isinstance(rule, Mapping) else None
        group = _group({"group_size": default[1], **rule}) if isinstance(rule, Mapping) else None
        if not known or type(bits) is not int or bits not in BITS or group is None:
            return (default,), f"{shown(name)} has {shown(rule)}"
        found[bits, group] = None
    return tuple(found), None


def _awq(found: Settings) -> Found:
    form = _form(found, ("version", "format", "checkpoint_format"), "gemm")
    bits, group = found.get("bits", found.get("w_bit", 4)), _group(found)
    if form != "gemm":
        return None, f"version {shown(form)} isn't read, only gemm is"
    if found.get("backend") == _LLM_AWQ:
        return None, f"backend {shown(_LLM_AWQ)} isn't read"
    if bits != 4:
        return None, f"bits {shown(bits)} aren't read, only 4 are"
    if group is None:
        return None, f"group_size {shown(found.get('group_size'))} isn't a number of elements"
    return Awq(group=group), None


def _form(found: Settings, keys: Sequence[str], default: str) -> str:
    """What the first of some keys says that says anything; names of formats in lower case."""
    form = next((found[key] for key in keys if found.get(key) is not None), default)
    return form.lower() if isinstance(form, str) else str(form)


def _group(found: Settings) -> int | None:
    group = found.get("group_size", found.get("q_group_size", 128))
    return group if type(group) is int and (group == -1 or 0 < group < 1 << 31) else None


def _bitsandbytes(found: Settings) -> Found:
    if found.get("load_in_8bit") is True and not found.get("load_in_4bit"):
        return Bitsandbytes(), None
    return None, "that method is read in 8 bits only"


def nvfp4() -> Packing:
    """ModelOpt's, in which `weight` are the codes."""
    return Fp4(codes="weight", scales=("weight_scale",), group=_NVFP4_GROUP, outer=True)


def experts_in_fp4() -> Packing:
    """Experts in FP4 beside weights in FP8."""
    return Fp4(codes="weight", scales=_SCALES, group=MICROSCALED)


def compressed(kinds: Sequence[Any], schemes: Sequence[Settings]) -> Found:
    """That of the formats of compressed-tensors which pack, by the settings of each group of
    modules; where there is none, both are None."""
    packed = [kind for kind in dict.fromkeys(map(str, kinds)) if kind in PACKED]
    if not packed:
        return None, None
    if len(packed) > 1:
        return None, f"it packs in several formats ({', '.join(packed)})"
    own = [
        one
        for scheme in schemes
        if scheme.get("format", packed[0]) == packed[0]
        and isinstance(one := scheme.get("weights"), Mapping)
    ]
    if not own or not all(map(_plain, own)):
        return None, "the sizes of its groups aren't said"
    sizes = {(one["num_bits"], _group_of(one)) for one in own}
    if packed[0] != WORDS:
        if len(sizes) != 1:
            return None, "its weights have groups of several sizes"
        ((bits, group),) = sizes
        expected = _NVFP4_GROUP if packed[0].startswith("nvfp4") else MICROSCALED
        if bits != 4 or group != expected:
            return None, f"it has {shown(bits)} bits in groups of {shown(group)}"
        outer = expected == _NVFP4_GROUP
        scales = ("weight_scale",)
        return Fp4(codes="weight_packed", scales=scales, group=group, outer=outer), None
    if other := [bits for bits, _ in sizes if bits not in BITS]:
        return None, f"its weights have {shown(other[0])} bits, and only 4 and 8 are read"
    shuffled = any(one.get("actorder") in ORDERED for one in own)
    kinds_of_codes = tuple(sorted(sizes, key=str))
    return PackQuantized(kinds=kinds_of_codes, shifted=shifted(own), shuffled=shuffled), None


def _group_of(one: Settings) -> int | None:
    """The numbers of a row that share a scale; None where all do, `TENSOR` where all rows do."""
    group = one.get("group_size")
    if one.get("strategy") == "tensor":
        return TENSOR
    return None if one.get("strategy") == "channel" or group in (None, -1) else group


def shifted(arguments: Sequence[Settings]) -> bool:
    """Whether all weights of integers have zero points, as compressed-tensors says it."""
    integers = [one for one in arguments if one.get("type") != "float"]
    return bool(integers) and all(one.get("symmetric") is False for one in integers)


def _plain(one: Settings) -> bool:
    group = one.get("group_size")
    known = group is None or (type(group) is int and (group == -1 or 0 < group < 1 << 31))
    return known and type(one.get("num_bits")) is int
