"""A model that was read, in the layout that is wanted, and the job that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.errors import UsageError
from ckptforge.formats.layout import specs_of
from ckptforge.model import Account, Model
from ckptforge.quantisation.wishes import wishes_of
from ckptforge.quantisation.writing import quantised
from ckptforge.reading.source import Source
from ckptforge.reading.state import followed
from ckptforge.reading.tied import tied
from ckptforge.spelling import option
from ckptforge.tables.convert import convert, uncast_note
from ckptforge.tables.table import Layout
from ckptforge.targets.distributed import DistributedTarget
from ckptforge.targets.huggingface import HuggingFaceTarget, parse_size
from ckptforge.targets.target import Target, facts_of, plan_for
from ckptforge.verbs.job import Job
from ckptforge.verbs.options import Convert, Converting, ToTorch
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.options.phrases import DCP, MEGATRON
from ckptforge.verbs.ranks import compute_strategy
from ckptforge.verbs.spread import Spread
from ckptforge.verbs.unused import (
    DCP_DIRECTORY,
    HUGGING_FACE,
    MEGATRON_RUN,
    RELEASE,
    refuse_unused,
)

_STATE = "optimizer state and counters"


def mindspore_job(
    verb: str,
    source: Source,
    target: Layout,
    spread: Spread,
    options: Converting,
    notes: tuple[str, ...] = (),
) -> Job:
    """The job that writes a model in a MindSpore layout."""
    merged = options.merge_lora is not None  # optimizer state isn't that of the sums
    stateful = source.binding.layout.family == "mindspore" and not options.weights_only
    model = _in_layout(source, target, options, None, stateful and not merged, notes)

    def compute(config: Any) -> Any:
        return compute_strategy(config, source, target, specs_of(model.values))

    plan = plan_for(verb, model, spread.place(model, compute), _facts(source, target, options))
    return Job(plan, source.table, target, source.hugging_face, tied=tied(source))


def hugging_face_job(
    verb: str, source: Source, target: Layout, options: ToTorch | Convert, output: Path
) -> Job:
    """The job that writes a model in a layout of Hugging Face."""
    wishes = wishes_of(options.quantise)
    model = _in_layout(source, target, options, _recorded_names(source, target), False)
    size = parse_size(options.max_shard_size, "max_shard_size")
    if options.format == DCP:
        refuse_unused(options, DCP_DIRECTORY, ("format", "max_shard_size"))
        chunks = DistributedTarget(output=output, side=source.hugging_face, max_file_size=size)
        plan = plan_for(verb, model, chunks, _facts(source, target, options))
        return Job(plan, source.table, target, tied=tied(source))
    refuse_unused(options, HUGGING_FACE, ("max_shard_size",), ("safetensors",))
    made = quantised(model, source.table, target, source.hugging_face, wishes)
    place = HuggingFaceTarget(
        output=output,
        layout=target.name,
        side=made.side,
        stem=made.stem,
        before=made.before,
        max_shard_size=size,
        allow_no_config=isinstance(options, ToTorch) and options.allow_no_config,
        cast=parse_target(options.dtype),
    )
    plan = plan_for(verb, made.model, place, _facts(source, target, options))
    return Job(plan, source.table, target, tied=tied(source))


def consolidated_job(verb: str, source: Source, target: Layout, options: Convert) -> Job:
    """The job that writes a model as its makers publish it. Raises `UsageError` for options that
    aren't for that."""
    refuse_unused(options, RELEASE, ("shards",))
    model = _in_layout(source, target, options, None, False)
    place = consolidated_target(source, target, options.out, options.shards)
    plan = plan_for(verb, model, place, _facts(source, target, options))
    return Job(plan, source.table, target, source.hugging_face, tied=tied(source))


def consolidated_target(source: Source, layout: Layout, out: Path, shards: int) -> Target:
    """The files of a release for a model in a layout of its makers', in so many shards."""
    from ckptforge.consolidated.target import ConsolidatedTarget

    return ConsolidatedTarget(
        output=out,
        layout=layout,
        sizes=source.binding.sizes,
        shards=shards,
        side=source.hugging_face,
    )


