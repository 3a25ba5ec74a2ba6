"""What the conversions read: opened, and read as a layout."""

from __future__ import annotations

from pathlib import Path

from ckptforge.errors import UnmappedTensorsError, UsageError, shown
from ckptforge.foreign.paths import real_path
from ckptforge.model import Model
from ckptforge.reading.known import Choices
from ckptforge.reading.source import Source, bind_source
from ckptforge.spelling import command, flag, option
from ckptforge.tables.lora import holds_only_factors, is_lora
from ckptforge.verbs.job import Job
from ckptforge.verbs.options import Converting
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.ranks import in_ranks, open_whole
from ckptforge.verbs.spread import Spread

_FAMILIES = {"huggingface": "PEFT's", "mindspore": "MindSpore's"}
_OTHER_FAMILY = {"huggingface": "mindspore", "mindspore": "huggingface"}


def open_input(path: Path, choices: Choices, adapter: bool) -> Model:
    """Opens a checkpoint or ranks; of a model with an adapter the one that is wanted."""
    if not adapter or in_ranks(path, choices):
        return open_whole(path, choices)
    from ckptforge.adapters.adapter import open_adapter

    return open_adapter(path, choices.step)


def with_adapter(source: Source, adapter: Path, alpha: float | None, step: int | None) -> Source:
    """A model with an adapter added; `step` is for one that lies in the model's own directory."""
    from ckptforge.adapters.adapter import open_adapter
    from ckptforge.adapters.adding import add_adapter

    same = real_path(adapter) == real_path(source.model.path)
    return add_adapter(source, open_adapter(adapter, step if same else None), alpha)


def bind_input(model: Model, options: Converting, choices: Choices) -> Source:
    """Finds the layout of an input, and adds the adapter that is to be merged. Raises what
    `bind_source` and `add_adapter` raise, and the errors of tensors that aren't known."""
    source = bind_source(model, choices)
    alpha = _alpha(options)
    factors = [name for name in source.unmapped if is_lora(name)]
    if options.merge_lora is not None:
        source = with_adapter(source, options.merge_lora, alpha, options.step)
    elif alpha is not None:
        raise UsageError(
            f"{option('lora_alpha')} applies only to an adapter: give that with "
            f"{option('merge_lora')}, or {flag('adapter')} to convert the input's own."
        )
    elif factors and not options.allow_unmapped:
        where = " in ranks" if model.ranks else ""
        ways = (
            f"Join the ranks first with {command('merge')}, or leave the factors out"
            if model.ranks
            else f"Merge them into the weights with {option('merge_lora', model.path)}, convert "
            f"them alone with {flag('adapter')}, or leave them out"
        )
        raise UnmappedTensorsError(
            f"{model.path}: holds the factors of a LoRA adapter{where}, such as "
            f"{shown(factors[0])}. {ways} with {flag('allow_unmapped')}."
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
    """Whether an input is an adapter, or only its adapter is wanted. Raises `UsageError` where
    one is to be merged into it."""
    if not options.adapter and not holds_only_factors(model):
        return False
    if options.merge_lora is not None:
        raise UsageError(
            f"{model.path}: is an adapter itself; {option('merge_lora')} adds one to a model."
        )
    return True


def adapter_job(
    verb: str,
    model: Model,
    options: Converting,
    choices: Choices,
    spread: Spread,
    target: str | None,
) -> Job:
    """The job that converts an adapter, to `target` or its family's first layout. Raises
    `UsageError` for an adapter of the other family, and what converting it raises."""
    reads, found = choices.family, "huggingface" if model.format == "peft adapter" else "mindspore"
    if reads not in (None, found) and any(map(is_lora, model.values)):
        if reads == "huggingface" and any(n.startswith("base_model.model.") for n in model.values):
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

    family, dtype = _OTHER_FAMILY.get(reads or ""), parse_target(options.dtype)
    chosen = AdapterChoices(choices, target, family, _alpha(options), dtype)
    return Job(*adapter_plan(verb, model, chosen, spread))
