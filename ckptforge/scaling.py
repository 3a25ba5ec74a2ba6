"""Weights that are stored with scales of their blocks, read as what they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ckptforge.engine.manifest import HuggingFaceSide
from ckptforge.errors import ConfigError, FormatError, counted, shown
from ckptforge.formats.checkpoint import CONFIG, Checkpoint
from ckptforge.formats.entry import BlockScale, TensorEntry
from ckptforge.mapping.binding import Binding
from ckptforge.spelling import command, option

_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")


def read_scaled(checkpoint: Checkpoint, binding: Binding, config: Mapping[str, Any], where: str) -> tuple[Checkpoint, Binding]:
    """The checkpoint with every known weight that has scales taken times them, and the binding without the scales' names.

    Raises `FormatError` for scales that don't fit their weight, and `ConfigError` where config.json doesn't say how large a block is.
    """
    row = binding.table.block_scaled.get(binding.layout.family)
    known = (name for names in binding.names.values() for name in names.values())
    if row is None:
        return checkpoint, binding
    eight, pairs = [], {}
    for name in known:
        if (scale := row.scale_of(name)) in checkpoint.tensors:
            pairs[name] = scale
        elif checkpoint.tensors[name].dtype.name in _EIGHT_BITS:
            eight.append(name)
    block = row.block_of(config)
    if eight and (pairs or block is not None):
        entry = checkpoint.tensors[eight[0]]
        raise FormatError(
            f"{entry.path}: {shown(entry.name)} is {entry.dtype}, but there is no {shown(row.scale_of(entry.name))}, by which it would be "
            f"multiplied ({len(eight)} such weights); is a file missing?"
        )
    if not pairs:
        return checkpoint, binding
    if cut := next((name for name in pairs if name in checkpoint.shards), None):
        raise FormatError(
            f"{checkpoint.path}: {shown(cut)} is stored with scales of its blocks and cut into ranks, which isn't read; merge the ranks "
            f"first, with {command('merge')}."
        )
    if block is None:
        raise ConfigError(
            f"{where}: the weights of {checkpoint.path} have scales of their blocks, but {row.block} isn't two positive integers, expected "
            f"the rows and columns of a block; give the model's own config.json with {option('config')}."
        )
    tensors = dict(checkpoint.tensors)
    for name, scale in pairs.items():
        _check(tensors[name], tensors[scale], block)
        tensors[name] = replace(tensors[name], scaled=BlockScale(tensors[scale], block, row.dtype))
    taken = set(pairs.values())
    weights = counted(len(pairs), "weight", "are")
    note = f"{weights} stored with a scale for each block of {block[0]} × {block[1]}: read as value × scale, in float32."
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


def without_scales(side: HuggingFaceSide, binding: Binding, config: Mapping[str, Any]) -> HuggingFaceSide:
    """What stands beside weights that aren't in eight bits, or are read as what they stand for, with a config.json (`config`, parsed) that
    doesn't say that they have scales."""
    row = binding.table.block_scaled.get("huggingface")
    if row is None or CONFIG not in side.files or row.block_of(config) is None:
        return side
    content = json.dumps(_without(config, row.block_keys[:-1]), indent=2, ensure_ascii=False) + "\n"
    return replace(side, files={**side.files, CONFIG: content.encode()})


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """An object without what lies at these keys, one within the other."""
    first, *inner = keys
    kept = {key: value for key, value in config.items() if key != first or inner}
    return {**kept, first: _without(config[first], inner)} if inner else kept
