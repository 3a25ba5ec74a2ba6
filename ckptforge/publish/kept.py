"""What an earlier run finished and is there still."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptforge.examine.hashes import tensor_hashes
from ckptforge.planning.plan import Plan
from ckptforge.run.budget import Budget
from ckptforge.run.schedule import Finished, Key
from ckptforge.storage.store import Writer
from ckptforge.values import Place


def finished_tensors(plan: Plan, tensors: Mapping[Key, Finished]) -> dict[Place, Finished]:
    """The tensors of a plan among those that a journal calls finished."""
    if not tensors:
        return {}
    files = {plan.name_of(file.path): file.places for file in plan.files}
    return {
        files[file][name]: found
        for (file, name), found in tensors.items()
        if name in files.get(file, ())
    }


def kept_tensors(
    plan: Plan, tensors: Mapping[Key, Finished], writers: Mapping[Path, Writer], budget: Budget
) -> dict[Place, Finished]:
    """Those that are in the files, by their hashes, which are made again: what was written last
    before a crash may not have become durable."""
    if not (finished := finished_tensors(plan, tensors)):
        return {}
    files: dict[Path, list[Place]] = {}
    for place in finished:
        files.setdefault(place.path, []).append(place)
    hashes = tensor_hashes(files, budget, opened=writers)
    return {
        place: found
        for place, found in finished.items()
        if hashes[place.path][place.name] == found.hash
    }
