"""The blocks of a plan's sources: those that have been hashed, and those that are left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ckptforge.planning.plan import Plan
from ckptforge.run.blocks import Block, hash_of, source_blocks
from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.storage.address import address
from ckptforge.values import Located, Stored

SourceBlock = tuple[int, int]  # index of the source, first byte of the block in its file
SourceRun = tuple[Stored, tuple[int, int]]  # bytes [first, end) of a stored tensor


class SourceHashes:
    """`known` are the digests of an earlier run. A block leaves when its digest is noted, or when
    it is handed out to be read: by `read`, `of` or `rest`."""

    def __init__(
        self,
        count: int,
        blocks: Iterable[tuple[SourceBlock, Block]],
        known: Mapping[SourceBlock, bytes],
    ) -> None:
        self._digests: list[dict[int, bytes]] = [{} for _ in range(count)]
        self._left: dict[tuple[Located, int], Block] = {}
        self._queue: deque[tuple[Located, int]] | None = None
        self._numbers: dict[Path, int] = {}
        for (i, at), block in blocks:
            self._numbers[block.entry.path] = i
            if (digest := known.get((i, at))) is not None:
                self._digests[i][at] = digest
            else:
                self._left[block.entry, block.start] = block

    @classmethod
    def of_plan(cls, plan: Plan, known: Mapping[SourceBlock, bytes]) -> SourceHashes:
        """All blocks of a plan's sources."""
        blocks = (
            ((i, block.at), block)
            for i, file in enumerate(plan.sources)
            for block in source_blocks(plan, file)
        )
        return cls(len(plan.sources), blocks, known)

    @classmethod
    def of_blocks(
        cls, blocks: Mapping[SourceBlock, Block], known: Mapping[SourceBlock, bytes]
    ) -> SourceHashes:
        """Some blocks, such as those of a unit."""
        return cls(max((i for i, _ in blocks), default=-1) + 1, blocks.items(), known)

    @property
    def counts(self) -> list[int]:
        """For each source how many blocks are left."""
        counts = [0] * len(self._digests)
        for entry, _ in self._left:
            counts[self._numbers[entry.path]] += 1
        return counts

    def passed(self, entry: Located, start: int) -> Block | None:
        """A block whose bytes came by; None where it isn't asked for, or known."""
        return self._left.pop((entry, start), None)

    def note(self, block: Block, digest: bytes) -> SourceBlock:
        """Notes a digest."""
        i, at = self._numbers[block.entry.path], block.at
        self._digests[i][at] = digest
        return i, at

    def read(self, stored: Stored, first: int, end: int) -> Iterator[Block]:
        """The blocks that are left of bytes [first, end) of a tensor."""
        for start in block_starts(first, end):
            if (block := self._left.pop((stored, start), None)) is not None:
                yield block

    def of(self, source: int) -> list[Block]:
        """All that are left of a source."""
        keys = [key for key in self._left if self._numbers[key[0].path] == source]
        return [self._left.pop(key) for key in keys]

    def rest(self, coming: Callable[[], Iterable[SourceRun]]) -> Block | None:
        """One of all that are left, those of far sources last, except those of what is `coming` by;
        None where there is no other."""
        if self._queue is None:
            far = (bool(address(entry.path)) for entry, _ in self._left)
            pairs = sorted(zip(far, self._left, strict=True), key=lambda pair: pair[0])
            self._queue = deque(key for _, key in pairs)
        busy = {(stored, start) for stored, run in coming() for start in block_starts(*run)}
        for _ in range(len(self._queue)):
            key = self._queue.popleft()
            if key in busy:
                self._queue.append(key)
            elif (block := self._left.pop(key, None)) is not None:
                return block
        return None

    def hashes(self) -> list[str]:
        """The hash of each source, once all blocks are noted."""
        return [hash_of(digests) for digests in self._digests]


def block_starts(first: int, end: int) -> range:
    """The first bytes of the blocks that bytes [first, end) lie in."""
    return range(first - first % BLOCK_BYTES, end, BLOCK_BYTES)
