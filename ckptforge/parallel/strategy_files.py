"""MindSpore's strategy files: protobuf and JSON, per stage and merged, and directories of them.

Format: `node_strategy.proto` (package mindspore.straspb). A file whose name ends in `.json` is
JSON, any other protobuf. In a merged file parameter names are `<stage>-<parameter>`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.whereabouts import explain_missing
from ckptforge.errors import FormatError, InputNotFoundError, counted, listing, shown
from ckptforge.foreign.files import entries_of, read_small
from ckptforge.foreign.json import parse_object
from ckptforge.formats.index import check_name
from ckptforge.formats.protobuf import Message, Source, number, record, signed
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_DIMS, MAX_STAGES, DeviceLayout
from ckptforge.storage.files import exists, is_directory, is_file

# a parameter takes some 100 bytes, in JSON 250; the largest models have some 10,000 in a stage
MAX_BYTES = 1 << 26
_MAX_ITEMS = 1 << 17  # parameters and operators in a file
_MAX_PARAMETERS = 1 << 16
_MAX_FIELDS = 256  # in a parameter's layout
_MERGED = re.compile(r"([0-9]{1,6})-(.+)", re.DOTALL)
Stage = dict[str, DeviceLayout]


class Strategy(msgspec.Struct, frozen=True):
    """`stages[k]` is parameter → layout of pipeline stage k; global rank = stage · devices +
    device.

    `path` is where it comes from; `computed` whether it was made for the tensors at hand instead of
    read from strategy files.
    """

    path: Path
    stages: tuple[Stage, ...]
    devices: int
    computed: bool = False

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.devices * len(self.stages)

    @property
    def extent(self) -> str:
        """How many ranks and stages there are, in words."""
        return counted(self.ranks, "rank") + (
            f" in {len(self.stages)} stages" if len(self.stages) > 1 else ""
        )

    def stage_of(self, rank: int) -> int:
        """The stage of a global rank."""
        return rank // self.devices

    def first_stage(self, parameter: str) -> int | None:
        """The lowest stage that holds a parameter, whose values count; None for parameters of no
        stage."""
        return next((i for i, stage in enumerate(self.stages) if parameter in stage), None)


def read_strategy(path: Path) -> Strategy:
    """Reads a strategy file, or a directory of the files of one job's ranks.

    Raises `InputNotFoundError` when there is none, and `FormatError` for files that are damaged,
    disagree, lack a stage, or hold what ckptforge can't honour (manual embedding split).
    """
    if is_directory(path):
        paths = [
            file for file in entries_of(path) if file.suffix in (".ckpt", ".json") and is_file(file)
        ]
        if not paths:
            raise InputNotFoundError(f"{path}: no strategy files (.ckpt or .json) in it.")
        if len({file.suffix for file in paths}) > 1:
            raise FormatError(
                f"{path}: holds .ckpt and .json strategy files; keep one kind, or name one file."
            )
    elif exists(path):
        paths = [path]
    else:
        raise InputNotFoundError(
            f"{path}: no such strategy file or directory; check the "
            f"path.{explain_missing(path, model=False)}"
        )
    stages: dict[int, Stage] = {}
    origin: dict[int, Path] = {}
    seen: set[bytes] = set()
    for file in paths:
        content = read_small(file, MAX_BYTES)
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            continue  # the ranks of a stage write identical files
        seen.add(digest)
        for stage, layouts in _read_file(file, content).items():
            if stage not in stages:
                stages[stage], origin[stage] = layouts, file
            elif stages[stage] != layouts:
                name = next(
                    name
                    for name in {**stages[stage], **layouts}
                    if stages[stage].get(name) != layouts.get(name)
                )
                raise FormatError(
                    f"{path}: {origin[stage].name} and {file.name} disagree on stage {stage}, for "
                    f"one on parameter {shown(name)}; they are of two jobs. Keep the files of one."
                )
    return make_strategy(path, stages)


def make_strategy(path: Path, stages: Mapping[int, Stage], computed: bool = False) -> Strategy:
    """Checks that stages belong together. Raises `FormatError` for missing stages and different
    numbers of devices."""
    if not stages or not any(stages.values()):
        raise FormatError(
            f"{path}: holds no parameter layouts; it isn't a strategy file, or of a job without "
            "parallelism."
        )
    if missing := [stage for stage in range(len(stages)) if stage not in stages]:
        found = ", ".join(map(str, sorted(stages)[:10])) + (", …" if len(stages) > 10 else "")
        raise FormatError(
            f"{path}: stage {missing[0]} is missing (there is {found}); give the strategy files of "
            "all stages."
        )
    devices = {layout.devices: name for stage in stages.values() for name, layout in stage.items()}
    if len(devices) > 1:
        different = [f"{name}: {counted(count, 'device')}" for count, name in devices.items()]
        raise FormatError(
            f"{path}: parameters are laid out for different numbers of devices:\n"
            f"{listing(different)}"
        )
    if next(iter(devices)) * len(stages) > MAX_DEVICES:
        raise FormatError(
            f"{path}: {counted(len(stages), 'stage')} of {counted(next(iter(devices)), 'device')}: "
            f"more than {MAX_DEVICES} in all; damaged."
        )
    return Strategy(
        path, tuple(stages[stage] for stage in sorted(stages)), next(iter(devices)), computed
    )


def _read_file(path: Path, content: bytes) -> dict[int, Stage]:
    own_stage, layouts = (
        _read_json(path, content)
        if path.suffix == ".json"
        else _read_protobuf(Source(path, "strategy file", content).message(len(content)))
    )
    stages: dict[int, Stage] = {}
    for name, layout in layouts.items():
        check_name(name, path)
        if problem := layout.problem():
            raise FormatError(f"{path}: parameter {shown(name)}: {problem}.")
        match = _MERGED.fullmatch(name)
        stage, parameter = (int(match[1]), match[2]) if match else (own_stage, name)
        if not 0 <= stage < MAX_STAGES:
            raise FormatError(
                f"{path}: parameter {shown(name)} is of stage {shown(stage)}; damaged, or not a "
                "strategy file."
            )
        stages.setdefault(stage, {})[parameter] = layout
    return stages


def _read_protobuf(file: Message) -> tuple[int, Stage]:
    own_stage: int | None = None
    layouts: Stage = {}
    for field, value in file.fields(_MAX_ITEMS):
        if field == 2 and own_stage is None:
            own_stage = _stage_of_item(_message(file, value))
        elif field == 3:
            name, layout = _layout_item(_message(file, value))
            if name in layouts:
                raise FormatError(f"{file.source.path}: parameter {shown(name)} is laid out twice.")
            layouts[name] = layout
            if len(layouts) > _MAX_PARAMETERS:
                raise _wrong(file, f"more than {_MAX_PARAMETERS} parameters")
        elif field not in (1, 2):
            raise _wrong(
                file, f"a message with field {field}, which doesn't occur in strategy files"
            )
    return own_stage or 0, layouts


def _wrong(message: Message, found: str) -> FormatError:
    return FormatError(
        f"{message.source.path}: at byte {message.start} stands {found}; damaged, or another kind "
        "of file."
    )


def _message(outer: Message, value: int | Message) -> Message:
    if isinstance(value, int):
        raise _wrong(outer, "a message that holds a number instead of a record")
    return value


def _integers(message: Message) -> tuple[int, ...]:
    found = []
    for key, value in message.fields(MAX_DIMS):
        if key != 1 or not isinstance(value, int):
            raise _wrong(message, "a list of numbers that holds something else")
        found.append(signed(value))
    return tuple(found)


def _stage_of_item(item: Message) -> int:
    for field, value in item.fields(_MAX_FIELDS):
        if field == 2:
            for inner, stage in _message(item, value).fields(_MAX_ITEMS):
                if inner == 1 and isinstance(stage, int):
                    return signed(stage)
    raise _wrong(item, "an operator without a stage")


def _layout_item(item: Message) -> tuple[str, DeviceLayout]:
    name, message = None, None
    for field, value in item.fields(_MAX_FIELDS):
        if field == 1:
            name = _message(item, value).text()
        elif field == 2:
            message = _message(item, value)
    if name is None or message is None:
        raise _wrong(item, "a parameter without a name or a layout")
    lists: dict[int, list[tuple[int, ...]]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for field, value in message.fields(_MAX_FIELDS):
        if field in lists:
            lists[field].append(_integers(_message(message, value)))
        elif field in numbers and isinstance(value, int):
            numbers[field] = signed(value)
        else:
            raise _wrong(message, f"the layout of {shown(name)} with an unexpected field {field}")
    maps = [axes for axes in lists[2] if axes]
    if len(lists[1]) != 1:
        raise FormatError(
            f"{item.source.path}: parameter {shown(name)} has {len(lists[1])} device matrices, "
            "expected one."
        )
    _refuse_manual_split(item.source.path, name, numbers[5], any(lists[3]), any(lists[4]))
    return name, _device_layout(
        lists[1][0],
        maps if len(lists[2]) > 1 else [(axis,) for axis in (maps[0] if maps else ())],
        numbers[6],
        numbers[7],
    )


def _device_layout(
    matrix: tuple[int, ...],
    tensor_map: list[tuple[int, ...]],
    step: int,
    size: int,
    shape: tuple[int, ...] | None = None,
) -> DeviceLayout:
    split = tuple(tuple(axis for axis in axes if axis != -1) for axes in tensor_map)
    return DeviceLayout(matrix, split, size if step and size else 0, shape)


def _refuse_manual_split(
    path: Path, name: str, field: int, split_shape: bool, offsets: bool
) -> None:
    for found, what in (
        (field != 0, f"field {field}"),
        (split_shape, "param_split_shape"),
        (offsets, "indices_offset"),
    ):
        if found:
            raise FormatError(
                f"{path}: parameter {shown(name)} has {what} (a manually split embedding), which "
                "ckptforge can't honour."
            )


def _read_json(path: Path, content: bytes) -> tuple[int, Stage]:
    found = parse_object(content, str(path))
    try:
        items = found["parallel_layout_item"]
        if len(items) > _MAX_PARAMETERS:
            raise FormatError(f"{path}: holds more than {_MAX_PARAMETERS} parameters.")
        operators = found.get("parallel_strategy_item") or {}
        own_stage = next((operator["stage"] for operator in operators.values()), 0)
        if not isinstance(own_stage, int) or isinstance(own_stage, bool):
            raise TypeError(f"an operator has stage {shown(own_stage)}")
        layouts = {name: _json_layout(path, name, item) for name, item in items.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{path}: isn't a strategy file: {type(error).__name__}: {error}."
        ) from error
    return own_stage, layouts


def _json_layout(path: Path, name: str, item: dict[str, Any]) -> DeviceLayout:
    numbers = [
        item.get(key, 0) for key in ("field", "opt_weight_shard_step", "opt_weight_shard_size")
    ]
    matrix, tensor_map, shape = item["dev_matrix"], item["tensor_map"], item.get("tensor_shape")
    for value in (*numbers, *matrix, *tensor_map, *(shape or ())):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(
                f"parameter {shown(name)} holds {shown(value)} where a number is expected"
            )
    _refuse_manual_split(
        path,
        name,
        numbers[0],
        bool(item.get("param_split_shape")),
        bool(item.get("indices_offset")),
    )
    full = None if shape is None else tuple(shape)
    layout = _device_layout(
        tuple(matrix), [(axis,) for axis in tensor_map], numbers[1], numbers[2], full
    )
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
            maps = [
                record(2, b"".join(number(1, axis) for axis in axes or (-1,)))
                for axes in layout.tensor_map
            ]
            maps += [record(2, b"")] if len(maps) == 1 else []
        else:
            maps = [
                record(
                    2, b"".join(number(1, axes[0] if axes else -1) for axes in layout.tensor_map)
                )
            ]
        step, size = (
            (_replica_step(layout), layout.optimizer_shards)
            if layout.optimizer_parts > 1
            else (0, 0)
        )
        inner += (
            b"".join(maps)
            + record(3, b"")
            + record(4, b"")
            + number(5, 0)
            + number(6, step)
            + number(7, size)
        )
        out += record(3, record(1, name.encode()) + record(2, inner))
    return out


def _json_bytes(stage: int, layouts: Stage) -> bytes:
    items = {}
    for name, layout in sorted(layouts.items()):
        if any(len(axes) > 1 for axes in layout.tensor_map):
            raise ValueError(
                f"{name}: several device axes split one tensor axis, which JSON strategies can't "
                "say"
            )
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
    return json.dumps(
        {"current_stage": 1, "parallel_layout_item": items, "parallel_strategy_item": operators}
    ).encode()


def _replica_step(layout: DeviceLayout) -> int:
    """Rank distance of neighbouring replicas: (last - first) / (replicas - 1) of a replica
    group."""
    used = {axis for axes in layout.tensor_map for axis in axes}
    last, stride = 0, 1
    for axis, size in enumerate(reversed(layout.device_matrix)):
        if axis not in used:
            last += (size - 1) * stride
        stride *= size
    return last // (layout.replicas - 1) if layout.replicas > 1 else 0
