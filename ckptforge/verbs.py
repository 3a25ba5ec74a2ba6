"""The verbs of ckptforge as functions: each makes a plan and carries it out. No printing; errors are `CkptforgeError`s.

Every verb takes the keyword arguments of `Planning` and `Running` beside its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ckptforge.dtypes import DType, parse_target
from ckptforge.engine import stream
from ckptforge.engine.conversion import Conversion
from ckptforge.engine.conversion import convert as convert_tensors
from ckptforge.engine.manifest import HuggingFaceSide, manifest_json, manifest_path
from ckptforge.engine.plan import Plan
from ckptforge.engine.publish import check_output, check_room, staged
from ckptforge.engine.stream import Budget, Progress
from ckptforge.errors import CastOverflowError, LayoutError, UsageError
from ckptforge.mapping.state import companion_prefix
from ckptforge.mapping.table import Layout, Table
from ckptforge.outputs import HuggingFaceTarget, MindSporeTarget, parse_size
from ckptforge.result import Result, dry_result
from ckptforge.source import Choices, Source, open_source

PathLike = str | Path


class Planning(TypedDict, total=False):
    """Arguments that shape the plan.

    `dtype`: keep, fp16, bf16, fp32 or fp64. `model`, `mapping`: a table's name, a table's file. `allow_unmapped`: leave
    tensors out that the table doesn't know. `weights_only`: drop optimizer state. `step`: which of several checkpoints.
    """

    dtype: str
    model: str | None
    mapping: PathLike | None
    allow_unmapped: bool
    weights_only: bool
    step: int | None


class Running(TypedDict, total=False):
    """Arguments that shape the run: `memory` in bytes (or "512MB"), `progress(done, total)` in bytes of output."""

    overwrite: bool
    allow_overflow: bool
    dry_run: bool
    workers: int | None
    memory: int | str | None
    progress: Progress | None


class Options(Planning, Running, total=False):
    """The keyword arguments that every verb takes."""


@dataclass(frozen=True)
class _Job:
    """A plan with what its manifest needs."""

    plan: Plan
    table: Table
    layout: Layout
    side: HuggingFaceSide | None


def to_ms(
    hf_dir: PathLike,
    out: PathLike,
    *,
    layout: str = "dense",
    format: str | None = None,
    prefix: str = "checkpoint_",
    **options: Unpack[Options],
) -> Result:
    """Converts a Hugging Face directory to one MindSpore checkpoint, `out` a file or a directory. Returns a `Result`."""
    return _run(_to_ms(hf_dir, out, layout, format, prefix, options), options)


def to_torch(
    ms: PathLike,
    out_dir: PathLike,
    *,
    layout: str = "auto",
    max_shard_size: int | str | None = None,
    config: PathLike | None = None,
    hf_layout: str | None = None,
    **options: Unpack[Options],
) -> Result:
    """Converts a MindSpore checkpoint to a Hugging Face directory that `from_pretrained` loads. Returns a `Result`."""
    return _run(_to_torch(ms, out_dir, layout, max_shard_size, config, hf_layout, options), options)


def convert(
    source: PathLike,
    out: PathLike,
    *,
    to: str,
    from_: str | None = None,
    format: str | None = None,
    prefix: str = "checkpoint_",
    max_shard_size: int | str | None = None,
    config: PathLike | None = None,
    **options: Unpack[Options],
) -> Result:
    """Converts a checkpoint of any layout to any other layout of its table. Returns a `Result`."""
    return _run(_convert(source, out, to, from_, format, prefix, max_shard_size, config, options), options)


def plan(verb: str, source: PathLike, out: PathLike, **arguments: Any) -> Plan:
    """The plan that `to-ms`, `to-torch` or `convert` would carry out, made from indexes alone, with the verb's arguments.

    Raises `UsageError` for another verb, and whatever the verb itself would refuse.
    """
    options = {key: arguments.pop(key) for key in list(arguments) if key in Options.__annotations__}
    opts: Options = options  # type: ignore[assignment]
    if verb == "to-ms":
        job = _to_ms(
            source,
            out,
            **{"layout": "dense", "file_format": arguments.pop("format", None), "prefix": "checkpoint_", **arguments},
            options=opts,
        )
    elif verb == "to-torch":
        job = _to_torch(
            source, out, **{"layout": "auto", "max_shard_size": None, "config": None, "hf_layout": None, **arguments}, options=opts
        )
    elif verb == "convert":
        defaults = {
            "from_": None,
            "file_format": arguments.pop("format", None),
            "prefix": "checkpoint_",
            "max_shard_size": None,
            "config": None,
        }
        job = _convert(source, out, **{**defaults, **arguments}, options=opts)
    else:
        raise UsageError(f"there is no plan for {verb!r}: use to-ms, to-torch or convert.")
    return job.plan


def _to_ms(hf_dir: PathLike, out: PathLike, layout: str, file_format: str | None, prefix: str, options: Options) -> _Job:
    source = _open(hf_dir, options, Choices(family="huggingface", layout_option="--model"))
    target = source.table.layout(layout)
    if target.family != "mindspore":
        raise UsageError(f"--layout {layout} is a layout of Hugging Face; to-ms writes {_names(source.table, 'mindspore')}.")
    return _mindspore_job("to-ms", source, target, MindSporeTarget.of(Path(out), file_format, prefix), options)


def _to_torch(
    ms: PathLike,
    out_dir: PathLike,
    layout: str,
    max_shard_size: int | str | None,
    config: PathLike | None,
    hf_layout: str | None,
    options: Options,
) -> _Job:
    chosen = None if layout == "auto" else layout
    source = _open(ms, options, Choices(layout=chosen, config=_path(config), family="mindspore", layout_option="--layout"))
    if source.binding.layout.family != "mindspore":
        raise UsageError(f"--layout {layout} is a layout of Hugging Face; to-torch reads {_names(source.table, 'mindspore')}.")
    recorded = source.hugging_face.layout if source.hugging_face else None
    hf_layout = hf_layout or (recorded if recorded in source.table.layouts else None) or "hub"
    target = source.table.layout(hf_layout)
    if target.family != "huggingface":
        raise UsageError(f"--hf_layout {hf_layout} is a layout of MindSpore; to-torch writes {_names(source.table, 'huggingface')}.")
    return _hugging_face_job("to-torch", source, target, Path(out_dir), max_shard_size, options)


def _convert(
    source_path: PathLike,
    out: PathLike,
    to: str,
    from_: str | None,
    file_format: str | None,
    prefix: str,
    max_shard_size: int | str | None,
    config: PathLike | None,
    options: Options,
) -> _Job:
    source = _open(source_path, options, Choices(layout=from_, config=_path(config), layout_option="--from"))
    target = source.table.layout(to)
    if target.family == "mindspore":
        return _mindspore_job("convert", source, target, MindSporeTarget.of(Path(out), file_format, prefix), options)
    return _hugging_face_job("convert", source, target, Path(out), max_shard_size, options)


def _open(path: PathLike, options: Options, choices: Choices) -> Source:
    choices = Choices(
        options.get("model"),
        choices.layout,
        _path(options.get("mapping")),
        choices.config,
        options.get("step"),
        choices.family,
        choices.layout_option,
    )
    source = open_source(Path(path), choices)
    source.refuse_unmapped(options.get("allow_unmapped", False))
    return source


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _names(table: Table, family: str) -> str:
    return ", ".join(layout.name for layout in table.layouts.values() if layout.family == family)


def _mindspore_job(verb: str, source: Source, target: Layout, place: MindSporeTarget, options: Options) -> _Job:
    dtype = parse_target(options.get("dtype"))
    conversion = convert_tensors(source.binding, target, source.checkpoint.tensors, dtype)
    left_out = _left_out(source)
    if source.binding.layout.family == "mindspore" and not options.get("weights_only"):
        _add_state(conversion, source, target)
    elif source.state:
        left_out["optimizer state and counters"] = list(source.state)
    files = place.lay_out(conversion.specs)
    side = source.hugging_face
    return _job(verb, source, target, place.output, files, conversion, left_out, {}, side, dtype)


def _hugging_face_job(verb: str, source: Source, target: Layout, out: Path, max_shard_size: int | str | None, options: Options) -> _Job:
    dtype = parse_target(options.get("dtype"))
    conversion = convert_tensors(source.binding, target, source.checkpoint.tensors, dtype)
    left_out = _left_out(source)
    if source.state:
        left_out["optimizer state and counters"] = list(source.state)
    limit = None if max_shard_size is None else parse_size(max_shard_size, "--max_shard_size")
    files, small = HuggingFaceTarget(out, source.hugging_face, limit).lay_out(conversion.specs, target.name)
    return _job(verb, source, target, out, files, conversion, left_out, small, None, dtype)


def _left_out(source: Source) -> dict[str, list[str]]:
    left_out: dict[str, list[str]] = {}
    if source.unmapped:
        left_out["not known to the mapping"] = list(source.unmapped)
    if source.binding.ignored:
        left_out["recomputed by the network"] = list(source.binding.ignored)
    return left_out


def _add_state(conversion: Conversion, source: Source, target: Layout) -> None:
    """Optimizer state follows its weight's layout and name; counters and scales are kept as they are."""
    tensors = source.checkpoint.tensors
    weights = {name for names in source.binding.names.values() for name in names.values()}
    prefixes: list[str] = []
    for name in source.state:
        prefix = companion_prefix(name)
        if prefix is None or name.removeprefix(prefix) not in weights:
            continue
        weight = tensors[name.removeprefix(prefix)]
        if tensors[name].shape != weight.shape:
            raise LayoutError(f"{name} has shape {list(tensors[name].shape)}, but its weight {weight.name} has {list(weight.shape)}.")
        if prefix not in prefixes:
            prefixes.append(prefix)
    for prefix in prefixes:
        conversion.extend(convert_tensors(source.binding, target, tensors, None, prefix))
    taken = {entry.name for entry in conversion.used}
    for name in source.state:
        if name not in taken:
            conversion.keep(tensors[name])


