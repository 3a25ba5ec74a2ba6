"""A minimal network in MindSpore, its weights streamed in one matrix at a time, stored as they
are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.arithmetic import Arithmetic
from ckptforge.forward.attention import attention
from ckptforge.forward.experts import Experts, GroupedExperts, LoopExperts
from ckptforge.forward.network import LayerOutput, Network
from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.routing import Route, Router
from ckptforge.forward.weights import Weights

Array = NDArray[np.float32]
_SUM_FLOOR = 1e-20  # DeepSeek's, so that a sum of 0 doesn't divide


class MindSporeForward:
    """`embed`, `layer` and `head` of a model; numpy in and out."""

    def __init__(
        self,
        mindspore: Any,
        weights: Weights,
        network: Network,
        precision: Precision = FLOAT32,
        experts: Experts | None = None,
    ) -> None:
        self.mindspore, self.weights, self.network = mindspore, weights, network
        self.arithmetic = Arithmetic(mindspore, weights, network.eps, precision)
        self.experts = experts or LoopExperts(self.arithmetic)

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
        dtype = getattr(mindspore, precision.name)
        experts = network.router.experts if network.router is not None else 0
        grouped = GroupedExperts(mindspore, weights, experts, dtype, matmul) if experts else None
        return cls(mindspore, weights, network, precision, grouped)

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        ms = self.mindspore
        unique, inverse = np.unique(tokens, return_inverse=True)
        rows = self.arithmetic.rounded(ms.Tensor(self.weights.rows("embedding", unique)))
        found = ms.ops.gather(rows, ms.Tensor(inverse.reshape(-1).astype(np.int32)), 0)
        made: Array = found.asnumpy().reshape(*tokens.shape, -1)
        return made

    def layer(self, i: int, hidden: Array, experts: NDArray[np.int64] | None = None) -> LayerOutput:
        """What layer `i` makes of its input; `experts` are taken instead of those chosen."""
        a = self.arithmetic
        batch, length, width = hidden.shape
        states = self.mindspore.Tensor(hidden.reshape(-1, width))
        normed = a.norm(states, "attention_norm", i)
        mixed = attention(a, self.network, i, normed, batch, length)
        states = a.rounded(states + mixed)
        made, route = self._feed_forward(i, a.norm(states, "ffn_norm", i), experts)
        states = a.rounded(states + made)
        return LayerOutput(states.asnumpy().reshape(batch, length, width), route)

    def _feed_forward(
        self, i: int, normed: Any, experts: NDArray[np.int64] | None
    ) -> tuple[Any, Route | None]:
        a, router = self.arithmetic, self.network.router
        if router is None or not self.weights.has("router", i):
            prefix = "dense_" if self.weights.has("dense_w1") else ""
            return a.gated(normed, prefix, i), None
        # a router of sigmoids is kept in float32 by transformers
        dense = a.dense_float32 if router.sigmoid else a.dense
        logits = dense(normed, "router", i)
        made = logits.asnumpy()
        bias = self.weights.float32("router_bias", i) if self.weights.has("router_bias") else None
        ranked = router.ranked(made, bias)
        chosen = router.chosen(ranked)
        taken = chosen if experts is None else experts
        gates = self._gates(router, logits, taken)
        mixed = self.experts(i, normed, taken, gates)
        if self.weights.has("shared_w1", i):
            mixed = a.rounded(mixed + a.gated(normed, "shared_", i))
        return mixed, Route(made, ranked, chosen, gates.asnumpy())

    def _gates(self, router: Router, logits: Any, taken: NDArray[np.int64]) -> Any:
        """(tokens, top_k): how much of each expert is taken."""
        ops = self.mindspore.ops
        scores = ops.sigmoid(logits) if router.sigmoid else ops.softmax(logits, -1)
        gates = ops.gather_elements(scores, 1, self.mindspore.Tensor(taken))
        if router.normalised:
            gates = gates / (gates.sum(-1, keepdims=True) + (_SUM_FLOOR if router.sigmoid else 0))
        return gates * router.scale

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head."""
        a = self.arithmetic
        states = a.norm(self.mindspore.Tensor(hidden.reshape(-1, hidden.shape[-1])), "norm")
        logits = a.dense(states, "lm_head" if self.weights.has("lm_head") else "embedding")
        made: Array = logits.asnumpy().reshape(*hidden.shape[:-1], -1)
        return made
