"""A worker: one thread, with the files that it shares and memory of its own."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.memory import fresh_memory
from ckptforge.run.passing import Passing

if TYPE_CHECKING:
    from ckptforge.run.assembler import Assembler


class Worker:
    """What the tasks of one thread work with. `passing` hashes what is read and written, where that
    is wanted."""

    def __init__(self, files: OpenFiles, budget: Budget) -> None:
        self.files, self.budget = files, budget
        self.passing: Passing | None = None
        self._memory = memoryview(b"")

    def lend(self, nbytes: int) -> memoryview:
        """So many bytes from the beginning of a page, the caller's until the next call."""
        if len(self._memory) < nbytes:
            self._memory = fresh_memory(nbytes)
        return self._memory[:nbytes]

    @cached_property
    def assembler(self) -> Assembler:
        """What makes tiles. Bytes that are only moved don't wait for numpy."""
        from ckptforge.run.assembler import Assembler

        return Assembler(self)
