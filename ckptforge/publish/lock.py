"""The lock of a staging directory: the kernel's (flock), which a dead process doesn't keep."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from ckptforge.errors import OutputError

PARTS = {"lock", "journal", "out", "old"}  # of a staging directory
_TRIES = 100
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def lock_directory(directory: Path, output: Path) -> int:
    """Makes a staging directory, if it isn't there, and locks it; returns the descriptor that holds
    the lock.

    Raises `OutputError` where another run holds it, and where it can't be made.
    """
    for _ in range(_TRIES):
        try:
            if directory.is_symlink():
                raise OutputError(
                    f"{directory}: is a symbolic link, which no run of ckptforge made; remove it."
                )
            directory.mkdir(exist_ok=True)
            if foreign := names_of(directory) - PARTS:
                raise OutputError(
                    f"{directory}: holds {min(foreign)}, which no run of ckptforge "
                    "made; move it, or choose another output."
                )
            fd = os.open(
                directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
        except FileNotFoundError:
            if not directory.parent.is_dir():
                raise OutputError(
                    f"{output}: can't be written: there is no directory {directory.parent}."
                ) from None
            continue  # it was removed by the run that held it
        except OSError as error:
            raise OutputError(
                f"{output}: can't be written: {error.strerror} in {output.parent}."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                holder = os.pread(fd, 200, 0).decode("utf-8", "replace") or "it has not said which"
                os.close(fd)
                raise OutputError(
                    f"{output}: another run is writing it ({holder}); wait for it to "
                    "finish, or stop it."
                ) from None
        try:
            ours = os.stat(directory / "lock").st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            ours = False  # the run that held it has removed it
        if ours:
            with suppress(OSError):  # only for the message of another run
                os.ftruncate(fd, 0)
                os.pwrite(
                    fd,
                    f"process {os.getpid()} on {socket.gethostname()} since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')}".encode(),
                    0,
                )
            return fd
        os.close(fd)
    raise OutputError(
        f"{output}: {directory} can't be locked, as other runs keep making and "
        "removing it; wait for them to finish."
    )


def unlock(fd: int, directory: Path) -> None:
    """Gives a lock back, and removes the directory if nothing is left in it: NFS keeps what is open
    until it is closed."""
    with suppress(OSError):
        os.close(fd)
    with suppress(OSError):
        directory.rmdir()


def names_of(directory: Path) -> set[str]:
    """What lies in a staging directory, except what NFS keeps there of removed files that are open.
    Raises `OSError`."""
    return {name for name in os.listdir(directory) if not name.startswith(".nfs")}


def is_same(fd: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False
