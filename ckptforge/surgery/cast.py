"""Casting the weights of a model."""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from ckptforge.dtypes import DType, holds
from ckptforge.errors import UsageError
from ckptforge.tables.convert import Converted
from ckptforge.tables.state import is_state
from ckptforge.values import Value


def cast(values: dict[str, Value], dtype: DType | None, kept: Container[str]) -> Converted:
    """The same tensors, with floating-point weights cast to `dtype`, unless that is None; of those
    that are `kept` only where nothing is lost. Raises `UsageError` for ones that a cast has
    rounded already."""
    found = dict(values)
    uncast: list[tuple[str, Value]] = []
    for name, value in values.items():
        if dtype is None or not value.dtype.floating or is_state(name):
            continue
        if dtype != value.dtype and (before := _rounded_from(value)) is not None:
            raise UsageError(
                f"{name} was cast from {before} to {value.dtype} already, and would be rounded "
                f"twice by a cast to {dtype}: cast the model as it was before."
            )
        if name not in kept or holds(dtype, value.dtype):
            found[name] = replace(value, dtype=dtype)
        else:
            uncast.append((name, value))
    return Converted(found, uncast)


def _rounded_from(value: Value) -> DType | None:
    """The dtype of numbers that a cast has rounded; None where none has."""
    plain = (fragment.dtype for fragment in value.fragments if not fragment.steps)
    return next((dtype for dtype in plain if not holds(value.dtype, dtype)), None)
