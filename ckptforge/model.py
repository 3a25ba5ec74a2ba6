"""A model: an ordered map from names to values, with the files behind it.

Every operation is a function from model to model, and adds what is to be said of it to the account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box
from ckptforge.formats.index import FileIndex
from ckptforge.values import Stored, Value

IN_RANKS = " in ranks"  # what the format of such a model ends with


class Held(msgspec.Struct, frozen=True):
    """Tensors whose names differ in numbers alone and that are cut alike: the first of them, and
    the box of each that a rank holds."""

    names: list[str]
    value: Value | Stored
    boxes: Mapping[int, Box]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said of the way to a model: `left_out` by reason, `notes` as sentences, and
    `must_equal`, pairs of values that have to hold the same as only the second is used, by the
    name of the first and of the second."""

    left_out: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    must_equal: Mapping[tuple[str, str], tuple[Value, Value]] = msgspec.field(default_factory=dict)

    def leaving(self, reason: str, names: tuple[str, ...]) -> Account:
        """The account with more names left out, if there are any."""
        if not names:
            return self
        held = self.left_out.get(reason, ())
        return replace(self, left_out={**self.left_out, reason: (*held, *names)})

    def noting(self, *notes: str) -> Account:
        """The account with more sentences."""
        return replace(self, notes=(*self.notes, *notes)) if notes else self


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of a checkpoint, whatever it is: `path` is what a user named, `directory` where
    files that go with it may lie, `ranks` how many ranks it was read from. `card` are the small
    files that go along with it, where a function has changed them: else they are those that lie
    there. `derived` are such that stand for files of another kind, as config.json for params.json,
    where none are known better. `family` is the one whose layouts its tensors are in, where the
    kind of its files tells, and `layout` the layout; `described` is what they say under the keys of
    config.json. `run` is what is said of the training run (its step, …), `optimizer` the tensors
    that lie in files of optimizer state. `held` finds which rank's files hold what, where it is
    known."""

    path: Path
    format: str
    directory: Path
    files: tuple[FileIndex, ...]
    values: dict[str, Value]
    account: Account = Account()
    ranks: int = 0
    card: Mapping[str, bytes] | None = None
    derived: Mapping[str, bytes] | None = None
    family: str | None = None
    layout: str | None = None
    described: Mapping[str, Any] = msgspec.field(default_factory=dict)
    run: Mapping[str, int | float | None] = msgspec.field(default_factory=dict)
    optimizer: frozenset[str] = frozenset()
    held: Callable[[], Iterable[Held]] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should hear of."""
        return self.account.notes

    @property
    def in_ranks(self) -> bool:
        """Whether it was put together from the parts of rank directories."""
        return self.format.endswith(IN_RANKS)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self.values.values())

    def noting(self, *notes: str) -> Model:
        """The model with more sentences in its account."""
        return replace(self, account=self.account.noting(*notes)) if notes else self
