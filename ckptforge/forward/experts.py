"""The experts of one layer in MindSpore: a loop over matrices (any device), or one grouped matmul
over GMM weights (Ascend).

Source for the grouped call: MindFormers v1.6.0, `modules/layers.py` (`Linear` with `use_gmm`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.arithmetic import Arithmetic
from ckptforge.forward.weights import Weights


class Experts(Protocol):
    """`states` (tokens, hidden), `chosen`, `gates` (tokens, top_k) → (tokens, hidden)."""

    def __call__(self, i: int, states: Any, chosen: NDArray[np.int64], gates: Any) -> Any:
        """What the experts of layer `i` make of the states."""


class LoopExperts:
    """The reference: each expert that a token reached, one block of a matrix at a time."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def __call__(self, i: int, states: Any, chosen: NDArray[np.int64], gates: Any) -> Any:
        """What the experts of layer `i` make of the states."""
        a, ms, ops = self.arithmetic, self.arithmetic.mindspore, self.arithmetic.mindspore.ops
        out = ops.zeros_like(states)
        for e in np.unique(chosen):
            tokens, places = np.nonzero(chosen == e)
            rows = ms.Tensor(tokens.astype(np.int32))
            down = a.gated(ops.gather(states, rows, 0), "", i, int(e))
            weight = _picked(ms, gates, tokens, places)
            out = a.rounded(out.index_add(0, rows, a.rounded(down * weight)))
        return out


class GroupedExperts:
    """GroupedMatmul over stacks (E, in, out), as MindFormers' inference holds them: tokens sorted
    by expert, and a row of zeros for each expert without tokens, as the kernel refuses empty
    groups.

    `matmul` is MindSpore's primitive, or a stand-in for it. Not run on a device yet.
    """

    def __init__(
        self, mindspore: Any, weights: Weights, experts: int, dtype: Any, matmul: Any = None
    ) -> None:
        self.mindspore, self.weights, self.experts, self.dtype = mindspore, weights, experts, dtype
        self.matmul = matmul or mindspore.ops.auto_generate.GroupedMatmul(
            split_item=3, group_type=0
        )

    def __call__(self, i: int, states: Any, chosen: NDArray[np.int64], gates: Any) -> Any:
        """What the experts of layer `i` make of the states."""
        ms, ops = self.mindspore, self.mindspore.ops
        tokens, places, ends = sort_by_expert(chosen, self.experts)
        padded = ops.cat(
            [states.astype(self.dtype), ops.zeros((1, states.shape[1]), self.dtype)], 0
        )
        sorted_states = ops.gather(padded, ms.Tensor(tokens.astype(np.int32)), 0)
        groups = ms.Tensor(ends, ms.int64)

        def grouped(x: Any, tensor: str) -> Any:
            matrices = [self.weights.float32(tensor, i, e).T for e in range(self.experts)]
            stack = ms.Tensor(np.stack(matrices)).astype(self.dtype)
            return self.matmul([x], [stack], None, None, None, None, None, groups)[0]

        hidden = ops.silu(grouped(sorted_states, "w1")) * grouped(sorted_states, "w3")
        down = grouped(hidden, "w2").astype(states.dtype)
        real = np.flatnonzero(tokens < len(chosen))
        rows = ms.Tensor(tokens[real].astype(np.int32))
        weight = _picked(ms, gates, tokens[real], places[real])
        return ops.zeros_like(states).index_add(
            0, rows, ops.gather(down, ms.Tensor(real.astype(np.int32)), 0) * weight
        )


def _picked(ms: Any, gates: Any, tokens: NDArray[np.int64], places: NDArray[np.int64]) -> Any:
    """(rows, 1): the gates of tokens at their places."""
    flat = ms.Tensor((tokens * gates.shape[1] + places).astype(np.int32))
    return ms.ops.gather(gates.reshape(-1), flat, 0).reshape(-1, 1)


def sort_by_expert(
    chosen: NDArray[np.int64], experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(token, place among its top_k, end of each expert's group) of the rows in expert order; an
    expert without tokens gets one row of token `len(chosen)`, which stands for zeros."""
    tokens: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    for e in range(experts):
        token, place = np.nonzero(chosen == e)
        if not len(token):
            token, place = np.array([len(chosen)]), np.array([0])
        tokens.append(token)
        places.append(place)
    ends = np.cumsum([len(token) for token in tokens]).astype(np.int64)
    return np.concatenate(tokens), np.concatenate(places), ends
