"""An iteration of Megatron's as a model: the files of its ranks, put together.

How a tensor is cut stands in the [shard] rows of its layout, how a job is cut in the arguments in
its files. Numbers of layers and of experts, which count within a file, become those of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.duplicates import same_bytes
from ckptforge.checkpoints.files import read_file
from ckptforge.composing import terms_through
from ckptforge.errors import CkptforgeError, ConfigError, FormatError, LayoutError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.megatron.arguments import described, job_of
from ckptforge.megatron.cutting import Cutter
from ckptforge.megatron.job import Chunk, Job, Rank, found_layers
from ckptforge.megatron.names import (
    FILE,
    expert_of,
    is_extra_state,
    layer_of,
    numbers_of,
    with_expert,
    with_layer,
)
from ckptforge.megatron.roots import Iteration, find_iteration
from ckptforge.model import IN_RANKS, Account, Model
from ckptforge.reading.known import Choices, Known, known_of
from ckptforge.reading.vocabulary import KEY
from ckptforge.tables.axes import Pattern, axis_factors
from ckptforge.tables.names import read_names, recognise_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.tables.table_choice import choose_table
from ckptforge.torch_files.pickle_data import Inert
from ckptforge.torch_files.torch_zip import read_data
from ckptforge.transfers import Transfer
from ckptforge.values import Value
from ckptforge.wording import counted

_log = logging.getLogger(__name__)
FAMILY = "megatron"
FORMAT = "megatron"
_LEFT = "optimizer state and the state of the training run"
Tensors = dict[str, Value]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's file: the tensors of each part of its stage, by their names there."""

    rank: Rank
    index: FileIndex
    parts: Mapping[int, Tensors]


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an iteration, how its job is cut, and its arguments; `left` are tensors that are
    no weights."""

    iteration: Iteration
    files: tuple[File, ...]
    job: Job
    arguments: Mapping[str, Any]
    left: tuple[str, ...]


def open_megatron(directory: Path, choices: Choices, check_replicas: bool = False) -> Model:
    """The root of a run, or one iteration, as a model of full tensors in its layout.

    Raises `InputNotFoundError` for what isn't there, `FormatError` for files that contradict each
    other, and what choosing a table raises, which the layout's [shard] rows are needed of.
    """
    opened = _opened(directory, choices.step)
    held = list(_renamed(opened))
    values = {name: value for _, own in held for name, value in own.items()}
    model = Model(
        path=directory,
        format=FORMAT + IN_RANKS,
        directory=directory,
        files=tuple(file.index for file in opened.files),
        values=values,
        account=Account().noting(*opened.iteration.notes).leaving(_LEFT, opened.left),
        ranks=len(opened.files),
        run={"iteration": max(opened.iteration.number or 0, 0)},
        family=FAMILY,
        described=described(opened.arguments),
    )
    known = known_of(model, choices)
    table, layout = _layout(directory, values, known)
    joining = _Joining(opened.job, table, layout, known, check_replicas)
    try:
        joined = joining.values(directory, held)
    except (LayoutError, ConfigError) as error:
        raise type(error)(f"{directory}: {error}") from error
    ranks = counted(len(opened.files), "rank")
    _log.info("opened %s: %s of %s", opened.iteration.directory, FORMAT, ranks)
    return replace(model, values=joined, layout=layout.name)


def _opened(directory: Path, step: int | None) -> Opened:
    iteration = find_iteration(directory, step)
    ranks = iteration.ranks
    first = min(ranks, key=lambda path: path.name)
    arguments = _arguments(first / FILE)
    files, left = [], list[str]()
    for path in sorted(ranks, key=lambda path: path.name):
        index = read_file(path / FILE)
        parts: dict[int, Tensors] = {}
        for name, value in index.values():
            group, _, own = name.partition(".")
            number = group.removeprefix("model")
            if group.startswith("model") and own and (not number or number.isdigit()):
                if not is_extra_state(own):
                    parts.setdefault(int(number or 0), {})[own] = value
            else:
                left.append(name)
        files.append((path, index, parts))
    job = job_of(arguments, max(max(p, default=0) for _, _, p in files) + 1, first / FILE)
    found = tuple(
        File(rank=_rank(path, job), index=index, parts=parts) for path, index, parts in files
    )
    _check_ranks(iteration.directory, job, [file.rank for file in found])
    return Opened(
        iteration=iteration,
        files=found,
        job=job,
        arguments=arguments,
        left=tuple(dict.fromkeys(left)),
    )


def _arguments(path: Path) -> Mapping[str, Any]:
    root = read_data(path)
    if not isinstance(root, dict) or not any(str(key).startswith("model") for key in root):
        raise FormatError(f"{path}: holds no 'model', expected a checkpoint of Megatron's.")
    held = root.get("args")
    found = held.state if isinstance(held, Inert) else held
    return found if isinstance(found, dict) else {}


def _rank(path: Path, job: Job) -> Rank:
    """Raises `FormatError` for a name that the job can't have."""
    tensor, *others = numbers_of(path.name) or ()
    if len(others) == 2:
        return Rank(tensor=tensor, stage=others[0], expert=others[1])
    if not others:
        return Rank(tensor=tensor)
    if job.stages > 1 or job.expert == 1:
        return Rank(tensor=tensor, stage=others[0])
    return Rank(tensor=tensor, expert=others[0])


