"""Strategies computed from a parallel configuration and a table's [shard] rows, without compiling a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import ConfigError, counted, shown
from ckptforge.mapping.axes import Pattern
from ckptforge.mapping.binding import recognise_names, without_offsets
from ckptforge.mapping.sharding import DIMENSIONS, Cut, Sharding, ShardRow, parse_sharding, stored_cuts
from ckptforge.mapping.sizes import AxisSizes
from ckptforge.mapping.state import companion_prefix, is_state
from ckptforge.mapping.table import Layout, Table
from ckptforge.partition.device_layout import DeviceLayout
from ckptforge.partition.parallel_config import ParallelConfig, stage_of_layers
from ckptforge.partition.strategy_file import Stage, Strategy, make_strategy

_TERMS = {"mp": "model_parallel", "ep": "expert_parallel"}


class Stored(Protocol):
    """A stored tensor: what the strategy must know of it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def compute_strategy(config: ParallelConfig, table: Table, layout: Layout, sizes: AxisSizes, tensors: Sequence[Stored]) -> Strategy:
    """The strategy of a job that holds `tensors` in a layout: as MindSpore would save it, optimizer state included.
    Counters and scales in `tensors` are passed over.

    The device matrix of a tensor is (data, model), or (rest, expert, model) with the dimensions that its [shard] row
    names; rest is what is left of the stage's devices. Optimizer parallelism cuts axis 0 of a slice once more where the
    tensor allows it, is at least as large as the threshold, divides, and isn't shared by stages.
    Raises `ConfigError` with the rule that is broken.
    """
    rows = _rows(config, table, layout)
    _check_experts(config, table, layout, rows, sizes)
    by_name = {tensor.name: tensor for tensor in tensors if not is_state(tensor.name)}
    numbered, unknown = recognise_names(layout, by_name, sizes.lengths)
    if unknown:
        raise ConfigError(f"{config.path}: {unknown[0]!r} isn't a tensor of layout {layout.name}, so it can't be said how it is cut.")
    found = without_offsets(numbered, sizes.lengths)
    present = {tensor for pattern in found for tensor in pattern.tensors}
    stage_of = _stages(config, table, sizes)
    shared = _shared(config, table, present)
    stages: list[Stage] = [{} for _ in range(config.pipeline)]
    for pattern, names in found.items():
        row = rows.get(pattern.tensors[0], Sharding())
        cuts = {} if row.whole_if is not None and config.flags[row.whole_if] else stored_cuts(pattern, rows)
        for index, name in names.items():
            cut_by = _cut_by(config, pattern, cuts, sizes, by_name[name])
            made = _device_layout(config, row, cut_by, by_name[name], bool(shared & set(pattern.tensors)))
            stages[stage_of(pattern, index)][name] = made
    prefixes = dict.fromkeys(["adam_m.", "adam_v.", *(["accu_grads."] if config.pipeline > 1 else [])])
    prefixes.update(dict.fromkeys(prefix for tensor in tensors if (prefix := companion_prefix(tensor.name))))
    for stage in stages:
        stage.update({prefix + name: made for prefix in prefixes for name, made in stage.items()})
    return make_strategy(config.path, dict(enumerate(stages)), computed=True)


def _rows(config: ParallelConfig, table: Table, layout: Layout) -> dict[str, Sharding]:
    if layout.sharding is None:
        raise ConfigError(
            f"{config.path}: the mapping {table.name} doesn't say how layout {layout.name} is spread over devices ([shard] rows); "
            "give strategy files instead."
        )
    rows = dict(layout.sharding)
    for tensor, content in config.shard.items():
        if tensor not in table.tensors:
            raise ConfigError(
                f"{config.path}: shard.{shown(tensor)}: the mapping {table.name} has no such tensor; it has {', '.join(table.tensors)}."
            )
        try:
            rows[tensor] = parse_sharding(msgspec.convert(content, ShardRow), table.tensors[tensor])
        except ValueError as error:  # msgspec's among them
            raise ConfigError(f"{config.path}: shard.{tensor}: {str(error)[:300]}.") from error
    for pattern in layout.patterns if config.shard else ():
        try:
            stored_cuts(pattern, rows)
        except ValueError as error:
            raise ConfigError(f"{config.path}: shard: {error}.") from error
    return rows


def _check_experts(config: ParallelConfig, table: Table, layout: Layout, rows: Mapping[str, Sharding], sizes: AxisSizes) -> None:
    expert_axes = {cut.axis for row in rows.values() for cut in row.cuts if cut.dimension == "ep"}
    if not expert_axes and config.expert > 1:
        raise ConfigError(
            f"{config.path}: expert_parallel is {config.expert}, but no tensor of layout {layout.name} is cut by it; it must be 1."
        )
    for axis in sorted(expert_axes):
        count = sizes.get(axis)
        if count is not None and config.experts not in (None, count):
            raise ConfigError(f"{config.path}: expert_num is {config.experts}, but the model has {counted(count, 'expert')}.")


