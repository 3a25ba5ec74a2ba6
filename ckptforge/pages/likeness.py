"""The page of `verify` of two Hugging Face directories: losses, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.chart import Dot, Series, chart
from ckptforge.pages.document import section
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.tables import facts, items, table
from ckptforge.wording import counted

_PROMPTS = {"text": "of a text", "ids": "as given", "random": "at random"}


def sections(found: Mapping[str, Any]) -> Sequence[Markup | None]:
    """The sections of a `SideBySide` as JSON."""
    one = found["logits"]
    about = [
        ("A", f"{found['a']} ({found['models'][0]})"),
        ("B", f"{found['b']} ({found['models'][1]})"),
        (
            "computed",
            f"{counted(found['tokens'], 'token')} {_PROMPTS[found['prompt']]}, {found['compute']}",
        ),
        ("logits", f"relative L2 {one['relative_l2']:.1e}, KL {one['kl']:.1e}"),
        ("the same first choice", f"{one['top1']:.1%} of tokens"),
    ]
    who = zip("AB", found["generated"], strict=False)
    notes = [
        *(f"{name} continues: {' '.join(map(str, ids))}" for name, ids in who),
        *found["notes"],
    ]
    layers = found["layers"]
    titles = ("layer", "relative L2 of B against A")
    rows = [(str(one["layer"]), f"{one['relative_l2']:.1e}") for one in layers]
    apart = table(titles, rows, "How far apart layers are", [1])
    return [
        section("What was computed", facts(about)),
        section("Losses", _losses(found["losses"]) if found["losses"] else None),
        section("Difference by layer", _chart(layers), apart) if layers else None,
        section("Notes", items(notes)),
    ]


def _losses(losses: Sequence[float]) -> Markup:
    a, b = losses
    rows = [
        ("loss", f"{a:.4f}", f"{b:.4f}", _signed(b - a)),
        ("perplexity", *(f"{math.exp(min(one, 700)):.2f}" for one in losses), ""),
    ]
    return table(("", "A", "B", "difference"), rows, "Of the next token, in nats", range(1, 4))


def _signed(number: float) -> str:
    return f"{number:+.4f}" if math.isfinite(number) else f"{number:f}"


def _chart(layers: Sequence[Mapping[str, Any]]) -> Markup:
    dots = [
        Dot(
            layer=one["layer"],
            value=one["relative_l2"],
            tip=f"{one['relative_l2']:.2e}",
            fine=math.isfinite(one["relative_l2"]),
        )
        for one in layers
    ]
    worst = max(dots, key=lambda dot: dot.value)
    said = f"the largest is {worst.value:.1e}, of layer {worst.layer}"
    lead = tag("p", f"Relative L2 of what a layer of B makes, against A's; {said}.")
    return joined(lead, chart([Series(name="B against A", dots=dots)], said))
