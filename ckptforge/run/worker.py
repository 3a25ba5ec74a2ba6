"""A worker: the memory of one thread, and how it makes a tile of a tensor."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.errors import PlanError
from ckptforge.planning.plan import Assembly
from ckptforge.run.audit import Audit, CastCount
from ckptforge.run.budget import Budget
from ckptforge.run.buffers import LINE, PIECE_BYTES, Buffers, copy_runs, slow_to_copy
from ckptforge.run.cache import Cache
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.files import OpenFiles
from ckptforge.run.tiles import Spans, Tile, inside, spans_of, strips, windows
from ckptforge.run.transpose import copy_strided
from ckptforge.storage.ranges import read_range, read_spans
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Prepared, Stored, Term

Array = NDArray[Any]
MANY_CALLS = 16


class Worker:
    """One thread's buffers, made once. `audit` counts the casts since it was last set."""

    def __init__(self, files: OpenFiles, budget: Budget) -> None:
        self.files, self.budget = files, budget
        self.audit = Audit()
        self.buffers = Buffers()  # of a tile, or of bytes that are moved
        self.other_buffers = Buffers()  # of a second tile, where two are compared
        self._strip_buffers = Buffers()
        self._prepared = Cache(budget.cached)

    def assemble(self, assembly: Assembly, tile: Tile, other: bool = False) -> Array:
        """The bytes of a tile put together. They are the worker's until it makes another one, in
        its `other` buffers or not."""
        place = assembly.place
        wanted = [(tile.elements * place.dtype.itemsize, _offset(assembly, tile))]
        if assembly.summed:
            wanted += 2 * [(tile.elements * assembly.computing.itemsize, 0)]
        buffers = self.other_buffers if other else self.buffers
        made, *sums = buffers.lend(*wanted)
        out = as_numbers(made, place.dtype)
        if assembly.summed:
            total, part = (as_numbers(raw, assembly.computing) for raw in sums)
            self._add_up(assembly, tile, total, part, out)
        else:
            (term,) = assembly.terms
            self._fill(assembly, term, tile, place.dtype, out, self.audit)
        return made

    def _add_up(
        self, assembly: Assembly, tile: Tile, total: Array, part: Array, out: Array
    ) -> None:
        """Adds the terms up in float32 or float64, and rounds once."""
        dtype, uncounted = assembly.computing, Audit()
        for i, term in enumerate(assembly.terms):
            made = part if i else total
            self._fill(assembly, term, tile, dtype, made, uncounted)
            with np.errstate(all="ignore"):
                if term.weight != 1:
                    made *= made.dtype.type(term.weight)
                if i:
                    total += part
        target = assembly.place.dtype
        count = cast_function(dtype, target)(total, out) if dtype != target else None
        if count is None:
            out[:] = total
        else:
            self.audit.add(assembly.kind, dtype, target, count)

    def _fill(
        self, assembly: Assembly, term: Term, tile: Tile, dtype: DType, out: Array, audit: Audit
    ) -> None:
        """Makes a tile of one term in `out`, of this dtype."""
        if term.fill is not None:
            out.view(np.uint8)[:] = 0
            if term.fill:
                out.view(numpy_dtype(dtype))[:] = term.fill
        left = tile.elements
        for fragment in term.fragments:
            stored = fragment.stored
            computed = fragment.dtype if fragment.steps else None
            limit = self.budget.strip_elements(stored.dtype, dtype, computed)
            for part in inside(fragment.transfer, tile):
                left -= part.size
                for strip in strips(part, limit, stored.dtype.itemsize):
                    gathered = _Gathering(fragment, strip.coalesced(), dtype, assembly.kind, audit)
                    self._gather(gathered, out)
        if left and term.fill is None:
            raise PlanError(
                f"{assembly.place.name}: {left} elements of {tile} aren't filled; this is a "
                "defect of ckptforge, please report it."
            )

    def _gather(self, wanted: _Gathering, out: Array) -> None:
        """Reads one part of a tile, casts it and puts it in its place."""
        fragment, part, target = wanted.fragment, wanted.part, wanted.dtype
        stored, itemsize = fragment.stored, fragment.stored.dtype.itemsize
        spans = spans_of(part, itemsize)
        dtype = fragment.dtype
        cast = dtype != target
        offset = stored.file_offset(part.source * itemsize)
        if part.is_move and not cast and not fragment.steps:
            place = out[part.target : part.target + part.size].view(np.uint8)
            self._read_run(stored, part.source * itemsize, place)
            return
        read, spare, made, computed = self._strip_buffers.lend(
            (spans.elements * itemsize, offset),
            (cast * part.size * dtype.itemsize, 0),
            (cast * part.size * target.itemsize, 0),
            (bool(fragment.steps) * spans.elements * dtype.itemsize, 0),
        )
        self._read(stored, part, spans, read)
        numbers = as_numbers(read, stored.dtype)
        if fragment.steps:
            numbers = self._compute(wanted, numbers, as_numbers(computed, dtype), spans)
        packed = Transfer(part.shape, 0, spans.strides, part.target, part.target_strides)
        if cast:
            if spans.elements != part.size:  # gaps are neither cast nor counted
                dense = as_numbers(spare, dtype)
                strides = _without_gaps(packed)
                copy_strided(
                    numbers,
                    dense,
                    Transfer(part.shape, 0, packed.source_strides, 0, strides).coalesced(),
                )
                numbers, packed = (
                    dense,
                    Transfer(part.shape, 0, strides, part.target, part.target_strides),
                )
            packed = packed.coalesced()
            place = (
                out[packed.target : packed.target + packed.size]
                if packed.is_move
                else as_numbers(made, target)
            )
            count = cast_function(dtype, target)(numbers, place)
            wanted.audit.add(wanted.kind, dtype, target, count)
            if packed.is_move:
                return
            numbers = place
        copy_strided(numbers, out, packed.coalesced())

    def _read_run(self, stored: Stored, start: int, into: Array) -> None:
        """Reads one run of bytes to its place, where that is slow by way of a buffer."""
        reader = self.files.source(stored.path)
        slow = slow_to_copy(stored.file_offset(start), into.ctypes.data, LINE)
        step = PIECE_BYTES if slow else max(len(into), 1)
        for at in range(0, len(into), step):
            piece = into[at : at + step]
            read = piece
            if slow:
                offset = stored.file_offset(start + at)
                (read,) = self._strip_buffers.lend((len(piece), offset))
            read_range(stored, start + at, read.data, reader)
            if slow:
                copy_runs(read, piece)

    def _read(self, stored: Stored, part: Transfer, spans: Spans, into: Array) -> None:
        itemsize = stored.dtype.itemsize
        reader = self.files.source(stored.path)
        with self.files.many_calls if spans.count > MANY_CALLS else nullcontext():
            starts = ((part.source + start) * itemsize for start in spans.starts())
            read_spans(stored, starts, spans.length * itemsize, into.data, reader)

    def _compute(self, wanted: _Gathering, numbers: Array, out: Array, spans: Spans) -> Array:
        """What was read of a tensor after its steps, in the dtype that they give."""
        fragment, stored = wanted.fragment, wanted.fragment.stored
        cast_function(stored.dtype, fragment.dtype)(numbers, out)
        columns = stored.shape[-1] if stored.shape else 1
        found = list(windows(wanted.part.source, spans, columns))
        for i in range(len(fragment.steps)):
            if undefined := self._prepare(fragment, i).apply(out, found):
                count = CastCount(undefined, undefined=undefined)
                wanted.audit.add(wanted.kind, stored.dtype, fragment.dtype, count)
        return out

    def _prepare(self, fragment: Fragment, i: int) -> Prepared:
        stored, step = fragment.stored, fragment.steps[i]
        # A step of the plan outlives this.
        return self._prepared.get(
            id(step), step.memory(stored), lambda: step.prepare(stored, self.read_whole)
        )

    def read_whole(self, stored: Stored, dtype: DType | None) -> Array:
        """A small tensor, cast to a floating-point dtype unless that is None."""
        raw = np.empty(stored.nbytes, np.uint8)
        read_range(stored, 0, raw.data, self.files.source(stored.path))
        numbers = raw.view(numpy_dtype(stored.dtype))
        if dtype is not None and dtype != stored.dtype:
            cast = np.empty(numbers.size, numpy_dtype(dtype))
            cast_function(stored.dtype, dtype)(numbers, cast)
            numbers = cast
        return numbers.reshape(stored.shape)


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
    return stored.file_offset(element * stored.dtype.itemsize)


class _Gathering(NamedTuple):
    """One part of a tile that is to be read, in which dtype it is wanted, and where its casts are
    counted."""

    fragment: Fragment
    part: Transfer
    dtype: DType
    kind: str
    audit: Audit


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
