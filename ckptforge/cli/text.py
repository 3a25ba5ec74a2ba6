"""Results as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge.cli.table import facts, table
from ckptforge.errors import counted, printable, shown

if TYPE_CHECKING:
    from ckptforge.verbs.check import Check
    from ckptforge.verbs.clean import Cleaned
    from ckptforge.verbs.compare import Comparison
    from ckptforge.verbs.inspection import Inspection
    from ckptforge.verbs.result import Result
    from ckptforge.verbs.tables import Checked, Description, Summary
    from ckptforge.verbs.verify import Verification


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
            f"memory: {size(result.peak_buffers)} of buffers at most, whatever the size "
            "of the model"
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


def inspection_text(found: Inspection, with_tensors: bool) -> str:
    """What `inspect` found; `with_tensors` adds a line for every tensor."""
    rows = [
        ("path", found.path),
        ("format", found.format),
        ("model", found.model or "not recognised"),
        ("layout", found.layout or "not recognised"),
        (
            "tensors",
            f"{found.tensors:,}"
            + (f" ({found.state} of them optimizer state and counters)" if found.state else ""),
        ),
        ("parameters", f"{found.parameters:,}"),
        ("bytes", f"{found.bytes:,} ({size(found.bytes)})"),
        (
            "dtypes",
            ", ".join(
                f"{name}: {counted(count['tensors'], 'tensor')}, {size(count['bytes'])}"
                for name, count in found.dtypes.items()
            ),
        ),
    ]
    if found.axes:
        rows.append(("axes", ", ".join(f"{axis}={length}" for axis, length in found.axes.items())))
    if found.ranks:
        rows.append(
            (
                "ranks",
                f"{len(found.ranks)} (tensors, parameters and bytes above are those "
                f"of rank {found.ranks[0]['rank']})",
            )
        )
    lines = [facts(rows)]
    files = found.ranks or found.files
    lines += [
        "",
        table(
            [
                ["file", "bytes", "tensors"],
                *([file["file"], f"{file['bytes']:,}", str(file["tensors"])] for file in files),
            ],
            right=(1, 2),
        ),
    ]
    if found.parts:
        lines += ["", _parts_table(found.parts)]
    if with_tensors:
        lines += [
            "",
            table(
                [
                    ["tensor", "dtype", "shape"],
                    *(
                        [name, entry.dtype, str(list(entry.shape))]
                        for name, entry in found.entries.items()
                    ),
                ]
            ),
        ]
    if found.layout_reason:
        lines += ["", f"layout: {found.layout_reason}"]
    if found.unmapped:
        lines += [
            "",
            f"not known to the mapping: {counted(len(found.unmapped), 'tensor')}, such "
            f"as {', '.join(found.unmapped[:3])}",
        ]
    lines += [f"note: {note}" for note in found.notes if note != found.layout_reason]
    return "\n".join(lines)


_SHOWN_DIFFERENCES = 20


def comparison_text(found: Comparison) -> str:
    """What `compare` found; the last line is the verdict."""
    how = (
        f"as {found.through}, {found.layouts[0]} against {found.layouts[1]}"
        if found.through
        else "by name"
    )
    cast = f", A cast to {found.after_cast}" if found.after_cast else ""
    lines = [
        f"A  {found.a}",
        f"B  {found.b}",
        f"compared {counted(found.tensors, 'tensor')} of B, {size(found.bytes)}, {how}{cast}",
    ]
    if found.differences:
        rows = [
            [
                "tensor of B",
                "difference",
                "values",
                "max abs",
                "relative L2",
                "first in B",
                "is in A",
            ]
        ]
        for one in found.differences[:_SHOWN_DIFFERENCES]:
            figures = [""] * 5
            if one.count:
                norm = "" if one.relative_l2 is None else f"{one.relative_l2:.3g}"
                origin = f"{one.source} {list(one.source_index or ())}" if one.source else ""
                figures = [
                    f"{one.count:,} of {one.elements:,}",
                    f"{one.max_abs:.3g}",
                    norm,
                    str(list(one.index or ())),
                    origin,
                ]
            what = one.what
            if one.count and one.dtypes[0] != one.dtypes[1]:
                what += f" ({one.dtypes[0]}, {one.dtypes[1]})"
            if one.nonfinite:
                what += f", {one.nonfinite:,} of them not finite"
            rows.append([one.name, what, *figures])
        lines += ["", table(rows, right=(2,))]
        if len(found.differences) > _SHOWN_DIFFERENCES:
            lines.append(f"… and {len(found.differences) - _SHOWN_DIFFERENCES} more")
    for side, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        if names:
            some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            lines.append(f"only in {side}: {counted(len(names), 'tensor')} ({some})")
    lines += [
        f"config.json: {key} is {shown(mine)} in A, {shown(theirs)} in B"
        for key, (mine, theirs) in found.constants.items()
    ]
    lines += [f"likely cause: {cause}" for cause in found.causes]
    lines += [f"note: {note}" for note in found.notes]
    if found.equal:
        return "\n".join(
            [
                *lines,
                "the same: every tensor has the same bits"
                + (" after the cast" if found.after_cast else ""),
            ]
        )
    are = "is" if len(found.only_in_a) + len(found.only_in_b) == 1 else "are"
    missing = len(found.only_in_a) + len(found.only_in_b)
    configs = (
        f"; the configs differ in {counted(len(found.constants), 'key')}" if found.constants else ""
    )
    return "\n".join(
        [
            *lines,
            f"different: {counted(len(found.differences), 'tensor', 'differ')}, {missing} "
            f"{are} only on one side{configs}",
        ]
    )


def check_text(found: Check) -> str:
    """What comparing with a manifest found; the last line is the verdict."""
    lines = [
        f"{found.path} against {found.manifest}: {counted(found.files, 'file')}, "
        f"{counted(found.tensors, 'tensor')}, {size(found.bytes)}"
    ]
    lines += found.problems[:_SHOWN_DIFFERENCES]
    if (more := len(found.problems) - _SHOWN_DIFFERENCES) > 0:
        lines.append(f"… and {more} more")
    verdict = (
        "the same: every tensor is what was written"
        if found.equal
        else f"different: {counted(len(found.problems), 'problem')}"
    )
    return "\n".join([*lines, verdict])


def verification_text(found: Verification) -> str:
    """What the forward check found; the last line is the verdict."""
    from ckptforge.cli.verify_report import rows, summary

    how = f"{counted(found.tokens, 'token')}, {found.layout}, {found.device}, {found.compute}"
    return "\n".join(
        [
            f"torch      {found.hf_dir}",
            f"mindspore  {found.ms} ({how})",
            "",
            table(rows(found)),
            "",
            *summary(found),
        ]
    )


_SHOWN_RANKS = 16


def _parts_table(parts: list[dict[str, Any]]) -> str:
    """A line for each kind of tensor and each part of it: the indexes that it covers, and the ranks
    that hold it."""
    rows = [["tensor", "full shape", "part", "ranks"]]
    for kind in parts:
        held: dict[str, list[int]] = {}
        for rank, box in kind["boxes"].items():
            held.setdefault("[" + ", ".join(f"{lo}:{hi}" for lo, hi in box) + "]", []).append(rank)
        more = f" (+{kind['count'] - 1} alike)" if kind["count"] > 1 else ""
        for i, (part, ranks) in enumerate(held.items()):
            some = " ".join(map(str, ranks[:_SHOWN_RANKS])) + (
                f" … {len(ranks)} in all" if len(ranks) > _SHOWN_RANKS else ""
            )
            rows.append(
                [
                    kind["tensor"] + more if i == 0 else "",
                    str(kind["shape"]) if i == 0 else "",
                    part,
                    some,
                ]
            )
    return table(rows)


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
