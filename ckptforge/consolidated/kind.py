"""A directory of consolidated files as a model: one file, several that hold different tensors, or
Meta's model-parallel shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from ckptforge.checkpoints.card import small_files_of
from ckptforge.checkpoints.files import model_of, read_file, weight_map_of
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.consolidated.params import META, PARAMS, config_of, is_meta
from ckptforge.consolidated.shards import FAMILY, join
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of, is_there
from ckptforge.foreign.json import read_object
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Switch
from ckptforge.values import Value
from ckptforge.wording import listing

SINGLE = "consolidated.safetensors"
INDEX = f"{SINGLE}.index.json"
_FILE = re.compile(r"consolidated(?:[.-]\d+(?:-of-\d+)?)?\.(?:safetensors|pt|pth)")
_MAX_PARAMS = 1 << 20


class ConsolidatedDirectory:
    """A release in its makers' own files."""

    def recognises(self, directory: Path) -> bool:
        """By the names of its files."""
        return any(_FILE.fullmatch(entry.name) for entry in entries_of(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All files as one model, with a config.json that says what params.json says."""
        refuse_step(step, directory, "a release, whose files aren't numbered by steps")
        files = _files(directory)
        parts = [dict(file.values()) for file in files]
        alike = len(parts) > 1 and all(part.keys() == parts[0].keys() for part in parts[1:])
        model = model_of(directory, files, format="consolidated files")
        values, cut_as = join(files, parts) if alike else (_merged(files), None)
        model = replace(model, values=values)
        path = directory / PARAMS
        params = read_object(path, _MAX_PARAMS) if is_there(path) else {}
        layout = None
        if params and is_meta(params):
            layout = META if cut_as is None else cut_as.name
        model = replace(model, family=FAMILY, layout=layout)
        if not params or is_there(directory / CONFIG):
            return model
        shapes = {name: value.shape for name, value in model.values.items()}
        dtype = next(iter(model.values.values())).dtype
        switches = _switches() if layout is not None else {}
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


CONSOLIDATED = ConsolidatedDirectory()
