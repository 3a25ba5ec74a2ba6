"""The rules by which a job cuts the tensors of a layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import ConfigError, shown
from ckptforge.formats.layout import TensorSpec
from ckptforge.parallel.config import ParallelConfig
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.sharding import (
    DIMENSIONS,
    Cut,
    Sharding,
    parse_sharding,
    stored_cuts,
    stored_fsdp,
)
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Stored

_TERMS = {"mp": "model_parallel", "ep": "expert_parallel"}

CutTensor = TensorSpec | Stored
"""A stored tensor: the strategy must know its name, its dtype and its shape."""


class Cutter(msgspec.Struct, frozen=True):
    """How a job cuts a layout: a row for each logical tensor, and those that stages share."""

    config: ParallelConfig
    rows: Mapping[str, Sharding]
    sizes: AxisSizes
    shared: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: ParallelConfig, table: Table, layout: Layout, sizes: AxisSizes) -> Cutter:
        """Raises `ConfigError` for a layout without rows, and wrong rows of the file's own."""
        return cls(config, _rows(config, table, layout), sizes)

    def sharing(self, table: Table, found: Iterable[Pattern]) -> Cutter:
        """The same for a model that has the tensors of these patterns. Some are used by two stages,
        such as a tied embedding; MindSpore lists them on the first only."""
        if table.pipeline is None or self.config.degrees.pipeline == 1:
            return self
        present = {tensor for pattern in found for tensor in pattern.tensors}
        shared = {used for absent, used in table.pipeline.tied.items() if absent not in present}
        return replace(self, shared=frozenset(shared))

    def row(self, pattern: Pattern) -> Sharding:
        """How the tensors of a pattern are spread."""
        return self.rows.get(pattern.tensors[0], Sharding())

    def axes_of(self, dimension: str) -> list[str]:
        """The axes of logical tensors that a dimension cuts."""
        cuts = (cut for row in self.rows.values() for cut in row.cuts)
        return sorted({cut.axis for cut in cuts if cut.dimension == dimension})

    def cuts(self, pattern: Pattern) -> dict[int, Cut]:
        """The axes of a stored tensor that may be cut."""
        whole_if = self.row(pattern).whole_if
        if whole_if is not None and self.config.flags[whole_if]:
            return {}
        return stored_cuts(pattern, self.rows)

    def hides(self, pattern: Pattern, axis: int, cut: Cut) -> bool:
        """Whether no shape shows if a cut is made, of one factor of an axis that may stay."""
        inner = pattern.axes[axis] != (cut.axis,) and self.config.degrees.of(cut.dimension) > 1
        return cut.optional and inner and self.sizes.get(cut.axis) is None

    def layout_of(self, pattern: Pattern, tensor: CutTensor) -> DeviceLayout:
        """How a tensor is cut. Raises `ConfigError` where it can't be."""
        cut_by = self._cut_by(pattern, tensor)
        if (mesh := self.config.mesh) is not None:
            row = self.row(pattern)
            sharded = None if row.optimizer is False else stored_fsdp(pattern, [row])
            return mesh.layout(tensor.shape, cut_by, sharded)
        grid, tensor_map = self._grid(cut_by, len(tensor.shape))
        layout = DeviceLayout(grid, tensor_map, 0, tensor.shape)
        if self.shared & set(pattern.tensors):
            return layout
        return replace(layout, optimizer_shards=self._shards(self.row(pattern), layout, tensor))

    def _cut_by(self, pattern: Pattern, tensor: CutTensor) -> dict[int, str]:
        """Tensor axis → the dimension that cuts it. Raises `ConfigError`."""
        found = {}
        path, shape = self.config.path, list(tensor.shape)
        for i, cut in sorted(self.cuts(pattern).items()):
            degree, known = self.config.degrees.of(cut.dimension), self.sizes.get(cut.axis)
            length = shape[i] if known is None else known
            by = f"{_TERMS[cut.dimension]} {degree}"
            if self.hides(pattern, i, cut) and not length % degree:
                raise ConfigError(
                    f"{path}: whether {by} cuts {tensor.name} depends on {cut.axis}, which its "
                    f"shape {shape} doesn't show; give the model's config.json with "
                    f"{option('config')}."
                )
            if not length % degree and not shape[i] % degree:
                found[i] = cut.dimension
            elif not cut.optional:
                what = f"axis {i} of"
                if known is not None:
                    what = f"{cut.axis} = {known}, by {self.sizes.known[cut.axis][1]}, which cuts"
                raise ConfigError(f"{path}: {by} does not divide {what} {tensor.name} {shape}.")
        return found

    def _grid(
        self, cut_by: Mapping[int, str], axes: int
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """(device matrix, tensor map) of a tensor whose axes are cut by these dimensions."""
        degrees, used = self.config.degrees, set(cut_by.values())
        grid = ["mp"]
        if "ep" in used:
            grid = [dimension for dimension in DIMENSIONS if dimension in used]
            if degrees.devices % math.prod(map(degrees.of, grid)):
                model = "" if "mp" in used else f" × model_parallel {degrees.model}"
                raise ConfigError(
                    f"{self.config.path}: expert_parallel {degrees.expert} does not divide "
                    f"data_parallel {degrees.data}{model}."
                )
        lengths = {dimension: degrees.of(dimension) for dimension in grid}
        lengths = {"": degrees.devices // math.prod(lengths.values()), **lengths}
        squeezed = {dimension: degree for dimension, degree in lengths.items() if degree > 1}
        from_right = {dimension: i for i, dimension in enumerate(reversed(squeezed))}
        cuts = (from_right.get(cut_by.get(i, "whole")) for i in range(axes))
        return tuple(squeezed.values()) or (1,), tuple(() if i is None else (i,) for i in cuts)

    def _shards(self, row: Sharding, layout: DeviceLayout, tensor: CutTensor) -> int:
        """Into how many parts optimizer parallelism cuts a slice; see `DeviceLayout`."""
        flags, optimizer = self.config.flags, self.config.optimizer
        allowed = flags[row.optimizer] if isinstance(row.optimizer, str) else row.optimizer
        if not (optimizer.enabled and allowed and tensor.shape) or layout.replicas == 1:
            return 0
        itemsize = (BY_NAME[row.dtype] if row.dtype else tensor.dtype).itemsize
        # A group size that doesn't divide the replicas takes no effect: MindSpore,
        # set_auto_parallel_context.
        takes = optimizer.shards != -1 and layout.replicas % optimizer.shards == 0
        parts = optimizer.shards if takes else layout.replicas
        small = math.prod(tensor.shape) * itemsize < optimizer.threshold * 1024
        if small or parts == 1 or tensor.shape[0] % (layout.splits[0] * parts):
            return 0
        return parts if takes else -1


def _rows(config: ParallelConfig, table: Table, layout: Layout) -> dict[str, Sharding]:
    if layout.sharding is None:
        raise ConfigError(
            f"{config.path}: the mapping {table.name} doesn't say how layout {layout.name} is "
            "spread over devices ([shard] rows); give strategy files instead."
        )
    rows = dict(layout.sharding)
    for tensor, row in config.shard.items():
        if tensor not in table.tensors:
            raise ConfigError(
                f"{config.path}: shard.{shown(tensor)}: the mapping {table.name} has no such "
                f"tensor; it has {', '.join(table.tensors)}."
            )
        try:
            rows[tensor] = parse_sharding(row, table.tensors[tensor])
        except ValueError as error:
            raise ConfigError(f"{config.path}: shard.{tensor}: {error}.") from error
    for pattern in layout.patterns if config.shard else ():
        try:
            stored_cuts(pattern, rows)
        except ValueError as error:
            raise ConfigError(f"{config.path}: shard: {error}.") from error
    return rows
