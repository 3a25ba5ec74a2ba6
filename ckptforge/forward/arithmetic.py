"""What layers are made of, in MindSpore: products with weights that are streamed in, norms, and
activations, in a precision.

Half precision is computed as CPUs do in torch: in float32, each operation's result rounded.
"""

from __future__ import annotations

from typing import Any

from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.weights import Weights


class Arithmetic:
    """Operations on MindSpore's tensors (tokens, numbers); a tensor's name, layer and expert say
    which weights."""

    def __init__(
        self, mindspore: Any, weights: Weights, eps: float, precision: Precision = FLOAT32
    ) -> None:
        self.mindspore, self.weights, self.eps = mindspore, weights, eps
        self.rounded = precision.rounding(mindspore)

    def tensor(self, name: str, layer: int | None = None) -> Any:
        """A logical tensor, rounded."""
        return self.rounded(self.mindspore.Tensor(self.weights.float32(name, layer)))

    def dense(
        self,
        states: Any,
        name: str,
        layer: int | None = None,
        expert: int | None = None,
        bias: str | None = None,
    ) -> Any:
        """(tokens, rows): states · weightᵀ, and the bias where the model has one."""
        made = self.rounded(self._product(states, name, layer, expert, self.rounded))
        if bias is not None and self.weights.has(bias, layer):
            made = self.rounded(made + self.tensor(bias, layer).reshape(-1))
        return made

    def dense_float32(self, states: Any, name: str, layer: int) -> Any:
        """The same, the weights and the result not rounded."""
        return self._product(states, name, layer, None, lambda values: values)

    def _product(
        self, states: Any, name: str, layer: int | None, expert: int | None, rounded: Any
    ) -> Any:
        ms, ops = self.mindspore, self.mindspore.ops
        blocks = self.weights.blocks(name, states.shape[1], layer, expert)
        return ops.cat([ops.dense(states, rounded(ms.Tensor(block))) for block in blocks], -1)

    def norm(
        self, states: Any, name: str, layer: int | None = None, eps: float | None = None
    ) -> Any:
        """The root mean square norm over the last axis."""
        mean = (states * states).mean(-1, keep_dims=True)
        scale = self.mindspore.ops.rsqrt(mean + (self.eps if eps is None else eps))
        return self.rounded(self.rounded(states * scale) * self.tensor(name, layer))

    def gated(self, states: Any, prefix: str, layer: int, expert: int | None = None) -> Any:
        """w2 · (silu(w1 · states) ⊙ (w3 · states)), of the matrices that `prefix` stands before."""
        gate, up = (self.dense(states, prefix + name, layer, expert) for name in ("w1", "w3"))
        inner = self.rounded(self.rounded(self.mindspore.ops.silu(gate)) * up)
        return self.dense(inner, prefix + "w2", layer, expert)
