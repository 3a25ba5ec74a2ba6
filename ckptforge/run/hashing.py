"""Hashing tensors that are there already, with several workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptforge.formats.entry import TensorEntry
from ckptforge.run.blocks import Block, Hashes, blocks_of, hash_of
from ckptforge.run.budget import Budget
from ckptforge.run.worker import Descriptors, Progress, Worker, run_workers
from ckptforge.storage.store import Writer


def tensor_hashes(
    files: Mapping[Path, Iterable[TensorEntry]],
    budget: Budget,
    progress: Progress | None = None,
    opened: Mapping[Path, Writer] | None = None,
) -> Hashes:
    """File → tensor name → hash; `opened` are files that are open already. Raises
    the errors of reading."""
    entries = {file: list(held) for file, held in files.items()}
    total = sum(entry.nbytes for held in entries.values() for entry in held)
    descriptors = Descriptors(opened or {})
    digests: dict[tuple[Path, str], dict[int, bytes]] = {
        (file, entry.name): {} for file, held in entries.items() for entry in held
    }

    def finished(task: object, worker: Worker) -> None:
        assert isinstance(task, Block)
        digests[task.file, task.entry.name][task.start] = worker.digest

    try:
        queue = (
            block
            for file, held in entries.items()
            for entry in held
            for block in blocks_of(file, entry)
        )
        run_workers(
            queue,
            [_Hasher(descriptors, budget) for _ in range(budget.workers)],
            descriptors.stop,
            progress,
            total,
            finished,
        )
    finally:
        descriptors.close()
    return {
        file: {entry.name: hash_of(digests[file, entry.name]) for entry in held}
        for file, held in entries.items()
    }


class _Hasher(Worker):
    """Counts what it hashes as its progress."""

    def do(self, task: object) -> int:
        super().do(task)
        assert isinstance(task, Block)
        return task.length
