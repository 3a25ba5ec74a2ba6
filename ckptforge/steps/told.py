"""A small tensor that says how another is to be read: read, and compared with how it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, printable
from ckptforge.values import Read, Stored, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Changes nothing, and raises `FormatError` where `stored`, a few integers, holds others than
    `numbers`."""

    stored: Stored
    numbers: tuple[int, ...]

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """The tensor."""
        return (self.stored,)

    def gives(self, dtype: DType) -> DType:
        """The numbers as they are."""
        return dtype

    def memory(self, stored: Stored) -> int:
        """Those of the small tensor."""
        return 2 * self.stored.nbytes

    def identity(self) -> bytes:
        """What is expected of which tensor."""
        return self.stored.identity() + repr(("told", self.numbers)).encode()

    def prepare(self, stored: Stored, read: Read) -> Kept:
        """Compares them."""
        found = tuple(read(self.stored, None).reshape(-1).tolist())
        if found != self.numbers:
            raise FormatError(
                f"{self.stored.path}: {printable(self.stored.name)} says {list(found)}, but "
                f"{printable(stored.name)} is stored as {list(self.numbers)}; the file is damaged."
            )
        return Kept()


class Kept(msgspec.Struct, frozen=True):
    """Numbers as they are."""

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Changes nothing."""
        return 0
