"""The rank directories of a job as a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box
from ckptforge.errors import PlanError, shown
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.parallel.cut import cut_json, cut_of
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.planning.lower import Part, PlacedFile
from ckptforge.tables.state import companion_prefix, is_state
from ckptforge.targets.mindspore import DEFAULT_ENDING, check_prefix, mindspore_file
from ckptforge.targets.target import LaidOut
from ckptforge.wording import counted


class RankTarget(msgspec.Struct, frozen=True):
    """Rank directories: `rank_<r>/<prefix><r>.ckpt` (or `.safetensors`) in a directory."""

    output: Path
    prefix: str
    ending: str
    strategy: Strategy

    @classmethod
    def of(cls, out: Path, ending: str | None, prefix: str, strategy: Strategy) -> RankTarget:
        """Raises `UsageError` for a prefix that isn't the beginning of a file's name."""
        check_prefix(prefix)
        return cls(out, prefix, ending or DEFAULT_ENDING, strategy)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """A file for each rank: the tensors of its stage, cut, and whole those that no stage has.

        Raises `PlanError` for tensors that the strategy can't cut, and for a strategy of none of
        them.
        """
        refuse_other_strategy(self.strategy, specs)
        numbers = range(len(self.strategy.stages))
        by_stage = [held_by(self.strategy, stage, specs) for stage in numbers]
        laid_out: dict[int, OutputFile] = {}
        kinds = [_cut_alike(held) for held in by_stage]
        boxes: dict[tuple[DeviceLayout | None, tuple[int, ...]], list[Box]] = {
            (layout, shape): layout.boxes(shape)
            for layout, shape in {key for kind in kinds for key in kind}
            if layout is not None
        }
        alike = [[(names, boxes.get(key)) for key, names in kind.items()] for kind in kinds]
        placed = []
        for rank in range(self.strategy.ranks):
            stage, device = self.strategy.stage_of(rank), rank % self.strategy.devices
            path = self.output / f"rank_{rank}" / f"{self.prefix}{rank}.{self.ending}"
            if stage not in laid_out:  # the ranks of a stage have equal parts
                cut = [
                    spec if how is None else replace(spec, shape=how.shape_of_parts(spec.shape))
                    for spec, how in by_stage[stage]
                ]
                laid_out[stage] = mindspore_file(path, cut)
            parts = tuple(
                Part(names, None if of_devices is None else of_devices[device])
                for names, of_devices in alike[stage]
            )
            placed.append(PlacedFile(laid_out[stage].at(path), parts, rank=rank))
        stages = [laid_out[stage].places for stage in range(len(by_stage))]
        return LaidOut(
            files=tuple(placed),
            notes=lacking_notes(self.strategy, specs),
            facts={"ranks": self.strategy.ranks, "stages": len(self.strategy.stages)},
            cut=cut_json(cut_of(self.strategy, stages)),
        )


_Held = tuple[TensorSpec, "DeviceLayout | None"]


def _cut_alike(
    held: Sequence[_Held],
) -> dict[tuple[DeviceLayout | None, tuple[int, ...]], tuple[str, ...]]:
    """(layout, shape) → the tensors that have both, of which each rank has the same box."""
    found: dict[tuple[DeviceLayout | None, tuple[int, ...]], list[str]] = {}
    for spec, layout in held:
        found.setdefault((layout, spec.shape), []).append(spec.name)
    return {key: tuple(names) for key, names in found.items()}


def refuse_other_strategy(strategy: Strategy, specs: Sequence[TensorSpec]) -> None:
    """Raises `PlanError` for a strategy of none of these tensors."""
    known = {name for stage in strategy.stages for name in stage}
    weights = [spec.name for spec in specs if not is_state(spec.name)]
    if weights and known.isdisjoint(weights):
        other = next(iter(strategy.stages[0]), "")
        raise PlanError(
            f"{strategy.path}: covers none of the {counted(len(weights), 'tensor')} (such "
            f"as {shown(weights[0])}); it describes others (such as {shown(other)}), so every "
            "rank would hold the whole model. It isn't a strategy for this model or layout."
        )


def lacking_notes(strategy: Strategy, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """A sentence about parameters of the strategy that there are no tensors for; a whole lack
    of optimizer state is none."""
    names = {spec.name for spec in specs}
    with_state = any(companion_prefix(name) for name in names)
    known = dict.fromkeys(name for stage in strategy.stages for name in stage)
    lacking = [n for n in known if n not in names and (with_state or not companion_prefix(n))]
    if not lacking or strategy.computed:
        return ()
    parameters = counted(len(lacking), f"parameter of {strategy.path}", "aren't")
    return (f"{parameters} in the input and so in no rank, such as {lacking[0]}.",)


def held_by(strategy: Strategy, stage: int, specs: Sequence[TensorSpec]) -> list[_Held]:
    """The tensors of a stage's ranks, and how they are cut: None where no stage has one. Raises
    `PlanError` for one that the strategy can't cut."""
    found: list[_Held] = []
    for spec in specs:
        layout = strategy.stages[stage].get(spec.name)
        if layout is None:
            if strategy.first_stage(spec.name) is None:
                found.append((spec, None))
            continue
        whole = layout.full_shape
        if layout.shape_of_parts(spec.shape) is None or whole not in (None, spec.shape):
            parts = layout.optimizer_parts
            optimizer = f" and {parts} optimizer shards" if parts > 1 else ""
            raise PlanError(
                f"tensor {shown(spec.name)} has shape {list(spec.shape)}, but "
                f"{strategy.path} cuts it by device matrix {list(layout.device_matrix)}, "
                f"tensor map {[list(axes) or -1 for axes in layout.tensor_map]}{optimizer}"
                + (f" from shape {list(whole)}" if whole else "")
                + "; it isn't a strategy for this model."
            )
        found.append((spec, layout))
    return found
