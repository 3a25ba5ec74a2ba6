"""Stacked experts [experts, inputs, outputs] as gpt-oss publishes them in MXFP4: of NAME two
tensors, `NAME_blocks` [experts, outputs, groups, 16] of bytes and `NAME_scales` [experts, outputs,
groups], where a group is 32 inputs.

Source: transformers' integrations/mxfp4.py (`convert_moe_packed_tensors`) and
quantizers/quantizer_mxfp4.py; `quantization_config` of the published gpt-oss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from ckptforge.composing import Composer
from ckptforge.errors import QuantisedError, shown
from ckptforge.quantisation.packed import swapped
from ckptforge.steps.encoded import Code, Encoded
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Value


def stacked(table: Table, layout: Layout, names: Iterable[str]) -> frozenset[str]:
    """Those of the names that are stacked experts whose inputs stand before their outputs."""
    found, _ = recognise_names(layout, dict.fromkeys(names))
    patterns = [p for p in found if table.expert_matrices.issuperset(p.tensors)]
    return frozenset(
        name
        for pattern in patterns
        if inputs_first(table, pattern)
        for name in found[pattern].values()
    )


def inputs_first(table: Table, pattern: Pattern) -> bool:
    """Whether names of a pattern are stacked experts whose inputs stand before their outputs."""
    own = {table.tensors[tensor][-1] for tensor in pattern.tensors}
    return len(pattern.shape_axes) == 3 and pattern.shape_axes[1] == tuple(own)


def encoded_stack(name: str, value: Value, code: Code, turned: Composer) -> dict[str, Value]:
    """The two tensors. Raises `QuantisedError` for inputs that aren't whole groups."""
    group = code.block[1]
    experts, inputs, outputs = value.shape
    if not value.dtype.floating or inputs % group:
        raise QuantisedError(
            f"{shown(name)} is {value.dtype} {list(value.shape)}, expected floats, and a multiple "
            f"of {group} of inputs, the second axis, to be written as {code.name}."
        )
    shape = (experts, outputs, inputs)
    terms = tuple(turned.terms([(value, swapped(value.shape).ordered())]))
    rows = replace(value, shape=shape, terms=terms)
    groups, half = inputs // group, group // code.dtype.per_byte
    codes = Encoded(code=code, part="codes", shape=shape, source=value.dtype)
    scales = replace(codes, part="scales")
    return {
        f"{name}_blocks": replace(
            rows,
            dtype=codes.stored_dtype,
            shape=(experts, outputs, groups, half),
            encoding=codes,
        ),
        f"{name}_scales": replace(
            rows, dtype=scales.stored_dtype, shape=(experts, outputs, groups), encoding=scales
        ),
    }


def stack_config(stacks: Iterable[str], kept: Iterable[str]) -> dict[str, Any]:
    """What config.json says: the modules of other weights, without parts of those that hold
    experts."""
    holders = {name.rpartition(".")[0] for name in stacks}
    modules = [name.removesuffix(".weight") for name in kept]
    return {
        "modules_to_not_convert": [m for m in modules if m.rpartition(".")[0] not in holders],
        "quant_method": "mxfp4",
    }
