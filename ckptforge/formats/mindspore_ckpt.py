"""MindSpore `.ckpt` files: the index, and the layout of files to write.

Format (MindSpore `train/checkpoint.proto`, proto2, and `train/serialization.py`): protobuf messages
`Checkpoint { repeated Value value = 1 }`, `Value { tag = 1; TensorProto tensor = 2; MapTensorProto
maptensor = 3 }`, `TensorProto { repeated int64 dims = 1; tensor_type = 2; tensor_content = 3 }`,
one after another with no header; which is itself one long Checkpoint message. A big tensor is cut
into consecutive values of one tag. An optional tail of 17 bytes holds the crc32 of all before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptforge.dtypes import BY_MINDSPORE
from ckptforge.errors import FormatError, PlanError, counted, shown
from ckptforge.formats.entry import (
    MAX_DIMS,
    MAX_NAME,
    MAX_TENSORS,
    Checksum,
    FileIndex,
    bytes_needed,
)
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.protobuf import BYTES, VARINT, encode_varint, record, signed
from ckptforge.formats.sniff import naming_others
from ckptforge.spelling import option
from ckptforge.storage.files import open_file, read_exactly
from ckptforge.storage.store import Reader
from ckptforge.values import Extent, Place, Stored

NAME = "mindspore ckpt"
ENDINGS = (".ckpt",)
CHUNK_BYTES = 512 * 1024 * 1024  # save_checkpoint's SLICE_SIZE, in bytes
_NOTES = 10
_CRC_MARK = b"crc_num"
_CRC_TAIL = len(_CRC_MARK) + 10
_ENCRYPTED = {
    b"\xd8\x5e\x3a\x7f": "AES-GCM",
    b"\xd9\x5e\x3a\x7f": "AES-CBC",
    b"\xda\x5e\x3a\x7f": "SM4-CBC",
}


@dataclass
class _Value:
    """One value of the file as it is parsed: a tensor's chunk."""

    tag: str | None = None
    dims: list[int] = field(default_factory=list)
    type_name: str | None = None
    content: tuple[int, int] | None = None  # file offset, length


class _Cursor:
    """Reads a file's small parts through a window, so that skipping over tensor data costs no
    reading of it."""

    _WINDOW = 4096

    def __init__(self, reader: Reader, path: Path, size: int) -> None:
        self.reader, self.path, self.size = reader, path, size
        self._start, self._window = 0, b""

    def bytes(self, offset: int, length: int) -> bytes:
        if length > len(self._window) - (offset - self._start) or offset < self._start:
            buffer = bytearray(min(max(length, self._WINDOW), self.size - offset))
            read_exactly(self.reader, offset, memoryview(buffer), self.path)
            self._start, self._window = offset, bytes(buffer)
        return self._window[offset - self._start : offset - self._start + length]

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        """(value, offset after it); at most 10 bytes, inside `end`."""
        if (
            offset < end
            and 0 <= offset - self._start < len(self._window)
            and (byte := self._window[offset - self._start]) < 0x80
        ):
            return byte, offset + 1  # most are of one byte
        raw = self.bytes(offset, min(10, end - offset))
        value = 0
        for i, byte in enumerate(raw):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if value >= 1 << 64:
                    raise FormatError(
                        f"{self.path}: the number at byte {offset} is over 64 bits; "
                        "damaged, or not a checkpoint."
                    )
                return value, offset + i + 1
        raise FormatError(
            f"{self.path}: a number that begins at byte {offset} doesn't end; "
            "truncated, or not a checkpoint."
        )

    def field(self, offset: int, end: int) -> tuple[int, int, int, int]:
        """(number, wire type, value or length, offset of what follows) of the protobuf field at
        `offset`."""
        key, at = self.varint(offset, end)
        number, wire = key >> 3, key & 7
        if wire not in (VARINT, BYTES):
            raise FormatError(
                f"{self.path}: byte {offset} holds protobuf wire type {wire}, which "
                "no MindSpore checkpoint has."
            )
        value, at = self.varint(at, end)
        if wire == BYTES and value > end - at:
            raise FormatError(
                f"{self.path}: the record at byte {offset} should have {value} bytes but only "
                f"{end - at} are there; "
                "the file is truncated or damaged."
            )
        return number, wire, value, at


