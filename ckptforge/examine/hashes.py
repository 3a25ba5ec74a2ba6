"""Hashing tensors that are there already, with several workers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ckptforge.run.blocks import Block, Hashes, blocks_of, hash_of
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress, run_tasks
from ckptforge.storage.store import Writer
from ckptforge.values import Located


def tensor_hashes(
    files: Mapping[Path, Collection[Located]],
    budget: Budget,
    progress: Progress | None = None,
    opened: Mapping[Path, Writer] | None = None,
) -> Hashes:
    """File → tensor name → hash; `opened` are files that are open already. Raises the errors of
    reading."""
    digests = {entry: dict[int, bytes]() for held in files.values() for entry in held}
    total = sum(entry.nbytes for entry in digests)

    def finished(block: Block, digest: bytes) -> None:
        digests[block.entry][block.start] = digest

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    queue = (block for entry in digests for block in blocks_of(entry, counted=True))
    run_tasks(queue, budget, finished, report, opened)
    hashes = {entry: hash_of(blocks) for entry, blocks in digests.items()}
    return {file: {entry.name: hashes[entry] for entry in held} for file, held in files.items()}
