"""Bytes that go over as they are: by the kernel where it can, else through a buffer."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from ckptforge.planning.assembly import Assembly
from ckptforge.run.buffers import LINE, PIECE_BYTES, copy_runs, slow_to_copy
from ckptforge.run.worker import Worker
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.values import Place, Stored

_MOVE_BYTES = 8 * 1024 * 1024


class Move(msgspec.Struct, frozen=True):
    """One run of bytes, from an offset of the source's file to one of the target's."""

    source: Stored
    source_at: int
    place: Place
    place_at: int
    nbytes: int

    def do(self, worker: Worker) -> None:
        """Copies them. Where the kernel would be slow, they are shifted here. Raises `FormatError`
        for the source and `OutputError` for the target."""
        files, path = worker.files, self.place.path
        reader, writer = files.source(self.source.path), files.targets[path]
        kernel = not slow_to_copy(self.source_at, self.place_at)
        shifting = slow_to_copy(self.source_at, self.place_at, LINE)
        done = 0
        while done < self.nbytes:
            source_at, place_at = self.source_at + done, self.place_at + done
            left, count = self.nbytes - done, 0
            # On errors, and at the end of the source: reading and writing say what is wrong, and
            # with which file.
            if kernel:
                with files.turns[path], suppress(OSError):
                    count = writer.copy_from(reader, source_at, place_at, left)
                kernel = count > 0
            if not count:
                count = min(left, PIECE_BYTES - place_at % PIECE_BYTES)
                read, shifted = worker.buffers.lend((count, source_at), (count, place_at))
                read_exactly(reader, source_at, read.data, self.source.path)
                if shifting:
                    copy_runs(read, shifted)
                with files.turns[path]:
                    write_exactly(writer, place_at, (shifted if shifting else read).data, path)
            done += count
        writer.begin_sync(self.place_at, self.nbytes)


def moves_of(assembly: Assembly) -> list[Move]:
    """The moves that make up an assembly; none where something is to be done with its numbers."""
    place, itemsize = assembly.place, assembly.place.dtype.itemsize
    if assembly.summed or assembly.terms[0].fill is not None:
        return []
    found = []
    for fragment in assembly.terms[0].fragments:
        stored, transfer = fragment.stored, fragment.transfer.coalesced()
        if stored.dtype != place.dtype or fragment.steps or not transfer.is_move:
            return []
        to = transfer.target * itemsize
        for source_at, n in stored.file_ranges(
            transfer.source * itemsize, transfer.size * itemsize
        ):
            for place_at, m in place.file_ranges(to, n):
                for done in range(0, m, _MOVE_BYTES):
                    count = min(_MOVE_BYTES, m - done)
                    found.append(Move(stored, source_at + done, place, place_at + done, count))
                source_at += m
            to += n
    return found
