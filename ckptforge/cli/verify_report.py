"""What the forward check found, as text for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckptforge.cli.table import table
from ckptforge.spelling import command
from ckptforge.verbs.side_by_side import SideBySide
from ckptforge.verbs.verify import Verification
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.forward.checks import LayerCheck

_SHOWN_LAYERS = 128
_PROMPTS = {"text": "of a text", "ids": "as given", "random": "random"}


def summary(found: Verification) -> list[str]:
    """Sentences after the table, the verdict last."""
    lines = []
    if (end := found.end) is not None:
        noise = ""
        if end.noise is not None:
            noise = f" (ten times the reference's own noise, {end.noise:.1e})"
        lines.append(
            f"logits end to end: relative L2 {end.relative_l2:.1e}, tolerance "
            f"{end.gate:.1e}{noise}; top-1 agreement {end.top1:.1%}, KL {end.kl:.1e}"
        )
    for who, ids in zip(("torch", "mindspore"), found.generated, strict=False):
        lines.append(f"{who} continues: {' '.join(map(str, ids))}")
    lines += [f"experts not reached by any token (not verified): {one}" for one in found.unreached]
    lines += [f"note: {note}" for note in found.notes]
    if found.passed:
        return [*lines, "passed: MindSpore computes what transformers computes"]
    bad = [str(layer.layer) for layer in found.layers if not layer.passed]
    where = f"layers {', '.join(bad)}" if bad else "the logits"
    verdict = f"FAILED: {where} beyond the tolerance; {command('compare')} says what differs"
    return [*lines, verdict]


def likeness(found: SideBySide) -> list[str]:
    """Two models side by side, as lines of text; the last says how it went."""
    lines = [
        f"A  {found.a} ({found.models[0]})",
        f"B  {found.b} ({found.models[1]})",
        f"{counted(found.tokens, 'token')} ({_PROMPTS[found.prompt]}), {found.compute}",
    ]
    if found.layers:
        worst = max(found.layers, key=lambda one: one.relative_l2)
        shown = found.layers if len(found.layers) <= _SHOWN_LAYERS else [worst]
        titles = ["layer", "relative L2 of B against A"]
        lines += ["", table([titles, *([str(s.layer), f"{s.relative_l2:.1e}"] for s in shown)])]
        if len(shown) < len(found.layers):
            lines.append(f"the largest of {counted(len(found.layers), 'layer')}")
    if found.losses is not None:
        a, b = found.losses
        change = [f"{b - a:+.4f}", f"{math.exp(min(b, 700)) - math.exp(min(a, 700)):+.2f}"]
        losses = ["loss", f"{a:.4f}", f"{b:.4f}", change[0]]
        perplexity = [f"{math.exp(min(one, 700)):.2f}" for one in (a, b)]
        names = ["", "A", "B", "difference"]
        lines += ["", table([names, losses, ["perplexity", *perplexity, change[1]]])]
    one = found.logits
    lines += [
        "",
        f"logits: relative L2 {one.relative_l2:.1e}; top-1 agreement {one.top1:.1%}, "
        f"KL {one.kl:.1e}",
    ]
    for who, ids in zip("AB", found.generated, strict=False):
        lines.append(f"{who} continues: {' '.join(map(str, ids))}")
    lines += [f"note: {note}" for note in found.notes]
    return [*lines, _verdict(found)]


def _verdict(found: SideBySide) -> str:
    if not found.passed:
        return "FAILED: not all numbers are finite"
    if found.losses is None:
        return "computed: a single token has no loss"
    a, b = found.losses
    return "computed: the losses are the same" if a == b else f"computed: loss {a:.4f} and {b:.4f}"


def rows(found: Verification) -> list[list[str]]:
    """The table of layers, titles first: the worst token's relative L2, and where there are
    experts the router's; the tolerance of both; tokens that would have chosen other experts within
    the margin and beyond it; the least margin; tokens that reached each expert."""
    routed = any(layer.least_margin is not None for layer in found.layers)
    titles = ["layer", "worst", *(["router"] if routed else []), "tolerance", ""]
    more = ["rerouted", "beyond", "margin", "tokens by expert"] if routed else []
    return [[*titles, *more], *(_row(layer, routed) for layer in found.layers)]


def _row(layer: LayerCheck, routed: bool) -> list[str]:
    verdict = "ok" if layer.passed else "FAILED"
    own = layer.least_margin is not None
    router = [f"{layer.router:.1e}" if own else "-"] if routed else []
    errors = [str(layer.layer), f"{layer.worst:.1e}", *router, f"{layer.gate:.0e}", verdict]
    if not routed:
        return errors
    if not own:
        return [*errors, "-", "-", "-", "-"]
    flips = [str(layer.flips_within), str(layer.flips_beyond), f"{layer.least_margin:.1e}"]
    counts = " ".join(map(str, layer.reached[:16])) + (" …" if len(layer.reached) > 16 else "")
    return [*errors, *flips, counts]