def _stages(config: ParallelConfig, table: Table, sizes: AxisSizes) -> Callable[[Pattern, tuple[int, ...]], int]:
    """(pattern, index in the name) → stage."""
    pipeline = table.pipeline
    if pipeline is None:
        if config.pipeline > 1:
            raise ConfigError(f"{config.path}: the mapping {table.name} doesn't say how stages divide the model ([pipeline]).")
        return lambda pattern, index: 0
    layer_stage = stage_of_layers(config, sizes.get(pipeline.layers[0][0]))

    def stage_of(pattern: Pattern, index: tuple[int, ...]) -> int:
        for axis, offset in pipeline.layers:
            if axis in pattern.name_axes:
                return layer_stage[index[pattern.name_axes.index(axis)] + ((sizes.get(offset) or 0) if offset else 0)]
        return 0 if pattern.tensors[0] in pipeline.first else config.pipeline - 1

    return stage_of


def _shared(config: ParallelConfig, table: Table, present: set[str]) -> set[str]:
    """Tensors that two stages use, such as a tied embedding; MindSpore lists them on their first stage only."""
    if table.pipeline is None or config.pipeline == 1:
        return set()
    return {stand_in for absent, stand_in in table.pipeline.tied.items() if absent not in present}


def _cut_by(config: ParallelConfig, pattern: Pattern, cuts: Mapping[int, Cut], sizes: AxisSizes, tensor: Stored) -> dict[int, str]:
    """Tensor axis → the dimension that cuts it. Raises `ConfigError` where it doesn't divide."""
    found = {}
    for i, cut in sorted(cuts.items()):
        degree = config.degree(cut.dimension)
        known = sizes.get(cut.axis)
        length = known if known is not None else tensor.shape[i]
        if length % degree or tensor.shape[i] % degree:
            if cut.optional:
                continue
            what = f"{cut.axis} = {length}" if known is not None else f"axis {i} of"
            raise ConfigError(
                f"{config.path}: {_TERMS[cut.dimension]} {degree} does not divide {what}{', which cuts' if known is not None else ''} "
                f"{tensor.name} {list(tensor.shape)}."
            )
        found[i] = cut.dimension
    return found


def _device_layout(config: ParallelConfig, row: Sharding, cut_by: Mapping[int, str], tensor: Stored, shared: bool) -> DeviceLayout:
    used = set(cut_by.values())
    grid = ["mp"]
    if "ep" in used:
        grid = [dimension for dimension in DIMENSIONS if dimension in used]
        if config.devices % math.prod(map(config.degree, grid)):
            over = f"data_parallel {config.data}" + ("" if "mp" in used else f" × model_parallel {config.model}")
            raise ConfigError(f"{config.path}: expert_parallel {config.expert} does not divide {over}.")
    degrees = [config.degree(dimension) for dimension in grid]
    rest = config.devices // math.prod(degrees)
    squeezed = [(dimension, degree) for dimension, degree in (("", rest), *zip(grid, degrees, strict=True)) if degree > 1]
    from_right = {dimension: i for i, (dimension, _) in enumerate(reversed(squeezed))}
    tensor_map = tuple((from_right[cut_by[i]],) if i in cut_by and cut_by[i] in from_right else () for i in range(len(tensor.shape)))
    layout = DeviceLayout(tuple(degree for _, degree in squeezed) or (1,), tensor_map, 0, tensor.shape)
    shards = 0 if shared else _optimizer_shards(config, row, layout, tensor)
    return DeviceLayout(layout.device_matrix, tensor_map, shards, tensor.shape)


def _optimizer_shards(config: ParallelConfig, row: Sharding, layout: DeviceLayout, tensor: Stored) -> int:
    allowed = config.flags[row.optimizer] if isinstance(row.optimizer, str) else row.optimizer
    if not (config.optimizer and allowed and tensor.shape) or layout.replicas == 1:
        return 0
    itemsize = (BY_NAME[row.dtype] if row.dtype else tensor.dtype).itemsize
    # A group size that doesn't divide the replicas takes no effect: MindSpore, set_auto_parallel_context.
    takes = config.optimizer_shards != -1 and layout.replicas % config.optimizer_shards == 0
    parts = config.optimizer_shards if takes else layout.replicas
    if math.prod(tensor.shape) * itemsize < config.threshold * 1024 or tensor.shape[0] % (layout.splits[0] * parts):
        return 0
    if parts == 1:
        return 0
    return parts if takes else -1
