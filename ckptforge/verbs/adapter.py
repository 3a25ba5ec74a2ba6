"""Jobs that convert an adapter: PEFT's directory to MindSpore's names, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.adapters import peft
from ckptforge.adapters.adapter import Adapter, adapter_tables, read_adapter, read_kept
from ckptforge.adapters.converting import Converted, convert_adapter
from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.opening import CONFIG, Checkpoint
from ckptforge.dtypes import DType
from ckptforge.errors import CkptforgeError, ModelUnknownError, PlanError, UsageError
from ckptforge.formats import safetensors
from ckptforge.parallel.config import ParallelConfig
from ckptforge.parallel.strategy_files import Strategy
from ckptforge.planning.conversion import PlacedFile
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.reading.source import read_model_config
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.targets.mindspore import Spread, cut_by
from ckptforge.verbs.job import Job

_Found = tuple[Adapter, Layout, Converted]


class AdapterChoices(msgspec.Struct, frozen=True):
    """What a user says of an adapter: its model, the layouts it has and is to have, its alpha, the
    model's config.json, the dtype; `family` is what the command writes, of which the table's first
    layout is meant where no `target` is named."""

    target: str | None
    layout: str | None = None
    advice: str | None = None
    family: str | None = None
    model: str | None = None
    config: Path | None = None
    alpha: float | None = None
    dtype: DType | None = None


def adapter_job(
    verb: str,
    checkpoint: Checkpoint,
    tables: Iterable[Table],
    choices: AdapterChoices,
    spread: Spread,
) -> Job:
    """The job. Raises the errors of reading and converting an adapter, and `ModelUnknownError`
    where it would be another for another model."""
    adapter, target, converted = _convert(checkpoint, list(tables), choices)
    rank, scale = converted.rank, converted.scale
    notes = [
        *checkpoint.notes,
        *adapter.notes,
        *(adapter.kept.side.skipped if adapter.kept.side is not None else ()),
    ]
    place = None
    if target.family == "mindspore":
        notes += adapter.table.mindspore_layout(choices.target)[1]
        assert rank is not None and scale is not None
        place = spread.place(_no_strategy)
        files, small = place.lay_out(converted.conversion.specs)
        output, side = place.output, _side(adapter, rank, scale)
        notes.append(
            f"set lora_rank: {rank} and lora_alpha: {scale * rank:.15g} in the job's pet_config."
        )
    else:
        if spread.strategy is not None or spread.parallel_config is not None:
            raise UsageError(
                f"{target.name} is a Hugging Face layout, which has no ranks; omit "
                "the target strategy."
            )
        refuse_name(spread.out, directory=True)
        output, side = spread.out, None
        files, small = _directory(adapter, converted, output)
    left_out: dict[str, list[str]] = {}
    factors = {entry for one in adapter.factors for entry in (one.a, one.b)}
    for name, entry in checkpoint.tensors.items():
        if entry not in factors:
            what = (
                "weights of the base model"
                if entry in adapter.whole.values()
                else "not of the adapter"
            )
            left_out.setdefault(
                "optimizer state and counters" if is_state(name) else what, []
            ).append(name)
    facts = {
        "model": adapter.table.name,
        "from": adapter.layout.name,
        "to": target.name,
        "source_format": checkpoint.format,
        "source_tensors": len(checkpoint.tensors),
        "dtype": choices.dtype.name if choices.dtype else "keep",
        "lora_rank": rank,
        "lora_alpha": None if scale is None or rank is None else scale * rank,
    }
    assemblies = converted.conversion.assemblies(files, checkpoint.shards)
    layouts = tuple(file.layout for file in files)
    plan = Plan(
        verb, output, layouts, assemblies, checkpoint.files, small, left_out, tuple(notes), facts
    )
    return Job(plan if place is None else cut_by(plan, place), adapter.table, target, side)


def _no_strategy(_: ParallelConfig) -> Strategy:
    raise UsageError(
        "an adapter can't be cut by a parallel configuration; give the strategy of its job."
    )


def _convert(checkpoint: Checkpoint, tables: list[Table], choices: AdapterChoices) -> _Found:
    config, where = ({}, CONFIG) if choices.config is None else read_model_config(choices.config)
    kept = read_kept(checkpoint)
    candidates = adapter_tables(tables, checkpoint, kept, config, choices.model)
    found: list[_Found] = []
    errors: list[CkptforgeError] = []
    for table in candidates:
        try:
            target = _target(table, choices)
            if choices.family not in (None, target.family):
                raise UsageError(
                    f"{target.name} is a layout of {target.family}, which this "
                    "command doesn't write."
                )
            sizes = AxisSizes()
            sizes.learn_config(table, config, where)
            adapter = read_adapter(
                checkpoint,
                kept,
                table,
                sizes.lengths,
                choices.alpha,
                choices.layout,
                None,
                choices.advice,
            )
            _learn_shapes(sizes, adapter)
            found.append((adapter, target, convert_adapter(adapter, target, sizes, choices.dtype)))
        except CkptforgeError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    first = found[0][2].conversion
    if any(
        (one.conversion.specs, one.conversion.copies) != (first.specs, first.copies)
        for _, _, one in found
    ):
        raise ModelUnknownError(
            f"{checkpoint.path}: the adapter fits the models "
            f"{', '.join(adapter.table.name for adapter, _, _ in found)}, whose layouts "
            f"({', '.join(dict.fromkeys(target.name for _, target, _ in found))}) hold it in "
            f"different ways; name its own with {option('model')}, or "
            f"give its config.json with {option('config')}."
        )
    return found[0]


def _target(table: Table, choices: AdapterChoices) -> Layout:
    if choices.target is not None:
        return table.layout(choices.target)
    assert choices.family is not None
    return table.first_layout(choices.family)


def _learn_shapes(sizes: AxisSizes, adapter: Adapter) -> None:
    """Checks the factors' shapes against each other and against config.json."""
    shapes: list[tuple[Pattern, str, tuple[int, ...]]] = []
    for one in adapter.factors:
        columns = Pattern(
            one.weight.weight.template, one.weight.weight.axes[1:], one.weight.weight.tensors
        )
        shapes += [
            (one.weight.rows, one.b.name, (one.height,)),
            (columns, one.a.name, (one.columns,)),
        ]
    sizes.learn_shapes(shapes)


