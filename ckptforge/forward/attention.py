"""Attention in MindSpore: of grouped queries, and by latent vectors.

Sources: transformers 5, modeling_llama.py, modeling_qwen3.py, modeling_deepseek_v3.py.
"""

from __future__ import annotations

from typing import Any

from ckptforge.forward.arithmetic import Arithmetic
from ckptforge.forward.network import Network, Rotation

_LATENT_EPS = 1e-6  # of the latent norms, whatever rms_norm_eps is


def attention(
    a: Arithmetic, network: Network, layer: int, states: Any, batch: int, length: int
) -> Any:
    """(batch · length, hidden) → the same."""
    make = _latent if a.weights.has("wk_nope") else _grouped
    query, key, value = make(a, network, layer, states, batch, length)
    scale = query.shape[-1] ** -0.5 * network.rotation.softmax
    mask = a.mindspore.Tensor(network.mask(layer, length))
    mixed = _attend(a, query, key, value, scale, mask)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(batch * length, -1)
    return a.dense(mixed, "wo", layer, bias="bo")


def _grouped(
    a: Arithmetic, network: Network, layer: int, states: Any, batch: int, length: int
) -> tuple[Any, Any, Any]:
    """Query, key and value, each (batch, heads, length, head_dim)."""
    groups, repeats, d, _ = a.weights.shape("wq")

    def heads(weight: str, bias: str, norm: str | None, rotated: bool) -> Any:
        made = a.dense(states, weight, layer, bias=bias).reshape(batch, length, -1, d)
        if norm is not None and a.weights.has(norm, layer):
            made = a.norm(made, norm, layer)
        made = made.transpose(0, 2, 1, 3)
        return _rotated(a, made, network.rotation) if rotated else made

    query = heads("wq", "bq", "q_norm", True)
    key, value = heads("wk", "bk", "k_norm", True), heads("wv", "bv", None, False)
    wide = (batch, groups, repeats, length, d)
    key, value = (
        a.mindspore.ops.broadcast_to(part.reshape(batch, groups, 1, length, d), wide).reshape(
            batch, groups * repeats, length, d
        )
        for part in (key, value)
    )
    return query, key, value


def _latent(
    a: Arithmetic, network: Network, layer: int, states: Any, batch: int, length: int
) -> tuple[Any, Any, Any]:
    """The same; the value's head_dim is another."""
    ops, heads = a.mindspore.ops, a.weights.shape("wk_nope")[0]

    def split(latent: Any, weight: str, count: int = heads) -> Any:
        return (
            a.dense(latent, weight, layer).reshape(batch, length, count, -1).transpose(0, 2, 1, 3)
        )

    def normed(latent: Any, norm: str) -> Any:
        return a.norm(latent, norm, layer, _LATENT_EPS) if a.weights.has(norm, layer) else latent

    whole = a.weights.has("wq", layer)  # queries that aren't compressed
    if whole:
        query, fixed = split(states, "wq"), a.weights.shape("wk_nope")[1]
        still, turned = query[..., :fixed], query[..., fixed:]
    else:
        query = normed(a.dense(states, "wq_a", layer), "q_norm")
        still, turned = split(query, "wq_nope"), split(query, "wq_pe")
    query = ops.cat([still, _rotated(a, turned, network.rotation)], -1)
    beside = "wq_" if whole else ""  # of keys and values, which some networks hold with it
    latent = normed(a.dense(states, f"{beside}wkv_latent", layer), "kv_norm")
    shared = _rotated(a, split(states, f"{beside}wk_pe", 1), network.rotation)
    shared = ops.broadcast_to(shared, (batch, heads, length, shared.shape[-1]))
    return query, ops.cat([split(latent, "wk_nope"), shared], -1), split(latent, "wv")


def _rotated(a: Arithmetic, heads: Any, rotation: Rotation) -> Any:
    """(batch, heads, length, numbers): each pair of numbers turned by its position's angle; the
    first of all pairs come first, then the second."""
    ms = a.mindspore
    cos, sin = (a.rounded(ms.Tensor(table)) for table in rotation.angles(heads.shape[2]))
    half = heads.shape[-1] // 2
    if rotation.interleaved:
        pairs = heads.reshape(*heads.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = heads[..., :half], heads[..., half:]
    return ms.ops.cat(
        [
            a.rounded(a.rounded(first * cos) - a.rounded(second * sin)),
            a.rounded(a.rounded(second * cos) + a.rounded(first * sin)),
        ],
        -1,
    )


def _attend(a: Arithmetic, query: Any, key: Any, value: Any, scale: float, mask: Any) -> Any:
    ops = a.mindspore.ops
    scores = a.rounded(a.rounded(ops.matmul(query, key.transpose(0, 1, 3, 2))) * scale) + mask
    return a.rounded(ops.matmul(a.rounded(ops.softmax(scores, -1)), value))