@naming_others
def read_index(path: Path) -> FileIndex:
    """The index of one `.ckpt`, following MindSpore's loading rules, no tensor data read.

    Consecutive values with one tag are one tensor, whose dims and type are those of the last; a tag
    that comes back later replaces the earlier tensor at its place. Raises `FormatError` for
    encrypted files, map parameters, unknown dtypes, truncation, and contents whose bytes don't
    match their dims; `InputNotFoundError` if the file can't be opened.
    """
    reader = open_file(path)
    try:
        size, mtime_ns = (found := reader.status()).size, found.mtime_ns
        if size == 0:
            raise FormatError(f"{path}: the file is empty (0 bytes).")
        cursor = _Cursor(reader, path, size)
        algorithm = _ENCRYPTED.get(cursor.bytes(0, min(4, size)))
        if algorithm:
            raise FormatError(
                f"{path}: the checkpoint is encrypted ({algorithm}), which ckptforge can't read; "
                "load it in MindSpore with its key and save it without."
            )
        end, tail = size, None
        if size >= _CRC_TAIL:
            last = cursor.bytes(size - _CRC_TAIL, _CRC_TAIL)
            if last.startswith(_CRC_MARK):
                end = size - _CRC_TAIL
                tail = Checksum(int.from_bytes(last[len(_CRC_MARK) :], "big"), ((0, end),))
        tensors: dict[str, Stored] = {}
        twice: dict[str, None] = {}
        for tag, chunks in _groups(_values(cursor, end)):
            if tag in tensors:
                twice[tag] = None
            tensors[tag] = _tensor(path, tag, chunks)
    finally:
        reader.close()
    notes = [
        f"{path}: {shown(tag)} is stored twice; as in MindSpore, the later one counts."
        for tag in [*twice][:_NOTES]
    ]
    if len(twice) > _NOTES:
        notes.append(f"{path}: {counted(len(twice) - _NOTES, 'more tensor', 'are')} stored twice.")
    return FileIndex(path, NAME, size, mtime_ns, tensors, {}, tuple(notes), tail)


def _values(cursor: _Cursor, end: int) -> Iterator[_Value]:
    at = count = 0
    while at < end:
        number, wire, length, body = cursor.field(at, end)
        count += 1
        if count > MAX_TENSORS:
            raise FormatError(
                f"{cursor.path}: holds more than {MAX_TENSORS} values; damaged, or "
                "not a checkpoint."
            )
        if (number, wire) != (1, BYTES):
            raise FormatError(
                f"{cursor.path}: byte {at} holds protobuf field {number}, expected a checkpoint "
                "value; damaged, or another kind of file."
            )
        yield _value(cursor, at, body, body + length)
        at = body + length


def _value(cursor: _Cursor, start: int, at: int, end: int) -> _Value:
    value = _Value()
    tensor: tuple[int, int] | None = None
    while at < end:
        number, wire, length, body = cursor.field(at, end)
        if (number, wire) == (1, BYTES) and value.tag is None:
            value.tag = _text(cursor, body, length)
        elif (number, wire) == (2, BYTES) and tensor is None:
            tensor = (body, body + length)
        elif (number, wire) == (3, BYTES):
            raise FormatError(
                f"{cursor.path}: {shown(value.tag or 'a value')} is a MapParameter (hash table), "
                "which ckptforge can't convert; "
                "export it from MindSpore as plain tensors."
            )
        else:
            raise FormatError(
                f"{cursor.path}: the value at byte {start} holds an unexpected or "
                f"repeated protobuf field {number}."
            )
        at = body + (length if wire == BYTES else 0)
    if value.tag is None or tensor is None:
        raise FormatError(
            f"{cursor.path}: the value at byte {start} lacks its "
            f"{'name' if value.tag is None else 'tensor'}."
        )
    at, end = tensor
    while at < end:
        number, wire, length, body = cursor.field(at, end)
        if number == 1 and wire == VARINT:
            value.dims.append(signed(length))
        elif number == 1 and wire == BYTES:  # packed, which protobuf readers must accept
            inner = body
            while inner < body + length:
                dim, inner = cursor.varint(inner, body + length)
                value.dims.append(signed(dim))
                if len(value.dims) > MAX_DIMS:
                    break
        elif (number, wire) == (2, BYTES) and value.type_name is None:
            value.type_name = _text(cursor, body, length)
        elif (number, wire) == (3, BYTES) and value.content is None:
            value.content = (body, length)
        else:
            raise FormatError(
                f"{cursor.path}: tensor {shown(value.tag)} holds an unexpected or "
                f"repeated protobuf field {number}."
            )
        if len(value.dims) > MAX_DIMS:
            raise FormatError(
                f"{cursor.path}: tensor {shown(value.tag)} has more than {MAX_DIMS} "
                "dims; damaged, or not a checkpoint."
            )
        at = body + (length if wire == BYTES else 0)
    if value.type_name is None or value.content is None:
        raise FormatError(
            f"{cursor.path}: tensor {shown(value.tag)} lacks its "
            f"{'dtype' if value.type_name is None else 'content'}."
        )
    return value


