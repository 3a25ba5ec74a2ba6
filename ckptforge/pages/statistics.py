"""The page of `stats`: the numbers of each kind of tensor, and the tensors that stand out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ckptforge.pages.document import section
from ckptforge.pages.histograms import histograms
from ckptforge.pages.kinds import key_of
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.tables import facts, items, table

FIGURES = ("min", "max", "mean", "std", "zeros", "nan", "infinite")
FAR = 6.0  # robust standard deviations from the median of a kind beyond which a tensor stands out
_FEWEST = 5  # tensors of a kind, for one of them to stand out

Figures = Mapping[str, Any]


def sections(found: Mapping[str, Any]) -> Sequence[Markup | None]:
    """The sections of `Statistics` as JSON."""
    kinds, tensors = found["kinds"], found["tensors"]
    about = [
        ("model", found["model"] or "any model"),
        ("layout", found["layout"] or "not recognised"),
        ("tensors", f"{len(tensors):,}"),
        ("numbers", f"{sum(one['count'] for one in kinds.values()):,}"),
    ]
    rows = [
        (kind, f"{one['tensors']:,}", f"{one['count']:,}", *_cells(one))
        for kind, one in kinds.items()
    ]
    bad = [i for i, one in enumerate(kinds.values()) if one["nan"] or one["infinite"]]
    titles = ("kind", "tensors", "numbers", *FIGURES)
    out = outliers(tensors)
    first = {name: tensors[name] for name, _ in out} | dict(tensors)
    whole = [(n, one["dtype"], str(list(one["shape"])), *_cells(one)) for n, one in first.items()]
    marked = [i for i, one in enumerate(first.values()) if one["nan"] or one["infinite"]]
    return [
        section("What it is", facts(about)),
        section("Ranges by kind", ranges(kinds)),
        section("Histograms by kind", histograms(kinds)),
        section("By kind", table(titles, rows, "Figures by kind", range(1, 10), bad=bad)),
        section(
            "Outliers",
            tag("p", "What isn't finite, and tensors unlike the others of their kind.")
            if out
            else None,
            table(("tensor", "why"), out, "Tensors that stand out"),
        ),
        section(
            "By tensor",
            table(
                ("tensor", "dtype", "shape", *FIGURES),
                whole,
                "Figures by tensor",
                range(3, 10),
                [key_of(name) for name in first],
                marked,
            ),
        ),
        section("Skipped", items(found["skipped"])),
        section("Notes", items(found["notes"])),
    ]


def outliers(tensors: Mapping[str, Figures]) -> list[tuple[str, str]]:
    """(tensor, why) of those that stand out, the most first: numbers that aren't finite, then
    deviations and extremes far from the median of their kind, in robust standard deviations
    (1.4826 median absolute deviations) of their logarithms."""
    kinds: dict[str, list[str]] = {}
    for name, one in tensors.items():
        kinds.setdefault(one["kind"], []).append(name)
    found: dict[str, tuple[float, str]] = {}
    for name, one in tensors.items():
        if bad := one["nan"] + one["infinite"]:
            found[name] = (math.inf, f"{bad:,} of {one['count']:,} aren't finite")
    for names in kinds.values():
        for what, figure in (("standard deviation", _deviation), ("largest number", _extreme)):
            logs = {n: math.log(v) for n in names if (v := figure(tensors[n])) > 0}
            if len(logs) < _FEWEST:
                continue
            middle = median(logs.values())
            spread = 1.4826 * median(abs(one - middle) for one in logs.values())
            for name, log in logs.items():
                far = abs(log - middle) / max(spread, 0.02)
                if far > FAR and far > found.get(name, (0.0, ""))[0]:
                    times = math.exp(log - middle)
                    found[name] = (far, f"its {what} is {times:.3g} times the median of its kind")
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    return [(name, why) for name, (_, why) in ranked]


def ranges(kinds: Mapping[str, Figures]) -> Markup:
    """Minimum to maximum, and mean ± standard deviation, of each kind on one scale, which is
    linear up to the median deviation and logarithmic beyond."""
    finite = {kind: one for kind, one in kinds.items() if _number(one["min"]) is not None}
    deviations = [one["std"] for one in finite.values() if one["std"] > 0]
    if not finite:
        return Markup()
    unit = median(deviations) if deviations else 1.0
    most = max(max(abs(one["min"]), abs(one["max"])) for one in finite.values()) or unit

    def x(value: float) -> float:
        long = math.log1p(abs(value) / unit) / math.log1p(most / unit)
        return round(500 + math.copysign(490 * min(long, 1), value), 1)

    rows = []
    scale = f"{-most:.3g} … 0 … {most:.3g}"
    for kind, one in finite.items():
        low, high, mean, std = (one[key] for key in ("min", "max", "mean", "std"))
        left, right = x(max(mean - std, low)), x(min(mean + std, high))
        said = f"{kind}: {low:.3g} to {high:.3g}, mean {mean:.3g}, standard deviation {std:.3g}"
        picture = tag(
            "svg",
            tag("line", x1=500, x2=500, y1=0, y2=20, class_="axis"),
            tag("line", x1=x(low), x2=x(high), y1=10, y2=10, class_="whisker"),
            tag("rect", x=left, width=max(round(right - left, 1), 2), y=4, height=12, class_="c0"),
            viewBox="0 0 1000 20",
            preserveAspectRatio="none",
            role="img",
            aria_label=said,
            data_tip=said,
        )
        rows.append(
            tag(
                "tr", tag("th", kind, scope="row"), tag("td", picture, class_="strip", data_t=scale)
            )
        )
    head = tag(
        "tr",
        tag("th", "kind", scope="col"),
        tag("th", scale, scope="col"),
    )
    caption = "Line: minimum to maximum. Bar: mean ± standard deviation. One scale for all kinds."
    made = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", rows), class_="strips"
    )
    return joined(made)


def _cells(one: Figures) -> list[str]:
    made = []
    for key in FIGURES:
        value = one[key]
        made.append(f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}")
    return made


def _number(value: object) -> float | None:
    """A figure that is a number: those of nothing are NaN, in JSON a text."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _deviation(one: Figures) -> float:
    return _number(one["std"]) or 0.0


def _extreme(one: Figures) -> float:
    return max(abs(_number(one["min"]) or 0.0), abs(_number(one["max"]) or 0.0))
