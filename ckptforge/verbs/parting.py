"""A job as one of several processes carries it out, and what they must know to be finished."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from ckptforge.errors import UsageError
from ckptforge.machines.running import PartDone, PartOptions, run_part
from ckptforge.machines.share import Share, share_of
from ckptforge.machines.units import Unit, parts_of
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staged_file
from ckptforge.publish.file_system import file_system_of
from ckptforge.publish.journal import head_of
from ckptforge.publish.publisher import publisher_of
from ckptforge.publish.tree import lies_at
from ckptforge.run.audit import Audit
from ckptforge.run.run import cache_bytes
from ckptforge.spelling import command, option
from ckptforge.storage.store import Kind
from ckptforge.verbs.choices import budget_of
from ckptforge.verbs.options import Parted
from ckptforge.verbs.options.record import options_of, verb_of
from ckptforge.verbs.result import Result, dry_result, result_of
from ckptforge.wording import counted

# Set while `finish` publishes what parts wrote, whose ledgers it trusts or checks.
FINISHING: ContextVar[Literal["trusting", "checking"] | None] = ContextVar(
    "FINISHING", default=None
)
# What is of one process, and not of the job.
_OWN = {
    "command",
    "part",
    "dask",
    "executor",
    "progress",
    "steal",
    "steal_after",
    "workers",
    "memory",
    "io",
    "resume",
    "dry_run",
    "no_hash",
}


def run_as_part(plan: Plan, options: Parted, check: Callable[[Audit], None]) -> Result:
    """Carries out one part of a plan, or only checks it. Raises `UsageError`, `OutputError`."""
    assert options.part is not None
    share = share_of(options.part, os.environ)
    if not options.steal_after > 0:
        raise UsageError(f"{option('steal_after', options.steal_after)}: expected seconds above 0.")
    publisher = publisher_of(plan.output)
    publisher.check(plan, options.overwrite)
    owned = list(zip(*parts_of(plan, share.count), strict=True))
    plan.assemblies.prove({unit.file for unit, owner in owned if owner == share.number})
    budget = budget_of(options).caching(cache_bytes(plan.assemblies.values.values()))
    if options.dry_run:
        result = dry_result(plan, budget)
        result.facts.update(part=str(share), units=_units(plan, owned))
        return result
    publisher.check_room(plan, _written(plan))
    began = time.monotonic()
    head = {
        **head_of(plan, options.command),
        "parts": share.count,
        "call": [verb_of(type(options)), _given(options)],
        "cwd": None if _all_absolute(plan, options) else str(Path.cwd()),
    }
    done = run_part(
        plan,
        head,
        PartOptions(
            share=share,
            budget=budget,
            check=check,
            progress=options.progress,
            steal_after=options.steal_after if options.steal else None,
        ),
    )
    return result_of(
        plan,
        files=(),
        bytes=done.nbytes,
        tensors=done.tensors,
        audit=done.audit,
        facts={**plan.facts, "part": str(share)},
        notes=_notes(plan, share, done),
        seconds=time.monotonic() - began,
        peak_buffers=budget.total,
    )


def _written(plan: Plan) -> int:
    """Bytes of disk that parts have filled already."""
    disk, staged = file_system_of(plan.output), [staged_file(plan, one.path) for one in plan.files]
    return sum(disk.status(path).disk_bytes for path in staged if lies_at(disk, path, Kind.FILE))


def _units(plan: Plan, owned: Sequence[tuple[Unit, int]]) -> list[dict[str, Any]]:
    names = [plan.name_of(file.path) for file in plan.files]
    return [
        {
            "file": names[unit.file],
            "tensors": unit.last - unit.first,
            "bytes": unit.nbytes,
            "part": owner,
        }
        for unit, owner in owned
    ]


def _notes(plan: Plan, share: Share, done: PartDone) -> tuple[str, ...]:
    notes = list(plan.notes)
    if done.before:
        notes.append(f"{counted(done.before, 'unit', 'were')} finished before.")
    if done.taken:
        notes.append(f"{counted(done.taken, 'unit', 'were')} taken over from other parts.")
    if done.lost:
        notes.append(f"{counted(done.lost, 'unit', 'were')} taken over by other parts.")
    notes.append(
        f"when all {counted(share.count, 'part')} are done, {command('finish', plan.output)} "
        "publishes the output."
    )
    return tuple(notes)


def _given(options: Parted) -> dict[str, Any]:
    """What the job was called with, as JSON has it."""
    known = options_of(type(options))
    return {
        name: _as_json(value)
        for name, value in vars(options).items()
        if name not in _OWN and value != known[name].default
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else value.item()


def _all_absolute(plan: Plan, options: Parted) -> bool:
    paths = [value for value in vars(options).values() if isinstance(value, Path)]
    return all(path.is_absolute() for path in (*paths, *(file.path for file in plan.sources)))
