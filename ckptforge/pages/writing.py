"""The page of the verbs that write: a plan, or what was done, from what is read to what is
written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.document import section
from ckptforge.pages.inspection import kinds_table
from ckptforge.pages.kinds import key_of, kinds_of_parts, sizes_by_name
from ckptforge.pages.markup import Markup, joined, tag
from ckptforge.pages.shard_map import shard_map
from ckptforge.pages.tables import changes, facts, items, paths, table
from ckptforge.pages.treemap import treemap
from ckptforge.wording import counted, kind_text, size

Found = Mapping[str, Any]


def sections(found: Found) -> Sequence[Markup | None]:
    """The sections of a `Result` as JSON."""
    parts = found.get("parts", [])
    made = found["verb"] == "strategy"  # its files describe tensors, and hold none
    surgery = found.get("surgery") or {}
    titles = ("", "before", "after")
    edited = surgery.get("kinds") or {}
    lines = {name: list(map(kind_text, both)) for name, both in edited.items()}
    kinds = changes(titles, lines, "Kinds of tensors before and after")
    config = changes(titles, surgery.get("config") or {}, "Keys before and after")
    return [
        section("The plan" if found["dry_run"] else "What was written", facts(_about(found))),
        section("Notes", items(found["notes"])),
        section(
            "What ranks hold" if made else "From and to",
            _sides(found.get("source_parts", []), parts, made),
        ),
        section("How it is cut", _cuts(found.get("cuts", []))),
        section("Kinds that change", kinds),
        section("config.json", config),
        section("Casts", _casts(found["casts"])),
        section("Left out", _left_out(found["left_out"])),
        section("Tensors", kinds_table(kinds_of_parts(parts))),
        section("Files", paths(found["files"])),
    ]


def _about(found: Found) -> list[tuple[str, object]]:
    what = counted(found["tensors"], "tensor")
    if found["verb"] == "strategy":
        what = counted(len(found["files"]), "strategy file")
    casts = [f"{k}: {counted(n, 'tensor')}" for k, n in found.get("planned_casts", {}).items()]
    read = None
    if "source_tensors" in found:
        read = f"{counted(found['source_tensors'], 'tensor')} of {found['source_format']}"
    return [
        ("output", found["output"]),
        ("model", found.get("model") or "any model"),
        ("from", found.get("from")),
        ("to", found.get("to")),
        ("read", read),
        ("written", f"{what}, {size(found['bytes'])}"),
        ("bytes", f"{found['bytes']:,}"),
        ("ranks", found.get("ranks")),
        ("stages", found.get("stages")),
        ("dtype", found.get("dtype")),
        ("casts", ", ".join(casts) or None),
        ("buffers at most", size(found["buffer_bytes"])),
    ]


def _sides(source: Sequence[Found], target: Sequence[Found], made: bool) -> Markup:
    """What is read and what is written, side by side where there is room."""
    sizes, maps = [], []
    after = "The model" if made else "What is written"
    for title, parts, name in (("What is read", source, "from"), (after, target, "to")):
        if parts:
            own = sizes_by_name(kinds_of_parts(parts))
            picture = treemap(own, f"{title}: kinds of tensors by their bytes")
            sizes.append(tag("div", tag("h3", title), picture))
        if held := shard_map(parts, name):
            maps.append(tag("div", tag("h3", f"{title}, by rank"), held))
    return joined(*(tag("div", each, class_="sides") for each in (sizes, maps) if each))


def _cuts(cuts: Sequence[Found]) -> Markup:
    keys = ("stages", "shape", "device_matrix", "tensor_map", "optimizer_shards", "part")
    rows = [
        (
            one["tensor"] + (f" (+{one['count'] - 1} alike)" if one["count"] > 1 else ""),
            *(str(one[key]) for key in keys),
        )
        for one in cuts
    ]
    titles = ("tensor", *(key.replace("_", " ") for key in keys))
    names = [key_of(one["tensor"]) for one in cuts]
    lead = (
        "An axis is cut into as many parts as the device matrix has in the place that the tensor "
        "map names, counted from the right from 0; -1 isn't cut. Optimizer parallelism cuts the "
        "first axis again, into so many parts: 0 not at all, -1 one for each replica."
    )
    cut = table(titles, rows, "How each kind of tensor is cut", keys=names)
    return joined(tag("p", lead), cut) if rows else Markup()


def _casts(casts: Sequence[Found]) -> Markup:
    counts = ("values", "overflowed", "underflowed", "rounded")
    rows = [
        (one["group"], f"{one['from']} → {one['to']}", *(f"{one[key]:,}" for key in counts))
        for one in casts
    ]
    titles = ("kind", "dtypes", *counts)
    return table(titles, rows, "What the casts did", numbers=(2, 3, 4, 5))


def _left_out(left_out: Mapping[str, Sequence[str]]) -> Markup:
    rows = [(why, f"{len(names):,}", ", ".join(names[:20])) for why, names in left_out.items()]
    return table(("reason", "tensors", "such as"), rows, "What isn't taken over", numbers=(1,))
