"""MindSpore's strategy files: protobuf and JSON, per stage and merged, and directories of them.

Format: `node_strategy.proto` (package mindspore.straspb). A file whose name ends in `.json` is JSON, any other protobuf. In a
merged file parameter names are `<stage>-<parameter>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptforge.errors import FormatError, InputNotFoundError, listing
from ckptforge.formats.protobuf import fields, number, record, signed
from ckptforge.formats.small_json import read_object
from ckptforge.partition.device_layout import DeviceLayout

MAX_BYTES = 1 << 30
_MERGED = re.compile(r"(\d{1,6})-(.+)", re.DOTALL)
Stage = dict[str, DeviceLayout]


@dataclass(frozen=True)
class Strategy:
    """`stages[k]` is parameter → layout of pipeline stage k; global rank = stage · devices + device.

    `path` is where it comes from; `computed` whether it was made for the tensors at hand instead of read from strategy files.
    """

    path: Path
    stages: tuple[Stage, ...]
    devices: int
    computed: bool = False

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.devices * len(self.stages)

    def stage_of(self, rank: int) -> int:
        """The stage of a global rank."""
        return rank // self.devices

    def first_stage(self, parameter: str) -> int | None:
        """The lowest stage that holds a parameter, whose values count; None for parameters of no stage."""
        return next((i for i, stage in enumerate(self.stages) if parameter in stage), None)


def read_strategy(path: Path) -> Strategy:
    """Reads a strategy file, or a directory of the files of one job's ranks.

    Raises `InputNotFoundError` when there is none, and `FormatError` for files that are damaged, disagree, lack a stage, or
    hold what ckptforge can't honour (manual embedding split).
    """
    if path.is_dir():
        paths = sorted(file for file in path.iterdir() if file.suffix in (".ckpt", ".json") and file.is_file())
        if not paths:
            raise InputNotFoundError(f"{path}: no strategy files (.ckpt or .json) in it.")
        if len({file.suffix for file in paths}) > 1:
            raise FormatError(f"{path}: holds .ckpt and .json strategy files; keep one kind, or name one file.")
    elif path.is_file():
        paths = [path]
    else:
        raise InputNotFoundError(f"{path}: no such strategy file or directory.")
    stages: dict[int, Stage] = {}
    origin: dict[int, Path] = {}
    seen: set[bytes] = set()
    for file in paths:
        content = _content(file)
        if content in seen:
            continue  # the ranks of a stage write identical files
        seen.add(content)
        for stage, layouts in _read_file(file, content).items():
            if stage not in stages:
                stages[stage], origin[stage] = layouts, file
            elif stages[stage] != layouts:
                name = next(name for name in {**stages[stage], **layouts} if stages[stage].get(name) != layouts.get(name))
                raise FormatError(
                    f"{path}: {origin[stage].name} and {file.name} disagree on stage {stage}, for one on parameter {name!r}; "
                    "they are of two jobs. Keep the files of one."
                )
    return make_strategy(path, stages)


def make_strategy(path: Path, stages: Mapping[int, Stage], computed: bool = False) -> Strategy:
    """Checks that stages belong together. Raises `FormatError` for missing stages and different numbers of devices."""
    if not stages or not any(stages.values()):
        raise FormatError(f"{path}: holds no parameter layouts; it isn't a strategy file, or of a job without parallelism.")
    missing = [stage for stage in range(max(stages) + 1) if stage not in stages]
    if missing:
        found = ", ".join(map(str, sorted(stages)))
        raise FormatError(f"{path}: stage {missing[0]} is missing (there is {found}); give the strategy files of all stages.")
    devices = {layout.devices: name for stage in stages.values() for name, layout in stage.items()}
    if len(devices) > 1:
        shown = [f"{name}: {count} devices" for count, name in devices.items()]
        raise FormatError(f"{path}: parameters are laid out for different numbers of devices:\n{listing(shown)}")
    return Strategy(path, tuple(stages[stage] for stage in sorted(stages)), next(iter(devices)), computed)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path}: over {MAX_BYTES} bytes; not a strategy file.")
        return path.read_bytes()
    except OSError as error:
        raise InputNotFoundError(f"{path}: can't be read: {error.strerror}.") from error


def _read_file(path: Path, content: bytes) -> dict[int, Stage]:
    own_stage, layouts = _read_json(path) if path.suffix == ".json" else _read_protobuf(path, content)
    stages: dict[int, Stage] = {}
    for name, layout in layouts.items():
        if problem := layout.problem():
            raise FormatError(f"{path}: parameter {name!r}: {problem}.")
        match = _MERGED.fullmatch(name)
        stage, parameter = (int(match[1]), match[2]) if match else (own_stage, name)
        stages.setdefault(stage, {})[parameter] = layout
    return stages


def _read_protobuf(path: Path, content: bytes) -> tuple[int, Stage]:
    own_stage: int | None = None
    layouts: Stage = {}
    for field, value in fields(content, path):
        if field == 2 and own_stage is None:
            own_stage = _stage_of_item(path, _bytes(path, value))
        elif field == 3:
            name, layout = _layout_item(path, _bytes(path, value))
            if name in layouts:
                raise FormatError(f"{path}: parameter {name!r} is laid out twice.")
            layouts[name] = layout
        elif field not in (1, 2):
            raise FormatError(f"{path}: field {field} doesn't occur in strategy files; damaged, or another kind of file.")
    return own_stage or 0, layouts


def _bytes(path: Path, value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise FormatError(f"{path}: a number stands where a record is expected; damaged, or not a strategy file.")
    return value


def _integers(path: Path, message: bytes, field: int = 1) -> tuple[int, ...]:
    found = []
    for key, value in fields(message, path):
        if key != field or not isinstance(value, int):
            raise FormatError(f"{path}: a list of numbers holds something else; damaged, or not a strategy file.")
        found.append(signed(value))
    return tuple(found)


def _stage_of_item(path: Path, item: bytes) -> int:
    for field, value in fields(item, path):
        if field == 2:
            for inner, stage in fields(_bytes(path, value), path):
                if inner == 1 and isinstance(stage, int):
                    return stage
    raise FormatError(f"{path}: an operator has no stage; damaged, or not a strategy file.")


def _layout_item(path: Path, item: bytes) -> tuple[str, DeviceLayout]:
    name, message = None, None
    for field, value in fields(item, path):
        if field == 1:
            try:
                name = _bytes(path, value).decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"{path}: a parameter's name isn't UTF-8; damaged, or not a strategy file.") from error
        elif field == 2:
            message = _bytes(path, value)
    if name is None or message is None:
        raise FormatError(f"{path}: a parameter lacks its name or its layout; damaged, or not a strategy file.")
    lists: dict[int, list[tuple[int, ...]]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for field, value in fields(message, path):
        if field in lists:
            lists[field].append(_integers(path, _bytes(path, value)))
        elif field in numbers and isinstance(value, int):
            numbers[field] = signed(value)
        else:
            raise FormatError(f"{path}: parameter {name!r}: unexpected field {field}; damaged, or not a strategy file.")
    maps = [axes for axes in lists[2] if axes]
    if len(lists[1]) != 1:
        raise FormatError(f"{path}: parameter {name!r} has {len(lists[1])} device matrices, expected one.")
    _refuse_manual_split(path, name, numbers[5], any(lists[3]), any(lists[4]))
    return name, _device_layout(
        lists[1][0], maps if len(lists[2]) > 1 else [(axis,) for axis in (maps[0] if maps else ())], numbers[6], numbers[7]
    )


def _device_layout(
    matrix: tuple[int, ...], tensor_map: list[tuple[int, ...]], step: int, size: int, shape: tuple[int, ...] | None = None
) -> DeviceLayout:
    split = tuple(tuple(axis for axis in axes if axis != -1) for axes in tensor_map)
    return DeviceLayout(matrix, split, size if step and size else 0, shape)


def _refuse_manual_split(path: Path, name: str, field: int, split_shape: bool, offsets: bool) -> None:
    for found, what in ((field != 0, f"field {field}"), (split_shape, "param_split_shape"), (offsets, "indices_offset")):
        if found:
            raise FormatError(f"{path}: parameter {name!r} has {what} (a manually split embedding), which ckptforge can't honour.")


def _read_json(path: Path) -> tuple[int, Stage]:
    content = read_object(path)
    try:
        items = content["parallel_layout_item"]
        operators = content.get("parallel_strategy_item") or {}
        own_stage = next((int(operator["stage"]) for operator in operators.values()), 0)
        layouts = {name: _json_layout(path, name, item) for name, item in items.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: isn't a strategy file: {type(error).__name__}: {error}.") from error
    return own_stage, layouts


def _json_layout(path: Path, name: str, item: dict[str, Any]) -> DeviceLayout:
    numbers = [item.get(key, 0) for key in ("field", "opt_weight_shard_step", "opt_weight_shard_size")]
    matrix, tensor_map, shape = item["dev_matrix"], item["tensor_map"], item.get("tensor_shape")
    for value in (*numbers, *matrix, *tensor_map, *(shape or ())):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"parameter {name!r} holds {value!r} where a number is expected")
    _refuse_manual_split(path, name, numbers[0], bool(item.get("param_split_shape")), bool(item.get("indices_offset")))
    full = None if shape is None else tuple(shape)
    layout = _device_layout(tuple(matrix), [(axis,) for axis in tensor_map], numbers[1], numbers[2], full)
    if full is not None and (layout.problem() is None and layout.shape_of_parts(full) is None):
        raise FormatError(
            f"{path}: parameter {name!r} of shape {list(full)} can't be cut by device matrix {matrix} and tensor map {tensor_map}."
        )
    return layout


def strategy_bytes(stage: int, layouts: Stage, *, as_json: bool = False) -> bytes:
    """A strategy file of one stage, as MindSpore's own tools read it.

    JSON can't say that several device axes split one tensor axis: `ValueError`.
    """
    if as_json:
        return _json_bytes(stage, layouts)
    operator = record(1, b"ckptforge") + record(2, number(1, stage))
    out = number(1, 1) + record(2, operator)
    for name, layout in layouts.items():
        inner = record(1, b"".join(number(1, n) for n in layout.device_matrix))
        if any(len(axes) > 1 for axes in layout.tensor_map):
            maps = [record(2, b"".join(number(1, axis) for axis in axes or (-1,))) for axes in layout.tensor_map]
            maps += [record(2, b"")] if len(maps) == 1 else []
        else:
            maps = [record(2, b"".join(number(1, axes[0] if axes else -1) for axes in layout.tensor_map))]
        step, size = (_replica_step(layout), layout.optimizer_shards) if layout.optimizer_parts > 1 else (0, 0)
        inner += b"".join(maps) + record(3, b"") + record(4, b"") + number(5, 0) + number(6, step) + number(7, size)
        out += record(3, record(1, name.encode()) + record(2, inner))
    return out


def _json_bytes(stage: int, layouts: Stage) -> bytes:
    items = {}
    for name, layout in sorted(layouts.items()):
        if any(len(axes) > 1 for axes in layout.tensor_map):
            raise ValueError(f"{name}: several device axes split one tensor axis, which JSON strategies can't say")
        optimizer = layout.optimizer_parts > 1
        items[name] = {
            "dev_matrix": list(layout.device_matrix),
            "field": 0,
            "opt_weight_shard_size": layout.optimizer_shards if optimizer else 0,
            "opt_weight_shard_step": _replica_step(layout) if optimizer else 0,
            "tensor_map": [axes[0] if axes else -1 for axes in layout.tensor_map],
            **({"tensor_shape": list(layout.full_shape)} if layout.full_shape is not None else {}),
        }
    operators = {"ckptforge": {"parallel_strategy": [], "stage": stage}}
    return json.dumps({"current_stage": 1, "parallel_layout_item": items, "parallel_strategy_item": operators}).encode()


def _replica_step(layout: DeviceLayout) -> int:
    """Rank distance of neighbouring replicas: (last - first) / (replicas - 1) of a replica group."""
    used = {axis for axes in layout.tensor_map for axis in axes}
    last, stride = 0, 1
    for axis, size in enumerate(reversed(layout.device_matrix)):
        if axis not in used:
            last += (size - 1) * stride
        stride *= size
    return last // (layout.replicas - 1) if layout.replicas > 1 else 0
