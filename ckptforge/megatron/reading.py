"""An iteration of Megatron's as a model: the files of its ranks, put together.

How a tensor is cut stands in the [shard] rows of its layout, how a job is cut in the arguments in
its files. Numbers of layers and of experts, which count within a file, become those of the model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.replicas import Replicas
from ckptforge.errors import ConfigError, FormatError, LayoutError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.megatron.arguments import described, job_of, read_arguments
from ckptforge.megatron.chunks import FORMAT, LEFT, open_chunks
from ckptforge.megatron.fsdp import open_fsdp
from ckptforge.megatron.job import Chunk, Job, Rank, found_layers
from ckptforge.megatron.joining import Joining, Tensors
from ckptforge.megatron.layouts import FAMILY, layout_of
from ckptforge.megatron.names import (
    FILE,
    Stack,
    is_extra_state,
    layer_of,
    numbers_of,
    stack_of,
    with_layer,
)
from ckptforge.megatron.norms import norm_read, norms_apart
from ckptforge.megatron.roots import MegatronIteration, find_iteration, is_fsdp
from ckptforge.model import IN_RANKS, Account, Model
from ckptforge.reading.known import Choices, known_of
from ckptforge.wording import counted

_log = logging.getLogger(__name__)
_OF_MODEL = re.compile(r"model([0-9]{0,3})\.(.+)", re.DOTALL)


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's file: the tensors of each part of its stage, by their names there."""

    rank: Rank
    index: FileIndex
    parts: Mapping[int, Tensors]


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an iteration, how its job is cut, and its arguments; `left` are tensors that are
    no weights, `repeated` how many other files repeat what these hold."""

    iteration: MegatronIteration
    files: tuple[File, ...]
    job: Job
    arguments: Mapping[str, Any]
    left: tuple[str, ...]
    repeated: int


def open_megatron(directory: Path, choices: Choices, check_replicas: bool | None = False) -> Model:
    """The root of a run, or one iteration, as a model of full tensors in its layout.

    Raises `InputNotFoundError` for what isn't there, `FormatError` for files that contradict each
    other, and what choosing a table raises, which the layout's [shard] rows are needed of.
    """
    iteration = find_iteration(directory, choices.step)
    if is_fsdp(iteration.directory):
        return open_fsdp(directory, iteration)
    if not iteration.ranks:
        return open_chunks(directory, iteration, choices)
    opened = _opened(iteration)
    held = list(_renamed(opened))
    values = {name: value for _, own in held for name, value in own.items()}
    model = Model(
        path=directory,
        format=FORMAT + IN_RANKS,
        directory=directory,
        files=tuple(file.index for file in opened.files),
        values=values,
        account=Account().noting(*_notes(opened)).leaving(LEFT, opened.left),
        ranks=len(opened.files),
        run={"iteration": max(opened.iteration.number or 0, 0)},
        family=FAMILY,
        described=described(opened.arguments),
    )
    known = known_of(model, choices)
    table, layout = layout_of(directory, values, known)
    joining = Joining(opened.job, table, layout, known, Replicas(check_replicas))
    try:
        joined = joining.values(directory, held)
    except (LayoutError, ConfigError) as error:
        raise type(error)(f"{directory}: {error}") from error
    ranks = counted(len(opened.files), "rank")
    _log.info("opened %s: %s of %s", opened.iteration.directory, FORMAT, ranks)
    return replace(model, values=joined, layout=layout.name)


def _notes(opened: Opened) -> tuple[str, ...]:
    if not opened.repeated:
        return opened.iteration.notes
    said = f"{counted(opened.repeated, 'file')} of ranks that share their experts with others"
    return (*opened.iteration.notes, f"{said} weren't read: by its args the job needs none of them")


def _opened(iteration: MegatronIteration) -> Opened:
    ranks = iteration.ranks
    first = min(ranks, key=lambda path: path.name)
    arguments = read_arguments(first / FILE)
    files, left = [], list[str]()
    for path in sorted(ranks, key=lambda path: path.name):
        index = read_file(path / FILE)
        parts: dict[int, Tensors] = {}
        for name, value in index.values():
            if match := _OF_MODEL.fullmatch(name):
                if not is_extra_state(match[2]):
                    parts.setdefault(int(match[1] or 0), {})[match[2]] = value
            else:
                left.append(name)
        files.append((path, index, parts))
    most = max(max(p, default=0) for _, _, p in files) + 1
    if arguments:
        job = job_of(arguments, most, first / FILE)
    else:
        job = _job_by_names([(path.name, p) for path, _, p in files], most)
    found = tuple(
        File(rank=_rank(path, job), index=index, parts=parts) for path, index, parts in files
    )
    needed = tuple(file for file in found if job.writes(file.rank))
    if {file.rank for file in found} != set(job.grid()):  # else some converter writes them all
        needed = found
    told = "args say" if arguments else "the names of directories say"
    _check_ranks(f"{iteration.directory}: {told}", job, [file.rank for file in needed])
    return Opened(
        iteration=iteration,
        files=needed,
        job=job,
        arguments=arguments,
        left=tuple(dict.fromkeys(left)),
        repeated=len(found) - len(needed),
    )


def _job_by_names(files: Sequence[tuple[str, Mapping[int, Tensors]]], parts: int) -> Job:
    """How a job is cut whose files have no arguments, as MindSpeed-MM's converter writes them: by
    the numbers in the names of their directories. One beside that of tensor parallel is the
    expert-parallel rank where all files hold tensors of the same names, as stages don't."""
    numbers = [numbers_of(name) or (0,) for name, _ in files]
    tensor, *others = [max(column) + 1 for column in zip(*numbers, strict=False)]
    held = {frozenset((i, name) for i, own in p.items() for name in own) for _, p in files}
    stages, expert = (1, *others) if len(others) == 1 and len(held) == 1 else (*others, 1, 1)[:2]
    return Job(tensor=tensor, stages=stages, expert=expert, expert_tensor=tensor, parts=parts)


