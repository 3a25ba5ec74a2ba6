"""Dots by layer on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from ckptforge.pages.markup import Markup, joined, tag

_WIDTH, _HEIGHT, _LEFT = 700, 250, 90
_LOW, _HIGH = -9, 1  # powers of ten that the chart reaches
_LABELS = 8  # layers that are named, about


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a layer: what hovering says, and whether it is `fine`."""

    layer: int
    value: float
    tip: str
    fine: bool = True


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of all layers. `look` is a class of the style: `dot`, or `ring` for the second."""

    name: str
    dots: Sequence[Dot]
    look: str = "dot"


def chart(series: Sequence[Series], said: str, gate: float | None = None) -> Markup:
    """The dots of every series, a line at the tolerance `gate`, if any, and what is what."""
    layers = sorted({dot.layer for one in series for dot in one.dots})
    step = _WIDTH / len(layers)
    at = {layer: round(_LEFT + step * (k + 0.5), 1) for k, layer in enumerate(layers)}
    bottom, right = _y(10.0**_LOW), _LEFT + _WIDTH
    grid = [
        joined(
            tag("line", x1=_LEFT, x2=right, y1=_y(10.0**n), y2=_y(10.0**n), class_="axis"),
            tag("text", f"1e{n}", x=_LEFT - 8, y=_y(10.0**n) + 5, class_="label"),
        )
        for n in range(_LOW + 1, _HIGH, 2)
    ]
    named = layers[:: math.ceil(len(layers) / _LABELS)]
    names = [tag("text", str(n), x=at[n], y=bottom + 24, class_="label middle") for n in named]
    title = tag("text", "layer", x=_LEFT - 8, y=bottom + 24, class_="label")
    line = None
    if gate is not None:
        y = _y(gate)
        line = tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="gate", stroke_dasharray="6")
    drawn = [
        tag(
            "circle",
            cx=at[dot.layer],
            cy=_y(dot.value),
            r=4.5 if dot.fine else 7,
            class_=one.look if dot.fine else f"{one.look} failed",
            data_tip=f"layer {dot.layer}: {dot.tip}",
        )
        for one in series
        for dot in one.dots
    ]
    box = f"0 0 {right + 10} {bottom + 34}"
    picture = tag(
        "svg",
        *(grid, names, title, line, drawn),
        viewBox=box,
        role="img",
        aria_label=said,
        class_="chart",
    )
    return joined(_legend(series, gate), picture)


def _legend(series: Sequence[Series], gate: float | None) -> Markup:
    marks = {"dot": "● ", "ring": "○ "}
    said = [tag("span", marks[one.look], one.name, class_=f"mark-{one.look}") for one in series]
    if any(not dot.fine for one in series for dot in one.dots):
        said.append(tag("span", "⬤ failed", class_="mark-failed"))
    if gate is not None:
        said.append(tag("span", f"┄ tolerance {gate:.0e}", class_="mark-failed"))
    return tag("p", said, class_="marks")


def _y(value: float) -> float:
    power = float(_HIGH)
    if math.isfinite(value):
        power = math.log10(value) if value > 0 else _LOW
    return round(10 + _HEIGHT * (_HIGH - min(max(power, _LOW), _HIGH)) / (_HIGH - _LOW), 1)
