"""Checkpoints of torch.distributed.checkpoint that are to be written: files of chunks, each a whole
tensor, and `.metadata`, which says where they lie.

Source: torch 2.13, `torch/distributed/checkpoint/metadata.py`, `filesystem.py`,
`default_planner.py`, and files that it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptforge.formats.layout import TensorSpec
from ckptforge.torch_files.pickle_data import Inert, Named
from ckptforge.torch_files.pickling import Memo, encoded
from ckptforge.torch_files.writing import torch_dtype

_HOME = "torch.distributed.checkpoint."
_VERSION = "1.0.0"
Item = tuple[str, int, int]  # file, offset, length


def chunk_file(number: int) -> str:
    """The name of a file of chunks, of one process."""
    return f"__0_{number}.distcp"


def metadata_of(path: Path, tensors: Sequence[TensorSpec], items: Mapping[str, Item]) -> bytes:
    """`.metadata` of whole tensors, by their names in one dictionary. Raises `PlanError` for a
    dtype that torch doesn't have."""
    root = _made(
        "metadata.Metadata",
        state_dict_metadata={spec.name: _about(path, spec) for spec in tensors},
        planner_data={spec.name: (spec.name,) for spec in tensors},
        storage_data={_key(spec): _place(*items[spec.name]) for spec in tensors},
        storage_meta=None,
        version=_VERSION,
    )
    memo: Memo = {}
    return b"\x80\x02" + encoded(root, memo) + b"."


def _made(name: str, **state: Any) -> Inert:
    return Inert(f"{_HOME}{name}", (), state)


def _size(lengths: Sequence[int]) -> Inert:
    return Inert("torch.Size", (tuple(lengths),))


def _about(path: Path, spec: TensorSpec) -> Inert:
    strided = Inert("torch.serialization._get_layout", ("torch.strided",))
    contiguous = Inert(f"{_HOME}metadata._MEM_FORMAT_ENCODING", (0,))
    dtype = Named(f"torch.{torch_dtype(path, spec)}")
    properties = Inert(
        f"{_HOME}metadata.TensorProperties", (), (dtype, strided, False, contiguous, False)
    )
    size = _size(spec.shape)
    chunk = _made("metadata.ChunkStorageMetadata", offsets=_start(spec), sizes=size)
    return _made("metadata.TensorStorageMetadata", properties=properties, size=size, chunks=[chunk])


def _start(spec: TensorSpec) -> Inert:
    return _size((0,) * len(spec.shape))


def _key(spec: TensorSpec) -> Inert:
    return _made("metadata.MetadataIndex", fqn=spec.name, offset=_start(spec), index=0)


def _place(file: str, offset: int, length: int) -> Inert:
    return _made(
        "filesystem._StorageInfo",
        relative_path=file,
        offset=offset,
        length=length,
        transform_descriptors=None,
    )
