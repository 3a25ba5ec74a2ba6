"""The zip archive of a torch file that is to be written.

Source: torch 2.13, `torch/serialization.py` (`_save`) and files that it wrote: members in its
order, each aligned to 64 bytes by an extra field of its local header. Sizes stand in the headers,
as in any zip, where torch puts them behind the data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptforge.boxes import row_major_strides
from ckptforge.errors import PlanError, shown
from ckptforge.formats.layout import OutputFile, Seal, TensorSpec
from ckptforge.torch_files.dtypes import STORAGES
from ckptforge.torch_files.pickling import encoded, number, text, tuple_of
from ckptforge.values import Extent, Place

_ALIGNMENT = 64
_ROOT = "archive"  # as torch calls it where a file has no name
_LOCAL = 30  # bytes of a local header before the name
_CRC, _LISTED_CRC = 14, 16  # where the crc32 stands in a local header, and in an entry
_CLASSES = {dtype: name for name, dtype in STORAGES.items()}  # dtype → class of its storages
# dtypes without such a class → torch's names of them
_UNTYPED = {
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
    laid = _Laid(path)
    laid.add(_pickle(path, tensors, beside), tensors)
    return laid.file()


def lay_out_items(
    path: Path, tensors: Sequence[TensorSpec]
) -> tuple[OutputFile, dict[str, tuple[int, int]]]:
    """(a file of archives one after another, each with one tensor as its object; name → offset and
    length of its archive). Raises `PlanError` as `lay_out_archive` does."""
    laid, found = _Laid(path), {}
    for spec in tensors:
        start = laid.align()
        laid.add(b"\x80\x02" + _tensor(path, 0, spec) + b".", [spec])
        found[spec.name] = (start, laid.at - start)
    return laid.file(), found


class _Laid:
    """A file of archives, as far as it is laid out."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self._literals: list[tuple[int, bytes]] = []
        self._places: dict[str, Place] = {}
        self._seals: list[Seal] = []

    def file(self) -> OutputFile:
        """What is laid out, as a file."""
        return OutputFile(
            path=self.path,
            size=self.at,
            literals=tuple(self._literals),
            places=self._places,
            seals=tuple(self._seals),
        )

    def align(self) -> int:
        """Goes on to the next place where an archive's tensors will be aligned."""
        self._put(bytes(-self.at % _ALIGNMENT))
        return self.at

    def add(self, pickle: bytes, tensors: Sequence[TensorSpec]) -> None:
        """An archive of a pickle and the tensors that it names by their numbers."""
        small = {"data.pkl": pickle, ".format_version": b"1"}
        small |= {".storage_alignment": str(_ALIGNMENT).encode(), "byteorder": b"little"}
        members: list[tuple[str, bytes | TensorSpec]] = [*small.items()]
        members += [(f"data/{i}", spec) for i, spec in enumerate(tensors)]
        members += [("version", b"3\n"), (".data/serialization_id", b"0" * 40)]
        start, entries, sealed = self.at, list[bytes](), list[tuple[int, int, Extent]]()
        for name, content in members:
            title, at = f"{_ROOT}/{name}".encode(), self.at
            if isinstance(content, bytes):
                crc, size = zlib.crc32(content), len(content)
                self._put(_local(title, size, at - start, crc) + content)
            else:
                crc, size = 0, content.nbytes  # which is put over it when the tensor is written
                self._put(_local(title, size, at - start, crc))
                sealed.append((len(entries), at, Extent(0, self.at, size)))
                self._place(content)
            entries.append(_entry(title, size, at - start, crc))
        directory, offsets = self.at, [0]
        for entry in entries:
            offsets.append(offsets[-1] + len(entry))
        self._put(b"".join(entries) + _end(len(entries), offsets[-1], directory - start))
        for i, local, data in sealed:
            places = (local + _CRC, directory + offsets[i] + _LISTED_CRC)
            self._seals.append(Seal(start=data.offset, length=data.length, at=places))

    def _put(self, content: bytes) -> None:
        if content:
            self._literals.append((self.at, content))
        self.at += len(content)

    def _place(self, spec: TensorSpec) -> None:
        if spec.name in self._places:
            raise PlanError(f"{self.path}: two tensors are called {shown(spec.name)}.")
        self._places[spec.name] = spec.placed(self.path, Extent(0, self.at, spec.nbytes))
        self.at += spec.nbytes


def _local(title: bytes, size: int, at: int, crc: int) -> bytes:
    zip64 = struct.pack("<HHQQ", 1, 16, size, size) if size >= _BIG else b""
    fixed = _LOCAL + len(title) + len(zip64) + 4
    padding = -(at + fixed) % _ALIGNMENT
    extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    said = _BIG if zip64 else size
    numbers = (0, 0x800, 0, 0, 0, crc, said, said, len(title), len(extra))
    return struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *numbers) + title + extra


def _entry(title: bytes, size: int, offset: int, crc: int) -> bytes:
    big = [number for number in (size, size, offset) if number >= _BIG]
    extra = struct.pack(f"<HH{len(big)}Q", 1, 8 * len(big), *big) if big else b""
    said, there = min(size, _BIG), min(offset, _BIG)
    numbers = (0, 0, 0x800, 0, 0, 0, crc, said, said, len(title), len(extra), 0, 0, 0, 0, there)
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
    items = [text(key) + encoded(value) for key, value in beside.items()]
    items += [text(key) + b"}(" + b"".join(own) + b"u" for key, own in groups.items()]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _item(path: Path, key: int, spec: TensorSpec, name: str) -> bytes:
    return text(name) + _tensor(path, key, spec)


def torch_dtype(path: Path, spec: TensorSpec) -> str:
    """What torch calls the dtype of a tensor. Raises `PlanError` for one that it doesn't have."""
    name = spec.dtype.name
    if name not in _CLASSES and name not in _UNTYPED:
        raise PlanError(f"{path}: torch has no dtype for {shown(spec.name)}, {spec.dtype}.")
    return _UNTYPED.get(name, name)


def _tensor(path: Path, key: int, spec: TensorSpec) -> bytes:
    typed, called = _CLASSES.get(spec.dtype.name), torch_dtype(path, spec)
    storage = b"ctorch\n%sStorage\n" % (typed or "").encode()
    if typed is None:
        storage = b"ctorch.storage\nUntypedStorage\n"
    length = spec.nbytes // spec.dtype.itemsize if typed is not None else spec.nbytes
    words = (b"(", text("storage"), storage, text(str(key)), text("cpu"), number(length))
    version = b"2" if typed is not None else b"3"
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v%s\n(" % version,
            *words,
            b"tQ",
            number(0),
            tuple_of(spec.shape),
            tuple_of(row_major_strides(spec.shape)),
            b"\x89ccollections\nOrderedDict\n)R",
            b"" if typed is not None else b"ctorch\n%s\n" % called.encode(),
            b"tR",
        )
    )
