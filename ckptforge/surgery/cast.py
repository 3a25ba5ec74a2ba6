"""Casting the weights of a model."""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from ckptforge.dtypes import DType, holds
from ckptforge.tables.convert import Converted
from ckptforge.tables.state import is_state
from ckptforge.values import Value


def cast(values: dict[str, Value], dtype: DType | None, kept: Container[str]) -> Converted:
    """The same tensors, with floating-point weights cast to `dtype`, unless that is None; of those
    that are `kept` only where nothing is lost."""
    found = dict(values)
    uncast: list[tuple[str, Value]] = []
    for name, value in values.items():
        if dtype is None or not value.dtype.floating or is_state(name):
            continue
        if name not in kept or holds(dtype, value.dtype):
            found[name] = replace(value, dtype=dtype)
        else:
            uncast.append((name, value))
    return Converted(found, uncast)
