"""Files of safetensors that the ranks of a job wrote, each with its parts of tensors, as a kind of
directory: `shard-<rank>-model-<i>-of-<n>.safetensors`.

Source: torch 2.13 `torch/distributed/checkpoint/hf_storage.py` (`HuggingFaceStorageWriter` with
`save_distributed=True`), `_hf_utils.py`, and files that it wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ckptforge.boxes import Box
from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of
from ckptforge.foreign.json import parse_object
from ckptforge.formats.index import FileIndex
from ckptforge.model import Account, Model
from ckptforge.torch_files.distributed import cover_problem, joined
from ckptforge.torch_files.views import is_count
from ckptforge.values import Value
from ckptforge.wording import counted, listing

FORMAT = "torch distributed checkpoint"
_FILE = re.compile(r"shard-([0-9]{5,6})-model-([0-9]{5})-of-([0-9]{5})\.safetensors")
_OFFSETS = "DCP_SHARDING_INFO"  # in a file's metadata: name → where its part begins
_SAVED = "saved_offsets"


class HubShards:
    """What ranks wrote that put nothing together."""

    def recognises(self, directory: Path) -> bool:
        """By the names of the files."""
        return any(_FILE.fullmatch(entry.name) for entry in entries_of(directory))

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All tensors, put together of their parts."""
        refuse_step(step, directory, "one checkpoint")
        files = [read_file(path) for path in _paths(directory)]
        boxes: dict[str, dict[Box, Value]] = {}
        for file in files:
            for name, box, value in _parts(file):
                own = boxes.setdefault(name, {})
                if 0 not in value.shape or not own:
                    own.setdefault(box, value)
        return Model(
            path=directory,
            format=FORMAT,
            directory=directory,
            files=tuple(files),
            values={name: _value(directory, name, own) for name, own in boxes.items()},
            account=Account().noting(
                f"{directory}: holds the files of {counted(_ranks(files), 'rank')}; nothing in "
                "them says how many there were, so make sure that all are there."
            ),
        )


def _paths(directory: Path) -> list[Path]:
    """The files of all ranks, in order. Raises `InputNotFoundError` for a rank that has none
    between others."""
    found = {}
    for entry in entries_of(directory):
        if match := _FILE.fullmatch(entry.name):
            found[entry] = int(match[1])
    ranks = set(found.values())
    if lacking := [rank for rank in range(1, max(ranks) + 1) if rank not in ranks]:
        names = [f"shard-{rank:05}-model-….safetensors" for rank in lacking[:64]]
        raise InputNotFoundError(f"{directory}: files of ranks are missing:\n{listing(names)}")
    return sorted(found, key=lambda path: (found[path], path.name))


def _ranks(files: Sequence[FileIndex]) -> int:
    return len({file.path.name.partition("-model-")[0] for file in files})


def _parts(file: FileIndex) -> Iterator[tuple[str, Box, Value]]:
    """(name, box, what lies there). Raises `FormatError`."""
    said = file.metadata.get(_OFFSETS)
    if said is None:
        raise FormatError(
            f"{file.path}: its metadata has no {_OFFSETS}, which says where parts begin."
        )
    offsets = parse_object(said.encode("utf-8", "surrogatepass"), f"{file.path}: {_OFFSETS}")
    for name, value in file.values():
        own = offsets.get(name)
        start = own.get(_SAVED) if isinstance(own, Mapping) else None
        if not isinstance(start, list) or not all(map(is_count, start)):
            raise FormatError(
                f"{file.path}: {_OFFSETS} says {shown(start)} of {shown(name)}, expected where its "
                "part begins."
            )
        if len(start) != len(value.shape):
            raise FormatError(
                f"{file.path}: {_OFFSETS} says {len(start)} numbers of {shown(name)}, which is "
                f"{list(value.shape)}."
            )
        yield name, tuple((lo, lo + n) for lo, n in zip(start, value.shape, strict=True)), value


def _value(directory: Path, name: str, boxes: Mapping[Box, Value]) -> Value:
    """A tensor as large as its parts reach. Raises `FormatError` for parts that don't make it
    up."""
    first = next(iter(boxes))
    if any(len(box) != len(first) for box in boxes):
        raise FormatError(f"{directory}: the parts of {shown(name)} have different axes.")
    if len({value.dtype.name for value in boxes.values()}) > 1:
        raise FormatError(f"{directory}: the parts of {shown(name)} have different dtypes.")
    shape = tuple(max(box[i][1] for box in boxes) for i in range(len(first)))
    if (wrong := cover_problem(name, shape, boxes)) is not None:
        raise FormatError(f"{directory}: {wrong}; are the files of one job, and all there?")
    return joined(shape, boxes)


HUB_SHARDS = HubShards()
