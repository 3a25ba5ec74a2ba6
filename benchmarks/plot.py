"""A drawing of time and memory against the size of the model: `python -m benchmarks.plot OUT.svg
RUN.json...` makes one of several runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[float, float]]]

# Okabe and Ito's colours, which most people can tell apart; a second round is dashed.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#a8960c")
WIDTH, HEIGHT, LEFT, TOP, LEGEND, LINE = 360, 400, 56, 40, 370, 17
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Style:
    """How a command is drawn: ckptforge's and cp as lines with dots, MindSpore's as squares, on
    their tip for safetensors."""

    colour: str
    dash: str = ""
    square: str = ""


def draw(results: Iterable[dict[str, Any]], mindspore: Iterable[dict[str, Any]]) -> str:
    """An SVG of two panels, both axes logarithmic: medians of seconds, and the largest peaks in
    MB."""
    results = [row for row in results if "--no-hash" not in row["command"]]
    theirs = [row for row in mindspore if row["command"].startswith("MindSpore")]
    time, memory = _series(results, "seconds", 1), _series(results, "peak", 1e6)
    time |= _series(theirs, "seconds", 1)
    memory = {
        name: points for name, points in memory.items() if not name.startswith("cp")
    } | _series(theirs, "peak", 1e6)
    styles = _styles(time)
    panels = [
        _panel(0, "wall time in s, median", time, styles),
        _panel(1, "peak resident memory in MB", memory, styles),
    ]
    width, height = 2 * (WIDTH + LEFT + 16) + LEGEND, max(HEIGHT, LINE * len(styles)) + TOP + 48
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *panels,
            _legend(styles),
            "</svg>",
            "",
        ]
    )


def _series(rows: Iterable[dict[str, Any]], key: str, unit: float) -> Series:
    """(GB, value) of each command, for the runs that succeeded."""
    found: Series = {}
    for row in rows:
        if row[key]:
            found.setdefault(row["command"], []).append((row["model_bytes"] / 1e9, row[key] / unit))
    return {name: sorted(points) for name, points in found.items()}


def _styles(names: Iterable[str]) -> dict[str, Style]:
    """What MindSpore does has the colour of what does the same here."""
    found: dict[str, Style] = {}
    spare = iter([Style(colour, dash) for dash in ("", "7 3", "1 3") for colour in COLOURS])
    for name in names:
        same = found.get(name.removeprefix("MindSpore ").removesuffix(" safetensors"))
        if name.startswith("cp"):
            found[name] = Style(
                "#999" if "ranks" in name else "black", "2 3" if name.endswith("sync") else ""
            )
        elif name.startswith("MindSpore"):
            found[name] = Style(
                (same or next(spare)).colour,
                square="tip" if name.endswith(" safetensors") else "side",
            )
        else:
            found[name] = next(spare)
    return found


def _panel(column: int, title: str, series: Series, styles: dict[str, Style]) -> str:
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    across, up = _Axis([x for x, _ in points]), _Axis([y for _, y in points])
    left = LEFT + column * (WIDTH + LEFT + 16)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + across(x) * WIDTH, TOP + (1 - up(y)) * HEIGHT

    parts = [_text(left, TOP - 14, "start", title, ' font-weight="bold"')]
    for tick in across.ticks:
        x, _ = place(tick, up.low)
        parts += [
            f'<path d="M{x:.1f} {TOP}v{HEIGHT}" stroke="#ddd"/>',
            _text(x, TOP + HEIGHT + 16, "middle", f"{tick:g}"),
        ]
    for tick in up.ticks:
        _, y = place(across.low, tick)
        parts += [
            f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#ddd"/>',
            _text(left - 6, y + 4, "end", f"{tick:g}"),
        ]
    parts.append(_text(left + WIDTH / 2, TOP + HEIGHT + 34, "middle", "model in GB (bfloat16)"))
    for name, line in series.items():
        placed = [place(*point) for point in line]
        parts.append(_line(placed, styles[name]))
    return "\n".join(parts)


def _text(x: float, y: float, anchor: str, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], style: Style) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    line = (
        f'<path d="{path}" fill="none" stroke="{style.colour}" stroke-width="1.8" '
        f'stroke-dasharray="{style.dash or "none"}"/>'
    )
    return "\n".join([line, *(_mark(x, y, style) for x, y in points)])


def _mark(x: float, y: float, style: Style) -> str:
    if style.square:
        turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if style.square == "tip" else ""
        corner = f'x="{x - 3.5:.1f}" y="{y - 3.5:.1f}"'
        return (
            f'<rect {corner} width="7" height="7" fill="white" stroke="{style.colour}" '
            f'stroke-width="1.8"{turn}/>'
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{style.colour}"/>'


def _legend(styles: dict[str, Style]) -> str:
    left, parts = 2 * (WIDTH + LEFT + 16) + 8, []
    for i, (name, style) in enumerate(styles.items()):
        y = TOP + LINE * i
        ends = [(left + 14, y)] if style.square else [(left, y), (left + 28, y)]
        parts += [_line(ends, style), _text(left + 38, y + 4, "start", name)]
    return "\n".join(parts)


class _Axis:
    """A logarithmic axis that holds all values: where one lies on it, from 0 to 1, and round
    ones."""

    def __init__(self, values: Iterable[float]) -> None:
        values = list(values)
        self.low, self.high = min(values) / 1.2, max(values) * 1.2
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        self.ticks = [
            step * 10.0**decade
            for decade in decades
            for step in STEPS
            if self.low <= step * 10.0**decade <= self.high
        ]

    def __call__(self, value: float) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)


def main() -> None:
    out, *files = sys.argv[1:]
    runs = [json.loads(Path(file).read_text()) for file in files]
    Path(out).write_text(
        draw(*([row for run in runs for row in run[part]] for part in ("results", "mindspore")))
    )


if __name__ == "__main__":
    main()
