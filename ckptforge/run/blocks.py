"""Hashes of tensors in files: XXH3 (128 bits) of blocks, and of the blocks' digests, so that any
worker can do any block.

A tensor's hash is `xxh3_128(digest of block 0 + digest of block 1 + …)` in hexadecimal; blocks are
8 MiB of the tensor's bytes as they are stored (row-major, little-endian), the last one shorter; a
tensor without bytes has no blocks. A source's hash is made in the same way of the blocks of its
tensors and of those of all bytes that belong to none, taken as one tensor more, in the order of
their first bytes in the file. So a block that goes over as it is has one digest on both sides. A
source at an address is hashed as one tensor of all its bytes. Of a source that isn't read whole
only the blocks that something is read of are hashed, with the first and the last, where formats
have what says what lies where.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import xxhash
from msgspec.structs import replace

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import OutputError, ReadError
from ckptforge.formats.index import FileIndex
from ckptforge.planning.plan import Plan
from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.run.pieces import PIECE_BYTES
from ckptforge.storage.address import address
from ckptforge.storage.files import read_pieces
from ckptforge.storage.store import HashingReader, OrderedWriter
from ckptforge.values import Extent, Located, Stored

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker

_SHORTLY = 0.002  # seconds
Hashes = dict[Path, dict[str, str]]  # file → tensor name → hash


class Block(msgspec.Struct, frozen=True):
    """A run of a tensor's bytes, at most `BLOCK_BYTES` from byte `start`."""

    entry: Located
    start: int
    length: int
    nbytes: int = 0

    @property
    def at(self) -> int:
        """Where its first byte lies in the file."""
        return self.entry.file_offset(self.start)

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """(first byte, end) of each run of the file that it lies in."""
        runs = self.entry.file_ranges(self.start, self.length)
        return ((offset, offset + length) for offset, length in runs)

    def _known(self, reader: HashingReader) -> bytes | None:
        """Its digest by a reader that hashes what it brings. Raises `ReadError`."""
        try:
            return reader.digest(self.at, self.length)
        except OSError as error:
            raise ReadError(
                f"{self.entry.path}: reading at byte {self.at} failed: {error.strerror}."
            ) from error

    def do(self, worker: Worker) -> bytes:
        """Its digest. Raises the errors of reading."""
        path, files = self.entry.path, worker.files
        buffer = worker.lend(PIECE_BYTES)
        reader = files.targets.get(path) or files.source(path)
        if isinstance(reader, HashingReader):
            while (known := self._known(reader)) is None:
                if not isinstance(reader, OrderedWriter):
                    break
                if files.stop.wait(_SHORTLY):  # until what lies before it is written
                    raise OutputError(f"{path}: wasn't written to its end.")
            if known is not None:
                return known
        state = xxhash.xxh3_128()
        if isinstance(reader, HashingReader):
            for offset, length in self.entry.file_ranges(self.start, self.length):
                reader.begin_read(offset, length)
        for offset, length in self.entry.file_ranges(self.start, self.length):
            for piece in read_pieces(reader, offset, length, buffer, path):
                state.update(piece)
        return state.digest()


def blocks_of(entry: Located, counted: bool = False) -> Iterator[Block]:
    """The blocks of a tensor; their bytes count as progress where they are `counted`."""
    for start in range(0, entry.nbytes, BLOCK_BYTES):
        block = block_of(entry, start)
        yield replace(block, nbytes=block.length) if counted else block


def block_of(entry: Located, start: int) -> Block:
    """The block of a tensor that begins at byte `start`."""
    return Block(entry, start, min(BLOCK_BYTES, entry.nbytes - start))


def source_blocks(plan: Plan, source: FileIndex) -> Iterator[Block]:
    """The blocks of a source that are hashed."""
    entries = _hashed_entries(source)
    ranges = plan.read.get(source.path)
    if ranges is None:
        for entry in entries:
            yield from blocks_of(entry)
        return
    ends = [end for _, end in ranges]
    for entry in entries:
        for block in blocks_of(entry):
            for first, stop in block.ranges:
                i = bisect_right(ends, first)
                read = i < len(ranges) and ranges[i][0] < stop
                if read or (not entry.name and (first == 0 or stop == source.size)):
                    yield block
                    break


def _hashed_entries(source: FileIndex) -> Iterator[Located]:
    """The tensors of a source and the rest of it; all of it as one where it is hashed so."""
    if is_hashed_whole(source):
        yield whole_file(source)
        return
    yield from source.tensors.values()
    yield _rest(source, _runs(source))


def is_hashed_whole(source: FileIndex) -> bool:
    """Whether a source is hashed as one tensor: where it is far, or its tensors share bytes."""
    if address(source.path) is not None:
        return True
    return any(a + n > b for (a, n), (b, _) in pairwise(_runs(source)))


def _runs(source: FileIndex) -> list[tuple[int, int]]:
    """(first byte, length) of all that its tensors lie in, in order."""
    return sorted(
        (extent.offset, extent.length)
        for stored in source.tensors.values()
        for extent in stored.extents
        if extent.length
    )


def _rest(source: FileIndex, runs: list[tuple[int, int]]) -> Stored:
    """The bytes of a file outside of runs of (first byte, length), which go up, as one tensor."""
    extents, at, held = [], 0, 0
    for offset, length in (*runs, (source.size, 0)):
        if offset > at:
            extents.append(Extent(held, at, offset - at))
            held += offset - at
        at = max(at, offset + length)
    return _as_bytes(source.path, tuple(extents))


def block_count(entry: Located) -> int:
    """How many blocks a tensor has."""
    return -(-entry.nbytes // BLOCK_BYTES)


def whole_file(file: FileIndex) -> Stored:
    """A file's bytes as one tensor, so that files are hashed as tensors are."""
    return _as_bytes(file.path, (Extent(0, 0, file.size),))


def _as_bytes(path: Path, extents: tuple[Extent, ...]) -> Stored:
    size = sum(extent.length for extent in extents)
    return Stored(path=path, name="", dtype=BY_NAME["uint8"], shape=(size,), extents=extents)


def hash_of(digests: Mapping[int, bytes]) -> str:
    """A hash from the digests of blocks, by their first bytes: in the tensor, or of a source in the
    file."""
    return xxhash.xxh3_128(b"".join(digests[start] for start in sorted(digests))).hexdigest()
