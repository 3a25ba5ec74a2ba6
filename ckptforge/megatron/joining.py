"""Full tensors of a model, made of the parts that the ranks of a job of Megatron's hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptforge.checkpoints.replicas import Replicas
from ckptforge.composing import terms_through
from ckptforge.errors import FormatError, shown
from ckptforge.megatron.cutting import Cutter
from ckptforge.megatron.job import Job, Rank
from ckptforge.megatron.names import expert_of, with_expert
from ckptforge.reading.known import Known
from ckptforge.reading.vocabulary import KEY
from ckptforge.tables.axes import Pattern, axis_factors
from ckptforge.tables.names import read_names, recognise_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.transfers import Transfer
from ckptforge.values import Value
from ckptforge.wording import counted

Tensors = dict[str, Value]


class Joining:
    """Full tensors, made of the parts of ranks."""

    def __init__(
        self, job: Job, table: Table, layout: Layout, known: Known, replicas: Replicas
    ) -> None:
        self.job, self.table, self.layout, self.known = job, table, layout, known
        self.replicas = replicas

    def values(self, directory: Path, held: Sequence[tuple[Rank, Tensors]]) -> Tensors:
        """The tensors in the order in which they are met. Raises `FormatError` for parts that are
        lacking, or that aren't alike."""
        sizes = self._sizes(held)
        cutter = Cutter(self.job, self.table, self.layout, sizes)
        patterns = self._patterns(held, sizes)
        whole: dict[str, tuple[Pattern | None, dict[object, tuple[Rank, Value]]]] = {}
        for rank, tensors in held:
            for name, value in tensors.items():
                pattern = patterns.get(name)
                full = name
                if pattern is not None and (experts := cutter.experts(pattern, rank)):
                    local = expert_of(name) or 0
                    full = with_expert(name, experts[0] + local)
                key = () if pattern is None else cutter.held(pattern, rank).key
                _, parts = whole.setdefault(full, (pattern, {}))
                first = parts.setdefault(key, (rank, value))[1]
                if first is not value:
                    self._check_replica(full, first, value)
        return {
            name: self._joined(directory, name, pattern, parts, cutter)
            for name, (pattern, parts) in whole.items()
        }

    def _check_replica(self, name: str, first: Value, value: Value) -> None:
        if (first.dtype, first.shape) != (value.dtype, value.shape):
            raise FormatError(
                f"{value.origin.path}: {shown(name)} is {value.dtype} {list(value.shape)}, but "
                f"{first.dtype} {list(first.shape)} in {first.origin.path}, where the same part "
                "lies; are the files of one iteration?"
            )
        self.replicas.refuse_other(name, first.origin, value.origin)

    def _joined(
        self,
        directory: Path,
        name: str,
        pattern: Pattern | None,
        parts: Mapping[object, tuple[Rank, Value]],
        cutter: Cutter,
    ) -> Value:
        if pattern is None:
            return next(iter(parts.values()))[1]
        pieces: list[tuple[Value, Transfer]] = []
        full = pattern.shape(lambda _, axis: cutter.sizes.lengths[axis])
        for rank, value in parts.values():
            held = cutter.held(pattern, rank)
            if value.shape != held.shape:
                raise FormatError(
                    f"{value.origin.path}: {shown(name)} has shape {list(value.shape)}, expected "
                    f"{list(held.shape)}, the part of {list(full)} that this rank has."
                )
            if held.transfers is None:
                return value
            pieces += [(value, one.reversed().ordered()) for one in held.transfers]
        first = next(iter(parts.values()))[1]
        if sum(one.size for _, one in pieces) != first.elements * len(parts) or len(parts) != (
            cutter.count(pattern)
        ):
            raise FormatError(
                f"{directory}: {counted(len(parts), 'part')} of {shown(name)} {list(full)} are "
                f"there, expected {cutter.count(pattern)}; are all files of the iteration there?"
            )
        return Value(
            dtype=first.dtype, shape=full, terms=tuple(terms_through(pieces)), kind=first.kind
        )

    def _patterns(
        self, held: Sequence[tuple[Rank, Tensors]], sizes: AxisSizes
    ) -> dict[str, Pattern]:
        names = dict.fromkeys(name for _, tensors in held for name in tensors)
        found, _ = recognise_names(self.layout, names, sizes.lengths)
        return {name: pattern for pattern, own in found.items() for name in own.values()}

    def _sizes(self, held: Sequence[tuple[Rank, Tensors]]) -> AxisSizes:
        """The lengths of axes by config.json, names, and the shapes that the parts make up."""
        names = {name: value.shape for _, tensors in held for name, value in tensors.items()}
        experts = {cut.axis for row in self._rows() for cut in row if cut.dimension == "ep"}
        hints = self.known.hints
        # a job may pad the vocabulary, so that it divides
        config = {key: value for key, value in hints.config.items() if key != KEY}
        where = hints.config_source
        sizes, found, _ = read_names(self.table, self.layout, names, config, where)
        counts = {axis: sizes.known.pop(axis) for axis in experts if axis in sizes.known}
        said = AxisSizes()
        said.learn_config(self.table, config, where)
        for axis, (size, reason) in counts.items():
            in_names = any(axis in pattern.name_axes for pattern in found)
            known = said.get(axis)
            if known is not None:
                sizes.learn(axis, known, said.known[axis][1])
            elif in_names:  # as many as the names of a file count
                degree = self.job.cut("ep", True, Rank())[0]
                sizes.learn(axis, size * degree, reason)
        shapes = []
        for pattern, own in found.items():
            name = next(iter(own.values()))
            shapes.append((pattern, name, self._full_shape(pattern, names[name])))
        sizes.learn_shapes(shapes)
        return sizes

    def _rows(self) -> Iterator[Any]:
        return (row.cuts for row in (self.layout.sharding or {}).values())

    def _full_shape(self, pattern: Pattern, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole: an axis is as many times as long as it is cut into parts."""
        cutter = Cutter(self.job, self.table, self.layout, AxisSizes())
        lengths = list(shape)
        for cut in cutter.cuts(pattern):
            parts, _ = cutter.part(pattern, cut, Rank())
            for i, axis in enumerate(pattern.shape_axes[: len(lengths)]):
                if cut.axis in axis_factors(axis):
                    lengths[i] *= parts
        return tuple(lengths)
