"""How MindFormers' PyNative trainer spreads parameters: fully sharded (FSDP) over a mesh of
devices. Pure arithmetic.

Source: MindFormers r2.1, `pynative/distributed/parallel_dims.py` (the meshes),
`pynative/base_models/gpt/parallelize.py` (which axis); hyper-parallel, `fully_shard` (the cut by
tensor or expert parallelism is the major one of an axis).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ckptforge.errors import ConfigError
from ckptforge.parallel.device_layout import DeviceLayout

Shape = tuple[int, ...]


class Mesh(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of a stage: `replicate` groups that hold the same, each of `shard` × `tensor`
    devices, of which `expert` share the experts; of weights that aren't experts `dense` of the
    `shard` devices hold a part each."""

    replicate: int
    shard: int
    dense: int
    tensor: int
    expert: int

    @property
    def devices(self) -> int:
        """Devices of the stage."""
        return self.replicate * self.shard * self.tensor

    def layout(self, shape: Shape, cut_by: Mapping[int, str], sharded: int | None) -> DeviceLayout:
        """How a parameter of this shape is cut. `cut_by` is axis → `mp` or `ep`; `sharded` is the
        axis that FSDP cuts where it divides, None of a parameter that it doesn't cut."""
        if self.expert > 1 and "ep" in cut_by.values():
            return self._experts(shape, {axis: 0 for axis, by in cut_by.items() if by == "ep"})
        # device axes from the right: tensor, dense, the rest of the shards, replicate
        matrix = (self.replicate, self.shard // self.dense, self.dense, self.tensor)
        maps = [[0] if cut_by.get(axis) == "mp" else [] for axis in range(len(shape))]
        if sharded is not None and shape:
            part = _part(shape[sharded], self.tensor, maps[sharded])
            maps[sharded] += [] if part % self.dense else [1]
        return DeviceLayout(matrix, tuple(map(tuple, maps)), 0, shape)

    def _experts(self, shape: Shape, cut_by: Mapping[int, int]) -> DeviceLayout:
        """Experts are cut by FSDP along the axis of the experts, else along the next."""
        shard = self.shard * self.tensor // self.expert
        maps = [[0] if axis in cut_by else [] for axis in range(len(shape))]
        for axis in range(min(2, len(shape))):
            if not _part(shape[axis], self.expert, maps[axis]) % shard:
                maps[axis].append(1)
                break
        matrix = (self.replicate, shard, self.expert)
        return DeviceLayout(matrix, tuple(map(tuple, maps)), 0, shape)


def _part(length: int, degree: int, axes: list[int]) -> int:
    return length // degree if axes else length


def mesh_of(
    path: object, *, replicate: int, shard: int, dense: int | None, tensor: int, expert: int
) -> Mesh:
    """Raises `ConfigError` for degrees that don't divide each other."""
    if shard * tensor % expert:
        raise ConfigError(
            f"{path}: expert_parallel {expert} does not divide data_parallel_shard × "
            f"context_parallel × tensor_parallel, {shard * tensor}."
        )
    if dense is not None and shard % dense:
        raise ConfigError(
            f"{path}: dense_fsdp_shard_size {dense} does not divide data_parallel_shard × "
            f"context_parallel, {shard}."
        )
    return Mesh(
        replicate=replicate, shard=shard, dense=dense or shard, tensor=tensor, expert=expert
    )
