"""The page of `verify`: the error of each layer against its tolerance, and what experts saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.chart import Dot, Series, chart
from ckptforge.pages.document import section
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.strips import Strip, strip_table
from ckptforge.pages.tables import facts, items, table
from ckptforge.wording import counted

_SHADES = 6  # of the style, for more and more tokens

Layer = Mapping[str, Any]


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
    routed = [layer for layer in layers if layer["least_margin"] is not None]
    return [
        section("What was computed", facts(about)),
        section("Error by layer", _errors(layers) if layers else None),
        section("Tokens by expert", _coverage(reached) if reached else None),
        section("Router margins", _margins(routed) if routed else None),
        section("Experts that no token reached", items(found["unreached"])),
        section("Layers", _table(layers)),
        section("Notes", items(notes)),
    ]


def passed(layer: Layer) -> bool:
    """Whether both errors of a layer are within its tolerance."""
    worst = max(layer["worst"], layer["router"])
    return bool(worst <= layer["gate"] and not layer["flips_beyond"])


def _errors(layers: Sequence[Layer]) -> Markup:
    """The worst token of each layer, and of its router, against the tolerance."""
    gate = layers[0]["gate"]
    made = [Series(name="the layer's output", dots=_dots(layers, "worst"))]
    if routed := [one for one in layers if one["least_margin"] is not None]:
        made.append(Series(name="its router", dots=_dots(routed, "router"), look="ring"))
    worst = max(layers, key=lambda one: one["worst"])
    said = f"the largest is {worst['worst']:.1e}, of layer {worst['layer']}"
    lead = tag("p", f"Relative L2 of the worst token by layer; {said}.")
    return joined(lead, chart(made, said, gate))


def _dots(layers: Sequence[Layer], key: str) -> list[Dot]:
    return [
        Dot(
            layer=one["layer"],
            value=one[key],
            tip=f"{one[key]:.2e}, tolerance {one['gate']:.0e}",
            fine=one[key] <= one["gate"],
        )
        for one in layers
    ]


def _margins(layers: Sequence[Layer]) -> Markup:
    """How close the closest choice of experts was in each layer."""
    dots = [
        Dot(
            layer=one["layer"],
            value=one["least_margin"],
            tip=f"least margin {one['least_margin']:.2e}; {one['flips_within']:,} rerouted within "
            f"it, {one['flips_beyond']:,} beyond",
            fine=not one["flips_beyond"],
        )
        for one in layers
    ]
    least = min(dots, key=lambda dot: dot.value)
    within, beyond = (sum(one[f"flips_{k}"] for one in layers) for k in ("within", "beyond"))
    said = f"the least is {least.value:.1e}, of layer {least.layer}"
    lead = (
        "How far the last expert that was chosen is ahead of the first that wasn't, for the "
        f"closest token of each layer; {said}. {counted(within, 'token')} would have chosen other "
        f"experts where the choice was too close to tell, {counted(beyond, 'token')} elsewhere, "
        "which is a failure."
    )
    return joined(tag("p", lead), chart([Series(name="least margin", dots=dots)], said))


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
                colours=[f"t{math.ceil(_SHADES * n / most)}" if n else "none" for n in counts],
                of=range(experts),
                said=f"layer {layer['layer']}: {none} of {experts} experts without tokens",
            )
        )
    titles = ("layer", "tokens", "experts", f"experts 0 to {experts - 1}")
    names = [f"expert {n}" for n in range(experts)]
    shades = [
        tag("span", f"{math.ceil(most * n / _SHADES):,}", class_=f"key t{n}")
        for n in range(1, _SHADES + 1)
    ]
    legend = tag("p", "Tokens, up to ", shades, " ", tag("span", "none", class_="key none"))
    table_ = strip_table(titles, strips, names, "Tokens that reached each expert", "experts")
    return joined(legend, table_)


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
    titles = (
        "layer",
        "worst",
        "router",
        "tolerance",
        "",
        "rerouted, too close to tell",
        "rerouted otherwise",
        "least margin",
    )
    bad = [i for i, layer in enumerate(layers) if not passed(layer)]
    return table(titles, rows, "Errors, routing and margins by layer", range(1, 8), bad=bad)
