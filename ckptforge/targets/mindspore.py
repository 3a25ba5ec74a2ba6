"""The files that a conversion's tensors go into on MindSpore's side: one file, unified safetensors,
or rank directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import box_shape
from ckptforge.checkpoints.mindspore import HYPER_PARAMETERS, UNIFIED_MAP
from ckptforge.errors import PlanError, UsageError, counted, shown
from ckptforge.formats import mindspore_ckpt, safetensors
from ckptforge.formats.layout import FileLayout, TensorSpec
from ckptforge.parallel.config import ParallelConfig
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import Strategy, read_strategy
from ckptforge.planning.conversion import PlacedFile
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import option
from ckptforge.tables.state import companion_prefix, is_state

UNIFIED_PART_BYTES = 3 << 30  # MindSpore's unified_safetensors
SmallFiles = dict[str, bytes]


def cut_by(plan: Plan, place: MindSporeTarget | RankTarget | UnifiedTarget) -> Plan:
    """A plan whose output is cut as its target says, with the numbers of ranks and stages for its
    result."""
    if place.strategy is None:
        return plan
    extent = {"ranks": place.strategy.ranks, "stages": len(place.strategy.stages)}
    return replace(plan, strategy=place.strategy, facts={**plan.facts, **extent})


class Spread(msgspec.Struct, frozen=True):
    """How a user wants the output spread: `strategy` or `parallel_config` for rank directories,
    else one file or one directory of unified safetensors, by `format`. Made before anything is
    read: raises `UsageError` for a name that isn't right for what is written."""

    out: Path
    format: str | None
    prefix: str
    strategy: Path | None = None
    parallel_config: Path | None = None

    def __post_init__(self) -> None:
        split = self.strategy is not None or self.parallel_config is not None
        refuse_name(self.out, directory=split or self.format == "unified")

    def place(
        self, compute: Callable[[ParallelConfig], Strategy]
    ) -> MindSporeTarget | RankTarget | UnifiedTarget:
        """The target; `compute` makes the strategy of a parallel configuration. Raises
        `UsageError`, and what reading raises."""
        if self.strategy is not None and self.parallel_config is not None:
            raise UsageError(
                "a strategy and a parallel configuration both say how to split; give one."
            )
        if self.strategy is None and self.parallel_config is None:
            if self.format == "unified":
                return UnifiedTarget(self.out)
            return MindSporeTarget.of(self.out, self.format, self.prefix)
        if self.format == "unified":
            raise UsageError(
                f"{option('format', 'unified')} holds whole tensors; it can't be split into ranks."
            )
        if self.strategy is not None:
            return RankTarget.of(self.out, self.format, self.prefix, read_strategy(self.strategy))
        assert self.parallel_config is not None
        return RankTarget.of(
            self.out, self.format, self.prefix, compute(read_parallel_config(self.parallel_config))
        )


