"""The row of a layout, parsed: `name : axes`, in the language of `axes.py`."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

from ckptforge.tables.axes import Axis, Concat, Item, Part, Pattern, Turns

_TOKEN = re.compile(r"\s*(\[[^\[\]]*\]|[A-Za-z_]\w*(?:/[0-9]+\s+[0-9]+)?|\S)")
_TURNS = re.compile(r"(\w+)/([1-9][0-9]{0,3})\s+\2")


def parse_pattern(text: str, owner: str) -> Pattern:
    """Parses `name : axes`, or `name : axes as axes`. Without a concatenation the tensor is that of
    `owner`.

    Raises `ValueError` with what is wrong and where.
    """
    template, separator, axes_text = text.rpartition(" : ")
    template = template.strip()
    if not separator or not template or " " in template:
        raise ValueError(f"{text!r} isn't of the form 'tensor.name : axes'")
    axes, *shaped = map(_parse_axes, re.split(r"\sas\s", axes_text))
    if len(shaped) > 1:
        raise ValueError(f"{text!r} has more than one 'as'")
    reshaped = shaped[0] if shaped else ()
    if shaped and Counter(chain(*axes)) != Counter(chain(*reshaped)):
        raise ValueError(f"{text!r} doesn't have the same axes before and after 'as'")
    concats = [item for item in chain(*axes) if isinstance(item, Concat)]
    if len(concats) > 1:
        raise ValueError(f"{text!r} has {len(concats)} concatenations; a tensor can have one")
    tensors = tuple(part.tensor for part in concats[0].parts) if concats else (owner,)
    if len(set(tensors)) < len(tensors):
        raise ValueError(f"{text!r} concatenates one tensor with itself")
    return Pattern(template, axes, tensors, reshaped)


def _parse_axes(text: str) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    group: list[Item] | None = None  # within parentheses
    for token in _TOKEN.findall(text):
        if token == "(" and group is None:
            group = []
        elif token == ")" and group is not None:
            if not group:
                raise ValueError(f"axes {text!r}: a parenthesis holds nothing")
            axes.append(tuple(group))
            group = None
        elif group is not None:
            group.append(_parse_item(token, text))
        else:
            axes.append((_parse_item(token, text),))
    if group is not None:
        raise ValueError(f"axes {text!r}: a parenthesis isn’t closed")
    return tuple(axes)


def _parse_item(token: str, text: str) -> Item:
    if token.isidentifier():
        return token
    if (match := _TURNS.fullmatch(token)) is not None:
        return Turns(match[1], int(match[2]))
    if len(token) == 1 or token[0] != "[":
        raise ValueError(f"axes {text!r}: unexpected {token!r}{_advice(token)}")
    parts = tuple(_parse_part(part, text) for part in token[1:-1].split("+"))
    if len(parts) < 2:
        raise ValueError(f"axes {text!r}: a concatenation needs two parts")
    return Concat(parts)


def _advice(token: str) -> str:
    if token.isdecimal():
        return f': name an axis of that length in [axes], as o = "{token}", and write o'
    return ""


def _parse_part(part: str, text: str) -> Part:
    tensor, _, factors = part.partition(":")
    words = [tensor.strip(), *factors.split()]
    if not all(word.isidentifier() for word in words):
        turns = "; parts that take turns, such as d/2 2, can't stand within […]"
        raise ValueError(
            f"axes {text!r}: {part.strip()!r} isn't a part of a concatenation: the name of a "
            f"tensor, ':' and axes{turns if any('/' in word for word in words) else ''}"
        )
    return Part(words[0], tuple(words[1:]))
