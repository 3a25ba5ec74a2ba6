"""Directories of MindSpore: one file, `rank_<r>/` with files of steps, unified safetensors."""

from __future__ import annotations

import re
from itertools import count, islice
from pathlib import Path

from msgspec.structs import replace

from ckptforge.checkpoints.duplicates import without_duplicates
from ckptforge.checkpoints.files import model_of, of_a_format, read_file, weight_map_of
from ckptforge.checkpoints.kinds import check_step, refuse_step
from ckptforge.checkpoints.sniff import STRATEGY_FILE, identify
from ckptforge.checkpoints.whereabouts import explain_directory
from ckptforge.errors import FormatError, InputNotFoundError
from ckptforge.foreign.files import entries_of, is_there
from ckptforge.foreign.paths import is_directory, is_file
from ckptforge.formats.index import FileIndex
from ckptforge.formats.registry import endings
from ckptforge.model import Model
from ckptforge.spelling import option
from ckptforge.wording import alternatives, counted, listing

UNIFIED_MAP = "param_name_map.json"
HYPER_PARAMETERS = "hyper_param.safetensors"
_RANK = re.compile(r"rank_([0-9]+)")
_STEP = re.compile(r".*-([0-9]+)_([0-9]+)\.[^.]+", re.DOTALL)


def rank_directories(directory: Path) -> dict[int, Path]:
    """rank → directory, for the `rank_<r>` directories in `directory`, in numeric order. Raises
    `FormatError` where two are of one rank."""
    ranks: dict[int, Path] = {}
    for path in entries_of(directory):
        match = _RANK.fullmatch(path.name)
        if match and is_directory(path):
            rank = int(match[1])
            if rank in ranks:
                raise FormatError(
                    f"{directory}: {ranks[rank].name} and {path.name} are both rank {rank}."
                )
            ranks[rank] = path
    return dict(sorted(ranks.items()))


def is_unified(directory: Path) -> bool:
    """Whether the directory was written by MindSpore's `unified_safetensors`."""
    return is_there(directory / UNIFIED_MAP)


def read_unified(directory: Path) -> list[FileIndex]:
    """The files of MindSpore's `unified_safetensors`: the parts named by `param_name_map.json`, and
    the hyper parameters. Of a tensor that several hold, the one in the file that the map names; see
    `without_duplicates`. Raises `InputNotFoundError` for a file that isn't there, and
    `FormatError`."""
    map_path = directory / UNIFIED_MAP
    weight_map = weight_map_of(map_path, "parameter")
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not is_file(directory / name)]:
        raise InputNotFoundError(
            f"{directory}: files named by {UNIFIED_MAP} are missing:\n{listing(missing)}"
        )
    files = [read_file(directory / name) for name in names]
    held = {file.path.name: file.tensors for file in files}
    lost = (item for item in weight_map.items() if item[0] not in held[item[1]])
    if wrong := [f"{tensor}: {name}" for tensor, name in lost]:
        raise FormatError(
            f"{map_path}: tensors that aren't in the file it names:\n{listing(wrong)}"
        )
    hyper = directory / HYPER_PARAMETERS
    if is_file(hyper) and hyper.name not in names:
        files.append(read_file(hyper))
    return without_duplicates(files, weight_map, map_path)


def choose_checkpoint(directory: Path, step: int | None) -> tuple[Path, str | None]:
    """The checkpoint of a directory: the only one, or that with the highest (epoch, step) in its
    name, or that of `step`.

    Names end in `-<epoch>_<step>`. Also returns a sentence when there was a choice. Raises
    `InputNotFoundError` when there is none, `FormatError` when the names leave it open.
    """
    paths = of_a_format(filter(is_file, entries_of(directory)))
    if not paths:
        ends = alternatives(sorted(endings()))
        raise InputNotFoundError(f"{directory}: no {ends} file in it.")
    matches = {path: _STEP.fullmatch(path.name) for path in paths}
    steps = {path: (int(m[1]), int(m[2])) for path, m in matches.items() if m}
    check_step(step)
    if step is not None:
        steps = {path: found for path, found in steps.items() if found[1] == step}
        if not steps:
            raise InputNotFoundError(
                f"{directory}: no checkpoint of step {step}; its files:\n"
                f"{listing([p.name for p in paths])}"
            )
        paths = sorted(steps)
    if len(paths) == 1:
        return paths[0], None
    unnumbered = [path.name for path in paths if path not in steps]
    if unnumbered:
        if (found := identify(paths[0])) is not None and found.what == STRATEGY_FILE:
            raise FormatError(
                f"{directory}: holds {counted(len(paths), 'file')}, of which {paths[0].name} is "
                f"{found.what}: give the directory with {option('strategy_dir')}, and the "
                "checkpoint in its place."
            )
        raise FormatError(
            f"{directory}: {len(paths)} checkpoints, and these names have no -<epoch>_<step> to "
            "choose by; give the file itself:\n"
            f"{listing(unnumbered)}"
        )
    best = max(steps.values())
    chosen = [path for path in paths if steps[path] == best]
    if len(chosen) > 1:
        raise FormatError(
            f"{directory}: {chosen[0].name} and {chosen[1].name} have the same epoch and step; "
            "give the file itself."
        )
    return (
        chosen[0],
        f"{directory}: of {len(paths)} checkpoints the last is taken, {chosen[0].name} "
        f"({option('step')} picks another).",
    )


