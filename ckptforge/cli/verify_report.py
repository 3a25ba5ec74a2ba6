"""What the forward check found, as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforge.spelling import command
from ckptforge.verbs.verify import Verification

if TYPE_CHECKING:
    from ckptforge.forward.checks import LayerCheck


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