def _rank(path: Path, job: Job) -> Rank:
    """The rank whose directory this is. One number beside that of tensor parallel is the stage, or
    the expert-parallel rank in a job of one stage that is cut by experts."""
    tensor, *others = numbers_of(path.name) or ()
    if len(others) == 2:
        return Rank(tensor=tensor, stage=others[0], expert=others[1])
    if not others:
        return Rank(tensor=tensor)
    if job.stages > 1 or job.expert == 1:
        return Rank(tensor=tensor, stage=others[0])
    return Rank(tensor=tensor, expert=others[0])


def _check_ranks(said: str, job: Job, found: Sequence[Rank]) -> None:
    wanted = set(job.ranks())
    if wanted == set(found):
        return
    lacking, strange = sorted(wanted - set(found)), sorted(set(found) - wanted)
    said += (
        f" tensor parallel {job.tensor}, {counted(job.stages, 'stage')}, expert parallel "
        f"{job.expert}"
    )
    if lacking and not (job.expert > 1 and job.tensor > 1 and len({*found}) < len(wanted) // 2):
        one = lacking[0]
        raise FormatError(
            f"{said}, but the file of rank tensor {one.tensor}, stage {one.stage}, expert "
            f"{one.expert} isn't there ({counted(len(lacking), 'file')} missing); copy what is "
            "missing, or name another iteration."
        )
    one = (strange or lacking)[0]
    raise FormatError(
        f"{said}, but there are {counted(len(found), 'file')}, such as that of tensor "
        f"{one.tensor}, stage {one.stage}, expert {one.expert}; are they of one job?"
    )


def _renamed(opened: Opened) -> Iterator[tuple[Rank, Tensors]]:
    """The tensors of each file under the numbers that layers have in the model."""
    present: dict[Stack, dict[Chunk, set[int]]] = {}
    for file in opened.files:
        for part, tensors in file.parts.items():
            for name in tensors:
                if (number := layer_of(name)) is not None:
                    own = present.setdefault(stack_of(name), {})
                    own.setdefault((file.rank.stage, part), set()).add(number)
    layers = {
        stack: found_layers(opened.job, {chunk: sorted(own) for chunk, own in chunks.items()})
        for stack, chunks in present.items()
    }
    apart = norms_apart({n for file in opened.files for own in file.parts.values() for n in own})
    for file in opened.files:
        found: Tensors = {}
        for part, tensors in file.parts.items():
            chunk = file.rank.stage, part
            for name, value in tensors.items():
                local, full = layer_of(name), name
                if local is not None:
                    full = with_layer(name, layers[stack_of(name)].held[chunk][local])
                full = norm_read(full, apart)
                if full in found and local is None:
                    continue  # a copy of the embedding
                if full in found:
                    raise FormatError(f"{file.index.path}: holds {shown(full)} twice.")
                found[full] = value
        yield file.rank, found
