"""Hashes of blocks whose bytes pass through a worker's memory anyway, so that they aren't read
again to be hashed."""

from __future__ import annotations

import xxhash

from ckptforge.values import Located

BLOCK_BYTES = 8 * 1024 * 1024
Digests = dict[tuple[Located, int], bytes]  # tensor, first byte of the block


class _Open:
    """A block that is being hashed: the next byte is byte `at` of its tensor."""

    __slots__ = ("at", "end", "nbytes", "start", "state")

    def __init__(self, start: int, nbytes: int) -> None:
        self.start = self.at = start
        self.nbytes = nbytes
        self.end = min(start + BLOCK_BYTES, nbytes)
        self.state = xxhash.xxh3_128()


class Passing:
    """The digests of the blocks that came whole, from their first byte to their last."""

    def __init__(self) -> None:
        self.digests: Digests = {}
        self._open: dict[Located, _Open] = {}

    def feed(self, entry: Located, at: int, data: memoryview) -> None:
        """Takes note of bytes of a tensor from its byte `at`. A block is begun anew where they
        don't go on from those before."""
        block = self._open.get(entry)
        if block is None or block.at != at:
            self._open.pop(entry, None)
            missing = -at % BLOCK_BYTES
            if missing >= len(data):
                return
            at, data = at + missing, data[missing:]
            block = self._open[entry] = _Open(at, entry.nbytes)
        while data:
            part = data[: block.end - block.at]
            block.state.update(part)
            block.at += len(part)
            data = data[len(part) :]
            if block.at == block.end:
                self.digests[entry, block.start] = block.state.digest()
                if block.end == block.nbytes:
                    del self._open[entry]
                    return
                block = self._open[entry] = _Open(block.end, block.nbytes)

    def same(self, source: Located, at: int, target: Located, start: int) -> None:
        """Says that a whole block of `source` from its byte `at`, which has just come by, is one of
        `target`, too, from its byte `start`."""
        if (digest := self.digests.get((source, at))) is not None:
            self.digests[target, start] = digest


def is_block(entry: Located, start: int, nbytes: int) -> bool:
    """Whether so many bytes from byte `start` of a tensor are one of its blocks."""
    return start % BLOCK_BYTES == 0 and nbytes == min(BLOCK_BYTES, entry.nbytes - start)
