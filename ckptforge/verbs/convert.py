"""The conversions as functions: each makes a plan and carries it out. No printing; errors are
`CkptforgeError`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.adapters.adapter import holds_only_factors, is_lora, open_weights
from ckptforge.adapters.merging import merge_adapter
from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.opening import Checkpoint
from ckptforge.dtypes import DType, parse_target
from ckptforge.errors import LayoutError, UnmappedTensorsError, UsageError, shown
from ckptforge.formats.entry import TensorEntry
from ckptforge.parallel.compute import compute_strategy
from ckptforge.planning.conversion import Conversion, PlacedFile
from ckptforge.planning.conversion import convert as convert_tensors
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.reading.ranks import in_ranks, open_ranks
from ckptforge.reading.source import Choices, Source, bind_source
from ckptforge.reading.tied import tied
from ckptforge.spelling import command, flag, option
from ckptforge.storage.files import real_path
from ckptforge.tables.shipped import candidate_tables
from ckptforge.tables.state import companion_prefix
from ckptforge.tables.table import Layout, Table
from ckptforge.targets.huggingface import HuggingFaceTarget, parse_size
from ckptforge.targets.mindspore import Spread, cut_by
from ckptforge.verbs.adapter import AdapterChoices, adapter_job
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.options import Convert, Converting, PathLike, ToMs, ToTorch
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result

_FAMILIES = {"huggingface": "PEFT's", "mindspore": "MindSpore's"}
Alike = tuple[tuple[TensorEntry, TensorEntry], ...]


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
    checkpoint = _input(options.hf_dir, options)
    if _wants_adapter(checkpoint, options):
        return _adapter_job(
            "to-ms",
            checkpoint,
            options,
            spread,
            "huggingface",
            target=options.layout,
            config=options.config,
            family="mindspore",
        )
    source = _bind(
        checkpoint, options, config=options.config, family="huggingface", layout_option="model"
    )
    target, said = source.table.mindspore_layout(options.layout)
    if target.family != "mindspore":
        raise UsageError(
            f"{option('layout', options.layout)} is a layout of Hugging Face; to-ms writes "
            f"{_names(source.table, 'mindspore')}."
        )
    return _mindspore_job("to-ms", source, target, spread, options, said)


def _to_torch(options: ToTorch) -> Job:
    refuse_name(options.out_dir, directory=True)
    chosen = None if options.layout == "auto" else options.layout
    cut: dict[str, Any] = {
        "strategy": options.strategy_dir,
        "parallel_config": options.parallel_config,
    }
    checkpoint = _input(
        options.ms, options, **cut, layout=chosen, config=options.config, layout_option="layout"
    )
    if _wants_adapter(checkpoint, options):
        spread, named = (
            Spread(options.out_dir, None, ""),
            {"target": options.hf_layout, "layout": chosen, "family": "huggingface"},
        )
        return _adapter_job(
            "to-torch", checkpoint, options, spread, "mindspore", config=options.config, **named
        )
    source = _bind(
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
    return _hugging_face_job(
        "to-torch",
        source,
        target,
        options.out_dir,
        options.max_shard_size,
        options,
        options.allow_no_config,
    )


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
    checkpoint = _input(
        options.source,
        options,
        **cut,
        layout=options.from_,
        config=options.config,
        layout_option="from_",
    )
    if _wants_adapter(checkpoint, options):
        named = {
            "target": options.to,
            "layout": options.from_,
            "advice": f"Name the right one with {option('from_')}.",
        }
        return _adapter_job(
            "convert", checkpoint, options, spread, None, config=options.config, **named
        )
    source = _bind(
        checkpoint,
        options,
        layout=options.from_,
        config=options.config,
        layout_option="from_",
    )
    target = source.table.layout(options.to)
    if target.family == "mindspore":
        return _mindspore_job("convert", source, target, spread, options)
    if spread.strategy is not None or spread.parallel_config is not None:
        raise UsageError(
            f"{option('to', options.to)} is a Hugging Face layout, which has no ranks; omit "
            "the target strategy."
        )
    return _hugging_face_job(
        "convert", source, target, options.out, options.max_shard_size, options
    )


def _input(path: Path, options: Converting, **choices: Any) -> Checkpoint:
    chosen = Choices(
        model=options.model,
        mapping=options.mapping,
        step=options.step,
        **choices,
    )
    if in_ranks(path, chosen):
        return open_ranks(path, chosen)
    return open_weights(path, options.step, model_first=not options.adapter)


def _bind(checkpoint: Checkpoint, options: Converting, **choices: Any) -> Source:
    own: dict[str, Any] = {"model": options.model, "mapping": options.mapping}
    source = bind_source(checkpoint, Choices(**own, **choices, trim_vocab=options.trim_vocab))
    alpha, adapter = _alpha(options), options.merge_lora
    if adapter is not None:
        same = real_path(adapter) == real_path(checkpoint.path)
        source = merge_adapter(source, open_weights(adapter, options.step if same else None), alpha)
    elif alpha is not None:
        raise UsageError(
            f"{option('lora_alpha')} applies only to an adapter: give that with "
            f"{option('merge_lora')}, or "
            f"{flag('adapter')} to convert the input's own."
        )
    elif (
        found := [name for name in source.unmapped if is_lora(name)]
    ) and not options.allow_unmapped:
        if checkpoint.shards:
            raise UnmappedTensorsError(
                f"{checkpoint.path}: holds the factors of a LoRA adapter in ranks, such as "
                f"{shown(found[0])}. Join the ranks first with "
                f"{command('merge')}, or leave the factors out with {flag('allow_unmapped')}."
            )
        raise UnmappedTensorsError(
            f"{checkpoint.path}: holds the factors of a LoRA adapter, such as {shown(found[0])}. "
            "Merge them into the weights with "
            f"{option('merge_lora', checkpoint.path)}, convert them alone with {flag('adapter')}, "
            f"or leave them out with {flag('allow_unmapped')}."
        )
    source.refuse_unmapped(options.allow_unmapped, options.drop)
    source.refuse_codes(parse_target(options.dtype))
    return source


def _alpha(options: Converting) -> float | None:
    alpha = options.lora_alpha
    if alpha is not None and not abs(alpha) < 1e9:
        raise UsageError(f"{option('lora_alpha', alpha)}: expected a number.")
    return alpha


def _wants_adapter(checkpoint: Checkpoint, options: Converting) -> bool:
    """Whether an input is an adapter, or only its adapter is wanted."""
    if not options.adapter and not holds_only_factors(checkpoint):
        return False
    if options.merge_lora is not None:
        raise UsageError(
            f"{checkpoint.path}: is an adapter itself; {option('merge_lora')} adds one to a model."
        )
    return True


def _adapter_job(
    verb: str,
    checkpoint: Checkpoint,
    options: Converting,
    spread: Spread,
    reads: str | None,
    **choices: Any,
) -> Job:
    found = "huggingface" if checkpoint.format == "peft adapter" else "mindspore"
    if reads not in (None, found) and any(map(is_lora, checkpoint.tensors)):
        if found == "mindspore" and any(
            name.startswith("base_model.model.") for name in checkpoint.tensors
        ):
            raise UsageError(
                f"{checkpoint.path}: holds the factors of a PEFT adapter, but no "
                "adapter_config.json beside them, which says its scale; "
                "take the whole directory that save_pretrained wrote."
            )
        other = "to_ms" if found == "huggingface" else "to_torch"
        raise UsageError(
            f"{checkpoint.path}: holds an adapter in {_FAMILIES[found]} names; use "
            f"{command(other)} or {command('convert')}."
        )
    tables = candidate_tables(options.mapping)
    dtype = parse_target(options.dtype)
    chosen = AdapterChoices(model=options.model, alpha=_alpha(options), dtype=dtype, **choices)
    return adapter_job(verb, checkpoint, tables, chosen, spread)


def _names(table: Table, family: str) -> str:
    return ", ".join(layout.name for layout in table.layouts.values() if layout.family == family)


def _mindspore_job(
    verb: str,
    source: Source,
    target: Layout,
    spread: Spread,
    options: Converting,
    said: tuple[str, ...] = (),
) -> Job:
    dtype = parse_target(options.dtype)
    conversion = convert_tensors(source.binding, target, source.checkpoint.tensors, dtype)
    left_out = _left_out(source)
    merged = options.merge_lora is not None  # optimizer state isn't that of the sums
    if source.binding.layout.family == "mindspore" and not options.weights_only and not merged:
        _add_state(conversion, source, target, left_out)
    elif source.state:
        left_out["optimizer state and counters"] = list(source.state)
    place = spread.place(
        lambda config: compute_strategy(
            config, source.table, target, source.binding.sizes, conversion.specs
        )
    )
    files, small = place.lay_out(conversion.specs)
    side = source.hugging_face
    notes = (*said, *conversion.uncast_notes(dtype), *place.notes(conversion.specs))
    alike = _alike(source, options, left_out)
    job = _job(
        verb,
        source,
        target,
        place.output,
        files,
        conversion,
        left_out,
        small,
        side,
        dtype,
        notes,
        alike,
    )
    return replace(job, plan=cut_by(job.plan, place))


def _hugging_face_job(
    verb: str,
    source: Source,
    target: Layout,
    out: Path,
    max_shard_size: int | str | None,
    options: Converting,
    allow_no_config: bool = False,
) -> Job:
    dtype = parse_target(options.dtype)
    recorded = _recorded_names(source, target)
    copied = (lambda _: True) if recorded is None else recorded.__contains__
    conversion = convert_tensors(
        source.binding, target, source.checkpoint.tensors, dtype, copied=copied
    )
    left_out = _left_out(source)
    if source.state:
        left_out["optimizer state and counters"] = list(source.state)
    limit = None if max_shard_size is None else parse_size(max_shard_size, "max_shard_size")
    place = HuggingFaceTarget(out, source.hugging_face, limit, allow_no_config)
    files, small = place.lay_out(conversion.specs, target.name)
    alike = _alike(source, options, left_out)
    notes = (*conversion.uncast_notes(dtype), *place.notes(conversion.specs, dtype))
    return _job(
        verb, source, target, out, files, conversion, left_out, small, None, dtype, notes, alike
    )


def _recorded_names(source: Source, target: Layout) -> set[str] | None:
    """The tensors that the original directory had in this layout; None where that isn't known."""
    side = source.hugging_face
    if side is None or side.layout != target.name or not side.shards:
        return None
    return {name for shard in side.shards.values() for name in shard["tensors"]}


