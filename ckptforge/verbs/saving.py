"""A model as files: where it goes, and the job that writes it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptforge.errors import LayoutError
from ckptforge.formats.layout import specs_of
from ckptforge.formats.registry import format_by_ending
from ckptforge.model import Model
from ckptforge.reading.source import Choices, Source, known_of
from ckptforge.reading.tied import tied
from ckptforge.targets.huggingface import HuggingFaceTarget, parse_size
from ckptforge.targets.single import FileTarget
from ckptforge.targets.target import Target, plan_for
from ckptforge.verbs.job import Job
from ckptforge.verbs.options.opening import Save
from ckptforge.verbs.ranks import compute_strategy
from ckptforge.verbs.spread import Spread


def saving_job(
    verb: str,
    model: Model,
    read: Source | Choices,
    options: Save,
    facts: Mapping[str, Any] | None = None,
) -> Job:
    """The job that writes a model, which is `read` as a source where a table knows it, else by
    choices. A directory is one of Hugging Face for a model in such a layout, else one of
    MindSpore. Raises what targets and planning raise."""
    source = read if isinstance(read, Source) else None
    layout = None if source is None else source.binding.layout
    about = {
        "model": None if source is None else source.table.name,
        "from": None if layout is None else layout.name,
        "to": None if layout is None else layout.name,
        "source_format": model.format,
        "source_tensors": len(model.values),
        "dtype": "keep",
        **(facts or {}),
    }
    plan = plan_for(verb, model, _target(model, read, options), about)
    if source is None or layout is None:
        return Job(plan)
    kept = source.hugging_face if layout.family == "mindspore" else None
    return Job(plan, source.table, layout, kept, tied=tied(source))


def _target(model: Model, read: Source | Choices, options: Save) -> Target:
    source = read if isinstance(read, Source) else None
    hub = model.format in ("hugging face directory", "safetensors")
    if source is not None:
        hub = source.binding.layout.family == "huggingface"
    single = format_by_ending(options.out)
    cut = options.strategy_dir is not None or options.parallel_config is not None
    if hub and not cut and single is not None:
        return FileTarget(options.out, single, {"format": "pt"})
    if hub and not cut:
        size = options.max_shard_size
        side = read.hugging_face if isinstance(read, Source) else known_of(model, read).side
        return HuggingFaceTarget(
            output=options.out,
            layout="" if source is None else source.binding.layout.name,
            side=side,
            max_shard_size=None if size is None else parse_size(size, "max_shard_size"),
            allow_no_config=options.allow_no_config,
        )
    spread = Spread(
        options.out,
        options.format,
        options.prefix,
        options.strategy_dir,
        options.parallel_config,
    )

    def compute(config: Any) -> Any:
        if source is None:
            raise LayoutError(
                f"{model.path}: no mapping knows these tensors, so that a parallel configuration "
                "doesn't say how they are cut."
            )
        return compute_strategy(config, source, source.binding.layout, specs_of(model.values))

    return spread.place(compute)
