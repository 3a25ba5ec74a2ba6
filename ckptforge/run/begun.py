"""Files that are begun and not finished, for whoever shows how far a run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptforge.planning.plan import Plan
from ckptforge.run.moves import Move
from ckptforge.run.tasks import Batch, Fill
from ckptforge.values import Place

Files = Mapping[Path, tuple[int, int]]


class Begun:
    """The files of a plan that are begun and not finished, and of each the bytes of tensors that
    are written and that it will have; `kept` are tensors that were written before."""

    def __init__(self, plan: Plan, kept: Iterable[Place]) -> None:
        self._sizes = {file.path: file.tensor_bytes for file in plan.files}
        self._done = dict.fromkeys(self._sizes, 0)
        for place in kept:
            self._done[place.path] += place.nbytes
        self.files: dict[Path, tuple[int, int]] = {}

    def wrote(self, parts: Iterable[Move | Fill]) -> None:
        """Notes what has been written."""
        for part in parts:
            for place, nbytes in part.writes:
                path = place.path
                done = self._done[path] = self._done[path] + nbytes
                if done < self._sizes[path]:
                    self.files[path] = done, self._sizes[path]
                else:
                    self.files.pop(path, None)


def telling(
    plan: Plan, kept: Iterable[Place], finished: Callable[[Any, Any], None], progress: object
) -> Callable[[Any, Any], None]:
    """`finished`, and after it `progress.files(…)` with what is begun, where `progress` has such a
    method and there are several files."""
    tell: Callable[[Files], None] | None = getattr(progress, "files", None)
    if tell is None or len(plan.files) < 2:
        return finished
    begun = Begun(plan, kept)

    def both(task: Any, outcome: Any) -> None:
        finished(task, outcome)
        if isinstance(task, Batch):
            begun.wrote(task.parts)
            tell(begun.files)

    return both
