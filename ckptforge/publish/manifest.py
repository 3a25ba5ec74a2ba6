"""The manifest: what was written, from what, and what a way back to Hugging Face needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.formats.index import FileIndex
from ckptforge.planning.plan import Plan
from ckptforge.planning.reads import joined
from ckptforge.publish.audit import audit_json
from ckptforge.run.blocks import source_blocks
from ckptforge.run.run import Done
from ckptforge.tables.table import Layout, Table
from ckptforge.version import __version__


def manifest_json(
    plan: Plan,
    table: Table | None,
    layout: Layout | None,
    side: HuggingFaceSide | None,
    done: Done,
    mtimes: Mapping[Path, int],
    command: str | None,
) -> bytes:
    """The manifest of a finished plan; without a table where none was needed, without hashes where
    they weren't made.

    `outputs[].tensors` is name → [dtype, shape, hash]; see `run/blocks.py`. An output that has
    the same tensors as an earlier one, as the ranks of a stage have, names that (`like`) and holds
    only its hashes, in that order, with blanks between.
    """
    content = {
        "ckptforge": __version__,
        "verb": plan.verb,
        "command": None if command is None else _unicode(command),
        "model": table.name if table else None,
        "layout": layout.name if layout else None,
        "mapping": {"source": table.source, "sha256": hashlib.sha256(table.text).hexdigest()}
        if table
        else None,
        "sources": [_source_json(plan, source, done.hashes) for source in plan.sources],
        "outputs": list(_outputs_json(plan, mtimes, done.hashes)),
        "small_files": sorted(plan.small_files),
        "left_out": plan.left_out,
        "casts": audit_json(done.audit),
        "cut": plan.cut,
        **({"surgery": plan.facts["surgery"]} if "surgery" in plan.facts else {}),
        "hugging_face": side.to_json() if side else None,
    }
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _outputs_json(
    plan: Plan, mtimes: Mapping[Path, int], hashes: Mapping[Path, Mapping[str, str]] | None
) -> Iterator[dict[str, Any]]:
    first: dict[tuple[object, ...], str] = {}
    for file in plan.files:
        name = plan.name_of(file.path)
        own = None if hashes is None else [hashes[file.path][tensor] for tensor in file.places]
        found: dict[str, Any] = {"file": name, "size": file.size, "mtime_ns": mtimes[file.path]}
        places = file.places.items()
        kinds = tuple((tensor, entry.dtype.name, entry.shape) for tensor, entry in places)
        if (like := first.setdefault(kinds, name)) != name:
            yield {**found, "like": like, **({} if own is None else {"hashes": " ".join(own)})}
            continue
        stored = [
            [dtype, list(shape), *([own[i]] if own is not None else [])]
            for i, (_, dtype, shape) in enumerate(kinds)
        ]
        yield {**found, "tensors": dict(zip(file.places, stored, strict=True))}


def _source_json(
    plan: Plan, source: FileIndex, hashes: Mapping[Path, Mapping[str, str]] | None
) -> dict[str, Any]:
    """What a source was; its hash is of the blocks in `ranges` of bytes, [first, end], where only a
    part was read."""
    path = _unicode(str(source.path))
    found = {"path": path, "size": source.size, "mtime_ns": source.mtime_ns}
    if hashes is None:
        return found
    ranges = joined([run for block in source_blocks(plan, source) for run in block.ranges])
    if ranges != ((0, source.size),) and source.size:
        found["ranges"] = ranges
    return {**found, "xxh3_128": hashes[source.path][""]}


def _unicode(text: str) -> str:
    """What may hold names of files that aren't Unicode, with escapes for them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
