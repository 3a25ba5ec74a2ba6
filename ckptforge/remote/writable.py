"""A store of objects in which outputs can appear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ckptforge.remote.objects import Objects
from ckptforge.remote.store import RemoteStore
from ckptforge.remote.uploads import Uploads

if TYPE_CHECKING:
    from ckptforge.remote.publishing import ByUpload


class WritableStore(RemoteStore):
    """Objects as files that can be read, in a service that takes `uploads`."""

    def __init__(self, objects: Objects, uploads: Callable[[], Uploads]) -> None:
        super().__init__(objects)
        self._uploads = uploads

    def publisher(self) -> ByUpload:
        """How outputs appear here (`publish/publisher.py`)."""
        from ckptforge.remote.publishing import ByUpload  # which readers don't need

        return ByUpload(self, self._uploads())
