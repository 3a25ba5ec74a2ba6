"""What a worker does at a time for a plan, beside moves: tiles that are put together, checksums
that are compared or written."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import Seal
from ckptforge.planning.assembly import Assembly
from ckptforge.run.audit import Audit
from ckptforge.run.bands import encoded_tiles, stored_tile
from ckptforge.run.budget import Budget
from ckptforge.run.forms import Sources, best_form
from ckptforge.run.moves import Move, moves_of
from ckptforge.run.passing import BLOCK_BYTES, Digests, Passing
from ckptforge.run.pieces import MANY_CALLS, PIECE_BYTES, SUMS
from ckptforge.run.source_hashes import SourceRun
from ckptforge.run.tiles import Tile, inside, tiles
from ckptforge.run.together import Together, together
from ckptforge.storage.files import read_pieces, write_exactly
from ckptforge.storage.store import HashingReader
from ckptforge.values import Place

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker

Audits = dict[Place, Audit]


class Fill(msgspec.Struct, frozen=True):
    """A tile of output tensors that are made together, most often of one alone, to be put together
    from its sources."""

    assemblies: Together
    tile: Tile

    @property
    def place(self) -> Place:
        """Where the first of the tensors will lie."""
        return self.assemblies[0].place

    @property
    def writes(self) -> tuple[tuple[Place, int], ...]:
        """The tensors that it is written to, and how many bytes to each."""
        return tuple(
            (one.place, self.stored(one).elements * one.place.dtype.itemsize)
            for one in self.assemblies
        )

    @property
    def nbytes(self) -> int:
        """The bytes of the tile."""
        return sum(nbytes for _, nbytes in self.writes)

    def stored(self, assembly: Assembly) -> Tile:
        """The window of one of the tensors in its file: where it is made of codes, what those of
        the tile's numbers fill."""
        encoding = assembly.encoding
        return self.tile if encoding is None else stored_tile(encoding, self.tile)

    @property
    def reads(self) -> Iterator[SourceRun]:
        """The bytes of stored tensors that the tile is made of, each from the first to the last."""
        for fragment in self.assemblies[0].fragments:
            stored = fragment.stored
            for part in inside(fragment.transfer, self.tile):
                first, length = stored.bytes_of(part.source, part.last_source + 1 - part.source)
                yield stored, (first, first + length)

    @property
    def end(self) -> int:
        """The byte of the first tensor after the last of the tile."""
        tile = self.stored(self.assemblies[0])
        return ((tile.r1 - 1) * tile.width + tile.c1) * self.place.dtype.itemsize

    def do(self, worker: Worker) -> Audits:
        """Makes it and writes it. Returns the counts of its casts, without those of replicas."""
        assembler = worker.assembler
        assembler.audit = Audit()
        windows = list(map(self.stored, self.assemblies))
        if self.assemblies[0].encoding is None:
            made = [(assembler.assemble(self.assemblies[0], self.tile), assembler.audit)]
        else:
            made = assembler.encode(self.assemblies, self.tile, windows)
        audits: Audits = {}
        for one, window, (raw, audit) in zip(self.assemblies, windows, made, strict=True):
            _write(worker, one.place, window, raw.data)
            if not one.replica:
                audits[one.place] = audit
        return audits


def _write(worker: Worker, place: Place, tile: Tile, view: memoryview) -> None:
    """Writes a window of a tensor."""
    writer, itemsize = worker.files.targets[place.path], place.dtype.itemsize
    if worker.passing is not None and tile.run_count == 1:
        worker.passing.feed(place, next(tile.runs())[0] * itemsize, view)
    at, files = 0, worker.files
    with files.many_calls if tile.run_count > MANY_CALLS else files.turns[place.path]:
        for first, count in tile.runs():
            for offset, length in place.file_ranges(first * itemsize, count * itemsize):
                write_exactly(writer, offset, view[at : at + length], place.path)
                at += length
    if tile.c1 == tile.width:  # the last of its rows
        start, rows = tile.r0 * tile.width, tile.r1 - tile.r0
        whole = place.file_ranges(start * itemsize, rows * tile.width * itemsize)
        for offset, length in whole:
            writer.begin_sync(offset, length)