def _text(cursor: _Cursor, at: int, length: int) -> str:
    if length > MAX_NAME:
        raise FormatError(
            f"{cursor.path}: the name at byte {at} has {length} bytes; damaged, or "
            "not a checkpoint."
        )
    try:
        return cursor.bytes(at, length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{cursor.path}: the name at byte {at} isn't UTF-8; damaged, or not a checkpoint."
        ) from error


def _groups(values: Iterator[_Value]) -> Iterator[tuple[str, list[_Value]]]:
    group: list[_Value] = []
    for value in values:
        if group and group[0].tag != value.tag:
            yield str(group[0].tag), group
            group = []
        group.append(value)
    if group:
        yield str(group[0].tag), group


def _tensor(path: Path, tag: str, chunks: list[_Value]) -> Stored:
    last = chunks[-1]
    dtype = BY_MINDSPORE.get(str(last.type_name))
    if dtype is None:
        raise FormatError(
            f"{path}: tensor {shown(tag)} has dtype {shown(last.type_name)}, which is unknown; "
            f"known: {', '.join(sorted(filter(None, BY_MINDSPORE)))}."
        )
    extents: list[Extent] = []
    start = 0
    for chunk in chunks:
        assert chunk.content is not None
        offset, length = chunk.content
        if length:
            extents.append(Extent(start, offset, length))
        start += length
    shape = tuple(last.dims)
    if any(n < 0 for n in shape):
        raise FormatError(
            f"{path}: tensor {shown(tag)} has dims {list(shape)}; sizes can't be negative."
        )
    if dtype.name == "str":
        if start % 4:
            raise FormatError(
                f"{path}: text {shown(tag)} has {start} bytes, expected whole UTF-32 "
                "code points of 4."
            )
        shape = (start // 4,)
    elif shape == (0,) and start == dtype.itemsize:
        shape = ()  # MindSpore reads dims [0] as a scalar
    expected = bytes_needed(dtype, shape, path, tag)
    if start != expected:
        raise FormatError(
            f"{path}: tensor {shown(tag)}, {dtype} {list(shape)}, should have {expected} bytes but "
            f"{start} are stored; "
            "the file is damaged or incomplete."
        )
    return Stored(path=path, name=tag, dtype=dtype, shape=shape, extents=tuple(extents))


def recognises(head: bytes) -> bool:
    """Whether a file begins with the key of a value, the length of which is still open."""
    return head[:1] == b"\n"


def ordered(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors as they are: save_checkpoint keeps the order of the network."""
    return list(tensors)


def lay_out(
    path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None
) -> OutputFile:
    """A file with these tensors in this order, byte for byte as save_checkpoint lays them out.
    There is no room for `metadata`.

    Tensors over 512 MiB are cut into chunks of 512 MiB. A tensor without elements, which
    save_checkpoint drops unless it saves asynchronously, is written as the asynchronous save does.
    Raises `PlanError` for a dtype that MindSpore doesn't load from a `.ckpt` and for names that
    clash.
    """
    literals: list[tuple[int, bytes]] = []
    places: dict[str, Place] = {}
    at = 0
    for tensor in tensors:
        dtype = tensor.dtype
        if tensor.name in places:
            raise PlanError(f"{path}: tensor {tensor.name!r} would be written twice.")
        if dtype.mindspore is None or not dtype.mindspore_loads:
            raise PlanError(
                f"{path}: tensor {tensor.name!r} is {dtype}, which MindSpore can't load from a "
                f".ckpt; cast it with {option('dtype')}."
            )
        dims = (0,) if dtype.name == "str" else tensor.shape
        head = b"".join(b"\x08" + encode_varint(n) for n in dims) + record(
            2, dtype.mindspore.encode()
        )
        extents = []
        for start in range(0, max(tensor.nbytes, 1), CHUNK_BYTES):
            length = min(CHUNK_BYTES, tensor.nbytes - start)
            content = head + record(3, b"", length)
            value = record(1, tensor.name.encode()) + record(2, content, length)
            literal = record(1, value, length)
            literals.append((at, literal))
            at += len(literal)
            if length:
                extents.append(Extent(start, at, length))
            at += length
        places[tensor.name] = Place(
            path=path,
            name=tensor.name,
            dtype=dtype,
            shape=tensor.shape,
            extents=tuple(extents),
        )
    return OutputFile(path=path, size=at, literals=tuple(literals), places=places)
