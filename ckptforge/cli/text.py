"""Results as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge.cli.table import table
from ckptforge.errors import counted, printable

if TYPE_CHECKING:
    from ckptforge.verbs.clean import Cleaned
    from ckptforge.verbs.result import Result
    from ckptforge.verbs.tables import Checked, Description, Summary


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{int(value)} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


_SHOWN_FILES = 8  # of a dry run; its JSON has all


def result_text(result: Result) -> str:
    """What a verb did, or would do."""
    about = result.facts
    verb = "would write" if result.dry_run else "wrote"
    if "cuts" in about:
        return _strategy_text(result)
    lines = [
        f"{about['model'] or 'any model'}: {about['from']} → {about['to']}, "
        f"{counted(about['source_tensors'], 'tensor')} of {about['source_format']}",
        f"{verb} {result.output}: {_extent(about)}{counted(result.tensors, 'tensor')}, "
        f"{size(result.bytes)}" + ("" if result.dry_run else f" in {result.seconds:.2f} s"),
    ]
    if result.dry_run:
        lines += [f"  {path}" for path in result.files[:_SHOWN_FILES]]
        if (more := len(result.files) - _SHOWN_FILES) > 0:
            lines.append(f"  … and {more} more")
        lines += [
            f"casts: {pair}, {counted(count, 'tensor')}"
            for pair, count in about["planned_casts"].items()
        ]
        lines.append(
            f"memory: {size(result.peak_buffers)} of buffers at most, whatever the size of the "
            "model"
        )
    casts = result.audit.counts
    if casts:
        lines.append("")
        rows = [["cast", "dtypes", "values", "overflowed", "underflowed", "rounded"]]
        for (group, source, target), count in sorted(casts.items()):
            rows.append(
                [
                    group,
                    f"{source} → {target}",
                    *(
                        f"{n:,}"
                        for n in (count.values, count.overflowed, count.underflowed, count.rounded)
                    ),
                ]
            )
        lines.append(table(rows, right=(2, 3, 4, 5)))
    for reason, names in result.left_out.items():
        some = ", ".join(map(printable, names[:3])) + (
            f" and {len(names) - 3} more" if len(names) > 3 else ""
        )
        lines.append(f"left out, {reason}: {counted(len(names), 'tensor')} ({some})")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def _extent(facts: dict[str, Any]) -> str:
    """How many ranks and stages were written, and nothing for an output that isn't cut."""
    ranks, stages = facts.get("ranks", 0), facts.get("stages", 1)
    if not ranks:
        return ""
    return counted(ranks, "rank") + (f" in {stages} stages, " if stages > 1 else ", ")


def _strategy_text(result: Result) -> str:
    """The strategy files that were made, and how they cut each kind of tensor."""
    about = result.facts
    rows = [
        ["tensor", "stages", "shape", "device matrix", "tensor map", "optimizer", "part of a rank"]
    ]
    for cut in about["cuts"]:
        stages = cut["stages"]
        rows.append(
            [
                cut["tensor"] + (f" (+{cut['count'] - 1} alike)" if cut["count"] > 1 else ""),
                str(stages[0]) if len(stages) == 1 else f"{stages[0]}-{stages[-1]}",
                *(str(cut[key]) for key in ("shape", "device_matrix", "tensor_map")),
                {0: "-", -1: "all replicas"}.get(
                    cut["optimizer_shards"], f"{cut['optimizer_shards']} parts"
                ),
                str(cut["part"]),
            ]
        )
    verb = "would write" if result.dry_run else "wrote"
    lines = [
        f"{about['model']}, layout {about['from']}, for {about['to']}",
        f"{verb} {result.output}: {counted(len(result.files), 'strategy file')}",
    ]
    lines += [f"  {path}" for path in result.files]
    return "\n".join([*lines, "", table(rows), *(f"note: {note}" for note in result.notes)])


def cleaned_text(found: Cleaned) -> str:
    """What `clean` prints."""
    if not found.left:
        return f"{printable(found.directory)}: nothing was left there"
    lines = []
    for left in found.left:
        if left.busy is not None:
            lines.append(f"left alone: {printable(left.busy)}")
        else:
            verb = "would remove" if found.dry_run else "removed"
            state = (
                "whole, but not put in place"
                if left.complete
                else f"{counted(left.finished, 'tensor')} finished"
            )
            lines.append(f"{verb} {printable(left.directory)}: {size(left.bytes)}, {state}")
    return "\n".join(lines)


def tables_text(found: list[Summary]) -> str:
    """What `mapping list` prints."""
    rows = [["table", "model_type", "tensors", "Hugging Face", "MindSpore"]]
    for one in found:
        rows.append(
            [
                one.name,
                ", ".join(one.model_types),
                str(one.tensors),
                *(" ".join(one.layouts[f]) for f in ("huggingface", "mindspore")),
            ]
        )
    return table(rows, right=(2,))


def description_text(found: Description) -> str:
    """What `mapping show` prints."""
    lines = [
        f"{found.table}, layout {found.layout} ({found.family}); operations from {found.against}",
        "",
    ]
    lines.append(
        table(
            [
                ["axis", "length by config.json"],
                *([axis, text] for axis, text in found.axes.items()),
            ]
        )
    )
    rows = [
        ["tensor", "axes", "operation", "cut"],
        *([row.name, row.axes, row.operation, row.cut] for row in found.rows),
    ]
    return "\n".join([*lines, "", table(rows)])


def checked_text(found: Checked) -> str:
    """What `mapping check` prints."""
    count = len(found.layouts)
    convertible = "" if count == 1 else f", each convertible to the other{'s' if count > 2 else ''}"
    lines = [
        f"{printable(found.source)}: table {found.table} is valid: "
        f"{counted(count, 'layout')}{convertible}"
    ]
    if found.counts:
        rows = [
            ["layout", "tensors", "parameters"],
            *([one.layout, f"{one.tensors:,}", f"{one.parameters:,}"] for one in found.counts),
        ]
        lines += ["", table(rows, right=(1, 2))]
    return "\n".join(lines)
