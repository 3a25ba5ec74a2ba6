"""The file of a mapping table: TOML, the bounds within which it is read, and what stands in it."""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

from ckptforge.errors import TableError, shown
from ckptforge.tables.constants import WindowRow
from ckptforge.tables.rope import RopeRow
from ckptforge.tables.rows import at, sentence, spell_row
from ckptforge.tables.sharding import ShardRow
from ckptforge.wording import nearest

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


class PipelineFile(msgspec.Struct, frozen=True):
    """[pipeline], as written."""

    layers: str | list[str]
    first: list[str] = []
    last: list[str] = []
    tied: dict[str, str] = {}


class LoraFile(msgspec.Struct, frozen=True):
    """[lora], as written."""

    modules: list[str]
    names: dict[str, list[str]]
    embeddings: list[str] = []
    embedding_names: dict[str, list[str]] = {}


class TableFile(msgspec.Struct, frozen=True, kw_only=True):
    """A table's file, as written; `table_schema` says what its keys mean."""

    name: str
    model_type: list[str]
    axes: dict[str, str]
    tensors: dict[str, str]
    layout: dict[str, dict[str, str]]
    aliases: list[str] = []
    constants: list[str] = []
    keep_dtype: list[str] = []
    defaults_from: str = ""
    demo: bool = False
    optional: dict[str, str] = {}
    copies: dict[str, dict[str, str]] = {}
    shard: dict[str, dict[str, ShardRow]] = {}
    pipeline: PipelineFile | None = None
    lora: LoraFile | None = None
    defaults: dict[str, dict[str, Any]] = {}
    rope: RopeRow | None = None
    window: dict[str, WindowRow] = {}
    ignored: dict[str, list[str]] = {}
    refused: dict[str, dict[str, str]] = {}
    example: dict[str, Any] = {}

    def lineage(self, layout: str) -> list[str]:
        """The layouts that one is made of, itself last. Raises `TableError`."""
        chain = [layout]
        while parent := self.layout[chain[-1]].get("extends"):
            with at("layout", chain[-1]):
                if parent not in self.layout:
                    raise ValueError(
                        f"extends {shown(parent)}, which isn't a layout of this table; it has "
                        f"{', '.join(self.layout)}.{nearest(parent, self.layout)}"
                    )
                if parent in chain:
                    raise ValueError(f"extends itself by way of {parent!r}")
            chain.append(parent)
        return chain[::-1]


def read_table_file(content: bytes) -> TableFile:
    """A user's table as data of the right shape. Raises `TableError` with each row that is wrong,
    what was expected there and what was found."""
    try:
        found = tomllib.loads(_text(content))
    # also a number of too many digits, and a date that isn't one
    except (ValueError, RecursionError) as error:
        raise TableError(f"isn't valid TOML: {error}.") from error
    _check_bounds(found)
    # pydantic, which takes longer to import than most checkpoints to inspect
    from ckptforge.tables.table_schema import WrittenTable
    from ckptforge.validation import validate

    try:
        validate(WrittenTable, found, spell_row)
    except ValueError as error:
        raise TableError(sentence(str(error))) from error
    return msgspec.convert(found, TableFile)


def read_shipped_file(content: bytes) -> TableFile:
    """A table that comes with ckptforge: the tests have validated it."""
    return msgspec.convert(tomllib.loads(content.decode()), TableFile)


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
