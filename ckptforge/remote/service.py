"""Which service an address of `s3://` or `obs://` is at, and as whom it is asked.

The service is the one that was said (`--endpoint`), else what OBS_ENDPOINT (for `obs://`),
AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL say, else Amazon's. Credentials are those that boto3 finds
(AWS_ACCESS_KEY_ID and the like, ~/.aws, roles of machines and containers), for `obs://` before them
OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY and OBS_SECURITY_TOKEN, as Huawei's own programs take them.
Where there are none, requests aren't signed: public buckets can be read so.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ckptforge.spelling import option
from ckptforge.storage.endpoints import bucket_of

_REGION = re.compile(r"obs\.([a-z]+-[a-z0-9-]+)\.")
_HERE = re.compile(r"localhost|[0-9.]+|\[.*\]")
_FRESH = timedelta(minutes=5)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bucket is: `endpoint` is None for Amazon's. `virtual`: the bucket's name stands in
    that of the host, as OBS wants it."""

    scheme: str
    bucket: str
    endpoint: str | None
    region: str

    @property
    def virtual(self) -> bool:
        """Whether the bucket's name stands in that of the host."""
        host = urlsplit(self.endpoint or "").hostname or ""
        return self.scheme == "obs" and not _HERE.fullmatch(host)

    @property
    def bucket_url(self) -> str | None:
        """The endpoint, with the bucket where it stands in it."""
        if self.endpoint is None or not self.virtual:
            return self.endpoint
        url = urlsplit(self.endpoint)
        return url._replace(netloc=f"{self.bucket}.{url.netloc}").geturl()

    def keys(self) -> Any:
        """The credentials as boto3 has them, None where there are none."""
        from botocore.credentials import Credentials

        names = ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN")
        access, secret, token = map(os.environ.get, names)
        if self.scheme == "obs" and access and secret:
            return Credentials(access, secret, token)
        return session().get_credentials()

    @property
    def host(self) -> str:
        """Name and port of the endpoint, without a login that may stand there; empty for
        Amazon's."""
        return urlsplit(self.endpoint or "").netloc.rpartition("@")[2]

    def credentials(self) -> Callable[[], dict[str, Any]] | None:
        """What gives obstore credentials that are valid; None where there are none."""
        keys = self.keys()
        if keys is None:
            return None

        def provide() -> dict[str, Any]:
            frozen = keys.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(timezone.utc) + _FRESH,
            }

        return provide


@cache
def session() -> Any:
    """boto3's session of this process."""
    import boto3

    return boto3.session.Session()


def service_of(path: Path, endpoint: str | None = None) -> Service:
    """The service that an address is at: `endpoint`, else the one of the environment. Raises
    `OSError` for `obs://` where nothing says which."""
    scheme, bucket, _ = bucket_of(path)
    names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
    if scheme == "obs":
        names.insert(0, "OBS_ENDPOINT")
    said = (os.environ.get(name) for name in names)
    endpoint = endpoint or next(filter(None, said), None)
    if endpoint is None and scheme == "obs":
        raise OSError(
            errno.EDESTADDRREQ,
            f"nothing says where it is: give {option('endpoint')} or the variable OBS_ENDPOINT, "
            "as https://obs.<region>.myhuaweicloud.com",
            str(path),
        )
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    found = _REGION.search(endpoint or "")
    region = os.environ.get("AWS_REGION") or (found[1] if found else session().region_name)
    return Service(scheme=scheme, bucket=bucket, endpoint=endpoint, region=region or "us-east-1")
