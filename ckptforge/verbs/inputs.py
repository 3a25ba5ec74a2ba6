"""What the conversions read: opened, and read as a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.dtypes import parse_target
from ckptforge.errors import UnmappedTensorsError, UsageError, shown
from ckptforge.model import Model
from ckptforge.reading.factors import holds_only_factors
from ckptforge.reading.source import Choices, Source, bind_source
from ckptforge.spelling import command, flag, option
from ckptforge.storage.files import real_path
from ckptforge.tables.lora import is_lora
from ckptforge.tables.shipped import candidate_tables
from ckptforge.verbs.job import Job
from ckptforge.verbs.options import Converting
from ckptforge.verbs.ranks import in_ranks, open_ranks
from ckptforge.verbs.spread import Spread

_FAMILIES = {"huggingface": "PEFT's", "mindspore": "MindSpore's"}


def open_choice(path: Path, options: Converting, **choices: Any) -> Model:
    """Opens what a conversion reads: a checkpoint of any kind, ranks, or an adapter."""
    step = options.step
    chosen = Choices(model=options.model, mapping=options.mapping, step=step, **choices)
    if in_ranks(path, chosen):
        return open_ranks(path, chosen)
    return open_input(path, step, options.adapter)


def open_input(path: Path, step: int | None, adapter: bool) -> Model:
    """Opens a checkpoint that isn't in ranks: of a directory that holds both a model and an adapter
    the one that is wanted."""
    if not adapter:
        return open_checkpoint(path, step)
    from ckptforge.adapters.adapter import open_adapter

    return open_adapter(path, step)


def merged(source: Source, adapter: Path, alpha: float | None, step: int | None) -> Source:
    """A model with an adapter added; `step` is for one that lies in the model's own directory."""
    from ckptforge.adapters.adapter import open_adapter
    from ckptforge.adapters.merging import merge_adapter

    same = real_path(adapter) == real_path(source.model.path)
    return merge_adapter(source, open_adapter(adapter, step if same else None), alpha)


def bind_input(model: Model, options: Converting, **choices: Any) -> Source:
    """Finds the layout of an input, and adds the adapter that is to be merged. Raises what
    `bind_source` and `merge_adapter` raise, and the errors of tensors that aren't known."""
    own: dict[str, Any] = {"model": options.model, "mapping": options.mapping}
    source = bind_source(model, Choices(**own, **choices, trim_vocab=options.trim_vocab))
    alpha, adapter = _alpha(options), options.merge_lora
    if adapter is not None:
        source = merged(source, adapter, alpha, options.step)
    elif alpha is not None:
        raise UsageError(
            f"{option('lora_alpha')} applies only to an adapter: give that with "
            f"{option('merge_lora')}, or {flag('adapter')} to convert the input's own."
        )
    elif (
        found := [name for name in source.unmapped if is_lora(name)]
    ) and not options.allow_unmapped:
        if model.ranks:
            raise UnmappedTensorsError(
                f"{model.path}: holds the factors of a LoRA adapter in ranks, such as "
                f"{shown(found[0])}. Join the ranks first with {command('merge')}, or leave the "
                f"factors out with {flag('allow_unmapped')}."
            )
        raise UnmappedTensorsError(
            f"{model.path}: holds the factors of a LoRA adapter, such as {shown(found[0])}. Merge "
            f"them into the weights with {option('merge_lora', model.path)}, convert them alone "
            f"with {flag('adapter')}, or leave them out with {flag('allow_unmapped')}."
        )
    source.refuse_unmapped(options.allow_unmapped, options.drop)
    source.refuse_codes(parse_target(options.dtype))
    return source


def _alpha(options: Converting) -> float | None:
    alpha = options.lora_alpha
    if alpha is not None and not abs(alpha) < 1e9:
        raise UsageError(f"{option('lora_alpha', alpha)}: expected a number.")
    return alpha


def wants_adapter(model: Model, options: Converting) -> bool:
    """Whether an input is an adapter, or only its adapter is wanted."""
    if not options.adapter and not holds_only_factors(model):
        return False
    if options.merge_lora is not None:
        raise UsageError(
            f"{model.path}: is an adapter itself; {option('merge_lora')} adds one to a model."
        )
    return True


def adapter_job_of(
    verb: str, model: Model, options: Converting, spread: Spread, reads: str | None, **choices: Any
) -> Job:
    """The job that converts an adapter alone."""
    found = "huggingface" if model.format == "peft adapter" else "mindspore"
    if reads not in (None, found) and any(map(is_lora, model.values)):
        if found == "mindspore" and any(
            name.startswith("base_model.model.") for name in model.values
        ):
            raise UsageError(
                f"{model.path}: holds the factors of a PEFT adapter, but no adapter_config.json "
                "beside them, which says its scale; take the whole directory that save_pretrained "
                "wrote."
            )
        other = "to_ms" if found == "huggingface" else "to_torch"
        raise UsageError(
            f"{model.path}: holds an adapter in {_FAMILIES[found]} names; use {command(other)} or "
            f"{command('convert')}."
        )
    from ckptforge.adapters.plan import AdapterChoices, adapter_plan

    tables = candidate_tables(options.mapping)
    dtype = parse_target(options.dtype)
    chosen = AdapterChoices(model=options.model, alpha=_alpha(options), dtype=dtype, **choices)
    return Job(*adapter_plan(verb, model, tables, chosen, spread))
