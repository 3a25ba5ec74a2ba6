"""The zip archive of a torch file: where the numbers of each storage lie.

Source: APPNOTE.TXT of PKWARE (local headers), torch 2.13, `caffe2/serialize/inline_container.cc`
(members, alignment) and files that it wrote.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ckptforge.errors import DamagedError, FormatError, shown
from ckptforge.foreign.stream import Stream, parsing
from ckptforge.storage.store import Status
from ckptforge.torch_files.pickle_data import MAX_BYTES

_LOCAL = 30  # bytes of a local header before the name
_PIECE = 1 << 16
_MAX_DIRECTORY = 1 << 25  # bytes, for more members than a checkpoint has tensors
_ORDER = 16  # more bytes than the member that says the byte order has
_PICKLE = "data.pkl"


class Member(msgspec.Struct, frozen=True):
    """Bytes of the file."""

    offset: int
    length: int


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """A torch file: its pickle, and by its key where each storage lies."""

    status: Status
    pickle: bytes
    storages: dict[str, Member]


def read_archive(path: Path, part: Member | None = None, limit: int | None = None) -> Archive:
    """The archive that a file is, or that is a part of it; `limit` bounds the bytes of its
    directory and of its pickle. Raises `FormatError` for one that isn't torch's, or that can't be
    read in place."""
    with Stream(path) as whole, parsing(path, "a zip archive of torch"):
        status = whole.status()
        first, size = (0, status.size) if part is None else (part.offset, part.length)
        if first + size > status.size:
            raise DamagedError(
                f"{path}: should hold bytes {first} to {first + size}, but has {status.size}; "
                "truncated."
            )
        stream = whole if part is None else io.BufferedReader(_Window(whole, first, size))
        by_name = _members(path, stream, limit or _MAX_DIRECTORY)
        root = _root(path, by_name)
        _check_order(path, stream, by_name.get(f"{root}byteorder"), size)
        start = f"{root}data/"
        found = {
            name.removeprefix(start): _place(path, stream, member, size)
            for name, member in by_name.items()
            if name.startswith(start) and not name.endswith("/")
        }
        place = _place(path, stream, by_name[f"{root}{_PICKLE}"], size)
        _refuse_overlaps(path, {_PICKLE: place, **found})
        if place.length > (most := limit or MAX_BYTES):
            raise DamagedError(f"{path}: its {_PICKLE} has {place.length:,} bytes, over {most:,}.")
        pickle = _bytes(stream, place)
        storages = {key: Member(one.offset + first, one.length) for key, one in found.items()}
        return Archive(status=status, pickle=pickle, storages=storages)


def _members(path: Path, stream: BinaryIO, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name. Raises `FormatError` for a directory of more than `limit` bytes, for a
    name that stands twice, and for one that would lead elsewhere if it were unpacked."""
    found: dict[str, zipfile.ZipInfo] = {}
    try:
        members = zipfile.ZipFile(_Limited(path, stream, limit)).infolist()
    except (zipfile.BadZipFile, ValueError) as error:  # ValueError: it is shorter than it says
        raise DamagedError(
            f"{path}: isn't a zip archive of torch, or its end is missing: truncated or damaged."
        ) from error
    for member in members:
        name = member.filename
        if name in found:
            raise DamagedError(f"{path}: the archive holds {shown(name)} twice.")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise FormatError(
                f"{path}: the archive holds {shown(name)}, a path that leads elsewhere, as no "
                "torch file's does; nothing was unpacked. Get the file from a source that "
                "you trust."
            )
        found[name] = member
    return found


class _Limited(io.RawIOBase):
    """A stream of which no more than so many bytes are read at a time: zipfile reads a directory
    whole, however long it is said to be."""

    def __init__(self, path: Path, stream: BinaryIO, limit: int) -> None:
        self._path, self._stream, self._limit = path, stream, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        content, most = bytearray(), self._limit + 1 if size < 0 else min(size, self._limit + 1)
        # a stream takes as much memory as it is asked for, however little there is
        while piece := self._stream.read(min(most - len(content), _PIECE)):
            content += piece
        if len(content) > self._limit:
            raise DamagedError(
                f"{self._path}: the archive's directory has over {self._limit:,} bytes, more than "
                "that of any checkpoint."
            )
        return bytes(content)


class _Window(io.RawIOBase):
    """Bytes of a stream as a stream of their own."""

    def __init__(self, stream: Stream, first: int, size: int) -> None:
        self._stream, self._first, self._size, self._at = stream, first, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise ValueError(f"byte {at} isn't in any file")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._stream.seek(self._first + self._at)
        count = self._stream.readinto(view) if view.nbytes else 0
        self._at += count
        return count


def _root(path: Path, names: Mapping[str, Any]) -> str:
    roots = [name.removesuffix(_PICKLE) for name in names if name.endswith(f"/{_PICKLE}")]
    if len(roots) != 1:
        raise FormatError(
            f"{path}: is a zip archive with {len(roots)} members data.pkl, expected the one of a "
            f"torch file; it holds {', '.join(map(shown, [*names][:3]))}. Unpack it, and name what "
            "it holds."
        )
    if any(name in names for name in (f"{roots[0]}constants.pkl", f"{roots[0]}code/")):
        raise FormatError(
            f"{path}: is a TorchScript program. Save the tensors of its state_dict instead."
        )
    return roots[0]


def _place(path: Path, stream: BinaryIO, member: zipfile.ZipInfo, size: int) -> Member:
    """Where the bytes of a member lie, which the local header tells: its extra field is longer than
    that of the directory."""
    what = f"{path}: the member {shown(member.filename)}"
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise FormatError(
            f"{what} is compressed, as no torch file is; unpack it, and pack it without "
            "compression."
        )
    if member.flag_bits & 1:
        raise FormatError(f"{what} is encrypted; decrypt it, and pack it again without.")
    header = _bytes(stream, Member(member.header_offset, _LOCAL))
    if len(header) < _LOCAL or header[:4] != b"PK\x03\x04":
        raise DamagedError(f"{what} has no local header at byte {member.header_offset}; damaged.")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    found = Member(member.header_offset + _LOCAL + name + extra, member.file_size)
    if found.offset + found.length > size:
        raise DamagedError(
            f"{what} should end at byte {found.offset + found.length} but the file has {size}; "
            "truncated."
        )
    return found


def _bytes(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.offset)
    return stream.read(member.length)


def _check_order(path: Path, stream: BinaryIO, member: zipfile.ZipInfo | None, size: int) -> None:
    if member is None:
        return
    place = _place(path, stream, member, size)
    order = _bytes(stream, Member(place.offset, min(place.length, _ORDER)))
    if order.strip() != b"little":
        raise FormatError(
            f"{path}: its byte order is {shown(order.decode('latin-1'))}, and only 'little' is "
            "read; save the tensors again on a machine that is."
        )


def _refuse_overlaps(path: Path, members: dict[str, Member]) -> None:
    end, before = 0, ""
    for name, member in sorted(members.items(), key=lambda item: (item[1].offset, item[1].length)):
        if member.length and member.offset < end:
            raise DamagedError(f"{path}: the members {shown(before)} and {shown(name)} overlap.")
        if member.length:
            end, before = member.offset + member.length, name