class Batch(msgspec.Struct, frozen=True):
    """Moves and tiles that one worker makes one after the other, so that what goes on in the next
    is hashed with what came before. `needs` are far tensors that this or the next begins to read,
    `held` what tiles of the two read, as others may read it, too."""

    parts: tuple[Move | Fill, ...]
    hashing: bool
    needs: tuple[SourceRun, ...] = ()
    held: tuple[SourceRun, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes that it writes."""
        return sum(part.nbytes for part in self.parts)

    def do(self, worker: Worker) -> tuple[list[Audits | None], Digests]:
        """Makes them, until all workers are to stop. Returns what each did, and the digests of the
        blocks that came by whole."""
        worker.passing = Passing() if self.hashing else None
        for reader, offset, length in _far_ranges(self.needs, worker):
            reader.begin_only(offset, length)
        holding = ExitStack()
        for reader, offset, length in _far_ranges(self.held, worker):
            holding.enter_context(reader.holding(offset, length))
        try:
            done: list[Audits | None] = []
            for part, coming in zip_longest(self.parts, self.parts[1:]):
                if worker.files.stop.is_set():
                    break
                if isinstance(coming, Move):
                    coming.announce(worker)
                done.append(part.do(worker))
            return done, worker.passing.digests if worker.passing is not None else {}
        finally:
            worker.passing = None
            holding.close()


def _far_ranges(
    runs: Iterable[SourceRun], worker: Worker
) -> Iterator[tuple[HashingReader, int, int]]:
    """(reader, first byte, how many) of what is far."""
    for stored, (first, end) in runs:
        reader = worker.files.source(stored.path)
        if isinstance(reader, HashingReader):
            for offset, length in stored.file_ranges(first, end - first):
                yield reader, offset, length


class Verify(msgspec.Struct, frozen=True):
    """A source file whose stored checksum is to be compared with its contents."""

    file: FileIndex
    nbytes: int = 0

    def do(self, worker: Worker) -> None:
        """Reads it. Raises `FormatError` where they differ."""
        buffer = worker.lend(PIECE_BYTES)
        self.file.verify(buffer, worker.files.stop.is_set)


class Sealing(msgspec.Struct, frozen=True):
    """A checksum that a written file holds of its own bytes."""

    path: Path
    seal: Seal
    nbytes: int = 0

    def do(self, worker: Worker) -> None:
        """Computes it and writes it. Raises the errors of reading and writing."""
        buffer = worker.lend(PIECE_BYTES)
        writer, seal, crc = worker.files.targets[self.path], self.seal, 0
        for piece in read_pieces(writer, seal.start, seal.length, buffer, self.path):
            crc = zlib.crc32(piece, crc)
        with worker.files.turns[self.path]:
            for at in seal.at:
                write_exactly(writer, at, crc.to_bytes(4, "little"), self.path)


def tasks_of(assemblies: Iterable[Assembly], budget: Budget) -> Iterator[Move | Fill]:
    """Assemblies cut into tiles, or into moves where bytes go over as they are. Those that follow
    each other and can be are made together, but for files that are written from front to back,
    where one would have to be held until the other is written."""
    found = ((one,) for one in assemblies) if budget.in_order else together(assemblies)
    for group in found:
        first = group[0]
        yield from moves_of(first) or (Fill(group, one) for one in tiles_of(budget, first))


def batches(tasks: Iterable[Move | Fill], nbytes: int, hashing: bool) -> Iterator[Batch]:
    """Tasks in batches of about so many bytes, at most twice as many. With `hashing` they end with
    a tensor, or at least with a block, as what is cut must be read again to be hashed."""
    held: list[Move | Fill] = []
    beyond = -nbytes
    for task in tasks:
        held.append(task)
        beyond += task.nbytes
        if beyond >= 0 and (not hashing or _may_end(task, beyond / nbytes)):
            yield Batch(tuple(held), hashing)
            held, beyond = [], -nbytes
    if held:
        yield Batch(tuple(held), hashing)


def _may_end(task: Move | Fill, beyond: float) -> bool:
    """Whether a batch may end with a task, so far beyond its size, counted in sizes."""
    if beyond >= 1 or task.end == task.place.nbytes:
        return True
    return beyond >= 0.5 and task.end % BLOCK_BYTES == 0


def tiles_of(budget: Budget, *assemblies: Assembly) -> Iterator[Tile]:
    """The tiles in which tensors of one shape are made side by side."""
    if assemblies[0].encoding is not None:
        yield from encoded_tiles(budget, assemblies[0])
        return
    place = max((one.place for one in assemblies), key=lambda place: place.dtype.itemsize)
    if not place.elements:
        return
    terms = [term for one in assemblies for term in one.terms]
    fragments = [fragment for term in terms for fragment in term.fragments]
    sources = Sources.of(fragments)
    joined = (transfer.coalesced() for transfer in sources.transfers)
    turned = any(transfer.shape and transfer.source_strides[-1] != 1 for transfer in joined)
    sums = 2 * SUMS.itemsize * any(one.summed for one in assemblies)
    limit = budget.tile_elements(place.dtype, turned, sums)
    form = best_form(place.elements, place.dtype.itemsize, sources, limit, budget.in_order)
    yield from tiles(place.elements, *form)
