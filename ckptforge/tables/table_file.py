"""The file of a mapping table: its shape, and the bounds within which it is read."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from ckptforge.errors import TableError, shown
from ckptforge.tables.constants import WindowRow
from ckptforge.tables.rope import RopeRow
from ckptforge.tables.sharding import ShardRow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Family = Literal["huggingface", "mindspore"]

MAX_BYTES = 256 * 1024  # the largest shipped table has 26 kB
_MAX_ROWS = 256
_MAX_LAYOUTS = 32
_MAX_ROW = 1000  # characters
_MAX_KEY = 200
_MAX_DEPTH = 8
_NESTED = ("layout", "shard", "refused", "copies", "defaults")
# tomllib takes memory by the square of the parts of a dotted key.
# (?=(…))\1 is a possessive match, for which Python 3.10 has no sign.
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?=((?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*))\1){32}"""
)


class PipelineFile(msgspec.Struct, forbid_unknown_fields=True):
    """[pipeline], before its meaning is checked."""

    layers: str | list[str]
    first: list[str] = []
    last: list[str] = []
    tied: dict[str, str] = {}


class LoraFile(msgspec.Struct, forbid_unknown_fields=True):
    """[lora], before its meaning is checked."""

    modules: list[str]
    names: dict[str, Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]]
    embeddings: list[str] = []
    embedding_names: dict[str, Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]] = {}


class TableFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The shape of a TOML table, before its meaning is checked."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*\Z")]
    model_type: Annotated[list[str], msgspec.Meta(min_length=1)]
    aliases: list[str] = []
    constants: list[str] = []
    keep_dtype: list[str] = []
    defaults_from: str = ""
    defaults: dict[str, dict[str, Any]] = {}
    rope: RopeRow | None = None
    window: dict[str, WindowRow] = {}
    axes: dict[str, str]
    tensors: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    optional: dict[str, str] = {}
    layout: Annotated[dict[str, dict[str, str]], msgspec.Meta(min_length=1)]
    copies: dict[str, dict[str, str]] = {}
    shard: dict[str, dict[str, ShardRow]] = {}
    pipeline: PipelineFile | None = None
    lora: LoraFile | None = None
    ignored: dict[Family, list[str]] = {}
    refused: dict[Family, dict[str, str]] = {}
    example: dict[str, Any] = {}
    demo: bool = False


def schema() -> dict[str, Any]:
    """The JSON schema of a table's file."""
    return msgspec.json.schema(TableFile)


def read_table_file(content: bytes, source: str) -> TableFile:
    """A table's text as data of the right types. Raises `TableError` with the row and the
    reason."""
    try:
        found = tomllib.loads(_text(content, source))
        _check_bounds(found, source)
        return msgspec.convert(found, TableFile)
    except msgspec.ValidationError as error:
        raise TableError(f"{source}: {_place(found)}{error}.") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # also a number of too many digits, and a date that isn't one
        raise TableError(f"{source}: isn't valid TOML: {error}.") from error


def _place(found: dict[str, Any]) -> str:
    """The row of a table that msgspec refuses, whose messages don't name the keys of mappings."""
    for section, kind in get_type_hints(TableFile).items():
        rows = found.get(section)
        if not isinstance(rows, dict) or section in ("example", "lora"):
            continue
        for key, row in rows.items():
            for inner in row if isinstance(row, dict) and section in _NESTED else (None,):
                try:
                    msgspec.convert({key: row if inner is None else {inner: row[inner]}}, kind)
                except msgspec.ValidationError:
                    return (
                        f"[{section}] {key}: " if inner is None else f"[{section}.{key}] {inner}: "
                    )
    return ""


def _text(content: bytes, source: str) -> str:
    text = content.decode("utf-8")
    if found := _LONG_KEY.search(text):
        raise TableError(
            f"{source}: line {text.count(chr(10), 0, found.start()) + 1}: a key of "
            "more than 32 parts."
        )
    return text


def _check_bounds(found: object, source: str, place: tuple[str, ...] = ()) -> None:
    """A table is compared row with row and layout with layout, and what stands in it stands in
    messages."""
    where = f"{source}: {'.'.join(place) or 'the table'}"
    inner = (
        list(found.items())
        if isinstance(found, dict)
        else [("", value) for value in found]
        if isinstance(found, list)
        else []
    )
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
        _check_bounds(value, source, (*place, key))
