"""Tensors by kind: those whose names differ in numbers alone, of one dtype and shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from ckptforge.dtypes import BY_NAME
from ckptforge.tables.skeletons import HASH, index_of, numbers_of, skeleton_of
from ckptforge.wording import runs_of


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """So many tensors of a kind: the first of them, the numbers that stand in each place of their
    names, and what they are."""

    tensor: str
    numbers: Sequence[Sequence[str]]
    count: int
    dtype: str
    shape: Sequence[int]

    @property
    def name(self) -> str:
        """Their name with its numbers as ranges."""
        return name_of(self.tensor, self.numbers)

    @property
    def key(self) -> str:
        """What a search compares with."""
        return key_of(self.tensor)

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
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, (dtype, shape) in entries.items():
        found.setdefault((skeleton_of(name)[0], dtype, tuple(shape)), []).append(name)
    return [
        Kind(tensor=names[0], numbers=numbers_of(names), count=len(names), dtype=dtype, shape=shape)
        for (_, dtype, shape), names in found.items()
    ]


def kinds_of_parts(parts: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The kinds of what `parts` lists, those of all ranks together."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in parts:
        key = skeleton_of(one["tensor"])[0], one["dtype"], tuple(one["shape"])
        own = found.setdefault(key, [])
        if all(one["numbers"] != other["numbers"] for other in own):  # on several stages
            own.append(one)
    return [
        Kind(
            tensor=own[0]["tensor"],
            numbers=together([one["numbers"] for one in own]),
            count=sum(one["count"] for one in own),
            dtype=dtype,
            shape=shape,
        )
        for (_, dtype, shape), own in found.items()
    ]


def together(numbers: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """The numbers of several kinds whose names differ in numbers alone."""
    return [list(dict.fromkeys(chain(*column))) for column in zip(*numbers, strict=True)]


def name_of(tensor: str, numbers: Sequence[Sequence[str]]) -> str:
    """How tensors are called of which `tensor` is one, with the numbers as ranges."""
    first, *others = skeleton_of(tensor)[0].split("#")
    said = map(_ranges, numbers)
    made = first + "".join(n + text for n, text in zip(said, others, strict=True))
    return made.replace(HASH, "#")


def _ranges(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    if any(index_of(one) is None for one in numbers):  # no indices
        return "{" + f"{numbers[0]} … {numbers[-1]}" + "}"
    return "{" + runs_of(map(int, numbers)) + "}"


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
