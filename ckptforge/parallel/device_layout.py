"""How one parameter is spread over the devices of a stage. Pure arithmetic.

Source: MindSpore's `node_strategy.proto` and the runtime's slicing in `parallel/_tensor.py`
(`_load_tensor`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import msgspec

from ckptforge.boxes import Box, dot
from ckptforge.errors import shown
from ckptforge.wording import counted

MAX_DEVICES = 1 << 17  # of a job; more than any cluster has
MAX_STAGES = 1024  # of its pipeline
MAX_DIMS = 64


class DeviceLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A grid of devices, row-major, and the device axes that split each tensor axis.

    `tensor_map[i]` are device axes, numbered from the right, the first the major one; empty: not
    split. Device axes in no entry hold replicas. `optimizer_shards`: the replicas cut axis 0 of
    their slice again, into this many parts; 0 not at all, -1 one for each replica. `full_shape`
    where the strategy file says it (JSON does).
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    optimizer_shards: int = 0
    full_shape: tuple[int, ...] | None = None

    @property
    def devices(self) -> int:
        """Devices of the stage."""
        return math.prod(self.device_matrix)

    @property
    def splits(self) -> tuple[int, ...]:
        """How many parts each tensor axis is cut into by the tensor map."""
        matrix = self.device_matrix
        return tuple(math.prod(matrix[-1 - axis] for axis in axes) for axes in self.tensor_map)

    @property
    def replicas(self) -> int:
        """How many devices hold one slice of the tensor map."""
        return self.devices // math.prod(self.splits)

    @property
    def optimizer_parts(self) -> int:
        """Parts that optimizer sharding cuts a slice into."""
        return {0: 1, -1: self.replicas}.get(self.optimizer_shards, self.optimizer_shards)

    def problem(self) -> str | None:
        """What makes the layout impossible, or None."""
        if max(len(self.device_matrix), len(self.tensor_map)) > MAX_DIMS:
            return f"device matrix or tensor map has more than {MAX_DIMS} axes"
        if any(not n < 1 << 63 for n in self.device_matrix) or self.devices > MAX_DEVICES:
            return f"its device matrix is for more than {MAX_DEVICES} devices"
        if any(n < 1 for n in self.device_matrix):
            return f"device matrix {shown(list(self.device_matrix))} has sizes below 1"
        used = [axis for axes in self.tensor_map for axis in axes]
        if any(not 0 <= axis < len(self.device_matrix) for axis in used):
            return (
                f"tensor map {shown(self.tensor_map)} names device axes that "
                f"{shown(list(self.device_matrix))} doesn't have"
            )
        if len(set(used)) < len(used):
            return f"tensor map {shown(self.tensor_map)} uses a device axis twice"
        parts, replicas = self.optimizer_parts, self.replicas
        if self.optimizer_shards < -1 or parts > replicas or replicas % parts:
            return (
                f"optimizer sharding into {shown(self.optimizer_shards)} parts doesn't fit "
                f"{counted(self.replicas, 'replica')}"
            )
        if self.optimizer_parts > 1 and not self.tensor_map:
            return "optimizer sharding of a scalar"
        return None

    def shape_of_parts(self, full: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of every rank's part of a tensor of shape `full`; None if it can't be cut so."""
        if len(full) != len(self.tensor_map):
            return None
        cuts = [*self.splits]
        if cuts:
            cuts[0] *= self.optimizer_parts
        if any(n % cut for n, cut in zip(full, cuts, strict=True)):
            return None
        return tuple(n // cut for n, cut in zip(full, cuts, strict=True))

    def shape_of_whole(self, part: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of the full tensor whose parts have shape `part`; None for other axes."""
        if len(part) != len(self.tensor_map):
            return None
        full = [n * split for n, split in zip(part, self.splits, strict=True)]
        if full:
            full[0] *= self.optimizer_parts
        return tuple(full)

    def folded(self) -> DeviceLayout | None:
        """The layout with the device axes of optimizer sharding in the tensor map, which cuts the
        same: axis 0 by its own device axes, then by the replicas' minor ones, of which one may be
        split in two. None where no axis can be split so."""
        left = self.optimizer_parts
        if left == 1:
            return DeviceLayout(self.device_matrix, self.tensor_map, 0, self.full_shape)
        matrix = [*reversed(self.device_matrix)]
        used = {axis for axes in self.tensor_map for axis in axes}
        folded: list[int] = []
        split: int | None = None
        for axis, size in enumerate(matrix):
            if axis in used or left == 1:
                continue
            if left % size and size % left:
                return None
            folded.append(axis)
            split = axis if size > left else None
            matrix[axis : axis + 1] = [left, size // left] if size > left else [size]
            left = 1 if size > left else left // size
            if split is not None:
                break
        moved = [
            tuple(axis + (split is not None and axis > split) for axis in axes)
            for axes in self.tensor_map
        ]
        first = (*moved[0], *reversed(folded))
        return DeviceLayout(tuple(reversed(matrix)), (first, *moved[1:]), 0, self.full_shape)

    def box(self, full: tuple[int, ...], device: int) -> Box:
        """The box of a tensor of shape `full` that a device of the stage (0 … devices - 1) holds.

        `shape_of_parts(full)` must not be None.
        """
        return _box(self, full, device)

    def boxes(self, full: tuple[int, ...]) -> list[Box]:
        """The same of every device, one after the other; devices with the same part share it."""
        cutting, known = _cutting(self, full), dict[tuple[int, ...], Box]()
        boxes = []
        for coordinates in product(*map(range, self.device_matrix)):  # in the order of the devices
            at = cutting.at(coordinates)
            if (box := known.get(at)) is None:
                box = known[at] = cutting.box(at)
            boxes.append(box)
        return boxes


Stage = dict[str, DeviceLayout]  # parameter → layout


class _Cutting(NamedTuple):
    """How a tensor is cut into parts of a shape: what each coordinate of a device counts in the
    number of its part along each axis, and in that of its replica, of which so many are cut."""

    part: tuple[int, ...]
    sides: list[list[int]]
    replicas: list[int]
    optimizer_parts: int

    def at(self, coordinates: Sequence[int]) -> tuple[int, ...]:
        """Which part along each axis a device holds."""
        at = [dot(coordinates, side) for side in self.sides]
        if (parts := self.optimizer_parts) > 1:
            at[0] = at[0] * parts + dot(coordinates, self.replicas) % parts
        return tuple(at)

    def box(self, at: tuple[int, ...]) -> Box:
        """The box of that part."""
        return tuple([(i * n, (i + 1) * n) for i, n in zip(at, self.part, strict=True)])


@lru_cache(maxsize=1 << 14)
def _box(layout: DeviceLayout, full: tuple[int, ...], device: int) -> Box:
    """Kept, as the tensors of many layers are cut alike."""
    coordinates = []
    for size in reversed(layout.device_matrix):
        device, coordinate = divmod(device, size)
        coordinates.append(coordinate)
    cutting = _cutting(layout, full)
    return cutting.box(cutting.at(coordinates[::-1]))


@lru_cache(maxsize=1 << 10)
def _cutting(layout: DeviceLayout, full: tuple[int, ...]) -> _Cutting:
    """The same for all devices."""
    part = layout.shape_of_parts(full)
    if part is None:
        raise ValueError(f"{full} can't be cut by {layout}")
    matrix = layout.device_matrix
    used = {axis for axes in layout.tensor_map for axis in axes}
    unused = [axis for axis in range(len(matrix) - 1, -1, -1) if axis not in used]
    sides = [_weights(axes, matrix) for axes in layout.tensor_map]
    return _Cutting(part, sides, _weights(unused, matrix), layout.optimizer_parts)


def _weights(axes: Sequence[int], matrix: Sequence[int]) -> list[int]:
    """What each coordinate of a device counts in a number that is made of those of some `axes` of
    the device matrix, the major one first; axes are numbered from the right."""
    weights, weight = [0] * len(matrix), 1
    for axis in reversed(axes):
        weights[-1 - axis] = weight
        weight *= matrix[-1 - axis]
    return weights
