"""params.json of a release, as config.json says the same, and back.

Source: mistral-inference `args.py`, `moe.py`, `transformer.py`; Meta's `model.py` (`ModelArgs`,
`FeedForward`); transformers' scripts `convert_…_weights_to_hf.py` for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckptforge.dtypes import DType
from ckptforge.errors import ConfigError, shortened, shown
from ckptforge.tables.table import Switch

PARAMS = "params.json"
META = "meta"  # the layout of Meta's
Params = Mapping[str, Any]
Switches = Mapping[str, Switch]
_KEYS = {  # of params.json → of config.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "max_seq_len": "max_position_embeddings",
}
_OF_MOE = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
_SHAPED = {  # Meta's params.json has -1 as vocab_size, and not the inner length
    "vocab_size": "tok_embeddings.weight",
    "intermediate_size": "layers.0.feed_forward.w1.weight",
}
_NUMBERS = ("rms_norm_eps", "rope_theta")
_MOST = 1 << 62
_TO_BE_SAID = ("max_position_embeddings", "rms_norm_eps")
# Keys that say how a program runs the model, or what follows from others.
_OTHERS = ("moe", "multiple_of", "ffn_dim_multiplier", "max_batch_size")
_OF_META = ("dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta")


def is_meta(params: Params) -> bool:
    """Whether it is one of Meta's, in which the inner length follows from others."""
    return "hidden_dim" not in params and "intermediate_size" not in params


