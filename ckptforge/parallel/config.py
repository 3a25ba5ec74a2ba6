"""How a job is spread over devices: its degrees, and what else decides how weights are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ckptforge.errors import ConfigError, shown
from ckptforge.parallel.mesh import Mesh
from ckptforge.tables.sharding import ShardRow
from ckptforge.wording import counted

Offset = int | list[int] | list[list[int]]


class Degrees(msgspec.Struct, frozen=True, kw_only=True):
    """The degrees of data, model, expert and pipeline parallelism."""

    data: int = 1
    model: int = 1
    expert: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        """Devices of a pipeline stage."""
        return self.data * self.model

    @property
    def ranks(self) -> int:
        """Devices of the job."""
        return self.devices * self.pipeline

    def of(self, dimension: str) -> int:
        """The degree of `mp` or `ep`."""
        return {"mp": self.model, "ep": self.expert}[dimension]


class OptimizerParallel(msgspec.Struct, frozen=True, kw_only=True):
    """Whether replicas cut the weights once more: those of `threshold` KB and more, into `shards`
    parts, -1 for as many as there are replicas."""

    enabled: bool = False
    threshold: int = 64
    shards: int = -1


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration says about the model; None where it doesn't."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    experts: int | None = None


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """How stages divide the layers: `offset` layers more or less in each (an integer, one list, or
    one list for each of the `interleave` parts), or in so many words the `layers` of each."""

    offset: Offset = 0
    interleave: int = 1
    layers: tuple[tuple[int, ...], ...] | None = None


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A job's parallel configuration: also `flags` and `shard` rows for those of the table, and the
    `mesh` of a job of the PyNative trainer."""

    path: Path
    degrees: Degrees
    optimizer: OptimizerParallel = OptimizerParallel()
    stages: Stages = Stages()
    counts: Counts = Counts()
    flags: Mapping[str, bool] = msgspec.field(default_factory=dict)
    shard: Mapping[str, ShardRow] = msgspec.field(default_factory=dict)
    mesh: Mesh | None = None

    def layers_by_stage(self, layers: int) -> list[int]:
        """The stage of each layer. Raises `ConfigError` with the rule that the offsets break.

        Layers of (mini) stage k: layers // (stages · interleave) + offset[k]; the offsets sum to
        the remainder.
        """
        if self.stages.layers is not None:
            return self._listed(layers, self.stages.layers)
        pipeline, interleave = self.degrees.pipeline, self.stages.interleave
        if layers < pipeline:
            raise ConfigError(
                f"{self.path}: {counted(layers, 'layer')} for {counted(pipeline, 'stage')}, of "
                "which each needs one: lower pipeline_stage."
            )
        parts = pipeline * interleave
        rows = self._offsets()
        total = sum(map(sum, rows))
        if total != layers % parts:
            parts_text = f" × {interleave} interleaved" if interleave > 1 else ""
            what = counted(pipeline, "stage") + parts_text
            if self.mesh is not None:
                raise ConfigError(
                    f"{self.path}: {counted(layers, 'layer')} leave {layers % parts} over {what}; "
                    "say in pipeline_parallel_layers_per_stage which layers are in each."
                )
            raise ConfigError(
                f"{self.path}: the offsets sum to {total}, but {counted(layers, 'layer')} leave "
                f"{layers % parts} over {what}; offset must sum to {layers % parts}."
            )
        counts = [[layers // parts + more for more in row] for row in rows]
        negative = any(count < 0 for row in counts for count in row)
        if negative or not all(map(sum, zip(*counts, strict=True))):
            raise ConfigError(
                f"{self.path}: {counted(layers, 'layer')} with offset {shown(self.stages.offset)} "
                f"leave one of {counted(pipeline, 'stage')} without layers."
            )
        return [stage for row in counts for stage, count in enumerate(row) for _ in range(count)]

    def _listed(self, layers: int, listed: tuple[tuple[int, ...], ...]) -> list[int]:
        stage_of = {layer: stage for stage, held in enumerate(listed) for layer in held}
        if sorted(layer for held in listed for layer in held) != list(range(layers)):
            raise ConfigError(
                f"{self.path}: the stages list layers {shown([list(held) for held in listed])}, "
                f"expected each of {counted(layers, 'layer')}, from 0 to {layers - 1}, once."
            )
        return [stage_of[layer] for layer in range(layers)]

    def _offsets(self) -> list[list[int]]:
        """A row for each interleaved part, with a number for each stage."""
        offset, interleave = self.stages.offset, self.stages.interleave
        if isinstance(offset, int):
            return [[offset] * self.degrees.pipeline] * interleave
        rows = [row for row in offset if isinstance(row, list)]
        rows = rows or [[more for more in offset if isinstance(more, int)]]
        if any(len(row) != self.degrees.pipeline for row in rows):
            raise ConfigError(
                f"{self.path}: offset {shown(offset)} must hold a number for each of "
                f"{self.degrees.pipeline} pipeline stages."
            )
        if len(rows) not in (1, interleave):
            raise ConfigError(
                f"{self.path}: offset {shown(offset)} must hold a list for each of {interleave} "
                "interleaved parts."
            )
        return rows if len(rows) == interleave else rows * interleave


def stage_of_layers(config: ParallelConfig, layers: int | None) -> Sequence[int]:
    """The stage of each layer. Raises `ConfigError`, also for another number of layers."""
    if layers is None:
        return ()
    if config.counts.layers not in (None, layers):
        raise ConfigError(
            f"{config.path}: num_layers is {config.counts.layers}, but the model has "
            f"{counted(layers, 'layer')}."
        )
    return config.layers_by_stage(layers)
