"""metadata.json of shards that are to be written."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ckptforge.boxes import Box, box_shape
from ckptforge.errors import PlanError, shown
from ckptforge.formats.layout import TensorSpec
from ckptforge.mindformers.metadata import MAX_BYTES
from ckptforge.mindformers.versions import Version
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.spelling import flag
from ckptforge.wording import counted

_OF_A_HOLDER = 100  # bytes of metadata.json, without its list of ranks


class CutTensor(msgspec.Struct, frozen=True, kw_only=True):
    """How one tensor lies in a job: the layout by which the devices of `ranks` cut it (None: each
    rank holds all of it), and the box of each rank that has one."""

    spec: TensorSpec
    layout: DeviceLayout | None
    ranks: tuple[int, ...]
    boxes: dict[int, Box]

    @property
    def splits(self) -> tuple[int, ...]:
        """How many parts each axis is cut into."""
        return (1,) * len(self.spec.shape) if self.layout is None else self.layout.splits

    def number(self, box: Box) -> int:
        """The number of a slice: row-major over the parts of each axis."""
        number = 0
        for (start, stop), cut in zip(box, self.splits, strict=True):
            number = number * cut + (start // (stop - start) if stop > start else 0)
        return number

    def slices(self) -> dict[int, list[int]]:
        """Number of a slice → the ranks that hold it, in the order in which ranks come."""
        found: dict[int, list[int]] = {}
        for rank, box in self.boxes.items():
            found.setdefault(self.number(box), []).append(rank)
        return found


def folded(spec: TensorSpec, layout: DeviceLayout) -> DeviceLayout:
    """A layout as metadata.json can say it. Raises `PlanError` for one that it can't."""
    found = layout.folded()
    if found is None:
        raise PlanError(
            f"tensor {shown(spec.name)}: its {counted(layout.optimizer_parts, 'optimizer shard')} "
            f"don't fit the device matrix {list(layout.device_matrix)}, so that metadata.json "
            "can't say who holds which; use a number that divides one of its axes."
        )
    return found


def metadata_json(
    cuts: Sequence[CutTensor], files: Mapping[str, Mapping[int, str]], version: Version
) -> bytes:
    """metadata.json; `files` is tensor → rank → the file that it is written to, of those ranks
    that write their slice.

    Raises `PlanError` where that would be larger than any reader takes.
    """
    described = [cut for cut in cuts if cut.layout is not None or version.no_layout]
    _check_size(described, files, version)
    tensors, storage = {}, {}
    for cut in described:
        slices = cut.slices()
        tensors[cut.spec.name] = _tensor(cut, slices)
        for number, ranks in slices.items():
            storage[repr((cut.spec.name, (number,)))] = list(
                _holders(ranks, files[cut.spec.name], version)
            )
    separators = (",", ":") if version.indent is None else None
    content = {"state_dict_metadata": tensors, "storage_data": storage}
    return json.dumps(content, indent=version.indent, separators=separators).encode()


def _check_size(
    cuts: Sequence[CutTensor], files: Mapping[str, Mapping[int, str]], version: Version
) -> None:
    size = 0
    for cut in cuts:
        for ranks in cut.slices().values():
            written = sum(rank in files[cut.spec.name] for rank in ranks)
            size += written * (_OF_A_HOLDER + (6 * len(ranks) if version.rank_group else 0))
    if size > MAX_BYTES:
        raise PlanError(
            f"metadata.json would have some {size:,} bytes, as it names every rank that holds a "
            f"slice, and at most {MAX_BYTES:,} are read: give {flag('remove_redundancy')}, which "
            "writes each slice once."
        )


def _tensor(cut: CutTensor, slices: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    copies = {rank: nth for ranks in slices.values() for nth, rank in enumerate(ranks)}
    boxes = {number: cut.boxes[ranks[0]] for number, ranks in slices.items()}
    layout = cut.layout
    return {
        "properties": {
            "dtype": cut.spec.dtype.mindspore,
            "replica_id": 0 if layout is None else [copies.get(rank, 0) for rank in cut.ranks],
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": list(cut.spec.shape),
        "axis_fragmentations": list(cut.splits),
        "layout": None if layout is None else _layout(layout, cut.ranks),
        "chunk": [
            {"global_offset": [number], "local_shape": list(box_shape(box))}
            for number, box in boxes.items()
        ],
    }


def _layout(layout: DeviceLayout, ranks: Sequence[int]) -> dict[str, Any]:
    """MindFormers reads the values by their position: the order of these keys counts."""
    return {
        "device_matrix": list(layout.device_matrix),
        "tensor_map": [
            -1 if not axes else axes[0] if len(axes) == 1 else list(axes)
            for axes in layout.tensor_map
        ],
        "interleaved_parallel": False,
        "alias_name": list(string.ascii_letters[: len(layout.device_matrix)]),
        "rank_list": list(ranks),
    }


def _holders(
    ranks: Sequence[int], files: Mapping[int, str], version: Version
) -> Iterator[dict[str, Any]]:
    for rank in ranks:
        if rank in files:
            group = {"rank_group": list(ranks)} if version.rank_group else {}
            yield {"file_name": files[rank], "storage_rank": rank, **group}
