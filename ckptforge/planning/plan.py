"""What a plan is: for every output tensor of every output file, the source boxes that fill it. Made
from indexes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.boxes import Box, Transfer, box_shape, box_text, intersect, uncovered
from ckptforge.errors import PlanError, brief, counted
from ckptforge.formats.entry import FileIndex, TensorEntry
from ckptforge.formats.layout import FileLayout
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.tables.binding import Piece


class Assembly(msgspec.Struct, frozen=True):
    """One output tensor, and the transfers that fill it, each from one source tensor; with
    `zeroed`, what they leave is 0. `group` names its kind for the audit, in which a `replica`, the
    same numbers once more in another file, doesn't count."""

    target: TensorEntry
    group: str
    copies: tuple[tuple[TensorEntry, Transfer], ...]
    zeroed: bool = False
    replica: bool = False


class Pair(msgspec.Struct, frozen=True):
    """A tensor, or the part of it that lies in one file, as one side would make it (`assembly`),
    and as the other side has it (`entry`); `box` is its part of the tensor, None for all of it."""

    assembly: Assembly
    entry: TensorEntry
    box: Box | None


class Plan(msgspec.Struct, frozen=True):
    """A whole job: outputs to write, what fills them, and what of the input is left out and why.

    `output` is the file or directory that appears; `files` have paths in or at it; `small_files`
    are written beside the tensors as they are. `facts` describe the job for people. `alike` are
    pairs of source tensors that must hold the same, as only the second is used. `strategy` is what
    cuts the outputs where they are the files of ranks.
    """

    verb: str
    output: Path
    files: tuple[FileLayout, ...]
    assemblies: tuple[Assembly, ...]
    sources: tuple[FileIndex, ...]
    small_files: dict[str, bytes] = msgspec.field(default_factory=dict)
    left_out: dict[str, list[str]] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    alike: tuple[tuple[TensorEntry, TensorEntry], ...] = ()
    strategy: Strategy | None = None

    def __repr__(self) -> str:
        return (
            f"<Plan of {self.verb}: {brief(self.output)}, "
            f"{counted(self.tensor_count, 'tensor')}, {self.nbytes} bytes>"
        )

    @property
    def is_directory(self) -> bool:
        return not self.files or any(file.path != self.output for file in self.files)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that will appear, except the manifest."""
        base = self.output if self.is_directory else self.output.parent
        return (*(file.path for file in self.files), *(base / name for name in self.small_files))

    @property
    def targets(self) -> Iterator[TensorEntry]:
        """The tensors to be written."""
        return (assembly.target for assembly in self.assemblies)

    def name_of(self, path: Path) -> str:
        """A file's name within the output."""
        return str(path.relative_to(self.output)) if path != self.output else path.name

    def key(self, entry: TensorEntry) -> tuple[str, str]:
        """(file, tensor): what an output tensor is known by, wherever the output lies."""
        return self.name_of(entry.path), entry.name

    @property
    def tensor_count(self) -> int:
        return len(self.assemblies)

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs, small files included."""
        return sum(file.size for file in self.files) + sum(map(len, self.small_files.values()))

    @property
    def tensor_bytes(self) -> int:
        return sum(assembly.target.nbytes for assembly in self.assemblies)

    def casts(self) -> dict[str, int]:
        """ "from → to" → number of source tensors that are cast so."""
        pairs = {
            (id(source), assembly.target.dtype): source.dtype
            for assembly in self.assemblies
            for source, _ in assembly.copies
            if source.dtype != assembly.target.dtype
        }
        return dict(Counter(f"{source} → {target}" for (_, target), source in pairs.items()))


def fill(
    targets: Iterable[Piece], sources: Sequence[Piece], pinned: Sequence[int]
) -> dict[str, list[tuple[str, Box, Transfer]]]:
    """Target name → (source name, box, transfer): the source boxes that fill each target piece.

    `pinned` are the axes of the boxes on which every piece, on both sides, has length one; they
    pair the pieces off fast. Raises `PlanError` unless each element of each target piece is filled
    exactly once.
    """
    by_key: dict[tuple[int, ...], list[Piece]] = {}
    for piece in sources:
        by_key.setdefault(tuple(piece.box[axis][0] for axis in pinned), []).append(piece)
    found: dict[str, list[tuple[str, Box, Transfer]]] = {}
    for target in targets:
        parts: list[Box] = []
        for source in by_key.get(tuple(target.box[axis][0] for axis in pinned), ()):
            common = intersect(source.box, target.box)
            if common is None:
                continue
            parts.append(common)
            transfer = Transfer(
                box_shape(common),
                source.grid.at(
                    [lo - start for (lo, _), (start, _) in zip(common, source.box, strict=True)]
                ),
                source.grid.strides,
                target.grid.at(
                    [lo - start for (lo, _), (start, _) in zip(common, target.box, strict=True)]
                ),
                target.grid.strides,
            )
            found.setdefault(target.name, []).append((source.name, common, transfer.ordered()))
        if wrong := uncovered(target.box, parts):
            where = f"{box_text(wrong[1])} of {box_text(target.box)}"
            raise PlanError(
                f"{target.name}: the sources {wrong[0]} at box {where}; this is a "
                "defect of the mapping."
            )
    return found


def prove_filled(assembly: Assembly) -> None:
    """As many elements of an output are written as it has, all inside it and from inside their
    sources. Raises `PlanError`."""
    written, elements = 0, assembly.target.elements
    for source, transfer in assembly.copies:
        size = transfer.size
        written += size
        if size and (transfer.last_source >= source.elements or transfer.last_target >= elements):
            raise PlanError(
                f"{assembly.target.name}: a copy from {source.name} reaches outside; "
                "this is a defect of the mapping."
            )
    if written != elements and not assembly.zeroed:
        raise PlanError(
            f"{assembly.target.name}: {written} of {elements} elements are filled; "
            "this is a defect of the mapping."
        )


def prove_complete(assemblies: Sequence[Assembly], used: Iterable[TensorEntry]) -> None:
    """Every element of every output is written once by count, inside it; every element of every
    used source is read.

    Together with `fill`, which proves that no two copies meet, this is the coverage proof. Raises
    `PlanError`.
    """
    read: Counter[TensorEntry] = Counter()
    for assembly in assemblies:
        prove_filled(assembly)
        for source, transfer in assembly.copies:
            read[source] += transfer.size
    for source in used:
        if read[source] != source.elements:
            raise PlanError(
                f"{source.name}: {read[source]} of {source.elements} elements are "
                "used; this is a defect of the mapping."
            )
