"""Results as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptforge.cli.table import table
from ckptforge.errors import printable, shown
from ckptforge.wording import counted, kind_text, size

if TYPE_CHECKING:
    from ckptforge.verbs.clean import Cleaned
    from ckptforge.verbs.result import Result
    from ckptforge.verbs.tables import Checked, Description, Summary


def some(items: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(printable, items[:most])) + rest


def more(items: Sequence[object], shown: int) -> list[str]:
    """A line that says how many more there are than are shown, if there are."""
    return [f"… and {len(items) - shown:,} more"] if len(items) > shown else []


_SHOWN_FILES = 8  # of a dry run; its JSON has all


def result_text(result: Result) -> str:
    """What a verb did, or would do."""
    about = result.facts
    verb = "would write" if result.dry_run else "wrote"
    if "part" in about and not result.dry_run:
        return _part_text(result)
    if "cuts" in about:
        return _strategy_text(result)
    lines = [
        f"{about['model'] or 'any model'}: {about['from']} → {about['to']}, "
        f"{counted(about['source_tensors'], 'tensor')} of {about['source_format']}",
        f"{verb} {result.output}: {_extent(about)}{counted(result.tensors, 'tensor')}, "
        f"{size(result.bytes)}" + ("" if result.dry_run else f" in {result.seconds:.2f} s"),
    ]
    if result.dry_run:
        files = [*map(str, result.files[:_SHOWN_FILES]), *more(result.files, _SHOWN_FILES)]
        lines += [f"  {line}" for line in files]
        for pair, count in about["planned_casts"].items():
            lines.append(f"casts: {pair}, {counted(count, 'tensor')}")
        buffers = size(result.peak_buffers)
        lines.append(f"memory: {buffers} of buffers at most, whatever the size of the model")
    if result.audit.counts:
        rows = [["cast", "dtypes", "values", "overflowed", "underflowed", "rounded"]]
        for (group, source, target), count in sorted(result.audit.counts.items()):
            numbers = (count.values, count.overflowed, count.underflowed, count.rounded)
            rows.append([group, f"{source} → {target}", *(f"{n:,}" for n in numbers)])
        lines += ["", table(rows, right=(2, 3, 4, 5))]
        codes = {pair: one for pair, one in result.audit.counts.items() if one.square}
        if codes:
            rows = [["written as codes", "dtypes", "relative error", "worst block"]]
            for (group, source, target), one in sorted(codes.items()):
                errors = (f"{one.relative_error:.3g}", f"{one.worst_block:.3g}")
                rows.append([group, f"{source} → {target}", *errors])
            lines += ["", table(rows, right=(2, 3))]
    lines += _surgery_lines(about.get("surgery", {}))
    for reason, names in result.left_out.items():
        lines.append(f"left out, {reason}: {counted(len(names), 'tensor')} ({some(names, 3)})")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def _surgery_lines(surgery: dict[str, Any]) -> list[str]:
    """What an edit changed: kinds of tensors, and config.json."""
    lines = []
    if kinds := surgery.get("kinds"):
        rows = [["kind", "before", "after"]]
        rows += [[kind, *map(kind_text, both)] for kind, both in kinds.items()]
        lines += ["", table(rows)]
    if changes := surgery.get("config"):
        rows = [["config.json", "before", "after"]]
        rows += [[key, *map(shown, both)] for key, both in changes.items()]
        lines += ["", table(rows)]
    return lines


def _part_text(result: Result) -> str:
    """What a part of a job did."""
    about = result.facts
    wrote = f"{counted(result.tensors, 'tensor')}, {size(result.bytes)}"
    lines = [f"part {about['part']} of {result.output}: wrote {wrote} in {result.seconds:.2f} s"]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _extent(facts: dict[str, Any]) -> str:
    """How many ranks and stages were written, and nothing for an output that isn't cut."""
    ranks, stages = facts.get("ranks", 0), facts.get("stages", 1)
    if not ranks:
        return ""
    return counted(ranks, "rank") + (f" in {stages} stages, " if stages > 1 else ", ")


def _strategy_text(result: Result) -> str:
    """The strategy files that were made, and how they cut each kind of tensor."""
    about = result.facts
    titles = ["tensor", "stages", "shape", "device matrix", "tensor map", "optimizer"]
    rows = [[*titles, "part of a rank"], *map(_cut_row, about["cuts"])]
    verb = "would write" if result.dry_run else "wrote"
    lines = [
        f"{about['model']}, layout {about['from']}, for {about['to']}",
        f"{verb} {result.output}: {counted(len(result.files), 'strategy file')}",
    ]
    lines += [f"  {path}" for path in result.files]
    return "\n".join([*lines, "", table(rows), *(f"note: {note}" for note in result.notes)])


def _cut_row(cut: dict[str, Any]) -> list[str]:
    stages, shards = cut["stages"], cut["optimizer_shards"]
    return [
        cut["tensor"] + (f" (+{cut['count'] - 1} alike)" if cut["count"] > 1 else ""),
        str(stages[0]) if len(stages) == 1 else f"{stages[0]}-{stages[-1]}",
        *(str(cut[key]) for key in ("shape", "device_matrix", "tensor_map")),
        {0: "-", -1: "all replicas"}.get(shards, f"{shards} parts"),
        str(cut["part"]),
    ]


def cleaned_text(found: Cleaned) -> str:
    """What `clean` prints."""
    if not found.left:
        return f"{printable(found.directory)}: nothing was left there"
    verb = "would remove" if found.dry_run else "removed"
    lines = []
    for left in found.left:
        finished = f"{counted(left.finished, 'tensor')} finished"
        state = "whole, but not put in place" if left.complete else finished
        lines.append(
            f"{verb} {printable(left.directory)}: {size(left.bytes)}, {state}"
            if left.busy is None
            else f"left alone: {printable(left.busy)}"
        )
    return "\n".join(lines)


def tables_text(found: list[Summary]) -> str:
    """What `mapping list` prints."""
    from ckptforge.tables.table import FAMILY_NAMES as families

    rows = [["table", "model_type", "tensors", *families.values()]]
    for one in found:
        layouts = [" ".join(one.layouts.get(family, ())) for family in families]
        rows.append([one.name, ", ".join(one.model_types), str(one.tensors), *layouts])
    return table(rows, right=(2,))


def description_text(found: Description) -> str:
    """What `mapping show` prints."""
    first = f"{found.table}, layout {found.layout} ({found.family}); operations from"
    axes = [["axis", "length by config.json"], *map(list, found.axes.items())]
    rows = [["tensor", "axes", "operation", "cut"]]
    rows += [[row.name, row.axes, row.operation, row.cut] for row in found.rows]
    return "\n".join([f"{first} {found.against}", "", table(axes), "", table(rows)])


def checked_text(found: Checked) -> str:
    """What `mapping check` prints."""
    count = len(found.layouts)
    convertible = "" if count == 1 else f", each convertible to the other{'s' if count > 2 else ''}"
    lines = [
        f"{printable(found.source)}: table {found.table} is valid: "
        f"{counted(count, 'layout')}{convertible}"
    ]
    if found.counts:
        rows = [["layout", "tensors", "parameters"]]
        rows += [[one.layout, f"{one.tensors:,}", f"{one.parameters:,}"] for one in found.counts]
        lines += ["", table(rows, right=(1, 2))]
    return "\n".join(lines)
