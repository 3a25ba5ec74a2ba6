"""The norm before a layer's feed-forward network, which has two names where Transformer Engine
computes it: a dense layer's is part of its first linear layer, one of a layer with experts stands
by itself. Tables know the second name, which all layers of such a model get here.

Source: Megatron-core 0.16.1 `core/models/gpt/gpt_layer_specs.py`.
"""

from __future__ import annotations

from collections.abc import Collection

_APART, _FUSED = "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"
_DENSE, _ROUTER = "mlp.linear_fc1.weight", "mlp.router.weight"
_ATTENTION = "self_attention.linear_qkv.layer_norm_weight"
_OF_ENGINE = ".layer_norm_weight"


def norms_apart(names: Collection[str]) -> bool:
    """Whether tables know the norms of a model of these names by the second name: it has experts,
    or its attention, which is latent, has a norm that stands by itself, too."""
    experts = any(name.endswith(_ROUTER) for name in names)
    return experts or not any(name.endswith(_ATTENTION) for name in names)


def norm_read(name: str) -> str:
    """A name in a model whose norms stand apart, as tables know it."""
    home = name.removesuffix(_FUSED)
    return name if home == name else f"{home}{_APART}"


def norm_written(name: str, names: Collection[str]) -> str:
    """A name, one of `names`, as Megatron knows it."""
    home = name.removesuffix(_APART)
    if home == name or f"{home}{_DENSE}" not in names or not norms_apart(names):
        return name
    return f"{home}{_FUSED}" if any(one.endswith(_OF_ENGINE) for one in names) else name
