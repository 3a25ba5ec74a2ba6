"""A minimal Mixtral in MindSpore, its weights streamed in one matrix at a time: stored as they are, computed in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.experts import Experts, GroupedExperts, LoopExperts
from ckptforge.forward.network import Network, causal_mask, rotary
from ckptforge.forward.weights import Weights

Array = NDArray[np.float32]
_LM_ROWS = 8192


class MindSporeForward:
    """`embed`, `layer` and `head` of a Mixtral; numpy in and out. `mindspore` has its device selected."""

    def __init__(self, mindspore: Any, weights: Weights, network: Network, experts: Experts | None = None) -> None:
        self.mindspore, self.weights, self.network = mindspore, weights, network
        self.experts = experts or LoopExperts(mindspore, weights)

    @classmethod
    def on_ascend(cls, mindspore: Any, weights: Weights, network: Network, matmul: Any = None) -> MindSporeForward:
        """With grouped matmuls over the experts, in half precision."""
        stacks = Weights(weights.source, "gmm")
        return cls(mindspore, weights, network, GroupedExperts(mindspore, stacks, network.experts, matmul))

    def _tensor(self, tensor: str, **index: int) -> Any:
        return self.mindspore.Tensor(self.weights.float32(tensor, **index))

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        ms = self.mindspore
        unique, inverse = np.unique(tokens, return_inverse=True)
        rows = ms.Tensor(self.weights.rows("embedding", unique))
        found = ms.ops.gather(rows, ms.Tensor(inverse.reshape(-1).astype(np.int32)), 0)
        made: Array = found.asnumpy().reshape(*tokens.shape, -1)
        return made

    def layer(self, i: int, hidden: Array) -> tuple[Array, Array, NDArray[np.int64]]:
        """(output, router logits (tokens, experts), experts chosen (tokens, top_k)) of layer `i`."""
        ms, ops = self.mindspore, self.mindspore.ops
        batch, length, width = hidden.shape
        states = ms.Tensor(hidden.reshape(-1, width))
        states = states + self._attention(i, self._norm(states, "attention_norm", l=i), batch, length)
        normed = self._norm(states, "ffn_norm", l=i)
        logits = ops.dense(normed, self._tensor("router", l=i))
        top, chosen = ops.topk(ops.softmax(logits, -1), self.network.top_k)
        chosen = chosen.asnumpy().astype(np.int64)
        states = states + self.experts(i, normed, chosen, top / top.sum(-1, keepdims=True))
        return states.asnumpy().reshape(batch, length, width), logits.asnumpy(), chosen

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head, in blocks of rows."""
        ms = self.mindspore
        states = self._norm(ms.Tensor(hidden.reshape(-1, hidden.shape[-1])), "norm")
        matrix = self.weights.read("lm_head" if self.weights.has("lm_head") else "embedding")
        parts = [
            ms.ops.dense(states, ms.Tensor(matrix[start : start + _LM_ROWS].astype(np.float32))).asnumpy()
            for start in range(0, len(matrix), _LM_ROWS)
        ]
        made: Array = np.concatenate(parts, -1).reshape(*hidden.shape[:-1], -1)
        return made

    def _norm(self, states: Any, tensor: str, **index: int) -> Any:
        mean = (states * states).mean(-1, keep_dims=True)
        return states * self.mindspore.ops.rsqrt(mean + self.network.eps) * self._tensor(tensor, **index)

    def _attention(self, i: int, states: Any, batch: int, length: int) -> Any:
        ms, ops, network = self.mindspore, self.mindspore.ops, self.network
        d, groups = network.head_dim, network.heads // network.kv_heads

        def heads(tensor: str, count: int) -> Any:
            return ops.dense(states, self._tensor(tensor, l=i)).reshape(batch, length, count, d).transpose(0, 2, 1, 3)

        cos, sin = (ms.Tensor(table) for table in rotary(network, length))
        query = _rotated(ops, heads("wq", network.heads), cos, sin)
        key = _rotated(ops, heads("wk", network.kv_heads), cos, sin)
        value = heads("wv", network.kv_heads)
        key, value = (
            ops.broadcast_to(part.reshape(batch, network.kv_heads, 1, length, d), (batch, network.kv_heads, groups, length, d)).reshape(
                batch, network.heads, length, d
            )
            for part in (key, value)
        )
        scores = ops.matmul(query, key.transpose(0, 1, 3, 2)) * (d**-0.5) + ms.Tensor(causal_mask(network, length))
        mixed = ops.matmul(ops.softmax(scores, -1), value).transpose(0, 2, 1, 3).reshape(batch * length, network.heads * d)
        return ops.dense(mixed, self._tensor("wo", l=i))


def _rotated(ops: Any, heads: Any, cos: Any, sin: Any) -> Any:
    half = heads.shape[-1] // 2
    turned = ops.cat([-heads[..., half:], heads[..., :half]], -1)
    return heads * cos + turned * sin
