"""A directory of consolidated files as a model: one file, several that hold different tensors, or
Meta's model-parallel shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.boxes import Box
from ckptforge.checkpoints.card import small_files_of
from ckptforge.checkpoints.files import model_of, read_file, weight_map_of
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.composing import value_of_parts
from ckptforge.consolidated.params import META, PARAMS, config_of, is_meta
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of, is_there
from ckptforge.foreign.json import read_object
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Switch
from ckptforge.values import Value
from ckptforge.wording import counted, listing

FAMILY = "consolidated"
SINGLE = "consolidated.safetensors"
INDEX = f"{SINGLE}.index.json"
_FILE = re.compile(r"consolidated(?:[.-]\d+(?:-of-\d+)?)?\.(?:safetensors|pt|pth)")
_ROWS = re.compile(r"layers\.\d+\.(?:attention\.w[qkv]|feed_forward\.w[13])\.weight|output\.weight")
_COLUMNS = re.compile(r"layers\.\d+\.(?:attention\.wo|feed_forward\.w2)\.weight")
_EMBEDDING, _WIDTH = "tok_embeddings.weight", "norm.weight"  # a shard has all of the latter
_MAX_PARAMS = 1 << 20


class ConsolidatedDirectory:
    """A release in its makers' own files."""

    def recognises(self, directory: Path) -> bool:
        """By the names of its files."""
        return any(_FILE.fullmatch(entry.name) for entry in entries_of(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool = False) -> Model:
        """All files as one model, with a config.json that says what params.json says."""
        refuse_step(step, directory, "a release, whose files aren't numbered by steps")
        files = _files(directory)
        parts = [dict(file.values()) for file in files]
        alike = len(parts) > 1 and all(part.keys() == parts[0].keys() for part in parts[1:])
        model = model_of(directory, files, format="consolidated files")
        model = replace(model, values=dict(_joined(files, parts)) if alike else _merged(files))
        path = directory / PARAMS
        params = read_object(path, _MAX_PARAMS) if is_there(path) else {}
        layout = META if params and is_meta(params) else None
        model = replace(model, family=FAMILY, layout=layout)
        if not params or is_there(directory / CONFIG):
            return model
        shapes = {name: value.shape for name, value in model.values.items()}
        dtype = next(iter(model.values.values())).dtype
        switches = _switches() if layout == META else {}
        config, notes = config_of(params, shapes, dtype, str(path), switches)
        small, skipped = small_files_of(directory, all_files=False)
        small[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
        return replace(model, derived=small).noting(*notes, *skipped)


def _switches() -> dict[str, Switch]:
    """The keys of params.json that stand for several of config.json, by whichever table."""
    layouts = (table.layouts[META] for table in shipped_tables() if META in table.layouts)
    return {key: switch for layout in layouts for key, switch in layout.switches.items()}


def _files(directory: Path) -> list[FileIndex]:
    index = directory / INDEX
    if is_there(index):
        names = sorted(set(weight_map_of(index).values()))
    else:
        names = [entry.name for entry in entries_of(directory) if _FILE.fullmatch(entry.name)]
        names = [SINGLE] if SINGLE in names else sorted(names)
    if len({Path(name).suffix for name in names}) > 1:
        raise FormatError(
            f"{directory}: holds a model in several formats ({', '.join(names)}); keep one."
        )
    if missing := [name for name in names if not is_there(directory / name)]:
        raise InputNotFoundError(
            f"{directory}: files named by {INDEX} are missing:\n{listing(missing)}"
        )
    return [read_file(directory / name) for name in names]


def _merged(files: Sequence[FileIndex]) -> dict[str, Value]:
    """Files of different tensors. Raises `FormatError` for one that only some of them share."""
    found: dict[str, Value] = {}
    for file in files:
        for name, value in file.values():
            if (other := found.get(name)) is not None:
                raise FormatError(
                    f"{file.path}: {shown(name)} lies in {other.origin.path.name}, too, while "
                    "other tensors lie in one of them only; shards of different models?"
                )
            found[name] = value
    return found


def _joined(
    files: Sequence[FileIndex], parts: Sequence[Mapping[str, Value]]
) -> Iterator[tuple[str, Value]]:
    """Model-parallel shards: what each holds a part of, put together. Raises `FormatError` for
    parts that aren't alike.

    Source: transformers' script `convert_…_weights_to_hf.py` for Meta's releases, of which 1 and 2
    cut the embedding by columns, and 3 by rows.
    """
    for name, first in parts[0].items():
        own = [part[name] for part in parts]
        for file, value in zip(files, own, strict=True):
            if (value.shape, value.dtype) != (first.shape, first.dtype) or value.whole is None:
                raise FormatError(
                    f"{file.path}: {shown(name)} is {value.dtype} {list(value.shape)}, but "
                    f"{first.dtype} {list(first.shape)} in {files[0].path.name}; the shards of a "
                    f"release have equal parts ({counted(len(files), 'shard')})."
                )
        axis = _axis(name, first, parts[0])
        if axis is None:
            yield name, first
            continue
        length = first.shape[axis]
        shape = (*first.shape[:axis], length * len(own), *first.shape[axis + 1 :])
        boxes: dict[Box, Any] = {
            tuple(
                (i * length, (i + 1) * length) if k == axis else (0, n) for k, n in enumerate(shape)
            ): value.whole
            for i, value in enumerate(own)
        }
        yield name, value_of_parts(shape, boxes)


def _axis(name: str, part: Value, parts: Mapping[str, Value]) -> int | None:
    """The axis that shards cut; None for what each has whole."""
    if name == _EMBEDDING and len(part.shape) == 2:
        width = parts[_WIDTH].shape if _WIDTH in parts else ()
        return 0 if part.shape[1:] == width else 1
    if len(part.shape) == 2 and _ROWS.fullmatch(name):
        return 0
    return 1 if len(part.shape) == 2 and _COLUMNS.fullmatch(name) else None


CONSOLIDATED = ConsolidatedDirectory()
