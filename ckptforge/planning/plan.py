"""What a plan is: for every tensor of every output file, the fragments that fill it. Made from
indexes alone, and proved before a byte is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import OutputFile
from ckptforge.model import Account, Held
from ckptforge.planning.lower import Assemblies
from ckptforge.planning.reads import Ranges
from ckptforge.values import Place
from ckptforge.wording import brief, counted


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole job: outputs to write, what fills them, and what is to be said of it.

    `output` is the file or directory that appears; `assemblies` are what fills the files in or at
    it; `small_files` are written beside the tensors as they are. `facts` describe the job for
    people. `cut` is how the outputs are cut where they are the files of ranks, as a manifest says
    it. `read` are the ranges of bytes that are read of those sources of which not all is
    (`planning/reads.py`). `held` finds which rank held what of the input.
    """

    verb: str
    output: Path
    assemblies: Assemblies
    sources: tuple[FileIndex, ...]
    small_files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    account: Account = Account()
    facts: Mapping[str, Any] = msgspec.field(default_factory=dict)
    cut: Mapping[str, Any] | None = None
    read: Mapping[Path, Ranges] = msgspec.field(default_factory=dict)
    held: Callable[[], Iterable[Held]] | None = None

    def __repr__(self) -> str:
        return (
            f"<Plan of {self.verb}: {brief(self.output)}, "
            f"{counted(self.tensor_count, 'tensor')}, {self.nbytes} bytes>"
        )

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files with tensors."""
        return self.assemblies.outputs

    @property
    def is_directory(self) -> bool:
        """Whether the output is a directory."""
        return not self.files or any(file.path != self.output for file in self.files)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that will appear, except the manifest."""
        base = self.output if self.is_directory else self.output.parent
        return (*(file.path for file in self.files), *(base / name for name in self.small_files))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should hear of."""
        return self.account.notes

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Tensors of the input that aren't written, by reason."""
        return {reason: list(names) for reason, names in self.account.left_out.items()}

    def name_of(self, path: Path) -> str:
        """A file's name within the output."""
        return str(path.relative_to(self.output)) if path != self.output else path.name

    def casts(self) -> dict[str, int]:
        """ "from → to" → number of source tensors that are cast so. What is encoded is cast to its
        codes, of which the scales are part."""
        pairs = {
            (id(one.stored), made.name): one.stored.dtype.name
            for value in self.assemblies.values.values()
            for made in (value.dtype if value.encoding is None else value.encoding.made,)
            for term in value.terms
            for one in term.fragments
            if one.stored.dtype is not made and one.stored.dtype != made
        }
        return dict(Counter(f"{source} → {target}" for (_, target), source in pairs.items()))

    def key(self, place: Place) -> tuple[str, str]:
        """(file, tensor): what an output tensor is known by, wherever the output lies."""
        return self.name_of(place.path), place.name

    @property
    def tensor_count(self) -> int:
        """How many tensors all files have together."""
        return sum(len(file.places) for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs, small files included."""
        return sum(file.size for file in self.files) + sum(map(len, self.small_files.values()))

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(file.tensor_bytes for file in self.files)
