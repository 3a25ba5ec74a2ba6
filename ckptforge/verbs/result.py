"""What a command gives back: to a Python caller as an object, to a pipeline as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ckptforge.errors import OutputError
from ckptforge.planning.plan import Plan
from ckptforge.publish.audit import audit_json
from ckptforge.publish.publisher import publisher_of
from ckptforge.run.audit import Audit
from ckptforge.run.budget import Budget
from ckptforge.verbs.parts import source_parts, target_parts
from ckptforge.wording import brief, counted


@dataclass(frozen=True, repr=False)
class Result:
    """`files` that were written (or would be, for a dry run), `bytes` and `tensors` in them, and
    what the casts did.

    `left_out` is reason → tensor names; `seconds` is the time of the copying. `held` makes what
    only `to_json` and pages show, who holds which part of what: it takes as long as the plan.
    """

    verb: str
    output: Path
    files: tuple[Path, ...]
    bytes: int
    tensors: int
    audit: Audit
    left_out: dict[str, list[str]]
    notes: tuple[str, ...]
    facts: dict[str, Any]
    seconds: float
    dry_run: bool = False
    peak_buffers: int = 0
    held: Callable[[], dict[str, Any]] = field(default=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        how = "dry run" if self.dry_run else f"{self.seconds:.2f} s"
        files, tensors = counted(len(self.files), "file"), counted(self.tensors, "tensor")
        written = f"{tensors}, {self.bytes} bytes in {files}"
        return f"<Result of {self.verb}: {brief(self.output)}, {written}, {how}>"

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "ok": True,
            "verb": self.verb,
            "dry_run": self.dry_run,
            "output": str(self.output),
            "files": [str(path) for path in self.files],
            "bytes": self.bytes,
            "tensors": self.tensors,
            **self.held(),
            **self.facts,
            "casts": audit_json(self.audit),
            "left_out": self.left_out,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "buffer_bytes": self.peak_buffers,
        }


def result_of(plan: Plan, **more: Any) -> Result:
    """What a plan makes, with what `more` says of a run of it."""
    found: dict[str, Any] = {
        "verb": plan.verb,
        "output": plan.output,
        "files": plan.paths,
        "bytes": plan.nbytes,
        "tensors": plan.tensor_count,
        "audit": Audit(),
        "left_out": plan.left_out,
        "notes": plan.notes,
        "facts": dict(plan.facts),
        "seconds": 0.0,
    }
    return Result(**{**found, **more})


def dry_result(
    plan: Plan, budget: Budget, more_notes: Sequence[str] = (), spared: int = 0
) -> Result:
    """The result of a dry run; a note says where the disk has no room for it, of which `spared`
    bytes need none."""
    notes = [*plan.notes, *more_notes]
    try:
        publisher_of(plan.output).check_room(plan, spared)
    except OutputError as error:
        notes.append(str(error))

    def held() -> dict[str, Any]:
        return {
            "source_parts": [asdict(one) for one in source_parts(plan)],
            "parts": [asdict(one) for one in target_parts(plan)],
        }

    facts = {**plan.facts, "planned_casts": plan.casts()}
    buffers = budget.total
    return result_of(
        plan, notes=tuple(notes), facts=facts, dry_run=True, peak_buffers=buffers, held=held
    )
