"""Hashing tensors that are there already, with several workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptforge.engine.blocks import Block, Digests, Hashes, blocks_of, hashes_of
from ckptforge.engine.budget import Budget
from ckptforge.engine.stream import Descriptors, Progress, Worker, run_workers
from ckptforge.formats.entry import TensorEntry


def tensor_hashes(files: Mapping[Path, Iterable[TensorEntry]], budget: Budget, progress: Progress | None = None) -> Hashes:
    """File → tensor name → hash. Raises the errors of reading."""
    entries = {file: list(held) for file, held in files.items()}
    total = sum(entry.nbytes for held in entries.values() for entry in held)
    descriptors = Descriptors({})
    digests: Digests = {}
    try:
        queue = (block for file, held in entries.items() for entry in held for block in blocks_of(file, entry))
        for worker in run_workers(queue, [_Hasher(descriptors, budget) for _ in range(budget.workers)], progress, total):
            worker.give_digests(digests)
    finally:
        descriptors.close()
    return hashes_of(entries, digests)


class _Hasher(Worker):
    """Counts what it hashes as its progress."""

    def do(self, task: object) -> int:
        super().do(task)
        assert isinstance(task, Block)
        return task.length
