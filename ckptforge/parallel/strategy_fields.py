"""What the strategy files of both formats say of a parameter."""

from __future__ import annotations

from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.parallel.device_layout import DeviceLayout

MAX_PARAMETERS = 1 << 16


def layout_of(
    matrix: tuple[int, ...],
    tensor_map: list[tuple[int, ...]],
    step: int,
    size: int,
    shape: tuple[int, ...] | None = None,
) -> DeviceLayout:
    """The layout that a file's numbers say; `step` and `size` are those of optimizer shards."""
    split = tuple(tuple(axis for axis in axes if axis != -1) for axes in tensor_map)
    return DeviceLayout(matrix, split, size if step and size else 0, shape)


def refuse_manual_split(
    path: Path, name: str, field: int, split_shape: bool, offsets: bool
) -> None:
    """Raises `FormatError` for an embedding that is cut into parts of different lengths."""
    given = {f"field {field}": field, "param_split_shape": split_shape, "indices_offset": offsets}
    if what := next((what for what, found in given.items() if found), None):
        raise FormatError(
            f"{path}: parameter {shown(name)} has {what} (a manually split embedding), which "
            "ckptforge can't honour."
        )


def optimizer_fields(layout: DeviceLayout) -> tuple[int, int]:
    """(opt_weight_shard_step, opt_weight_shard_size) of a layout."""
    if layout.optimizer_parts <= 1:
        return 0, 0
    return _replica_step(layout), layout.optimizer_shards


def _replica_step(layout: DeviceLayout) -> int:
    """Rank distance of neighbouring replicas: (last - first) / (replicas - 1)."""
    used = {axis for axes in layout.tensor_map for axis in axes}
    last, stride = 0, 1
    for axis, size in enumerate(reversed(layout.device_matrix)):
        if axis not in used:
            last += (size - 1) * stride
        stride *= size
    return last // (layout.replicas - 1) if layout.replicas > 1 else 0
