"""Weights that are stored with scales of their blocks, read as what they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ckptforge.engine.manifest import HuggingFaceSide
from ckptforge.errors import ConfigError, FormatError, shown
from ckptforge.formats.checkpoint import CONFIG, Checkpoint
from ckptforge.formats.entry import BlockScale, TensorEntry
from ckptforge.mapping.binding import Binding
from ckptforge.mapping.block_scaled import BlockScaled

_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")


def read_scaled(checkpoint: Checkpoint, binding: Binding, config: Mapping[str, Any], where: str) -> tuple[Checkpoint, Binding]:
    """The checkpoint with every known weight that has scales taken times them, and the binding without the scales' names.

    Raises `FormatError` for scales that don't fit their weight, and `ConfigError` where config.json doesn't say how large a block is.
    """
    row = binding.table.block_scaled.get(binding.layout.family)
    known = (name for names in binding.names.values() for name in names.values())
    pairs = {name: row.scale_of(name) for name in known if row.scale_of(name) in checkpoint.tensors} if row is not None else {}
    if row is None or not pairs:
        return checkpoint, binding
    block = row.block_of(config)
    if block is None:
        raise ConfigError(
            f"{where}: the weights of {checkpoint.path} have scales of their blocks, but {row.block} isn't two positive integers, expected "
            "the rows and columns of a block; give the model's own config.json with --config."
        )
    tensors = dict(checkpoint.tensors)
    for name, scale in pairs.items():
        _check(tensors[name], tensors[scale], block)
        tensors[name] = replace(tensors[name], scaled=BlockScale(tensors[scale], block, row.dtype))
    taken = set(pairs.values())
    note = f"{len(pairs)} weights are stored with a scale for each block of {block[0]} × {block[1]}: read as value × scale, in float32."
    binding = replace(binding, unknown=tuple(name for name in binding.unknown if name not in taken))
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note)), binding


def _check(entry: TensorEntry, scale: TensorEntry, block: tuple[int, int]) -> None:
    found = f"{entry.path}: {shown(entry.name)} is {entry.dtype} {list(entry.shape)}"
    if entry.dtype.name not in _EIGHT_BITS or len(entry.shape) != 2:
        raise FormatError(f"{found}, expected a matrix of eight-bit floats, as {scale.path} has scales of its blocks, {shown(scale.name)}.")
    expected = [-(-n // step) for n, step in zip(entry.shape, block, strict=True)]
    if list(scale.shape) != expected or not scale.dtype.floating:
        raise FormatError(
            f"{found}: with blocks of {block[0]} × {block[1]} its scales should be floats of shape {expected}, but {shown(scale.name)} in "
            f"{scale.path} is {scale.dtype} {list(scale.shape)}."
        )


def without_scales(side: HuggingFaceSide, row: BlockScaled) -> HuggingFaceSide:
    """What stands beside the weights, with a config.json that doesn't say that they are stored with scales."""
    config = json.loads(side.files[CONFIG]) if CONFIG in side.files else {}
    if row.block_keys[0] not in config:
        return side
    del config[row.block_keys[0]]
    content = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return replace(side, files={**side.files, CONFIG: content})
