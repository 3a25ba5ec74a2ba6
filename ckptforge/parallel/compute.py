"""Strategies computed from a parallel configuration and a table's [shard] rows, without compiling a
network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import ConfigError, LayoutError, counted, shown
from ckptforge.parallel.config import ParallelConfig, stage_of_layers
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import Stage, Strategy, make_strategy
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import recognise_names, without_offsets
from ckptforge.tables.sharding import DIMENSIONS, Cut, Sharding, parse_sharding, stored_cuts
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import companion_prefix, is_state
from ckptforge.tables.table import Layout, Table

_TERMS = {"mp": "model_parallel", "ep": "expert_parallel"}
# of config.json, as tables name their axes by them
_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"
Learnt = tuple[Pattern, str, tuple[int, ...]]


class CutTensor(Protocol):
    """A stored tensor: what the strategy must know of it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def compute_strategy(
    config: ParallelConfig,
    table: Table,
    layout: Layout,
    sizes: AxisSizes,
    tensors: Sequence[CutTensor],
) -> Strategy:
    """The strategy of a job that holds `tensors` in a layout: as MindSpore would save it, optimizer
    state included. Counters and scales in `tensors` are passed over.

    The device matrix of a tensor is (data, model), or (rest, expert, model) with the dimensions
    that its [shard] row names; rest is what is left of the stage's devices. Optimizer parallelism
    cuts axis 0 of a slice once more where the tensor allows it, is at least as large as the
    threshold, divides, and isn't shared by stages. Raises `ConfigError` with the rule that is
    broken.
    """
    cutter = Cutter.of(config, table, layout, sizes)
    _check_experts(config, layout, cutter.rows, sizes)
    _check_heads(config, table, sizes)
    by_name = {tensor.name: tensor for tensor in tensors if not is_state(tensor.name)}
    numbered, unknown = recognise_names(layout, by_name, sizes.lengths)
    if unknown:
        raise ConfigError(
            f"{config.path}: {unknown[0]!r} isn't a tensor of layout {layout.name}, so it can't be "
            "said how it is cut."
        )
    found = without_offsets(numbered, sizes.lengths)
    first = [(pattern, next(iter(names.values()))) for pattern, names in found.items()]
    _check_shapes(
        config, table, sizes, [(pattern, name, by_name[name].shape) for pattern, name in first]
    )
    stage_of = _stages(config, table, sizes)
    cutter = cutter.sharing(table, found)
    stages: list[Stage] = [{} for _ in range(config.degrees.pipeline)]
    for pattern, names in found.items():
        for index, name in names.items():
            stages[stage_of(pattern, index)][name] = cutter.layout_of(pattern, by_name[name])
    prefixes = dict.fromkeys(
        ["adam_m.", "adam_v.", *(["accu_grads."] if config.degrees.pipeline > 1 else [])]
    )
    prefixes.update(
        dict.fromkeys(prefix for tensor in tensors if (prefix := companion_prefix(tensor.name)))
    )
    for stage in stages:
        stage.update({prefix + name: made for prefix in prefixes for name, made in stage.items()})
    return make_strategy(config.path, dict(enumerate(stages)), computed=True)


class Cutter(msgspec.Struct, frozen=True):
    """The rules by which a job cuts the tensors of a layout: a row for each logical tensor, and
    those that stages share."""

    config: ParallelConfig
    rows: Mapping[str, Sharding]
    sizes: AxisSizes
    shared: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: ParallelConfig, table: Table, layout: Layout, sizes: AxisSizes) -> Cutter:
        """Raises `ConfigError` where it isn't known how the layout is spread, and for rows of the
        file's own that are wrong."""
        return cls(config, _rows(config, table, layout), sizes)

    def sharing(self, table: Table, found: Iterable[Pattern]) -> Cutter:
        """The same for a model that has the tensors of these patterns, some of which stages may
        share."""
        present = {tensor for pattern in found for tensor in pattern.tensors}
        return replace(self, shared=frozenset(_shared(self.config, table, present)))

    def row(self, pattern: Pattern) -> Sharding:
        """How the tensors of a pattern are spread."""
        return self.rows.get(pattern.tensors[0], Sharding())

    def cuts(self, pattern: Pattern) -> dict[int, Cut]:
        """The axes of a stored tensor that may be cut."""
        row = self.row(pattern)
        return (
            {}
            if row.whole_if is not None and self.config.flags[row.whole_if]
            else stored_cuts(pattern, self.rows)
        )

    def layout_of(self, pattern: Pattern, tensor: CutTensor) -> DeviceLayout:
        """How a tensor is cut. Raises `ConfigError` where it can't be."""
        cut_by = _cut_by(self.config, pattern, self.cuts(pattern), self.sizes, tensor)
        return _device_layout(
            self.config, self.row(pattern), cut_by, tensor, bool(self.shared & set(pattern.tensors))
        )


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


