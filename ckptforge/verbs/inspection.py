"""What `inspect` finds in a checkpoint: totals, and a line for each file, rank and kind of part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ckptforge.wording import brief, counted


class Entry(NamedTuple):
    """A tensor's dtype, by its name, and shape."""

    dtype: str
    shape: tuple[int, ...]


class _Line:
    """A record whose fields can be asked for by their names, too."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


@dataclass(frozen=True)
class Amount(_Line):
    """How many tensors, and their bytes."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class FileLine(_Line):
    """A file of weights: its name, its size and the tensors in it."""

    file: str
    bytes: int
    tensors: int


@dataclass(frozen=True)
class RankLine(_Line):
    """A rank's file: its path in the directory, its size and the tensors in it."""

    rank: int
    file: str
    bytes: int
    tensors: int


@dataclass(frozen=True)
class PartLine(_Line):
    """A kind of tensor: the first of its name, how many there are, the numbers that stand in each
    place of their names (of layers, of experts), the full shape, the dtype, and the box of every
    rank that has one, as `[start, stop]` for each axis; none where there are no ranks."""

    tensor: str
    count: int
    numbers: list[list[str]]
    shape: list[int]
    dtype: str
    boxes: dict[int, list[list[int]]]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` found. `layout` is None where it can't be detected, and `layout_reason` says
    why.

    `ranks` are the files of rank directories whose cut isn't known, of which `tensors` and what
    follows from them describe the first; with a strategy they are the full tensors, and `parts`
    says for each kind of tensor which box of it each rank holds. `state` is how many tensors are
    optimizer state and counters, `unmapped` are those that the mapping doesn't know.
    """

    path: str
    format: str
    model: str | None
    layout: str | None
    layout_reason: str | None
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, Amount]
    axes: dict[str, int]
    files: list[FileLine]
    ranks: list[RankLine]
    state: int
    unmapped: list[str]
    notes: list[str]
    entries: dict[str, Entry] = field(default_factory=dict)
    parts: list[PartLine] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        entries = {name: [entry.dtype, list(entry.shape)] for name, entry in self.entries.items()}
        return {"ok": True, "verb": "inspect", **asdict(self), "entries": entries}

    def __repr__(self) -> str:
        what = " ".join(name for name in (self.model, self.layout) if name) or "not recognised"
        return (
            f"<Inspection of {brief(self.path)}: {brief(what)}, {counted(self.tensors, 'tensor')}, "
            f"{self.bytes} bytes>"
        )
