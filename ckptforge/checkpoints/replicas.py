"""Replicas: parts of tensors that several ranks hold, of which one is read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ckptforge.checkpoints.duplicates import same_bytes
from ckptforge.errors import FormatError, shown
from ckptforge.spelling import flag
from ckptforge.storage.files import read_range
from ckptforge.values import Stored

_SAMPLE = 4096  # bytes of a replica, and of one that it is compared with
_OF_A_FILE = 16  # replicas that are looked at in each file
_SAMPLES = 256  # of a job


class Replicas(msgspec.Struct):
    """How replicas are compared: wholly (`check_replicas`), not at all (None), or, as a wrong
    strategy and ranks of different steps show there, by the first bytes of a few in each file."""

    check_replicas: bool | None
    left: int = _SAMPLES
    looked_at: dict[Path, int] = {}  # by file

    def refuse_other(self, name: str, first: Stored, other: Stored) -> None:
        """Raises `FormatError` for a replica of as many bytes that holds something else, as far as
        it is compared."""
        if self.check_replicas:
            same = same_bytes(first, other)
        elif self.check_replicas is None or not self._is_looked_at(other.path):
            return
        else:
            same = _start(first) == _start(other)
        if not same:
            raise FormatError(
                f"{other.path}: {shown(name)} differs from its replica in {first.path}, though the "
                "ranks of a job hold the same: the files are of different steps, one is damaged, "
                "or what says how they are cut isn't theirs. If replicas may differ in this job, "
                f"merge or reshard it with {flag('allow_unequal_replicas')}, which takes those of "
                "the lowest ranks."
            )

    def _is_looked_at(self, path: Path) -> bool:
        count = self.looked_at.get(path, 0)
        if not self.left or count == _OF_A_FILE:
            return False
        self.left -= 1
        self.looked_at[path] = count + 1
        return True


def _start(entry: Stored) -> bytes:
    sample = bytearray(min(entry.nbytes, _SAMPLE))
    read_range(entry, 0, memoryview(sample))
    return bytes(sample)
