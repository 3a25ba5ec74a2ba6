"""Which models the pass in MindSpore can compute: those of a table of which it knows every tensor,
and every key of config.json that changes what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptforge.errors import ConfigError, shown
from ckptforge.spelling import command
from ckptforge.tables.constants import ModelConstants, Used
from ckptforge.tables.rope import KEYS
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Table

_OUTER = {"embedding", "norm", "lm_head"}
_LAYER = {"attention_norm", "ffn_norm", "wo", "wv"}
GROUPED = {"wq", "wk"}
_GROUPED_TOO = {"bq", "bk", "bv", "bo", "q_norm", "k_norm"}
_LATENT = {"wq_a", "q_norm", "wq_nope", "wq_pe", "wkv_latent", "wk_pe", "kv_norm", "wk_nope"}
_UNCOMPRESSED = {"wq", "wq_wkv_latent", "wq_wk_pe"}
_DENSE = {"w1", "w2", "w3"}
_ROUTED = {"router", "router_bias"}
_PREFIXED = {prefix + name for prefix in ("dense_", "shared_") for name in _DENSE}

# keys whose value matters, and what those are for which it doesn't or may be only this
_READ = {
    *("rms_norm_eps", "hidden_act", "num_experts_per_tok", "norm_topk_prob", "n_group"),
    *("topk_group", "routed_scaling_factor", "scoring_func", "rope_interleave", "attention_bias"),
    *("decoder_sparse_step", "mlp_only_layers"),  # by which a table says which layers are dense
}
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "mlp_bias": (False, None),
    "attention_out_bias": (False, None),
    "per_layer_config": ({}, None),
    "topk_method": ("noaux_tc",),
}


def unknown_parts(table: Table, constants: ModelConstants) -> list[str]:
    """The tensors of a table's layers, and the keys of a config.json, that the pass doesn't know
    how to compute with. Tensors after the last layer aren't looked at: neither side has those."""
    layers = dict(table.pipeline.layers) if table.pipeline is not None else {}
    later = table.counted - layers.keys()
    tensors = [tensor for tensor, axes in table.tensors.items() if axes[0] not in later]
    grouped = set(tensors) >= GROUPED
    known = _OUTER | _LAYER | _DENSE | _ROUTED | _PREFIXED
    known |= GROUPED | _GROUPED_TOO if grouped else _LATENT | _UNCOMPRESSED
    unknown = [tensor for tensor in tensors if tensor not in known]
    for norm, weight in (("q_norm", "wq"), ("k_norm", "wk")) if grouped else ():
        of_heads = (table.tensors[weight][0], table.tensors[weight][-2])
        if norm in table.tensors and table.tensors[norm] != of_heads:
            unknown.append(norm)  # of all heads together
    window = constants.window.keys if constants.window is not None else ()
    keys = {*_READ, *_FIXED, *(KEYS - {"partial_rotary_factor"}), *window}
    return unknown + [key for key in constants.defaults if key not in keys]


def refuse_unknown(used: Used | None, table: Table, where: str) -> Used:
    """Raises `ConfigError` for a model that the pass can't compute, with the tables that it can."""
    unknown = unknown_parts(table, used.constants) if used is not None else []
    if used is None or unknown:
        why = f"it doesn't know {', '.join(unknown[:6])}"
        if used is None:
            why = "the table has no [defaults], which say what is computed with the weights"
        raise ConfigError(
            f"{where}: is a model of the table {table.name}, which the forward check can't compute "
            f"in MindSpore: {why}. It knows the tables {', '.join(known_tables())}. "
            f"{command('compare')} shows whether the weights are the same, for every model."
        )
    for key, values in _FIXED.items():
        if key in used.constants.defaults and used.value(key) not in values:
            raise ConfigError(
                f"{where}: {key} is {shown(used.value(key))}; the forward check computes only "
                f"{shown(values[0])}."
            )
    return used


def known_tables() -> list[str]:
    """The names of the shipped tables with a MindSpore layout whose models it computes."""
    return [
        table.name
        for table in shipped_tables()
        if table.names_of("mindspore") and table.constants.by_model_type
        if not any(unknown_parts(table, own) for own in table.constants.by_model_type.values())
    ]
