"""What a Mixtral computes with beside its weights, from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import ConfigError
from ckptforge.forward.weights import Weights
from ckptforge.spelling import command


@dataclass(frozen=True)
class Network:
    """Sizes and constants of the forward pass; `window` is the sliding attention's, or None."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    eps: float
    theta: float
    window: int | None
    vocab: int
    positions: int


class LayerOutput(NamedTuple):
    """What a layer makes of its input (batch, length, hidden): the same again, the router's logits
    (tokens, experts), and the experts that it chose (tokens, top_k)."""

    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]
    experts: NDArray[np.int64]


_MODEL = "mixtral"


def network_of(weights: Weights, config: Mapping[str, Any], where: str) -> Network:
    """Raises `ConfigError` for what is missing, and what this pass doesn't do."""
    table = weights.source.table
    if _MODEL not in table.model_types:
        raise ConfigError(
            f"{weights.source.model.path}: is a model of the table {table.name}; the forward check "
            f"computes Mixtral only. {command('compare')} shows whether the weights are the same, "
            "for every model."
        )
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    scaling = rope.get("rope_type", "default")
    if config.get("rope_scaling"):
        scaling = str(config["rope_scaling"])
    for key, value, expected in (
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("rope_type", scaling, "default"),
    ):
        if value != expected:
            raise ConfigError(
                f"{where}: {key} is {value!r}; the forward check computes only {expected!r}."
            )
    found = {
        "rms_norm_eps": config.get("rms_norm_eps"),
        "rope_theta": theta,
        "num_experts_per_tok": config.get("num_experts_per_tok"),
    }
    for key, value in found.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{where}: {key} is {value!r}, expected a positive number.")
    window, positions = config.get("sliding_window"), config.get("max_position_embeddings") or 4096
    return Network(
        weights.size("l"),
        weights.size("g") * weights.size("r"),
        weights.size("g"),
        weights.size("d"),
        weights.size("e"),
        int(config["num_experts_per_tok"]),
        float(config["rms_norm_eps"]),
        float(theta),  # type: ignore[arg-type]
        int(window) if window else None,
        weights.size("V"),
        int(positions),
    )


def rotary(network: Network, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of the rotary embedding, (length, head_dim), float32."""
    d = network.head_dim
    frequencies = (
        1.0 / (np.float32(network.theta) ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d)))
    ).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None]
    both = np.concatenate([angles, angles], axis=-1)
    return np.cos(both), np.sin(both)


def causal_mask(network: Network, length: int) -> NDArray[np.float32]:
    """(length, length): 0 where a row's token sees a column's, else the least float32."""
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    seen = distance >= 0
    if network.window is not None:
        seen &= distance < network.window
    mask: NDArray[np.float32] = np.where(seen, np.float32(0), np.finfo(np.float32).min)
    return mask
