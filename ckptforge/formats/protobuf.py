"""The protobuf wire format, as far as MindSpore's files use it: varints and length-delimited fields, nothing else.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckptforge.errors import FormatError

VARINT, BYTES = 0, 2


def encode_varint(value: int) -> bytes:
    """A varint; negative numbers as the 10 bytes of their 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return bytes([field << 3 | VARINT]) + encode_varint(value)


def record(field: int, content: bytes, more: int = 0) -> bytes:
    """A length-delimited field with `content`, of which `more` further bytes will follow."""
    return bytes([field << 3 | BYTES]) + encode_varint(len(content) + more) + content


def signed(value: int) -> int:
    """A varint's value as a 64-bit signed integer."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: an integer for varints, bytes for length-delimited fields.

    Raises `FormatError`, naming the file, for whatever isn't the format.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at, path)
        value, at = _varint(data, at, path)
        if key & 7 == VARINT:
            yield key >> 3, value
        elif key & 7 == BYTES:
            if value > len(data) - at:
                raise FormatError(f"{path}: a field of {value} bytes stands where only {len(data) - at} are left; truncated or damaged.")
            yield key >> 3, data[at : at + value]
            at += value
        else:
            raise FormatError(f"{path}: protobuf wire type {key & 7} doesn't occur in such files; damaged, or another kind of file.")


def _varint(data: bytes, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise FormatError(f"{path}: ends inside a number; truncated or damaged.")
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value & (1 << 64) - 1, at + i + 1
    raise FormatError(f"{path}: a number has more than 10 bytes; damaged, or another kind of file.")
