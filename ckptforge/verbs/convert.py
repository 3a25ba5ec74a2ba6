"""The conversions as functions: each makes a plan and carries it out, and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ckptforge.errors import UsageError
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.quantisation.wishes import wishes_of
from ckptforge.spelling import called, option
from ckptforge.surgery.masters import from_main_params
from ckptforge.verbs.choices import SOURCE, choices_of
from ckptforge.verbs.inputs import adapter_job, bind_input, open_input, wants_adapter
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.layouts import (
    consolidated_job,
    hugging_face_job,
    megatron_job,
    mindspore_job,
    refuse_shards,
)
from ckptforge.verbs.model_card import carded
from ckptforge.verbs.options import Convert, PathLike, ToMs, ToTorch
from ckptforge.verbs.options.phrases import DCP, MEGATRON
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
    made = planners[chosen]().plan
    made.assemblies.prove()
    return made


def _to_ms(options: ToMs) -> Job:
    spread = Spread.of(options, options.out)
    choices = choices_of(options, {}, family="huggingface")
    model = open_input(options.hf_dir, choices, options.adapter)
    if wants_adapter(model, options):
        return adapter_job("to-ms", model, options, choices, spread, options.layout)
    with called({"layout": "model"}):  # which alone can tell what is meant
        source = bind_input(model, options, choices)
    target, notes = source.table.mindspore_layout(options.layout)
    if target.family != "mindspore":
        raise UsageError(
            f"{option('layout', target.name)} is no layout of MindSpore; to-ms writes "
            f"{source.table.named_of('mindspore')}."
        )
    return mindspore_job("to-ms", source, target, spread, options, notes)


def _to_torch(options: ToTorch) -> Job:
    return carded(_hub_job(options), options)


def _hub_job(options: ToTorch) -> Job:
    refuse_name(options.out_dir, directory=True)
    if wishes_of(options.quantise) and options.format == DCP:
        raise UsageError(f"{option('quantise')} is for directories of Hugging Face's, whole.")
    layout = None if options.layout == "auto" else options.layout
    choices = replace(choices_of(options, family="mindspore"), layout=layout)
    model = open_input(options.ms, choices, options.adapter)
    if wants_adapter(model, options):
        _refuse_codes_of_adapter(options.quantise)
        spread = Spread(out=options.out_dir)
        return adapter_job("to-torch", model, options, choices, spread, options.hf_layout)
    if options.from_main_params:
        model = from_main_params(model)
    source = bind_input(model, options, choices)
    if layout is not None and source.binding.layout.family == "huggingface":
        raise UsageError(
            f"{option('layout', layout)} is a layout of Hugging Face; to-torch reads "
            f"{source.table.named_of('mindspore')}."
        )
    of_run = source.binding.layout.family == "huggingface"  # which may be no published layout
    recorded = source.hugging_face.layout if source.hugging_face and not of_run else None
    name = options.hf_layout or (recorded if recorded in source.table.layouts else None)
    target = source.table.layout(name) if name else source.table.first_layout("huggingface")
    if target.family != "huggingface":
        raise UsageError(
            f"{option('hf_layout', name)} is no layout of Hugging Face; to-torch writes "
            f"{source.table.named_of('huggingface')}."
        )
    return hugging_face_job("to-torch", source, target, options, options.out_dir)


def _convert(options: Convert) -> Job:
    spread = Spread.of(options, options.out, "dst_")
    if wishes_of(options.quantise) and (options.format is not None or spread.cut):
        raise UsageError(f"{option('quantise')} is for directories of Hugging Face's, whole.")
    choices = choices_of(options, SOURCE)
    with called(SOURCE):
        model = open_input(options.source, choices, options.adapter)
        if wants_adapter(model, options):
            _refuse_codes_of_adapter(options.quantise)
            return adapter_job("convert", model, options, choices, spread, options.to)
        source = bind_input(model, options, choices)
    target = source.table.layout(options.to)
    refuse_shards(options.shards, target)
    if options.quantise and target.family != "huggingface":
        raise UsageError(
            f"{option('to', options.to)} holds no codes with scales; {option('quantise')} is for "
            f"{source.table.named_of('huggingface')}."
        )
    if target.family == MEGATRON:
        return megatron_job("convert", source, target, options)
    if options.format == MEGATRON:
        raise UsageError(
            f"{option('format', MEGATRON)} is for layouts of Megatron's, such as "
            f"{source.table.named_of(MEGATRON)}."
        )
    if target.family == "mindspore":
        return mindspore_job("convert", source, target, spread, options)
    if spread.cut:
        raise UsageError(
            f"{option('to', options.to)} is no layout of MindSpore's ranks; omit the target "
            "strategy."
        )
    if target.family == "consolidated":
        if options.format == DCP:
            raise UsageError(
                f"{option('format', DCP)}: {target.name} is a layout of releases, which are "
                "written in their makers' own files; omit it."
            )
        return consolidated_job("convert", source, target, options)
    return hugging_face_job("convert", source, target, options, options.out)


def _refuse_codes_of_adapter(wanted: Sequence[str]) -> None:
    if wanted:
        raise UsageError(f"{option('quantise')} is for whole models; the input is an adapter.")
