"""Hashing tensors that are there already, with several workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptforge.run.blocks import Block, Hashes, blocks_of, hash_of
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress, run_tasks
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
    entries = [(file, entry) for file, held in files.items() for entry in held]
    total = sum(entry.nbytes for _, entry in entries)
    digests: dict[tuple[Path, str], dict[int, bytes]] = {
        (file, entry.name): {} for file, entry in entries
    }

    def finished(block: Block, digest: bytes) -> None:
        digests[block.file, block.entry.name][block.start] = digest

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    queue = (block for file, entry in entries for block in blocks_of(file, entry, counted=True))
    run_tasks(queue, budget, finished, report, opened)
    found: Hashes = {file: {} for file in files}
    for (file, name), blocks in digests.items():
        found[file][name] = hash_of(blocks)
    return found
