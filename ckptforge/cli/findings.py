"""What the verbs that only look have found, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforge.cli.table import facts, table
from ckptforge.cli.text import size
from ckptforge.errors import counted, shown

if TYPE_CHECKING:
    from ckptforge.verbs.check import Check
    from ckptforge.verbs.comparison import Comparison
    from ckptforge.verbs.inspection import Inspection, PartLine
    from ckptforge.verbs.verify import Verification


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
                f"{name}: {counted(count.tensors, 'tensor')}, {size(count.bytes)}"
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
                f"{len(found.ranks)} (tensors, parameters and bytes above are those of rank "
                f"{found.ranks[0].rank})",
            )
        )
    lines = [facts(rows)]
    files = found.ranks or found.files
    lines += [
        "",
        table(
            [
                ["file", "bytes", "tensors"],
                *([file.file, f"{file.bytes:,}", str(file.tensors)] for file in files),
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
            f"not known to the mapping: {counted(len(found.unmapped), 'tensor')}, such as "
            f"{', '.join(found.unmapped[:3])}",
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
            f"different: {counted(len(found.differences), 'tensor', 'differ')}, {missing} {are} "
            f"only on one side{configs}",
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


def _parts_table(parts: list[PartLine]) -> str:
    """A line for each kind of tensor and each part of it: the indexes that it covers, and the ranks
    that hold it."""
    rows = [["tensor", "full shape", "part", "ranks"]]
    for kind in parts:
        held: dict[str, list[int]] = {}
        for rank, box in kind.boxes.items():
            held.setdefault("[" + ", ".join(f"{lo}:{hi}" for lo, hi in box) + "]", []).append(rank)
        more = f" (+{kind.count - 1} alike)" if kind.count > 1 else ""
        for i, (part, ranks) in enumerate(held.items()):
            some = " ".join(map(str, ranks[:_SHOWN_RANKS])) + (
                f" … {len(ranks)} in all" if len(ranks) > _SHOWN_RANKS else ""
            )
            rows.append(
                [
                    kind.tensor + more if i == 0 else "",
                    str(kind.shape) if i == 0 else "",
                    part,
                    some,
                ]
            )
    return table(rows)
