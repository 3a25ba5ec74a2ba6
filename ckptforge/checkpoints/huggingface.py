"""Hugging Face model directories: which files hold the weights, and how weights are cut into
shards.

Conventions of `huggingface_hub` and transformers: `model.safetensors`, or
`model-00001-of-0000N.safetensors` with `model.safetensors.index.json` {"metadata": {"total_size":
bytes}, "weight_map": {tensor: file name}}.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from msgspec.structs import replace

from ckptforge.checkpoints.duplicates import without_duplicates
from ckptforge.checkpoints.files import model_of, read_file, weight_map_of
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import is_there, named
from ckptforge.foreign.paths import is_file
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model
from ckptforge.wording import counted, listing

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]+)-of-(?P<count>[0-9]+)\.safetensors")


def read_directory(directory: Path) -> list[FileIndex]:
    """The indexes of a directory's weight files, the sharding checked against its index file where
    there is one. Of a tensor that several files hold, the one that the index names is read; see
    `without_duplicates`.

    Raises `InputNotFoundError` for missing shards and directories without safetensors,
    `FormatError` when files and index disagree, or two files hold different tensors of one name and
    no index says which is meant.
    """
    indexes = named(directory, ".safetensors.index.json")
    alone = indexes[0] if len(indexes) == 1 else None
    chosen = next((path for path in indexes if path.name == INDEX), alone)
    if chosen is not None:
        return _read_indexed(directory, chosen)
    if indexes:
        raise FormatError(
            f"{directory}: {len(indexes)} index files ({', '.join(p.name for p in indexes)}) and "
            f"none is {INDEX}; keep one."
        )
    if is_there(directory / SINGLE):
        names = (path.name for path in named(directory, ".safetensors"))
        shards = [name for name in names if _SHARD_NAME.fullmatch(name)]
        first = f"such as {shards[0]}, as there is no index" if shards else ""
        note = f"{SINGLE} is read, and no shard beside it, {first}." if shards else None
        return _noted([read_file(directory / SINGLE)], note)
    paths = named(directory, ".safetensors")
    if not paths:
        raise InputNotFoundError(f"{directory}: no .safetensors files in it.")
    _check_shard_names(directory, paths)
    return without_duplicates([read_file(path) for path in paths], {})


def shard_of(path: Path) -> str | None:
    """In words, that a file is one of several of a model, by its name or an index; or None."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match and int(match["count"]) > 1:
        return (
            f"is one shard of {int(match['count'])} of a model; name the directory, {path.parent}, "
            "for all of it"
        )
    index = path.parent / INDEX
    if path.suffix != ".safetensors" or not is_file(index):
        return None
    try:
        files = set(weight_map_of(index).values())
    except FormatError:
        return None
    if path.name in files and len(files) > 1:
        return (
            f"is one shard of {len(files)} of a model, by {INDEX}; name the directory, "
            f"{path.parent}, for all of it"
        )
    return None


def _read_indexed(directory: Path, index_path: Path) -> list[FileIndex]:
    weight_map = weight_map_of(index_path)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not is_file(directory / name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise InputNotFoundError(
            f"{directory}: {len(missing)} of {counted(len(names), 'shard')} named by "
            f"{index_path.name} {are} missing:\n{listing(missing)}\n"
            "Get them from where the model came from."
        )
    files = [read_file(directory / name) for name in names]
    held = {file.path.name: file.tensors for file in files}
    where: dict[str, str] = {}
    for name, tensors in held.items():
        where |= dict.fromkeys(tensors, name)
    if where != weight_map:
        _refuse_other_map(index_path, weight_map, where, held)
    single = directory / SINGLE
    note = (
        f"reading the shards of {index_path.name}, not {SINGLE} beside them, which transformers "
        "would load."
    )
    beside = is_file(single) and SINGLE not in held
    found = without_duplicates(files, weight_map, index_path)
    return _noted(found, note if beside else None)


def _refuse_other_map(
    index_path: Path,
    weight_map: Mapping[str, str],
    where: Mapping[str, str],
    held: Mapping[str, Collection[str]],
) -> None:
    """Raises `FormatError` where an index says else than the shards that are `held`."""
    for tensor, name in weight_map.items():
        if tensor not in where:
            raise FormatError(
                f"{index_path}: tensor {shown(tensor)} should be in {name}, but no shard holds it."
            )
        if tensor not in held[name]:
            raise FormatError(
                f"{index_path}: tensor {shown(tensor)} should be in {name} but lies in "
                f"{where[tensor]}; get the index and the shards again."
            )
    unlisted = [f"{tensor} in {name}" for tensor, name in where.items() if tensor not in weight_map]
    if unlisted:
        tensors = counted(len(unlisted), "tensor of its shards", "aren't")
        raise FormatError(
            f"{index_path}: {tensors} listed:\n{listing(unlisted)}\nGet the index "
            "and the shards again."
        )


def _noted(files: list[FileIndex], note: str | None) -> list[FileIndex]:
    return files if note is None else [replace(files[0], notes=(*files[0].notes, note)), *files[1:]]


def _check_shard_names(directory: Path, paths: list[Path]) -> None:
    sets: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if match := _SHARD_NAME.fullmatch(path.name):
            sets.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in sets.items():
        if count <= 99_999 and len(numbers) < count:
            lacking = sorted({*range(1, count + 1)} - numbers)
            missing = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in lacking]
            raise InputNotFoundError(
                f"{directory}: shards are missing:\n{listing(missing)}\nGet "
                "them from where the model came from."
            )


class HuggingFace:
    """A Hugging Face directory, known by the names of its weights or of their index, which are
    those that transformers looks for (`fixed`) or others."""

    def __init__(self, fixed: bool) -> None:
        self.fixed = fixed

    def recognises(self, directory: Path) -> bool:
        """By other names: shards with an index or a config.json beside them, or several files that
        aren't the steps of a training job."""
        if self.fixed:
            return is_there(directory / SINGLE) or is_there(directory / INDEX)
        if named(directory, ".ckpt"):
            return False
        paths = named(directory, ".safetensors")
        models = any(path.name.startswith("model") for path in paths)
        configured = bool(paths and is_there(directory / CONFIG))
        return models or configured or bool(named(directory, ".safetensors.index.json"))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All files as one model."""
        refuse_step(step, directory, "a Hugging Face directory")
        return model_of(directory, read_directory(directory))


BY_FIXED_NAME, BY_OTHER_NAMES = HuggingFace(fixed=True), HuggingFace(fixed=False)
