"""Dask as an executor: a cluster that runs, or processes on this machine.

Source: https://distributed.dask.org/en/stable/api.html (Client, LocalCluster, get_executor).
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckptforge.errors import CkptforgeError, OutputError, UsageError, shown
from ckptforge.foreign.files import read_small
from ckptforge.publish.file_system import file_system_of
from ckptforge.publish.refusals import as_output_error
from ckptforge.publish.single_file import write_small
from ckptforge.spelling import option
from ckptforge.version import __version__
from ckptforge.wording import install_hint, listing

_TOKEN = 64  # bytes at most
_SECONDS = 30  # to wait for a scheduler


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
        cluster = LocalCluster(
            n_workers=int(local[1]), threads_per_worker=1, dashboard_address=None
        )
    try:
        try:
            client = Client(cluster, timeout=_SECONDS)
        except (OSError, ValueError) as error:
            raise OutputError(f"no scheduler of dask answers at {where}: {error}.") from error
        with client:
            _check_workers(client, where, shared)
            yield client.get_executor()
    finally:
        if local is not None:
            cluster.close()


def _check_workers(client: Any, where: str, shared: Path) -> None:
    """Each worker says its version, reads a token in the shared directory and writes it beside."""
    client.wait_for_workers(1, timeout=_SECONDS)
    token, path = secrets.token_hex(8), shared / f"token-{secrets.token_hex(8)}"
    disk = file_system_of(shared)
    with as_output_error(shared, "can't be written"):
        write_small(disk, path, token.encode())
    try:
        answers = client.run(_seen, str(path), on_error="return")
        wrong = [
            f"{worker}: {problem}"
            for worker, answer in sorted(answers.items())
            if (problem := _problem(answer, token, shared))
        ]
    finally:
        for left in disk.names(shared):
            if left.startswith(path.name):
                with suppress(OSError):
                    disk.unlink(shared / left)
    if wrong:
        raise OutputError(
            f"workers of dask at {where} can't be used, so nothing was written:\n{listing(wrong)}\n"
            "All need the same ckptforge, and the directory of the output under the same path."
        )


def _problem(answer: Any, token: str, shared: Path) -> str | None:
    if not isinstance(answer, tuple):
        return f"{type(answer).__name__}: {answer}"
    version, read, written = answer
    if version != __version__:
        return f"has ckptforge {version}, not {__version__}"
    with suppress(CkptforgeError):
        if read == token == read_small(Path(written), _TOKEN).decode():
            return None
    return f"doesn't share {shared}"


def _seen(path: str) -> tuple[str, str, str]:
    """Run by a worker: (its version, what it reads at a path, where it wrote the same)."""
    token, written = "", f"{path}-{socket.gethostname()}-{secrets.token_hex(4)}"
    with suppress(CkptforgeError):
        token = read_small(Path(path), _TOKEN).decode()
        write_small(file_system_of(Path(path)), Path(written), token.encode())
    return __version__, token, written