def step_of(path: Path) -> int | None:
    """The training step in the name of a file, `…-<epoch>_<step>`."""
    match = _STEP.fullmatch(path.name)
    return int(match[2]) if match else None


def read_ranks(directory: Path, step: int | None) -> tuple[list[FileIndex], list[str]]:
    """The checkpoint of every `rank_<r>` directory, by rank, and sentences about choices.

    Raises `InputNotFoundError` for a rank that is missing, `FormatError` for ranks that are at
    different steps.
    """
    ranks = rank_directories(directory)
    if not ranks:
        raise InputNotFoundError(
            f"{directory}: no rank_<r> directories in it.{explain_directory(directory)}"
        )
    if missing := max(ranks) + 1 - len(ranks):
        first = islice((f"rank_{rank}" for rank in count() if rank not in ranks), min(missing, 10))
        raise InputNotFoundError(
            f"{directory}: ranks are missing:\n{listing(list(first), total=missing)}"
        )
    files, several, steps = [], [], {}
    for rank, path in ranks.items():
        chosen, note = choose_checkpoint(path, step)
        files.append(read_file(chosen))
        several += [f"{path.name}/{chosen.name}"] if note else []
        match = _STEP.fullmatch(chosen.name)
        steps[rank] = (int(match[1]), int(match[2])) if match else None
    if len(set(steps.values())) > 1:
        other = next(rank for rank in steps if steps[rank] != steps[0])
        raise FormatError(
            f"{directory}: the ranks are at different steps: {files[0].path.name} of rank 0, "
            f"{files[other].path.name} of rank {other}; name a step that all have with "
            f"{option('step')}."
        )
    if not several:
        return files, []
    few = f"{len(several)} of " if len(several) < len(ranks) else ""
    where = f"in {few}{len(ranks)} ranks"
    return files, [
        f"{directory}: {where} the last of several checkpoints is taken, such as {several[0]} "
        f"({option('step')} picks another)."
    ]


class UnifiedSafetensors:
    """MindSpore's `unified_safetensors`."""

    def recognises(self, directory: Path) -> bool:
        """By the map of its parameters."""
        return is_unified(directory)

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All parts as one model."""
        refuse_step(step, directory, "a directory of unified safetensors")
        return model_of(directory, read_unified(directory))


class OneRank:
    """The output of a job of one device, in `rank_0/`; `parallel/` puts several together."""

    def recognises(self, directory: Path) -> bool:
        """By the names of its directories."""
        return bool(rank_directories(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """The one rank's checkpoint. Raises `FormatError` for several ranks."""
        ranks = rank_directories(directory)
        if list(ranks) != [0]:
            held = counted(len(ranks), "rank directory")
            raise FormatError(
                f"{directory}: holds {held}, the shards of one model; give the strategy of their "
                f"job with {option('strategy_dir')}, or name the directory of one rank if each "
                "holds the whole model."
            )
        chosen, note = choose_checkpoint(ranks[0], step)
        found = model_of(directory, [read_file(chosen)], *([note] if note else []))
        return replace(found, ranks=1)


class OneFile:
    """A directory with one file of tensors, or one for each of several steps."""

    def recognises(self, directory: Path) -> bool:
        """By the endings of its files."""
        return bool(of_a_format(entries_of(directory)))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """The file, or that of the step that is wanted."""
        chosen, note = choose_checkpoint(directory, step)
        return model_of(directory, [read_file(chosen)], *([note] if note else []))


UNIFIED, ONE_RANK, ONE_FILE = UnifiedSafetensors(), OneRank(), OneFile()
