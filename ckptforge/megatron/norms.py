"""Norms that have two names, by what else a model has; tables know the second.

The norm before a layer's feed-forward network, where Transformer Engine computes it: a dense
layer's is part of its first linear layer, one of a layer with experts stands by itself. The last
norm, where MindSpeed-LLM has layers that predict more tokens, or a head of hyper-connections before
it: it stands outside the decoder.

Source: Megatron-core 0.16.1 `core/models/gpt/gpt_layer_specs.py`; MindSpeed-LLM
`mindspeed_llm/tasks/checkpoint/convert_hf2mg.py`, and the script beside it for models with
hyper-connections.
"""

from __future__ import annotations

from collections.abc import Collection

_APART, _FUSED = "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"
_DENSE, _ROUTER = "mlp.linear_fc1.weight", "mlp.router.weight"
_ATTENTION = "self_attention.linear_qkv.layer_norm_weight"
_OF_ENGINE = ".layer_norm_weight"
_OUTSIDE, _LAST = "final_layernorm.weight", "decoder.final_layernorm.weight"
# in MindSpeed-LLM: of the layers that predict more tokens; what makes one state of several
_BEFORE_LAST = ("mtp.final_layernorms.", "hc_head.")


def norms_apart(names: Collection[str]) -> bool:
    """Whether tables know the norms of a model of these names by the second name: it has experts,
    or its attention, which is latent, has a norm that stands by itself, too."""
    experts = any(name.endswith(_ROUTER) for name in names)
    return experts or not any(name.endswith(_ATTENTION) for name in names)


def norm_read(name: str, apart: bool) -> str:
    """A name as tables know it; `apart` says that they know norms of the model by that name."""
    if name == _OUTSIDE:
        return _LAST
    home = name.removesuffix(_FUSED)
    return f"{home}{_APART}" if apart and home != name else name


def norm_written(name: str, names: Collection[str]) -> str:
    """A name, one of `names`, as Megatron knows it."""
    if name == _LAST and any(one.startswith(_BEFORE_LAST) for one in names):
        return _OUTSIDE
    home = name.removesuffix(_APART)
    if home == name or f"{home}{_DENSE}" not in names or not norms_apart(names):
        return name
    return f"{home}{_FUSED}" if any(one.endswith(_OF_ENGINE) for one in names) else name
