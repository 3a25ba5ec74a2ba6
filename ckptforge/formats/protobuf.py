"""The protobuf wire format, as far as MindSpore's files use it: varints and length-delimited
fields, nothing else.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ckptforge.errors import DamagedError, FormatError
from ckptforge.formats.index import MAX_NAME
from ckptforge.storage.files import read_bytes
from ckptforge.storage.store import Reader

VARINT, BYTES = 0, 2
_WINDOW = 4096


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


class Source:
    """The bytes that messages lie in: the contents of a small file, or a large one that is read
    through a window, so that tensor data is passed over. `kind` is what it should be, in errors."""

    def __init__(
        self, path: Path, kind: str, content: bytes = b"", reader: Reader | None = None
    ) -> None:
        self.path, self.kind, self.reader = path, kind, reader
        self.size = reader.status().size if reader is not None else len(content)
        self.start, self.window = 0, content

    def message(self, end: int) -> Message:
        """All up to byte `end` as one message."""
        return Message(self, 0, 0, end)

    def bytes(self, offset: int, length: int) -> bytes:
        """`length` bytes from byte `offset`, which are there."""
        at = offset - self.start
        if self.reader is not None and not 0 <= at <= len(self.window) - length:
            count = min(max(length, _WINDOW), self.size - offset)
            self.window = bytes(read_bytes(self.reader, offset, count, self.path))
            self.start, at = offset, 0
        return self.window[at : at + length]

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        """(value, offset after it) of the number at `offset`, which lies before `end`."""
        at = offset - self.start
        if 0 <= at < len(self.window) and self.window[at] < 0x80 and offset < end:
            return self.window[at], offset + 1  # most are of a byte
        value = 0
        for i, byte in enumerate(self.bytes(offset, min(10, end - offset))):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if value >> 64:
                    raise self.wrong(f"the number at byte {offset} is over 64 bits; damaged")
                return value, offset + i + 1
        raise self.wrong(f"a number that begins at byte {offset} doesn't end; truncated")

    def wrong(self, what: str) -> FormatError:
        """An error that says what isn't right."""
        return DamagedError(f"{self.path}: {what}, or not a {self.kind}.")


class Message(msgspec.Struct, frozen=True):
    """What may be a message, or a text, in the bytes from `start` to `end`; its field begins at
    byte `at`."""

    source: Source
    at: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """Its bytes."""
        return self.end - self.start

    def fields(self, limit: int) -> Iterator[tuple[int, int | Message]]:
        """(number, value) of each field: an integer for varints, what may be a message for
        length-delimited ones.

        Raises `FormatError`, naming the file and the byte, for whatever isn't the format and for
        more than `limit` fields.
        """
        source, at, end = self.source, self.start, self.end
        for _ in range(limit):
            if at == end:
                return
            begin = at
            key, at = source.varint(at, end)
            wire = key & 7
            value, at = source.varint(at, end) if wire in (VARINT, BYTES) else (0, at)
            if wire == BYTES:
                if value > end - at:
                    raise DamagedError(
                        f"{source.path}: the record at byte {begin} should have {value} bytes but "
                        f"only {end - at} are there; the file is truncated or damaged."
                    )
                yield key >> 3, Message(source, begin, at, at + value)
                at += value
            elif wire == VARINT:
                yield key >> 3, value
            else:
                raise DamagedError(
                    f"{source.path}: byte {begin} holds protobuf wire type {wire}, which no "
                    f"MindSpore {source.kind} has."
                )
        if at < end:
            raise source.wrong(f"holds more than {limit} values from byte {self.start} on; damaged")

    def numbers(self, limit: int) -> list[int]:
        """The signed numbers that it holds one after the other, up to `limit`."""
        found: list[int] = []
        at = self.start
        while at < self.end and len(found) < limit:
            value, at = self.source.varint(at, self.end)
            found.append(signed(value))
        return found

    def text(self) -> str:
        """The name that it is. Raises `FormatError`."""
        name = f"the name at byte {self.start}"
        if self.length > MAX_NAME:
            raise self.source.wrong(f"{name} has {self.length} bytes; damaged")
        try:
            return self.source.bytes(self.start, self.length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.source.wrong(f"{name} isn't UTF-8; damaged") from error
