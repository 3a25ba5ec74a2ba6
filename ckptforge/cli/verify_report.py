"""What the forward check found, as text for a terminal and as one HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckptforge.spelling import command
from ckptforge.verbs.verify import Verification
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.forward.checks import LayerCheck

_WIDTH, _HEIGHT, _LEFT, _TOP = 720, 220, 60, 14


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
    """The table of layers, titles first: the worst token's relative L2, the router's, the tolerance
    of both; tokens that would have chosen other experts within the margin and beyond it; the least
    margin; tokens that reached each expert."""
    titles = ["layer", "worst", "router", "tolerance", "", "rerouted", "beyond", "margin"]
    made = [[*titles, "tokens by expert"]]
    for layer in found.layers:
        errors = [f"{layer.worst:.1e}", f"{layer.router:.1e}", f"{layer.gate:.0e}"]
        flips = [str(layer.flips_within), str(layer.flips_beyond), f"{layer.least_margin:.1e}"]
        verdict = "ok" if layer.passed else "FAILED"
        counts = " ".join(map(str, layer.reached[:16])) + (" …" if len(layer.reached) > 16 else "")
        made.append([str(layer.layer), *errors, verdict, *flips, counts])
    return made


def html_page(found: Verification) -> str:
    """One page: the verdict, the table, error by layer, and how many tokens reached each expert."""
    body = "".join(f"<p>{html.escape(line)}</p>" for line in reversed(summary(found)))
    titles, *table = rows(found)
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    rows_of_cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table)
    lines = "".join(f"<tr>{row}</tr>" for row in rows_of_cells)
    heading = html.escape(
        f"{found.hf_dir} and {found.ms} ({found.layout}, {found.device}, {found.compute}, "
        f"{counted(found.tokens, 'token')})"
    )
    style = (
        "body{font:14px sans-serif;margin:2em;max-width:60em}td,th{padding:2px "
        "10px;text-align:right;border-bottom:1px solid #ddd}"
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>ckptforge verify</title><style>{style}</style>"
        f"<h1>Forward check</h1><p>{heading}</p>{body}"
        f"<h2>Error by layer</h2>{_errors(found.layers)}"
        f"<h2>Tokens by expert</h2>{_coverage(found.layers)}"
        f"<h2>Layers</h2><table><tr>{cells}</tr>{lines}</table></html>\n"
    )


def _errors(layers: Sequence[LayerCheck]) -> str:
    """Worst token of each layer on a logarithmic scale, with the tolerance as a line."""
    low, high = -9.0, 1.0

    def y(value: float) -> float:
        place = math.log10(value) if 0 < value < math.inf else low if value == 0 else high
        return _TOP + _HEIGHT * (high - min(max(place, low), high)) / (high - low)

    step = _WIDTH / len(layers)
    grid = "".join(
        f"<line x1='{_LEFT}' x2='{_LEFT + _WIDTH}' y1='{y(10.0**power):.1f}' "
        f"y2='{y(10.0**power):.1f}' stroke='#ddd'/><text x='{_LEFT - 6}' "
        f"y='{y(10.0**power) + 4:.1f}' text-anchor='end' font-size='11'>1e{power}</text>"
        for power in range(-8, 2, 2)
    )
    dots = "".join(
        f"<circle cx='{_LEFT + step * (k + 0.5):.1f}' cy='{y(layer.worst):.1f}' r='4' "
        f"fill='{'#2a7' if layer.passed else '#c33'}'><title>layer {layer.layer}: "
        f"{layer.worst:.2e}</title></circle>"
        for k, layer in enumerate(layers)
    )
    at = f"{y(layers[0].gate):.1f}"
    gate = (
        f"<line x1='{_LEFT}' x2='{_LEFT + _WIDTH}' y1='{at}' y2='{at}' stroke='#c33' "
        "stroke-dasharray='4'/>"
    )
    return (
        f"<svg width='{_LEFT + _WIDTH + 10}' height='{_TOP * 2 + _HEIGHT}' "
        f"role='img'>{grid}{gate}{dots}</svg>"
    )


def _coverage(layers: Sequence[LayerCheck]) -> str:
    """A row for each layer, a cell for each expert: darker for more tokens, red for none."""
    cell = max(4, min(28, _WIDTH // max(1, len(layers[0].reached))))
    most = max((count for layer in layers for count in layer.reached), default=1) or 1
    cells = "".join(
        f"<rect x='{_LEFT + e * cell}' y='{k * cell}' width='{cell - 1}' height='{cell - 1}' "
        f"fill='{'#c33' if not count else f'rgba(34,119,170,{0.15 + 0.85 * count / most:.2f})'}'>"
        f"<title>layer {layer.layer}, expert {e}: {counted(count, 'token')}</title></rect>"
        for k, layer in enumerate(layers)
        for e, count in enumerate(layer.reached)
    )
    names = "".join(
        f"<text x='{_LEFT - 6}' y='{k * cell + cell * 0.7:.1f}' text-anchor='end' "
        f"font-size='11'>{layer.layer}</text>"
        for k, layer in enumerate(layers)
    )
    width, height = _LEFT + cell * len(layers[0].reached), cell * len(layers)
    return f"<svg width='{width}' height='{height}' role='img'>{names}{cells}</svg>"
