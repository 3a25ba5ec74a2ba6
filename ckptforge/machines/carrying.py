"""How a unit is carried out: by the engine, into the file in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Protocol

import msgspec

from ckptforge.machines.units import Unit, of_unit, source_blocks
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staged_file, staging_path
from ckptforge.publish.file_system import file_system_of, sync
from ckptforge.publish.kept import kept_tensors
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.staging import open_target
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import Block
from ckptforge.run.budget import Budget
from ckptforge.run.pool import run_tasks
from ckptforge.run.run import run
from ckptforge.run.schedule import Finished, Key, Ledger
from ckptforge.storage.mounts import absolute


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A unit by itself, which can be sent to another process: a plan of its tensors, and its blocks
    of sources by (index of the source, first byte)."""

    plan: Plan
    blocks: Mapping[tuple[int, int], Block]

    @classmethod
    def of(cls, plan: Plan, unit: Unit) -> Work:
        """A unit of a plan."""
        blocks = {(i, block.at): block for i, block in source_blocks(plan, unit)}
        return cls(plan=of_unit(plan, unit), blocks=blocks)


class Remembering(Ledger, Protocol):
    """A ledger that knows what was finished before."""

    @property
    def tensors(self) -> dict[Key, Finished]:
        """Those that are finished."""
        ...


def carry_out(
    work: Work, ledger: Remembering, budget: Budget, progress: Callable[[int], None]
) -> Audit:
    """Writes the tensors of a unit durably, except those in the ledger that are there, and hashes
    its share of the sources; all goes into the ledger. Returns the counts of its casts. Raises the
    errors of reading and writing."""
    plan, disk = work.plan, file_system_of(work.plan.output)
    (file,) = plan.files
    path = staged_file(plan, file.path)
    with as_output_error(plan.output, f"can't be written in {path}"):
        opened = open_target(disk, path, file)
    with closing(opened) as writer:
        targets = {file.path: writer}
        kept = kept_tensors(plan, ledger.tensors, targets, budget)
        tensors = _OfTensors(ledger)
        done = run(plan, targets, budget, lambda count, _: progress(count), True, tensors, kept)
        _hash_sources(work, ledger, budget)
        sync(writer, path)
    top = absolute(staging_path(plan.output))
    with as_output_error(plan.output, "can't be synced to disk"):
        for directory in absolute(path).parents:  # or its name might not be durable
            if directory == top.parent.parent:
                break
            disk.sync_directory(directory)
    return done.audit


class _OfTensors:
    """A ledger for a plan without sources: theirs are hashed apart."""

    def __init__(self, ledger: Ledger) -> None:
        self.add_tensor, self.add_source = ledger.add_tensor, ledger.add_source
        self.sources: dict[tuple[int, int], bytes] = {}


def _hash_sources(work: Work, ledger: Ledger, budget: Budget) -> None:
    left = {block: key for key, block in work.blocks.items() if key not in ledger.sources}

    def finished(block: Block, digest: bytes) -> None:
        ledger.add_source(*left[block], digest)

    run_tasks(iter(left), budget, finished)
