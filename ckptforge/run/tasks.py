"""What a worker does at a time for a plan: bytes that go over as they are, tiles that are put
together, and files whose checksums are compared."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import Seal
from ckptforge.planning.plan import Assembly
from ckptforge.run.audit import Audit
from ckptforge.run.budget import Budget
from ckptforge.run.buffers import PIECE_BYTES
from ckptforge.run.tiles import Tile, best_form, tiles
from ckptforge.run.worker import MANY_CALLS, Worker
from ckptforge.run.write import move_bytes, paired_ranges
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.values import Place, Stored

_MOVE_BYTES = 8 * 1024 * 1024


class Move(msgspec.Struct, frozen=True):
    """Bytes that go over as they are."""

    source: Stored
    source_at: int
    place: Place
    place_at: int
    nbytes: int

    @property
    def progress(self) -> int:
        """Its bytes."""
        return self.nbytes

    def do(self, worker: Worker) -> None:
        """Copies them, by the kernel where it can."""
        files, path = worker.files, self.place.path
        writer = files.target(path)
        move_bytes(
            self.source,
            files.source(self.source.path),
            self.source_at,
            self.place,
            writer,
            self.place_at,
            self.nbytes,
            worker.buffers,
            files.writing[path],
        )
        writer.begin_sync(self.place_at, self.nbytes)


class Fill(msgspec.Struct, frozen=True):
    """A tile of an output tensor to be put together from its sources."""

    assembly: Assembly
    tile: Tile

    @property
    def place(self) -> Place:
        """Where the tensor will lie."""
        return self.assembly.place

    @property
    def nbytes(self) -> int:
        """The bytes of the tile."""
        return self.tile.elements * self.place.dtype.itemsize

    @property
    def progress(self) -> int:
        """Its bytes."""
        return self.nbytes

    def do(self, worker: Worker) -> Audit:
        """Makes it and writes it. Returns the counts of its casts."""
        worker.audit = Audit()
        view = worker.assemble(self.assembly, self.tile).data
        place, tile, files = self.place, self.tile, worker.files
        writer, itemsize = files.target(place.path), place.dtype.itemsize
        at = 0
        with files.many_calls if tile.run_count > MANY_CALLS else files.writing[place.path]:
            for first, count in tile.runs():
                for offset, length in place.file_ranges(first * itemsize, count * itemsize):
                    write_exactly(writer, offset, view[at : at + length], place.path)
                    at += length
        if tile.c1 == tile.width:  # the last of its rows
            start, rows = tile.r0 * tile.width, tile.r1 - tile.r0
            whole = place.file_ranges(start * itemsize, rows * tile.width * itemsize)
            for offset, length in whole:
                writer.begin_sync(offset, length)
        return worker.audit


class Verify(msgspec.Struct, frozen=True):
    """A source file whose stored checksum is to be compared with its contents."""

    file: FileIndex
    progress: int = 0

    def do(self, worker: Worker) -> None:
        """Reads it. Raises `FormatError` where they differ."""
        buffer = worker.buffers.lend((PIECE_BYTES, 0))[0].data
        self.file.verify(buffer, worker.files.stop.is_set)


class Sealing(msgspec.Struct, frozen=True):
    """A checksum that a written file holds of its own bytes."""

    path: Path
    seal: Seal
    progress: int = 0

    def do(self, worker: Worker) -> None:
        """Computes it and writes it. Raises the errors of reading and writing."""
        buffer = worker.buffers.lend((PIECE_BYTES, 0))[0].data
        writer, start = worker.files.target(self.path), self.seal.start
        crc, end = 0, start + self.seal.length
        for at in range(start, end, len(buffer)):
            piece = buffer[: min(len(buffer), end - at)]
            read_exactly(writer, at, piece, self.path)
            crc = zlib.crc32(piece, crc)
        with worker.files.writing[self.path]:
            for at in self.seal.at:
                write_exactly(writer, at, crc.to_bytes(4, "little"), self.path)


def tasks_of(assemblies: Iterable[Assembly], budget: Budget) -> Iterator[Move | Fill]:
    """Assemblies cut into tiles, or into moves where bytes go over as they are."""
    for assembly in assemblies:
        yield from _moves(assembly) or (Fill(assembly, tile) for tile in tiles_of(budget, assembly))


def tiles_of(budget: Budget, *assemblies: Assembly) -> Iterator[Tile]:
    """The tiles in which tensors of one shape are made side by side."""
    place = max((one.place for one in assemblies), key=lambda place: place.dtype.itemsize)
    if not place.elements:
        return
    terms = [term for one in assemblies for term in one.terms]
    transfers = tuple([fragment.transfer for term in terms for fragment in term.fragments])
    joined = (transfer.coalesced() for transfer in transfers)
    turned = any(transfer.shape and transfer.source_strides[-1] != 1 for transfer in joined)
    sums = max(2 * one.computing.itemsize if one.summed else 0 for one in assemblies)
    limit = budget.tile_elements(place.dtype, turned, sums)
    form = best_form(place.elements, place.dtype.itemsize, transfers, limit)
    yield from tiles(place.elements, *form)


def _moves(assembly: Assembly) -> list[Move]:
    """The moves that make up an assembly; none where something is to be done with its numbers."""
    place = assembly.place
    itemsize = place.dtype.itemsize
    if assembly.summed or assembly.terms[0].fill is not None:
        return []
    found = []
    for fragment in assembly.terms[0].fragments:
        stored, transfer = fragment.stored, fragment.transfer.coalesced()
        if stored.dtype != place.dtype or fragment.steps or not transfer.is_move:
            return []
        start, to = transfer.source * itemsize, transfer.target * itemsize
        for source_at, place_at, length in paired_ranges(
            stored, start, place, to, transfer.size * itemsize
        ):
            for done in range(0, length, _MOVE_BYTES):
                count = min(_MOVE_BYTES, length - done)
                found.append(Move(stored, source_at + done, place, place_at + done, count))
    return found
