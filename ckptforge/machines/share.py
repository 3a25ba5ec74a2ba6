"""Which part of a job a process is to do: what is given, or what starts many processes says by its
variables."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from ckptforge.errors import UsageError, shown
from ckptforge.spelling import option

# (index, count) of what starts processes, the most particular first: torchrun, Open MPI, MPICH and
# Intel MPI, Slurm's tasks, ModelArts.
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("VC_TASK_INDEX", "MA_NUM_HOSTS"),
)
_KUBERNETES = "JOB_COMPLETION_INDEX"  # of an Indexed Job, which doesn't say of how many
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")


class Share(msgspec.Struct, frozen=True):
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def share_of(text: str, variables: Mapping[str, str]) -> Share:
    """What `I/N`, `auto` or `auto/N` means. Raises `UsageError`."""
    match = re.fullmatch(r"(?:([0-9]{1,9})|auto)(?:/([0-9]{1,9}))?", text)
    if match is None or (match[1] and not match[2]):
        raise UsageError(f"{option('part')} is {shown(text)}, expected I/N (as 1/4) or auto.")
    if match[1]:
        share = Share(int(match[1]), int(match[2]))
    else:
        index, count = _found(variables, int(match[2]) if match[2] else None)
        share = Share(index + 1, count)
    if not 1 <= share.number <= share.count:
        raise UsageError(f"{option('part')} is {share}: expected a part from 1 to {share.count}.")
    return share


def _found(variables: Mapping[str, str], count: int | None) -> tuple[int, int]:
    """(index from 0, count) by what the variables say. Raises `UsageError`."""
    for index, of in _VARIABLES:
        if index in variables and of in variables:
            found, many = _number(variables, index), _number(variables, of)
            if of == "SLURM_NTASKS" and _ARRAY[0] in variables:
                found += many * _in_array(variables)[0]
                many *= _in_array(variables)[1]
            return found, count or many
    if all(name in variables for name in _ARRAY):
        found, many = _in_array(variables)
        return found, count or many
    if _KUBERNETES in variables and count is not None:
        return _number(variables, _KUBERNETES), count
    more = (
        f": {_KUBERNETES} is, which doesn't say of how many; give {option('part', 'auto/N')}"
        if _KUBERNETES in variables
        else ""
    )
    raise UsageError(
        f"{option('part', 'auto')}: none of the variables of Slurm, torchrun, MPI, Kubernetes and "
        f"ModelArts is set{more}. Give {option('part', 'I/N')}."
    )


def _in_array(variables: Mapping[str, str]) -> tuple[int, int]:
    task, first, count = (_number(variables, name) for name in _ARRAY)
    if task - first >= count:
        raise UsageError(
            f"{option('part', 'auto')}: the array's tasks are not consecutive: {_ARRAY[0]} is "
            f"{task}, the first {first}, and there are {count}. Number them 1 to {count}."
        )
    return task - first, count


def _number(variables: Mapping[str, str], name: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", variables[name]):
        raise UsageError(
            f"{option('part', 'auto')}: the variable {name} is {shown(variables[name])}, expected "
            "a number."
        )
    return int(variables[name])
