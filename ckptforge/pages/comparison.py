"""The page of `compare`: where two checkpoints differ, by layer and kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.document import section
from ckptforge.pages.kinds import key_of
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.strips import NOTHING, Strip, strip_table
from ckptforge.pages.tables import changes, facts, items, table
from ckptforge.wording import size

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d{1,6})(?=\.|$)")
_LEVELS = 8  # of colour, a power of ten each; the darkest is 1 and above
_Row = dict[int | None, list[Mapping[str, Any]]]  # the differences of a kind by layer


def sections(found: Mapping[str, Any]) -> Sequence[Markup | None]:
    """The sections of a `Comparison` as JSON."""
    differences = sorted(found["differences"], key=lambda one: -_weight(one))
    about = [
        ("A", found["a"]),
        ("B", found["b"]),
        ("compared", f"{found['tensors']:,} tensors of B, {size(found['bytes'])}"),
        (
            "through",
            f"{found['through']}, {found['layouts'][0]} and {found['layouts'][1]}"
            if found["through"]
            else "names",
        ),
        ("after a cast of A to", found["after_cast"]),
        ("that differ", f"{len(differences):,}"),
    ]
    return [
        section("What was compared", facts(about)),
        section("Likely causes", items(found["causes"])),
        section("config.json", changes(("key", "A", "B"), found["constants"], "Keys that differ")),
        section("Difference by layer and kind", heat_map(differences)),
        section("Tensors that differ", _table(differences)),
        section("Only in A", items(found["only_in_a"])),
        section("Only in B", items(found["only_in_b"])),
        section("Notes", items(found["notes"])),
    ]


def layer_of(name: str) -> int | None:
    """The layer that a tensor is in, by its name; None for one in no layer."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def colour(relative: float | None) -> str:
    """The class of a relative difference: h7 for 1 and above, one less for each power of ten, w for
    none, as where dtypes alone differ, and x for one that isn't finite."""
    if relative is None:
        return "w"
    if relative == math.inf:
        return "x"
    power = math.floor(math.log10(relative)) if relative > 0 else -_LEVELS
    return f"h{min(max(_LEVELS - 1 + power, 0), _LEVELS - 1)}"


def heat_map(differences: Sequence[Mapping[str, Any]]) -> Markup:
    """Kinds of tensors by layers: the largest relative difference among those of a cell."""
    cells: dict[str, _Row] = {}
    for one in differences:
        cells.setdefault(key_of(one["name"]), {}).setdefault(layer_of(one["name"]), []).append(one)
    if not cells:
        return Markup()
    layers = {layer for row in cells.values() for layer in row}
    last = max((layer for layer in layers if layer is not None), default=-1)
    columns: list[int | None] = [*range(last + 1)]
    if None in layers:
        columns.append(None)
    strips = [_strip(kind, row, columns) for kind, row in cells.items()]
    names = ["in no layer" if column is None else f"layer {column}" for column in columns]
    titles = ("kind", "tensors", "largest", "where" if last < 0 else f"layers 0 to {last}")
    return joined(
        _legend(),
        strip_table(titles, strips, names, "The largest difference by kind and layer", "heat"),
    )


def _strip(kind: str, row: _Row, columns: Sequence[int | None]) -> Strip:
    """One kind's row of the map: a cell for each column, and the largest difference of all."""
    tips: list[str] = []
    colours: list[str] = []
    of: list[int] = []
    for column in columns:
        if column not in row:
            of.append(NOTHING)
            continue
        worst = max(row[column], key=_weight)
        of.append(len(tips))
        tips.append(f"{len(row[column]):,} differ, most {worst['name']}: {_said(worst)}")
        colours.append(colour(_figure(worst)))
    worst = max((one for cell in row.values() for one in cell), key=_weight)
    count = sum(map(len, row.values()))
    return Strip(
        cells=(kind, f"{count:,}", _said(worst)),
        tips=tips,
        colours=colours,
        of=of,
        said=f"{kind}: {count} differ, at most {_said(worst)}",
        key=kind,
    )


def _legend() -> Markup:
    levels = [
        tag("span", "≥ 1" if i == _LEVELS - 1 else f"1e{i + 1 - _LEVELS}", class_=f"key h{i}")
        for i in range(_LEVELS)
    ]
    others = [
        tag("span", "not finite", class_="key x"),
        " ",
        tag("span", "no figure", class_="key w"),
        " ",
        tag("span", "the same", class_="key same"),
    ]
    return tag("p", "Relative L2, from ", levels, " ", others)


def _figure(one: Mapping[str, Any]) -> float | None:
    found = one["relative_l2"]
    if one["nonfinite"]:
        return math.inf
    return min(found, 1e300) if one["count"] and isinstance(found, (int, float)) else None


def _weight(one: Mapping[str, Any]) -> float:
    """What differences are sorted by: those without a figure first."""
    found = _figure(one)
    return math.inf if found is None else found


def _said(one: Mapping[str, Any]) -> str:
    found = _figure(one)
    if found == math.inf:
        return f"{one['nonfinite']:,} not finite"
    return str(one["what"]) if found is None else f"{found:.3g}"


def _table(differences: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for one in differences:
        counts = f"{one['count']:,} of {one['elements']:,}" if one["count"] else ""
        figures = [
            f"{one['max_abs']:.3g}" if one["count"] else "",
            "" if _figure(one) is None else _said(one),
        ]
        where = f"{one['source']} {list(one['source_index'] or ())}" if one["source"] else ""
        first = "" if one["index"] is None else str(list(one["index"]))
        rows.append((one["name"], one["what"], counts, *figures, first, where))
    titles = (
        "tensor of B",
        "difference",
        "values",
        "max abs",
        "relative L2",
        "first in B",
        "is in A",
    )
    keys = [key_of(one["name"]) for one in differences]
    return table(titles, rows, "Tensors that differ, the most first", numbers=(2, 3, 4), keys=keys)
