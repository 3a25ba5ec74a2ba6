"""A model as files: where it goes, and the job that writes it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ckptforge.errors import LayoutError, UsageError
from ckptforge.formats.layout import specs_of
from ckptforge.formats.registry import format_by_ending
from ckptforge.model import Model
from ckptforge.quantisation.wishes import Wish
from ckptforge.quantisation.writing import quantised
from ckptforge.reading.known import Choices, known_of
from ckptforge.reading.source import Source
from ckptforge.reading.tied import tied
from ckptforge.spelling import option
from ckptforge.targets.distributed import DistributedTarget
from ckptforge.targets.huggingface import HuggingFaceTarget, parse_size
from ckptforge.targets.single import FileTarget
from ckptforge.targets.target import Target, facts_of, plan_for
from ckptforge.verbs.job import Job
from ckptforge.verbs.layouts import consolidated_target, refuse_shards
from ckptforge.verbs.options.opening import Save
from ckptforge.verbs.options.phrases import DCP, MINDFORMERS
from ckptforge.verbs.options.surgery import Average, Edit
from ckptforge.verbs.ranks import compute_strategy
from ckptforge.verbs.spread import Spread
from ckptforge.verbs.unused import DCP_DIRECTORY, HUGGING_FACE, RELEASE, refuse_unused


def saving_job(
    verb: str,
    model: Model,
    read: Source | Choices,
    options: Save,
    facts: Mapping[str, Any] | None = None,
    wishes: Sequence[Wish] = (),
) -> Job:
    """The job that writes a model, which is `read` as a source where a table knows it, else by
    choices; with `wishes` some of it as codes. A directory is one of Hugging Face for a model in
    such a layout, else one of MindSpore. Raises what targets and planning raise."""
    source = read if isinstance(read, Source) else None
    table = None if source is None else source.table.name
    name = None if source is None else source.binding.layout.name
    about = {**facts_of(model, table, name, name, None), **(facts or {})}
    target = _target(model, read, options)
    if wishes:
        if source is None or not isinstance(target, HuggingFaceTarget):
            raise UsageError(
                f"{option('quantise')} is for directories of Hugging Face's, of models that a "
                "mapping knows."
            )
        made = quantised(model, source.table, source.binding.layout, target.side, wishes)
        target = replace(target, side=made.side, stem=made.stem, before=made.before)
        model = made.model
    plan = plan_for(verb, model, target, about)
    if source is None:
        return Job(plan)
    layout = source.binding.layout
    kept = source.hugging_face if layout.family != "huggingface" else None
    return Job(plan, source.table, layout, kept, tied=tied(source))


def save_of(options: Average | Edit) -> Save:
    """What the result of surgery is saved with."""
    names = ("format", "prefix", "iteration", "mindformers", "remove_redundancy")
    more = ("shards", "max_shard_size")
    return Save(
        options.out,
        **{name: getattr(options, name) for name in (*names, *more)},
        strategy_dir=options.dst_strategy_dir,
        parallel_config=options.dst_parallel_config,
        allow_no_config=options.allow_no_config,
    )


def _target(model: Model, read: Source | Choices, options: Save) -> Target:
    source = read if isinstance(read, Source) else None
    refuse_shards(options.shards, None if source is None else source.binding.layout)
    hub = model.format in ("hugging face directory", "safetensors")
    if source is not None:
        hub = source.binding.layout.family == "huggingface"
    single = format_by_ending(options.out)
    cut = options.strategy_dir is not None or options.parallel_config is not None
    asked = options.format == MINDFORMERS
    if asked and (model.format == "hugging face directory" or (source is not None and hub)):
        raise UsageError(
            f"{option('format', MINDFORMERS)}: {model.path} has names and shapes of Hugging Face, "
            "which MindFormers doesn't train with; take it to one of its layouts first."
        )
    if source is not None and source.binding.layout.family == "consolidated":
        refuse_unused(options, RELEASE, ("shards",))
        return consolidated_target(source, source.binding.layout, options.out, options.shards)
    hub = hub and not asked
    if hub and not cut and options.format == DCP:
        refuse_unused(options, DCP_DIRECTORY, ("format", "max_shard_size"))
        side = read.hugging_face if isinstance(read, Source) else known_of(model, read).side
        size = parse_size(options.max_shard_size, "max_shard_size")
        return DistributedTarget(output=options.out, side=side, max_file_size=size)
    if hub and not cut and single is not None:
        refuse_unused(options, "one file", formats=(options.out.suffix.removeprefix("."),))
        return FileTarget(options.out, single, {"format": "pt"})
    if hub and not cut:
        refuse_unused(options, HUGGING_FACE, ("max_shard_size",), ("safetensors",))
        side = read.hugging_face if isinstance(read, Source) else known_of(model, read).side
        return HuggingFaceTarget(
            output=options.out,
            layout="" if source is None else source.binding.layout.name,
            side=side,
            max_shard_size=parse_size(options.max_shard_size, "max_shard_size"),
            allow_no_config=options.allow_no_config,
        )

    def compute(config: Any) -> Any:
        if source is None:
            raise LayoutError(
                f"{model.path}: no mapping knows these tensors, so that a parallel configuration "
                "doesn't say how they are cut."
            )
        return compute_strategy(config, source, source.binding.layout, specs_of(model.values))

    return Spread.of(options, options.out).place(model, compute)
