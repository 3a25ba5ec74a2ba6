"""What the numbers of a checkpoint are like, by tensor and by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from ckptforge.reading.source import Source
from ckptforge.verbs.choices import budget_of
from ckptforge.verbs.looked import opened_as
from ckptforge.verbs.options import Stats
from ckptforge.verbs.public import verb
from ckptforge.wording import brief, counted

if TYPE_CHECKING:
    from ckptforge.examine.statistics import Bin, Moments


@dataclass(frozen=True)
class Figures:
    """Figures of the numbers of one tensor, or of the tensors of a kind. `min`, `max`, `mean` and
    `std` are those of the finite ones, NaN where there are none; `std` is that of all of them, not
    of a sample."""

    tensors: int
    count: int
    min: float
    max: float
    mean: float
    std: float
    zeros: int
    nan: int
    infinite: int


@dataclass(frozen=True)
class TensorFigures:
    """A tensor and its figures."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    figures: Figures


@dataclass(frozen=True, repr=False)
class Statistics:
    """What `stats` found: figures by the name of a tensor and by kind, which is the mapping's name
    where a mapping knows the model, else the tensors' name with its numbers as #. `histograms`
    are those of the kinds, with a bin for each power of two. `skipped` are tensors of no plain
    numbers."""

    path: Path
    model: str | None
    layout: str | None
    tensors: Mapping[str, TensorFigures]
    kinds: Mapping[str, Figures]
    histograms: Mapping[str, Sequence[Bin]]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        extent = f"{counted(len(self.tensors), 'tensor')} of {counted(len(self.kinds), 'kind')}"
        return f"<Statistics of {brief(self.path)}: {extent}>"

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "ok": True,
            "verb": "stats",
            "path": str(self.path),
            "model": self.model,
            "layout": self.layout,
            "tensors": {
                name: {
                    "kind": one.kind,
                    "dtype": one.dtype,
                    "shape": list(one.shape),
                    **vars(one.figures),
                }
                for name, one in self.tensors.items()
            },
            "kinds": {
                name: {**vars(one), "histogram": [asdict(bin_) for bin_ in self.histograms[name]]}
                for name, one in self.kinds.items()
            },
            "skipped": list(self.skipped),
            "notes": list(self.notes),
        }


@verb(Stats)
def stats(options: Stats) -> Statistics:
    """Counts and sums up the numbers of every tensor. Returns `Statistics`.

    Reads each tensor once, in constant memory; sums are made in float64, and are the same with any
    number of workers.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `LayoutError` and the errors of
    reading.
    """
    from ckptforge.examine.statistics import moments, together

    opened = opened_as(options)
    values = opened.as_model.values
    known = _kinds(opened.source) if opened.source is not None else {}
    kinds = {name: known.get(name, value.kind) for name, value in values.items()}
    found, histograms = moments(values, kinds, budget_of(options), options.progress)
    by_kind: dict[str, list[Moments]] = {}
    tensors = {}
    for name, one in found.items():
        value = values[name]
        by_kind.setdefault(kinds[name], []).append(one)
        tensors[name] = TensorFigures(kinds[name], value.dtype.name, value.shape, _figures(one, 1))
    opened.close()
    return Statistics(
        path=options.source,
        model=opened.model,
        layout=opened.layout,
        tensors=tensors,
        kinds={kind: _figures(together(all_), len(all_)) for kind, all_ in by_kind.items()},
        histograms=histograms,
        skipped=tuple(name for name in values if name not in found),
        notes=opened.notes,
    )


def _kinds(source: Source) -> dict[str, str]:
    """Name of a stored tensor → the logical tensors that it holds."""
    return {
        name: pattern.kind
        for pattern, names in source.binding.names.items()
        for name in names.values()
    }


def _figures(found: Moments, tensors: int) -> Figures:
    low, high = (found.min, found.max) if found.finite else (math.nan, math.nan)
    return Figures(
        tensors=tensors,
        count=found.count,
        min=low,
        max=high,
        mean=found.mean if found.finite else math.nan,
        std=found.std,
        zeros=found.zeros,
        nan=found.nan,
        infinite=found.infinite,
    )