def _check_ranks(directory: Path, job: Job, found: Sequence[Rank]) -> None:
    wanted = set(job.ranks())
    if wanted == set(found):
        return
    lacking, strange = sorted(wanted - set(found)), sorted(set(found) - wanted)
    said = (
        f"{directory}: args say tensor parallel {job.tensor}, {counted(job.stages, 'stage')}, "
        f"expert parallel {job.expert}"
    )
    if lacking and not (job.expert > 1 and job.tensor > 1 and len({*found}) < len(wanted) // 2):
        one = lacking[0]
        raise FormatError(
            f"{said}, but the file of rank tensor {one.tensor}, stage {one.stage}, expert "
            f"{one.expert} isn't there ({counted(len(lacking), 'file')} in all)."
        )
    one = (strange or lacking)[0]
    raise FormatError(
        f"{said}, but there are {counted(len(found), 'file')}, such as that of tensor "
        f"{one.tensor}, stage {one.stage}, expert {one.expert}."
    )


def _renamed(opened: Opened) -> Iterator[tuple[Rank, Tensors]]:
    """The tensors of each file under the numbers that layers have in the model."""
    present: dict[Chunk, set[int]] = {}
    for file in opened.files:
        for part, tensors in file.parts.items():
            numbers = {number for name in tensors if (number := layer_of(name)) is not None}
            present.setdefault((file.rank.stage, part), set()).update(numbers)
    layers = found_layers(opened.job, {chunk: sorted(own) for chunk, own in present.items()})
    for file in opened.files:
        found: Tensors = {}
        for part, tensors in file.parts.items():
            held = layers.held[file.rank.stage, part]
            for name, value in tensors.items():
                local = layer_of(name)
                full = name if local is None else with_layer(name, held[local])
                if full in found and local is None:
                    continue  # a copy of the embedding
                if full in found:
                    raise FormatError(f"{file.index.path}: holds {shown(full)} twice.")
                found[full] = value
        yield file.rank, found


def _layout(directory: Path, values: Tensors, known: Known) -> tuple[Table, Layout]:
    """The table and the layout by the names of tensors: shapes are those of parts. Raises the
    errors of choosing a table, and `LayoutError` where none has them."""
    shapes = {name: value.shape for name, value in values.items()}
    try:
        table = choose_table(known.tables, shapes, replace(known.hints, layout=None))
    except CkptforgeError as error:
        raise type(error)(
            f"{directory}: {error} The files of ranks are put together only where a mapping says "
            "how they are cut."
        ) from error
    hints = known.hints
    if hints.layout is not None:
        return table, table.layout(hints.layout)
    names = table.names_of(FAMILY)
    if hints.recorded_layout in names:
        return table, table.layouts[hints.recorded_layout]
    if not names:
        raise LayoutError(f"{directory}: the mapping {table.name} has no layout of Megatron's.")

    def strangeness(name: str) -> tuple[int, int]:
        found, unknown = recognise_names(table.layouts[name], values)
        return len(unknown), sum(p not in found for p in table.layouts[name].patterns)

    return table, table.layouts[min(names, key=strangeness)]


class _Joining:
    """Full tensors, made of the parts of ranks."""

    def __init__(
        self, job: Job, table: Table, layout: Layout, known: Known, check_replicas: bool
    ) -> None:
        self.job, self.table, self.layout, self.known = job, table, layout, known
        self.check_replicas = check_replicas

    def values(self, directory: Path, held: Sequence[tuple[Rank, Tensors]]) -> Tensors:
        """The tensors in the order in which they are met. Raises `FormatError` for parts that are
        lacking, or that aren't alike."""
        sizes = self._sizes(held)
        cutter = Cutter(self.job, self.table, self.layout, sizes)
        patterns = self._patterns(held, sizes)
        whole: dict[str, tuple[Pattern | None, dict[object, tuple[Rank, Value]]]] = {}
        for rank, tensors in held:
            for name, value in tensors.items():
                pattern = patterns.get(name)
                full = name
                if pattern is not None and (experts := cutter.experts(pattern, rank)):
                    local = expert_of(name) or 0
                    full = with_expert(name, experts[0] + local)
                key = () if pattern is None else cutter.held(pattern, rank).key
                _, parts = whole.setdefault(full, (pattern, {}))
                first = parts.setdefault(key, (rank, value))[1]
                if first is not value:
                    self._check_replica(full, first, value)
        return {
            name: self._joined(directory, name, pattern, parts, cutter)
            for name, (pattern, parts) in whole.items()
        }

    def _check_replica(self, name: str, first: Value, value: Value) -> None:
        if (first.dtype, first.shape) != (value.dtype, value.shape):
            raise FormatError(
                f"{value.origin.path}: {shown(name)} is {value.dtype} {list(value.shape)}, but "
                f"{first.dtype} {list(first.shape)} in {first.origin.path}; they should be alike."
            )
        one, other = first.origin, value.origin
        if self.check_replicas and not same_bytes(one, other):
            raise FormatError(
                f"{other.path}: {shown(name)} differs from its replica in {one.path}."
            )

    def _joined(
        self,
        directory: Path,
        name: str,
        pattern: Pattern | None,
        parts: Mapping[object, tuple[Rank, Value]],
        cutter: Cutter,
    ) -> Value:
        if pattern is None:
            return next(iter(parts.values()))[1]
        pieces: list[tuple[Value, Transfer]] = []
        full = pattern.shape(lambda _, axis: cutter.sizes.lengths[axis])
        for rank, value in parts.values():
            held = cutter.held(pattern, rank)
            if value.shape != held.shape:
                raise FormatError(
                    f"{value.origin.path}: {shown(name)} has shape {list(value.shape)}, expected "
                    f"{list(held.shape)}, the part of {list(full)} that this rank has."
                )
            if held.transfers is None:
                return value
            pieces += [(value, one.reversed().ordered()) for one in held.transfers]
        first = next(iter(parts.values()))[1]
        if sum(one.size for _, one in pieces) != first.elements * len(parts) or len(parts) != (
            cutter.count(pattern)
        ):
            raise FormatError(
                f"{directory}: {counted(len(parts), 'part')} of {shown(name)} {list(full)} are "
                f"there, expected {cutter.count(pattern)}."
            )
        return Value(
            dtype=first.dtype, shape=full, terms=tuple(terms_through(pieces)), kind=first.kind
        )

    def _patterns(
        self, held: Sequence[tuple[Rank, Tensors]], sizes: AxisSizes
    ) -> dict[str, Pattern]:
        names = dict.fromkeys(name for _, tensors in held for name in tensors)
        found, _ = recognise_names(self.layout, names, sizes.lengths)
        return {name: pattern for pattern, own in found.items() for name in own.values()}

    def _sizes(self, held: Sequence[tuple[Rank, Tensors]]) -> AxisSizes:
        """The lengths of axes by config.json, names, and the shapes that the parts make up."""
        names = {name: value.shape for _, tensors in held for name, value in tensors.items()}
        experts = {cut.axis for row in self._rows() for cut in row if cut.dimension == "ep"}
        hints = self.known.hints
        # which a job may pad, so that it divides
        config = {key: value for key, value in hints.config.items() if key != KEY}
        where = hints.config_source
        sizes, found, _ = read_names(self.table, self.layout, names, config, where)
        counts = {axis: sizes.known.pop(axis) for axis in experts if axis in sizes.known}
        said = AxisSizes()
        said.learn_config(self.table, config, where)
        for axis, (size, reason) in counts.items():
            in_names = any(axis in pattern.name_axes for pattern in found)
            known = said.get(axis)
            if known is not None:
                sizes.learn(axis, known, said.known[axis][1])
            elif in_names:  # as many as the names of a file count
                degree = self.job.cut("ep", True, Rank())[0]
                sizes.learn(axis, size * degree, reason)
        shapes = []
        for pattern, own in found.items():
            name = next(iter(own.values()))
            shapes.append((pattern, name, self._full_shape(pattern, names[name])))
        sizes.learn_shapes(shapes)
        return sizes

    def _rows(self) -> Iterator[Any]:
        return (row.cuts for row in (self.layout.sharding or {}).values())

    def _full_shape(self, pattern: Pattern, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole: an axis is as many times as long as it is cut into parts."""
        cutter = Cutter(self.job, self.table, self.layout, AxisSizes())
        lengths = list(shape)
        for cut in cutter.cuts(pattern):
            parts, _ = cutter.part(pattern, cut, Rank())
            for i, axis in enumerate(pattern.shape_axes[: len(lengths)]):
                if cut.axis in axis_factors(axis):
                    lengths[i] *= parts
        return tuple(lengths)
