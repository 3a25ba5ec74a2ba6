"""A part of a run: the units of one process, and what it takes over from others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ckptforge.machines.carrying import Work, carry_out, sync_names
from ckptforge.machines.hashed import HashedBlocks
from ckptforge.machines.parts import Parts, finished_units
from ckptforge.machines.share import Share
from ckptforge.machines.units import Unit, parts_of
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staged_file, staging_path
from ckptforge.publish.journal import Journal
from ckptforge.publish.lock import lock_directory, unlock
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.staging import make_parents
from ckptforge.run.audit import Audit
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress

_BEAT = 5.0  # seconds


class PartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a part is run: `check` raises for the casts of a unit that are refused, `steal_after` are
    the seconds after which a part without a heartbeat is taken for dead, None to take nothing."""

    share: Share
    budget: Budget
    check: Callable[[Audit], None]
    progress: Progress | None = None
    steal_after: float | None = None


class PartDone(msgspec.Struct, frozen=True, kw_only=True):
    """What a part did, and of how many units: those of its own that were finished `before`, those
    of other parts that it has `taken`, and those of its own that it has `lost` to others."""

    audit: Audit
    tensors: int = 0
    nbytes: int = 0
    before: int = 0
    taken: int = 0
    lost: int = 0


def run_part(plan: Plan, head: Mapping[str, Any], options: PartOptions) -> PartDone:
    """Carries out a part of a plan in the staging directory that all parts share. Raises
    `OutputError` and the errors of reading."""
    parts = Parts(plan.output)
    directory = staging_path(plan.output)
    make_parents(parts.disk, plan.output)
    lock = lock_directory(parts.disk, directory, plan.output, shared=True)
    try:
        with as_output_error(plan.output, "can't be written"):
            parts.meet(head)
        number, after = options.share.number, options.steal_after
        beat = min(_BEAT, after / 4) if after else _BEAT
        with parts.ledger(options.share) as ledger, parts.beating(number, beat):
            return _Part(plan, parts, ledger, options).run(beat)
    finally:
        unlock(parts.disk, lock, directory)


class _Part:
    def __init__(self, plan: Plan, parts: Parts, ledger: Journal, options: PartOptions) -> None:
        self.plan, self.parts, self.ledger, self.options = plan, parts, ledger, options
        self.me, self.hashed = options.share.number, HashedBlocks(plan)
        self.units, self.owners = parts_of(plan, options.share.count)
        self.own = [unit for unit in self.units if self.owners[unit.number] == self.me]
        self.done, self.total = 0, sum(unit.nbytes for unit in self.own)
        self.audit, self.carried = Audit(), list[Unit]()
        self.seen: dict[int, tuple[bytes, float]] = {}  # part → heartbeat, since when

    def run(self, beat: float) -> PartDone:
        before = lost = 0
        for unit in self.own:
            if unit.number in self.ledger.units:
                before += 1
                self._report(unit.nbytes)
            elif self.parts.takers().get(unit.number, (0, self.me))[1] != self.me:
                lost += 1
            else:
                self._carry_out(unit)
        own = len(self.carried)
        if self.options.steal_after is not None:
            while self._left():
                if (taken := self._taken()) is None:
                    time.sleep(beat)
                else:
                    self.total += taken.nbytes
                    self._carry_out(taken)
        return PartDone(
            audit=self.audit,
            tensors=sum(unit.last - unit.first for unit in self.carried),
            nbytes=sum(unit.nbytes for unit in self.carried),
            before=before,
            taken=len(self.carried) - own,
            lost=lost,
        )

    def _report(self, count: int) -> None:
        self.done += count
        if self.options.progress is not None:
            self.options.progress(self.done, self.total)

    def _carry_out(self, unit: Unit) -> None:
        start, progress = self.done, self.options.progress

        def report(count: int) -> None:
            if progress is not None:
                progress(start + count, self.total)

        work = Work.of(self.plan, unit, self.hashed, False)
        audit = carry_out(work, self.ledger, self.options.budget, report).audit
        sync_names(self.plan, staged_file(self.plan, self.plan.files[unit.file].path))
        self.options.check(audit)
        self.ledger.add_unit(unit.number)
        self.audit.merge(audit)
        self.carried.append(unit)
        self.done += unit.nbytes

    def _left(self) -> list[Unit]:
        """The units that no part has finished."""
        finished = finished_units(self.parts.ledgers()) | self.ledger.units
        return [unit for unit in self.units if unit.number not in finished]

    def _taken(self) -> Unit | None:
        """A unit that this part has taken; None where the hearts of all that hold one beat."""
        takers = self.parts.takers()
        for unit in self._left():
            times, holder = takers.get(unit.number, (0, self.owners[unit.number]))
            if holder == self.me:
                return unit
            if self._is_dead(holder) and self.parts.take(unit.number, times, self.me):
                return unit
        return None

    def _is_dead(self, part: int) -> bool:
        now, beat = time.monotonic(), self.parts.beat_of(part)
        before, since = self.seen.setdefault(part, (beat, now))
        if before != beat:
            self.seen[part] = beat, now
            return False
        return now - since >= (self.options.steal_after or 0)
