"""The lock of a staging directory: the kernel's (flock), which a dead process doesn't keep."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from ckptforge.errors import OutputError
from ckptforge.publish.directory import PARTS, names_of
from ckptforge.publish.file_system import FileSystem, LockableWriter
from ckptforge.publish.tree import lies_at
from ckptforge.storage.store import Kind, Writer

_TRIES = 100


def lock_directory(
    disk: FileSystem, directory: Path, output: Path, shared: bool = False
) -> LockableWriter:
    """Makes a staging directory, if it isn't there, and locks it, alone or with others that share
    it; returns the file that holds the lock.

    Raises `OutputError` where another run holds it, and where it can't be made.
    """
    for _ in range(_TRIES):
        try:
            lock = _open_lock(disk, directory)
        except FileNotFoundError:
            if not lies_at(disk, directory.parent, Kind.DIRECTORY, follow=True):
                raise OutputError(
                    f"{output}: can't be written: there is no directory {directory.parent}."
                ) from None
            continue  # it was removed by the run that held it
        except OSError as error:
            raise OutputError(
                f"{output}: can't be written: {error.strerror} in {output.parent}."
            ) from error
        signed = False
        try:
            if not lock.lock(shared):
                raise OutputError(
                    f"{output}: another run is writing it ({_holder(lock)}); wait for it to "
                    "finish, or stop it."
                )
            # or the run that held it has removed it
            if is_same(disk, lock, directory / "lock"):
                _sign(lock)
                signed = True
                return lock
        finally:
            if not signed:
                lock.close()
    raise OutputError(
        f"{output}: {directory} can't be locked, as other runs keep making and removing it; wait "
        "for them to finish."
    )


def _open_lock(disk: FileSystem, directory: Path) -> LockableWriter:
    if lies_at(disk, directory, Kind.LINK):
        raise OutputError(
            f"{directory}: is a symbolic link, which no run of ckptforge made; remove it."
        )
    try:
        disk.make_directory(directory)
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        if lies_at(disk, directory.parent, Kind.DIRECTORY, follow=True):  # such as /proc
            raise OutputError(
                f"{directory}: can't be made: no directories can be made in {directory.parent}; "
                "choose another output."
            ) from error
        raise
    if lies_at(disk, directory) and not lies_at(disk, directory, Kind.DIRECTORY):
        raise OutputError(
            f"{directory}: isn't a directory, so no run of ckptforge made it; move it, or choose "
            "another output."
        )
    if foreign := names_of(disk, directory) - PARTS:
        raise OutputError(
            f"{directory}: holds {min(foreign)}, which no run of ckptforge made; move it, or "
            "choose another output."
        )
    return disk.create(directory / "lock")


def _holder(lock: LockableWriter) -> str:
    """Who signed a lock."""
    text = bytearray(200)
    signature = bytes(text[: lock.read_into(0, memoryview(text))])
    return signature.decode("utf-8", "replace") or "it has not said which"


def _sign(lock: LockableWriter) -> None:
    """Says who holds a lock, for the message of another run."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()} since {now}".encode()
    with suppress(OSError):
        lock.resize(0)
        lock.write(0, memoryview(text))


def unlock(disk: FileSystem, lock: LockableWriter, directory: Path) -> None:
    """Gives a lock back, and removes an empty directory: NFS keeps what is open."""
    with suppress(OSError):
        lock.close()
    with suppress(OSError):
        disk.remove_directory(directory)


def is_same(disk: FileSystem, file: Writer, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return file.status().number == disk.status(path, follow=False).number
    except OSError:
        return False
