"""The strategy of rank directories from a parallel configuration: full shapes of parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from msgspec.structs import replace

from ckptforge.errors import CkptforgeError, ConfigError, LayoutError, shown
from ckptforge.formats.layout import TensorSpec
from ckptforge.parallel.compute import compute_strategy, learn_heads
from ckptforge.parallel.config import ParallelConfig
from ckptforge.parallel.cutter import CutTensor, Cutter
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.binding import bind
from ckptforge.tables.layout_choice import Hints
from ckptforge.tables.names import Names, read_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.wording import counted, listing

Shape = tuple[int, ...]
_MAX_TRIALS = 1 << 12


def solve_strategy(
    config: ParallelConfig,
    table: Table,
    hints: Hints,
    layouts: Sequence[Layout],
    parts: Sequence[CutTensor],
) -> Strategy:
    """The strategy under which a job of `config` holds `parts`, one of each tensor, in one of some
    layouts of a table; of the hints config.json counts.

    Raises `ConfigError` and `LayoutError` where no full shapes give these parts, and where several
    do or layouts are cut in different ways.
    """
    found: dict[str, Strategy] = {}
    reasons: dict[str, CkptforgeError] = {}
    for layout in layouts:
        try:
            found[layout.name] = _solve(config, table, hints, layout, parts)
        except (ConfigError, LayoutError) as error:
            reasons[layout.name] = error
    if not found:
        raise next(iter(reasons.values()))
    first = next(iter(found.values()))
    if any(other.stages != first.stages for other in found.values()):
        raise LayoutError(
            f"the parts fit layouts {' and '.join(found)}, which {config.path} cuts in different "
            f"ways. Name the right one with {option('layout')}."
        )
    return first


def _solve(
    config: ParallelConfig, table: Table, hints: Hints, layout: Layout, parts: Sequence[CutTensor]
) -> Strategy:
    where = hints.config_source
    weights = {part.name: part for part in parts if not is_state(part.name)}
    sizes, found, unknown = read_names(table, layout, weights, hints.config, where)
    if strange := [n for n in unknown if not table.is_ignored(layout, n)]:
        strangers = counted(len(strange), "tensor", "aren't")
        raise ConfigError(
            f"{config.path}: {strangers} of layout {layout.name}, so that nothing says how to cut "
            "them; give the strategy files of the job:\n"
            f"{listing(strange)}"
        )
    cutter = Cutter.of(config, table, layout, sizes)
    learn_heads(sizes, config, table)
    for axis in cutter.axes_of("ep"):
        if (experts := config.counts.experts) is not None and sizes.get(axis) is None:
            sizes.learn(axis, experts, f"expert_num of {config.path}")
    shapes = _Search(cutter.sharing(table, found), _one_of_each(found, weights)).solve()
    wholes = []
    for pattern, names in found.items():
        wholes += [TensorSpec(n, weights[n].dtype, shapes[pattern]) for n in names.values()]
    wholes += [TensorSpec(n, w.dtype, w.shape) for n, w in weights.items() if layout.passes(n)]
    given = hints.config or dict(condition.met() for condition in table.optional.values())
    binding = bind(table, layout, {whole.name: whole.shape for whole in wholes}, given, where)
    state = [TensorSpec(part.name, part.dtype, part.shape) for part in parts if is_state(part.name)]
    strategy = compute_strategy(config, table, layout, binding.sizes, [*wholes, *state])
    for whole in wholes:
        stage = strategy.first_stage(whole.name)
        assert stage is not None
        made = strategy.stages[stage][whole.name].shape_of_parts(whole.shape)
        part = weights[whole.name].shape
        if made != part:
            raise ConfigError(
                f"{config.path}: cuts {shown(whole.name)} {list(whole.shape)} into parts of "
                f"{list(made or ())}, but the ranks hold {list(part)}; it isn't the configuration "
                "of these ranks."
            )
    return strategy


def _one_of_each(found: Names, weights: Mapping[str, CutTensor]) -> dict[Pattern, CutTensor]:
    """A part of each kind. Raises `LayoutError` where those of a kind have different shapes."""
    chosen = {}
    for pattern, names in found.items():
        first, *others = (weights[name] for name in names.values())
        if other := next((other for other in others if other.shape != first.shape), None):
            raise LayoutError(
                f"the part of {other.name} has shape {list(other.shape)}, but that of "
                f"{first.name}, of the same kind, {list(first.shape)}.",
                (other.name, first.name),
            )
        chosen[pattern] = first
    return chosen


class _Search:
    """Full shapes that give the parts by a job's rules and agree on the lengths of axes."""

    def __init__(self, cutter: Cutter, parts: Mapping[Pattern, CutTensor]) -> None:
        self.cutter, self.parts = cutter, parts
        self.trials = 0

    def solve(self) -> dict[Pattern, Shape]:
        """Raises `ConfigError` where there are none, and where there are several."""
        parts = self.parts.items()
        candidates = {pattern: list(self._candidates(pattern, part)) for pattern, part in parts}
        for pattern, shapes in candidates.items():
            if not shapes:
                raise self._no_shape(pattern)
        known, settled = _Known(self.cutter.sizes.copy(), {}), dict[Pattern, Shape]()
        left = self._settle(known, candidates, settled)
        if left:
            solutions = list(self._search(known, left))
            if len(solutions) != 1:
                raise self._undecided(left, solutions)
            settled.update(solutions[0])
        return settled

    def _candidates(self, pattern: Pattern, part: CutTensor) -> Iterator[Shape]:
        """The full shapes that the job's rules would cut into this part."""
        config = self.cutter.config
        cuts = self.cutter.cuts(pattern)
        for axis, cut in cuts.items():
            if self.cutter.hides(pattern, axis, cut):
                raise ConfigError(
                    f"{config.path}: whether {part.name} is cut depends on {cut.axis}, which the "
                    f"parts don't show; give the model's config.json with {option('config')}, or "
                    "the job's strategy files."
                )
        choices: list[list[tuple[int, str] | None]] = [[(i, c.dimension)] for i, c in cuts.items()]
        for choice, cut in zip(choices, cuts.values(), strict=True):
            choice += [None] * cut.optional
        seen = set()
        for chosen in product(*choices):
            used = [one for one in chosen if one is not None]
            shape = list(part.shape)
            for axis, dimension in used:
                if axis >= len(shape):
                    return
                shape[axis] *= config.degrees.of(dimension)
            cut_into = math.prod(config.degrees.of(dimension) for _, dimension in used)
            replicas = config.degrees.devices // cut_into
            for parts in dict.fromkeys((1, replicas, config.optimizer.shards)):
                full = (shape[0] * parts, *shape[1:]) if shape and parts > 0 else tuple(shape)
                if full not in seen and self._gives(pattern, part, full, self.cutter.sizes):
                    seen.add(full)
                    yield full

    def _gives(self, pattern: Pattern, part: CutTensor, full: Shape, sizes: AxisSizes) -> bool:
        """Whether a tensor of this shape is cut into this part."""
        if len(full) != len(pattern.shape_axes):
            return False
        cutter = replace(self.cutter, sizes=sizes)
        try:
            layout = cutter.layout_of(pattern, TensorSpec(part.name, part.dtype, full))
        except ConfigError:
            return False
        return layout.shape_of_parts(full) == part.shape

    def _settle(
        self, known: _Known, candidates: Mapping[Pattern, list[Shape]], shapes: dict[Pattern, Shape]
    ) -> dict[Pattern, list[Shape]]:
        """Takes the shapes of kinds that can have only one; what is left open."""
        left = dict(candidates)
        progress = True
        while progress and left:
            progress = False
            for pattern, possible in list(left.items()):
                learnt = {shape: self._fits(known, pattern, shape) for shape in possible}
                fitting = {shape: found for shape, found in learnt.items() if found is not None}
                if not fitting:
                    raise self._no_shape(pattern)
                left[pattern] = list(fitting)
                if len(fitting) == 1:
                    ((shapes[pattern], found),) = fitting.items()
                    known.sizes, known.products = found.sizes, found.products
                    del left[pattern]
                    progress = True
        return left

    def _fits(self, known: _Known, pattern: Pattern, shape: Shape) -> _Known | None:
        """What is known with a kind's full shape added; None where they contradict each other."""
        part = self.parts[pattern]
        sizes, products = known.sizes.copy(), dict(known.products)
        try:
            sizes.learn_shapes([(pattern, part.name, shape)])
        except LayoutError:
            return None
        for axis, length in zip(pattern.shape_axes, shape, strict=True):
            factors = [item for item in axis if isinstance(item, str)]
            if len(factors) < len(axis):
                continue
            if products.setdefault(tuple(sorted(factors)), length) != length:
                return None
        return _Known(sizes, products) if self._gives(pattern, part, shape, sizes) else None

    def _search(
        self, known: _Known, left: Mapping[Pattern, list[Shape]]
    ) -> Iterator[dict[Pattern, Shape]]:
        """The ways in which what is left goes together, of which two are enough."""
        if not left:
            yield {}
            return
        (pattern, possible), *others = left.items()
        found = 0
        for shape in possible:
            self.trials += 1
            if self.trials > _MAX_TRIALS:
                return
            learnt = self._fits(known, pattern, shape)
            for solution in self._search(learnt, dict(others)) if learnt is not None else ():
                yield {pattern: shape, **solution}
                found += 1
                if found == 2:
                    return

    def _no_shape(self, pattern: Pattern) -> ConfigError:
        part, config = self.parts[pattern], self.cutter.config
        degrees = (
            f"data_parallel {config.degrees.data}, model_parallel {config.degrees.model}, "
            f"expert_parallel {config.degrees.expert}"
        )
        optimizer = " and optimizer parallelism" if config.optimizer.enabled else ""
        return ConfigError(
            f"{config.path}: no shape of {shown(part.name)} is cut into parts of "
            f"{list(part.shape)} by {degrees}{optimizer}; it isn't the configuration of these "
            "ranks, or their model isn't of this layout."
        )

    def _undecided(
        self, left: Mapping[Pattern, list[Shape]], solutions: Sequence[Mapping[Pattern, Shape]]
    ) -> ConfigError:
        if not solutions and self.trials <= _MAX_TRIALS:
            return self._no_shape(next(iter(left)))
        lines = [
            f"{self.parts[pattern].name}: {list(self.parts[pattern].shape)} may be a part of "
            f"{' or '.join(str(list(s)) for s in shapes)}"
            for pattern, shapes in left.items()
        ]
        return ConfigError(
            f"{self.cutter.config.path}: the parts alone don't show how these tensors are cut:\n"
            f"{listing(lines)}\n"
            f"Give the model's config.json with {option('config')}, or the job's strategy files."
        )


class _Known:
    """The lengths of axes, and the products of factors whose lengths aren't known."""

    def __init__(self, sizes: AxisSizes, products: dict[tuple[str, ...], int]) -> None:
        self.sizes, self.products = sizes, products
