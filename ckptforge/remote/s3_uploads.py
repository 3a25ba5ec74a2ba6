"""Objects of S3 written by multipart uploads, by boto3: obstore's can neither be listed nor aborted
nor completed on a condition."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckptforge.remote.memory import Memory
from ckptforge.remote.service import Service, service_of, session
from ckptforge.remote.uploads import Begun, Upload
from ckptforge.storage.address import address_of
from ckptforge.storage.endpoints import bucket_of

_THREADS = 8
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class S3Uploads:
    """Uploads to buckets."""

    resumable = True

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckptforge-upload")

    def begin(self, path: Path, staged: Path, flights: int) -> Upload:
        """A multipart upload, begun with its first part; `staged` isn't needed."""
        return _S3Upload(path, self._endpoint, self._pool, flights)

    def take_up(self, path: Path, staged: Path, size: int, left: dict[str, Any]) -> Upload | None:
        """By the upload's name and the etags of its parts, which must be those that the service
        has."""
        upload = _S3Upload(
            path, self._endpoint, self._pool, 1, str(left["upload"]), list(left["etags"])
        )
        return upload if upload.holds(size) else None

    def write(self, path: Path, content: bytes, replace: bool) -> None:
        """By one request; unless it may `replace`, on the condition that nothing is there."""
        client, where = _where(path, self._endpoint)
        with _as_os_errors(path):
            _on_condition(client, "put_object", path, replace, Body=content, **where)

    def remove(self, path: Path) -> None:
        """The object, and all whose keys begin with its and `/`."""
        client, where = _where(path, self._endpoint)
        bucket, key = where["Bucket"], where["Key"]
        with _as_os_errors(path):
            client.delete_object(**where)
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=f"{key}/"
            )
            for one in [one for page in pages for one in page.get("Contents", ())]:
                client.delete_object(Bucket=bucket, Key=one["Key"])

    def begun(self, path: Path) -> Iterator[Begun]:
        """As the service lists them, with the bytes of their parts."""
        client, where = _where(path, self._endpoint)
        bucket, key = where["Bucket"], where["Key"]
        with _as_os_errors(path):
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=key
            )
            found = [one for page in pages for one in page.get("Uploads", ())]
        scheme = bucket_of(path)[0]
        for one in found:
            if one["Key"] == key or one["Key"].startswith(f"{key}/" if key else ""):
                at = address_of(f"{scheme}://{bucket}/{one['Key']}")
                assert at is not None
                parts = _parts(at, client, where | {"Key": one["Key"]}, one["UploadId"]) or []
                yield Begun(path=at, name=one["UploadId"], nbytes=sum(size for _, size in parts))

    def give_up(self, begun: Begun) -> None:
        """The service frees what its parts take up."""
        _S3Upload(begun.path, self._endpoint, self._pool, 1, begun.name).abort()


class _S3Upload:
    def __init__(
        self,
        path: Path,
        endpoint: str | None,
        pool: ThreadPoolExecutor,
        flights: int,
        name: str | None = None,
        etags: list[str] | None = None,
    ) -> None:
        self._path, self._pool, self.name = path, pool, name
        self._client, self._where = _where(path, endpoint)
        self._flights = threading.Semaphore(flights)
        self._etags = dict(enumerate(etags or ()))
        self._sending: list[Future[None]] = []
        self._there = False  # it was completed

    def put(self, number: int, data: Memory) -> None:
        """Sends it by another thread. Raises what sending an earlier one raised."""
        if self.name is None:
            with _as_os_errors(self._path):
                self.name = self._client.create_multipart_upload(**self._where)["UploadId"]
        self._flights.acquire()
        for sent in [one for one in self._sending if one.done()]:
            self._sending.remove(sent)
            sent.result()
        self._sending.append(self._pool.submit(self._send, number, data))

    def _send(self, number: int, data: Memory) -> None:
        try:
            with _as_os_errors(self._path):
                answer = self._client.upload_part(
                    UploadId=self.name, PartNumber=number + 1, Body=data, **self._where
                )
            self._etags[number] = answer["ETag"]
        finally:
            self._flights.release()

    def settle(self) -> dict[str, Any]:
        """Raises what sending a part raised."""
        for sent in list(self._sending):
            sent.result()
        return {"upload": self.name, "etags": [self._etags[i] for i in sorted(self._etags)]}

    def holds(self, size: int) -> bool:
        """Whether all its parts are there, or the object that they became."""
        parts = _parts(self._path, self._client, self._where, str(self.name))
        if parts is None:
            self._there = self._is_there(size)
            return self._there
        same = [etag for etag, _ in parts] == [self._etags[i] for i in sorted(self._etags)]
        return same and sum(nbytes for _, nbytes in parts) == size

    def complete(self, replace: bool) -> None:
        """Does nothing where it was completed before, and only the answer got lost."""
        if self._there:
            return
        parts = [{"PartNumber": i + 1, "ETag": self._etags[i]} for i in sorted(self._etags)]
        made = {"UploadId": self.name, "MultipartUpload": {"Parts": parts}, **self._where}
        with _as_os_errors(self._path):
            try:
                _on_condition(
                    self._client, "complete_multipart_upload", self._path, replace, **made
                )
            except self._client.exceptions.NoSuchUpload:
                if not self._is_there():  # else only the answer got lost
                    raise
        self._there = True

    def _is_there(self, size: int | None = None) -> bool:
        """Whether the object is that of these parts: its etag is a hash of theirs, except where a
        service encrypts."""
        found = _head(self._client, self._where)
        digests = [self._etags[i].strip('"') for i in sorted(self._etags)]
        try:
            whole = hashlib.md5(b"".join(map(bytes.fromhex, digests)), usedforsecurity=False)
        except ValueError:
            return False
        etag = f'"{whole.hexdigest()}-{len(digests)}"'
        return (
            found is not None
            and found["ETag"] == etag
            and found["ContentLength"] == (found["ContentLength"] if size is None else size)
        )

    def abort(self) -> None:
        """Waits for parts that are on their way, which would stay otherwise."""
        for sent in self._sending:
            sent.cancel()
        for sent in self._sending:
            if not sent.cancelled():
                sent.exception()  # waits
        if self.name is not None and not self._there:
            with _as_os_errors(self._path):
                try:
                    self._client.abort_multipart_upload(UploadId=self.name, **self._where)
                except self._client.exceptions.NoSuchUpload:
                    return


