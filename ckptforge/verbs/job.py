"""Jobs: a plan with what its manifest needs, and how it is carried out. The same for every verb."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

import msgspec

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.files import refuse_changed
from ckptforge.checkpoints.manifest import manifest_path
from ckptforge.errors import CastOverflowError, FormatError, UsageError
from ckptforge.machines.gathering import gather
from ckptforge.planning.plan import Plan
from ckptforge.publish.consuming import Consuming, refuse_to_consume
from ckptforge.publish.earlier import Request
from ckptforge.publish.journal import Journal
from ckptforge.publish.kept import finished_tensors
from ckptforge.publish.manifest import manifest_json
from ckptforge.publish.publisher import ByRename, Publication, Publisher, RunLedger, publisher_of
from ckptforge.reading.tied import Tied
from ckptforge.reading.tied import notes as tied_notes
from ckptforge.run.audit import Audit
from ckptforge.run.budget import Budget
from ckptforge.run.needs import most_disk
from ckptforge.run.run import Done, cache_bytes, run
from ckptforge.run.schedule import Finished
from ckptforge.run.source_hashes import SourceHashes
from ckptforge.spelling import command, flag
from ckptforge.storage.mounts import through
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Place
from ckptforge.verbs.choices import budget_of, disk_of
from ckptforge.verbs.elsewhere import done_elsewhere, is_elsewhere
from ckptforge.verbs.options import Overflow, Parted, Running
from ckptforge.verbs.parting import FINISHING, run_as_part
from ckptforge.verbs.result import Result, dry_result, result_of
from ckptforge.wording import brief, counted

_log = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True):
    """A plan with what its manifest needs; `manifest` is False for outputs that other programs read
    whole directories of. `tied` are stored tensors that config.json says aren't used."""

    plan: Plan
    table: Table | None = None
    layout: Layout | None = None
    side: HuggingFaceSide | None = None
    manifest: bool = True
    tied: tuple[Tied, ...] = ()

    def __repr__(self) -> str:
        return f"<Job of {self.plan.verb}: {brief(self.plan.output)}>"


class _Way(msgspec.Struct, frozen=True):
    """How a plan is carried out: by processes `elsewhere`, with sources that go (`consuming`), or
    of what the parts of a run have written (`finishing`, and how far they are trusted)."""

    elsewhere: bool
    consuming: bool
    finishing: str | None

    @property
    def needs_journal(self) -> bool:
        """Whether what is finished must be known by its hash."""
        return self.finishing is not None or self.elsewhere or self.consuming


def run_job(job: Job, options: Running) -> Result:
    """Carries a plan out, or only checks it. Raises `OutputError`, `CastOverflowError`."""
    with through(disk_of(options.io)):
        return _run(job, options)


def _run(job: Job, options: Running) -> Result:
    plan, publisher = job.plan, publisher_of(job.plan.output)
    way = _way_of(plan, publisher, options)
    if isinstance(options, Parted) and options.part is not None:
        return run_as_part(plan, options, partial(_refuse_bad, plan, options))
    plan.assemblies.prove()
    if way.finishing is not None:
        gather(plan)
    budget = budget_of(options).caching(cache_bytes(plan.assemblies.values.values()))
    if options.resume and not options.dry_run and publisher.finish(plan, options.command):
        notes = (*plan.notes, "all was written already; only the manifest had to be put in place.")
        return result_of(plan, files=_files(job), notes=notes)
    _log_plan(plan, budget)
    publisher.check(plan, options.overwrite)
    if options.dry_run:
        spared = _spared(plan, None) if way.consuming else 0
        return dry_result(plan, budget, tied_notes(job.tied, None), spared)
    return _written(job, publisher, options, way, budget)


def _way_of(plan: Plan, publisher: Publisher, options: Running) -> _Way:
    """Raises `UsageError` and `OutputError` for a way that output or sources don't allow."""
    elsewhere = is_elsewhere(options)
    consuming = _is_consuming(plan, options)
    parted = isinstance(options, Parted) and options.part is not None
    if (parted or consuming) and not isinstance(publisher, ByRename):
        way = "part" if parted else "consume"
        raise UsageError(
            f"{plan.output}: isn't on a disk, which {flag(way)} needs; write to one, or give "
            "no such option."
        )
    return _Way(elsewhere, consuming, FINISHING.get())


def _written(job: Job, publisher: Publisher, options: Running, way: _Way, budget: Budget) -> Result:
    """Writes a job's output and puts it in its place."""
    plan, began = job.plan, time.monotonic()
    hashing = (job.manifest or way.needs_journal) and not options.no_hash
    request = Request(
        options.overwrite,
        options.resume,
        hashing,
        options.command,
        budget.total,
        several=way.elsewhere,
    )
    with publisher.publication(plan, request) as out:
        spared = _spared(plan, out.journal) if way.consuming else out.disk_used
        publisher.check_room(plan, spared)
        _refuse_unlike(plan, budget)
        tie_notes = tied_notes(job.tied, budget)
        known = out.journal.tensors if out.journal is not None else {}
        trusting = way.finishing == "trusting"
        kept = finished_tensors(plan, known) if trusting else dict(out.kept(budget))
        total = counted(plan.tensor_count, "tensor")
        _log.info("checked output path and disk space; %s of %s finished before", len(kept), total)
        mended = len(finished_tensors(plan, known)) - len(kept) if way.finishing else 0
        done, again = _carried_out(plan, out, options, way, budget, hashing, kept)
        _log.info("copied%s in %.2f s", " and hashed" if hashing else "", time.monotonic() - began)
        if job.manifest:
            _add_manifest(job, out, done, options.command)
    _log.info("synced and renamed; %.2f s in all", time.monotonic() - began)
    remains = []
    if mended:
        remains.append(
            f"{counted(mended, 'tensor', 'were')} made again: the file no longer held what a part "
            "had written."
        )
    if (left := publisher.remains(plan.output)) is not None:
        way_out = command("clean", plan.output.parent)
        remains.append(f"{left} couldn't be removed wholly; see {way_out}.")
    return result_of(
        plan,
        files=_files(job),
        audit=done.audit,
        notes=(*plan.notes, *tie_notes, *again, *remains),
        seconds=time.monotonic() - began,
        peak_buffers=budget.total,
    )


