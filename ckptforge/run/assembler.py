"""How a worker makes a tile of a tensor: what of it needs numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import PlanError
from ckptforge.planning.assembly import Assembly
from ckptforge.run.audit import Audit, CastCount
from ckptforge.run.bands import flat, numbers_dtype
from ckptforge.run.buffers import Buffers, copy_runs
from ckptforge.run.casts import cast_function, numpy_dtype, rounding
from ckptforge.run.pieces import MANY_CALLS, PIECE_BYTES, SUMS, slow_to_copy
from ckptforge.run.spans import Spans, cost_of, spans_of, strips, windows
from ckptforge.run.tiles import Tile, inside
from ckptforge.run.transpose import copy_strided
from ckptforge.run.unpacking import packed_bytes, read_unpacked, unpacked
from ckptforge.run.worker import Worker
from ckptforge.storage.files import read_range, read_spans
from ckptforge.transfers import Transfer
from ckptforge.values import Decoder, Fragment, Prepared, Step, Stored, Term, Window

Array = NDArray[Any]
Note = Callable[[DType, DType, CastCount], None]  # what a cast from one dtype to another did
_FLOAT32 = BY_NAME["float32"]


class Assembler:
    """Makes tiles in buffers of its own, made once. `audit` counts the casts since it was last
    set."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._files, self._budget = worker, worker.files, worker.budget
        self.audit = Audit()
        self._buffers = Buffers()  # of a tile
        self._other_buffers = Buffers()  # of a second tile, where two are compared
        self._strip_buffers = Buffers()
        self._prepared: dict[int, tuple[int, Prepared]] = {}  # steps, with their bytes

    def assemble(self, assembly: Assembly, tile: Tile, other: bool = False) -> Array:
        """The bytes of a tile put together. They are the assembler's until it makes another one, in
        its `other` buffers or not."""
        dtype, kind = assembly.place.dtype, assembly.kind
        buffers = self._other_buffers if other else self._buffers
        wanted = (tile.elements * dtype.itemsize, _offset(assembly, tile))
        if not assembly.summed:
            (made,) = buffers.lend(wanted)
            note = partial(self.audit.add, kind)
            self._fill(assembly, assembly.terms[0], tile, dtype, as_numbers(made, dtype), note)
            return made
        made, *sums = buffers.lend(wanted, *2 * [(tile.elements * SUMS.itemsize, 0)])
        total = self._sum(assembly, tile, *(as_numbers(raw, SUMS) for raw in sums))
        count = rounding(dtype)(total, as_numbers(made, dtype))
        if dtype.itemsize > 2:
            count.values = count.overflowed
        if count.values:
            self.audit.add(kind, SUMS if dtype.itemsize > 2 else _FLOAT32, dtype, count)
        return made

    def encode(
        self, assemblies: Sequence[Assembly], tile: Tile, stored: Sequence[Tile]
    ) -> list[tuple[Array, Audit]]:
        """The bytes of the `stored` tiles that the numbers of a tile, of whole blocks, are encoded
        as for each of some assemblies that are made together, and what that did to the numbers.
        They are the assembler's until it makes another one."""
        assembly = assemblies[0]
        encodings = [one.encoding for one in assemblies if one.encoding is not None]
        encoding, size = encodings[0], tile.elements
        dtype = numbers_dtype(assembly)
        sums = assembly.summed * size * SUMS.itemsize
        plain, *lent = self._buffers.lend(
            (size * dtype.itemsize, 0),
            (sums, 0),
            (sums, 0),
            *(
                (window.elements * one.place.dtype.itemsize, _offset(one, window))
                for one, window in zip(assemblies, stored, strict=True)
            ),
        )
        summed, made = lent[:2], lent[2:]
        numbers = as_numbers(plain, dtype)
        window = flat(tile, encoding.shape, list(assembly.fragments))
        if assembly.summed:
            total = self._sum(assembly, window, *(as_numbers(raw, SUMS) for raw in summed))
            rounding(_FLOAT32)(total, numbers)
        else:
            terms = assembly.terms
            self._fill(assembly, terms[0], window, dtype, numbers, lambda *cast: None)
        matrix = numbers.reshape(-1, tile.columns)
        into = list(zip(encodings, made, strict=True))
        audits = [Audit() for _ in made]
        for audit, count in zip(
            audits, encoding.encode(matrix, assembly.place.name, into), strict=True
        ):
            if count is not None:
                audit.add(assembly.kind, encoding.source, encoding.made, count)
        return list(zip(made, audits, strict=True))

    def _sum(self, assembly: Assembly, tile: Tile, total: Array, part: Array) -> Array:
        """The terms added up in float64, in their order, to be rounded once."""
        for i, term in enumerate(assembly.terms):
            made = part if i else total
            self._fill(assembly, term, tile, SUMS, made, lambda *cast: None)
            with np.errstate(all="ignore"):
                if term.weight != 1:
                    made *= term.weight
                if i:
                    total += part
        return total

    def _fill(
        self, assembly: Assembly, term: Term, tile: Tile, dtype: DType, out: Array, note: Note
    ) -> None:
        """Makes a tile of one term in `out`, of this dtype."""
        if term.fill is not None:
            out.view(np.uint8)[:] = 0
            if term.fill:
                out.view(numpy_dtype(dtype))[:] = term.fill
        left = tile.elements
        for fragment in term.fragments:
            stored = fragment.stored
            for part in inside(fragment.transfer, tile):
                computes = fragment.steps and self._decoder(fragment, part, dtype) is None
                computed = fragment.dtype if computes else None
                limit = self._budget.strip_elements(stored.dtype, dtype, computed)
                left -= part.size
                for strip in strips(part, limit, cost_of(fragment)):
                    self._gather(fragment, strip.coalesced(), dtype, out, note)
        if left and term.fill is None:
            raise PlanError(
                f"{assembly.place.name}: {left} elements of {tile} aren't filled; this is a "
                "defect of ckptforge, please report it."
            )

    def _gather(
        self, fragment: Fragment, part: Transfer, target: DType, out: Array, note: Note
    ) -> None:
        """Reads one part of a tile, casts it and puts it in its place."""
        stored, itemsize, dtype = fragment.stored, fragment.stored.dtype.itemsize, fragment.dtype
        cast, (start, _) = dtype != target, stored.bytes_of(part.source, 1)
        if part.is_move and not cast and not fragment.steps:
            self._read_run(stored, start, out[part.target : part.target + part.size].view(np.uint8))
            return
        spans, decoder = spans_of(part, cost_of(fragment)), self._decoder(fragment, part, target)
        computes = bool(fragment.steps) and decoder is None
        read, computed, dense, made, packed_read = self._strip_buffers.lend(
            (spans.elements * itemsize, stored.file_offset(start)),
            (computes * spans.elements * dtype.itemsize, 0),
            ((decoder is None and cast) * part.size * dtype.itemsize, 0),
            (cast * part.size * target.itemsize, 0),
            (spans.count * packed_bytes(stored, spans.length), 0),
        )
        self._read(stored, part, spans, read, packed_read)
        packed = Transfer(part.shape, 0, spans.strides, part.target, part.target_strides)
        numbers = as_numbers(read, stored.dtype)
        if computes:
            made_of_steps = as_numbers(computed, dtype)
            numbers = self._compute(fragment, part, spans, numbers, made_of_steps, note)
        if cast:
            if spans.elements != part.size:  # gaps are neither cast nor counted
                strides, gapped = _without_gaps(packed), numbers
                numbers = as_numbers(dense, dtype)
                without = replace(packed, target=0, target_strides=strides)
                copy_strided(gapped, numbers, without.coalesced())
                packed = replace(packed, source_strides=strides)
            packed = packed.coalesced()
            place = as_numbers(made, target)
            if packed.is_move:
                place = out[packed.target : packed.target + packed.size]
            if decoder is None:
                note(dtype, target, cast_function(dtype, target)(numbers, place))
            else:
                found = _windows(stored, part, spans)
                note(dtype, target, decoder.decode(numbers, found, target, place))
            if packed.is_move:
                return
            numbers = place
        copy_strided(numbers, out, packed.coalesced())

    def _decoder(self, fragment: Fragment, part: Transfer, target: DType) -> Decoder | None:
        """A fragment's one step, where it makes numbers of this dtype of codes at once, and a part
        of it is read without gaps."""
        if len(fragment.steps) != 1 or fragment.dtype == target:
            return None
        if spans_of(part, cost_of(fragment)).elements != part.size:
            return None
        prepared = self._prepare(fragment.steps[0], fragment.stored)
        return prepared if isinstance(prepared, Decoder) and prepared.decodes(target) else None

    def _read_run(self, stored: Stored, start: int, into: Array) -> None:
        """Reads one run of bytes to its place, where that is slow by way of a buffer."""
        reader = self._files.source(stored.path)
        if not slow_to_copy(stored.file_offset(start), into.ctypes.data):
            read_range(stored, start, into.data, reader)
            if self._worker.passing is not None:
                self._worker.passing.feed(stored, start, into.data)
            return
        for at in range(0, len(into), PIECE_BYTES):
            piece = into[at : at + PIECE_BYTES]
            (read,) = self._strip_buffers.lend((len(piece), stored.file_offset(start + at)))
            read_range(stored, start + at, read.data, reader)
            if self._worker.passing is not None:
                self._worker.passing.feed(stored, start + at, read.data)
            copy_runs(read, piece)

    def _read(
        self, stored: Stored, part: Transfer, spans: Spans, into: Array, packed: Array
    ) -> None:
        itemsize = stored.dtype.itemsize
        reader = self._files.source(stored.path)
        with self._files.many_calls if spans.count > MANY_CALLS else nullcontext():
            firsts = (part.source + start for start in spans.starts())
            if stored.dtype.per_byte > 1:
                read_unpacked(stored, list(firsts), spans.length, into, packed, reader)
                return
            starts = (first * itemsize for first in firsts)
            read_spans(stored, starts, spans.length * itemsize, into.data, reader)
        if self._worker.passing is not None and spans.count == 1:
            self._worker.passing.feed(stored, part.source * itemsize, into.data)

    def _compute(
        self,
        fragment: Fragment,
        part: Transfer,
        spans: Spans,
        numbers: Array,
        out: Array,
        note: Note,
    ) -> Array:
        """What was read of a tensor after its steps, in the dtype that they give."""
        stored = fragment.stored
        cast_function(stored.dtype, fragment.dtype)(numbers, out)
        found = _windows(stored, part, spans)
        for step in fragment.steps:
            if undefined := self._prepare(step, stored).apply(out, found):
                note(stored.dtype, fragment.dtype, CastCount(undefined, undefined=undefined))
        return out

    def _prepare(self, step: Step, stored: Stored) -> Prepared:
        """A step ready to be applied, kept as long as there is room."""
        key, nbytes, kept = id(step), step.memory(stored), self._prepared  # the plan holds the step
        if key not in kept:
            while kept and sum(size for size, _ in kept.values()) + nbytes > self._budget.cached:
                del kept[next(iter(kept))]
            kept[key] = nbytes, step.prepare(stored, self.read_whole)
        return kept[key][1]

    def read_whole(self, stored: Stored, dtype: DType | None) -> Array:
        """A small tensor, cast to a floating-point dtype unless that is None."""
        raw = np.empty(stored.nbytes, np.uint8)
        read_range(stored, 0, raw.data, self._files.source(stored.path))
        if stored.dtype.per_byte > 1:
            raw = unpacked(raw)[: stored.elements]
        numbers = raw.view(numpy_dtype(stored.dtype))
        if dtype is not None and dtype != stored.dtype:
            cast = np.empty(numbers.size, numpy_dtype(dtype))
            cast_function(stored.dtype, dtype)(numbers, cast)
            numbers = cast
        return numbers.reshape(stored.shape)


