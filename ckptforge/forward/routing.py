"""Which experts a token takes, and how much of each: sizes and constants, without weights.

Sources: transformers 5, the routers of modeling_mixtral.py, modeling_qwen3_moe.py (softmax) and
modeling_deepseek_v3.py (sigmoid, a bias on the choice, groups of experts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import ConfigError, shown
from ckptforge.tables.constants import Used

Array = NDArray[np.float32]


class Route(NamedTuple):
    """What a router made of tokens: its logits and the figures that it chose by, both (tokens,
    experts); the experts that it chose, and their gates, both (tokens, top_k)."""

    logits: Array
    ranked: Array
    experts: NDArray[np.int64]
    gates: Array


@dataclass(frozen=True)
class Router:
    """Scores are a softmax of the logits, or their `sigmoid`; gates are the scores of the experts
    that were taken, `normalised` to a sum of 1, and then multiplied by `scale`. Of `groups` of
    experts `groups_taken` take part in a token's choice."""

    experts: int
    top_k: int
    sigmoid: bool
    normalised: bool
    groups: int
    groups_taken: int
    scale: float

    def ranked(self, logits: Array, bias: Array | None) -> Array:
        """The figures that experts are chosen by, (tokens, experts): the logits where the order is
        theirs, else the scores and the bias."""
        if not self.sigmoid:
            return logits if bias is None else logits + bias
        with np.errstate(over="ignore"):
            scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        return scores if bias is None else scores + bias

    def chosen(self, ranked: Array) -> NDArray[np.int64]:
        """(tokens, top_k): the experts that a token takes, the best first."""
        order = np.argsort(-self._in_groups(ranked), axis=1, kind="stable")
        return order[:, : self.top_k].astype(np.int64)

    def margins(self, ranked: Array) -> NDArray[np.float64]:
        """(tokens,): how close a choice was, the least figure that was taken less the greatest that
        wasn't. No other expert is taken where no figure moves by more than half of that; a group's,
        the sum of two, counts half."""
        margins = _gap(self._in_groups(ranked).astype(np.float64), self.top_k)
        if self.groups > 1:
            by_group = self._of_groups(ranked).astype(np.float64)
            margins = np.minimum(margins, _gap(by_group, self.groups_taken) / 2)
        return margins

    def _of_groups(self, ranked: Array) -> Array:
        """(tokens, groups): the sum of the two best figures of each group."""
        grouped = ranked.reshape(len(ranked), self.groups, -1)
        found: Array = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
        return found

    def _in_groups(self, ranked: Array) -> Array:
        """The figures, -inf where a group takes no part."""
        if self.groups == 1:
            return ranked
        best = np.argsort(-self._of_groups(ranked), axis=1, kind="stable")[:, : self.groups_taken]
        taken = np.zeros((len(ranked), self.groups), bool)
        np.put_along_axis(taken, best, True, axis=1)
        kept = np.repeat(taken, self.experts // self.groups, axis=1)
        return np.where(kept, ranked, np.float32(-np.inf))


def _gap(figures: NDArray[np.float64], taken: int) -> NDArray[np.float64]:
    """The least that is taken less the greatest that isn't; infinite where all are taken."""
    if figures.shape[1] <= taken:
        return np.full(len(figures), np.inf)
    ordered = np.sort(figures, axis=1)[:, ::-1]
    return np.asarray(ordered[:, taken - 1] - ordered[:, taken])


def router_of(used: Used, experts: int, where: str) -> Router:
    """The router that a config.json describes. Raises `ConfigError` for figures that don't fit."""

    def count(key: str, default: int, most: int) -> int:
        found = used.value(key) if key in used.constants.defaults else default
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found <= most:
            raise ConfigError(
                f"{where}: {key} is {shown(found)}, expected a number from 1 to {most}."
            )
        return found

    defaults = used.constants.defaults
    groups = count("n_group", 1, experts)
    if experts % groups:
        raise ConfigError(f"{where}: n_group is {groups}, which doesn't divide {experts} experts.")
    scoring = defaults.get("scoring_func", "softmax")
    if used.config.get("scoring_func", scoring) != scoring:
        raise ConfigError(
            f"{where}: scoring_func is {shown(used.config['scoring_func'])}, but transformers "
            f"computes {scoring}."
        )
    scale = used.value("routed_scaling_factor") if "routed_scaling_factor" in defaults else 1.0
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConfigError(f"{where}: routed_scaling_factor is {shown(scale)}, expected a number.")
    return Router(
        experts=experts,
        top_k=count("num_experts_per_tok", 0, experts),
        sigmoid=scoring == "sigmoid",
        normalised=bool(used.value("norm_topk_prob")) if "norm_topk_prob" in defaults else True,
        groups=groups,
        groups_taken=count("topk_group", 1, groups),
        scale=float(scale),
    )
