"""The page of `inspect`: what is in a checkpoint, how large it is, and which rank holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptforge.pages.document import section
from ckptforge.pages.kinds import Kind, kinds_of, sizes_by_name
from ckptforge.pages.markup import Markup, tag
from ckptforge.pages.shard_map import shard_map
from ckptforge.pages.tables import facts, items, table
from ckptforge.pages.treemap import treemap
from ckptforge.wording import counted, size


def sections(found: Mapping[str, Any]) -> Sequence[Markup | None]:
    """The sections of an `Inspection` as JSON."""
    kinds = kinds_of(found["entries"])
    reason = [found["layout_reason"]] if found["layout_reason"] else []
    dtypes = [
        f"{name}: {counted(one['tensors'], 'tensor')}, {size(one['bytes'])}"
        for name, one in found["dtypes"].items()
    ]
    axes = ", ".join(f"{axis}={length}" for axis, length in found["axes"].items())
    about = [
        ("format", found["format"]),
        ("model", found["model"] or "not recognised"),
        ("layout", found["layout"] or "not recognised"),
        ("tensors", f"{found['tensors']:,}"),
        ("parameters", f"{found['parameters']:,}"),
        ("bytes", f"{found['bytes']:,} ({size(found['bytes'])})"),
        ("dtypes", ", ".join(dtypes)),
        ("axes", tag("code", axes) if axes else None),
    ]
    files = [
        (one["file"], f"{one['bytes']:,}", f"{one['tensors']:,}")
        for one in found["ranks"] or found["files"]
    ]
    titles = ("file", "bytes", "tensors")
    return [
        section("What it is", facts(about)),
        section("Notes", items([*reason, *(n for n in found["notes"] if n not in reason)])),
        section("Who holds what", shard_map(found["parts"], "map")),
        section("Sizes by kind", treemap(sizes_by_name(kinds), "kinds of tensors by their bytes")),
        section("Tensors", kinds_table(kinds)),
        section("Not known to the mapping", items(found["unmapped"])),
        section("Files", table(titles, files, "Files of weights", numbers=(1, 2))),
    ]


def kinds_table(kinds: Sequence[Kind]) -> Markup:
    """A searchable line for each kind."""
    rows = [
        (kind.name, f"{kind.count:,}", kind.dtype, str(list(kind.shape)), f"{kind.bytes:,}")
        for kind in kinds
    ]
    titles = ("tensors", "count", "dtype", "shape", "bytes of all")
    keys = [kind.key for kind in kinds]
    return table(titles, rows, "Tensors by kind", numbers=(1, 4), keys=keys)
