"""A model whose weights are written as codes with scales, as programs that run such models load it.

Sources: published FP8 releases with `quant_method` fp8 (config.json, and `weight_scale_inv` beside
each weight); compressed-tensors' formats mxfp4-pack-quantized and mxfp8-quantized; MindStudio
ModelSlim's AscendV1 (quant_model_description.json names each tensor's type).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.composing import Composer
from ckptforge.errors import ConfigError, QuantisedError, printable, shown
from ckptforge.foreign.json import file_of
from ckptforge.formats.layout import TensorSpec, specs_of
from ckptforge.model import Model
from ckptforge.quantisation.method import DESCRIPTION
from ckptforge.quantisation.modules import WEIGHT, experts_of, kept_modules, notes_of
from ckptforge.quantisation.stacks import encoded_stack, stack_config, stacked
from ckptforge.quantisation.wishes import EXPERTS, Chosen, Wish, chosen_of, kinds_of
from ckptforge.spelling import option
from ckptforge.steps.encoded import Code, Encoded
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Term, Value
from ckptforge.wording import alternatives, counted

_MX = ("mxfp4", "mxfp8")
_MOST_KINDS = 8  # that a note names


class Quantised(msgspec.Struct, frozen=True, kw_only=True):
    """A model with its codes and scales; the files beside it; and its tensors before, whose dtypes
    are the model's."""

    model: Model
    side: HuggingFaceSide | None
    before: tuple[TensorSpec, ...] = ()
    stem: str = "model"


def quantised(
    model: Model,
    table: Table,
    layout: Layout,
    side: HuggingFaceSide | None,
    wishes: Sequence[Wish],
) -> Quantised:
    """A model in a layout of Hugging Face's, with what is wished as codes. Raises `UsageError` for
    what isn't there, and `QuantisedError` for tensors that can't be written so."""
    if not wishes:
        return Quantised(model=model, side=side)
    code = wishes[0].code
    if side is None or CONFIG not in side.files:
        raise ConfigError(
            f"{option('quantise', code.name)} needs the model's {CONFIG}, which says how weights "
            f"are quantised; give it with {option('config')}."
        )
    caught = chosen_of(model, table, layout, wishes)
    chosen = caught.names
    stacks = stacked(table, layout, chosen) if code.name == "mxfp4" else frozenset[str]()
    _refuse_mixed(stacks, chosen, code)
    _refuse_odd(model, chosen - stacks, code, lambda name: _apart(table, layout, name))
    values, types = _values(model, chosen, stacks, code)
    experts = experts_of(table, layout, model.values)
    kept = [n for n, v in model.values.items() if n not in chosen and len(v.shape) > 1]
    left = frozenset[str]()
    if any(wish.what is None for wish in wishes):
        left = stacked(table, layout, model.values) - chosen
    if code.name == "w8a8-dynamic":
        types |= dict.fromkeys(_tied_heads(table, layout, model.values), "FLOAT")
        stem, told = "quant_model_weights", {DESCRIPTION: file_of(_description(types))}
    else:
        stem, config = "model", json.loads(side.files[CONFIG])
        modules = kept_modules(kept, experts, chosen)
        method = stack_config(stacks, kept) if stacks else _config(code, modules)
        told = {CONFIG: file_of({**config, "quantization_config": method})}
    return Quantised(
        model=replace(model, values=values).noting(
            *_notes(caught, kept, kinds_of(layout, kept), left, code),
            *notes_of(model, chosen, experts, code),
        ),
        side=replace(side, files={**side.files, **told}),
        before=tuple(specs_of(model.values)),
        stem=stem,
    )


def _notes(
    chosen: Chosen, kept: Sequence[str], kinds: Sequence[str], left: Collection[str], code: Code
) -> Iterator[str]:
    """What is written as codes, and what isn't, by kinds; `left` are stacks that nobody named."""
    first = ", ".join(map(printable, kinds[:_MOST_KINDS]))
    more = f" and {len(kinds) - _MOST_KINDS} more kinds" if len(kinds) > _MOST_KINDS else ""
    what = f" ({first}{more})" if kinds else ""
    yield (
        f"{counted(len(chosen.names), 'weight', 'are')} written as {code.name}; "
        f"{counted(len(kept), 'other tensor', 'have')} several axes and stay as they are{what}."
    )
    if chosen.passed_over:
        yield (
            f"{counted(len(chosen.passed_over), 'tensor')} that a glob has, such as "
            f"{shown(min(chosen.passed_over))}, can't be codes, which stand for floats with two "
            "axes or more: they stay as they are."
        )
    if left:
        yield (
            f"{counted(len(left), 'stack')} of experts, such as {shown(min(left))}, with a column "
            f"for each output: not written as {code.name} but where "
            f"{option('quantise', f'{EXPERTS}={code.name}')} says so."
        )


def _values(
    model: Model, chosen: frozenset[str], stacks: frozenset[str], code: Code
) -> tuple[dict[str, Value], dict[str, str]]:
    """A model's tensors with the codes and scales of the chosen ones, and what msModelSlim calls
    the type of each."""
    values: dict[str, Value] = {}
    types: dict[str, str] = {}
    encoded: Encodings = {}
    turned = Composer()
    for name, value in model.values.items():
        if name not in chosen:
            values[name], types[name] = value, "FLOAT"
            continue
        if name in stacks:
            made = encoded_stack(name, value, code, turned)
        else:
            made = _encoded(name, value, code, encoded)
        values |= made
        types |= dict.fromkeys(made, "W8A8_DYNAMIC")
    return values, types


