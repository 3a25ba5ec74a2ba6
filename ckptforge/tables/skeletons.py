"""Tensor names that differ only in their numbers, told by their skeletons."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from ckptforge.digits import numbers_in, numbers_marked

_NUMBERS = re.compile(r"([0-9]+)")
HASH = "\x00"  # what stands for # of a name in its skeleton, in which # stands for a number


@lru_cache(maxsize=1 << 12)
def index_of(number: str) -> int | None:
    """The index that a number in a name is; None for none, and for one that couldn't be written
    back, as it has a leading zero."""
    written_back = len(number) <= 6 and str(int(number)) == number
    return int(number) if written_back else None


def is_number(word: str) -> bool:
    """Whether a word of a template is a number, or a placeholder for one."""
    return word.isdigit() or word.startswith("{")


def skeleton_of(name: str) -> tuple[str, list[str]]:
    """A tensor name with its numbers as `#`, and those numbers. A `#` in the name is `HASH`."""
    words = _NUMBERS.split(name.replace("#", HASH))
    return "#".join(words[::2]), words[1::2]


def numbers_of(names: Iterable[str]) -> list[list[str]]:
    """For each number in names of one skeleton those that stand there, as they are written, in
    ascending order."""
    columns = zip(*(skeleton_of(name)[1] for name in names), strict=True)
    return [sorted(set(column), key=lambda text: (len(text), text)) for column in columns]


def skeletons_of(names: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """`skeleton_of` each, for many names at once."""
    text = "\n".join(names).replace("#", HASH)
    skeletons, numbers = numbers_marked(text).split("\n"), numbers_in(text)
    if len(skeletons) != len(names):  # a name has lines
        yield from map(skeleton_of, names)
        return
    counts = {skeleton: skeleton.count("#") for skeleton in set(skeletons)}
    at = 0
    for skeleton in skeletons:
        end = at + counts[skeleton]
        yield skeleton, numbers[at:end]
        at = end