def _check_experts(
    config: ParallelConfig, layout: Layout, rows: Mapping[str, Sharding], sizes: AxisSizes
) -> None:
    expert_axes = {cut.axis for row in rows.values() for cut in row.cuts if cut.dimension == "ep"}
    if not expert_axes and config.degrees.expert > 1:
        raise ConfigError(
            f"{config.path}: expert_parallel is {config.degrees.expert}, but no tensor of layout "
            f"{layout.name} is cut by it; it must be 1."
        )
    for axis in sorted(expert_axes):
        count = sizes.get(axis)
        if count is not None and config.counts.experts not in (None, count):
            raise ConfigError(
                f"{config.path}: expert_num is {config.counts.experts}, but the model has "
                f"{counted(count, 'expert')}."
            )


def _check_heads(config: ParallelConfig, table: Table, sizes: AxisSizes) -> None:
    """Compares the numbers of heads that the file says with the model's, as far as they are
    known."""
    if (
        config.counts.heads is not None
        and config.counts.kv_heads is not None
        and config.counts.heads % config.counts.kv_heads
    ):
        raise ConfigError(
            f"{config.path}: num_heads {config.counts.heads} isn't a multiple of n_kv_heads "
            f"{config.counts.kv_heads}."
        )
    axes = {expression.choices[0]: axis for axis, expression in table.axes.items()}
    lengths = {text: sizes.get(axis) for text, axis in axes.items()}
    kv_heads, groups = lengths.get(_KV_HEADS), lengths.get(f"{_HEADS} / {_KV_HEADS}")
    heads = lengths.get(_HEADS) or (kv_heads * groups if kv_heads and groups else None)
    for key, said, there in (
        ("num_heads", config.counts.heads, heads),
        ("n_kv_heads", config.counts.kv_heads, kv_heads),
    ):
        if said is not None and there is not None and said != there:
            what = _HEADS if key == "num_heads" else _KV_HEADS
            raise ConfigError(
                f"{config.path}: {key} is {said}, but the model has {there} ({what})."
            )


def learn_heads(sizes: AxisSizes, config: ParallelConfig, table: Table) -> bool:
    """Adds what the numbers of heads that the file says tell of axes that aren't known. Whether
    there were any."""
    said = {
        key: count
        for key, count in ((_HEADS, config.counts.heads), (_KV_HEADS, config.counts.kv_heads))
        if count is not None
    }
    if not said or (
        _KV_HEADS not in said
        and any(_KV_HEADS in expression.text for expression in table.axes.values())
    ):
        return False
    lengths = {
        axis: expression.evaluate(said, str(config.path))
        for axis, expression in table.axes.items()
        if sizes.get(axis) is None
    }
    for axis, length in lengths.items():
        if length is not None:
            sizes.learn(axis, length, f"num_heads and n_kv_heads of {config.path}")
    return any(length is not None for length in lengths.values())


def _check_shapes(
    config: ParallelConfig, table: Table, sizes: AxisSizes, shapes: Sequence[Learnt]
) -> None:
    """Where the model's heads aren't known, those that the file says must at least fit the
    shapes."""
    trial = sizes.copy()
    try:
        if learn_heads(trial, config, table):
            trial.learn_shapes(shapes)
    except LayoutError as error:
        raise ConfigError(
            f"{config.path}: its num_heads or n_kv_heads aren't the model's: {error}"
        ) from error


def _stages(
    config: ParallelConfig, table: Table, sizes: AxisSizes
) -> Callable[[Pattern, tuple[int, ...]], int]:
    """(pattern, index in the name) → stage."""
    pipeline = table.pipeline
    if pipeline is None:
        if config.degrees.pipeline > 1:
            raise ConfigError(
                f"{config.path}: the mapping {table.name} doesn't say how stages divide the model "
                "([pipeline])."
            )
        return lambda pattern, index: 0
    layer_stage = stage_of_layers(config, sizes.get(pipeline.layers[0][0]))

    def stage_of(pattern: Pattern, index: tuple[int, ...]) -> int:
        for axis, offset in pipeline.layers:
            if axis in pattern.name_axes:
                return layer_stage[
                    index[pattern.name_axes.index(axis)]
                    + ((sizes.get(offset) or 0) if offset else 0)
                ]
        return 0 if pattern.tensors[0] in pipeline.first else config.degrees.pipeline - 1

    return stage_of


