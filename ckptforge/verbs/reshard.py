"""merge, split and reshard: other splits of the same tensors, for any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptforge.checkpoints.manifest import DIRECTORY_NAME
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.dtypes import DType
from ckptforge.errors import (
    ConfigError,
    ConfigNeededError,
    FormatError,
    LayoutError,
    MissingTensorsError,
    UsageError,
)
from ckptforge.formats.layout import specs_of
from ckptforge.model import Model
from ckptforge.quantisation.undo import refuse_scaled
from ckptforge.reading.known import Choices
from ckptforge.reading.source import bind_source
from ckptforge.spelling import called, command, option
from ckptforge.surgery.cast import cast
from ckptforge.tables.binding import bind
from ckptforge.tables.convert import uncast_note
from ckptforge.tables.layer_counts import config_by_shapes, table_for
from ckptforge.tables.names import recognise_names
from ckptforge.tables.shipped import candidate_tables
from ckptforge.tables.state import state_of
from ckptforge.tables.table import names_that_keep_dtype
from ckptforge.targets.target import facts_of, plan_for
from ckptforge.verbs.choices import ONLY, SOURCE, Names, choices_of
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.options import Merge, Reshard, Resharding, Split
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import compute_strategy, describes_itself, in_ranks, open_ranks
from ckptforge.verbs.result import Result
from ckptforge.verbs.spread import Spread
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.parallel.config import ParallelConfig
    from ckptforge.parallel.strategy_files import Strategy


_SOURCE: Names = {**SOURCE, "layout": "layout"}


@verb(Merge)
def merge(options: Merge) -> Result:
    """Merges the rank directories of a job into one checkpoint, of any model. Returns a `Result`.

    How they are cut is said by the strategy of the job, by its parallel configuration (for models
    that a mapping knows), or, for ranks that ckptforge wrote, by their manifest.

    Raises `UsageError`, `InputNotFoundError`, `FormatError` (also for a strategy that isn't that of
    the shards), `PlanError`, `CastOverflowError` and `OutputError`; nothing is written then.
    """
    spread = Spread.of(options, options.out, None)
    return run_job(_resharded("merge", options, spread, ONLY), options)


@verb(Split)
def split(options: Split) -> Result:
    """Splits one checkpoint into the rank directories of a job. Returns a `Result`.

    By a strategy for any model, by a parallel configuration for those that a mapping knows; one of
    both is needed.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `ConfigError`, `LayoutError`,
    `PlanError`, `CastOverflowError` and `OutputError`; nothing is written then.
    """
    spread = _cut_spread("split", options, "")
    if in_ranks(options.ms, Choices()):
        raise UsageError(
            f"{options.ms}: is cut into ranks already; {command('reshard')} cuts them in another "
            "way."
        )
    source = open_checkpoint(options.ms, options.step)
    if source.format == "hugging face directory":
        raise UsageError(
            f"{options.ms}: is a model of Hugging Face, whose tensors no MindSpore job holds as "
            f"they are; {command('to_ms')} with {option('strategy_dir')} or "
            f"{option('parallel_config')} converts it to rank directories."
        )
    choices = choices_of(options, {"layout": "layout"})
    return run_job(_job("split", source, spread, options, choices), options)


@verb(Reshard)
def reshard(options: Reshard) -> Result:
    """Turns the rank directories of one job into those of another, in one pass. Returns a `Result`.

    The numbers of devices need not divide each other. One of `dst_strategy_dir` and
    `dst_parallel_config` is needed; how the source is cut is found as `merge` finds it.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `ConfigError`, `LayoutError`,
    `PlanError`, `CastOverflowError` and `OutputError`; nothing is written then.
    """
    spread = _cut_spread("reshard", options, "dst_")
    return run_job(_resharded("reshard", options, spread, _SOURCE), options)


def _cut_spread(verb: str, options: Split | Reshard, which: str) -> Spread:
    """How the output is cut. Raises `UsageError` where that isn't said."""
    spread = Spread.of(options, options.out_dir, which)
    if not spread.cut:
        raise UsageError(
            f"{verb} needs {option(f'{which}strategy_dir')} or {option(f'{which}parallel_config')},"
            " which say how to cut."
        )
    return spread