def _refuse_mixed(stacks: frozenset[str], chosen: frozenset[str], code: Code) -> None:
    if stacks and stacks != chosen:
        raise QuantisedError(
            f"stacked experts, such as {shown(min(stacks))}, and other weights, such as "
            f"{shown(min(chosen - stacks))}, as {code.name} in one model are nothing that a "
            f"config.json says: give {option('quantise', f'{EXPERTS}={code.name}')}."
        )


Part = Literal["codes", "scales"]
Encodings = dict[tuple[Part, tuple[int, ...], str], Encoded]


def _encoded(name: str, value: Value, code: Code, known: Encodings) -> dict[str, Value]:
    """The tensors that a weight becomes; `known` are the encodings of others like it."""
    packed = code.dtype.per_byte > 1
    codes = f"{name}_packed" if packed else name
    scales = f"{name}_scale_inv" if code.name == "fp8-block128" else f"{name}_scale"
    both: tuple[tuple[str, Part], ...] = ((codes, "codes"), (scales, "scales"))
    made = {}
    for each, part in both:
        key = part, value.shape, value.dtype.name
        if (encoding := known.get(key)) is None:
            shape, source = value.shape, value.dtype
            encoding = known[key] = Encoded(code=code, part=part, shape=shape, source=source)
        made[each] = _part(value, encoding)
    if code.name == "w8a8-dynamic":
        zeros = Term(fragments=(), fill=0.0)
        offsets = replace(made[scales], terms=(zeros,), encoding=None)
        made[f"{name}_offset"] = offsets
    return made


def _part(value: Value, encoding: Encoded) -> Value:
    shape, dtype = encoding.stored_shape, encoding.stored_dtype
    return replace(value, dtype=dtype, shape=shape, encoding=encoding)


def _refuse_odd(
    model: Model, names: Collection[str], code: Code, apart: Callable[[str], str | None]
) -> None:
    """Raises `QuantisedError` for weights that can't be such codes; `apart` names the layout that
    holds the experts of a stack by themselves, if one does."""
    axes = (2, 3) if code.name == "fp8-block128" else (2,)
    for name, value in model.values.items():
        expected = advice = ""
        if name not in names:
            continue
        if not value.dtype.floating or len(value.shape) not in axes:
            expected = f"floats of {alternatives(map(str, axes))} axes"
            if (layout := apart(name)) is not None:
                advice = f"; layout {layout} holds each expert by itself"
        elif code.name in _MX and value.shape[-1] % code.block[1]:
            expected = f"rows of a multiple of {code.block[1]}"
        elif code.dtype.per_byte > 1 and not name.endswith(WEIGHT):
            expected = "a name that ends in .weight"
        if expected:
            raise QuantisedError(
                f"{shown(name)} is {value.dtype} {list(value.shape)}, expected {expected} to be "
                f"written as {code.name}{advice or '; name others with '}"
                f"{'' if advice else option('quantise', f'WHAT={code.name}')}."
            )


def _apart(table: Table, layout: Layout, name: str) -> str | None:
    """The layout of Hugging Face that holds each of stacked experts by itself, in a matrix."""
    found, _ = recognise_names(layout, {name: None})
    for other in table.names_of(layout.family):
        for pattern in found:
            if not table.expert_matrices.issuperset(pattern.tensors):
                continue
            rows = [table.layouts[other].holding(tensor) for tensor in pattern.tensors]
            if all(len(row.shape_axes) == 2 and len(row.name_axes) > 1 for row in rows):
                return other
    return None


def _config(code: Code, kept: Mapping[str, list[str]]) -> dict[str, Any]:
    """What config.json says; `kept` are the modules of other weights."""
    if code.name == "fp8-block128":
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": list(kept),
            "quant_method": "fp8",
            "weight_block_size": list(code.block),
        }
    # compressed-tensors matches the names of modules as they are
    each = (name.removesuffix(WEIGHT) for names in kept.values() for name in names)
    modules = list(dict.fromkeys([*each, *kept]))
    form = "mxfp4-pack-quantized" if code.name == "mxfp4" else "mxfp8-quantized"
    weights = {
        "dynamic": False,
        "group_size": code.block[1],
        "num_bits": 8 // code.dtype.per_byte,
        "scale_dtype": "torch.uint8",
        "strategy": "group",
        "symmetric": True,
        "type": "float",
    }
    group = {
        "format": form,
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": form,
        "ignore": modules,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _tied_heads(table: Table, layout: Layout, names: Collection[str]) -> list[str]:
    """Heads that are the embedding, and no tensor: ModelSlim writes one, and vllm-ascend looks for
    its type."""
    tied = table.pipeline.tied if table.pipeline is not None else {}
    heads = (layout.holding(tensor).template for tensor in tied)
    return [name for name in heads if name not in names]


def _description(types: Mapping[str, str]) -> dict[str, Any]:
    """What MindStudio's description says of each tensor."""
    return {
        "model_quant_type": "W8A8_DYNAMIC",
        "version": "1.0.0",
        "group_size": 0,
        **types,
        "metadata": {},
        "optional": {},
    }
