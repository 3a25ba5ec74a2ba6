"""The checks of one layer and of the whole, and their tolerances.

Gates, for float32 over the stored weights: each layer, given the reference's input, to a relative
L2 of 2e-5 for every token; the logits to 1e-4, or ten times the reference's own noise (its two
attention implementations) where that is more. Half precision has wider ones. Tokens take the
reference's experts with their own gates (routing replay); a token that would have chosen others is
let off only where the router's choice was closer than twice the difference of its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.mindspore_forward import MindSporeForward
from ckptforge.forward.network import LayerOutput, Network
from ckptforge.forward.precision import Precision
from ckptforge.forward.torch_forward import TorchForward

Array = NDArray[Any]
_NOISE_FACTOR = 10.0


@dataclass(frozen=True)
class LayerCheck:
    """One layer with the reference's input and experts: the worst token's relative L2, the router
    logits' (of the worst token, against the largest), the tolerance of both (`gate`), tokens that
    would have chosen other experts within and beyond the margin, the least router margin, and how
    many tokens reached each expert."""

    layer: int
    worst: float
    router: float
    gate: float
    flips_within: int
    flips_beyond: int
    least_margin: float
    reached: list[int]

    @property
    def passed(self) -> bool:
        """Whether both errors are within the tolerance."""
        return self.worst <= self.gate and self.router <= self.gate and not self.flips_beyond


@dataclass(frozen=True)
class EndCheck:
    """Logits end to end: relative L2 against its tolerance (`gate`), the reference's own noise
    where it was needed, and figures without a tolerance."""

    relative_l2: float
    gate: float
    noise: float | None
    top1: float
    kl: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.relative_l2 <= self.gate


def layer_check(i: int, gate: float, expected: LayerOutput, got: LayerOutput) -> LayerCheck:
    """One layer: what both sides made of the reference's input, with its experts."""
    width = expected.hidden.shape[-1]
    a, b = (side.hidden.reshape(-1, width).astype(np.float64) for side in (expected, got))
    logits, other_logits, experts = expected.logits, got.logits, expected.experts
    norms = np.linalg.norm(a, axis=1)
    error = np.linalg.norm(a - b, axis=1) / np.where(norms > 0, norms, 1.0)
    flipped = (np.sort(experts, 1) != np.sort(got.experts, 1)).any(axis=1)
    ordered = np.sort(logits.astype(np.float64), axis=1)[:, ::-1]
    top_k = experts.shape[1]
    margins = (
        ordered[:, top_k - 1] - ordered[:, top_k]
        if ordered.shape[1] > top_k
        else np.full(len(ordered), np.inf)
    )
    apart = np.linalg.norm(logits.astype(np.float64) - other_logits, axis=1).max()
    router = float(apart / (np.linalg.norm(logits.astype(np.float64), axis=1).max() or 1.0))
    allowed = margins <= 2 * np.abs(logits - other_logits).max(axis=1)
    error = np.where(np.isfinite(error), error, np.inf)
    return LayerCheck(
        i,
        float(error.max()),
        router if np.isfinite(router) else float("inf"),
        gate,
        int(np.count_nonzero(flipped & allowed)),
        int(np.count_nonzero(flipped & ~allowed)),
        float(margins.min()),
        np.bincount(experts.reshape(-1), minlength=logits.shape[1]).tolist(),
    )


def end_check(
    torch_side: TorchForward,
    mindspore_side: MindSporeForward,
    precision: Precision,
    ids: Array,
    routes: Sequence[Array],
    given: Array,
    running: Array,
) -> EndCheck:
    """The logits of the whole model, by the reference's routes."""
    expected, got = (
        torch_side.head(given).astype(np.float64),
        mindspore_side.head(running).astype(np.float64),
    )
    error = _relative(expected, got)
    gate, noise = precision.end_gate, None
    if not error <= gate:
        reference = torch_side.weights
        other = TorchForward(reference, reference.source.config, "sdpa", precision)
        hidden = other.embed(ids)
        for i, experts in enumerate(routes):
            hidden = other.layer(i, hidden, experts).hidden
        noise = _relative(expected, other.head(hidden).astype(np.float64))
        gate = max(gate, _NOISE_FACTOR * noise)
    p, q = _log_softmax(expected), _log_softmax(got)
    return EndCheck(
        error,
        gate,
        noise,
        float((expected.argmax(-1) == got.argmax(-1)).mean()),
        float((np.exp(p) * (p - q)).sum(-1).mean()),
    )


def _relative(expected: Array, got: Array) -> float:
    error = float(np.linalg.norm(expected - got) / (np.linalg.norm(expected) or 1.0))
    return error if np.isfinite(error) else float("inf")


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def generate(
    side: TorchForward | MindSporeForward, network: Network, prompt: Array, count: int
) -> list[int]:
    """Greedy continuation, computed again for each token."""
    ids = prompt
    for _ in range(count):
        hidden = side.embed(ids[:, -network.positions :])
        for i in range(network.layers):
            hidden = side.layer(i, hidden).hidden
        ids = np.concatenate([ids, side.head(hidden[:, -1:]).argmax(-1)], axis=1)
    return [int(token) for token in ids[0, prompt.shape[1] :]]
