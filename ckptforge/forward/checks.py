"""The checks of one layer and of the whole, and their tolerances.

Gates, for float32 over the stored weights: each layer, given the reference's input, to a relative
L2 of 2e-5 for every token; the logits to 1e-4, or ten times the reference's own noise (its two
attention implementations) where that is more. Half precision has wider ones. Tokens take the
reference's experts with their own gates (routing replay); a token that would have chosen others is
let off only where the router's choice was closer than twice the difference of its logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforge.forward.mindspore_forward import MindSporeForward
from ckptforge.forward.network import LayerOutput
from ckptforge.forward.precision import Precision
from ckptforge.forward.routing import Route, Router
from ckptforge.forward.torch_forward import TorchForward

Array = NDArray[Any]
_NOISE_FACTOR = 10.0


@dataclass(frozen=True)
class LayerCheck:
    """One layer with the reference's input and experts: the worst token's relative L2, the router
    logits' (of the worst token, against the largest), the tolerance of both (`gate`), tokens that
    would have chosen other experts within and beyond the margin, the least router margin, and how
    many tokens reached each expert. A layer without experts has no margin, and reaches none."""

    layer: int
    worst: float
    router: float
    gate: float
    flips_within: int
    flips_beyond: int
    least_margin: float | None
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


def layer_check(
    i: int, gate: float, expected: LayerOutput, got: LayerOutput, router: Router | None = None
) -> LayerCheck:
    """One layer: what both sides made of the reference's input, with its experts."""
    width = expected.hidden.shape[-1]
    a, b = (side.hidden.reshape(-1, width).astype(np.float64) for side in (expected, got))
    norms = np.linalg.norm(a, axis=1)
    error = np.linalg.norm(a - b, axis=1) / np.where(norms > 0, norms, 1.0)
    error = np.where(np.isfinite(error), error, np.inf)
    worst = float(error.max())
    if router is None or expected.route is None or got.route is None:
        lost = expected.route is not None or got.route is not None
        return LayerCheck(i, math.inf if lost else worst, 0.0, gate, 0, 0, None, [])
    return _routed(i, worst, gate, expected.route, got.route, router)


def _routed(
    i: int, worst: float, gate: float, expected: Route, got: Route, router: Router
) -> LayerCheck:
    flipped = (np.sort(expected.experts, 1) != np.sort(got.experts, 1)).any(axis=1)
    margins = router.margins(expected.ranked)
    allowed = margins <= 2 * np.abs(expected.ranked - got.ranked).max(axis=1)
    return LayerCheck(
        i,
        worst,
        max(_apart(expected.logits, got.logits), _apart(expected.ranked, got.ranked)),
        gate,
        int(np.count_nonzero(flipped & allowed)),
        int(np.count_nonzero(flipped & ~allowed)),
        float(margins.min()),
        np.bincount(expected.experts.reshape(-1), minlength=router.experts).tolist(),
    )


def _apart(expected: Array, got: Array) -> float:
    """The worst token's difference, against the largest token."""
    figures = expected.astype(np.float64)
    apart = np.linalg.norm(figures - got, axis=1).max()
    found = float(apart / (np.linalg.norm(figures, axis=1).max() or 1.0))
    return found if np.isfinite(found) else math.inf


def end_check(
    torch_side: TorchForward,
    mindspore_side: MindSporeForward,
    precision: Precision,
    ids: Array,
    routes: Sequence[Route | None],
    given: Array,
    running: Array,
) -> EndCheck:
    """The logits of the whole model, by the reference's routes."""
    expected, got = (
        torch_side.head(given).astype(np.float64),
        mindspore_side.head(running).astype(np.float64),
    )
    error = relative(expected, got)
    gate, noise = precision.end_gate, None
    if not error <= gate:
        other = TorchForward(torch_side.weights, "sdpa", precision)
        hidden = other.embed(ids)
        for i, route in enumerate(routes):
            hidden = other.layer(i, hidden, route).hidden
        noise = relative(expected, other.head(hidden).astype(np.float64))
        gate = max(gate, _NOISE_FACTOR * noise)
    p, q = log_softmax(expected), log_softmax(got)
    return EndCheck(
        error,
        gate,
        noise,
        float((expected.argmax(-1) == got.argmax(-1)).mean()),
        float((np.exp(p) * (p - q)).sum(-1).mean()),
    )


def relative(expected: Array, got: Array) -> float:
    """The relative L2 of all numbers; infinite where one isn't finite."""
    error = float(np.linalg.norm(expected - got) / (np.linalg.norm(expected) or 1.0))
    return error if np.isfinite(error) else float("inf")


def log_softmax(logits: Array) -> Array:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


class Sized(Protocol):
    """What a continuation must know of a model: how many layers and positions it has."""

    @property
    def layers(self) -> int:
        """How many layers."""

    @property
    def positions(self) -> int:
        """How many tokens at most."""


def generate(
    side: TorchForward | MindSporeForward, network: Sized, prompt: Array, count: int
) -> list[int]:
    """Greedy continuation, computed again for each token."""
    ids = prompt
    for _ in range(count):
        hidden = side.embed(ids[:, -network.positions :])
        for i in range(network.layers):
            hidden = side.layer(i, hidden).hidden
        ids = np.concatenate([ids, side.head(hidden[:, -1:]).argmax(-1)], axis=1)
    return [int(token) for token in ids[0, prompt.shape[1] :]]
