"""The page of `verify`: the error of each layer against its tolerance, and what experts saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.document import section
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.strips import Strip, strip_table
from ckptforge.pages.tables import facts, items, table
from ckptforge.wording import counted

_WIDTH, _HEIGHT, _LEFT = 720, 220, 60
_LOW, _HIGH = -9.0, 1.0  # powers of ten that the chart reaches

Layer = Mapping[str, Any]
Dot = tuple[int, float, str, bool]  # layer, error, what hovering says, whether it is fine


def sections(found: Mapping[str, Any]) -> Sequence[Markup | None]:
    """The sections of a `Verification` as JSON."""
    layers, end = found["layers"], found["end"]
    about = [
        ("transformers", found["hf_dir"]),
        ("MindSpore", f"{found['ms']} ({found['layout']})"),
        ("computed", f"{counted(found['tokens'], 'token')}, {found['device']}, {found['compute']}"),
    ]
    if end is not None:
        about += [
            (
                "logits end to end",
                f"relative L2 {end['relative_l2']:.1e}, tolerance {end['gate']:.1e}",
            ),
            ("the same first choice", f"{end['top1']:.1%} of tokens, KL {end['kl']:.1e}"),
        ]
    who = zip(("torch", "MindSpore"), found["generated"], strict=False)
    notes = [
        *(f"{name} continues: {' '.join(map(str, ids))}" for name, ids in who),
        *found["notes"],
    ]
    reached = [layer for layer in layers if layer["reached"]]
    return [
        section("What was computed", facts(about)),
        section("Error by layer", _errors(layers) if layers else None),
        section("Tokens by expert", _coverage(reached) if reached else None),
        section("Experts that no token reached", items(found["unreached"])),
        section("Layers", _table(layers)),
        section("Notes", items(notes)),
    ]


def passed(layer: Layer) -> bool:
    """Whether both errors of a layer are within its tolerance."""
    worst = max(layer["worst"], layer["router"])
    return bool(worst <= layer["gate"] and not layer["flips_beyond"])


def _y(value: float) -> float:
    power = _HIGH if not math.isfinite(value) else math.log10(value) if value > 0 else _LOW
    return round(10 + _HEIGHT * (_HIGH - min(max(power, _LOW), _HIGH)) / (_HIGH - _LOW), 1)


def _errors(layers: Sequence[Layer]) -> Markup:
    """The worst token of each layer on a logarithmic scale, with the tolerance as a line."""
    gate = layers[0]["gate"]
    dots = [
        (
            one["layer"],
            one["worst"],
            f"{one['worst']:.2e}, tolerance {one['gate']:.0e}",
            passed(one),
        )
        for one in layers
    ]
    return errors(dots, "Relative L2 of the worst token", gate)


def errors(dots: Sequence[Dot], what: str, gate: float | None) -> Markup:
    """A dot for each layer on a logarithmic scale, and a line at the tolerance `gate`, if any."""
    step = _WIDTH / len(dots)
    right = _LEFT + _WIDTH
    scale = [
        joined(
            tag("line", x1=_LEFT, x2=right, y1=_y(10.0**n), y2=_y(10.0**n), class_="axis"),
            tag("text", f"1e{n}", x=_LEFT - 6, y=_y(10.0**n) + 4, class_="label"),
        )
        for n in range(-8, 2, 2)
    ]
    drawn = [
        tag(
            "circle",
            cx=round(_LEFT + step * (k + 0.5), 1),
            cy=_y(value),
            r=5 if good else 8,
            class_=f"dot {'' if good else 'failed'}",
            data_tip=f"layer {layer}: {tip}",
        )
        for k, (layer, value, tip, good) in enumerate(dots)
    ]
    line, dashed = None, ""
    if gate is not None:
        at = _y(gate)
        line = tag("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="gate", stroke_dasharray="4")
        dashed = "; the dashed line is the tolerance"
    worst = max(dots, key=lambda dot: dot[1])
    said = f"the largest error is {worst[1]:.1e}, of layer {worst[0]}"
    box = f"0 0 {right + 10} {_HEIGHT + 20}"
    return joined(
        tag("p", f"{what}; {said}{dashed}."),
        tag("svg", scale, line, drawn, viewBox=box, role="img", aria_label=said, class_="chart"),
    )


def _coverage(layers: Sequence[Layer]) -> Markup:
    """A row for each layer, a cell for each expert: darker for more tokens."""
    most = max(count for layer in layers for count in layer["reached"]) or 1
    experts = max(len(layer["reached"]) for layer in layers)
    strips = []
    for layer in layers:
        counts = [*layer["reached"], *[0] * (experts - len(layer["reached"]))]
        none = counts.count(0)
        strips.append(
            Strip(
                cells=(
                    f"layer {layer['layer']}",
                    f"{min(counts)} to {max(counts)}",
                    f"{none} without",
                ),
                tips=[counted(count, "token") for count in counts],
                colours=[f"h{math.ceil(6 * n / most) + 1}" if n else "none" for n in counts],
                of=range(experts),
                said=f"layer {layer['layer']}: {none} of {experts} experts without tokens",
            )
        )
    titles = ("layer", "tokens", "experts", f"experts 0 to {experts - 1}")
    names = [f"expert {n}" for n in range(experts)]
    return strip_table(titles, strips, names, "Tokens that reached each expert", "experts")


def _table(layers: Sequence[Layer]) -> Markup:
    rows = [
        (
            str(layer["layer"]),
            *(f"{layer[key]:.1e}" for key in ("worst", "router", "gate")),
            "ok" if passed(layer) else "FAILED",
            *(str(layer[key]) for key in ("flips_within", "flips_beyond")),
            "" if layer["least_margin"] is None else f"{layer['least_margin']:.1e}",
        )
        for layer in layers
    ]
    titles = ("layer", "worst", "router", "tolerance", "", "rerouted", "beyond", "least margin")
    bad = [i for i, layer in enumerate(layers) if not passed(layer)]
    return table(titles, rows, "Errors, routing and margins by layer", range(1, 8), bad=bad)
