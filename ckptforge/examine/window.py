"""Reading parts of values, from any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ckptforge.boxes import row_major_strides
from ckptforge.composing import terms_through
from ckptforge.errors import UsageError
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.casts import numpy_dtype
from ckptforge.run.files import OpenFiles
from ckptforge.run.run import cache_bytes
from ckptforge.run.tasks import tiles_of
from ckptforge.run.worker import Worker
from ckptforge.storage.endpoints import at_endpoints, said_endpoints
from ckptforge.transfers import Transfer
from ckptforge.values import Term, Value

MEMORY = 64 * 1024 * 1024  # of one thread's buffers


class Window:
    """Opens the files of values when they are first read, and reads what is asked for, from the
    services that the call named in which it was made. Each thread has buffers of its own."""

    def __init__(self) -> None:
        self._files = OpenFiles()
        self._own = threading.local()
        self._endpoints = said_endpoints()

    def files(self) -> AbstractContextManager[None]:
        """Within, files are opened where the buckets are that were said when this was made."""
        return at_endpoints({**self._endpoints, **said_endpoints()})

    def know(self, other: Window) -> None:
        """Values of another window may be read by this one, too."""
        self._endpoints = {**other._endpoints, **self._endpoints}

    def read(self, name: str, value: Value) -> NDArray[Any]:
        """A value as an array. Raises `UsageError` after it was closed, and the errors of
        reading."""
        if self._files.stop.is_set():
            raise UsageError(f"{name} can't be read: the model was closed; open it again.")
        cached = cache_bytes([value])
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or worker.budget.cached < cached:
            worker = self._own.worker = Worker(self._files, Budget(1, MEMORY, cached))
        with self.files():
            return read_value(name, value, worker)

    def begin_read(self, value: Value) -> None:
        """Says that a value will be read soon."""
        for stored in {fragment.stored for fragment in value.fragments}:
            with self.files():
                reader = self._files.source(stored.path)
            for offset, length in stored.file_ranges(0, stored.nbytes):
                reader.begin_read(offset, length)

    def close(self) -> None:
        """Closes the files; nothing can be read afterwards."""
        self._files.stop.set()
        self._files.close()


def strided(value: Value, ranges: Sequence[range], kept: Sequence[bool]) -> Value:
    """The elements of a value whose index along each axis lies in a range that goes up, without
    the axes that aren't kept (of one element)."""
    strides = row_major_strides(value.shape)
    lengths = tuple(map(len, ranges))
    shape = tuple(n for n, stays in zip(lengths, kept, strict=True) if stays)
    if 0 in lengths:
        return replace(value, shape=shape, terms=(Term(fragments=()),))
    transfer = Transfer(
        lengths,
        sum(one.start * stride for one, stride in zip(ranges, strides, strict=True)),
        tuple(one.step * stride for one, stride in zip(ranges, strides, strict=True)),
        0,
        row_major_strides(lengths),
    )
    terms = terms_through([(value, transfer.ordered())])
    return replace(value, shape=shape, terms=tuple(terms))


def read_value(name: str, value: Value, worker: Worker) -> NDArray[Any]:
    """A value as an array of its dtype and shape. Raises the errors of reading."""
    assembly = in_memory(name, value)
    out = np.empty(value.nbytes, np.uint8)
    itemsize = value.dtype.itemsize
    for tile in tiles_of(worker.budget, assembly):
        made = worker.assembler.assemble(assembly, tile)
        at = 0
        for first, count in tile.runs():
            length = count * itemsize
            out[first * itemsize : first * itemsize + length] = made[at : at + length]
            at += length
    return out.view(numpy_dtype(value.dtype)).reshape(value.shape)
