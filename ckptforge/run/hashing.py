"""Hashing tensors that are there already, with several workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptforge.run.blocks import Block, Hashes, blocks_of, hash_of
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.pool import Progress, run_tasks
from ckptforge.run.worker import Worker
from ckptforge.storage.store import Writer
from ckptforge.values import Located


def tensor_hashes(
    files: Mapping[Path, Iterable[Located]],
    budget: Budget,
    progress: Progress | None = None,
    opened: Mapping[Path, Writer] | None = None,
) -> Hashes:
    """File → tensor name → hash; `opened` are files that are open already. Raises the errors of
    reading."""
    entries = {file: list(held) for file, held in files.items()}
    total = sum(entry.nbytes for held in entries.values() for entry in held)
    open_files = OpenFiles(opened or {})
    digests: dict[tuple[Path, str], dict[int, bytes]] = {
        (file, entry.name): {} for file, held in entries.items() for entry in held
    }

    def finished(block: Block, digest: bytes) -> None:
        digests[block.file, block.entry.name][block.start] = digest

    queue = (
        block
        for file, held in entries.items()
        for entry in held
        for block in blocks_of(file, entry, counted=True)
    )
    try:
        run_tasks(
            queue,
            [Worker(open_files, budget) for _ in range(budget.workers)],
            open_files.stop,
            finished,
            lambda done: progress(done, total) if progress is not None else None,
        )
    finally:
        open_files.close()
    return {
        file: {entry.name: hash_of(digests[file, entry.name]) for entry in held}
        for file, held in entries.items()
    }
