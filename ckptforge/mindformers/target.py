"""An iteration directory as a target: whole as one rank has it, or cut into the ranks of a job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, box_shape, full_box
from ckptforge.checkpoints.iterations import check_iteration
from ckptforge.checkpoints.pynative_adapter import CONFIG, adapter_json
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.mindformers.common import ITERATION, Number, common_json, run_of
from ckptforge.mindformers.describing import CutTensor, folded, metadata_json
from ckptforge.mindformers.names import (
    COMMON,
    MAX_ITERATION,
    METADATA,
    MODEL,
    OPTIMIZER,
    TRACKER,
    iteration_name,
    part_name,
)
from ckptforge.mindformers.versions import Version, version_of
from ckptforge.model import Model
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.parallel.target import held_by, lacking_notes, refuse_other_strategy
from ckptforge.planning.lower import PlacedFile
from ckptforge.tables.state import is_state
from ckptforge.targets.mindspore import check_prefix, mindspore_file
from ckptforge.targets.target import LaidOut

DEFAULT_PREFIX = "checkpoint"
_FACTOR = re.compile(r".*\.([^.]+)\.lora_[ab]")  # of the PyNative trainer


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a user says of an iteration that is written: its number, for which version of
    MindFormers, and whether each slice is written once. Raises `UsageError` for what can't be."""

    iteration: int | None = None
    version: str | None = None
    remove_redundancy: bool = False

    def __post_init__(self) -> None:
        version_of(self.version)
        check_iteration(self.iteration, MAX_ITERATION)

    def target(
        self, out: Path, prefix: str, model: Model, strategy: Strategy | None
    ) -> IterationTarget:
        """The target for a model: under the iteration that it was itself, where none is said.
        Raises `UsageError` for a prefix that can't be."""
        check_prefix(prefix)
        own = model.run.get(ITERATION)
        usual = own if isinstance(own, int) else 0
        return IterationTarget(
            output=out,
            prefix=prefix.rstrip("-_") or DEFAULT_PREFIX,
            version=version_of(self.version),
            iteration=usual if self.iteration is None else self.iteration,
            strategy=strategy,
            remove_redundancy=self.remove_redundancy,
            run=run_of(model),
            optimizer=model.optimizer,
        )


class IterationTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The root of a run with one iteration, of a version of MindFormers; without a `strategy`
    whole, as one rank writes it. `run` are numbers for common.json, `optimizer` the tensors that go
    into files of optimizer state beside those that are known by name, `beside` small files for the
    root and the iteration."""

    output: Path
    prefix: str
    version: Version
    iteration: int
    strategy: Strategy | None = None
    remove_redundancy: bool = False
    run: Mapping[str, Number] = msgspec.field(default_factory=dict)
    optimizer: frozenset[str] = frozenset()
    beside: Mapping[str, bytes] = msgspec.field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The directory of the iteration."""
        return self.output / iteration_name(self.iteration)

    def with_adapter(self, names: Sequence[str], rank: int, alpha: float) -> IterationTarget:
        """The target for an adapter with these tensors, which an iteration of the PyNative trainer
        describes where its factors are called so."""
        modules = {found[1] for name in names if (found := _FACTOR.fullmatch(name))}
        if not modules:
            return self
        content = adapter_json(modules, rank, alpha, self.iteration)
        return replace(self, beside={CONFIG: content})

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """A file of the model for each rank, one of optimizer state where there is some, and what
        describes them. Raises `PlanError` for tensors that the strategy can't cut."""
        strategy = self.strategy
        ranks = 1 if strategy is None else strategy.ranks
        if strategy is not None:
            refuse_other_strategy(strategy, specs)
        cuts = list(self._cuts(specs))
        small: dict[str, bytes] = {}
        placed: list[PlacedFile] = []
        files: dict[str, dict[int, str]] = {cut.spec.name: {} for cut in cuts}
        for kind in (MODEL, OPTIMIZER):
            own = [cut for cut in cuts if self._kind(cut.spec.name) == kind]
            if own:
                placed += self._files(kind, own, ranks, files)
        home = self.directory.name
        if ranks > 1:
            small[f"{home}/{METADATA}"] = metadata_json(cuts, files, self.version)
        numbers = {key: value for key, value in self.run.items() if key != ITERATION}
        common = common_json(numbers, self.iteration, self.version.common_keys)
        small[f"{home}/{COMMON}"] = common
        for name, content in self.beside.items():
            small |= {f"{home}/{name}": content, name: content}
        small[TRACKER] = str(self.iteration).encode()
        return LaidOut(
            files=tuple(placed),
            small_files=small,
            notes=() if strategy is None else lacking_notes(strategy, specs),
            facts={} if strategy is None else {"ranks": ranks, "stages": len(strategy.stages)},
        )

    def _kind(self, name: str) -> str:
        return OPTIMIZER if name in self.optimizer or is_state(name) else MODEL

    def _cuts(self, specs: Sequence[TensorSpec]) -> Iterator[CutTensor]:
        if self.strategy is None:
            for spec in specs:
                yield CutTensor(spec=spec, layout=None, ranks=(0,), boxes={0: full_box(spec.shape)})
            return
        strategy, devices = self.strategy, self.strategy.devices
        held: dict[str, list[tuple[int, DeviceLayout | None]]] = {}
        for stage in range(len(strategy.stages)):
            for spec, layout in held_by(strategy, stage, specs):
                held.setdefault(spec.name, []).append((stage, layout))
        for spec in specs:
            stages = held.get(spec.name, [])
            layout = None if not stages else stages[0][1]
            everywhere = stages and layout is None
            if layout is None and spec.shape:
                layout = DeviceLayout((strategy.ranks,), ((),) * len(spec.shape))
            if layout is None:  # a number, of which metadata.json can't say a layout
                boxes: dict[int, Box] = dict.fromkeys(range(strategy.ranks), ())
                yield CutTensor(spec=spec, layout=None, ranks=(), boxes=boxes)
                continue
            layout = folded(spec, layout)
            first = 0 if everywhere else stages[0][0] * devices
            ranks = tuple(range(first, first + layout.devices))
            all_boxes = layout.boxes(spec.shape)
            boxes = {
                rank: all_boxes[rank % layout.devices]
                for rank in (
                    ranks
                    if everywhere
                    else (s * devices + device for s, _ in stages for device in range(devices))
                )
            }
            yield CutTensor(spec=spec, layout=layout, ranks=ranks, boxes=boxes)

    def _files(
        self, kind: str, cuts: Sequence[CutTensor], ranks: int, files: dict[str, dict[int, str]]
    ) -> Iterator[PlacedFile]:
        """The files of a kind; adds to `files` which rank's slice of a tensor is written where."""
        held: dict[int, list[CutTensor]] = {rank: [] for rank in range(ranks)}
        load = dict.fromkeys(held, 0)
        for cut in cuts:
            for holders in cut.slices().values():
                chosen = holders
                if self.remove_redundancy:
                    chosen = [min(holders, key=lambda rank: (load[rank], rank))]
                for rank in chosen:
                    held[rank].append(cut)
                    load[rank] += cut.spec.nbytes // max(1, len(cut.slices()))
        writing = [rank for rank in held if held[rank] or not self.remove_redundancy]
        alike: dict[tuple[str, ...], OutputFile] = {}
        for index, rank in enumerate(writing):
            name = part_name(self.prefix, kind, index, len(writing))
            path = self.directory / name
            boxes = {cut.spec.name: cut.boxes[rank] for cut in held[rank]}
            key = tuple(boxes)
            if key not in alike:  # the ranks of a stage have equal parts
                parts = [replace(cut.spec, shape=box_shape(cut.boxes[rank])) for cut in held[rank]]
                alike[key] = mindspore_file(path, parts)
            for tensor in boxes:
                files[tensor][rank] = name
            yield PlacedFile.cut(
                alike[key].at(path),
                {name: box for name, box in boxes.items() if box and self.strategy is not None},
                rank,
            )
