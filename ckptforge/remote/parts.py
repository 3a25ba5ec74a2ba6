"""Parts of objects that are in memory: each is fetched once, several at a time, ahead of who reads
on. When room is needed those go that have been read whole, of others what has been read of them,
and at last the one that was used longest ago.

A part is a window of 8 MiB, or smaller where parts of so many objects are read in turn that they
would not fit. The first little that is read somewhere brings only a page: mostly it is a header,
and nothing else is wanted.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import xxhash

from ckptforge.remote.memory import fresh_memory

WINDOW = 8 * 1024 * 1024  # also what a source is hashed by (run/blocks.py)
LIMIT = 96 * 1024 * 1024
_LEAST = 1024 * 1024
_PAGE = 256 * 1024  # at the ends of an object, where what says what lies where is longest
_SMALL_PAGE = 32 * 1024
_PAGES = 8  # of a window, before it comes whole
_FLIGHTS = 8
_AHEAD = 2
Fetch = Callable[[int, memoryview], None]


class Part:
    """A run of an object's bytes, on its way or here."""

    __slots__ = ("data", "future", "here", "of", "read", "start", "stop", "users")

    def __init__(self, of: Held, start: int, stop: int) -> None:
        self.of, self.start, self.stop = of, start, stop
        self.data = fresh_memory(stop - start)
        self.future: Future[None] = Future()
        self.here = False  # all its bytes have come
        self.users = 0
        self.read: list[tuple[int, int]] = []  # what of it was read: (from, to), in order

    def take(self, start: int, stop: int) -> None:
        """Notes that these bytes were read."""
        apart = []
        for low, high in self.read:
            if high < start or low > stop:
                apart.append((low, high))
            else:
                start, stop = min(low, start), max(high, stop)
        self.read = sorted((*apart, (start, stop)))

    def shrink(self) -> int:
        """Lets go of the bytes at its ends, or all, that were read; returns how many they were."""
        start, stop = self.start, self.stop
        if self.read and self.read[0][0] == start:
            start = self.read.pop(0)[1]
        if self.read and self.read[-1][1] == stop:
            stop = self.read.pop()[0]
        freed = self.stop - self.start - (stop - start)
        if freed:
            kept = fresh_memory(stop - start)
            kept[:] = memoryview(self.data)[start - self.start : stop - self.start]
            self.data = kept
            self.start, self.stop = start, stop
        return freed


