"""What the verbs that only look have found, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforge.cli.table import facts, table
from ckptforge.cli.text import more, some
from ckptforge.errors import printable, shown
from ckptforge.wording import counted, runs_of, size

if TYPE_CHECKING:
    from ckptforge.verbs.check import Check
    from ckptforge.verbs.comparison import Comparison, TensorDifference
    from ckptforge.verbs.inspection import Inspection, PartLine
    from ckptforge.verbs.side_by_side import SideBySide
    from ckptforge.verbs.verify import Verification


_SHOWN_FILES = 32
_SHOWN_PARTS = 8  # of a kind of tensor
_SHOWN_RANKS = 16


def inspection_text(found: Inspection, with_tensors: bool) -> str:
    """What `inspect` found; `with_tensors` adds a line for every tensor, and has all files and
    parts, of which otherwise the first are there."""
    state = f" ({found.state} of them optimizer state and counters)" if found.state else ""
    dtypes = (
        f"{name}: {counted(count.tensors, 'tensor')}, {size(count.bytes)}"
        for name, count in found.dtypes.items()
    )
    rows = [
        ("path", found.path),
        ("format", found.format),
        ("model", found.model or "not recognised"),
        ("layout", found.layout or "not recognised"),
        ("tensors", f"{found.tensors:,}{state}"),
        ("parameters", f"{found.parameters:,}"),
        ("bytes", f"{found.bytes:,} ({size(found.bytes)})"),
        ("dtypes", ", ".join(dtypes)),
    ]
    if found.axes:
        rows.append(("axes", ", ".join(f"{axis}={length}" for axis, length in found.axes.items())))
    if found.ranks:
        first = f"(tensors, parameters and bytes above are those of rank {found.ranks[0].rank})"
        rows.append(("ranks", f"{len(found.ranks)} {first}"))
    files = [["file", "bytes", "tensors"]]
    every = found.ranks or found.files
    most = len(every) if with_tensors else _SHOWN_FILES
    for file in every[:most]:
        files.append([file.file, f"{file.bytes:,}", str(file.tensors)])
    lines = [facts(rows), "", table(files, right=(1, 2)), *more(every, most)]
    if found.parts:
        lines += ["", _parts_table(found.parts, None if with_tensors else _SHOWN_PARTS)]
    if with_tensors:
        tensors = [[name, one.dtype, str(list(one.shape))] for name, one in found.entries.items()]
        lines += ["", table([["tensor", "dtype", "shape"], *tensors])]
    if found.layout_reason:
        lines += ["", f"layout: {found.layout_reason}"]
    if found.unmapped:
        unmapped = counted(len(found.unmapped), "tensor")
        few = ", ".join(found.unmapped[:3])
        lines += ["", f"not known to the mapping: {unmapped}, such as {few}"]
    lines += [f"note: {note}" for note in found.notes if note != found.layout_reason]
    return "\n".join(lines)


_SHOWN_DIFFERENCES = 20


def comparison_text(found: Comparison) -> str:
    """What `compare` found; the last line is the verdict."""
    how = "by name"
    if found.through:
        how = f"as {found.through}, {found.layouts[0]} against {found.layouts[1]}"
    cast = f", A cast to {found.after_cast}" if found.after_cast else ""
    lines = [
        f"A  {found.a}",
        f"B  {found.b}",
        f"compared {counted(found.tensors, 'tensor')} of B, {size(found.bytes)}, {how}{cast}",
    ]
    if found.differences:
        titles = ["tensor of B", "difference", "values", "max abs", "relative L2"]
        rows = [[*titles, "first in B", "is in A"]]
        rows += map(_difference_row, found.differences[:_SHOWN_DIFFERENCES])
        lines += ["", table(rows, right=(2,)), *more(found.differences, _SHOWN_DIFFERENCES)]
    for side, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        if names:
            lines.append(f"only in {side}: {counted(len(names), 'tensor')} ({some(names, 5)})")
    lines += [
        f"config.json: {key} is {shown(mine)} in A, {shown(theirs)} in B"
        for key, (mine, theirs) in found.constants.items()
    ]
    if found.quantisation:
        titles = ["quantised kind", "tensors", "values", "relative error", "worst block", "in"]
        errors = [
            [
                one.kind,
                str(one.tensors),
                f"{one.values:,}",
                "" if one.relative_error is None else f"{one.relative_error:.3g}",
                f"{one.worst_block:.3g}",
                printable(one.worst_tensor),
            ]
            for one in found.quantisation
        ]
        lines += ["", table([titles, *errors], right=(1, 2, 3, 4))]
    lines += [f"likely cause: {cause}" for cause in found.causes]
    lines += [f"note: {note}" for note in found.notes]
    if found.equal:
        cast = " after the cast" if found.after_cast else ""
        return "\n".join([*lines, f"the same: every tensor has the same bits{cast}"])
    tensors = counted(len(found.differences), "tensor", "differ")
    missing = len(found.only_in_a) + len(found.only_in_b)
    are = "is" if missing == 1 else "are"
    keys = counted(len(found.constants), "key")
    configs = f"; the configs differ in {keys}" if found.constants else ""
    verdict = f"different: {tensors}, {missing} {are} only on one side{configs}"
    return "\n".join([*lines, verdict])


def _difference_row(one: TensorDifference) -> list[str]:
    what, figures = one.what, [""] * 5
    if one.count:
        figures = [
            f"{one.count:,} of {one.elements:,}",
            f"{one.max_abs:.3g}",
            "" if one.relative_l2 is None else f"{one.relative_l2:.3g}",
            str(list(one.index or ())),
            f"{one.source} {list(one.source_index or ())}" if one.source else "",
        ]
        if one.dtypes[0] != one.dtypes[1]:
            what += f" ({one.dtypes[0]}, {one.dtypes[1]})"
    if one.nonfinite:
        what += f", {one.nonfinite:,} of them not finite"
    return [one.name, what, *figures]


def check_text(found: Check) -> str:
    """What comparing with a manifest found; the last line is the verdict."""
    lines = [
        f"{found.path} against {found.manifest}: {counted(found.files, 'file')}, "
        f"{counted(found.tensors, 'tensor')}, {size(found.bytes)}"
    ]
    lines += [*found.problems[:_SHOWN_DIFFERENCES], *more(found.problems, _SHOWN_DIFFERENCES)]
    if found.equal:
        return "\n".join([*lines, "the same: every tensor is what was written"])
    return "\n".join([*lines, f"different: {counted(len(found.problems), 'problem')}"])


def verification_text(found: Verification | SideBySide) -> str:
    """What the forward check found; the last line is the verdict."""
    from ckptforge.cli.verify_report import likeness, rows, summary
    from ckptforge.verbs.side_by_side import SideBySide

    if isinstance(found, SideBySide):
        return "\n".join(likeness(found))
    how = f"{counted(found.tokens, 'token')}, {found.layout}, {found.device}, {found.compute}"
    sides = [f"torch      {found.hf_dir}", f"mindspore  {found.ms} ({how})"]
    return "\n".join([*sides, "", table(rows(found)), "", *summary(found)])


def _parts_table(parts: list[PartLine], most: int | None) -> str:
    """A line for each part of each kind of tensor, `most` of a kind: its indexes, and the ranks
    that hold it."""
    rows = [["tensor", "full shape", "part", "ranks"]]
    for kind in parts:
        by_part: dict[str, list[int]] = {}
        for rank, box in kind.boxes.items():
            part = ", ".join(f"{lo}:{hi}" for lo, hi in box)
            by_part.setdefault(f"[{part}]", []).append(rank)
        others = f" (+{kind.count - 1} alike)" if kind.count > 1 else ""
        titles = [kind.tensor + others, str(kind.shape)]
        for part, ranks in list(by_part.items())[:most]:
            rows.append([*titles, part, _ranks(ranks)])
            titles = ["", ""]
        for said in more(list(by_part), most) if most is not None else ():
            rows.append([*titles, said, ""])
    return table(rows)


def _ranks(ranks: list[int]) -> str:
    if len(ranks) <= _SHOWN_RANKS:
        return " ".join(map(str, ranks))
    return f"{runs_of(ranks)} ({len(ranks):,} in all)"