def _resharded(verb: str, options: Merge | Reshard, spread: Spread, names: Names) -> Job:
    """The job that writes the tensors of rank directories."""
    choices = choices_of(options, names)
    with called(names):
        check = None if options.allow_unequal_replicas else options.check_replicas
        source = open_ranks(options.ms_dir, choices, check)
        if not describes_itself(options.ms_dir):
            strategy = choices.strategy_dir or choices.parallel_config
            _check_shapes(source, strategy or options.ms_dir / DIRECTORY_NAME, options)
        return _job(verb, source, spread, options, choices)


def _job(verb: str, source: Model, spread: Spread, options: Resharding, choices: Choices) -> Job:
    dtype, bound = parse_target(options.dtype), None
    if spread.parallel_config is not None and spread.strategy is None:
        bound = bind_source(source, choices)
        if bound.model.values.keys() != source.values.keys():
            source = bound.model  # its job has the layout's own names
    if dtype is not None:
        refuse_scaled(source)
    model = _cast(source, dtype, options)

    def compute(config: ParallelConfig) -> Strategy:
        assert bound is not None
        return compute_strategy(config, bound, bound.binding.layout, specs_of(model.values))

    from_ = counted(source.ranks, "rank") if source.in_ranks else "one"
    facts = facts_of(source, None, from_, "one", dtype)
    plan = plan_for(verb, model, spread.place(model, compute), facts)
    if "ranks" in plan.facts:
        to = counted(plan.facts["ranks"], "rank")
        plan = replace(plan, facts={**plan.facts, "to": to})
    return Job(plan)


def _cast(source: Model, dtype: DType | None, options: Resharding) -> Model:
    """The model without state where that isn't wanted, its weights cast, but for those that keep
    their dtype by the user's table, else by the shipped ones."""
    state = tuple(name for name in source.values if options.weights_only and state_of(source, name))
    tables = () if dtype is None else candidate_tables(options.mapping, options.model)
    values = {name: value for name, value in source.values.items() if name not in set(state)}
    cast_values = cast(values, dtype, names_that_keep_dtype(tables, source.values))
    account = source.account.leaving("optimizer state and counters", state)
    account = replace(account, must_equal={}).noting(*uncast_note(cast_values.uncast, dtype))
    return replace(source, values=cast_values.values, account=account)


def _check_shapes(source: Model, strategy: Path, options: Resharding) -> None:
    """Where a mapping table knows the names, the merged shapes must agree over the whole model:
    most strategies that aren't those of the shards show there, as protobuf strategies hold no full
    shapes. Raises `FormatError`."""
    weights = (name for name in source.values if not state_of(source, name))
    shapes = {name: source.values[name].shape for name in weights}
    contradiction: LayoutError | None = None
    for table in candidate_tables(options.mapping, options.model):
        for layout in table.layouts.values():
            if len(recognise_names(layout, shapes)[1]) * 10 > len(shapes):
                continue
            config = dict(condition.met() for condition in table.optional.values())
            told = config_by_shapes(table, layout, shapes)
            try:
                own = table_for(table, told, "the shapes")
                if (held := own.layouts.get(layout.name)) is not None:
                    bind(own, held, shapes, {**config, **told}, "config.json")
                return
            except (ConfigError, ConfigNeededError, MissingTensorsError):
                continue
            except LayoutError as error:
                contradiction = contradiction or error
    if contradiction is not None:
        raise FormatError(
            f"{source.path}: merged under {strategy} the tensors contradict each other: "
            f"{contradiction} It isn't the strategy of these shards."
        )
