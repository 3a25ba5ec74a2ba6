"""Histograms of kinds of tensors: a column for each sign and power of two, with zero in the
middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.markup import Markup
from ckptforge.pages.strips import NOTHING, Strip, strip_table

_MOST = 40  # powers of two on each side of zero
_FEW = 0.002  # the share of a kind's numbers that may be too small for a column of their own

Figures = Mapping[str, Any]


def histograms(kinds: Mapping[str, Figures]) -> Markup:
    """The histograms of all kinds over the same columns."""
    shown = {kind: one for kind, one in kinds.items() if one["histogram"] or one["zeros"]}
    bins = [bin_ for one in shown.values() for bin_ in one["histogram"]]
    if not bins:
        return Markup()
    high = max(bin_["exponent"] for bin_ in bins)
    low = max(min(map(_lowest, shown.values()), default=high), high - _MOST + 1)
    powers = range(low, high + 1)
    names = [
        *(f"{-(2.0 ** (n + 1)):.3g} to {-(2.0**n):.3g}" for n in reversed(powers)),
        f"zero, and between {-(2.0**low):.3g} and {2.0**low:.3g}",
        *(f"{2.0**n:.3g} to {2.0 ** (n + 1):.3g}" for n in powers),
    ]
    edge = 2.0 ** (high + 1)
    return strip_table(
        ("kind", "numbers", "zeros", f"{-edge:.3g} … 0 … {edge:.3g}, by powers of two"),
        [_strip(kind, one, powers) for kind, one in shown.items()],
        names,
        "How numbers are distributed. A column is a power of two; grey is zero and what is smaller "
        f"than {2.0**low:.3g}. The highest column of each kind is as high as its row.",
        "histograms",
    )


def _lowest(one: Figures) -> int:
    """The exponent below which few of a kind's numbers are."""
    left = _FEW * one["count"]
    for bin_ in one["histogram"]:
        left -= bin_["negative"] + bin_["positive"]
        if left < 0:
            return int(bin_["exponent"])
    return 1024  # none


def _strip(kind: str, one: Figures, powers: Sequence[int]) -> Strip:
    by_power = {bin_["exponent"]: bin_ for bin_ in one["histogram"]}
    nothing = {"negative": 0, "positive": 0}
    side = {k: [by_power.get(n, nothing)[k] for n in powers] for k in ("negative", "positive")}
    small = one["zeros"] + sum(
        bin_["negative"] + bin_["positive"] for power, bin_ in by_power.items() if power < powers[0]
    )
    counts = [*reversed(side["negative"]), small, *side["positive"]]
    most, total = max(counts) or 1, one["count"]
    middle = len(powers)
    return Strip(
        cells=(kind, f"{total:,}", f"{one['zeros']:,}"),
        tips=[f"{kind}: {count:,} numbers, {count / total:.3%}" for count in counts],
        colours=["w" if i == middle else "c0" for i in range(len(counts))],
        of=[i if count else NOTHING for i, count in enumerate(counts)],
        heights=[max(count / most, 0.03) for count in counts],
        said=f"{kind}: a histogram of {total:,} numbers",
        key=kind,
    )
