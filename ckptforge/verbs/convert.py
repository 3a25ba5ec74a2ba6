"""The conversions as functions: each makes a plan and carries it out. No printing; errors are
`CkptforgeError`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptforge.errors import UsageError
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import option
from ckptforge.tables.table import Table
from ckptforge.verbs.inputs import adapter_job_of, bind_input, open_choice, wants_adapter
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.layouts import hugging_face_job, hugging_face_target, mindspore_job
from ckptforge.verbs.options import Convert, PathLike, ToMs, ToTorch
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result
from ckptforge.verbs.spread import Spread


@verb(ToMs)
def to_ms(options: ToMs) -> Result:
    """Converts a Hugging Face directory to a MindSpore checkpoint, or to the rank directories of a
    job. Returns a `Result`.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `ModelUnknownError`, `LayoutError`,
    `MissingTensorsError`, `UnmappedTensorsError`, `ConfigError`, `PlanError`, `CastOverflowError`
    and `OutputError`; nothing is written then.
    """
    return run_job(_to_ms(options), options)


@verb(ToTorch)
def to_torch(options: ToTorch) -> Result:
    """Converts a MindSpore checkpoint, or the rank directories of a job, to a Hugging Face
    directory. Returns a `Result`.

    `from_pretrained` loads the directory as it is. Optimizer state and counters are left out.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `ModelUnknownError`, `LayoutError`,
    `MissingTensorsError`, `UnmappedTensorsError`, `ConfigError`, `PlanError`, `CastOverflowError`
    and `OutputError`; nothing is written then.
    """
    return run_job(_to_torch(options), options)


@verb(Convert)
def convert(options: Convert) -> Result:
    """Converts a checkpoint of any layout to any other layout of its model. Returns a `Result`.

    Optimizer state follows its weights from one MindSpore layout to another.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `ModelUnknownError`, `LayoutError`,
    `MissingTensorsError`, `UnmappedTensorsError`, `ConfigError`, `PlanError`, `CastOverflowError`
    and `OutputError`; nothing is written then.
    """
    return run_job(_convert(options), options)


def plan(verb: str, source: PathLike, out: PathLike, **arguments: Any) -> Plan:
    """Makes the plan that `to_ms`, `to_torch` or `convert` would carry out, from indexes alone.
    Returns a `Plan`.

    Arguments:
        verb: "to-ms", "to-torch" or "convert".
        source: the input of the verb.
        out: the output of the verb.

    Other keywords are those of the verb. Raises `UsageError` for another verb, and whatever the
    verb itself would refuse.
    """
    planners: dict[str, Callable[[], Job]] = {
        "to-ms": lambda: _to_ms(ToMs(source, out, **arguments)),
        "to-torch": lambda: _to_torch(ToTorch(source, out, **arguments)),
        "convert": lambda: _convert(Convert(source, out, **arguments)),
    }
    chosen = str(verb).replace("_", "-")
    if chosen not in planners:
        raise UsageError(f"there is no plan for {chosen!r}: use {', '.join(planners)}.")
    return planners[chosen]().plan


def _to_ms(options: ToMs) -> Job:
    spread = Spread(
        options.out, options.format, options.prefix, options.strategy_dir, options.parallel_config
    )
    checkpoint = open_choice(options.hf_dir, options)
    if wants_adapter(checkpoint, options):
        return adapter_job_of(
            "to-ms",
            checkpoint,
            options,
            spread,
            "huggingface",
            target=options.layout,
            config=options.config,
            family="mindspore",
        )
    source = bind_input(
        checkpoint, options, config=options.config, family="huggingface", layout_option="model"
    )
    target, said = source.table.mindspore_layout(options.layout)
    if target.family != "mindspore":
        raise UsageError(
            f"{option('layout', options.layout)} is a layout of Hugging Face; to-ms writes "
            f"{_names(source.table, 'mindspore')}."
        )
    return mindspore_job("to-ms", source, target, spread, options, said)


def _to_torch(options: ToTorch) -> Job:
    refuse_name(options.out_dir, directory=True)
    chosen = None if options.layout == "auto" else options.layout
    cut: dict[str, Any] = {
        "strategy": options.strategy_dir,
        "parallel_config": options.parallel_config,
    }
    checkpoint = open_choice(
        options.ms, options, **cut, layout=chosen, config=options.config, layout_option="layout"
    )
    if wants_adapter(checkpoint, options):
        spread, named = (
            Spread(options.out_dir, None, ""),
            {"target": options.hf_layout, "layout": chosen, "family": "huggingface"},
        )
        return adapter_job_of(
            "to-torch", checkpoint, options, spread, "mindspore", config=options.config, **named
        )
    source = bind_input(
        checkpoint,
        options,
        layout=chosen,
        config=options.config,
        family="mindspore",
        layout_option="layout",
    )
    if source.binding.layout.family != "mindspore":
        raise UsageError(
            f"{option('layout', options.layout)} is a layout of Hugging Face; to-torch reads "
            f"{_names(source.table, 'mindspore')}."
        )
    recorded = source.hugging_face.layout if source.hugging_face else None
    hf_layout = options.hf_layout or (recorded if recorded in source.table.layouts else None)
    target = (
        source.table.first_layout("huggingface")
        if hf_layout is None
        else source.table.layout(hf_layout)
    )
    if target.family != "huggingface":
        raise UsageError(
            f"{option('hf_layout', hf_layout)} is a layout of MindSpore; to-torch writes "
            f"{_names(source.table, 'huggingface')}."
        )
    place = hugging_face_target(
        source,
        target,
        options,
        output=options.out_dir,
        max_shard_size=options.max_shard_size,
        allow_no_config=options.allow_no_config,
    )
    return hugging_face_job("to-torch", source, target, options, place)


def _convert(options: Convert) -> Job:
    spread = Spread(
        options.out,
        options.format,
        options.prefix,
        options.dst_strategy_dir,
        options.dst_parallel_config,
    )
    cut: dict[str, Any] = {
        "strategy": options.src_strategy_dir,
        "parallel_config": options.src_parallel_config,
        "option": "src_{}",
    }
    checkpoint = open_choice(
        options.source,
        options,
        **cut,
        layout=options.from_,
        config=options.config,
        layout_option="from_",
    )
    if wants_adapter(checkpoint, options):
        named = {
            "target": options.to,
            "layout": options.from_,
            "advice": f"Name the right one with {option('from_')}.",
        }
        return adapter_job_of(
            "convert", checkpoint, options, spread, None, config=options.config, **named
        )
    source = bind_input(
        checkpoint, options, layout=options.from_, config=options.config, layout_option="from_"
    )
    target = source.table.layout(options.to)
    if target.family == "mindspore":
        return mindspore_job("convert", source, target, spread, options)
    if spread.cut:
        raise UsageError(
            f"{option('to', options.to)} is a Hugging Face layout, which has no ranks; omit the "
            "target strategy."
        )
    place = hugging_face_target(
        source, target, options, output=options.out, max_shard_size=options.max_shard_size
    )
    return hugging_face_job("convert", source, target, options, place)


def _names(table: Table, family: str) -> str:
    return ", ".join(layout.name for layout in table.layouts.values() if layout.family == family)
