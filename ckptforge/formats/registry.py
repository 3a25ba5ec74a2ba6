"""The formats that there are, each a module or an object with the members of `Format`. A file's is
known by the ending of its name and, where several have that, by its first bytes.

Another package announces one by an entry point of the group `ckptforge.formats`, a program by
`FORMATS.registered(…)`; `ckptforge.testing.formats` tests it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.registry import Registry

HEAD = 512  # bytes


class Format(Protocol):
    """One way to lay tensors into a file."""

    @property
    def NAME(self) -> str:
        """What a file of it is called, with its article: "a safetensors file"."""

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """The endings of its files, with the dot."""

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes (up to `HEAD`) may be one of its."""

    def read_index(self, path: Path) -> FileIndex:
        """What a file holds and where, without reading tensors. Raises `FormatError`, naming the
        file and what is wrong, for whatever isn't right in it."""

    def ordered(self, tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
        """The tensors in the order in which its own library writes them."""

    def lay_out(
        self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> OutputFile:
        """A file with these tensors in this order. Raises `PlanError` for what it can't hold."""


FORMATS: Registry[Format] = Registry(
    "ckptforge.formats",
    "ckptforge.formats.safetensors",
    "ckptforge.formats.mindspore_ckpt",
    last=("ckptforge.torch_files.torch_zip",),
)


def formats_by_ending(path: Path) -> Iterator[Format]:
    """The formats of files with the ending of this path."""
    return (one for one in FORMATS if path.suffix in one.ENDINGS) if path.suffix else iter(())


def format_by_ending(path: Path) -> Format | None:
    """The format that a file of this path is written in; None where there is none."""
    return next(formats_by_ending(path), None)


def endings() -> list[str]:
    """The endings of all formats, the most usual first."""
    return list(dict.fromkeys(ending for one in FORMATS for ending in one.ENDINGS))
