"""What of a run's sources is still needed, so that those that aren't can be let go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from ckptforge.errors import OutputError
from ckptforge.planning.assembly import Assembly
from ckptforge.planning.plan import Plan
from ckptforge.run.audit import Audit
from ckptforge.values import Place

if TYPE_CHECKING:
    from ckptforge.run.worker import Worker


class Consumer(Protocol):
    """Who lets sources go, in two steps: `prepare` may take its time, in any thread, when all that
    was made of a source is hashed; `let_go` is called in turn."""

    @property
    def gone(self) -> Collection[int]:
        """The sources that an earlier run has let go."""
        ...

    def prepare(self, source: int) -> None:
        """Makes what was made of a source durable, and what is to be kept of it."""

    def let_go(self, source: int, audit: Audit) -> None:
        """Removes it, unless what casts did so far is refused."""


class Release(msgspec.Struct, frozen=True):
    """A source that nothing needs any more."""

    source: int
    consumer: Consumer
    plan: Plan
    nbytes: int = 0

    def do(self, worker: Worker) -> None:
        """Makes all durable that was made of it. Raises `OutputError`."""
        worker.files.forget(self.plan.sources[self.source].path)
        self.consumer.prepare(self.source)


class Needs:
    """Which sources are needed by tensors that aren't finished, or have to be hashed."""

    def __init__(
        self,
        plan: Plan,
        blocks: Sequence[int],
        kept: Collection[Place],
        gone: Collection[int],
    ) -> None:
        self._numbers = {file.path: i for i, file in enumerate(plan.sources)}
        self._blocks = list(blocks)
        self._tensors = [0] * len(self._blocks)
        for assembly in plan.assemblies:
            if assembly.place.nbytes and assembly.place not in kept:
                for source in self.of(assembly):
                    self._tensors[source] += 1
                    if source in gone:
                        place, path = assembly.place, plan.sources[source].path
                        raise OutputError(
                            f"{place.path}: {place.name} was finished before, but isn't whole any "
                            f"more, and {path}, which it was made of, was removed."
                        )

    def of(self, assembly: Assembly) -> set[int]:
        """The sources that a tensor is made of."""
        return {
            self._numbers[stored.path]
            for one in assembly.fragments
            for stored in (one.stored, *(s for step in one.steps for s in step.inputs))
            if stored.path in self._numbers
        }

    def made(self, source: int) -> bool:
        """Notes that a tensor that is made of a source is done; whether it was the last."""
        self._tensors[source] -= 1
        return not self._tensors[source]

    def hashed(self, source: int) -> bool:
        """Notes that a block of a source is hashed; whether nothing is left of it."""
        self._blocks[source] -= 1
        return not self.left(source)

    def left(self, source: int) -> int:
        """How many tensors and blocks of a source are left."""
        return self._tensors[source] + self._blocks[source]

    def unneeded(self) -> list[int]:
        """The sources that no tensor needs."""
        return [source for source, left in enumerate(self._tensors) if not left]


def most_disk(plan: Plan, kept: Collection[Place] = ()) -> int:
    """Bytes of disk that a run needs at its worst moment where sources are let go: those of what it
    writes without those of sources that nothing needs by then."""
    needs = Needs(plan, [0] * len(plan.sources), kept, ())
    most = held = 0
    for assembly in plan.assemblies:
        if assembly.place.nbytes and assembly.place not in kept:
            held += assembly.place.nbytes
            most = max(most, held)
            held -= sum(plan.sources[i].size for i in needs.of(assembly) if needs.made(i))
    return most
