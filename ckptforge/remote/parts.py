"""Parts of objects that are in memory: each is fetched once, several at a time, ahead of who reads
on. When room is needed those go that have been read whole, of others what has been read of them,
and at last the one that was used longest ago.

A part is a window of 8 MiB, or smaller where parts of so many objects are read in turn that they
would not fit. The first little that is read somewhere brings only a page: mostly it is a header,
and nothing else is wanted. Where a run says what it reads next (`begin_only`), as it doesn't read
in the order in which bytes lie, no more than that comes.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ckptforge.remote.held import WINDOW, HeldObject, Part, Ranges

LIMIT = 96 * 1024 * 1024
_LEAST = 1024 * 1024
_PAGE = 256 * 1024  # at the ends of an object, where headers and directories lie
_SMALL_PAGE = 32 * 1024
_PAGES = 8  # of a window, before it comes whole
_FLIGHTS = 8
_AHEAD = 2


class ObjectMemory:
    """All that is in memory, of whichever objects; `PARTS` are those of this process."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # its threads aren't there

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._order: OrderedDict[Part, None] = OrderedDict()  # the one used last is the last
        self._recent: deque[HeldObject] = deque(maxlen=128)  # of what was read last
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

    def read_into(self, held: HeldObject, offset: int, buffer: memoryview) -> int:
        """Puts bytes of an object into a buffer, up to the end of a part; returns how many. Raises
        what fetching raises."""
        if offset >= held.size or not len(buffer):
            return 0
        with self._lock:
            self._recent.append(held)
            part = held.at(offset)[0] or self._bring(held, offset, len(buffer))
            part.users += 1
            if not part.begun:
                self._ahead(part)
            part.begun = True
            count = min(len(buffer), part.stop - offset)
            if held.once:
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

    def digest(self, held: HeldObject, window: int) -> bytes:
        """That of a window, of which no byte comes again that was hashed, if it was let go since.
        Raises what fetching raises."""
        first, stop = window * WINDOW, min((window + 1) * WINDOW, held.size)
        with self.holding(held, first, stop - first):
            while True:
                with self._lock:
                    if (known := held.digests.get(window)) is not None:
                        return known
                    at = held.hashed_to(first)
                    self.begin(held, at, stop - at)
                    part = held.at(at)[0]
                    assert part is not None
                    if not part.begun:
                        self._ahead(part)
                    part.begun = True
                    part.users += 1
                try:
                    part.future.result()
                finally:
                    with self._lock:
                        part.users -= 1

    def begin(self, held: HeldObject, offset: int, length: int) -> None:
        """Brings as much of these bytes as is fetched at a time."""
        with self._lock:
            at, end = offset, min(offset + length, held.size)
            for _ in range(_AHEAD):
                if at < end and not held.was_here(at):
                    at = (held.at(at)[0] or self._bring(held, at, end - at)).stop

    def expect(self, held: HeldObject, ranges: Ranges | None) -> None:
        """Takes note of what will be read of an object from now on."""
        with self._lock:
            held.expect(ranges)

    def begin_only(self, held: HeldObject, offset: int, length: int) -> None:
        """Brings the first of these bytes, where there is room, and no others than these are
        wanted soon."""
        with self._lock:
            if held.was_here(offset):
                return
            held.add_next(offset, min(offset + length, held.size))
            if held.at(offset)[0] is None and self._has_room():
                self._bring(held, offset, length)

    @contextmanager
    def holding(self, held: HeldObject, offset: int, length: int) -> Iterator[None]:
        """Within this these bytes, where they are here, stay although they were read."""
        span = offset, offset + length
        with self._lock:
            held.holds.append(span)
        try:
            yield
        finally:
            with self._lock:
                held.holds.remove(span)

    def _ahead(self, part: Part) -> None:
        held, at = part.of, part.stop
        if held.next:
            end = held.next_end(part.stop - 1)
            for _ in range(_AHEAD):
                if at >= end or not self._may_come(held, at):
                    return
                at = (held.at(at)[0] or self._bring(held, at, 1)).stop
            return
        window = part.start // WINDOW
        for _ in range(_AHEAD if part.stop - part.start >= _PAGE * 2 else 0):
            coming = at // WINDOW
            if at >= held.size or coming in held.digests or window not in held.whole:
                return
            end = min((coming + 1) * WINDOW, held.size)
            if next(held.unwanted(at, end), None) == (at, end):
                return
            if not self._may_come(held, at):
                return
            at = (held.at(at)[0] or self._bring(held, at, WINDOW)).stop

    def _may_come(self, held: HeldObject, at: int) -> bool:
        """Whether a byte is here, or may be brought before it is wanted."""
        return held.at(at)[0] is not None or (not held.was_here(at) and self._has_room())

    def _bring(self, held: HeldObject, offset: int, length: int) -> Part:
        if held.next:
            return self._bring_only(held, offset, length)
        unit = self._unit_at(held, offset, length)
        first = offset // unit * unit
        _, low, high = held.at(offset)
        stop = min(first + unit, high, held.size)
        if (come := held.hashed_to(offset // WINDOW * WINDOW)) > offset:  # and was read since
            return self._request(held, offset, min(stop, max(offset + length, come)))
        return self._request(held, max(first, low, come), stop)

    def _bring_only(self, held: HeldObject, offset: int, length: int) -> Part:
        """Bytes that are read now, with little of what lies around them; with what lies before them
        in their window where that is less, or only hashed, as hashes can't go on without it."""
        unit, window = self._unit(), offset // WINDOW * WINDOW
        _, low, high = held.at(offset)
        end = max(held.next_end(offset), offset + length, offset + min(_LEAST, unit))
        stop = min(end, offset // unit * unit + unit, high, held.size)
        stop = held.past_unwanted(stop, min(high, window + WINDOW, held.size))
        before = list(held.gaps(held.hashed_to(window), offset))
        if sum(held.wanted_bytes(*gap) for gap in before) > stop - offset:
            before = []
        for gap in before:
            if gap[1] == offset:
                offset = gap[0]
            else:
                self._request(held, *gap)
        found = self._request(held, max(offset, low), stop)
        for start, gap_end in held.gaps(stop, min(window + WINDOW, held.size)):
            stop = held.past_unwanted(start, gap_end)
            if stop > start:
                self._request(held, start, stop)
            if stop < gap_end:
                break
        return found

    def _request(self, held: HeldObject, start: int, stop: int) -> Part:
        part = Part(held, start, stop)
        self._make_room(part.stop - part.start)
        held.add(part)
        held.fetched += part.stop - part.start
        self._order[part] = None
        self._bytes += part.stop - part.start
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FLIGHTS, thread_name_prefix="ckptforge-fetch")
        self._pool.submit(self._fetch, part)
        return part

    def _unit_at(self, held: HeldObject, offset: int, length: int) -> int:
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
        pages = {part for part in self._order if part.stop - part.start <= _PAGE}
        if sum(part.stop - part.start for part in pages) > self.most // 4:
            pages = set()
        # pages, which make little room, last; of others those first that nobody has open
        for part in sorted(self._order, key=lambda part: (part in pages, part.of.readers > 0)):
            if self._bytes + nbytes <= self.most:
                return
            if not part.users and part.here and (part.begun or not part.of.readers):
                self._drop(part)

    def _let_go(self) -> None:
        """Lets go of what has been read, unless it would have to come again to be hashed, and of no
        headers, which are read again when a file is opened again."""
        for part in list(self._order):
            large = part.stop - part.start > _PAGE
            idle = part.here and part.of.readers and not part.users
            if large and idle and part.of.is_hashed(part) and not part.of.is_held(part):
                start, stop = part.start, part.stop
                self._bytes -= part.shrink()
                part.of.remove_next(start, part.start)
                part.of.remove_next(part.stop, stop)
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


PARTS = ObjectMemory()
