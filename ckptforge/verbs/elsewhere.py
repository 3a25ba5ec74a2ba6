"""A job whose work is done by the workers of an executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext

from ckptforge.errors import UsageError, shown
from ckptforge.machines.dask_cluster import dask_executor
from ckptforge.machines.executing import execute
from ckptforge.planning.plan import Plan
from ckptforge.publish.directory import staging_path
from ckptforge.publish.kept import finished_tensors
from ckptforge.publish.publisher import Publication
from ckptforge.run.audit import Audit
from ckptforge.run.run import cache_bytes
from ckptforge.run.schedule import Finished
from ckptforge.spelling import option
from ckptforge.storage.mounts import absolute
from ckptforge.values import Place
from ckptforge.verbs.choices import budget_of
from ckptforge.verbs.options import Parted, Running

Done = tuple[dict[Place, Finished], list[str]]


def is_elsewhere(options: Running) -> bool:
    """Whether an executor was given. Raises `UsageError` for what is none."""
    if not isinstance(options, Parted) or (options.dask is None and options.executor is None):
        return False
    if options.dask is None and not callable(getattr(options.executor, "submit", None)):
        raise UsageError(
            f"{option('executor')} is {shown(options.executor)}: expected an executor of "
            "concurrent.futures, or one like them."
        )
    return True


def done_elsewhere(
    plan: Plan,
    options: Parted,
    out: Publication,
    kept: dict[Place, Finished],
    check: Callable[[Audit], None],
) -> Done:
    """What workers have finished of a plan whose files are open, with what is `kept`, and notes."""
    cached = cache_bytes(plan.assemblies.values.values())
    single = options if options.workers is not None else options.replace(workers=1)
    with _executor(options, plan) as executor:
        done = execute(
            plan,
            executor,
            budget_of(single).caching(cached),
            out=out,
            kept=kept,
            check=check,
            progress=options.progress,
        )
    return {**kept, **finished_tensors(plan, done.tensors)}, done.notes


def _executor(options: Parted, plan: Plan) -> AbstractContextManager[Executor]:
    if options.dask is not None:
        return dask_executor(options.dask, absolute(staging_path(plan.output)))
    return nullcontext(options.executor)
