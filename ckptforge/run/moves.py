"""Bytes that go over as they are: by the kernel where it can and nothing is to be hashed, else
through a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from ckptforge.planning.assembly import Assembly
from ckptforge.run.passing import BLOCK_BYTES, is_block
from ckptforge.run.pieces import PIECE_BYTES, between, slow_to_copy
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.storage.machine import PAGE
from ckptforge.storage.store import HashingReader
from ckptforge.values import Place, Stored

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker


class Move(msgspec.Struct, frozen=True):
    """A run of bytes, at most `BLOCK_BYTES` within one block of the target: from byte
    `source_start` of a stored tensor to byte `place_start` of one to be written, which lie at
    `source_at` and `place_at` in their files."""

    source: Stored
    source_start: int
    source_at: int
    place: Place
    place_start: int
    place_at: int
    nbytes: int

    @property
    def writes(self) -> tuple[tuple[Place, int], ...]:
        """The tensor that it is written to, and how many bytes."""
        return ((self.place, self.nbytes),)

    @property
    def end(self) -> int:
        """The byte of the tensor after the last."""
        return self.place_start + self.nbytes

    def do(self, worker: Worker) -> None:
        """Copies them. Raises `FormatError` for the source and `OutputError` for the target."""
        if worker.passing is None:
            done = self._by_kernel(worker)
            self._through_memory(worker, done)
        else:
            self._through_memory(worker, 0)
        worker.files.targets[self.place.path].begin_sync(self.place_at, self.nbytes)

    def announce(self, worker: Worker) -> None:
        """Has the system bring its bytes from the disk. What is far comes ahead anyway."""
        reader = worker.files.source(self.source.path)
        if not isinstance(reader, HashingReader):
            reader.begin_read(self.source_at, self.nbytes)

    def _by_kernel(self, worker: Worker) -> int:
        """Copies as much as the kernel does without being slow; returns how many bytes."""
        files, path, done = worker.files, self.place.path, 0
        reader, writer = files.source(self.source.path), files.targets[path]
        # On errors, and at the end of the source: reading and writing say what is wrong, and
        # with which file.
        while done < self.nbytes and not slow_to_copy(self.source_at, self.place_at):
            source_at, place_at, count = self.source_at + done, self.place_at + done, 0
            with files.turns[path], suppress(OSError):
                count = writer.copy_from(reader, source_at, place_at, self.nbytes - done)
            if not count:
                break
            done += count
        return done

    def _through_memory(self, worker: Worker, done: int) -> None:
        """Copies the bytes from byte `done`, in pieces that stay in a core's cache."""
        files, path, passing = worker.files, self.place.path, worker.passing
        reader, writer = files.source(self.source.path), files.targets[path]
        turn, memory = files.turns[path], worker.lend(PAGE + PIECE_BYTES)
        ahead = between(self.source_at, self.place_at)
        alike = is_block(self.source, self.source_start, self.nbytes) and is_block(
            self.place, self.place_start, self.nbytes
        )
        while done < self.nbytes:
            source_at, place_at = self.source_at + done, self.place_at + done
            count = min(self.nbytes - done, PIECE_BYTES - place_at % PIECE_BYTES)
            start = (source_at + ahead) % PAGE
            piece = memory[start : start + count]
            read_exactly(reader, source_at, piece, self.source.path)
            if passing is not None:
                passing.feed(self.source, self.source_start + done, piece)
                if not alike:
                    passing.feed(self.place, self.place_start + done, piece)
            with turn:
                write_exactly(writer, place_at, piece, path)
            done += count
        if passing is not None and alike:
            passing.same(self.source, self.source_start, self.place, self.place_start)


def moves_of(assembly: Assembly) -> list[Move]:
    """The moves that make up an assembly, in the order of its bytes; none where something is to be
    done with its numbers."""
    place, itemsize = assembly.place, assembly.place.dtype.itemsize
    as_is = assembly.encoding is None and not assembly.summed
    if not as_is or assembly.terms[0].fill is not None:
        return []
    found: list[Move] = []
    for fragment in assembly.terms[0].fragments:
        stored, transfer = fragment.stored, fragment.transfer.coalesced()
        if stored.dtype != place.dtype or fragment.steps or not transfer.is_move:
            return []
        source, target = transfer.source * itemsize, transfer.target * itemsize
        found += _cut(stored, source, place, target, transfer.size * itemsize)
    found.sort(key=lambda move: move.place_start)
    return found


def _cut(stored: Stored, source: int, place: Place, target: int, nbytes: int) -> Iterator[Move]:
    """Moves of so many bytes, cut where they lie apart in their files, and at the target's
    blocks."""
    for source_at, n in stored.file_ranges(source, nbytes):
        for place_at, m in place.file_ranges(target, n):
            done = 0
            while done < m:
                count = min(BLOCK_BYTES - (target + done) % BLOCK_BYTES, m - done)
                starts = source + done, source_at + done, target + done, place_at + done
                yield Move(stored, *starts[:2], place, *starts[2:], count)
                done += count
            source, source_at, target = source + m, source_at + m, target + m
