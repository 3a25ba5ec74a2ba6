"""MindSpore's strategy files as protobuf: `node_strategy.proto` (package mindspore.straspb)."""

from __future__ import annotations

from collections.abc import Iterable

from ckptforge.errors import FormatError, shown
from ckptforge.formats.protobuf import Message, Source, number, record, signed
from ckptforge.parallel.device_layout import MAX_DIMS, DeviceLayout, Stage
from ckptforge.parallel.strategy_fields import (
    MAX_PARAMETERS,
    layout_of,
    optimizer_fields,
    refuse_manual_split,
)

_MAX_ITEMS = 1 << 17  # parameters and operators in a file
_MAX_FIELDS = 256  # in a parameter's layout


def read_file(source: Source) -> tuple[int, Stage]:
    """(the stage of a file that isn't merged, parameter → layout). Raises `FormatError`."""
    file = source.message(source.size)
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
            if len(layouts) > MAX_PARAMETERS:
                raise _wrong(file, f"more than {MAX_PARAMETERS} parameters")
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
    refuse_manual_split(item.source.path, name, numbers[5], any(lists[3]), any(lists[4]))
    return name, layout_of(
        lists[1][0],
        maps if len(lists[2]) > 1 else [(axis,) for axes in maps for axis in axes],
        numbers[6],
        numbers[7],
    )


def file_bytes(stage: int, layouts: Stage) -> bytes:
    """The file of one stage."""
    operator = record(1, b"ckptforge") + record(2, number(1, stage))
    out = number(1, 1) + record(2, operator)
    for name, layout in layouts.items():
        if any(len(axes) > 1 for axes in layout.tensor_map):
            maps = [axes or (-1,) for axes in layout.tensor_map]
            maps += [()] if len(maps) == 1 else []
        else:
            maps = [tuple(axes[0] if axes else -1 for axes in layout.tensor_map)]
        step, size = optimizer_fields(layout)
        inner = record(1, _numbers(layout.device_matrix))
        inner += b"".join(record(2, _numbers(axes)) for axes in maps)
        inner += record(3, b"") + record(4, b"") + number(5, 0) + number(6, step) + number(7, size)
        out += record(3, record(1, name.encode()) + record(2, inner))
    return out


def _numbers(values: Iterable[int]) -> bytes:
    return b"".join(number(1, value) for value in values)