def _job(
    verb: str,
    source: Source,
    target: Layout,
    output: Path,
    files: Sequence[Any],
    conversion: Conversion,
    left_out: dict[str, list[str]],
    small: dict[str, bytes],
    side: HuggingFaceSide | None,
    dtype: DType | None,
) -> _Job:
    checkpoint = source.checkpoint
    notes = [*checkpoint.notes, *(source.hugging_face.skipped if source.hugging_face else ())]
    facts = {
        "model": source.table.name,
        "from": source.binding.layout.name,
        "to": target.name,
        "source_format": checkpoint.format,
        "source_tensors": len(checkpoint.tensors),
        "dtype": dtype.name if dtype else "keep",
    }
    made = Plan(verb, output, tuple(files), conversion.assemblies(files), checkpoint.files, small, left_out, tuple(notes), facts)
    return _Job(made, source.table, target, side)


def _run(job: _Job, options: Options) -> Result:
    memory = options.get("memory")
    budget = Budget.of(options.get("workers"), None if memory is None else parse_size(memory, "--memory"))
    check_output(job.plan, options.get("overwrite", False))
    if options.get("dry_run", False):
        return dry_result(job.plan, budget)
    check_room(job.plan)
    began = time.monotonic()
    with staged(job.plan) as staging:
        audit = stream.run(job.plan, staging.descriptors, budget, options.get("progress"))
        if audit.overflowed and not options.get("allow_overflow", False):
            raise CastOverflowError(_overflow_message(job.plan, audit))
        manifest = manifest_path(job.plan.output, job.plan.is_directory)
        staging.small_files[manifest.name] = manifest_json(job.plan, job.table, job.layout.name, job.side, audit)
    return Result(
        job.plan.verb,
        job.plan.output,
        (*job.plan.paths, manifest),
        job.plan.nbytes,
        job.plan.tensor_count,
        audit,
        job.plan.left_out,
        job.plan.notes,
        job.plan.facts,
        time.monotonic() - began,
        peak_buffers=budget.total,
    )


def _overflow_message(plan: Plan, audit: Any) -> str:
    worst = [
        f"{group}: {count.overflowed} of {count.values} ({source} → {target})"
        for (group, source, target), count in sorted(audit.counts.items())
        if count.overflowed
    ]
    return (
        f"{plan.output}: {audit.overflowed} finite values would become infinite, and nothing was written:\n  "
        + "\n  ".join(worst)
        + "\nChoose a dtype with a larger range (bf16, fp32), or give --allow-overflow."
    )
