"""Spherical interpolation of two tensors, each taken as one vector (Shoemake, "Animating rotation
with quaternion curves", 1985; the formula for near-parallel vectors is mergekit's)."""

from __future__ import annotations

import math

from ckptforge.examine.angles import Products
from ckptforge.surgery.sums import Mix, weighted
from ckptforge.values import Term

_PARALLEL = 0.9995  # a cosine above which the arc is taken as straight


def slerp(mix: Mix, found: Products) -> tuple[Term, ...]:
    """The second weight's share of the arc from the first value to the second; `found` are the
    products of both."""
    return tuple(weighted(mix.values, slerp_weights(mix.weights[1], found)))


def slerp_weights(share: float, found: Products) -> tuple[float, float]:
    """The weights of two vectors, `share` of the way from the first to the second. Where one is
    zero, or both are nearly parallel, those of the straight line."""
    first, second, both = found
    norms = math.sqrt(first) * math.sqrt(second)
    cosine = both / norms if norms > 0 and math.isfinite(norms) else math.nan
    if not abs(cosine) <= _PARALLEL:
        return 1 - share, share
    angle = math.acos(cosine)
    return (
        math.sin((1 - share) * angle) / math.sin(angle),
        math.sin(share * angle) / math.sin(angle),
    )
