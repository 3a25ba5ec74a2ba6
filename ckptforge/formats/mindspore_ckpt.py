"""MindSpore `.ckpt` files: the index, and the layout of files to write.

Format (MindSpore `train/checkpoint.proto`, proto2, and `train/serialization.py`): protobuf messages
`Checkpoint { repeated Value value = 1 }`, `Value { tag = 1; TensorProto tensor = 2; MapTensorProto
maptensor = 3 }`, `TensorProto { repeated int64 dims = 1; tensor_type = 2; tensor_content = 3 }`,
one after another with no header; which is itself one long Checkpoint message. A big tensor is cut
into consecutive values of one tag. An optional tail of 17 bytes holds the crc32 of all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path

import msgspec

from ckptforge.dtypes import BY_MINDSPORE
from ckptforge.errors import DamagedError, FormatError, PlanError, shown
from ckptforge.formats.index import MAX_DIMS, MAX_TENSORS, Checksum, FileIndex, check_size
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.protobuf import Message, Source, number, record, signed
from ckptforge.spelling import option
from ckptforge.storage.files import open_file
from ckptforge.values import Extent, Place, Stored
from ckptforge.wording import counted

NAME = "a MindSpore checkpoint"
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


class _Chunk(msgspec.Struct, frozen=True):
    """One value of the file: a tensor, or a part of one."""

    tag: str
    dims: tuple[int, ...]
    type_name: str
    content: Message


def recognises(head: bytes) -> bool:
    """Whether a file begins with a value that begins with its name, which is shorter."""
    at = next((i for i in range(1, 10) if head[i : i + 1] < b"\x80"), 10)  # the length's last byte
    shorter = at > 1 or head[3:4] < head[1:2]
    return head[:1] == b"\n" == head[at + 1 : at + 2] and shorter


def read_index(path: Path) -> FileIndex:
    """The index of one `.ckpt`, following MindSpore's loading rules, no tensor data read.

    Consecutive values with one tag are one tensor, whose dims and type are those of the last; a tag
    that comes back later replaces the earlier tensor at its place. Raises `FormatError` for
    encrypted files, map parameters, unknown dtypes, truncation, and contents whose bytes don't
    match their dims; `InputNotFoundError` if the file can't be opened.
    """
    with closing(open_file(path)) as reader:
        status = reader.status()
        if status.size == 0:
            raise DamagedError(f"{path}: the file is empty (0 bytes).")
        source = Source(path, "checkpoint", reader=reader)
        if algorithm := _ENCRYPTED.get(source.bytes(0, min(4, status.size))):
            raise FormatError(
                f"{path}: the checkpoint is encrypted ({algorithm}), which ckptforge can't read; "
                "load it in MindSpore with its key and save it without."
            )
        end, checksum = status.size, None
        tail = source.bytes(end - _CRC_TAIL, _CRC_TAIL) if end >= _CRC_TAIL else b""
        if tail.startswith(_CRC_MARK):
            end -= _CRC_TAIL
            checksum = Checksum(int.from_bytes(tail[len(_CRC_MARK) :], "big"), ((0, end),))
        tensors: dict[str, Stored] = {}
        twice: dict[str, None] = {}
        for tag, chunks in groupby(_chunks(source.message(end)), lambda chunk: chunk.tag):
            if tag in tensors:
                twice[tag] = None
            tensors[tag] = _tensor(path, tag, list(chunks))
    notes = [
        f"{path}: {shown(tag)} is stored twice; as in MindSpore, the later one counts."
        for tag in islice(twice, _NOTES)
    ]
    if len(twice) > _NOTES:
        notes.append(f"{path}: {counted(len(twice) - _NOTES, 'more tensor', 'are')} stored twice.")
    return FileIndex(
        path=path,
        format="mindspore ckpt",
        size=status.size,
        mtime_ns=status.mtime_ns,
        tensors=tensors,
        notes=tuple(notes),
        checksum=checksum,
    )


def _chunks(file: Message) -> Iterator[_Chunk]:
    at = 0
    for field, value in file.fields(MAX_TENSORS):
        if field != 1 or isinstance(value, int):
            raise DamagedError(
                f"{file.source.path}: byte {at} holds protobuf field {field}, expected a "
                "checkpoint value; damaged, or another kind of file."
            )
        at = value.end
        yield _chunk(value)


def _chunk(value: Message) -> _Chunk:
    tag: str | None = None
    dims: list[int] = []

    def wrong(what: str) -> FormatError:
        of = f"the value at byte {value.at}" if tag is None else f"tensor {shown(tag)}"
        return DamagedError(f"{value.source.path}: {of} {what}.")

    found = _records(value, wrong, (1, 2, 3))
    tag = found[1].text() if 1 in found else None
    if 3 in found:
        raise FormatError(
            f"{value.source.path}: tensor {shown(tag)} is a MapParameter (hash table), which "
            "ckptforge can't convert; export it from MindSpore as plain tensors."
        )
    if tag is None or 2 not in found:
        raise wrong(f"lacks its {'name' if tag is None else 'tensor'}")
    tensor = _records(found[2], wrong, (2, 3), dims)
    if len(tensor) < 2:
        raise wrong(f"lacks its {'content' if 2 in tensor else 'dtype'}")
    return _Chunk(tag, tuple(dims), tensor[2].text(), tensor[3])


def _records(
    message: Message,
    wrong: Callable[[str], FormatError],
    known: tuple[int, ...],
    dims: list[int] | None = None,
) -> dict[int, Message]:
    """A message's records by their fields, each of those `known` once at most; numbers of field 1
    become `dims`."""
    found: dict[int, Message] = {}
    for field, value in message.fields(2 * MAX_DIMS):
        if isinstance(value, Message) and field in known and field not in found:
            found[field] = value
        elif field == 1 and dims is not None:  # packed numbers, too, which readers must accept
            dims += [signed(value)] if isinstance(value, int) else value.numbers(MAX_DIMS + 1)
            if len(dims) > MAX_DIMS:
                raise wrong(f"has more than {MAX_DIMS} dims; damaged, or not a checkpoint")
        else:
            raise wrong(f"holds an unexpected or repeated protobuf field {field}")
    return found


def _tensor(path: Path, tag: str, chunks: Sequence[_Chunk]) -> Stored:
    def wrong(what: str) -> FormatError:
        return DamagedError(f"{path}: tensor {shown(tag)}{what}.")

    shape, type_name = chunks[-1].dims, chunks[-1].type_name
    dtype = BY_MINDSPORE.get(type_name)
    if dtype is None:
        known = ", ".join(sorted(filter(None, BY_MINDSPORE)))
        raise FormatError(
            f"{path}: tensor {shown(tag)} has dtype {shown(type_name)}, which is unknown; known: "
            f"{known}. Save it in one of them, or leave it out."
        )
    extents: list[Extent] = []
    size = 0
    for content in (chunk.content for chunk in chunks):
        extents += [Extent(size, content.start, content.length)] if content.length else []
        size += content.length
    if any(n < 0 for n in shape):
        raise wrong(f" has dims {list(shape)}; sizes can't be negative")
    if dtype.name == "str":
        if size % 4:
            raise wrong(f" is a text of {size} bytes, expected whole UTF-32 code points of 4")
        shape = (size // 4,)
    elif shape == (0,) and size == dtype.itemsize:
        shape = ()  # MindSpore reads dims [0] as a scalar
    stored = Stored(path=path, name=tag, dtype=dtype, shape=shape, extents=tuple(extents))
    check_size(stored, size)
    return stored


def ordered(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors as they are: save_checkpoint keeps the order of the network."""
    return list(tensors)


def lay_out(
    path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None
) -> OutputFile:
    """A file with these tensors in this order, byte for byte as save_checkpoint lays them out.
    There is no room for `metadata`.

    Tensors are cut into chunks of 512 MiB. One without elements, which save_checkpoint drops unless
    it saves asynchronously, is written as the asynchronous save does. Raises `PlanError` for a
    dtype that MindSpore doesn't load from a `.ckpt` and for names that clash.
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
        head = b"".join(number(1, n) for n in dims) + record(2, dtype.mindspore.encode())
        extents = []
        for start in range(0, max(tensor.nbytes, 1), CHUNK_BYTES):
            length = min(CHUNK_BYTES, tensor.nbytes - start)
            content = record(2, head + record(3, b"", length), length)
            literals.append((at, record(1, record(1, tensor.name.encode()) + content, length)))
            at += len(literals[-1][1])
            extents += [Extent(start, at, length)] if length else []
            at += length
        places[tensor.name] = tensor.placed(path, *extents)
    return OutputFile(path=path, size=at, literals=tuple(literals), places=places)
