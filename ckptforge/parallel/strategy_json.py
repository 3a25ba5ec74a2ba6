"""MindSpore's strategy files as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptforge.errors import FormatError, shown
from ckptforge.foreign.json import parse_object
from ckptforge.parallel.device_layout import DeviceLayout, Stage
from ckptforge.parallel.strategy_fields import (
    MAX_PARAMETERS,
    layout_of,
    optimizer_fields,
    refuse_manual_split,
)


def read_file(path: Path, content: bytes) -> tuple[int, Stage]:
    """(the stage of a file that isn't merged, parameter → layout). Raises `FormatError`."""
    found = parse_object(content, str(path))
    try:
        items = found["parallel_layout_item"]
        if len(items) > MAX_PARAMETERS:
            raise FormatError(f"{path}: holds more than {MAX_PARAMETERS} parameters.")
        operators = found.get("parallel_strategy_item") or {}
        own_stage = next((operator["stage"] for operator in operators.values()), 0)
        if not isinstance(own_stage, int) or isinstance(own_stage, bool):
            raise TypeError(f"an operator has stage {shown(own_stage)}")
        layouts = {name: _json_layout(path, name, item) for name, item in items.items()}
    except KeyError as error:
        raise FormatError(
            f"{path}: isn't a strategy file: it has no {shown(error.args[0])}; name the strategy "
            "that the job saved."
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: isn't a strategy file: {error}.") from error
    return own_stage, layouts


def _json_layout(path: Path, name: str, item: dict[str, Any]) -> DeviceLayout:
    keys = ("field", "opt_weight_shard_step", "opt_weight_shard_size")
    field, step, size = numbers = [item.get(key, 0) for key in keys]
    matrix, tensor_map, shape = item["dev_matrix"], item["tensor_map"], item.get("tensor_shape")
    for value in (*numbers, *matrix, *tensor_map, *(shape or ())):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(
                f"parameter {shown(name)} holds {shown(value)} where a number is expected"
            )
    split, offsets = bool(item.get("param_split_shape")), bool(item.get("indices_offset"))
    refuse_manual_split(path, name, field, split, offsets)
    full = None if shape is None else tuple(shape)
    layout = layout_of(tuple(matrix), [(axis,) for axis in tensor_map], step, size, full)
    if full is not None and not all(0 <= n < 1 << 63 for n in full):
        raise FormatError(
            f"{path}: parameter {shown(name)} has shape {shown(shape)}, which isn't one of a "
            "tensor."
        )
    if full is not None and (layout.problem() is None and layout.shape_of_parts(full) is None):
        raise FormatError(
            f"{path}: parameter {shown(name)} of shape {shown(shape)} can't be cut by device "
            f"matrix {shown(matrix)} and tensor map {shown(tensor_map)}."
        )
    return layout


def file_bytes(stage: int, layouts: Stage) -> bytes:
    """The file of one stage. Raises `ValueError` for what it can't say."""
    items = {}
    for name, layout in sorted(layouts.items()):
        if any(len(axes) > 1 for axes in layout.tensor_map):
            raise ValueError(
                f"{name}: several device axes split one tensor axis, which JSON strategies can't "
                "say"
            )
        step, size = optimizer_fields(layout)
        items[name] = {
            "dev_matrix": list(layout.device_matrix),
            "field": 0,
            "opt_weight_shard_size": size,
            "opt_weight_shard_step": step,
            "tensor_map": [axes[0] if axes else -1 for axes in layout.tensor_map],
            **({"tensor_shape": list(layout.full_shape)} if layout.full_shape is not None else {}),
        }
    operators = {"ckptforge": {"parallel_strategy": [], "stage": stage}}
    return json.dumps(
        {"current_stage": 1, "parallel_layout_item": items, "parallel_strategy_item": operators}
    ).encode()