def _alike(source: Source, options: Converting, left_out: dict[str, list[str]]) -> Alike:
    """The copies in a source with what they should be equal to: they aren't used, so that must be
    checked."""
    if not source.binding.copies:
        return ()
    compared = not options.allow_unmapped and not source.checkpoint.shards
    left_out["copies of other tensors" + ("" if compared else ", not compared")] = list(
        source.binding.copies
    )
    tensors = source.unmerged or source.checkpoint.tensors
    return tuple(
        (tensors[copy], tensors[original])
        for copy, original in source.binding.copies.items()
        if compared
    )


def _left_out(source: Source) -> dict[str, list[str]]:
    left_out: dict[str, list[str]] = {}
    if source.unmapped:
        left_out["not known to the mapping"] = list(source.unmapped)
    if source.activations:
        left_out["scales of activations, which only the quantised model uses"] = list(
            source.activations
        )
    if source.binding.ignored:
        left_out["recomputed by the network"] = list(source.binding.ignored)
    return left_out


def _add_state(
    conversion: Conversion, source: Source, target: Layout, left_out: dict[str, list[str]]
) -> None:
    """Optimizer state follows its weight's layout and name, and is left out where its weight isn't
    written; counters and scales are kept as they are."""
    tensors = source.checkpoint.tensors
    weights = {name for names in source.binding.names.values() for name in names.values()}
    prefixes: list[str] = []
    orphans: set[str] = set()
    for name in source.state:
        prefix = companion_prefix(name)
        if prefix is None:
            continue
        weight = tensors.get(name.removeprefix(prefix))
        if weight is None or weight.name not in weights:
            what = "weights that aren't there" if weight is None else "tensors that are left out"
            left_out.setdefault(f"optimizer state of {what}", []).append(name)
            orphans.add(name)
            continue
        if tensors[name].shape != weight.shape:
            raise LayoutError(
                f"{shown(name)} has shape {list(tensors[name].shape)}, but its weight "
                f"{shown(weight.name)} has {list(weight.shape)}."
            )
        if prefix not in prefixes:
            prefixes.append(prefix)
    for prefix in prefixes:
        conversion.extend(convert_tensors(source.binding, target, tensors, None, prefix))
    taken = {entry.name for entry in conversion.used}
    for name in source.state:
        if name not in taken and name not in orphans:
            conversion.keep(tensors[name])


def _job(
    verb: str,
    source: Source,
    target: Layout,
    output: Path,
    files: Sequence[PlacedFile],
    conversion: Conversion,
    left_out: dict[str, list[str]],
    small: dict[str, bytes],
    side: HuggingFaceSide | None,
    dtype: DType | None,
    notes: tuple[str, ...],
    alike: Alike,
) -> Job:
    checkpoint = source.checkpoint
    notes = (
        *checkpoint.notes,
        *(source.hugging_face.skipped if source.hugging_face else ()),
        *notes,
    )
    facts = {
        "model": source.table.name,
        "from": source.binding.layout.name,
        "to": target.name,
        "source_format": checkpoint.format,
        "source_tensors": len(checkpoint.tensors),
        "dtype": dtype.name if dtype else "keep",
    }
    assemblies = conversion.assemblies(files, checkpoint.shards)
    layouts = tuple(file.layout for file in files)
    made = Plan(
        verb, output, layouts, assemblies, checkpoint.files, small, left_out, notes, facts, alike
    )
    return Job(made, source.table, target, side, tied=tied(source))
