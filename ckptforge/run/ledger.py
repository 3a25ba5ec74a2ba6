"""What a run reports to while it goes on, so that another can continue from there;
`publish/journal.py` is one."""

from __future__ import annotations

from typing import Protocol

import msgspec

from ckptforge.run.audit import Audit

Key = tuple[str, str]  # file as the plan's output names it, tensor


class Finished(msgspec.Struct, frozen=True):
    """A tensor that was written: its hash, and what its casts did."""

    hash: str
    audit: Audit


class Ledger(Protocol):
    """Where finished tensors and hashed blocks of sources are written down. `sources` are digests
    by (index of the source, first byte of the block)."""

    @property
    def sources(self) -> dict[tuple[int, int], bytes]: ...

    def add_tensor(self, key: Key, finished: Finished) -> None: ...
    def add_source(self, index: int, start: int, digest: bytes) -> None: ...