def _side(adapter: Adapter, rank: int, scale: float) -> HuggingFaceSide | None:
    """What is kept for the way back, with an adapter_config.json that holds for what is written."""
    if adapter.kept.side is None or adapter.kept.config is None:
        return None
    if _holds(adapter.kept.config, rank, scale):
        return adapter.kept.side
    changed = peft.config_json((), rank, scale * rank, adapter.kept.config)
    return replace(adapter.kept.side, files={**adapter.kept.side.files, peft.CONFIG: changed})


def _holds(
    config: peft.AdapterConfig, rank: int, scale: float, modules: Sequence[str] = ()
) -> bool:
    """Whether a config says the rank and scale of every module, without patterns, and names the
    modules."""
    targets = config.content.get("target_modules")
    if isinstance(targets, list) and not set(peft.ends(modules)) <= {
        str(name).rpartition(".")[2] for name in targets
    }:
        return False
    if config.content.get("rank_pattern") or config.content.get("alpha_pattern"):
        return False
    return config.rank("") == rank and abs(config.scale("") - scale) <= 1e-12 * abs(scale)


def _directory(
    adapter: Adapter, converted: Converted, output: Path
) -> tuple[tuple[PlacedFile, ...], dict[str, bytes]]:
    """The files of a PEFT directory: as they were, where the factors are the same."""
    side, config, specs = adapter.kept.side, adapter.kept.config, converted.conversion.specs
    small = (
        {}
        if side is None
        else {name: content for name, content in side.files.items() if name != peft.CONFIG}
    )
    if side is not None and config is not None and adapter.layout.family == "huggingface":
        small[peft.CONFIG] = side.files[peft.CONFIG]
    elif converted.rank is None or converted.scale is None:
        raise PlanError(
            f"{adapter.path}: its modules have different ranks or scales; PEFT has no "
            "record of which module has which."
        )
    elif (
        side is not None
        and config is not None
        and _holds(config, converted.rank, converted.scale, converted.modules)
    ):
        small[peft.CONFIG] = side.files[peft.CONFIG]
    else:
        small[peft.CONFIG] = peft.config_json(
            converted.modules, converted.rank, converted.scale * converted.rank, config
        )
    recorded = {} if side is None else side.shards.get(peft.WEIGHTS, {})
    by_name = {spec.name: spec for spec in specs}
    if recorded.get("tensors") == {name: spec.dtype.safetensors for name, spec in by_name.items()}:
        layout = safetensors.lay_out(
            output / peft.WEIGHTS,
            [by_name[name] for name in recorded["tensors"]],
            recorded["metadata"],
        )
    else:
        layout = safetensors.lay_out(
            output / peft.WEIGHTS, safetensors.library_order(specs), {"format": "pt"}
        )
    return (PlacedFile(layout),), small
