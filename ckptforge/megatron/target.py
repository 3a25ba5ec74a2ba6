"""The root of a run of Megatron's with one iteration, as a target: a file for each rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.iterations import check_iteration
from ckptforge.composing import terms_through
from ckptforge.errors import PlanError, shown
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.megatron.arguments import arguments_of
from ckptforge.megatron.config import MegatronConfig
from ckptforge.megatron.cutting import Cutter
from ckptforge.megatron.job import Chunk, Job, Layers, Rank
from ckptforge.megatron.names import (
    EMBEDDING,
    FILE,
    HEAD,
    MODEL,
    MORE,
    TRACKER,
    VISION,
    Stack,
    expert_of,
    iteration_name,
    layer_of,
    rank_name,
    stack_of,
    with_expert,
    with_layer,
)
from ckptforge.megatron.norms import norm_written
from ckptforge.planning.lower import Part, PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.names import recognise_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.targets.target import LaidOut
from ckptforge.torch_files.pickle_data import Inert
from ckptforge.torch_files.writing import lay_out_archive
from ckptforge.values import Value

_MAX_ITERATION = 10**12 - 1
_VERSION = 3.0  # checkpoint_version since 2020


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model that is written: its table, its layout, the lengths of its axes, its
    config.json, and its values in the layout."""

    table: Table
    layout: Layout
    sizes: AxisSizes
    config: Mapping[str, Any]
    values: Mapping[str, Value]


class MegatronTarget:
    """`iter_<n>/mp_rank_…/model_optim_rng.pt` of each rank, and the tracker. Raises `UsageError`
    for a number that no iteration has, `ConfigError` for a model that can't be cut so."""

    def __init__(
        self, output: Path, known: Known, config: MegatronConfig, iteration: int | None
    ) -> None:
        refuse_name(output, directory=True)
        check_iteration(iteration, _MAX_ITERATION)
        self.output, self.known = output, known
        self.iteration = 1 if iteration is None else iteration
        assert known.table.pipeline is not None
        layers = known.sizes.get(known.table.pipeline.layers[0][0]) or 0
        self.job, self.layers = config.spread(_stacks(known.values, layers))
        self.cutter = Cutter(self.job, known.table, known.layout, known.sizes)
        found, unknown = recognise_names(known.layout, known.values, known.sizes.lengths)
        if unknown:
            raise PlanError(
                f"{output}: layout {known.layout.name} doesn't say which rank has "
                f"{shown(unknown[0])}; leave it out with {option('drop')}."
            )
        self.patterns = {name: p for p, own in found.items() for name in own.values()}
        self.chunks = _by_chunk(self.job, self.layers, known.values)
        self.beside: dict[str, Any] = {}
        if MODEL in self.layers:  # MindSpeed-MM's trainer has its sizes in another place
            arguments = self._arguments(config, layers)
            self.beside["args"] = Inert("argparse.Namespace", (), arguments)
        self.beside |= {"checkpoint_version": _VERSION, "iteration": self.iteration}

    def _arguments(self, config: MegatronConfig, layers: int) -> dict[str, Any]:
        more: dict[str, Any] = {"num_layers": layers + len(config.idle)}
        if self.job.parts > 1:
            # of a schedule in v shape, too, as MindSpeed-LLM's converter reads it
            length = more["num_layers"] // len(self.job.chunks)
            more["num_layers_per_virtual_pipeline_stage"] = length
        if config.listed is not None:
            more["num_layer_list"] = ",".join(map(str, config.listed))
        if config.idle:
            more["noop_layers"] = ",".join(map(str, config.idle))
        if EMBEDDING in self.known.values:
            more["padded_vocab_size"] = self.known.values[EMBEDDING].shape[0]
        for pattern in self.patterns.values():
            for cut in self.cutter.cuts(pattern):
                if cut.dimension == "ep":
                    more["num_experts"] = self.known.sizes.get(cut.axis)
        return arguments_of(self.job, self.known.config, more)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """A file for each rank that writes one. Raises `PlanError` for what torch can't hold, and
        `ConfigError` for an axis that can't be cut."""
        home = self.output / iteration_name(self.iteration)
        job, laid_out = self.job, dict[tuple[TensorSpec, ...], OutputFile]()
        placed, seen = [], set[tuple[str, object]]()
        for rank in job.ranks():
            held = dict(self._held(rank))
            own = tuple(self._spec(name, *one, rank) for name, one in held.items())
            stage = rank.stage if job.stages > 1 else None
            expert = rank.expert if job.expert > 1 else None
            path = home / rank_name(rank.tensor, stage, expert) / FILE
            if own not in laid_out:
                empty: dict[str, Any] = {self._group(i): {} for i in range(job.parts)}
                for spec in own:
                    empty.pop(spec.name.partition(".")[0], None)
                laid_out[own] = lay_out_archive(path, own, {**self.beside, **empty})
            again = {
                name: (full, self.cutter.held(pattern, rank).key)
                for name, (full, pattern) in held.items()
            }
            replicas = tuple(name for name, key in again.items() if key in seen)
            firsts = tuple(name for name, key in again.items() if key not in seen)
            seen.update(again.values())
            parts = (Part(firsts), Part(replicas, replica=True))
            values = _RankValues(self.known.values, self.cutter, rank, held)
            placed.append(PlacedFile(laid_out[own].at(path), parts, values))
        return LaidOut(
            files=tuple(placed),
            small_files={TRACKER: str(self.iteration).encode()},
            facts={"ranks": len(placed), "stages": job.stages},
        )

    def _group(self, part: int) -> str:
        return "model" if self.job.parts == 1 else f"model{part}"

    def _held(self, rank: Rank) -> Iterator[tuple[str, tuple[str, Pattern]]]:
        """(name in the file, (name in the model, its pattern)) of what a rank has."""
        for part in range(self.job.parts):
            group = self._group(part)
            for local, full in self.chunks[rank.stage, part]:
                pattern = self.patterns[full]
                number, experts = expert_of(local), self.cutter.experts(pattern, rank)
                if experts is not None and number is not None:
                    if not experts[0] <= number < experts[1]:
                        continue
                    local = with_expert(local, number - experts[0])
                yield f"{group}.{local}", (full, pattern)

    def _spec(self, name: str, full: str, pattern: Pattern, rank: Rank) -> TensorSpec:
        return TensorSpec(
            name, self.known.values[full].dtype, self.cutter.held(pattern, rank).shape
        )


