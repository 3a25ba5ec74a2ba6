"""The protobuf wire format, as far as MindSpore's files use it: varints and length-delimited
fields, nothing else.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

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


class Message(msgspec.Struct, frozen=True):
    """A message that begins at byte `start` of a file, which errors name."""

    data: bytes
    path: Path
    start: int = 0

    def fields(self, limit: int) -> Iterator[tuple[int, int | Message]]:
        """(number, value) of each field: an integer for varints, what may be a message for
        length-delimited fields.

        Raises `FormatError`, naming the file and the byte, for whatever isn't the format and for
        more than `limit` fields.
        """
        data, at, count = self.data, 0, 0
        while at < len(data):
            begin = at
            key, at = self._varint(at)
            value, at = self._varint(at)
            count += 1
            if count > limit:
                raise self.error(f"over {limit} fields where there are fewer", begin)
            if key & 7 == VARINT:
                yield key >> 3, value
            elif key & 7 == BYTES:
                if value > len(data) - at:
                    raise self.error(
                        f"a field of {value} bytes where only {len(data) - at} are left; truncated",
                        begin,
                    )
                yield key >> 3, Message(data[at : at + value], self.path, self.start + at)
                at += value
            else:
                raise self.error(
                    f"protobuf wire type {key & 7}, which doesn't occur in such files", begin
                )

    def error(self, found: str, at: int = 0) -> FormatError:
        """What is wrong `at` bytes after the message's start."""
        return FormatError(
            f"{self.path}: at byte {self.start + at} stands {found}; damaged, or "
            "another kind of file."
        )

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for i in range(10):
            if at + i >= len(self.data):
                raise self.error("a number that doesn't end; truncated", at)
            byte = self.data[at + i]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if value >> 64:
                    raise self.error("a number of more than 64 bits", at)
                return value, at + i + 1
        raise self.error("a number of more than 10 bytes", at)
