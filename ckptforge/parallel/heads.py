"""The numbers of heads that a parallel configuration says, and those of the model."""

from __future__ import annotations

from collections.abc import Sequence

from ckptforge.errors import ConfigError, LayoutError
from ckptforge.parallel.config import ParallelConfig
from ckptforge.tables.axes import Pattern
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Table

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
