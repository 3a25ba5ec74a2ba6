"""What of an output in the making has been brought to a service, kept there for another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

from ckptforge.errors import CkptforgeError
from ckptforge.foreign.files import read_small
from ckptforge.planning.plan import Plan
from ckptforge.publish.audit import audit_json, read_audit
from ckptforge.remote.uploads import Upload, Uploads
from ckptforge.run.schedule import Finished, Key
from ckptforge.storage.mounts import store_of

RUN = "run.json"
_MOST = 1 << 28  # bytes of what is read back


class Brought:
    """The ledger of a run (`run/schedule.py:Ledger`): when the last tensor of a file is finished,
    what is known of that file is written to `directory`, once it has been brought there whole, for
    services from which a later run can take it up."""

    def __init__(
        self, plan: Plan, uploads: Uploads, directory: Path, head: Mapping[str, Any]
    ) -> None:
        self._uploads, self._directory, self.head = uploads, directory, head
        self.tensors: dict[Key, Finished] = {}
        self.sources: dict[tuple[int, int], bytes] = {}
        self.opened: dict[str, Upload] = {}  # by the file's name in the output
        self.saved: set[str] = set()
        self._numbers = {plan.name_of(file.path): i for i, file in enumerate(plan.files)}
        self._left = {
            plan.name_of(file.path): {place.name for place in file.places.values() if place.nbytes}
            for file in plan.files
        }
        self._unsaved: list[tuple[int, int]] = []
        self._saving: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckptforge-ledger")

    def begin(self) -> None:
        """Says in the service what the run is made from. Raises `OSError`, `FileExistsError`."""
        if self._uploads.resumable:
            content = json.dumps(self.head).encode()
            self._uploads.write(self._directory / RUN, content, replace=False)

    def add_tensor(self, key: Key, finished: Finished) -> None:
        """Notes a finished tensor."""
        self.tensors[key] = finished
        name, tensor = key
        self._left[name].discard(tensor)
        if self._uploads.resumable and not self._left[name]:
            sources, self._unsaved = self._unsaved, []
            self._saving.append(self._pool.submit(copy_context().run, self._save, name, sources))

    def add_source(self, index: int, start: int, digest: bytes) -> None:
        """Notes the hash of a block of a source."""
        self.sources[index, start] = digest
        self._unsaved.append((index, start))

    def settle(self) -> None:
        """Waits until all is written that is to be. Raises `OSError`."""
        for saving in self._saving:
            saving.result()

    def _save(self, name: str, sources: list[tuple[int, int]]) -> None:
        left = self.opened[name].settle()
        tensors = {
            tensor: [found.hash, audit_json(found.audit)]
            for (file, tensor), found in list(self.tensors.items())
            if file == name
        }
        digests = [[*key, self.sources[key].hex()] for key in sources]
        content = {"file": name, "left": left, "tensors": tensors, "sources": digests}
        path = self._directory / f"{self._numbers[name]}.json"
        self._uploads.write(path, json.dumps(content).encode(), replace=True)
        self.saved.add(name)

    def take_up(self, plan: Plan) -> None:
        """Goes on with what an earlier run saved of files that are there still."""
        files = {plan.name_of(file.path): file for file in plan.files}
        for content in left_in(self._directory):
            with suppress(LookupError, TypeError, ValueError):
                name = content["file"]
                path, size, left = files[name].path, files[name].size, content["left"]
                upload = self._uploads.take_up(path, self._directory / name, size, left)
                if upload is None:
                    continue
                finished = {
                    (name, tensor): Finished(str(found), read_audit(casts))
                    for tensor, (found, casts) in content["tensors"].items()
                }
                for index, start, digest in content["sources"]:
                    self.sources[int(index), int(start)] = bytes.fromhex(digest)
                self.tensors |= finished
                self.opened[name] = upload
                self.saved.add(name)


def left_in(directory: Path) -> list[dict[str, Any]]:
    """What is saved of files in a directory that may not be there."""
    return [
        found
        for name in _names(directory)
        if name != RUN and (found := _object(directory / name)) is not None
    ]


def head_in(directory: Path) -> dict[str, Any] | None:
    """What the run that left a directory was made from; None where there is none."""
    return _object(directory / RUN) if RUN in _names(directory) else None


def _names(directory: Path) -> list[str]:
    try:
        return store_of(directory).names(directory)
    except OSError:
        return []


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_small(path, _MOST))
    except (CkptforgeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