def _shared(config: ParallelConfig, table: Table, present: set[str]) -> set[str]:
    """Tensors that two stages use, such as a tied embedding; MindSpore lists them on their first
    stage only."""
    if table.pipeline is None or config.degrees.pipeline == 1:
        return set()
    return {stand_in for absent, stand_in in table.pipeline.tied.items() if absent not in present}


def _cut_by(
    config: ParallelConfig,
    pattern: Pattern,
    cuts: Mapping[int, Cut],
    sizes: AxisSizes,
    tensor: CutTensor,
) -> dict[int, str]:
    """Tensor axis → the dimension that cuts it. Raises `ConfigError` where it doesn't divide."""
    found = {}
    for i, cut in sorted(cuts.items()):
        degree = config.degrees.of(cut.dimension)
        known = sizes.get(cut.axis)
        length = known if known is not None else tensor.shape[i]
        if (
            cut.optional
            and known is None
            and pattern.axes[i] != (cut.axis,)
            and degree > 1
            and not length % degree
        ):
            raise ConfigError(
                f"{config.path}: whether {_TERMS[cut.dimension]} {degree} cuts {tensor.name} "
                f"depends on {cut.axis}, which its shape {list(tensor.shape)} doesn't show; give "
                f"the model's config.json with {option('config')}."
            )
        if length % degree or tensor.shape[i] % degree:
            if cut.optional:
                continue
            told = (
                f"{cut.axis} = {length}, by {sizes.known[cut.axis][1]}, which cuts"
                if known is not None
                else f"axis {i} of"
            )
            raise ConfigError(
                f"{config.path}: {_TERMS[cut.dimension]} {degree} does not divide {told} "
                f"{tensor.name} {list(tensor.shape)}."
            )
        found[i] = cut.dimension
    return found


def _device_layout(
    config: ParallelConfig,
    row: Sharding,
    cut_by: Mapping[int, str],
    tensor: CutTensor,
    shared: bool,
) -> DeviceLayout:
    used = set(cut_by.values())
    grid = ["mp"]
    if "ep" in used:
        grid = [dimension for dimension in DIMENSIONS if dimension in used]
        if config.degrees.devices % math.prod(map(config.degrees.of, grid)):
            over = f"data_parallel {config.degrees.data}" + (
                "" if "mp" in used else f" × model_parallel {config.degrees.model}"
            )
            raise ConfigError(
                f"{config.path}: expert_parallel {config.degrees.expert} does not divide {over}."
            )
    degrees = [config.degrees.of(dimension) for dimension in grid]
    rest = config.degrees.devices // math.prod(degrees)
    squeezed = [
        (dimension, degree)
        for dimension, degree in (("", rest), *zip(grid, degrees, strict=True))
        if degree > 1
    ]
    from_right = {dimension: i for i, (dimension, _) in enumerate(reversed(squeezed))}
    tensor_map = tuple(
        (from_right[cut_by[i]],) if i in cut_by and cut_by[i] in from_right else ()
        for i in range(len(tensor.shape))
    )
    layout = DeviceLayout(
        tuple(degree for _, degree in squeezed) or (1,), tensor_map, 0, tensor.shape
    )
    shards = 0 if shared else _optimizer_shards(config, row, layout, tensor)
    return DeviceLayout(layout.device_matrix, tensor_map, shards, tensor.shape)


def _optimizer_shards(
    config: ParallelConfig, row: Sharding, layout: DeviceLayout, tensor: CutTensor
) -> int:
    allowed = config.flags[row.optimizer] if isinstance(row.optimizer, str) else row.optimizer
    if not (config.optimizer.enabled and allowed and tensor.shape) or layout.replicas == 1:
        return 0
    itemsize = (BY_NAME[row.dtype] if row.dtype else tensor.dtype).itemsize
    # A group size that doesn't divide the replicas takes no effect: MindSpore,
    # set_auto_parallel_context.
    takes = config.optimizer.shards != -1 and layout.replicas % config.optimizer.shards == 0
    parts = config.optimizer.shards if takes else layout.replicas
    if math.prod(tensor.shape) * itemsize < config.optimizer.threshold * 1024 or tensor.shape[0] % (
        layout.splits[0] * parts
    ):
        return 0
    if parts == 1:
        return 0
    return parts if takes else -1
