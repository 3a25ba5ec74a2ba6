"""Hashes of tensors in files: XXH3 (128 bits) of blocks, and of the blocks' digests, so that any
worker can do any block.

A tensor's hash is `xxh3_128(digest of block 0 + digest of block 1 + …)` in hexadecimal; blocks are
8 MiB of the tensor's bytes as they are stored (row-major, little-endian), the last one shorter; a
tensor without bytes has no blocks. A file is hashed as one tensor of all its bytes; of a source
that isn't read whole only the blocks that something is read of are hashed, with the first and the
last, where formats have what says what lies where.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import xxhash

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import OutputError
from ckptforge.formats.index import FileIndex
from ckptforge.planning.plan import Plan
from ckptforge.run.buffers import PIECE_BYTES
from ckptforge.run.worker import Worker
from ckptforge.storage.files import read_pieces
from ckptforge.storage.store import HashingReader, OrderedWriter
from ckptforge.values import Extent, Located, Stored

_SHORTLY = 0.002  # seconds
BLOCK_BYTES = 8 * 1024 * 1024
Hashes = dict[Path, dict[str, str]]  # file → tensor name → hash


class Block(msgspec.Struct, frozen=True):
    """A run of a tensor's bytes, at most `BLOCK_BYTES` from byte `start`."""

    entry: Located
    start: int
    length: int
    nbytes: int = 0

    def do(self, worker: Worker) -> bytes:
        """Its digest. Raises the errors of reading."""
        path, files = self.entry.path, worker.files
        buffer = worker.buffers.lend((PIECE_BYTES, self.entry.file_offset(self.start)))[0].data
        reader = files.targets.get(path) or files.source(path)
        if isinstance(reader, HashingReader):
            first = self.entry.file_offset(self.start)
            while (known := reader.digest(first, self.length)) is None:
                if not isinstance(reader, OrderedWriter):
                    break
                if files.stop.wait(_SHORTLY):  # until what lies before it is written
                    raise OutputError(f"{path}: wasn't written to its end.")
            if known is not None:
                return known
        state = xxhash.xxh3_128()
        for offset, length in self.entry.file_ranges(self.start, self.length):
            for piece in read_pieces(reader, offset, length, buffer, path):
                state.update(piece)
        return state.digest()


def blocks_of(entry: Located, counted: bool = False) -> Iterator[Block]:
    """The blocks of a tensor; their bytes count as progress where they are `counted`."""
    for start in range(0, entry.nbytes, BLOCK_BYTES):
        length = min(BLOCK_BYTES, entry.nbytes - start)
        yield Block(entry, start, length, length if counted else 0)


def source_blocks(plan: Plan, source: FileIndex) -> Iterator[Block]:
    """The blocks of a source that are hashed."""
    ranges = plan.read.get(source.path)
    if ranges is None:
        yield from blocks_of(whole_file(source))
        return
    ends = [end for _, end in ranges]
    for block in blocks_of(whole_file(source)):
        stop = block.start + block.length
        i = bisect_right(ends, block.start)
        read = i < len(ranges) and ranges[i][0] < stop
        if read or block.start == 0 or stop == source.size:
            yield block


def block_count(entry: Located) -> int:
    """How many blocks a tensor has."""
    return -(-entry.nbytes // BLOCK_BYTES)


def whole_file(file: FileIndex) -> Stored:
    """A file's bytes as one tensor, so that files are hashed as tensors are."""
    extents = (Extent(0, 0, file.size),)
    return Stored(
        path=file.path, name="", dtype=BY_NAME["uint8"], shape=(file.size,), extents=extents
    )


def hash_of(digests: Mapping[int, bytes]) -> str:
    """A tensor's hash from the digests of its blocks, by their first bytes."""
    return xxhash.xxh3_128(b"".join(digests[start] for start in sorted(digests))).hexdigest()
