"""Which unit hashes which blocks of the sources: the one that reads the first byte of a block, so
that it comes by where its tensors are made. What no unit reads is hashed at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ckptforge.boxes import boxes_in_range
from ckptforge.planning.assembly import Assembly
from ckptforge.planning.plan import Plan
from ckptforge.run.blocks import Block, block_of, is_hashed_whole, whole_file
from ckptforge.run.passing import BLOCK_BYTES
from ckptforge.run.source_hashes import SourceBlock
from ckptforge.transfers import Transfer
from ckptforge.values import Located, Stored


class HashedBlocks:
    """The blocks of a plan's sources, by what is made of them."""

    def __init__(self, plan: Plan) -> None:
        self._files = plan.sources
        self._numbers = {file.path: i for i, file in enumerate(plan.sources)}
        self._whole: dict[Path, Located | None] = {}  # files that are hashed as one tensor

    def of(self, made: Iterable[Assembly]) -> dict[SourceBlock, Block]:
        """Those that these tensors read the first byte of; of replicas none."""
        found: dict[SourceBlock, Block] = {}
        for assembly in made:
            if assembly.replica:
                continue
            for fragment in assembly.fragments:
                for block in self._begun(fragment.stored, fragment.transfer):
                    found[self._numbers[fragment.stored.path], block.at] = block
                for step in fragment.steps:
                    for stored in step.inputs:
                        for block in self._begun(stored, None):
                            found[self._numbers[stored.path], block.at] = block
        return found

    def _begun(self, stored: Stored, transfer: Transfer | None) -> Iterator[Block]:
        """The blocks of which a transfer, or one of the whole tensor, reads the first byte."""
        if stored.path not in self._numbers or not stored.nbytes:
            return
        if transfer is None:
            transfer = Transfer((stored.elements,), 0, (1,), 0, (1,))
        if not transfer.size:
            return
        first, length = stored.bytes_of(transfer.source, transfer.last_source + 1 - transfer.source)
        whole = self._whole_file(stored.path)
        if whole is None:
            # a view of a tensor is none of those that are hashed
            if self._files[self._numbers[stored.path]].tensors.get(stored.name) == stored:
                for start in range(
                    -(-first // BLOCK_BYTES) * BLOCK_BYTES, first + length, BLOCK_BYTES
                ):
                    if _reads(transfer, stored, start):
                        yield block_of(stored, start)
            return
        at = first
        for offset, count in stored.file_ranges(first, length):
            for start in range(
                -(-offset // BLOCK_BYTES) * BLOCK_BYTES, offset + count, BLOCK_BYTES
            ):
                if _reads(transfer, stored, at + start - offset):
                    yield block_of(whole, start)
            at += count

    def _whole_file(self, path: Path) -> Located | None:
        if path not in self._whole:
            file = self._files[self._numbers[path]]
            self._whole[path] = whole_file(file) if is_hashed_whole(file) else None
        return self._whole[path]


def _reads(transfer: Transfer, stored: Stored, byte: int) -> bool:
    """Whether a transfer reads the element in which this byte of a tensor lies."""
    element = byte // stored.dtype.itemsize * stored.dtype.per_byte - transfer.source
    axes = sorted(zip(transfer.source_strides, transfer.shape, strict=True), reverse=True)
    shape, strides = [n for _, n in axes], [stride for stride, _ in axes]
    return bool(boxes_in_range(shape, strides, element, element + stored.dtype.per_byte))