def _on_condition(client: Any, name: str, path: Path, replace: bool, **what: Any) -> None:
    """Asks for an object to be made, where it isn't to be replaced on the condition that there is
    none, for services that know that."""
    from botocore.exceptions import ClientError

    ask = getattr(client, name)
    condition = {} if replace else {"IfNoneMatch": "*"}
    try:
        ask(**condition, **what)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if not replace and code in _TAKEN:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        if replace or code not in ("NotImplemented", "501"):
            raise
        if _head(client, {key: what[key] for key in ("Bucket", "Key")}) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        ask(**what)


def _head(client: Any, where: Mapping[str, str]) -> Any:
    """What is known of an object; None where there is none."""
    from botocore.exceptions import ClientError

    try:
        return client.head_object(**where)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
            return None
        raise


def _parts(
    path: Path, client: Any, where: Mapping[str, str], name: str
) -> list[tuple[str, int]] | None:
    """(etag, size) of the parts of an upload; None where there is no such upload any more."""
    with _as_os_errors(path):
        try:
            pages = list(client.get_paginator("list_parts").paginate(UploadId=name, **where))
        except client.exceptions.NoSuchUpload:
            return None
    return [(part["ETag"], part["Size"]) for page in pages for part in page.get("Parts", ())]


def _where(path: Path, endpoint: str | None) -> tuple[Any, dict[str, str]]:
    """The client to ask, and how it is told which object."""
    _, bucket, key = bucket_of(path)
    return _client(service_of(path, endpoint), os.getpid()), {
        "Bucket": bucket,
        "Key": key.strip("/"),
    }


@lru_cache(maxsize=64)
def _client(service: Service, process: int) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    keys, given = service.keys(), {}
    if keys is not None and service.scheme == "obs":  # boto3 doesn't look for OBS's
        access, secret, token = keys.get_frozen_credentials()
        given = {"aws_access_key_id": access, "aws_secret_access_key": secret}
        given |= {"aws_session_token": token} if token else {}
    style = "virtual" if service.virtual else "path" if service.endpoint else "auto"
    return session().client(
        "s3",
        endpoint_url=service.endpoint,
        region_name=service.region,
        **given,
        config=Config(
            retries={"mode": "standard", "max_attempts": 8},
            max_pool_connections=2 * _THREADS,
            read_timeout=300,  # seconds: a large object may take that long to be completed
            request_checksum_calculation="when_required",  # others than Amazon don't know them
            response_checksum_validation="when_required",
            s3={"addressing_style": style},
            **({} if keys is not None else {"signature_version": UNSIGNED}),
        ),
    )


@contextmanager
def _as_os_errors(path: Path) -> Iterator[None]:
    """Raises `OSError` for boto3's errors, with their codes alone."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code") or "an error"
        number = errno.EACCES if code in ("AccessDenied", "403") else errno.EIO
        raise OSError(number, f"the service says {code}", str(path)) from error
    except BotoCoreError as error:
        raise OSError(errno.EIO, type(error).__name__, str(path)) from error
