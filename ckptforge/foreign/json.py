"""JSON files: of users and other programs, read within bounds and with one kind of error, and as
others read them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptforge.errors import FormatError, shown
from ckptforge.foreign.files import read_small

MAX_BYTES = 64 * 1024 * 1024  # an index of 91,000 tensors has 9 MB
_MAX_DEPTH = 64
MAX_VALUES = 1 << 21  # commas, lists and objects outside of strings
_NO_MARKS = bytes(set(range(256)) - set(b'",[{'))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Object = dict[str, Any]


def read_object(
    path: Path,
    limit: int = MAX_BYTES,
    constants: bool = False,
    values: int = MAX_VALUES,
    shrink: Callable[[Object], Object] = lambda found: found,
) -> Object:
    """The JSON object in a file, of at most `limit` bytes. For the others see `parse_object`.

    Raises `InputNotFoundError` if it can't be read, `FormatError` if it is something else.
    """
    return parse_object(read_small(path, limit), str(path), constants, values, shrink)


def parse_object(
    content: bytes,
    where: str,
    constants: bool = False,
    values: int = MAX_VALUES,
    shrink: Callable[[Object], Object] = lambda found: found,
) -> Object:
    """The JSON object in `content`; `constants` allows NaN and Infinity, which Python writes, and
    `shrink` takes from each object what isn't needed, as soon as that is parsed.

    Raises `FormatError`, which names it as `where`, if it is something else: also for a key that
    stands twice, nesting, more than so many `values`, and text that no file can hold.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Object:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise FormatError(f"{where}: holds the key {shown(key)} twice.")
        return shrink(found)

    def refuse(constant: str) -> None:
        raise FormatError(f"{where}: isn't valid JSON (it holds {constant}).")

    if _has_many_values(content, values):
        raise FormatError(
            f"{where}: holds more than {values} values, too many for what it should be."
        )
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(
            text, object_pairs_hook=unique, parse_constant=None if constants else refuse
        )
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{where}: isn't valid JSON (half of a surrogate pair in a text)."
        ) from error
    except (ValueError, RecursionError) as error:
        if content.startswith(b"version https://git-lfs"):
            raise FormatError(
                f"{where}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`."
            ) from error
        raise FormatError(f"{where}: isn't valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where}: holds a JSON {type(found).__name__}, expected an object.")
    if _is_deep(found):
        raise FormatError(f"{where}: its JSON is nested more than {_MAX_DEPTH} levels deep.")
    return found


def file_of(content: Mapping[str, Any]) -> bytes:
    """An object as a file, as Hugging Face's libraries write one."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _has_many_values(content: bytes, limit: int) -> bool:
    """Whether parsing would make too many values: objects take memory for, in the worst case,
    thirty times their bytes."""
    if content.count(b",") + content.count(b"[") + content.count(b"{") <= limit:
        return False
    marks = content.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    outside_strings = marks.split(b'"')[::2]
    return sum(map(len, outside_strings)) > limit


def _is_deep(found: Object) -> bool:
    level: list[Any] = [found]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
