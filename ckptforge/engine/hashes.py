"""Hashes of tensors in files: XXH3 (128 bits) of blocks, and of the blocks' digests, so that any worker can do any block.

A tensor's hash is `xxh3_128(digest of block 0 + digest of block 1 + …)` in hexadecimal; blocks are 8 MiB of the tensor's bytes
as they are stored (row-major, little-endian), the last one shorter; a tensor without bytes has no blocks.
A file is hashed as one tensor of all its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from ckptforge.dtypes import BY_NAME
from ckptforge.engine.stream import Budget, Descriptors, Progress, Worker, run_workers
from ckptforge.formats.entry import Extent, FileIndex, TensorEntry, read_range

BLOCK_BYTES = 8 * 1024 * 1024
_READ_BYTES = 1024 * 1024
Hashes = dict[Path, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Block:
    """A run of a tensor's bytes, at most `BLOCK_BYTES` from byte `start`; `file` is the path that the tensor is known under."""

    file: Path
    entry: TensorEntry
    start: int
    length: int


def tensor_hashes(
    files: Mapping[Path, Iterable[TensorEntry]], budget: Budget, opened: Mapping[Path, int] | None = None, progress: Progress | None = None
) -> Hashes:
    """File → tensor name → hash. `opened` are descriptors of files that are open already, by the path in their entries.

    Raises the errors of reading.
    """
    entries = {file: list(held) for file, held in files.items()}
    descriptors = Descriptors({}, dict(opened or {}))
    total = sum(entry.nbytes for held in entries.values() for entry in held)
    digests: dict[tuple[Path, str], dict[int, bytes]] = {(file, entry.name): {} for file, held in entries.items() for entry in held}
    try:
        workers = [_Hasher(descriptors, budget) for _ in range(budget.workers)]
        for worker in run_workers(_blocks(entries), workers, progress, total):
            for (file, name, start), digest in worker.digests.items():
                digests[file, name][start] = digest
    finally:
        descriptors.close(keep=opened or {})
    found: Hashes = {file: {} for file in entries}
    for (file, name), blocks in digests.items():
        found[file][name] = xxhash.xxh3_128(b"".join(blocks[start] for start in sorted(blocks))).hexdigest()
    return found


def whole_file(file: FileIndex) -> TensorEntry:
    """A file's bytes as one tensor, so that files are hashed as tensors are."""
    return TensorEntry("", BY_NAME["uint8"], (file.size,), file.path, (Extent(0, 0, file.size),))


def _blocks(entries: Mapping[Path, list[TensorEntry]]) -> Iterator[Block]:
    for file, held in entries.items():
        for entry in held:
            for start in range(0, entry.nbytes, BLOCK_BYTES):
                yield Block(file, entry, start, min(BLOCK_BYTES, entry.nbytes - start))


@dataclass
class _Hasher(Worker):
    digests: dict[tuple[Path, str, int], bytes] = field(default_factory=dict)

    def do(self, task: object) -> int:
        assert isinstance(task, Block)
        fd = self.descriptors.source(task.entry.path)
        state = xxhash.xxh3_128()
        piece = self.buffers(min(_READ_BYTES, self.budget.bytes_each))[0].data
        for at in range(task.start, task.start + task.length, len(piece)):
            part = piece[: min(len(piece), task.start + task.length - at)]
            read_range(task.entry, at, part, fd)
            state.update(part)
        self.digests[task.file, task.entry.name, task.start] = state.digest()
        return task.length