def _stacks(names: Iterable[str], layers: int) -> dict[Stack, int]:
    """How many layers there are of each of the stacks: of the language model as config.json says,
    of a tower as the names do."""
    numbers: dict[Stack, int] = {}
    for name in names:
        stack, number = stack_of(name), layer_of(name)
        numbers[stack] = max(numbers.get(stack, 0), 0 if number is None else number + 1)
    return {stack: count if stack == VISION else layers for stack, count in numbers.items()}


def _by_chunk(
    job: Job, layers: Mapping[Stack, Layers], names: Mapping[str, Value]
) -> dict[Chunk, list[tuple[str, str]]]:
    """(stage, part) → (name with the number of its layer there, name in the model). What has no
    layer lies in the first part or in the last, where the head is a copy of the embedding if it has
    no tensor of its own and isn't in the same stage; layers that predict more tokens have one
    there."""
    found: dict[Chunk, list[tuple[str, str]]] = {chunk: [] for chunk in job.chunks}
    for stack, own in layers.items():
        first, last = (job.chunks[0], job.last) if stack.fixed else own.ends(job)
        places = {
            number: (chunk, local)
            for chunk, held in own.held.items()
            for local, number in held.items()
        }
        for name in (name for name in names if stack_of(name) == stack):
            number, called = layer_of(name), norm_written(name, names)
            if number is not None:
                chunk, local = places[number]
                found[chunk].append((with_layer(called, local), name))
            else:
                found[first if name.startswith(stack.first) else last].append((called, name))
        embedding, head = f"{stack.home}{EMBEDDING}", f"{stack.home}{HEAD}"
        if embedding in names and head not in names and last[0] != first[0]:
            found[last].append((head, embedding))
    if EMBEDDING in names and job.stages > 1 and any(name.startswith(MORE) for name in names):
        found[job.last].append((EMBEDDING, EMBEDDING))
    return found


class _RankValues(Mapping[str, Value]):
    """The values of a rank's file, made when they are asked for."""

    def __init__(
        self,
        values: Mapping[str, Value],
        cutter: Cutter,
        rank: Rank,
        held: Mapping[str, tuple[str, Pattern]],
    ) -> None:
        self._values, self._cutter, self._rank, self._held = values, cutter, rank, held

    def __getitem__(self, name: str) -> Value:
        full, pattern = self._held[name]
        value, held = self._values[full], self._cutter.held(pattern, self._rank)
        if held.transfers is None:
            return value
        terms = terms_through((value, transfer) for transfer in held.transfers)
        return Value(dtype=value.dtype, shape=held.shape, terms=tuple(terms), kind=value.kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
