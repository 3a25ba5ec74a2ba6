"""metadata.json: which tensors a checkpoint holds, how each is cut, and where each slice lies.

Source: MindFormers r1.7 … r2.1, `mindformers/checkpoint/metadata.py` (`save_metadata`,
`load_metadata`). Its `global_offset` is one number: that of the slice, row-major over
`axis_fragmentations`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.boxes import Box
from ckptforge.dtypes import DTYPES, DType
from ckptforge.errors import DamagedError, FormatError, shown
from ckptforge.foreign.files import is_file_name
from ckptforge.foreign.json import read_object
from ckptforge.formats.index import MAX_DIMS, check_name
from ckptforge.parallel.device_layout import MAX_DEVICES, DeviceLayout
from ckptforge.wording import counted

MAX_BYTES = 1 << 29  # with replicas kept it names every rank of every slice
_MAX_VALUES = 1 << 26
_MAX_KEY = 1 << 16
_KEY = re.compile(r"\('([^'\\]*)', \(([0-9]{1,18}),\)\)")
_DTYPES = {
    name.lower(): dtype for dtype in DTYPES for name in (dtype.name, dtype.mindspore) if name
}
Shape = tuple[int, ...]


class Holder(msgspec.Struct, frozen=True, gc=False):
    """A copy of a slice: the file it lies in, and the rank that wrote it."""

    file_name: str
    storage_rank: int


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one tensor: `cuts` is how many parts each axis is cut into, `layout` how the
    devices of `ranks` cut it (None: whole wherever it is), `slices` the copies of each slice by its
    number."""

    dtype: DType
    shape: Shape
    cuts: Shape
    layout: DeviceLayout | None
    ranks: tuple[int, ...]
    slices: dict[int, tuple[Holder, ...]]

    def box_of(self, rank: int) -> Box:
        """The box that a rank holds by the layout, which there must be. A name that several stages
        hold is described with the ranks of one of them."""
        assert self.layout is not None
        known = rank in self.ranks
        device = self.ranks.index(rank) if known else rank % len(self.ranks)
        return self.layout.box(self.shape, device)

    @property
    def holders(self) -> Iterator[Holder]:
        """The copies of all slices."""
        return (holder for holders in self.slices.values() for holder in holders)

    @property
    def slice_shape(self) -> Shape:
        """The shape of each slice."""
        return tuple(n // cut for n, cut in zip(self.shape, self.cuts, strict=True))


class _Layout(msgspec.Struct):
    device_matrix: tuple[int, ...]
    tensor_map: tuple[int | tuple[int, ...], ...]
    rank_list: tuple[int, ...]
    interleaved_parallel: bool = False


class _Properties(msgspec.Struct):
    dtype: str


class _Chunk(msgspec.Struct):
    global_offset: tuple[int, ...]
    local_shape: tuple[int, ...]


class _Tensor(msgspec.Struct):
    properties: _Properties
    global_shape: tuple[int, ...]
    axis_fragmentations: tuple[int, ...]
    chunk: tuple[_Chunk, ...]
    layout: _Layout | None = None


class _File(msgspec.Struct):
    state_dict_metadata: dict[str, _Tensor]
    storage_data: dict[str, tuple[Holder, ...]]


def read_metadata(path: Path) -> dict[str, Described]:
    """Tensor → what metadata.json says of it, in the order of the file. Raises `FormatError` for
    what contradicts itself, and `InputNotFoundError` if it can't be read."""
    found = read_object(path, MAX_BYTES, values=_MAX_VALUES, shrink=_without_group)
    try:
        content = msgspec.convert(found, _File)
    except msgspec.ValidationError as error:
        raise DamagedError(
            f"{path}: isn't the metadata of a MindFormers checkpoint: {error}."
        ) from error
    slices = _slices(path, content)
    return {
        name: _described(path, name, tensor, slices.get(name, {}))
        for name, tensor in content.state_dict_metadata.items()
    }


def _without_group(found: dict[str, Any]) -> dict[str, Any]:
    """An object without its list of the ranks that hold a slice, which would take most of the
    memory."""
    found.pop("rank_group", None)
    return found


def _slices(path: Path, content: _File) -> dict[str, dict[int, tuple[Holder, ...]]]:
    found: dict[str, dict[int, tuple[Holder, ...]]] = {}
    for key, holders in content.storage_data.items():
        name, number = _parse_key(path, key)
        if name not in content.state_dict_metadata:
            raise DamagedError(
                f"{path}: storage_data says where slice {number} of {shown(name)} lies, which "
                "state_dict_metadata doesn't describe; the file is damaged."
            )
        if not holders:
            raise DamagedError(f"{path}: slice {number} of {shown(name)} lies in no file.")
        for holder in holders:
            if not is_file_name(holder.file_name):
                raise DamagedError(
                    f"{path}: slice {number} of {shown(name)} is said to lie in "
                    f"{shown(holder.file_name)}, which isn't the name of a file."
                )
            if not 0 <= holder.storage_rank < MAX_DEVICES:
                raise DamagedError(
                    f"{path}: slice {number} of {shown(name)} has storage_rank "
                    f"{shown(holder.storage_rank)}, which isn't a rank."
                )
        if number in found.setdefault(name, {}):
            raise DamagedError(f"{path}: slice {number} of {shown(name)} is there twice.")
        found[name][number] = holders
    return found


def _parse_key(path: Path, key: str) -> tuple[str, int]:
    """(tensor, number of the slice) of a key: Python's repr of `(name, (number,))`."""
    if match := _KEY.fullmatch(key):
        return match[1], int(match[2])
    try:
        name, (number,) = ast.literal_eval(key if len(key) <= _MAX_KEY else "")
        if type(name) is str and type(number) is int and number >= 0:
            return name, number
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    raise DamagedError(
        f"{path}: storage_data holds the key {shown(key)}, expected a name and the number of a "
        "slice, such as ('embedding.weight', (0,))."
    )


def _described(
    path: Path, name: str, tensor: _Tensor, slices: dict[int, tuple[Holder, ...]]
) -> Described:
    check_name(name, path)
    where = f"{path}: {shown(name)}"
    shape, cuts = tensor.global_shape, tensor.axis_fragmentations
    dtype = _DTYPES.get(tensor.properties.dtype.lower())
    if dtype is None:
        raise DamagedError(
            f"{where} has the dtype {shown(tensor.properties.dtype)}, which is none."
        )
    if len(shape) > MAX_DIMS or not all(0 <= n < 1 << 63 for n in shape):
        raise DamagedError(f"{where} has global_shape {shown(list(shape))}, which isn't a shape.")
    if len(cuts) != len(shape) or not all(0 < cut <= MAX_DEVICES for cut in cuts):
        raise DamagedError(
            f"{where} has axis_fragmentations {shown(list(cuts))}, expected a number of parts for "
            f"each axis of {list(shape)}."
        )
    if any(n % cut for n, cut in zip(shape, cuts, strict=True)):
        raise FormatError(
            f"{where} {list(shape)} is cut into {list(cuts)} parts, which doesn't divide: uneven "
            "shards, whose places metadata.json can't say. Save it with a mesh that divides the "
            "tensor."
        )
    layout, ranks = _layout(where, tensor.layout, shape, cuts)
    found = Described(
        dtype=dtype, shape=shape, cuts=cuts, layout=layout, ranks=ranks, slices=slices
    )
    _check_numbers(where, found, tensor.chunk)
    return found


def _layout(
    where: str, found: _Layout | None, shape: Shape, cuts: Shape
) -> tuple[DeviceLayout | None, tuple[int, ...]]:
    """Raises `FormatError` for a layout that can't be, or that cuts in another way than is said."""
    if found is None:
        if math.prod(cuts) > 1:
            raise DamagedError(
                f"{where} has no layout, but axis_fragmentations {list(cuts)}; expected no cuts."
            )
        return None, ()
    if found.interleaved_parallel:
        raise FormatError(
            f"{where} has an interleaved layout, of which it isn't known which rank holds what. "
            "Save it from a job without interleaved parallelism."
        )
    tensor_map = tuple(
        ()
        if axes == -1
        else (axes,)
        if isinstance(axes, int)
        else tuple(a for a in axes if a != -1)
        for axes in found.tensor_map
    )
    layout = DeviceLayout(found.device_matrix, tensor_map)
    if problem := layout.problem():
        raise DamagedError(f"{where}: {problem}.")
    ranks = found.rank_list
    if layout.devices != len(ranks) or len(set(ranks)) < len(ranks):
        raise DamagedError(
            f"{where} has device_matrix {list(found.device_matrix)}, of "
            f"{counted(layout.devices, 'device')}, but a rank_list of {len(ranks)} "
            f"({len(set(ranks))} different)."
        )
    if not all(0 <= rank < MAX_DEVICES for rank in ranks):
        raise DamagedError(f"{where} has a rank_list with {shown(min(ranks))} to {max(ranks)}.")
    if len(tensor_map) != len(shape) or layout.splits != cuts:
        raise DamagedError(
            f"{where} {list(shape)} has axis_fragmentations {list(cuts)}, but its layout "
            f"(device_matrix {list(found.device_matrix)}, tensor_map "
            f"{shown([list(axes) or -1 for axes in tensor_map])}) makes {list(layout.splits)}."
        )
    return layout, ranks


def _check_numbers(where: str, found: Described, chunks: tuple[_Chunk, ...]) -> None:
    """Raises `FormatError` where the slices aren't those that the cuts make."""
    count = math.prod(found.cuts)
    said: list[int] = []
    for chunk in chunks:
        if len(chunk.global_offset) != 1 or not 0 <= chunk.global_offset[0] < count:
            raise DamagedError(
                f"{where} has a chunk with global_offset {shown(list(chunk.global_offset))}, "
                f"expected the number of one of its {counted(count, 'slice')}."
            )
        if chunk.local_shape != found.slice_shape:
            raise DamagedError(
                f"{where} {list(found.shape)} has a chunk of {shown(list(chunk.local_shape))}, but "
                f"is cut into {list(found.cuts)} parts of {list(found.slice_shape)}."
            )
        said += chunk.global_offset
    for numbers, what in ((said, "chunks"), ([*found.slices], "slices in storage_data")):
        different = set(numbers)
        if (missing := count - len(different)) > 0:
            first = next(i for i in range(count) if i not in different)
            raise DamagedError(
                f"{where} is cut into {counted(count, 'slice')}, but has {len(numbers)} {what}: "
                f"{missing} missing, such as number {first}. Part of the checkpoint isn't there."
            )
        if len(numbers) > count:
            raise DamagedError(
                f"{where} is cut into {counted(count, 'slice')}, but has {len(numbers)} {what}."
            )