def _windows(stored: Stored, part: Transfer, spans: Spans) -> list[Window]:
    """The windows of a tensor that lie in the spans of a part of it."""
    return list(windows(part.source, spans, stored.shape[-1] if stored.shape else 1))


def _offset(assembly: Assembly, tile: Tile) -> int:
    """Where the first byte of a tile lies in its file, or, of a tensor in memory, in the file that
    it comes from."""
    place, start = assembly.place, next(tile.runs())[0]
    if place.extents:
        return place.file_offset(start * place.dtype.itemsize)
    fragment = next(iter(assembly.terms[0].fragments), None)
    if fragment is None or not fragment.stored.extents:
        return 0
    stored = fragment.stored
    element = min(fragment.transfer.source + start, stored.elements - 1)
    return stored.file_offset(stored.bytes_of(element, 1)[0])


def _without_gaps(transfer: Transfer) -> tuple[int, ...]:
    """Strides of a source without gaps, its axes nested as they were."""
    strides = [0] * len(transfer.shape)
    run = 1
    for axis in sorted(range(len(transfer.shape)), key=lambda axis: transfer.source_strides[axis]):
        strides[axis] = run
        run *= transfer.shape[axis]
    return tuple(strides)


def as_numbers(raw: Array, dtype: DType) -> Array:
    """Bytes as numbers: of the dtype itself if it can be cast, else of any of its size; those of
    eight bits as bytes, which are cast by a table."""
    if dtype.itemsize == 1:
        return raw.view(np.uint8)
    return raw.view(numpy_dtype(dtype) if dtype.floating else np.dtype(f"V{dtype.itemsize}"))
