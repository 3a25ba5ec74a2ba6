"""Lists of indexes and sizes of axes, as people write them: `0,2,5`, `0-23,8-31`, `@FILE.json`, a
number or `multiple:128`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptforge.errors import UsageError, shown
from ckptforge.foreign.files import read_small
from ckptforge.foreign.json import parse_object

_RANGE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")
_MAX_BYTES = 64 * 1024 * 1024
_MAX_INDEXES = 1 << 24
Indexes = list[int]
Written = str | Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def parse_list(written: Written, where: str) -> Indexes | list[Indexes] | dict[int, Indexes]:
    """Indexes as written: as one list; or of a file, or from Python, one for each layer, or by the
    number of the layer. Raises `UsageError`, beginning with `where`."""
    if isinstance(written, str):
        text = written.strip()
        if text.startswith("@"):
            path = Path(text[1:])
            content = read_small(path, _MAX_BYTES)
            found = parse_object(b'{"list": ' + content + b"}", str(path))
            return _of_json(found["list"], f"{where}: {path}")
        return _of_text(text, where)
    return _of_json(written, where)


def _of_text(text: str, where: str) -> Indexes:
    found: Indexes = []
    for word in text.split(",") if text else ():
        match = _RANGE.fullmatch(word.strip())
        if match is None:
            raise UsageError(
                f"{where}: expected indexes such as 0,2,5 or 0-23,8-31, or @FILE.json, not "
                f"{shown(word.strip())}."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _MAX_INDEXES:
            raise UsageError(f"{where}: the range {match[0]} goes down, or is too long.")
        found += range(first, last + 1)
    return found


def _of_json(found: Any, where: str) -> Indexes | list[Indexes] | dict[int, Indexes]:
    if isinstance(found, Mapping):
        if not all(str(key).isdecimal() for key in found):
            raise UsageError(f"{where}: expected the numbers of layers as keys.")
        return {int(key): _indexes(value, f"{where}, layer {key}") for key, value in found.items()}
    if _is_list(found) and len(found) and all(one is None or _is_list(one) for one in found):
        return [
            [] if one is None else _indexes(one, f"{where}, list {i}")
            for i, one in enumerate(found)
        ]
    return _indexes(found, where)


def _indexes(found: Any, where: str) -> Indexes:
    if isinstance(found, str):
        return _of_text(found, where)
    if not _is_list(found) or not all(_is_index(one) for one in found):
        raise UsageError(f"{where}: {shown(found)} isn't a list of indexes from 0.")
    return [int(one) for one in found]


def _is_list(found: Any) -> bool:
    return isinstance(found, (list, tuple, range)) or hasattr(found, "tolist")


def _is_index(found: Any) -> bool:
    return hasattr(found, "__index__") and not isinstance(found, bool) and int(found) >= 0


def parse_size(written: str | int, length: int, where: str) -> int:
    """A size of an axis that has this length: a number, or `multiple:N`. Raises `UsageError`."""
    text = str(written)
    multiple = text.startswith("multiple:")
    digits = text.removeprefix("multiple:").strip()
    if not digits.isdecimal() or len(digits) > 12 or not int(digits):
        raise UsageError(
            f"{where} is {shown(written)}, expected a size, or a multiple such as multiple:128."
        )
    number = int(digits)
    return -(-length // number) * number if multiple else number
