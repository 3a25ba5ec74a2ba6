"""A minimal Mixtral in MindSpore, its weights streamed in one matrix at a time, stored as they are.

Half precision is computed as CPUs do in torch: in float32, each operation's result rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.experts import Experts, GroupedExperts, LoopExperts, streamed_dense
from ckptforge.forward.network import LayerOutput, Network, causal_mask, rotary
from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.weights import Weights

Array = NDArray[np.float32]


class MindSporeForward:
    """`embed`, `layer` and `head` of a Mixtral; numpy in and out."""

    def __init__(
        self,
        mindspore: Any,
        weights: Weights,
        network: Network,
        precision: Precision = FLOAT32,
        experts: Experts | None = None,
    ) -> None:
        self.mindspore, self.weights, self.network = mindspore, weights, network
        self.rounded = precision.rounding(mindspore)
        self.experts = experts or LoopExperts(mindspore, weights, self.rounded)

    @classmethod
    def on_ascend(
        cls,
        mindspore: Any,
        weights: Weights,
        network: Network,
        precision: Precision = FLOAT32,
        matmul: Any = None,
    ) -> MindSporeForward:
        """With grouped matmuls over the experts, in the precision's own dtype."""
        grouped = GroupedExperts(
            mindspore,
            weights.in_layout("gmm"),
            network.experts,
            getattr(mindspore, precision.name),
            matmul,
        )
        return cls(mindspore, weights, network, precision, grouped)

    def _tensor(self, tensor: str, **index: int) -> Any:
        return self.rounded(self.mindspore.Tensor(self.weights.float32(tensor, **index)))

    def _dense(self, states: Any, tensor: str, **index: int) -> Any:
        return streamed_dense(self.mindspore, self.weights, self.rounded, states, tensor, **index)

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        ms = self.mindspore
        unique, inverse = np.unique(tokens, return_inverse=True)
        rows = self.rounded(ms.Tensor(self.weights.rows("embedding", unique)))
        found = ms.ops.gather(rows, ms.Tensor(inverse.reshape(-1).astype(np.int32)), 0)
        made: Array = found.asnumpy().reshape(*tokens.shape, -1)
        return made

    def layer(self, i: int, hidden: Array, experts: NDArray[np.int64] | None = None) -> LayerOutput:
        """What layer `i` makes of its input; `experts` are taken instead of those chosen."""
        ms, ops = self.mindspore, self.mindspore.ops
        batch, length, width = hidden.shape
        states = ms.Tensor(hidden.reshape(-1, width))
        states = self.rounded(
            states + self._attention(i, self._norm(states, "attention_norm", l=i), batch, length)
        )
        normed = self._norm(states, "ffn_norm", l=i)
        logits = self._dense(normed, "router", l=i)
        scores = ops.softmax(logits, -1)
        chosen = ops.topk(scores, self.network.top_k)[1].asnumpy().astype(np.int64)
        taken = chosen if experts is None else experts
        gates = ops.gather_elements(scores, 1, ms.Tensor(taken))
        states = self.rounded(
            states + self.experts(i, normed, taken, gates / gates.sum(-1, keepdims=True))
        )
        made = states.asnumpy().reshape(batch, length, width)
        return LayerOutput(made, logits.asnumpy(), chosen)

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head."""
        states = self._norm(self.mindspore.Tensor(hidden.reshape(-1, hidden.shape[-1])), "norm")
        logits = self._dense(states, "lm_head" if self.weights.has("lm_head") else "embedding")
        made: Array = logits.asnumpy().reshape(*hidden.shape[:-1], -1)
        return made

    def _norm(self, states: Any, tensor: str, **index: int) -> Any:
        mean = (states * states).mean(-1, keep_dims=True)
        normed = self.rounded(states * self.mindspore.ops.rsqrt(mean + self.network.eps))
        return self.rounded(normed * self._tensor(tensor, **index))

    def _attention(self, i: int, states: Any, batch: int, length: int) -> Any:
        ms, ops, network = self.mindspore, self.mindspore.ops, self.network
        d, groups = network.head_dim, network.heads // network.kv_heads

        def heads(tensor: str, count: int) -> Any:
            return (
                self._dense(states, tensor, l=i)
                .reshape(batch, length, count, d)
                .transpose(0, 2, 1, 3)
            )

        cos, sin = (self.rounded(ms.Tensor(table)) for table in rotary(network, length))
        query = self._rotated(heads("wq", network.heads), cos, sin)
        key = self._rotated(heads("wk", network.kv_heads), cos, sin)
        value = heads("wv", network.kv_heads)
        key, value = (
            ops.broadcast_to(
                part.reshape(batch, network.kv_heads, 1, length, d),
                (batch, network.kv_heads, groups, length, d),
            ).reshape(batch, network.heads, length, d)
            for part in (key, value)
        )
        scores = self.rounded(
            self.rounded(ops.matmul(query, key.transpose(0, 1, 3, 2))) * (d**-0.5)
        ) + ms.Tensor(causal_mask(network, length))
        mixed = self.rounded(ops.matmul(self.rounded(ops.softmax(scores, -1)), value))
        return self._dense(
            mixed.transpose(0, 2, 1, 3).reshape(batch * length, network.heads * d), "wo", l=i
        )

    def _rotated(self, heads: Any, cos: Any, sin: Any) -> Any:
        half = heads.shape[-1] // 2
        turned = self.mindspore.ops.cat([-heads[..., half:], heads[..., :half]], -1)
        return self.rounded(self.rounded(heads * cos) + self.rounded(turned * sin))