def _carried_out(
    plan: Plan,
    out: Publication,
    options: Running,
    way: _Way,
    budget: Budget,
    hashing: bool,
    kept: dict[Place, Finished],
) -> tuple[Done, list[str]]:
    """Makes what isn't `kept`; returns what that did, and what is to be said of other processes."""
    again: list[str] = []
    check = partial(_refuse_bad, plan, options)
    if way.elsewhere:
        assert isinstance(options, Parted)
        kept, again = done_elsewhere(plan, options, out, kept, check)
    consumer = None
    if way.consuming:
        assert isinstance(out.journal, Journal)
        refuse = partial(_refuse_overflow, plan, options)
        consumer = Consuming(plan, out.journal, out.writers, refuse)
    known = out.journal.sources if out.journal is not None else {}
    sources = SourceHashes.of_plan(plan, known) if hashing else None
    done = run(plan, out.writers, budget, options.progress, sources, out.journal, kept, consumer)
    check(done.audit, () if consumer is None else consumer.gone)
    return done, again


def _is_consuming(plan: Plan, options: Running) -> bool:
    """Whether sources are removed. Raises `OutputError` where they can't be."""
    if not isinstance(options, Parted) or not options.consume:
        return False
    refuse_to_consume(plan)
    return True


def _spared(plan: Plan, journal: RunLedger | None) -> int:
    """Bytes of an output for which no disk is needed, as it was written or as sources go."""
    known = journal.tensors if journal is not None else {}
    return plan.nbytes - most_disk(plan, finished_tensors(plan, known))


def _files(job: Job) -> tuple[Path, ...]:
    """What a job writes, the manifest last."""
    plan = job.plan
    manifest = [manifest_path(plan.output, plan.is_directory)] if job.manifest else []
    return (*plan.paths, *manifest)


def _log_plan(plan: Plan, budget: Budget) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    from ckptforge.kernels.library import arithmetic  # which loads them

    made, tensors = counted(len(plan.files), "file"), counted(plan.tensor_count, "tensor")
    sources = counted(len(plan.sources), "file")
    _log.info("plan: %s with %s, %s bytes, from %s", made, tensors, f"{plan.nbytes:,}", sources)
    workers, each = counted(budget.workers, "worker"), f"{budget.bytes_each:,}"
    _log.info("budget: %s with %s bytes of buffers each; %s", workers, each, arithmetic())


def _add_manifest(job: Job, out: Publication, done: Done, command: str | None) -> None:
    """The manifest, with the command that the run was begun with."""
    out.sync()
    begun = command if out.journal is None else out.journal.head.get("command")
    name = manifest_path(job.plan.output, job.plan.is_directory).name
    content = manifest_json(job.plan, job.table, job.layout, job.side, done, out.mtimes, begun)
    out.small_files[name] = content


def _refuse_bad(plan: Plan, options: Running, audit: Audit, gone: Collection[int] = ()) -> None:
    """Raises `CastOverflowError`, and the errors for sources that have changed meanwhile."""
    _refuse_overflow(plan, options, audit)
    for i, source in enumerate(plan.sources):
        if i not in gone:
            refuse_changed(source)


def _refuse_overflow(plan: Plan, options: Running, audit: Audit) -> None:
    if audit.overflowed and not (isinstance(options, Overflow) and options.allow_overflow):
        raise CastOverflowError(_overflow_message(plan, audit))


def _refuse_unlike(plan: Plan, budget: Budget) -> None:
    if not (pairs := plan.account.must_equal):
        return
    from ckptforge.examine.differences import unlike  # with numpy, for which no plan should wait

    if found := unlike(pairs, budget):
        (name, original), *_ = found.items()
        path = pairs[name, original][0].origin.path
        raise FormatError(
            f"{path}: {name} should be a copy of {original}, and holds something else; nothing was "
            f"written. Give {flag('allow_unmapped')} to leave it out."
        )


def _overflow_message(plan: Plan, audit: Audit) -> str:
    worst = [
        f"{group}: {count.overflowed:,} of {count.values:,} ({source} → {target})"
        for (group, source, target), count in sorted(audit.counts.items())
        if count.overflowed
    ]
    return (
        f"{plan.output}: {counted(audit.overflowed, 'finite value')} would become infinite, and "
        "nothing was written:\n  "
        + "\n  ".join(worst)
        + f"\nChoose a dtype with a larger range (bf16, fp32), or give {flag('allow_overflow')}."
    )