class Held:
    """The parts of one object, and the hashes of its windows that have been seen whole."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size, self.fetch = size, fetch
        self.readers = self.fetched = 0  # bytes since it was opened
        self.parts: list[Part] = []
        self.pages: Counter[int] = Counter()  # how many were fetched of a window
        self.whole: set[int] = set()  # windows that are fetched whole
        self.digests: dict[int, bytes] = {}
        self._states: dict[int, tuple[xxhash.xxh3_128, int]] = {}

    def at(self, offset: int) -> tuple[Part | None, int, int]:
        """The part with a byte, and else the gap that it lies in."""
        i = bisect_right(self.parts, offset, key=lambda part: part.start)
        before = self.parts[i - 1] if i else None
        if before is not None and offset < before.stop:
            return before, before.start, before.stop
        after = self.parts[i].start if i < len(self.parts) else self.size
        return None, 0 if before is None else before.stop, after

    def add(self, part: Part) -> None:
        """Takes a part among the others."""
        i = bisect_right(self.parts, part.start, key=lambda part: part.start)
        self.parts.insert(i, part)

    def is_hashed(self, part: Part) -> bool:
        """Whether the hashes have gone over all bytes of a part."""
        windows = range(part.start // WINDOW, -(-part.stop // WINDOW))
        return all(
            window in self.digests
            or self._states.get(window, (None, 0))[1] >= min(part.stop, (window + 1) * WINDOW)
            for window in windows
        )

    def hash(self, start: int, stop: int) -> None:
        """Goes on with the hashes of the windows in which these bytes have come."""
        for window in range(start // WINDOW, -(-stop // WINDOW)):
            if window in self.digests:
                continue
            end = min((window + 1) * WINDOW, self.size)
            state, at = self._states.get(window) or (xxhash.xxh3_128(), window * WINDOW)
            while at < end and (part := self.at(at)[0]) is not None and part.here:
                upto = min(part.stop, end)
                state.update(memoryview(part.data)[at - part.start : upto - part.start])
                at = upto
            self._states[window] = state, at
            if at == end:
                self.digests[window] = self._states.pop(window)[0].digest()


class Parts:
    """All that is in memory, of whichever objects."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # its threads aren't there

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._order: OrderedDict[Part, None] = OrderedDict()  # the one used last is the last
        self._recent: deque[Held] = deque(maxlen=128)  # of what was read last
        self._bytes = 0
        self._allowed: list[int] = []
        self._pool: ThreadPoolExecutor | None = None

    @property
    def most(self) -> int:
        """Bytes that may be in memory now."""
        return max(self.limit, *self._allowed, 0)

    @contextmanager
    def allowing(self, nbytes: int) -> Iterator[None]:
        """Has room for so many bytes, also where others end meanwhile that needed more."""
        self._allowed.append(nbytes)
        try:
            yield
        finally:
            self._allowed.remove(nbytes)

    def read_into(self, held: Held, offset: int, buffer: memoryview) -> int:
        """Puts bytes of an object into a buffer, up to the end of a part; returns how many. Raises
        what fetching raises."""
        if offset >= held.size or not len(buffer):
            return 0
        with self._lock:
            self._recent.append(held)
            part = held.at(offset)[0] or self._bring(held, offset, len(buffer))
            part.users += 1
            if not part.read:
                self._ahead(part)
            count = min(len(buffer), part.stop - offset)
            part.take(offset, offset + count)
            self._order.move_to_end(part)
        try:
            part.future.result()
            at = offset - part.start
            buffer[:count] = memoryview(part.data)[at : at + count]
        finally:
            with self._lock:
                part.users -= 1
        return count

    def begin(self, held: Held, offset: int, length: int) -> None:
        """Brings as much of these bytes as is fetched at a time."""
        with self._lock:
            at, end = offset, min(offset + length, held.size)
            for _ in range(_AHEAD):
                if at < end:
                    at = (held.at(at)[0] or self._bring(held, at, end - at)).stop

    def _ahead(self, part: Part) -> None:
        held, at = part.of, part.stop
        window = part.start // WINDOW
        for _ in range(_AHEAD if part.stop - part.start >= _PAGE * 2 else 0):
            coming = at // WINDOW
            if at >= held.size or coming in held.digests or window not in held.whole:
                return
            if held.at(at)[0] is None and not self._has_room():
                return
            at = (held.at(at)[0] or self._bring(held, at, WINDOW)).stop

    def _bring(self, held: Held, offset: int, length: int) -> Part:
        unit = self._unit_at(held, offset, length)
        _, low, high = held.at(offset)
        start = max(offset // unit * unit, low)
        part = Part(held, start, min(offset // unit * unit + unit, high, held.size))
        self._make_room(part.stop - part.start)
        held.add(part)
        held.fetched += part.stop - part.start
        self._order[part] = None
        self._bytes += part.stop - part.start
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FLIGHTS, thread_name_prefix="ckptforge-fetch")
        self._pool.submit(self._fetch, part)
        return part

    def _unit_at(self, held: Held, offset: int, length: int) -> int:
        """Bytes that are fetched at a time where so many are wanted."""
        window = offset // WINDOW
        going_on = offset > 0 and held.at(offset - 1)[0] is not None
        going_on |= offset % WINDOW == 0 and window - 1 in held.whole
        if length >= _PAGE or going_on or held.pages[window] >= _PAGES:
            held.whole.add(window)
            return self._unit()
        held.pages[window] += 1
        at_an_end = window == 0 or window == (held.size - 1) // WINDOW
        return _PAGE if at_an_end else _SMALL_PAGE

    def _unit(self) -> int:
        """Bytes that are fetched at a time: two parts for each object that is being read fit."""
        objects = len({id(held) for held in self._recent if held.readers}) or 1
        unit = WINDOW
        while unit > _LEAST and 2 * unit * objects > self.most:
            unit //= 2
        return unit

    def _has_room(self) -> bool:
        """Whether more than what is asked for may come; the rest is for what lies around what was
        read, and is wanted later."""
        most = self.most // 2 - WINDOW
        if self._bytes > most:
            self._let_go()
        return self._bytes <= most

    def _make_room(self, nbytes: int) -> None:
        if self._bytes + nbytes > self.most:
            self._let_go()
        # what nobody has open first
        for part in sorted(self._order, key=lambda part: part.of.readers > 0):
            if self._bytes + nbytes <= self.most:
                return
            if not part.users and part.here and (part.read or not part.of.readers):
                self._drop(part)

    def _let_go(self) -> None:
        """Lets go of what has been read, unless it would have to come again to be hashed, and of no
        headers, which are read again when a file is opened again."""
        for part in list(self._order):
            large = part.stop - part.start > _PAGE
            if large and part.here and not part.users and part.of.is_hashed(part):
                self._bytes -= part.shrink()
                if part.start == part.stop:
                    self._drop(part)

    def _drop(self, part: Part) -> None:
        del self._order[part]
        part.of.parts.remove(part)
        self._bytes -= part.stop - part.start

    def _fetch(self, part: Part) -> None:
        try:
            part.of.fetch(part.start, memoryview(part.data))
        except BaseException as error:
            with self._lock:
                self._drop(part)
            part.future.set_exception(error)
            return
        with self._lock:
            part.here = True
            part.of.hash(part.start, part.stop)
        part.future.set_result(None)
