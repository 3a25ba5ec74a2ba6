"""One checkpoint of several: opened, brought into one layout, averaged, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.dtypes import DType, holds
from ckptforge.errors import LayoutError
from ckptforge.model import Model
from ckptforge.surgery.average import Weighted, check_method, mixes
from ckptforge.surgery.average import average as average_of
from ckptforge.surgery.dare import dare
from ckptforge.surgery.slerp import slerp
from ckptforge.surgery.sums import Mix, linear
from ckptforge.surgery.totals import notes_on_totals
from ckptforge.surgery.weights import plain, roles_of
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import names_that_keep_dtype
from ckptforge.values import Term
from ckptforge.verbs.average_settings import Named, Settings, settings_of, weights_of
from ckptforge.verbs.choices import budget_of
from ckptforge.verbs.job import run_job
from ckptforge.verbs.model_card import carded
from ckptforge.verbs.opened import OpenedModel, opened_by
from ckptforge.verbs.options import Average
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result
from ckptforge.verbs.saving import save_of, saving_job
from ckptforge.wording import counted


@verb(Average)
def average(options: Average) -> Result:
    """Averages checkpoints of one model, of any formats, layouts and splits. Returns a `Result`.

    Each is read once; sums are made in float64 in the order given, and rounded once. Optimizer
    state is left out; integers and counters are the last one's.

    Raises `UsageError`, `InputNotFoundError`, `FormatError`, `LayoutError`, `MissingTensorsError`,
    `PlanError`, `CastOverflowError` (also where sums aren't finite) and `OutputError`; nothing is
    written then.
    """
    settings = settings_of(options)
    check_method(settings.method, len(settings.inputs), settings.base is not None)
    models = [_open(one, options) for one in settings.inputs]
    base = None if settings.base is None else _open(settings.base, options)
    models, base = _in_one_layout(models, base, settings.method)
    for one in (*models, *([] if base is None else [base])):
        one.refuse_codes("an average")
    first = models[0]
    weighted = [
        Weighted(model=one.as_model, weights=named.weights)
        for one, named in zip(models, settings.inputs, strict=True)
    ]
    roles = roles_of(first.source.binding) if first.source is not None else {}
    base_model = None if base is None else base.as_model
    found = mixes(weighted, roles, base_model, settings.scale)
    notes = notes_on_totals(found, settings.method)
    made = average_of(weighted, base_model, found, _combining(settings, found, options))
    made = made.noting(*notes)
    dtype = parse_target(options.dtype)
    if dtype is not None:
        made = _in_dtype(made, first, found, dtype)
    result = first.changed(made, _card(models))
    if options.to is not None:
        result = result.as_layout(options.to)
    facts = {
        "from": first.layout or counted(len(models), "checkpoint"),
        "source_tensors": sum(len(one) for one in models),
        "dtype": "keep" if dtype is None else dtype.name,
        "surgery": _recorded(settings),
    }
    read = result.choices if result.source is None else result.source
    job = saving_job("average", result.as_model, read, save_of(options), facts)
    return run_job(carded(job, options), options)


def sum_of(models: Sequence[OpenedModel], weights: Sequence[float] | None) -> OpenedModel:
    """The weighted sum of models, by default their mean. Raises `UsageError` for weights that
    aren't as many, not finite or all 0, and what averaging raises."""
    chosen = weights_of(weights, len(models), 1 / len(models))
    alike, _ = _in_one_layout(list(models), None, "linear")
    for one in alike:
        one.refuse_codes("an average")
    first = alike[0]
    weighted = [
        Weighted(model=one.as_model, weights=plain(weight))
        for one, weight in zip(alike, chosen, strict=True)
    ]
    roles = roles_of(first.source.binding) if first.source is not None else {}
    found = mixes(weighted, roles, None, 1.0)
    made = average_of(weighted, None, found, linear).noting(*notes_on_totals(found))
    return first.changed(made, _card(alike))


def _open(one: Named, options: Average) -> OpenedModel:
    own = {
        name: getattr(one, name) for name in ("layout", "step", "strategy_dir", "parallel_config")
    }
    return opened_by(one.path, options, {}, **own)


def _in_one_layout(
    models: list[OpenedModel], base: OpenedModel | None, method: str
) -> tuple[list[OpenedModel], OpenedModel | None]:
    """All in the first one's layout; for methods that take a tensor as a whole in the table's first
    one, so that the result doesn't depend on how the first is stored. Where no table knows one of
    them they stay as they are. Raises `LayoutError` for models of different tables."""
    every = [*models, *([base] if base is not None else [])]
    for one in every:
        if one.model not in (None, every[0].model) and every[0].model is not None:
            raise LayoutError(
                f"{one.as_model.path} is {one.model}, but {every[0].as_model.path} is "
                f"{every[0].model}: only checkpoints of one model can be averaged."
            )
    source = every[0].source
    if source is None or any(one.source is None for one in every):
        return models, base
    layout = source.binding.layout.name
    if method != "linear":
        layout = source.table.first_layout("huggingface").name
    every = [one if one.layout == layout else one.as_layout(layout) for one in every]
    return every[: len(models)], None if base is None else every[-1]


def _combining(
    settings: Settings, found: Mapping[str, Mix], options: Average
) -> Callable[[Mix], tuple[Term, ...]]:
    """How one tensor is made of the inputs'. For the arc between two their products are needed
    first, which takes a pass over both; a dry run makes none."""
    if settings.method == "dare":
        return lambda mix: dare(mix, settings.density, settings.seed)
    if settings.method == "linear" or options.dry_run:
        return linear
    from ckptforge.examine.angles import products

    pairs = {name: (mix.values[0], mix.values[1]) for name, mix in found.items()}
    angles = products(pairs, budget_of(options))
    return lambda mix: slerp(mix, angles[mix.name])


def _in_dtype(made: Model, first: OpenedModel, found: Mapping[str, Mix], dtype: DType) -> Model:
    """The averages rounded once, to another dtype; those that the table keeps stay."""
    tables = shipped_tables() if first.source is None else (first.source.table,)
    kept = names_that_keep_dtype(tables, made.values)
    values = {
        name: replace(value, dtype=dtype)
        if name in found and (name not in kept or holds(dtype, value.dtype))
        else value
        for name, value in made.values.items()
    }
    return replace(made, values=values)


def _card(models: Sequence[OpenedModel]) -> Mapping[str, bytes] | None:
    """The small files of the first that has some."""
    sides = (one.source.hugging_face for one in models if one.source is not None)
    return next((side.files for side in sides if side is not None), None)


def _recorded(settings: Settings) -> dict[str, Any]:
    """What is averaged and how, for the manifest."""
    return {"average": msgspec.to_builtins(settings, enc_hook=str)}
