"""DARE: of each input's difference from the base some elements are dropped, by chance, and the
others scaled up (Yu et al., "Language Models are Super Mario", 2023)."""

from __future__ import annotations

import zlib

from ckptforge.steps.masked import Masked
from ckptforge.surgery.sums import Mix, weighted
from ckptforge.values import Fragment, Term, Value


def dare(mix: Mix, density: float, seed: int) -> tuple[Term, ...]:
    """base + scale · Σ weight · mask · (value - base) / density. Which elements are kept depends
    on the seed, the input's number, the tensor's name and the element's place in it alone."""
    assert mix.base is not None
    terms = [*weighted([mix.base], [1.0])]
    for i, (value, weight) in enumerate(zip(mix.values, mix.weights, strict=True)):
        key = (seed, i, zlib.crc32(mix.name.encode()))
        share = mix.scale * weight / density
        kept = [_masked(one, key, density) for one in (value, mix.base)]
        terms += weighted(kept, [share, -share])
    return tuple(terms)


def _masked(value: Value, key: tuple[int, ...], density: float) -> Value:
    def change(fragment: Fragment) -> Fragment:
        step = Masked(key=key, density=density, transfer=fragment.transfer)
        return Fragment(fragment.stored, fragment.transfer, (*fragment.steps, step))

    return value.map(change)
