"""One tensor of a checkpoint, or a part of it, as numpy's file."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ckptforge.errors import UsageError, shown
from ckptforge.examine.window import strided
from ckptforge.spelling import option
from ckptforge.targets.npy import NpyTarget
from ckptforge.targets.target import facts_of, plan_for
from ckptforge.values import Value
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.looked import opened_as
from ckptforge.verbs.options import Extract
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result
from ckptforge.verbs.tensor import ranges_of
from ckptforge.wording import nearest


@verb(Extract)
def extract(options: Extract) -> Result:
    """Writes one tensor of a checkpoint, or a part of it, as numpy's file. Returns a `Result`.

    The tensor may be larger than the memory, in ranks, quantised, or of another layout than the
    checkpoint's.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `LayoutError`, `PlanError`,
    `CastOverflowError` and `OutputError`; nothing is written then.
    """
    target = NpyTarget(options.out)
    opened = opened_as(options)
    model, name = opened.as_model, options.name
    if name not in model.values:
        near = nearest(name, model.values)
        raise UsageError(f"{options.source}: no tensor has the name {shown(name)}.{near}")
    value = model.values[name]
    if options.index is not None:
        value = _part(name, value, options.index)
    dtype = parse_target(options.dtype)
    if dtype is not None and value.dtype.floating:
        opened.refuse_codes(option("dtype"))
        value = replace(value, dtype=dtype)
    facts = facts_of(model, opened.model, opened.layout or "one", "numpy", dtype)
    files = {fragment.stored.path for fragment in value.fragments}
    sources = tuple(file for file in model.files if file.path in files)
    made = replace(model, values={name: value}, files=sources)
    return run_job(Job(plan_for("extract", made, target, facts), manifest=False), options)


def _part(name: str, value: Value, text: str) -> Value:
    """What an index gives of a value. Raises `UsageError`."""
    try:
        index = tuple(map(_item, text.split(",")))
        ranges, kept, turned = ranges_of(name, value.shape, index)
    except (ValueError, IndexError) as error:
        numbers = "expected numbers, slices and ..., such as 0:4,:"
        why = error if isinstance(error, IndexError) else numbers
        raise UsageError(f"{option('index', text)}: {why}") from error
    if any(turned):
        raise UsageError(f"{option('index', text)}: a step must go up; turn the array round.")
    return strided(value, ranges, kept)


def _item(text: str) -> Any:
    word = text.strip()
    if word == "...":
        return ...
    if ":" not in word:
        return int(word)
    return slice(*(int(part) if part.strip() else None for part in word.split(":")))
