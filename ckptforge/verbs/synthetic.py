"""Models of random weights in the hub layout, of any size, for demo, tests and benchmarks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.checkpoints import huggingface
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.formats import safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.tables.layer_counts import table_for
from ckptforge.tables.model_config import Config
from ckptforge.tables.pieces import name_pieces
from ckptforge.tables.sizes import lengths_of
from ckptforge.tables.table import Layout, Table
from ckptforge.targets.huggingface import cut_into_shards, index_json

_PIECE = 1 << 20
_INTEGER = BY_NAME["int64"]


def write_model(
    directory: Path,
    table: Table,
    config: Config,
    *,
    layout: str = "hub",
    dtype: str = "bfloat16",
    shard_bytes: int = 10**9,
    seed: int = 0,
    sparse: bool = False,
) -> None:
    """Writes config.json and weights, normally distributed with standard deviation 0.1, for a table
    and a config; numbers of an axis are 0 and 1.

    A directory that exists is an error of the system's. Streams, so that the model can be larger
    than the memory. `sparse` leaves holes instead of the numbers, so that it can be larger than the
    disk.
    """
    table = table_for(table, config, "config.json")
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = BY_NAME[dtype]
    specs, copies = _specs(table, table.layout(layout), config, stored)
    cut = cut_into_shards(specs, shard_bytes)
    shards = {name: safetensors.ordered(tensors) for name, tensors in cut.items()}
    if len(shards) > 1:
        (directory / huggingface.INDEX).write_bytes(index_json(shards))
    for name, tensors in shards.items():
        laid_out = safetensors.lay_out(directory / name, tensors, {"format": "pt"})
        with (directory / name).open("wb") as file:
            for _, literal in laid_out.literals:
                file.write(literal)
            if sparse:
                file.truncate(laid_out.size)
                continue
            for tensor in tensors:
                original = copies.get(tensor.name, tensor.name)
                random = np.random.default_rng((seed, zlib.crc32(original.encode())))
                for numbers in _numbers(random, tensor):
                    file.write(numbers.view(np.uint8).data)


def _numbers(random: np.random.Generator, tensor: TensorSpec) -> Iterator[NDArray[Any]]:
    """The numbers of a tensor, in pieces."""
    left, dtype = tensor.nbytes // tensor.dtype.itemsize, tensor.dtype
    if not dtype.floating:
        yield random.integers(0, 2, left, np.int64)
        return
    float32 = BY_NAME["float32"]
    cast = None if dtype == float32 else cast_function(float32, dtype)
    while left:
        count = min(left, _PIECE)
        numbers = random.standard_normal(count, np.float32) * np.float32(0.1)
        if cast is None:
            yield numbers
        else:
            made = np.empty(count, numpy_dtype(dtype))
            cast(numbers, made)
            yield made
        left -= count


def _specs(
    table: Table, layout: Layout, config: Config, stored: DType
) -> tuple[list[TensorSpec], dict[str, str]]:
    """The tensors of a model, and the name of each copy among them → that of its original."""
    counts = lengths_of(table, config, "config.json")
    specs: list[TensorSpec] = []
    for pattern in table.present(layout, config, counts):
        shape = pattern.shape(lambda _, axis: counts[axis])
        dtype = _INTEGER if table.holds_integers(pattern) else stored
        specs += [TensorSpec(name, dtype, shape) for _, name in name_pieces(pattern, counts)]
    shapes = {spec.name: spec.shape for spec in specs}
    copies: dict[str, str] = {}
    for pattern in layout.copies:
        original = layout.holding(pattern.tensors[0]).template
        if original in shapes:
            names = [name for _, name in name_pieces(pattern, counts)]
            copies |= dict.fromkeys(names, original)
            specs += [TensorSpec(name, stored, shapes[original]) for name in names]
    return specs, copies
