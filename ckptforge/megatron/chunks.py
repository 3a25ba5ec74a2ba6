"""An iteration that Megatron-core has written by `torch_dist`: one checkpoint of
torch.distributed.checkpoint, whose tensors are whole, with an axis of layers and one of experts
before their own.

Source: Megatron-core 0.16.1 `core/dist_checkpointing/strategies/torch.py`,
`core/transformer/transformer_block.py` and `moe/experts.py` (`sharded_state_dict`), and files that
it wrote.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.boxes import Box
from ckptforge.composing import part_of
from ckptforge.errors import FormatError, shown
from ckptforge.foreign.files import is_there
from ckptforge.foreign.json import read_object
from ckptforge.megatron.arguments import arguments_in, described
from ckptforge.megatron.layouts import FAMILY, layout_of
from ckptforge.megatron.names import DESCRIBED, LAYERS, MAX_DESCRIBED, MORE, SHARDED
from ckptforge.megatron.norms import norm_read, norms_apart
from ckptforge.megatron.roots import MegatronIteration
from ckptforge.model import Account, Model
from ckptforge.reading.known import Choices, known_of
from ckptforge.torch_files.distributed import Described, joined
from ckptforge.torch_files.torch_zip import read_data
from ckptforge.values import Value

_log = logging.getLogger(__name__)
FORMAT = "megatron"
LEFT = "optimizer state and the state of the training run"
COMMON = "common.pt"
_BACKEND = "sharded_backend"
_WEIGHTS = ("decoder.", "embedding.", "output_layer.", MORE)
_ALL_LAYERS = re.compile(r"decoder\.layers\.(?=[^0-9])")
_EXPERTS = re.compile(
    r"(?P<home>.*\.experts)\.experts\.(?:(?P<number>[0-9]{1,6})\.)?"
    r"(?P<which>linear_fc[12])\.(?P<kind>weight|bias)",
    re.DOTALL,
)
Values = dict[str, Value]


def open_chunks(directory: Path, iteration: MegatronIteration, choices: Choices) -> Model:
    """A model of full tensors in its layout. Raises `FormatError` for another backend and for what
    isn't right in the files, and what choosing a table raises."""
    _check_backend(iteration.directory)
    found = Described(iteration.directory)
    values: Values = {}
    for name, shape, parts in found.chunks(lambda name: name.startswith(_WEIGHTS)):
        for own, value in _taken_apart(found.path, name, shape, parts):
            if own in values:
                raise FormatError(f"{found.path}: {shown(own)} is there twice.")
            values[own] = value
    apart = norms_apart(values)
    values = {norm_read(name, apart): value for name, value in values.items()}
    if not values:
        raise FormatError(f"{found.path}: holds no tensors of a model.")
    left = [name for name in (*found.tensors, *found.others) if not name.startswith(_WEIGHTS)]
    arguments = _arguments(iteration.directory / COMMON)
    model = Model(
        path=directory,
        format=FORMAT,
        directory=directory,
        files=tuple(found.indexes()),
        values=values,
        account=Account().noting(*iteration.notes).leaving(LEFT, tuple(left)),
        run={"iteration": max(iteration.number or 0, 0)},
        family=FAMILY,
        described=described(arguments),
    )
    _, layout = layout_of(directory, values, known_of(model, choices))
    _log.info("opened %s: %s of chunks", iteration.directory, FORMAT)
    return replace(model, layout=layout.name)


def _check_backend(directory: Path) -> None:
    path = directory / DESCRIBED
    said = read_object(path, MAX_DESCRIBED).get(_BACKEND) if is_there(path) else SHARDED
    if said != SHARDED:
        raise FormatError(
            f"{path}: has {_BACKEND} {shown(said)}, and only {SHARDED} is read; Megatron-LM's own "
            "tools bring it into that."
        )


def _arguments(path: Path) -> Mapping[str, Any]:
    """Those in common.pt; none where there is no such file."""
    root = read_data(path) if is_there(path) else {}
    return arguments_in(root) if isinstance(root, dict) else {}


def _taken_apart(
    where: Path, name: str, shape: tuple[int, ...], parts: Mapping[Box, Value]
) -> Iterator[tuple[str, Value]]:
    """(name, value) of each layer and each expert of a tensor. Raises `FormatError` for one with
    fewer axes than its name says."""
    of_layers = _ALL_LAYERS.match(name)
    experts = _EXPERTS.fullmatch(name)
    of_experts = experts is not None and experts["number"] is None
    count = (of_layers is not None) + of_experts
    if len(shape) <= count:
        raise FormatError(
            f"{where}: {shown(name)} is {list(shape)}, expected axes of layers and experts."
        )
    held: dict[tuple[int, ...], dict[Box, Value]] = {}
    for box, value in parts.items():
        for place in product(*(range(*side) for side in box[:count])):
            held.setdefault(place, {})[box[count:]] = _slice(value, box, place)
    for place, own in sorted(held.items()):
        numbers = list(place)
        full = name if of_layers is None else f"{LAYERS}{numbers.pop(0)}.{name[len(LAYERS) :]}"
        if experts is not None:
            expert = numbers.pop() if of_experts else int(experts["number"])
            home = full[: len(full) - len(name) + experts.end("home")]
            full = f"{home}.{experts['which']}.{experts['kind']}{expert}"
        yield full, joined(shape[count:], own)


def _slice(value: Value, box: Box, place: tuple[int, ...]) -> Value:
    """What a chunk has of a place of the first axes of the tensor that it is part of."""
    count = len(place)
    if not count:
        return value
    inner = tuple((i - lo, i - lo + 1) for i, (lo, _) in zip(place, box, strict=False))
    part = part_of(value, (*inner, *((0, n) for n in value.shape[count:])))
    return Value(dtype=part.dtype, shape=part.shape[count:], terms=part.terms, kind=part.kind)
