"""Publishing what the parts of a job have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptforge.errors import OutputError, UsageError, shown
from ckptforge.spelling import option
from ckptforge.verbs.options import Finish
from ckptforge.verbs.parting import FINISHING
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result

_VERBS = ("to_ms", "to_torch", "convert", "merge", "split", "reshard", "edit", "average")


@verb(Finish)
def finish(options: Finish) -> Result:
    """Checks that all parts of a job, which were run with `part`, have written what they were to,
    and publishes the output as one process would have. Returns a `Result`.

    Raises `OutputError` that names the parts that are missing or not finished, and `UsageError`
    where relative paths would be of another directory.
    """
    import ckptforge
    from ckptforge.machines.parts import Parts

    parts = Parts(options.out)
    head = parts.head
    if head is None:
        raise OutputError(
            f"{options.out}: no parts of a run are there to be finished, in "
            f"{parts.directory.parent}; run them first, each with {option('part')}."
        )
    name, given = _call(head, parts)
    if head.get("cwd") is not None and head["cwd"] != str(Path.cwd()):
        raise UsageError(
            f"{options.out}: its parts were run with relative paths, in the directory "
            f"{shown(head['cwd'])}; run this there."
        )
    running = {
        "workers": options.workers,
        "memory": options.memory,
        "progress": options.progress,
        "overwrite": options.overwrite or bool(given.get("overwrite")),
    }
    before = FINISHING.set("checking" if options.check else "trusting")
    try:
        result: Result = getattr(ckptforge, name)(**{**given, **running, "resume": True})
    finally:
        FINISHING.reset(before)
    return result


def _call(head: Any, parts: Any) -> tuple[str, dict[str, Any]]:
    """The verb and the options that the parts were run with."""
    try:
        name, given = head["call"]
        if name in _VERBS and isinstance(given, dict):
            return name, {str(key): value for key, value in given.items()}
    except (KeyError, TypeError, ValueError):
        pass
    raise OutputError(f"{parts.directory / 'plan'}: doesn't say which command was run.")
