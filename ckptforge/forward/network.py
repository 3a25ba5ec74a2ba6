"""What a model computes with beside its weights: sizes and constants, by its table and config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import ConfigError, shown
from ckptforge.forward.known import refuse_unknown
from ckptforge.forward.routing import Route, Router, router_of
from ckptforge.forward.weights import Weights
from ckptforge.tables.constants import Used, windows
from ckptforge.tables.rope import LONGEST, THETA, rope_parameters, rotation

Array = NDArray[np.float32]


class LayerOutput(NamedTuple):
    """What a layer makes of its input (batch, length, hidden): the same again, and where its tokens
    went, None in a layer without experts."""

    hidden: Array
    route: Route | None


@dataclass(frozen=True)
class Rotation:
    """Inverse frequencies of the pairs of a head's numbers, in a text of up to `bound` tokens and,
    where these differ, in a longer one; `attention` multiplies cosines and sines, `softmax` the
    attention's scores. `interleaved`: pairs are neighbours, else numbers half a head apart."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    bound: float
    attention: float
    softmax: float
    interleaved: bool

    def angles(self, length: int) -> tuple[Array, Array]:
        """cos and sin, (length, pairs), float32."""
        chosen = self.short if length <= self.bound else self.long
        frequencies = np.array(chosen, np.float64).astype(np.float32)
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None]
        scale = np.float32(self.attention)
        return np.cos(angles) * scale, np.sin(angles) * scale


@dataclass(frozen=True)
class Network:
    """Sizes and constants of the forward pass; `windows` are the sliding attention's of each layer,
    None where it sees all."""

    layers: int
    vocab: int
    hidden: int
    positions: int
    eps: float
    rotation: Rotation
    windows: tuple[int | None, ...]
    router: Router | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """What must be the same on both sides: layers, vocabulary, hidden size, experts."""
        experts = self.router.experts if self.router is not None else 0
        return self.layers, self.vocab, self.hidden, experts

    def mask(self, layer: int, length: int) -> Array:
        """(length, length): 0 where a row's token sees a column's, else the least float32."""
        distance = np.arange(length)[:, None] - np.arange(length)[None]
        seen = distance >= 0
        window = self.windows[layer]
        if window is not None:
            seen &= distance < window
        found: Array = np.where(seen, np.float32(0), np.finfo(np.float32).min)
        return found


def network_of(weights: Weights, config: Mapping[str, Any], where: str) -> Network:
    """Raises `ConfigError` for a model that the pass doesn't know, what config.json lacks, and
    values that it doesn't compute with."""
    table, layers = weights.source.table, weights.layers
    constants = table.constants.of(config)
    described = None if constants is None else Used(constants, config, layers)
    used = refuse_unknown(described, table, where)
    vocab, hidden = weights.shape("embedding")
    router = router_of(used, weights.shape("router")[0], where) if weights.has("router") else None
    return Network(
        layers=layers,
        vocab=vocab,
        hidden=hidden,
        positions=int(_number(used, LONGEST, where)),
        eps=_number(used, "rms_norm_eps", where),
        rotation=_rotation(used, _rotated(weights), where),
        windows=_windows(used, where),
        router=router,
    )


def _number(used: Used, key: str, where: str) -> float:
    found = used.value(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ConfigError(f"{where}: {key} is {shown(found)}, expected a positive number.")
    return found


def _rotated(weights: Weights) -> int:
    """How many numbers of a head are rotated."""
    for latent in filter(weights.has, ("wk_pe", "wq_wk_pe")):
        pairs, two, _ = weights.shape(latent)
        return pairs * two
    return weights.shape("wk")[-2]


def _rotation(used: Used, dim: int, where: str) -> Rotation:
    rope, defaults = used.constants.rope, used.constants.defaults
    kinds = rope_parameters(used.config, defaults, rope) if rope is not None else {}
    if rope is None or kinds.keys() != {""}:
        raise ConfigError(
            f"{where}: rotary embeddings of {len(kinds)} kinds, by layer type; the forward check "
            "computes one kind."
        )
    found = rotation(kinds[""], dim, rope)
    bound, softmax = np.inf, found[-1]
    if found and isinstance(found[0], tuple) and len(found) == 3 and found[0][:1] != ("rope_type",):
        short = long = found[0]
        attention = found[1]
    elif found and found[0] == "longrope":
        _, short, long, bound, attention, _ = found
    elif found and found[0] == "dynamic":  # up to max_position_embeddings nothing is scaled
        theta, attention = kinds[""][THETA], 1.0
        short = long = tuple(theta ** (-2.0 * i / dim) for i in range(dim // 2))
    else:
        raise ConfigError(
            f"{where}: the forward check can't compute rotary embeddings of "
            f"{shown(dict(kinds['']))}."
        )
    if {len(short), len(long)} != {dim // 2}:
        raise ConfigError(
            f"{where}: {2 * len(short)} of a head's {dim} numbers are rotated; the forward check "
            "computes only all."
        )
    interleaved = "rope_interleave" in defaults and bool(used.value("rope_interleave"))
    return Rotation(short, long, bound, attention, softmax, interleaved)


def _windows(used: Used, where: str) -> tuple[int | None, ...]:
    found = windows(used)
    if other := [kind for kind in found if isinstance(kind, bool | str) or kind == 0]:
        raise ConfigError(
            f"{where}: a layer attends by {shown(other[0])}, which the forward check doesn't know."
        )
    if len(found) != used.layers:
        raise ConfigError(
            f"{where}: says how far {len(found)} layers attend, but there are {used.layers}."
        )
    return tuple(found)