class MindSporeTarget(msgspec.Struct, frozen=True):
    """One MindSpore file: `path` is the file; `output` the same, or the directory it lies in. It
    isn't cut by a `strategy`."""

    output: Path
    path: Path
    is_ckpt: bool
    strategy: None = None

    @classmethod
    def of(cls, out: Path, file_format: str | None, prefix: str) -> MindSporeTarget:
        """OUT ending in .ckpt or .safetensors is the file, otherwise a directory that gets
        `rank_0/<prefix>0.<format>`.

        Raises `UsageError` when the ending and `--format` differ.
        """
        _check_prefix(prefix)
        ending = out.suffix.removeprefix(".")
        if ending in ("ckpt", "safetensors"):
            if file_format not in (None, ending):
                raise UsageError(
                    f"{option('format', file_format)} contradicts the ending of "
                    f"{out}; omit one of them."
                )
            return cls(out, out, ending == "ckpt")
        file_format = file_format or "ckpt"
        return cls(out, out / "rank_0" / f"{prefix}0.{file_format}", file_format == "ckpt")

    def notes(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """Nothing to say of one file."""
        return ()

    def lay_out(self, specs: Sequence[TensorSpec]) -> tuple[tuple[PlacedFile, ...], SmallFiles]:
        """The one file, with all tensors."""
        return (PlacedFile(_mindspore_file(self.path, specs, self.is_ckpt)),), {}


def _mindspore_file(path: Path, specs: Sequence[TensorSpec], is_ckpt: bool) -> FileLayout:
    if is_ckpt:
        return mindspore_ckpt.lay_out(path, specs)
    return safetensors.lay_out(path, safetensors.library_order(specs), {"format": "ms"})


class RankTarget(msgspec.Struct, frozen=True):
    """The rank directories of a job: `rank_<r>/<prefix><r>.ckpt` (or `.safetensors`) in a
    directory."""

    output: Path
    prefix: str
    is_ckpt: bool
    strategy: Strategy

    @classmethod
    def of(cls, out: Path, file_format: str | None, prefix: str, strategy: Strategy) -> RankTarget:
        """Raises `UsageError` for a prefix that isn't the beginning of a file's name."""
        _check_prefix(prefix)
        return cls(out, prefix, file_format in (None, "ckpt"), strategy)

    def notes(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """A sentence about parameters of the strategy that there are no tensors for; a whole lack
        of optimizer state is none."""
        names = {spec.name for spec in specs}
        with_state = any(companion_prefix(name) for name in names)
        lacking = [
            name
            for stage in self.strategy.stages
            for name in stage
            if name not in names and (with_state or companion_prefix(name) is None)
        ]
        if not lacking or self.strategy.computed:
            return ()
        parameters = counted(len(lacking), f"parameter of {self.strategy.path}", "aren't")
        return (f"{parameters} in the input and so in no rank, such as {lacking[0]}.",)

    def lay_out(self, specs: Sequence[TensorSpec]) -> tuple[tuple[PlacedFile, ...], SmallFiles]:
        """A file for each rank: the tensors of its stage, cut, and whole those that no stage has.

        Raises `PlanError` for tensors that the strategy can't cut, and for a strategy of none of
        them.
        """
        known = {name for stage in self.strategy.stages for name in stage}
        weights = [spec.name for spec in specs if not is_state(spec.name)]
        if weights and known.isdisjoint(weights):
            other = next(iter(self.strategy.stages[0]), "")
            raise PlanError(
                f"{self.strategy.path}: covers none of the {counted(len(weights), 'tensor')} (such "
                f"as {shown(weights[0])}); it describes "
                f"others (such as {shown(other)}), so every rank would hold the whole model. It "
                "isn't a strategy for this model or layout."
            )
        ending = "ckpt" if self.is_ckpt else "safetensors"
        held = [self._held(stage, specs) for stage in range(len(self.strategy.stages))]
        laid_out: dict[int, FileLayout] = {}
        placed = []
        for rank in range(self.strategy.ranks):
            stage, device = self.strategy.stage_of(rank), rank % self.strategy.devices
            boxes = {
                spec.name: layout.box(spec.shape, device)
                for spec, layout in held[stage]
                if layout is not None
            }
            path = self.output / f"rank_{rank}" / f"{self.prefix}{rank}.{ending}"
            if stage not in laid_out:  # the ranks of a stage have equal parts
                parts = [
                    TensorSpec(
                        spec.name,
                        spec.dtype,
                        box_shape(boxes[spec.name]) if layout is not None else spec.shape,
                    )
                    for spec, layout in held[stage]
                ]
                laid_out[stage] = _mindspore_file(path, parts, self.is_ckpt)
            placed.append(PlacedFile(laid_out[stage].at(path), boxes))
        return tuple(placed), {}

    def _held(
        self, stage: int, specs: Sequence[TensorSpec]
    ) -> list[tuple[TensorSpec, DeviceLayout | None]]:
        """The tensors that the ranks of a stage hold, and how they are cut; None for one that no
        stage has."""
        found: list[tuple[TensorSpec, DeviceLayout | None]] = []
        for spec in specs:
            layout = self.strategy.stages[stage].get(spec.name)
            if layout is None:
                if self.strategy.first_stage(spec.name) is None:
                    found.append((spec, None))
                continue
            if layout.shape_of_parts(spec.shape) is None or layout.full_shape not in (
                None,
                spec.shape,
            ):
                raise PlanError(
                    f"tensor {shown(spec.name)} has shape {list(spec.shape)}, but "
                    f"{self.strategy.path} cuts it by device matrix "
                    f"{list(layout.device_matrix)}, tensor map "
                    f"{[list(axes) or -1 for axes in layout.tensor_map]}"
                    + (
                        f" and {layout.optimizer_parts} optimizer shards"
                        if layout.optimizer_parts > 1
                        else ""
                    )
                    + (f" from shape {list(layout.full_shape)}" if layout.full_shape else "")
                    + "; it isn't a strategy for this model."
                )
            found.append((spec, layout))
        return found


class UnifiedTarget(msgspec.Struct, frozen=True):
    """MindSpore's unified safetensors: `part<i>.safetensors` of about 3 GiB, `param_name_map.json`
    with the file of each tensor, and counters and scales in `hyper_param.safetensors`."""

    output: Path
    strategy: None = None

    def notes(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """Nothing to say."""
        return ()

    def lay_out(self, specs: Sequence[TensorSpec]) -> tuple[tuple[PlacedFile, ...], SmallFiles]:
        """The parts, filled as MindSpore fills them: the largest tensor first, each into the part
        that is emptiest."""
        hyper = [
            spec for spec in specs if is_state(spec.name) and companion_prefix(spec.name) is None
        ]
        tensors = [
            spec
            for spec in specs
            if not is_state(spec.name) or companion_prefix(spec.name) is not None
        ]
        total = sum(spec.nbytes for spec in tensors)
        parts: list[list[TensorSpec]] = [[] for _ in range(max(1, -(-total // UNIFIED_PART_BYTES)))]
        filled = [0] * len(parts)
        for spec in sorted(tensors, key=lambda spec: spec.nbytes, reverse=True):
            emptiest = filled.index(min(filled))
            parts[emptiest].append(spec)
            filled[emptiest] += spec.nbytes
        files = {f"part{i}.safetensors": part for i, part in enumerate(parts)}
        weight_map = {spec.name: name for name, part in files.items() for spec in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        if hyper:
            files[HYPER_PARAMETERS] = hyper
        placed = tuple(
            PlacedFile(_mindspore_file(self.output / name, part, False))
            for name, part in files.items()
        )
        return placed, {UNIFIED_MAP: json.dumps(index, indent=4, ensure_ascii=False).encode()}


def _check_prefix(prefix: str) -> None:
    if "/" in prefix or prefix.startswith(".") or "\0" in prefix:
        raise UsageError(
            f"{option('prefix', prefix)}: must be the beginning of a file name, without '/'."
        )
