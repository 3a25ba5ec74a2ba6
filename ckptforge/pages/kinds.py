"""Tensors by kind: those whose names differ in numbers alone, of one dtype and shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ckptforge.dtypes import BY_NAME
from ckptforge.tables.skeletons import HASH, skeleton_of

_MOST_RUNS = 4  # of numbers, in a name


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """So many tensors of a kind: their name with its numbers as ranges, what
    a search compares with (`key`), and what they are."""

    name: str
    key: str
    count: int
    dtype: str
    shape: Sequence[int]

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.count * bytes_of(self.dtype, self.shape)


def bytes_of(dtype: str, shape: Iterable[int]) -> int:
    """The bytes of a tensor."""
    known = BY_NAME.get(dtype)
    return math.prod(shape) * (known.itemsize if known is not None else 1)


def kinds_of(entries: Mapping[str, Sequence[Any]]) -> list[Kind]:
    """The kinds of tensors that are given as name → [dtype, shape]."""
    found: dict[tuple[Any, ...], list[list[str]]] = {}
    for name, (dtype, shape) in entries.items():
        skeleton, numbers = skeleton_of(name)
        found.setdefault((skeleton, dtype, tuple(shape)), []).append(numbers)
    return [
        Kind(
            name=_with_ranges(skeleton, numbers),
            key=skeleton.replace(HASH, "#"),
            count=len(numbers),
            dtype=dtype,
            shape=shape,
        )
        for (skeleton, dtype, shape), numbers in found.items()
    ]


def kinds_of_parts(parts: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The kinds of what `parts` lists."""
    return [
        Kind(
            name=pattern(one),
            key=key_of(one["tensor"]),
            count=one["count"],
            dtype=one["dtype"],
            shape=one["shape"],
        )
        for one in parts
    ]


def pattern(part: Mapping[str, Any]) -> str:
    """How the tensors of a line of `parts` are called: the name of one alone, else with `#`."""
    return str(part["tensor"]) if part["count"] == 1 else key_of(part["tensor"])


def key_of(name: str) -> str:
    """What a search compares with: a name with its numbers, and what stands for them, as `#`."""
    return skeleton_of(name)[0].replace(HASH, "#")


def sizes_by_name(kinds: Iterable[Kind]) -> dict[str, int]:
    """The bytes of the kinds of each name; the shape tells kinds of one name apart."""
    found: dict[str, dict[tuple[int, ...], int]] = {}
    for kind in kinds:
        own = found.setdefault(kind.name, {})
        shape = tuple(kind.shape)
        own[shape] = own.get(shape, 0) + kind.bytes
    return {
        name if len(own) == 1 else f"{name} {list(shape)}": count
        for name, own in found.items()
        for shape, count in own.items()
    }


def runs_of(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, as ranges: "0-7, 9"; of every n-th number "0-56 by 8"."""
    left = sorted(set(numbers))
    made = []
    while left:
        step = left[1] - left[0] if len(left) > 1 else 1
        end = 1
        while end < len(left) and left[end] - left[end - 1] == step:
            end += 1
        if end < 3 and step > 1:  # two numbers are no run
            end = 1
        by = f" by {step}" if step > 1 and end > 1 else ""
        made.append(str(left[0]) if end == 1 else f"{left[0]}-{left[end - 1]}{by}")
        left = left[end:]
    more = f", … ({len(made)} runs)" if len(made) > _MOST_RUNS else ""
    return ", ".join(made[:_MOST_RUNS]) + more


def _with_ranges(skeleton: str, numbers: Sequence[Sequence[str]]) -> str:
    first, *others = skeleton.split("#")
    columns = [runs_of(map(int, column)) for column in zip(*numbers, strict=True)]
    several = ["{" + one + "}" if not one.isdecimal() else one for one in columns]
    made = first + "".join(n + text for n, text in zip(several, others, strict=True))
    return made.replace(HASH, "#")
