"""Dask as an executor: a cluster that runs, or processes on this machine.

Source: https://distributed.dask.org/en/stable/api.html (Client, LocalCluster, get_executor).
"""

from __future__ import annotations

import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckptforge.errors import CkptforgeError, OutputError, UsageError, shown
from ckptforge.publish.publisher import publisher_of
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.sharing import Notes
from ckptforge.spelling import option
from ckptforge.storage.endpoints import at_endpoints, said_endpoints
from ckptforge.version import __version__
from ckptforge.wording import install_hint, listing

_SECONDS = 30  # to wait for a scheduler
_TRIES = 3  # of asking all workers


@contextmanager
def dask_executor(where: str, shared: Path) -> Iterator[Executor]:
    """The workers of the scheduler at an address, or `local:N` processes, each of which has been
    seen to have this version of ours and to share a directory. Raises `UsageError` and
    `OutputError`."""
    local = re.fullmatch(r"local:([1-9][0-9]{0,3})", where)
    if local is None and re.fullmatch(r"(tcp|tls|ws|wss|ucx)://.+", where) is None:
        raise UsageError(
            f"{option('dask')} is {shown(where)}: expected the address of a scheduler, as "
            "tcp://host:8786, or local:N for N processes on this machine."
        )
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError(
            f"{option('dask', where)} needs dask's distributed: {install_hint('dask')}."
        ) from error
    cluster: Any = where
    if local is not None:
        try:
            cluster = LocalCluster(
                n_workers=int(local[1]), threads_per_worker=1, dashboard_address=None
            )
        except (OSError, RuntimeError) as error:
            raise OutputError(
                f"{option('dask', where)}: its processes can't be started: "
                f"{error.__cause__ or error}. Nothing was written; give fewer processes."
            ) from error
    try:
        try:
            client = Client(cluster, timeout=_SECONDS)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"no scheduler of dask answers at {where}: {error}. Start one (dask scheduler), or "
                f"give the address of one that runs with {option('dask')}."
            ) from error
        with client:
            _check_workers(client, where, shared)
            yield client.get_executor()
    finally:
        if local is not None:
            cluster.close()


def _check_workers(client: Any, where: str, shared: Path) -> None:
    """Each worker says its version, reads a token in the shared directory and writes it beside."""
    client.wait_for_workers(1, timeout=_SECONDS)
    token, name = secrets.token_hex(8), f"token-{secrets.token_hex(8)}"
    notes = publisher_of(shared).notes(shared)
    with as_output_error(shared, "can't be written"):
        notes.write(name, token.encode())
    try:
        for _ in range(_TRIES):
            answers = client.run(_seen, shared, name, said_endpoints(), on_error="return")
            if not any(isinstance(answer, OSError) for answer in answers.values()):
                break  # else one is gone, which dask starts again
            time.sleep(1)
        wrong = [
            f"{worker}: {problem}"
            for worker, answer in sorted(answers.items())
            if (problem := _problem(answer, token, notes, shared))
        ]
    finally:
        with suppress(OSError):
            for left in notes.names():
                if left.startswith(name):
                    notes.remove(left)
    if wrong:
        raise OutputError(
            f"workers of dask at {where} can't be used, so nothing was written:\n{listing(wrong)}\n"
            "All need the same ckptforge, and the directory of the output under the same path."
        )


def _problem(answer: Any, token: str, notes: Notes, shared: Path) -> str | None:
    if not isinstance(answer, tuple):
        return f"{type(answer).__name__}: {answer}"
    version, read, written = answer
    if version != __version__:
        return f"has ckptforge {version}, not {__version__}"
    with suppress(OSError):
        if read == token and notes.read(written) == token.encode():
            return None
    return f"doesn't share {shared}"


def _seen(
    shared: Path, name: str, endpoints: Mapping[tuple[str, str], str]
) -> tuple[str, str, str]:
    """Run by a worker: (its version, what it reads of a token, where it wrote the same)."""
    token, written = "", f"{name}-{socket.gethostname()}-{secrets.token_hex(4)}"
    with at_endpoints(endpoints), suppress(CkptforgeError, OSError):
        notes = publisher_of(shared).notes(shared)
        token = (notes.read(name) or b"").decode()
        notes.write(written, token.encode())
    return __version__, token, written
