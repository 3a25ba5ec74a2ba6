"""Strategies computed from a parallel configuration and a table's [shard] rows, and the numbers of
heads that the configuration says, which must be the model's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ckptforge.errors import ConfigError, LayoutError
from ckptforge.parallel.config import ParallelConfig, stage_of_layers
from ckptforge.parallel.cutter import CutTensor, Cutter
from ckptforge.parallel.device_layout import DeviceLayout, Stage
from ckptforge.parallel.strategy_files import Strategy, make_strategy
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import indexed, recognise_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import companion_prefix, is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.wording import counted

_LAYER = re.compile(r".*?\.[0-9]+\.")


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
    _check_experts(cutter, layout)
    check_heads(config, table, sizes)
    by_name = {tensor.name: tensor for tensor in tensors if not is_state(tensor.name)}
    numbered, unknown = recognise_names(layout, by_name, sizes.lengths)
    if strange := [name for name in unknown if not table.is_ignored(layout, name)]:
        raise ConfigError(
            f"{config.path}: {strange[0]!r} isn't a tensor of layout {layout.name}, so it can't be "
            "said how it is cut."
        )
    found = indexed(numbered, sizes.lengths)
    firsts = {pattern: next(iter(names.values())) for pattern, names in found.items()}
    shapes = [(pattern, name, by_name[name].shape) for pattern, name in firsts.items()]
    check_shapes(config, table, sizes, shapes)
    stage_of = _stages(config, table, sizes)
    cutter = cutter.sharing(table, found)
    stages: list[Stage] = [{} for _ in range(config.degrees.pipeline)]
    for pattern, names in found.items():
        for index, name in names.items():
            stages[stage_of(pattern, index)][name] = cutter.layout_of(pattern, by_name[name])
    passed = [n for n in by_name if layout.passes(n) and not any(n in stage for stage in stages)]
    for name in (*unknown, *passed):
        shape = by_name[name].shape  # every device of a stage holds it
        uncut = DeviceLayout((config.degrees.devices,), ((),) * len(shape), 0, shape)
        _beside_weights(name, stages)[name] = uncut
    prefixes = dict.fromkeys(["adam_m.", "adam_v."])
    if config.degrees.pipeline > 1:
        prefixes["accu_grads."] = None
    prefixes |= dict.fromkeys(p for tensor in tensors if (p := companion_prefix(tensor.name)))
    for stage in stages:
        stage.update({prefix + name: made for prefix in prefixes for name, made in stage.items()})
    return make_strategy(config.path, dict(enumerate(stages)), computed=True)


def _beside_weights(name: str, stages: Sequence[Stage]) -> Stage:
    """The stage of a counter of the network: that of the weights of its layer."""
    layer = _LAYER.match(name)
    same = (stage for stage in stages if layer and any(n.startswith(layer[0]) for n in stage))
    return next(same, stages[0])


def _check_experts(cutter: Cutter, layout: Layout) -> None:
    config, expert_axes = cutter.config, cutter.axes_of("ep")
    if not expert_axes and config.degrees.expert > 1:
        raise ConfigError(
            f"{config.path}: expert_parallel is {config.degrees.expert}, but no tensor of layout "
            f"{layout.name} is cut by it; it must be 1."
        )
    for axis in expert_axes:
        count = cutter.sizes.get(axis)
        if count is not None and config.counts.experts not in (None, count):
            raise ConfigError(
                f"{config.path}: expert_num is {config.counts.experts}, but the model has "
                f"{counted(count, 'expert')}."
            )


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
    in_towers = table.in_towers

    def stage_of(pattern: Pattern, index: tuple[int, ...]) -> int:
        for axis, offset in pipeline.layers:
            if axis in pattern.name_axes:
                place = index[pattern.name_axes.index(axis)]
                return layer_stage[sizes.lengths.number(axis, place, offset)]
        first = pattern.tensors[0] in pipeline.first or pattern.tensors[0] in in_towers
        return 0 if first else config.degrees.pipeline - 1

    return stage_of


# of config.json, as tables name their axes by them
_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"
# a pattern, the name of one of its tensors, its shape
Learnt = tuple[Pattern, str, tuple[int, ...]]


def check_heads(config: ParallelConfig, table: Table, sizes: AxisSizes) -> None:
    """Compares the numbers of heads in the file with the model's. Raises `ConfigError`."""
    own, own_kv = config.counts.heads, config.counts.kv_heads
    if own is not None and own_kv is not None and own % own_kv:
        raise ConfigError(
            f"{config.path}: num_heads {own} isn't a multiple of n_kv_heads {own_kv}."
        )
    axes = {text: axis for axis, one in table.axes.items() for text in one.choices[:1]}
    lengths = {text: sizes.get(axis) for text, axis in axes.items()}
    kv_heads, groups = lengths.get(_KV_HEADS), lengths.get(f"{_HEADS} / {_KV_HEADS}")
    heads = lengths.get(_HEADS) or (kv_heads * groups if kv_heads and groups else None)
    rows = (("num_heads", own, _HEADS, heads), ("n_kv_heads", own_kv, _KV_HEADS, kv_heads))
    for key, given, what, there in rows:
        if given is not None and there is not None and given != there:
            raise ConfigError(
                f"{config.path}: {key} is {given}, but the model has {there} ({what})."
            )


def learn_heads(sizes: AxisSizes, config: ParallelConfig, table: Table) -> bool:
    """Learns axes by the numbers of heads that the file says. Whether there were any."""
    pairs = {_HEADS: config.counts.heads, _KV_HEADS: config.counts.kv_heads}
    given = {key: count for key, count in pairs.items() if count is not None}
    needs_kv = any(_KV_HEADS in expression.text for expression in table.axes.values())
    if not given or (needs_kv and _KV_HEADS not in given):
        return False
    learnt = False
    for axis, expression in table.axes.items():
        length = expression.evaluate(given, str(config.path)) if sizes.get(axis) is None else None
        if length is not None:
            sizes.learn(axis, length, f"num_heads and n_kv_heads of {config.path}")
            learnt = True
    return learnt


def check_shapes(
    config: ParallelConfig, table: Table, sizes: AxisSizes, shapes: Sequence[Learnt]
) -> None:
    """Where heads aren't known, the file's must fit the shapes. Raises `ConfigError`."""
    trial = sizes.copy()
    try:
        if learn_heads(trial, config, table):
            trial.learn_shapes(shapes)
    except LayoutError as error:
        raise ConfigError(
            f"{config.path}: its num_heads or n_kv_heads aren't the model's: {error}"
        ) from error
