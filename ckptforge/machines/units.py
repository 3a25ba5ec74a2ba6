"""Units: a plan in pieces that are carried out apart, each by one process, in any order, and again
where one got lost.

A unit is a run of the tensors of one file. All follows from the plan, so that processes that share
no more than a disk cut it alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from ckptforge.formats.layout import OutputFile
from ckptforge.planning.lower import Assemblies
from ckptforge.planning.plan import Plan

_UNITS_OF_A_PART = 8  # about, so that there are some to be taken over


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors `first` to before `last` of the file of index `file`. `start` is where its bytes
    lie among those of all tensors."""

    number: int
    file: int
    first: int
    last: int
    start: int
    nbytes: int


def units_of(plan: Plan, most: int | None) -> list[Unit]:
    """A plan as units of at most `most` bytes, or of one tensor that has more, in its order; with
    None as one of each file."""
    found: list[Unit] = []
    runs: dict[int, list[tuple[int, int, int]]] = {}  # of files that are laid out alike
    start = 0
    for i, file in enumerate(plan.files):
        if id(file.literals) not in runs:
            runs[id(file.literals)] = list(_runs(file, most))
        for first, last, nbytes in runs[id(file.literals)]:
            found.append(
                Unit(number=len(found), file=i, first=first, last=last, start=start, nbytes=nbytes)
            )
            start += nbytes
    return found


def _runs(file: OutputFile, most: int | None) -> Iterator[tuple[int, int, int]]:
    """(first, last, bytes) of runs of a file's tensors."""
    first = held = 0
    for i, place in enumerate(file.places.values()):
        if most is not None and i > first and held + place.nbytes > most:
            yield first, i, held
            first, held = i, 0
        held += place.nbytes
    if file.places:
        yield first, len(file.places), held


def parts_of(plan: Plan, count: int) -> tuple[list[Unit], list[int]]:
    """A plan's units for so many parts, and which part, from 1, each belongs to: runs of about as
    many bytes."""
    total = plan.tensor_bytes
    units = units_of(plan, max(1, total // (_UNITS_OF_A_PART * count)))
    owners = [
        min(count, (2 * unit.start + unit.nbytes) * count // (2 * total) + 1) if total else 1
        for unit in units
    ]
    return units, owners


def of_unit(plan: Plan, unit: Unit, whole: bool = False) -> Plan:
    """What is to be done of a plan in a unit, as a plan of one file; its seals are for the end, and
    what isn't tensors is another's to write, but where the unit is a `whole` file."""
    made = plan.assemblies.only(unit.file, unit.first, unit.last)
    if whole:
        (placed,) = made.files
        file = replace(placed.file, literals=plan.files[unit.file].literals)
        made = Assemblies(made.values, (replace(placed, file=file),))
    return replace(plan, assemblies=made, sources=(), small_files={})
