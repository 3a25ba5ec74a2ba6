"""The zip archive of a torch file that is to be written.

Source: torch 2.13, `torch/serialization.py` (`_save`) and files that it wrote: members in its
order, each aligned to 64 bytes by an extra field of its local header. Sizes stand in the headers,
as in any zip, where torch puts them behind the data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptforge.boxes import row_major_strides
from ckptforge.errors import PlanError, shown
from ckptforge.formats.layout import OutputFile, Seal, TensorSpec
from ckptforge.torch_files.pickle_data import Inert
from ckptforge.values import Extent, Place

_ALIGNMENT = 64
_ROOT = "archive"  # as torch calls it where a file has no name
_LOCAL = 30  # bytes of a local header before the name
_CRC, _LISTED_CRC = 14, 16  # where the crc32 stands in a local header, and in an entry
_STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}
_UNTYPED = {  # torch has no class of storages for them
    name: name for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")
} | {"float8_e8m0": "float8_e8m0fnu"}
_BIG = 0xFFFFFFFF


def lay_out_archive(
    path: Path, tensors: Sequence[TensorSpec], beside: Mapping[str, Any] | None = None
) -> OutputFile:
    """A file that `torch.load(weights_only=True)` reads as a dictionary of these tensors. With data
    `beside` them (`encoded`) as one of that, and of a dictionary for each text before the first dot
    of their names. Raises `PlanError` for dtypes that torch doesn't have, and for a name that
    stands twice."""
    small = {"data.pkl": _pickle(path, tensors, beside), ".format_version": b"1"}
    small |= {".storage_alignment": str(_ALIGNMENT).encode(), "byteorder": b"little"}
    members: list[tuple[str, bytes | TensorSpec]] = [*small.items()]
    members += [(f"data/{i}", spec) for i, spec in enumerate(tensors)]
    members += [("version", b"3\n"), (".data/serialization_id", b"0" * 40)]
    literals: list[tuple[int, bytes]] = []
    headers: list[tuple[int, int, bytes]] = []  # of each member: local header, data, its entry
    places: dict[str, Place] = {}
    at = 0
    for name, content in members:
        title = f"{_ROOT}/{name}".encode()
        size = content.nbytes if isinstance(content, TensorSpec) else len(content)
        local = _local(title, size, at)
        data = at + len(local)
        literals.append((at, local))
        headers.append((at, data, _entry(title, size, at)))
        if isinstance(content, bytes):
            literals.append((data, content))
        elif content.name in places:
            raise PlanError(f"{path}: two tensors are called {shown(content.name)}.")
        else:
            places[content.name] = content.placed(path, Extent(0, data, size))
        at = data + size
    seals, directory = [], b"".join(entry for _, _, entry in headers)
    end = directory + _end(len(headers), len(directory), at)
    literals.append((at, end))
    size = at + len(end)
    for (local_at, data, entry), (_, content) in zip(headers, members, strict=True):
        length = content.nbytes if isinstance(content, TensorSpec) else len(content)
        seals.append(Seal(start=data, length=length, at=(local_at + _CRC, at + _LISTED_CRC)))
        at += len(entry)
    return OutputFile(
        path=path, size=size, literals=tuple(literals), places=places, seals=tuple(seals)
    )


def _local(title: bytes, size: int, at: int) -> bytes:
    zip64 = struct.pack("<HHQQ", 1, 16, size, size) if size >= _BIG else b""
    fixed = _LOCAL + len(title) + len(zip64) + 4
    padding = -(at + fixed) % _ALIGNMENT
    extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    said = _BIG if zip64 else size
    numbers = (0, 0x800, 0, 0, 0, 0, said, said, len(title), len(extra))
    return struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *numbers) + title + extra


def _entry(title: bytes, size: int, offset: int) -> bytes:
    big = [number for number in (size, size, offset) if number >= _BIG]
    extra = struct.pack(f"<HH{len(big)}Q", 1, 8 * len(big), *big) if big else b""
    said, there = min(size, _BIG), min(offset, _BIG)
    numbers = (0, 0, 0x800, 0, 0, 0, 0, said, said, len(title), len(extra), 0, 0, 0, 0, there)
    return struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", *numbers) + title + extra


def _end(count: int, length: int, offset: int) -> bytes:
    """The end of the directory, with that of zip64 before it, which torch always writes."""
    after = offset + length
    numbers = (44, 45, 45, 0, 0, count, count, length, offset)
    large = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", *numbers)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, after, 1)
    few = min(count, 0xFFFF)
    usual = (0, 0, few, few, min(length, _BIG), min(offset, _BIG), 0)
    return large + locator + struct.pack("<4sHHHHIIH", b"PK\x05\x06", *usual)


def _pickle(path: Path, tensors: Sequence[TensorSpec], beside: Mapping[str, Any] | None) -> bytes:
    if beside is None:
        found = [_item(path, i, spec, spec.name) for i, spec in enumerate(tensors)]
        return b"\x80\x02}(" + b"".join(found) + b"u."
    groups: dict[str, list[bytes]] = {}
    for i, spec in enumerate(tensors):
        group, _, name = spec.name.partition(".")
        groups.setdefault(group, []).append(_item(path, i, spec, name))
    items = [_text(key) + encoded(value) for key, value in beside.items()]
    items += [_text(key) + b"}(" + b"".join(own) + b"u" for key, own in groups.items()]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def encoded(value: Any) -> bytes:
    """Plain data as a pickle has it: None, numbers, texts, lists, dictionaries, and an `Inert` of a
    class whose state is a dictionary."""
    if value is None or isinstance(value, bool):
        return b"N" if value is None else b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return b"](" + b"".join(map(encoded, value)) + b"e"
    if isinstance(value, Inert):
        module, _, name = value.name.rpartition(".")
        return f"c{module}\n{name}\n)\x81".encode("latin-1") + encoded(value.state) + b"b"
    items = (_text(key) + encoded(one) for key, one in value.items())
    return b"}(" + b"".join(items) + b"u"


def _item(path: Path, number: int, spec: TensorSpec, name: str) -> bytes:
    typed, untyped = _STORAGES.get(spec.dtype.name), _UNTYPED.get(spec.dtype.name)
    if typed is None and untyped is None:
        raise PlanError(f"{path}: torch has no dtype for {shown(spec.name)}, {spec.dtype}.")
    storage = b"ctorch\n%sStorage\n" % (typed or "").encode()
    if typed is None:
        storage = b"ctorch.storage\nUntypedStorage\n"
    length = spec.nbytes // spec.dtype.itemsize if typed is not None else spec.nbytes
    words = (b"(", _text("storage"), storage, _text(str(number)), _text("cpu"), _number(length))
    version = b"2" if typed is not None else b"3"
    return b"".join(
        (
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v%s\n(" % version,
            *words,
            b"tQ",
            _number(0),
            _tuple(spec.shape),
            _tuple(row_major_strides(spec.shape)),
            b"\x89ccollections\nOrderedDict\n)R",
            b"" if typed is not None else b"ctorch\n%s\n" % str(untyped).encode(),
            b"tR",
        )
    )


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _number(number: int) -> bytes:
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