def config_of(
    params: Params,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: DType,
    where: str,
    switches: Switches,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(a config.json that says what a params.json and the shapes of the tensors say, sentences
    about what neither does). `switches` are those of the layout's table. Raises `ConfigError`."""
    moe = params.get("moe")
    if moe is not None and not isinstance(moe, dict):
        raise ConfigError(f"{where}: moe is {shown(moe)}, expected an object.")
    _refuse_wrong(params, moe or {}, where)
    found = _lengths(params, moe or {}, shapes)
    if found.get("rope_theta") is None:
        plain = is_meta(params) or found.get("sliding_window") is not None
        found["rope_theta"] = 10000.0 if plain else 1000000.0
    if not is_meta(params):
        found.setdefault("sliding_window", None)
    found["tie_word_embeddings"] = "output.weight" not in shapes
    found["torch_dtype"] = dtype.name
    notes = []
    for key, switch in switches.items():
        if params.get(key):
            found |= switch.config
            notes += [f"{where}: {key} {switch.note}"] if switch.note else []
    known = {*_KEYS, *_KEYS.values(), *_OF_MOE.values(), *_OTHERS, *switches}
    if unknown := [key for key, value in params.items() if key not in known and value]:
        notes.append(
            f"{where}: has {shortened(', '.join(unknown))}, of which config.json says nothing; set "
            "there what the model needs of it."
        )
    if lacking := [key for key in _TO_BE_SAID if found.get(key) is None]:
        notes.append(
            f"{where}: doesn't say {' and '.join(lacking)}; set it in config.json, where programs "
            "take a default else."
        )
    return found, tuple(notes)


def _refuse_wrong(params: Params, moe: Params, where: str) -> None:
    """Raises `ConfigError` for values of the keys that are read which no model has."""
    for key, value in (*params.items(), *((f"moe.{key}", one) for key, one in moe.items())):
        kind = _kind_of(key)
        if value is None or kind is None:
            continue
        counts = isinstance(value, int) and not isinstance(value, bool)
        if kind == "number":
            fits = (counts or isinstance(value, float)) and 0 < value < math.inf
        else:
            fits = counts and (0 < value < _MOST or (kind == "vocabulary" and value == -1))
        if not fits:
            expected = "a number above 0" if kind == "number" else "a positive integer"
            raise ConfigError(f"{where}: {key} is {shown(value)}, expected {expected}.")
    experts, chosen = (moe.get(own, params.get(key)) for own, key in _OF_MOE.items())
    if experts is not None and chosen is not None and chosen > experts:
        raise ConfigError(
            f"{where}: num_experts_per_tok is {chosen}, expected at most the {experts} experts "
            "that there are."
        )


def _kind_of(key: str) -> str | None:
    """What a key's value must be: a `length`, a `number`, a `vocabulary`; None for others."""
    name = key.removeprefix("moe.")
    own = _KEYS.get(name, _OF_MOE.get(name, name))
    if own in _NUMBERS:
        return "number"
    if own == "vocab_size":
        return "vocabulary"
    lengths = {*_KEYS.values(), *_OF_MOE.values()} - {"sliding_window"}  # of each layer, as a list
    return "length" if own in lengths else None


def _lengths(params: Params, moe: Params, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What stands under other keys in config.json; what params.json leaves open by the shapes."""
    # the first one of experts has the keys of config.json
    found = {key: params[key] for key in (*_KEYS.values(), *_OF_MOE.values()) if key in params}
    found |= {key: params[own] for own, key in _KEYS.items() if own in params}
    found |= {key: moe[own] for own, key in _OF_MOE.items() if own in moe}
    for key, name in _SHAPED.items():
        said = found.get(key)
        if (not isinstance(said, int) or said < 0) and name in shapes:
            found[key] = shapes[name][0]
    found.setdefault("num_key_value_heads", found.get("num_attention_heads"))
    return found


def params_of(
    config: Params, meta: bool, switches: Switches
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(params.json of what a config.json says, as mistral-inference reads it, or as Meta's program
    does; sentences about what it can't say). Raises `ConfigError` for a model that Meta's network
    can't be."""
    rope = _rope(config)
    kind = _rope_type(config)
    config = {"num_key_value_heads": config.get("num_attention_heads"), **rope, **config}
    notes = []
    scaled = [key for key, one in switches.items() if _rope_type(one.config) == kind]
    if kind != "default" and not scaled:
        notes.append(f"{PARAMS} can't say that positions are scaled ({kind}).")
    for key in scaled:
        meant, said = _rope(switches[key].config), _rope(config)
        names = {name: said[name] for name in meant if said.get(name, meant[name]) != meant[name]}
        if names:
            held = ", ".join(f"{name} {shown(value)}" for name, value in names.items())
            stands = ", ".join(f"{name} {shown(meant[name])}" for name in names)
            notes.append(f"{PARAMS} can't say {held} of scaled positions: {key} means {stands}.")
    if (act := config.get("hidden_act", "silu")) != "silu":
        notes.append(f"{PARAMS} can't say hidden_act {shown(act)}; a release computes silu.")
    if config.get("tie_word_embeddings"):
        notes.append("the head is tied to the embedding; programs for releases expect both.")
    found = {own: config[key] for own, key in _KEYS.items() if config.get(key) is not None}
    dim, heads = found.get("dim"), found.get("n_heads")
    if "head_dim" not in found and isinstance(dim, int) and isinstance(heads, int) and heads:
        found["head_dim"] = dim // heads
    if not meta:
        found.pop("max_seq_len", None)
        moe = {own: config[key] for own, key in _OF_MOE.items() if config.get(key) is not None}
        return {**found, "moe": moe} if moe else found, tuple(notes)
    if isinstance(dim, int) and isinstance(heads, int) and found["head_dim"] * heads != dim:
        raise ConfigError(
            f"config.json has hidden_size {dim}, but {heads} heads of {found['head_dim']}: Meta's "
            "network takes hidden_size / num_attention_heads for the length of a head."
        )
    kept = {key: found[key] for key in _OF_META if key in found}
    inner = found.get("hidden_dim")
    if isinstance(dim, int) and isinstance(inner, int):
        # multiple_of · ⌈⌊8 · dim / 3⌋ · multiplier / multiple_of⌉
        kept["multiple_of"] = inner
        if 8 * dim // 3 > inner:
            # half of one more, as what comes out is rounded down
            kept["ffn_dim_multiplier"] = (inner + 0.5) / (8 * dim // 3)
    return {**kept, **dict.fromkeys(scaled, True)}, tuple(notes)


def as_in_config(config: Params) -> dict[str, Any]:
    """What params.json of the first release of experts has besides: the keys of config.json, by
    which transformers' script reads it."""
    config = {"num_key_value_heads": config.get("num_attention_heads"), **_rope(config), **config}
    keys = (*_KEYS.values(), *_OF_MOE.values())
    return {key: config[key] for key in keys if config.get(key) is not None}


def _rope(config: Params) -> Params:
    found: Params = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found


def _rope_type(config: Params) -> Any:
    rope = _rope(config)
    return rope.get("rope_type", rope.get("type", "default"))
