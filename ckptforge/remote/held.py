"""What is in memory of one object: its parts, the hashes of its windows, and what is known of the
bytes that will be read."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from operator import itemgetter

import xxhash

from ckptforge.planning.reads import joined
from ckptforge.remote.memory import fresh_memory

WINDOW = 8 * 1024 * 1024  # also what a source is hashed by (run/blocks.py)
Fetch = Callable[[int, memoryview], None]
Ranges = Sequence[tuple[int, int]]  # (first byte, end) of each, in order


class Part:
    """A run of an object's bytes, on its way or here."""

    __slots__ = ("begun", "data", "future", "here", "of", "read", "start", "stop", "users")

    def __init__(self, of: HeldObject, start: int, stop: int) -> None:
        self.of, self.start, self.stop = of, start, stop
        self.data = fresh_memory(stop - start)
        self.future: Future[None] = Future()
        self.here = False  # all its bytes have come
        self.begun = False  # something of it was read
        self.users = 0
        # what of it was read, or is only to be hashed: (from, to), in order
        self.read = list(of.unwanted(start, stop))

    def take(self, start: int, stop: int) -> None:
        """Notes that these bytes were read."""
        self.read = list(joined([*self.read, (start, stop)]))

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


class HeldObject:
    """The parts of one object, and the hashes of its windows that have been seen whole."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size, self.fetch = size, fetch
        self.readers = self.fetched = 0  # bytes since it was opened
        self.parts: list[Part] = []
        self.pages: Counter[int] = Counter()  # how many were fetched of a window
        self.whole: set[int] = set()  # windows that are fetched whole
        self.digests: dict[int, bytes] = {}
        self.holds: list[tuple[int, int]] = []  # what may be read again, by several
        self.once = False  # each byte is read once, so that it can go then
        self.next: list[tuple[int, int]] = []  # what is read before all else, in order
        self.wanted: Ranges | None = None  # all that will be read, where that isn't everything
        self._states: dict[int, tuple[xxhash.xxh3_128, int]] = {}

    def at(self, offset: int) -> tuple[Part | None, int, int]:
        """The part with a byte, and else the gap that it lies in."""
        i = bisect_right(self.parts, offset, key=lambda part: part.start)
        before = self.parts[i - 1] if i else None
        if before is not None and offset < before.stop:
            return before, before.start, before.stop
        after = self.parts[i].start if i < len(self.parts) else self.size
        return None, 0 if before is None else before.stop, after

    def add_next(self, start: int, stop: int) -> None:
        """Notes that these bytes will be read before others."""
        self.next = list(joined([*self.next, (start, stop)]))

    def remove_next(self, start: int, stop: int) -> None:
        """Notes that these bytes were read, and that they aren't here any more."""
        cut = (
            (low, high)
            for first, end in self.next
            for low, high in ((first, min(end, start)), (max(first, stop), end))
            if low < high
        )
        self.next = list(cut) if start < stop else self.next

    def next_end(self, offset: int) -> int:
        """The end of what is read next from a byte on."""
        i = bisect_right(self.next, offset, key=itemgetter(0))
        return max(offset, self.next[i - 1][1]) if i else offset

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges among these bytes that haven't been fetched."""
        while start < stop:
            part, first, end = self.at(start)
            if part is None:
                yield max(first, start), min(end, stop)
            start = end

    def wanted_bytes(self, start: int, stop: int) -> int:
        """How many of these bytes will be read."""
        return stop - start - sum(end - first for first, end in self.unwanted(start, stop))

    def past_unwanted(self, start: int, stop: int) -> int:
        """The first of these bytes that will be read, or `stop`."""
        first, end = next(self.unwanted(start, stop), (stop, stop))
        return end if first == start else start

    def unwanted(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges among these bytes that won't be read, unless it is to hash them."""
        if self.wanted is None:
            return
        for first, end in self.wanted[bisect_right(self.wanted, start, key=itemgetter(1)) :]:
            if first >= stop:
                break
            if first > start:
                yield start, first
            start = max(start, end)
        if start < stop:
            yield start, stop

    def add(self, part: Part) -> None:
        """Takes a part among the others."""
        i = bisect_right(self.parts, part.start, key=lambda part: part.start)
        self.parts.insert(i, part)

    def hashed_to(self, window: int) -> int:
        """The byte up to which a window is hashed, given its first."""
        if window // WINDOW in self.digests:
            return window + WINDOW
        return self._states.get(window // WINDOW, (None, window))[1]

    def expect(self, ranges: Ranges | None) -> None:
        """Notes what will be read from now on, each byte once."""
        self.once, self.wanted = True, ranges
        for part in self.parts:
            part.read = list(self.unwanted(part.start, part.stop))

    def close(self) -> None:
        """Forgets what was said of what is read, as nobody has it open any more."""
        self.fetched, self.once, self.wanted, self.next = 0, False, None, []

    def was_here(self, offset: int) -> bool:
        """Whether a byte came before, which isn't here any more: it was read, by whichever thread,
        and let go."""
        return self.at(offset)[0] is None and offset < self.hashed_to(offset // WINDOW * WINDOW)

    def is_held(self, part: Part) -> bool:
        """Whether something of a part may be read again soon."""
        return any(first < part.stop and end > part.start for first, end in self.holds)

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
