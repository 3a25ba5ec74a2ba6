"""[block_scaled] rows of a table: weights that are stored as numbers of eight bits with a scale for each block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import shown

_KEYS = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


class BlockScaledRow(msgspec.Struct, forbid_unknown_fields=True):
    """A row as written."""

    scale: str
    block: str
    dtype: str


class BlockScaled(msgspec.Struct, frozen=True):
    """How a family stores such weights: `scale` names the scales, `{}` being the weight's name; `block` are the keys of config.json,
    joined by dots, that hold the [rows, columns] of a block; `dtype` is what the weights are taken for unless a cast is asked for."""

    scale: str
    block: str
    dtype: DType

    @property
    def block_keys(self) -> list[str]:
        return self.block.split(".")

    def scale_of(self, name: str) -> str:
        """The name of a weight's scales."""
        return self.scale.replace("{}", name)

    def block_of(self, config: Mapping[str, Any]) -> tuple[int, int] | None:
        """(rows, columns) of a block; None where config.json doesn't say it."""
        found: Any = config
        for key in self.block_keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in found):
            return None
        return found[0], found[1]


def parse_block_scaled(row: BlockScaledRow) -> BlockScaled:
    """Checks a row. Raises `ValueError` with what is wrong."""
    if row.scale.count("{}") != 1 or row.scale == "{}" or set(row.scale.replace("{}", "")) & set("{}#"):
        raise ValueError(f"scale is {shown(row.scale)}, expected a name with {{}} once, where the weight's stands")
    if not _KEYS.fullmatch(row.block):
        raise ValueError(f"block is {shown(row.block)}, expected keys of config.json, one within the other, joined by dots")
    if row.dtype not in BY_NAME or not BY_NAME[row.dtype].floating:
        raise ValueError(f"dtype {shown(row.dtype)} isn't one of floating-point numbers")
    return BlockScaled(row.scale, row.block, BY_NAME[row.dtype])
