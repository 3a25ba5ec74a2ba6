"""Data as a pickle of protocol 2 has it: the opcodes of what is written, and nothing else.

Source: Python's `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ckptforge.torch_files.pickle_data import Inert, Named

Memo = dict[str, int]  # texts and names → their places in a pickle's memo


def encoded(value: Any, memo: Memo | None = None) -> bytes:
    """None, numbers, texts, lists, tuples, dictionaries, a `Named`, and an `Inert`: what its class
    makes of its arguments, or, where it has a state, an object with that. With a memo texts and
    names stand once in a pickle."""
    if value is None or isinstance(value, bool):
        return b"N" if value is None else b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _once(value, text(value), memo)
    if isinstance(value, Named):
        module, _, name = value.name.rpartition(".")
        return _once(f"\0{value.name}", f"c{module}\n{name}\n".encode("latin-1"), memo)
    if isinstance(value, Inert):
        arguments = encoded(tuple(value.arguments), memo)
        made = encoded(Named(value.name), memo) + arguments
        return made + (b"R" if value.state is None else b"\x81" + encoded(value.state, memo) + b"b")
    if isinstance(value, list | tuple):
        inner = b"".join(encoded(one, memo) for one in value)
        return b"(" + inner + b"t" if isinstance(value, tuple) else b"](" + inner + b"e"
    items = (encoded(key, memo) + encoded(one, memo) for key, one in value.items())
    return b"}(" + b"".join(items) + b"u"


def _once(key: str, content: bytes, memo: Memo | None) -> bytes:
    if memo is None:
        return content
    if (place := memo.get(key)) is not None:
        return b"j" + struct.pack("<I", place)
    memo[key] = len(memo)
    return content + b"r" + struct.pack("<I", memo[key])


def text(value: str) -> bytes:
    """A text."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    """An integer."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def tuple_of(numbers: Sequence[int]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, numbers)) + b"t"
