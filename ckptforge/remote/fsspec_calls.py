"""Calls of fsspec's file systems, and what their errors mean."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptforge.remote.objects import Passing


def file_system(path: Path) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(str(path), use_listings_cache=False)
    return found


@contextmanager
def as_faults(path: Path) -> Iterator[None]:
    """Raises `Passing` for errors that may pass, without their texts, which may hold anything, and
    `OSError` for those that stay."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, FileExistsError):
        raise
    except PermissionError as error:
        raise PermissionError(errno.EACCES, "access is denied; log in first", str(path)) from error
    except (NotImplementedError, ImportError) as error:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path)) from error
    except Exception as error:
        raise Passing(f"its file system says {type(error).__name__}") from error
