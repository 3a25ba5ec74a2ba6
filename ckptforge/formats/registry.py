"""The formats that there are: one module, or object, for each.

A package of its own announces another by an entry point of the group `ckptforge.formats` that names
an object with the members of `Format`; `ckptforge.testing` tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from ckptforge.errors import UsageError, nearest
from ckptforge.formats.entry import FileIndex
from ckptforge.formats.layout import OutputFile, TensorSpec

GROUP = "ckptforge.formats"
_BUILT_IN = ("safetensors", "mindspore_ckpt")


class Format(Protocol):
    """One way to lay tensors into a file."""

    @property
    def NAME(self) -> str:
        """What users call it, as in `inspect`."""
        ...

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """The endings of its files, with the dot."""
        ...

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes (up to 16) may be one of its."""
        ...

    def read_index(self, path: Path) -> FileIndex:
        """What a file holds and where, read in constant memory. Raises `FormatError`, naming the
        file and what is wrong, for whatever isn't right in it."""
        ...

    def ordered(self, tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
        """The tensors in the order in which its own library writes them."""
        ...

    def lay_out(
        self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> OutputFile:
        """A file with these tensors in this order. Raises `PlanError` for what it can't hold."""
        ...


@cache
def formats() -> tuple[Format, ...]:
    """All formats: the built-in ones, and those that other packages announce."""
    from importlib.metadata import entry_points

    built_in = (import_module(f"ckptforge.formats.{name}") for name in _BUILT_IN)
    announced = (point.load() for point in entry_points(group=GROUP))
    return tuple(cast(Format, found) for found in (*built_in, *announced))


def format_by_ending(path: Path) -> Format | None:
    """The format of files with the ending of this path; None where there is none."""
    return next((one for one in formats() if path.suffix in one.ENDINGS), None)


def format_of_option(word: str) -> Format:
    """The format whose files end in `word`, without the dot. Raises `UsageError`."""
    found = format_by_ending(Path(f"x.{word}"))
    if found is None:
        words = sorted(ending[1:] for one in formats() for ending in one.ENDINGS)
        raise UsageError(
            f"no format has the ending .{word}: use {', '.join(words)}.{nearest(word, words)}"
        )
    return found
