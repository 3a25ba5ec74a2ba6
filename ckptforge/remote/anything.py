"""Addresses of whatever fsspec knows: `gs://`, `az://`, `ftp://`, `memory://` and many more, each
by the package that it names."""

from __future__ import annotations

import errno
from pathlib import Path

from ckptforge.errors import InputNotFoundError
from ckptforge.remote.fsspec_calls import as_faults, file_system
from ckptforge.remote.fsspec_uploads import FsspecUploads
from ckptforge.remote.objects import Facts
from ckptforge.remote.writable import WritableStore
from ckptforge.storage.store import Store

# what tells a content from others, as file systems call it
_VERSIONS = ("etag", "ETag", "e_tag", "generation", "checksum", "md5Hash", "md5")
_PATHS = ("file", "local")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modify", "created")


def any_store(scheme: str) -> Store | None:
    """The store of a scheme that fsspec knows; None for others, and without fsspec. Raises
    `InputNotFoundError` where a package for it isn't installed."""
    if scheme in _PATHS:
        return None
    try:
        from fsspec.registry import get_filesystem_class
    except ModuleNotFoundError:
        return None
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise InputNotFoundError(
            f"{scheme}:// is read by fsspec, which needs a package for it: {error}."
        ) from error
    except ValueError:
        return None
    return WritableStore(Anything(), FsspecUploads)


class Anything:
    """Files of fsspec's file systems."""

    def facts(self, path: Path) -> Facts | None:
        """By `info`. Raises `OSError` also for a file of which no size is known."""
        try:
            with as_faults(path):
                system, inner = file_system(path)
                found = system.info(inner)
        except FileNotFoundError:
            return None
        if found.get("type") != "file":
            return None
        if found.get("size") is None:
            raise OSError(errno.EOPNOTSUPP, "nothing says how large it is: download it first")
        said = {key: str(found[key]) for key in (*_VERSIONS, *_TIMES) if found.get(key)}
        return Facts(size=found["size"], version=next(iter(said.values()), ""))

    def names(self, directory: Path) -> list[str]:
        """By `ls`."""
        try:
            with as_faults(directory):
                system, inner = file_system(directory)
                found = system.ls(inner, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = inner.rstrip("/")
        paths = (path.rstrip("/") for path in found)
        return sorted(
            {path.rpartition("/")[2] for path in paths if path.strip("/") != own.strip("/")}
        )

    def fetch(self, path: Path, facts: Facts, start: int, into: memoryview) -> int:
        """By `cat_file`: one range, which is in memory twice for a moment."""
        with as_faults(path):
            system, inner = file_system(path)
            data = system.cat_file(inner, start=start, end=start + len(into))
        into[: len(data)] = data
        return len(data)
