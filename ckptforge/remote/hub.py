"""`hf://org/name[@revision][/path]`: models of the Hugging Face hub, by ranges.

The hub's interface (huggingface_hub, hf_api.py and constants.py): `/api/models/REPO/revision/REV`
names the commit, `/api/models/REPO/tree/COMMIT?recursive=true` its files, page by page, and
`/REPO/resolve/COMMIT/FILE` leads to one. A revision is looked up once; what is read is of that
commit, whatever is pushed meanwhile. HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME and the token
that `hf auth login` left are those of huggingface_hub.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec

from ckptforge.remote.http import CLIENT
from ckptforge.remote.objects import Facts
from ckptforge.remote.store import RemoteStore
from ckptforge.remote.web import fetch
from ckptforge.storage.store import Store

_MAX_ANSWER = 64 * 1024 * 1024
_MAX_FILES = 1_000_000
_PARTS = re.compile(r"hf:/+([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", re.DOTALL | re.IGNORECASE)
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')


class _Large(msgspec.Struct):
    oid: str
    size: int


class _Entry(msgspec.Struct):
    type: str
    path: str
    oid: str = ""
    size: int = 0
    lfs: _Large | None = None


class _Revision(msgspec.Struct):
    sha: str


class Snapshot(msgspec.Struct, frozen=True):
    """A commit of a repository: its name, and its files by path."""

    commit: str
    files: dict[str, Facts]


def hub_store(scheme: str) -> Store:
    """The store of `hf://`."""
    return RemoteStore(Hub())


class Hub:
    """The files of models."""

    def __init__(self) -> None:
        self._snapshots: dict[tuple[str, str], Snapshot] = {}
        self._lock = threading.Lock()

    def facts(self, path: Path) -> Facts | None:
        """By the listing of the commit. Raises `FileNotFoundError` for an address of no
        repository."""
        repository, revision, inner = _parsed(path)
        found = self._snapshot(repository, revision)
        return None if found is None else found.files.get(inner)

    def names(self, directory: Path) -> list[str]:
        """By the listing of the commit."""
        repository, revision, inner = _parsed(directory)
        found = self._snapshot(repository, revision)
        below = f"{inner}/" if inner else ""
        files = () if found is None else found.files
        return sorted(
            {name[len(below) :].partition("/")[0] for name in files if name.startswith(below)}
        )

    def fetch(self, path: Path, facts: Facts, start: int, into: memoryview) -> int:
        """By the address that leads to the file of that commit."""
        repository, revision, inner = _parsed(path)
        found = self._snapshot(repository, revision)
        commit = "" if found is None else found.commit
        url = f"{_endpoint()}/{repository}/resolve/{commit}/{quote(inner)}"
        # the etag is that of wherever the hub keeps the file; a commit doesn't change
        return fetch(url, path, facts, start, into, _login(), version=False)

    def _snapshot(self, repository: str, revision: str) -> Snapshot | None:
        with self._lock:
            if (repository, revision) not in self._snapshots:
                try:
                    found = _looked_up(repository, revision)
                except FileNotFoundError:
                    return None
                self._snapshots[repository, revision] = found
            return self._snapshots[repository, revision]


def _parsed(path: Path) -> tuple[str, str, str]:
    """Repository, revision and the path in it. Raises `FileNotFoundError`."""
    match = _PARTS.fullmatch(str(path))
    if match is None:
        raise FileNotFoundError(errno.ENOENT, "expected hf://org/name[@revision]", str(path))
    return match[1], unquote(match[2] or "main"), match[3] or ""


def _looked_up(repository: str, revision: str) -> Snapshot:
    api = f"{_endpoint()}/api/models/{repository}"
    commit = _asked(f"{api}/revision/{quote(revision, safe='')}", _Revision)[0].sha
    files: dict[str, Facts] = {}
    url: str | None = f"{api}/tree/{commit}?recursive=true"
    while url is not None and len(files) < _MAX_FILES:
        entries, url = _asked(url, list[_Entry])
        for entry in entries:
            if entry.type == "file":
                version = entry.oid if entry.lfs is None else entry.lfs.oid
                files[entry.path] = Facts(size=entry.size, version=version)
    return Snapshot(commit, files)


def _asked(url: str, kind: Any) -> tuple[Any, str | None]:
    """What the hub answers, and the address of the next page."""
    with CLIENT.ask("GET", url, _login()) as answer:
        answer.refuse()
        body = answer.read(_MAX_ANSWER)
        following = _NEXT.search(answer.header("Link"))
    try:
        found = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OSError(errno.EIO, "the hub's answer isn't what is expected") from error
    target = None if following is None else urljoin(url, following[1])
    if target is not None and urlsplit(target).netloc != urlsplit(url).netloc:
        raise OSError(errno.EIO, "the hub's answer leads to another host")
    return found, target


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _login() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or _kept_token()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _kept_token() -> str:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    path = Path(os.environ.get("HF_TOKEN_PATH", f"{home}/token")).expanduser()
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""
