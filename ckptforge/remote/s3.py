"""`s3://bucket/key` and `obs://bucket/key`: objects of Amazon's S3, and of services that speak its
protocol as Huawei's OBS does. They are read by obstore.

Who is asked, as whom: see `remote/service.py`.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckptforge.errors import InputNotFoundError
from ckptforge.remote.objects import Facts, Passing, changed
from ckptforge.remote.s3_uploads import S3Uploads
from ckptforge.remote.service import Service, service_of
from ckptforge.remote.writable import WritableStore
from ckptforge.storage.endpoints import bucket_of
from ckptforge.storage.store import Store
from ckptforge.wording import install_hint

_TIMEOUT = timedelta(seconds=120)  # for one range
_STATUS = re.compile(r"status code: ([0-9]{3})([A-Za-z ]*)")
_PASSING = {408, 425, 429}


def s3_store(scheme: str, endpoint: str | None = None) -> Store:
    """The store of `s3://` and of `obs://`, at `endpoint` or where the environment says.
    Raises `InputNotFoundError`."""
    if missing := [name for name in ("obstore", "boto3") if find_spec(name) is None]:
        raise InputNotFoundError(
            f"{scheme}:// needs {' and '.join(missing)}: {install_hint('s3')}."
        )
    return WritableStore(S3(endpoint), partial(S3Uploads, endpoint))


class S3:
    """Objects in buckets."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._stores: dict[Service, Any] = {}
        self._lock = threading.Lock()

    def facts(self, path: Path) -> Facts | None:
        """By a HEAD request; None also of the bucket itself."""
        import obstore

        store, key = self._store(path)
        if not key:
            return None
        try:
            with _as_faults(path, self._endpoint):
                return _facts(obstore.head(store, key))
        except FileNotFoundError:
            return None

    def names(self, directory: Path) -> list[str]:
        """By a listing with `/` between the parts of names."""
        import obstore

        store, key = self._store(directory)
        try:
            with _as_faults(directory, self._endpoint):
                found = obstore.list_with_delimiter(store, key)
        except FileNotFoundError:  # no such bucket
            return []
        paths = (*found["common_prefixes"], *(one["path"] for one in found["objects"]))
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths} - {""})

    def fetch(self, path: Path, facts: Facts, start: int, into: memoryview) -> int:
        """By one request for a range, on the condition that the etag, if there is one, is
        that of `facts`."""
        import obstore

        store, key = self._store(path)
        done = 0
        with _as_faults(path, self._endpoint, lambda: done):
            asked: Any = {"range": (start, start + len(into))}
            if facts.version.startswith('"'):
                asked["if_match"] = facts.version
            for piece in obstore.get(store, key, options=asked).stream(1 << 18):
                into[done : done + len(piece)] = piece
                done += len(piece)
        return done

    def _store(self, path: Path) -> tuple[Any, str]:
        """The bucket as obstore's store, and the key in it."""
        from obstore.store import S3Store

        service = service_of(path, self._endpoint)
        with self._lock:
            if service not in self._stores:
                credentials = service.credentials()
                where = {} if service.endpoint is None else {"endpoint": service.bucket_url}
                self._stores[service] = S3Store(
                    service.bucket,
                    **where,
                    region=service.region,
                    virtual_hosted_style_request=service.virtual,
                    credential_provider=credentials,
                    skip_signature=credentials is None,
                    client_options={"timeout": _TIMEOUT, "allow_http": True},
                    retry_config={"max_retries": 0},  # `remote/patience.py` tries again
                )
            return self._stores[service], bucket_of(path)[2].strip("/")


def _facts(found: Any) -> Facts:
    return Facts(
        size=found["size"],
        version=found["e_tag"] or found["last_modified"].isoformat(),
        modified=int(found["last_modified"].timestamp()),
    )


@contextmanager
def _as_faults(path: Path, endpoint: str | None, done: Any = lambda: 0) -> Iterator[None]:
    """Raises `Passing` and `OSError` for obstore's errors, whose texts aren't for people."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except exceptions.PreconditionError as error:
        raise changed(path) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, "access is denied; log in first", str(path)) from error
    except exceptions.BaseError as error:
        text = str(error).partition("\n")[0]
        status = _STATUS.search(text)
        if status is None:
            host = service_of(path, endpoint).host
            at = f", at {host}" if host else ""
            raise Passing(f"{_brief(text)}{at}", done()) from error
        number, reason = int(status[1]), f"the server says {status[1]}{status[2].rstrip()}"
        if number == 404:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        if number == 416:
            raise changed(path) from error
        if number < 500 and number not in _PASSING:
            raise OSError(errno.EIO, reason, str(path)) from error
        raise Passing(reason, done()) from error


def _brief(text: str) -> str:
    """What obstore says went wrong, without what it did."""
    return text.rpartition(" - ")[2].rpartition("source: ")[2][:200]
