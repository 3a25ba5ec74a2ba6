"""This machine's disks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from ckptforge.storage.store import Kind, Reader, Room, Status

# Smaller pieces cost calls, each of which lets go of the interpreter. Larger ones make the system
# look for large runs of free pages, which on virtual machines the host may first have to provide:
# measured for 600 MB 0.20 s at 64 KiB, 0.18 s at 128 KiB, 0.17 to 1.1 s at 512 KiB and more.
_WRITE_BYTES = 128 * 1024
# directories of CIFS, FUSE, 9p
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}


def _status(found: os.stat_result) -> Status:
    return Status(
        kind=_KINDS.get(stat.S_IFMT(found.st_mode), Kind.OTHER),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        mode=stat.S_IMODE(found.st_mode),
        owner=(found.st_uid, found.st_gid),
        number=(found.st_dev, found.st_ino),
        disk_bytes=found.st_blocks * 512,
        links=found.st_nlink,
    )


def _is_regular(fd: int) -> bool:
    """Whether a descriptor is of a regular file; else it is closed."""
    if regular := stat.S_ISREG(os.fstat(fd).st_mode):
        return regular
    os.close(fd)
    return False


class LocalReader:
    """A descriptor of a file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def status(self) -> Status:
        """By fstat."""
        return _status(os.fstat(self.fd))

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """By preadv: one call, which may read less than was asked for."""
        return os.preadv(self.fd, (buffer,), offset)

    def begin_read(self, offset: int, length: int) -> None:
        """Has the system read ahead, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    def drop_cached(self, offset: int, length: int) -> None:
        """Has the system let go of these bytes' pages, where it can."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self.fd)


class LocalWriter(LocalReader):
    """A descriptor of a file that is being written."""

    def write(self, offset: int, data: memoryview) -> int:
        """By pwrite, at most 128 KiB at a time."""
        return os.pwrite(self.fd, data[:_WRITE_BYTES], offset)

    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        """By copy_file_range, within the kernel; 0 for a reader of another store."""
        if not isinstance(reader, LocalReader) or not hasattr(os, "copy_file_range"):
            return 0
        return os.copy_file_range(reader.fd, self.fd, length, source, offset)

    def begin_sync(self, offset: int, length: int) -> None:
        # For bytes not yet on the disk that is what POSIX_FADV_DONTNEED does on Linux
        # (mm/fadvise.c); elsewhere nothing is lost.
        """Begins to write these bytes to the disk, on Linux."""
        self.drop_cached(offset, length)

    def sync(self) -> None:
        """By fsync."""
        os.fsync(self.fd)

    def resize(self, size: int) -> None:
        """Cuts the file off, or extends it with a hole, to this many bytes."""
        os.ftruncate(self.fd, size)

    def lock(self, shared: bool = False) -> bool:
        """By flock, without waiting. True also on a file system without locks."""
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _NO_LOCKS
        return True


class Disk:
    """The file system that paths name: the store of everything that isn't mounted elsewhere."""

    def status(self, path: Path, *, follow: bool = True) -> Status:
        """By stat, or lstat."""
        return _status(os.stat(path, follow_symlinks=follow))

    def names(self, directory: Path) -> list[str]:
        """Without `.` and `..`."""
        return os.listdir(directory)

    def open(self, path: Path) -> LocalReader | None:
        # to open a device may do something, to open a pipe may wait
        """A regular file; None for anything else, which isn't opened."""
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return LocalReader(fd) if _is_regular(fd) else None

    def real_path(self, path: Path) -> Path:
        """As the system resolves links; what isn't there stays in it as it is."""
        return Path(os.path.realpath(path))

    def create(self, path: Path) -> LocalWriter:
        """Opens it for reading and writing; a link is an error."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return LocalWriter(os.open(path, flags, 0o666))

    def reopen(self, path: Path) -> LocalWriter | None:
        """Opens it for reading and writing; a link is an error, None for anything but a file."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        return LocalWriter(fd) if _is_regular(fd) else None

    def make_directory(self, path: Path) -> None:
        """By mkdir: what is above it must be there."""
        os.mkdir(path)

    def remove_directory(self, path: Path) -> None:
        """By rmdir: it must be empty."""
        os.rmdir(path)

    def unlink(self, path: Path) -> None:
        """Removes a name."""
        os.unlink(path)

    def rename(self, path: Path, new: Path) -> None:
        """Replaces what has the new name, by rename(2)."""
        os.replace(path, new)

    def exchange(self, a: Path, b: Path) -> None:
        """By renameat2: Linux 3.15, and not on every file system."""
        import ctypes

        try:
            renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        except (AttributeError, OSError) as error:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(a)) from error
        if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(a))

    def link(self, path: Path, new: Path) -> None:
        """A hard link; of a link, another name of the link itself."""
        os.link(path, new, follow_symlinks=False)

    def copy(self, path: Path, new: Path) -> None:
        """With the mode and times, in the kernel where that can do it."""
        import shutil

        shutil.copy2(path, new, follow_symlinks=False)

    def set_mode(self, path: Path, mode: int) -> None:
        """Sets the permissions."""
        os.chmod(path, mode)

    def set_owner(self, path: Path, owner: tuple[int, int]) -> None:
        """Sets (user, group); mostly only root may."""
        os.chown(path, *owner)

    def sync_directory(self, directory: Path) -> None:
        """Where the file system can."""
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(fd)

    def room(self, directory: Path) -> Room:
        """By statvfs, and what this user may do in the directory."""
        disk = os.statvfs(directory)
        return Room(
            free_bytes=disk.f_bavail * disk.f_frsize,
            read_only=bool(disk.f_flag & os.ST_RDONLY),
            permitted=os.access(directory, os.W_OK | os.X_OK),
        )

    def mounts_below(self, directory: Path) -> list[str]:
        """By proc(5), mountinfo."""
        try:
            lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError:
            return [
                os.path.join(root, name)
                for root, names, _ in os.walk(directory)
                for name in (".", *names)
                if os.path.ismount(os.path.join(root, name))
            ]
        base = self.real_path(directory)
        points = [
            re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
            for line in lines
        ]
        return [point for point in points if Path(point).is_relative_to(base)]


DISK = Disk()
