"""Files that are written from front to back, or nearly: what comes is put together to parts, each
of which is hashed and handed on when all before it has been. Parts that wait are in memory, so that
whoever writes must not run far ahead of what is missing (`run/front_to_back.py`)."""

from __future__ import annotations

import errno
import os
import threading
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import xxhash

from ckptforge.formats.layout import OutputFile
from ckptforge.remote.memory import Memory, fresh_memory
from ckptforge.run.blocks import blocks_of
from ckptforge.storage.store import Kind, Reader, Status

Put = Callable[[int, Memory], None]


class _Run(NamedTuple):
    """Bytes of a block that is hashed, which begins at byte `block` of the file."""

    offset: int
    length: int
    block: int
    last: bool


class OrderedWriter:
    """A file that is being written; `put` gets its parts with their numbers, in order."""

    in_order = True

    def __init__(self, file: OutputFile, part_bytes: int, put: Put) -> None:
        self._size, self._part_bytes, self._put = file.size, part_bytes, put
        self._fixed = deque(_fixed(file))
        self._runs = deque(sorted(_runs(file)))
        self._states: dict[int, xxhash.xxh3_128] = defaultdict(xxhash.xxh3_128)
        self._digests: dict[int, bytes] = {}
        self._parts: dict[int, Memory] = {}
        self._came: list[tuple[int, int]] = []
        self._at = 0  # all bytes before it were handed on, or lie in the next part to be
        self._lock = threading.Lock()

    def status(self) -> Status:
        """The size that the file will have."""
        return Status(kind=Kind.FILE, size=self._size, mtime_ns=0)

    def write(self, offset: int, data: memoryview) -> int:
        """Takes all of it, and hands on the parts that are whole then; waits where `put` does."""
        with self._lock:
            self._take(offset, data)
            insort(self._came, (offset, offset + len(data)))
            self._go_on()
        return len(data)

    def digest(self, start: int, length: int) -> bytes | None:
        """See `HashingReader`; known of the blocks of tensors."""
        return self._digests.get(start)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Raises `OSError`: what was handed on can't be read."""
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def copy_from(self, reader: Reader, source: int, offset: int, length: int) -> int:
        """Copies nothing: all bytes are hashed on their way."""
        return 0

    def expect(self, ranges: Sequence[tuple[int, int]] | None) -> None:
        """Nothing is read."""

    def begin_only(self, offset: int, length: int) -> None:
        """Nothing is read."""

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Nothing is read."""
        return nullcontext()

    def begin_read(self, offset: int, length: int) -> None:
        """Nothing is read."""

    def drop_cached(self, offset: int, length: int) -> None:
        """Nothing is read."""

    def begin_sync(self, offset: int, length: int) -> None:
        """Parts are on their way as soon as they are whole."""

    def sync(self) -> None:
        """Passes over what nobody has to write, in a file without a byte of a tensor."""
        with self._lock:
            self._go_on()

    def close(self) -> None:
        """Nothing is open here."""

    def _take(self, offset: int, data: memoryview | bytes) -> None:
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, self._part_bytes)
            if number not in self._parts:
                left = self._size - number * self._part_bytes
                self._parts[number] = fresh_memory(min(self._part_bytes, left))
            part = self._parts[number]
            count = min(len(part) - start, len(data) - done)
            part[start : start + count] = data[done : done + count]
            done += count

    def _go_on(self) -> None:
        """Passes over what has come without a gap."""
        while True:
            if self._fixed and self._fixed[0][0] == self._at:
                offset, literal = self._fixed.popleft()
                self._take(offset, literal)
                self._pass(offset + len(literal))
            elif self._came and self._came[0][0] <= self._at:
                self._pass(self._came.pop(0)[1])
            else:
                return

    def _pass(self, upto: int) -> None:
        while self._at < upto:
            number, start = divmod(self._at, self._part_bytes)
            part = self._parts[number]
            stop = min(len(part), start + upto - self._at)
            self._hash(self._at, memoryview(part)[start:stop])
            self._at += stop - start
            if stop == len(part):
                self._put(number, self._parts.pop(number))

    def _hash(self, at: int, data: memoryview) -> None:
        end = at + len(data)
        while self._runs and self._runs[0].offset < end:
            run = self._runs[0]
            stop = run.offset + run.length
            self._states[run.block].update(data[max(run.offset, at) - at : min(stop, end) - at])
            if stop > end:
                return
            self._runs.popleft()
            if run.last:
                self._digests[run.block] = self._states.pop(run.block).digest()


def _fixed(file: OutputFile) -> Iterator[tuple[int, bytes]]:
    """All bytes that aren't tensors, also those that nobody has to write: zeros between."""
    extents = ((one.offset, one.length) for place in file.places.values() for one in place.extents)
    literals = ((offset, len(literal), literal) for offset, literal in file.literals)
    at = 0
    for offset, length, literal in sorted([*literals, *((*one, None) for one in extents)]):
        if offset > at:
            yield at, bytes(offset - at)
        if literal is not None:
            yield offset, literal
        at = max(at, offset + length)
    if at < file.size:
        yield at, bytes(file.size - at)


def _runs(file: OutputFile) -> Iterator[_Run]:
    for place in file.places.values():
        for block in blocks_of(place):
            ranges = list(place.file_ranges(block.start, block.length))
            for i, (offset, length) in enumerate(ranges):
                yield _Run(offset, length, ranges[0][0], i == len(ranges) - 1)
