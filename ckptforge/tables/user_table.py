"""The file of a mapping table that a user names: the bounds within which it is read, and what is
wrong with it."""

from __future__ import annotations

import re
import sys

import msgspec

from ckptforge.errors import TableError, shown
from ckptforge.tables.rows import sentence, spell_row
from ckptforge.tables.table_file import TableFile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 256 * 1024  # the largest shipped table has 26 kB
_MAX_ROWS = 256
_MAX_LAYOUTS = 32
_MAX_ROW = 1000  # characters
_MAX_KEY = 200
_MAX_DEPTH = 8
# tomllib takes memory by the square of the parts of a dotted key.
# (?=(…))\1 is a possessive match, for which Python 3.10 has no sign.
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?=((?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*))\1){32}"""
)


def read_table_file(content: bytes) -> TableFile:
    """A user's table as data of the right shape. Raises `TableError` with each row that is wrong,
    what was expected there and what was found."""
    try:
        found = tomllib.loads(_text(content))
    # also a number of too many digits, and a date that isn't one
    except (ValueError, RecursionError) as error:
        raise TableError(f"isn't valid TOML: {error}.") from error
    _check_bounds(found)
    # with pydantic, which takes longer to import than most checkpoints to inspect
    from ckptforge.tables.table_schema import WrittenTable
    from ckptforge.validation import validate

    try:
        validate(WrittenTable, found, spell_row)
    except ValueError as error:
        raise TableError(sentence(str(error))) from error
    return msgspec.convert(found, TableFile)


def _text(content: bytes) -> str:
    text = content.decode("utf-8")
    if found := _LONG_KEY.search(text):
        raise TableError(
            f"line {text.count(chr(10), 0, found.start()) + 1}: a key of more than 32 parts."
        )
    return text


def _check_bounds(found: object, place: tuple[str, ...] = ()) -> None:
    """Rows are compared with rows, and stand in messages: there mustn't be too many."""
    where = ".".join(place) or "the table"
    inner: list[tuple[str, object]] = []
    if isinstance(found, dict):
        inner = list(found.items())
    elif isinstance(found, list):
        inner = [("", value) for value in found]
    limit = _MAX_LAYOUTS if place == ("layout",) else _MAX_ROWS
    if len(inner) > limit or len(place) > _MAX_DEPTH:
        raise TableError(
            f"{where} has {len(inner)} entries, at most {limit} are read, {_MAX_DEPTH} deep."
        )
    if isinstance(found, str) and len(found) > _MAX_ROW:
        raise TableError(f"{where} has {len(found)} characters, at most {_MAX_ROW} are read.")
    if isinstance(found, int) and abs(found) >= 1 << 63:
        raise TableError(f"{where} is a number of more than 64 bits.")
    for key, value in inner:
        if len(key) > _MAX_KEY:
            raise TableError(
                f"{where} has the key {shown(key)}, at most {_MAX_KEY} characters are read."
            )
        _check_bounds(value, (*place, key))
