"""The end of a run of parts: their ledgers become the journal of one run, which is gone on with."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

from ckptforge.errors import LeftError, OutputError
from ckptforge.machines.parts import Parts, finished_units
from ckptforge.machines.units import Unit, parts_of
from ckptforge.planning.plan import Plan
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import staged_file
from ckptforge.publish.journal import Journal
from ckptforge.publish.lock import lock_directory, unlock
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.tree import lies_at
from ckptforge.spelling import command, option
from ckptforge.storage.store import Kind
from ckptforge.wording import counted, listing


def gather(plan: Plan) -> None:
    """Makes the journal of a run of what all parts wrote, for it to be gone on with and published.

    Raises `OutputError` that names the parts that are missing or not finished, and `LeftError`
    where they are of another plan.
    """
    parts, output = Parts(plan.output), plan.output
    with as_output_error(output, "its parts can't be read"):
        head = parts.head
        if head is None:
            raise OutputError(
                f"{output}: no parts of a run are there to be finished; run them first, each with "
                f"{option('part')}."
            )
        own = journals.head_of(plan, head.get("command"))
        if reason := journals.differences(head, own):
            raise LeftError(
                f"{output}: its parts can't be finished: {reason}. Remove them with "
                f"{command('clean', output)}."
            )
        path = parts.directory.parent / "journal"
        left = journals.look(parts.disk, path) if lies_at(parts.disk, path) else None
        if left is not None and left.publishing is not None:
            return
        count = int(head["parts"])
        units, owners = parts_of(plan, count)
        ledgers = parts.ledgers()
        _refuse_unfinished(parts, ledgers, units, owners, count)
        _refuse_missing_files(parts, plan, units)
        lock = lock_directory(parts.disk, parts.directory.parent, output)
        try:
            with closing(journals.begin(parts.disk, path, own)) as journal:
                _fill(journal, plan, units, ledgers)
        finally:
            unlock(parts.disk, lock, parts.directory.parent)


def _fill(journal: Journal, plan: Plan, units: list[Unit], ledgers: dict[int, Journal]) -> None:
    for ledger in ledgers.values():
        for number in ledger.units:
            unit = units[number]
            file = plan.files[unit.file]
            for name in islice(file.places, unit.first, unit.last):
                key = plan.name_of(file.path), name
                if key in ledger.tensors and key not in journal.tensors:
                    journal.add_tensor(key, ledger.tensors[key])
        for (i, start), digest in ledger.sources.items():
            if (i, start) not in journal.sources:
                journal.add_source(i, start, digest)
    journal.sync()


def _refuse_unfinished(
    parts: Parts, ledgers: dict[int, Journal], units: list[Unit], owners: list[int], count: int
) -> None:
    done = finished_units(ledgers)
    lacking = []
    for part in range(1, count + 1):
        own = [unit.number for unit in units if owners[unit.number] == part]
        left = sum(number not in done for number in own)
        if left and part not in ledgers:
            lacking.append(f"{part}/{count}: hasn't been run")
        elif left:
            lacking.append(f"{part}/{count}: {len(own) - left} of {len(own)} units are finished")
    if lacking:
        raise OutputError(
            f"{parts.output}: {counted(len(lacking), 'part')} of {count} not finished, so that "
            f"nothing was published:\n{listing(lacking)}\nRun each of them, with "
            f"{option('part')}, again."
        )


def _refuse_missing_files(parts: Parts, plan: Plan, units: list[Unit]) -> None:
    for file in {unit.file for unit in units}:
        path, size = staged_file(plan, plan.files[file].path), plan.files[file].size
        there = lies_at(parts.disk, path, Kind.FILE)
        if not there or parts.disk.status(path, follow=False).size != size:
            raise OutputError(
                f"{path}: a part has written this, but no file of {size} bytes is there (any more, "
                f"or on this machine); remove what is there with {command('clean', parts.output)}."
            )