def refuse_shards(shards: int, layout: Layout | None) -> None:
    """Raises `UsageError` for shards in a layout that has none."""
    if shards == 1 or (layout is not None and layout.family == "consolidated" and layout.sharding):
        return
    what = "this" if layout is None else layout.name
    raise UsageError(
        f"{option('shards', shards)} is for releases that are cut for model parallelism, in "
        f"layouts such as meta; {what} isn't one."
    )


def megatron_job(verb: str, source: Source, target: Layout, options: Convert) -> Job:
    """The job that writes a model as Megatron's trainers hold it. Raises `UsageError` for options
    that aren't for that, and `ConfigError`."""
    from ckptforge.megatron.config import MegatronConfig, read_megatron_config
    from ckptforge.megatron.target import Known, MegatronTarget

    if options.format not in (None, MEGATRON) or options.dst_strategy_dir is not None:
        wrong = option("format", options.format) if options.format else option("dst_strategy_dir")
        raise UsageError(
            f"{wrong}: {target.name} is a layout of Megatron's, which is written with "
            f"{option('format', MEGATRON)}, cut by {option('dst_parallel_config')}."
        )
    refuse_unused(options, MEGATRON_RUN, ("format", "iteration"))
    given = options.dst_parallel_config
    config = MegatronConfig() if given is None else read_megatron_config(given)
    model = _in_layout(source, target, options, None, False)
    known = Known(
        table=source.table,
        layout=target,
        sizes=source.binding.sizes,
        config=source.config,
        values=model.values,
    )
    own = source.model.run.get("iteration")
    iteration = options.iteration
    if iteration is None and isinstance(own, int):
        iteration = own
    place = MegatronTarget(options.out, known, config, iteration)
    plan = plan_for(verb, model, place, _facts(source, target, options))
    return Job(plan, source.table, target, source.hugging_face, tied=tied(source))


def _facts(source: Source, target: Layout, options: Converting) -> dict[str, Any]:
    dtype, from_ = parse_target(options.dtype), source.binding.layout.name
    return facts_of(source.model, source.table.name, from_, target.name, dtype)


def _in_layout(
    source: Source,
    target: Layout,
    options: Converting,
    recorded: set[str] | None,
    stateful: bool,
    notes: tuple[str, ...] = (),
) -> Model:
    """A model in another layout, cast, with the state that follows, and the account."""
    dtype, model = parse_target(options.dtype), source.model
    copied = (lambda _: True) if recorded is None else recorded.__contains__
    converted = convert(source.binding, target, model.values, dtype, copied=copied)
    values, account = converted.values, _account(source, options)
    if stateful:
        state, account = followed(source, target, account)
        values = {**values, **state}
    else:
        account = account.leaving(_STATE, source.state)
    if source.binding.copies:
        compared = "" if account.must_equal else ", not compared"
        reason = f"copies of other tensors{compared}"
        account = account.leaving(reason, tuple(source.binding.copies))
    skipped = source.hugging_face.skipped if source.hugging_face else ()
    account = account.noting(*skipped, *notes, *uncast_note(converted.uncast, dtype))
    return replace(model, values=values, account=account)


def _account(source: Source, options: Converting) -> Account:
    """What is left out of a model that was read, and which of its tensors must be copies."""
    left_out: Mapping[str, tuple[str, ...]] = {
        "not known to the mapping": source.unmapped,
        "scales of activations, which only the quantised model uses": source.activations,
        "recomputed by the network": source.binding.ignored,
    }
    account = source.model.account
    if options.allow_unmapped:
        account = replace(account, must_equal={})
    for reason, names in left_out.items():
        account = account.leaving(reason, tuple(names))
    return account


def _recorded_names(source: Source, target: Layout) -> set[str] | None:
    """The tensors that the original directory had in this layout; None where that isn't known."""
    side = source.hugging_face
    if side is None or side.layout != target.name or not side.shards:
        return None
    return {name for shard in side.shards.values() for name in shard["tensors"]}
