"""Jobs: a plan with what its manifest needs, and how it is carried out. The same for every verb."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ckptforge.engine import stream
from ckptforge.engine.audit import Audit
from ckptforge.engine.budget import Budget
from ckptforge.engine.manifest import HuggingFaceSide, manifest_json, manifest_path
from ckptforge.engine.plan import Plan
from ckptforge.engine.publish import check_output, check_room, staged
from ckptforge.engine.stream import Progress
from ckptforge.errors import CastOverflowError
from ckptforge.mapping.table import Layout, Table
from ckptforge.outputs import parse_size
from ckptforge.result import Result, dry_result

PathLike = str | Path


class Planning(TypedDict, total=False):
    """Arguments that shape the plan.

    `dtype`: keep, fp16, bf16, fp32 or fp64. `model`, `mapping`: a table's name, a table's file. `allow_unmapped`: leave
    tensors out that the table doesn't know. `weights_only`: drop optimizer state. `step`: which of several checkpoints.
    """

    dtype: str
    model: str | None
    mapping: PathLike | None
    allow_unmapped: bool
    weights_only: bool
    step: int | None


class Running(TypedDict, total=False):
    """Arguments that shape the run: `memory` in bytes (or "512MB"), `progress(done, total)` in bytes of output, `no_hash` to
    leave the hashes of tensors and sources out of the manifest, `command` the command line to be kept there."""

    overwrite: bool
    allow_overflow: bool
    dry_run: bool
    no_hash: bool
    command: str | None
    workers: int | None
    memory: int | str | None
    progress: Progress | None


class Options(Planning, Running, total=False):
    """The keyword arguments that every verb takes."""


@dataclass(frozen=True)
class Job:
    """A plan with what its manifest needs; `manifest` is False for outputs that other programs read whole directories of."""

    plan: Plan
    table: Table | None = None
    layout: Layout | None = None
    side: HuggingFaceSide | None = None
    manifest: bool = True


def run_job(job: Job, options: Options) -> Result:
    """Carries a plan out, or only checks it for a dry run. Raises `OutputError`, `CastOverflowError` and read errors."""
    memory = options.get("memory")
    budget = Budget.of(options.get("workers"), None if memory is None else parse_size(memory, "--memory"))
    check_output(job.plan, options.get("overwrite", False))
    if options.get("dry_run", False):
        return dry_result(job.plan, budget)
    check_room(job.plan)
    began = time.monotonic()
    with staged(job.plan) as staging:
        hashing = job.manifest and not options.get("no_hash", False)
        done = stream.run(job.plan, staging.descriptors, budget, options.get("progress"), hashing)
        audit = done.audit
        if audit.overflowed and not options.get("allow_overflow", False):
            raise CastOverflowError(_overflow_message(job.plan, audit))
        written = list(job.plan.paths)
        if job.manifest:
            staging.sync()
            mtimes = {path: os.fstat(fd).st_mtime_ns for path, fd in staging.descriptors.items()}
            manifest = manifest_path(job.plan.output, job.plan.is_directory)
            staging.small_files[manifest.name] = manifest_json(
                job.plan, job.table, job.layout, job.side, audit, mtimes, done.hashes, options.get("command")
            )
            written.append(manifest)
    return Result(
        job.plan.verb,
        job.plan.output,
        tuple(written),
        job.plan.nbytes,
        job.plan.tensor_count,
        audit,
        job.plan.left_out,
        job.plan.notes,
        job.plan.facts,
        time.monotonic() - began,
        peak_buffers=budget.total,
    )


def _overflow_message(plan: Plan, audit: Audit) -> str:
    worst = [
        f"{group}: {count.overflowed} of {count.values} ({source} → {target})"
        for (group, source, target), count in sorted(audit.counts.items())
        if count.overflowed
    ]
    return (
        f"{plan.output}: {audit.overflowed} finite values would become infinite, and nothing was written:\n  "
        + "\n  ".join(worst)
        + "\nChoose a dtype with a larger range (bf16, fp32), or give --allow-overflow."
    )
