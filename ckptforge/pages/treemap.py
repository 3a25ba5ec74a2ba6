"""Areas in proportion to sizes: squarified treemaps.

Source: M. Bruls, K. Huizing, J. J. van Wijk, "Squarified Treemaps", Data Visualization 2000,
https://doi.org/10.1007/978-3-7091-6783-0_4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptforge.pages.markup import Markup, breakable, joined, tag
from ckptforge.wording import size

_RATIO = 2.4  # width by height of the whole
_HUES, _STEP = 24, 7  # colours of the style, and how far neighbours are apart
_ROOM = (16.0, 9.0)  # per cent of width and height that a name needs
_MOST = 24  # kinds that the legend names


class Tile(NamedTuple):
    """Where a size lies: left, top, width and height."""

    x: float
    y: float
    width: float
    height: float


def squarified(sizes: Sequence[float], whole: Tile) -> list[Tile]:
    """A tile for each size, which come in descending order and are positive, that fill the whole in
    proportion, as square as they get."""
    total = sum(sizes)
    areas = [one * whole.width * whole.height / total for one in sizes]
    made: list[Tile] = []
    x, y, width, height = whole
    while len(made) < len(areas):
        side, row = min(width, height), [areas[len(made)]]
        for area in areas[len(made) + 1 :]:
            if _worst([*row, area], side) > _worst(row, side):
                break
            row.append(area)
        thick, at = sum(row) / side, 0.0
        for area in row:
            long = area / thick
            if width >= height:
                made.append(Tile(x, y + at, thick, long))
            else:
                made.append(Tile(x + at, y, long, thick))
            at += long
        if width >= height:
            x, width = x + thick, width - thick
        else:
            y, height = y + thick, height - thick
    return made


def _worst(row: Sequence[float], side: float) -> float:
    """The largest ratio of the sides of a row's tiles."""
    total = sum(row)
    return max(side**2 * row[0] / total**2, total**2 / (side**2 * row[-1]))


def _share(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 else "< 0.1%"


def treemap(sizes: dict[str, int], said: str) -> Markup:
    """A list of names with the bytes of each, as areas."""
    found = sorted(((name, n) for name, n in sizes.items() if n > 0), key=lambda one: -one[1])
    if not found:
        return Markup()
    total = sum(count for _, count in found)
    whole = Tile(0, 0, 100 * _RATIO, 100)
    tiles, named = [], []
    for i, ((name, bytes_), tile) in enumerate(
        zip(found, squarified([count for _, count in found], whole), strict=True)
    ):
        place = (
            f"left:{tile.x / _RATIO:.2f}%;top:{tile.y:.2f}%;"
            f"width:{tile.width / _RATIO:.2f}%;height:{tile.height:.2f}%"
        )
        said_of = f": {size(bytes_)}, {_share(bytes_ / total)}"
        text = joined(breakable(name), said_of)
        tight = tile.width / _RATIO < _ROOM[0] or tile.height < _ROOM[1]
        look = f"c{i * _STEP % _HUES}" + (" small" if tight else "")
        tiles.append(tag("li", text, style=place, class_=look, data_tip=name + said_of))
        if i < _MOST:
            swatch = tag("i", class_=f"c{i * _STEP % _HUES}")
            named.append(tag("li", swatch, " ", text))
    more = tag("li", f"… and {len(found) - _MOST:,} more") if len(found) > _MOST else None
    picture = tag("ul", tiles, class_="tree", aria_hidden="true")
    return joined(picture, tag("ul", named, more, class_="legend", aria_label=said))
