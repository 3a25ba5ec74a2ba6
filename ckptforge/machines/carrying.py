"""How a unit is carried out: by the engine, into the file in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ckptforge.machines.hashed import HashedBlocks
from ckptforge.machines.units import Unit, of_unit
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.file_system import file_system_of
from ckptforge.publish.kept import kept_tensors
from ckptforge.publish.publisher import publisher_of
from ckptforge.publish.refusals import as_output_error
from ckptforge.run.audit import Audit
from ckptforge.run.blocks import Block
from ckptforge.run.budget import Budget
from ckptforge.run.run import run
from ckptforge.run.schedule import Finished, Key, Ledger
from ckptforge.run.source_hashes import SourceBlock, SourceHashes
from ckptforge.storage.mounts import absolute


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A unit by itself, which can be sent to another process: a plan of its tensors, and the blocks
    of sources that it hashes."""

    plan: Plan
    blocks: Mapping[SourceBlock, Block]

    @classmethod
    def of(cls, plan: Plan, unit: Unit, hashed: HashedBlocks, whole: bool) -> Work:
        """A unit of a plan, which is a `whole` file or a part of one."""
        own = of_unit(plan, unit, whole)
        return cls(plan=own, blocks=hashed.of(own.assemblies))


class Remembering(Ledger, Protocol):
    """A ledger that knows what was finished before."""

    @property
    def tensors(self) -> dict[Key, Finished]:
        """Those that are finished."""
        ...


class Carried(msgspec.Struct, frozen=True):
    """What became of a unit: the counts of its casts, and what who publishes must know of its file
    (`Publication.take_over`)."""

    audit: Audit
    left: Any


def carry_out(
    work: Work,
    ledger: Remembering,
    budget: Budget,
    progress: Callable[[int], None],
    *,
    durable: bool = True,
    made: bool = False,
) -> Carried:
    """Writes the tensors of a unit, except those in the ledger that are there, and hashes what it
    reads of the sources; all goes into the ledger. What was written is `durable` then, but for the
    file's name (`sync_names`); see `Publisher.opened`. Raises the errors of reading and writing."""
    plan, publisher = work.plan, publisher_of(work.plan.output)
    (file,) = plan.files
    with publisher.opened(plan, budget.total, durable=durable, made=made) as opened:
        targets = {file.path: opened.writer}
        kept = kept_tensors(plan, ledger.tensors, targets, budget)
        done = run(
            plan,
            targets,
            budget,
            lambda count, _: progress(count),
            SourceHashes.of_blocks(work.blocks, ledger.sources),
            ledger,
            kept,
        )
        return Carried(done.audit, opened.settle())


def sync_names(plan: Plan, path: Path) -> None:
    """Makes the names durable under which a file in the making is found. Raises `OutputError`."""
    top, disk = absolute(staging_path(plan.output)), file_system_of(plan.output)
    with as_output_error(plan.output, "can't be synced to disk"):
        for directory in absolute(path).parents:
            if directory == top.parent.parent:
                break
            disk.sync_directory(directory)
