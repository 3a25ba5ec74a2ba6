"""The cut of rank directories as a manifest keeps it: by kind of tensor and stages, so that it has
the same size for any number of ranks and layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.manifest import Manifest
from ckptforge.errors import FormatError, shown
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES, DeviceLayout, Stage
from ckptforge.parallel.strategy_files import Strategy, make_strategy
from ckptforge.tables.skeletons import skeleton_of

_MAX_ROWS = 1 << 17  # kinds of tensors, and tensors that aren't cut as others of their kind


class CutRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the tensors of a `kind` (names alike except for numbers, which stand as `#`), or those of
    some `names`, are cut in `stages`, first and last of each run, by a layout without a shape; no
    layout: every rank holds the same."""

    stages: tuple[tuple[int, int], ...]
    layout: DeviceLayout | None = None
    kind: str | None = None
    names: tuple[str, ...] = ()


class RecordedCut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a job of `stages` with so many `devices` each cuts its tensors."""

    stages: int
    devices: int
    rows: tuple[CutRow, ...]

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.stages * self.devices

    def strategy(self, path: Path, tensors: Sequence[Iterable[str]]) -> Strategy:
        """The strategy for stages that hold these tensors. Raises `FormatError`."""
        by_kind, by_name = self._by("kind"), self._by("names")
        stages: dict[int, Stage] = {}
        for stage, names in enumerate(tensors):
            stages[stage] = {}
            for name in names:
                found = by_name.get((stage, name)) or by_kind.get((stage, skeleton_of(name)[0]))
                if found is None:
                    raise FormatError(f"{path}: doesn't say how {shown(name)} is cut in {stage}.")
                if found.layout is not None:
                    stages[stage][name] = found.layout
        return make_strategy(path, stages, computed=True)

    def _by(self, what: str) -> dict[tuple[int, str], CutRow]:
        found = {}
        for row in self.rows:
            keys = row.names if what == "names" else () if row.kind is None else (row.kind,)
            for first, last in row.stages:
                for stage in range(first, last + 1):
                    found.update({(stage, key): row for key in keys})
        return found


def cut_of(strategy: Strategy, tensors: Sequence[Iterable[str]]) -> RecordedCut:
    """What a strategy says of the tensors that each of its stages holds."""
    by_kind: dict[tuple[int, str], dict[str, DeviceLayout | None]] = {}
    for stage, names in enumerate(tensors):
        for name in names:
            layout = strategy.stages[stage].get(name)
            row = None if layout is None else replace(layout, full_shape=None)
            by_kind.setdefault((stage, skeleton_of(name)[0]), {})[name] = row
    stages: dict[tuple[DeviceLayout | None, str | None, tuple[str, ...]], list[int]] = {}
    for (stage, kind), layouts in by_kind.items():
        usual = Counter(layouts.values()).most_common(1)[0][0]
        stages.setdefault((usual, kind, ()), []).append(stage)
        others: dict[DeviceLayout | None, list[str]] = {}
        for name, row in layouts.items():
            if row != usual:
                others.setdefault(row, []).append(name)
        for row, names in others.items():
            stages.setdefault((row, None, tuple(names)), []).append(stage)
    items = stages.items()
    rows = (CutRow(tuple(_runs(found)), layout, kind, n) for (layout, kind, n), found in items)
    return RecordedCut(len(strategy.stages), strategy.devices, tuple(rows))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers that follow one another."""
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def cut_json(cut: RecordedCut) -> dict[str, Any]:
    """A cut as it stands in a manifest."""
    found: dict[str, Any] = msgspec.to_builtins(cut)
    for row in found["rows"]:
        if row["layout"] is not None:
            del row["layout"]["full_shape"]
    rows = found["rows"]
    found["rows"] = [{k: v for k, v in row.items() if v not in (None, ())} for row in rows]
    return found


def recorded_cut(manifest: Manifest) -> RecordedCut:
    """How a manifest says that its files are cut. Raises `FormatError` where it doesn't."""
    try:
        return read_cut(manifest.cut or {})
    except (TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"{manifest.path}: isn't a ckptforge manifest ({type(error).__name__}: {error}); "
            "remove it, or convert again."
        ) from error


def read_cut(content: Mapping[str, Any]) -> RecordedCut:
    """What `cut_json` wrote. Raises `ValueError` for anything else."""
    rows = content.get("rows")
    if not isinstance(rows, list) or len(rows) > _MAX_ROWS:
        raise ValueError(f"cut.rows is {shown(rows)}")
    cut = msgspec.convert(content, RecordedCut)  # msgspec's ValidationError is a ValueError
    few = 1 <= cut.stages <= MAX_STAGES and 1 <= cut.devices <= MAX_DEVICES
    if not few or cut.ranks > MAX_DEVICES:
        raise ValueError(f"cut has {shown(cut.stages)} stages of {shown(cut.devices)} devices")
    spans = 0
    for row in cut.rows:
        if (row.kind is None) == (not row.names):
            raise ValueError("a row of cut must have either kind or names")
        if any(not 0 <= first <= last < cut.stages for first, last in row.stages):
            raise ValueError(f"a row of cut is for stages {shown(row.stages)} of {cut.stages}")
        spans += sum(last - first + 1 for first, last in row.stages) * max(1, len(row.names))
        if spans > _MAX_ROWS * 8:
            raise ValueError("cut says more than there can be")
        if (layout := row.layout) is not None:
            if layout.full_shape is not None:
                raise ValueError("a layout of cut has a shape")
            if problem := layout.problem():
                raise ValueError(f"a row of cut: {problem}")
            if layout.devices != cut.devices:
                raise ValueError(
                    f"a row of cut is for {layout.devices} devices, the others for {cut.devices}"
                )
    return cut
