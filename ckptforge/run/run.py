"""The engine: carries out a plan with a fixed memory budget and several workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.planning.assembly import Assembly
from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit
from ckptforge.run.begun import telling
from ckptforge.run.blocks import Hashes
from ckptforge.run.budget import Budget
from ckptforge.run.front_to_back import FrontToBack
from ckptforge.run.needs import Consumer
from ckptforge.run.pool import Progress, run_tasks
from ckptforge.run.schedule import Kept, Ledger, Schedule
from ckptforge.run.source_hashes import SourceHashes
from ckptforge.run.tasks import Sealing
from ckptforge.storage.store import OrderedWriter, Writer
from ckptforge.values import Value


class Done(msgspec.Struct, frozen=True):
    """What a run did: the counts of its casts, and the hashes of what was read and written if they
    were wanted."""

    audit: Audit
    hashes: Hashes | None


def run(
    plan: Plan,
    targets: Mapping[Path, Writer],
    budget: Budget,
    progress: Progress | None = None,
    sources: SourceHashes | None = None,
    ledger: Ledger | None = None,
    kept: Kept | None = None,
    consumer: Consumer | None = None,
) -> Done:
    """Writes all tensors of a plan into the open files `targets`, except those `kept`, which are
    there already, and hashes what it writes and the blocks of `sources`, if there are any. With a
    `consumer` sources are let go when nothing needs them.

    `progress(done, total)` is called with bytes of output, by one thread at a time; a method
    `files` of it, if there is one, with the files that are begun and not finished. The first error
    of any worker stops all and is raised.
    """
    in_order = any(isinstance(target, OrderedWriter) for target in targets.values())
    budget = replace(budget, in_order=in_order)
    schedule = Schedule(plan, budget, sources, ledger, kept or {}, consumer)
    before, total = sum(place.nbytes for place in kept or ()), plan.tensor_bytes

    def report(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    queue = FrontToBack(schedule, budget.total // 8) if in_order else schedule
    finished = telling(plan, kept or (), queue.finished, progress)
    run_tasks(queue, budget, finished, report, targets, plan.read)
    if seals := [Sealing(file.path, seal) for file in plan.files for seal in file.seals]:
        run_tasks(iter(seals), budget, targets=targets)
    return Done(schedule.audit, schedule.all_hashes())


def cache_bytes(values: Iterable[Value | Assembly]) -> int:
    """Bytes that a worker must hold beside its buffers for the steps of these tensors."""
    fragments = (one for value in values for one in value.fragments)
    return max(
        (sum(step.memory(one.stored) for step in one.steps) for one in fragments if one.steps),
        default=0,
    )
