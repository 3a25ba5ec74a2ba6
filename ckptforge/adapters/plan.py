"""The plan that converts an adapter: PEFT's directory to MindSpore's names, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from ckptforge.adapters import peft
from ckptforge.adapters.adapter import Adapter, read_adapter, read_kept
from ckptforge.adapters.adapter_layout import adapter_tables, telling
from ckptforge.adapters.converting import Converted, convert_adapter
from ckptforge.adapters.target import PeftTarget, holds
from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.dtypes import DType
from ckptforge.errors import CkptforgeError, ModelUnknownError, UsageError
from ckptforge.model import Account, Model
from ckptforge.planning.plan import Plan
from ckptforge.reading.known import Choices, read_model_config
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.shipped import candidate_tables
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.targets.target import Target, facts_of, plan_for


class Places(Protocol):
    """How a user wants the tensors spread over files."""

    @property
    def out(self) -> Path:
        """The file or directory that is named."""

    @property
    def cut(self) -> bool:
        """Whether they are to be cut into ranks."""

    def place(self, model: Model, compute: Any) -> Target:
        """The target; `compute` makes the strategy of a parallel configuration."""


@runtime_checkable
class DescribesAdapter(Protocol):
    """A target that says beside the tensors of an adapter what it is."""

    def with_adapter(self, names: Sequence[str], rank: int, alpha: float) -> Target:
        """The target for an adapter with these tensors."""


class AdapterPlan(NamedTuple):
    """A plan, the table and the layout of what it writes, and what is kept for the way back."""

    plan: Plan
    table: Table
    layout: Layout
    side: HuggingFaceSide | None


_Found = tuple[Adapter, Layout, Converted]


class AdapterChoices(msgspec.Struct, frozen=True):
    """What a user says of an adapter, beside what is said `of_input`: the layout that it is to
    have, its alpha, the dtype; `family` is what the command writes, of which the table's first
    layout is meant where no `target` is named."""

    of_input: Choices
    target: str | None
    family: str | None
    alpha: float | None
    dtype: DType | None


def adapter_plan(verb: str, model: Model, choices: AdapterChoices, spread: Places) -> AdapterPlan:
    """Plans the conversion of an adapter. Raises the errors of reading and converting an adapter,
    and `ModelUnknownError` where it would be another for another model."""
    adapter, target, converted = _convert(model, choices)
    rank, scale = converted.rank, converted.scale
    account = _account(model, adapter)
    if target.family == "mindspore":
        assert rank is not None and scale is not None
        account = account.noting(*adapter.table.mindspore_layout(choices.target)[1])
        place, side = spread.place(model, _no_strategy), _side(adapter, rank, scale)
        if isinstance(place, DescribesAdapter):
            place = place.with_adapter(tuple(converted.values), rank, scale * rank)
        said = f"set lora_rank: {rank} and lora_alpha: {scale * rank:.15g} in the job's pet_config."
    else:
        if spread.cut:
            raise UsageError(
                f"{target.name} is a Hugging Face layout, which has no ranks; omit the strategy."
            )
        place, side, said = PeftTarget(spread.out, adapter, converted), None, None
    facts = {
        **facts_of(model, adapter.table.name, adapter.layout.name, target.name, choices.dtype),
        "lora_rank": rank,
        "lora_alpha": None if scale is None or rank is None else scale * rank,
    }
    plan = plan_for(verb, replace(model, values=converted.values, account=account), place, facts)
    if said is not None:
        plan = replace(plan, account=plan.account.noting(said))
    return AdapterPlan(plan, adapter.table, target, side)


def _account(model: Model, adapter: Adapter) -> Account:
    """What is said of an adapter, and what of its files isn't it."""
    skipped = adapter.kept.side.skipped if adapter.kept.side is not None else ()
    account = model.account.noting(*adapter.notes, *skipped)
    # those of stacked experts are parts of what is stored, under its name
    origins = (factor.origin for one in adapter.factors for factor in (one.a, one.b))
    factors = {(origin.path, origin.name) for origin in origins}
    along = {value.origin for value in adapter.whole.values()}
    for name, value in model.values.items():
        if (value.origin.path, value.origin.name) in factors:
            continue
        base = "weights of the base model" if value.origin in along else "not of the adapter"
        reason = "optimizer state and counters" if is_state(name) else base
        account = account.leaving(reason, (name,))
    return account


def _no_strategy(_: Any) -> Any:
    raise UsageError(
        "an adapter can't be cut by a parallel configuration; give the strategy of its job."
    )


def _convert(model: Model, choices: AdapterChoices) -> _Found:
    said, kept = choices.of_input, read_kept(model)
    config, where = ({}, CONFIG) if said.config is None else read_model_config(said.config)
    tables, named = candidate_tables(said.mapping), said.model
    candidates = adapter_tables(
        tables, model.path, model.values, config.get("model_type"), named, kept.model
    )
    wanted, family = choices.target, choices.family or ""
    able = [t for t in candidates if (wanted in t.layouts if wanted else t.names_of(family))]
    found: list[_Found] = []
    errors: list[CkptforgeError] = []
    for table in able or candidates:
        try:
            target = table.layout(wanted) if wanted else table.first_layout(family)
            if choices.family not in (None, target.family):
                raise UsageError(
                    f"{target.name} is a layout of {target.family}, which isn't written here."
                )
            sizes = AxisSizes()
            sizes.learn_config(table, config, where)
            adapter = read_adapter(model, kept, table, sizes.lengths, choices.alpha, said.layout)
            _learn_shapes(sizes, adapter)
            found.append((adapter, target, convert_adapter(adapter, target, sizes, choices.dtype)))
        except CkptforgeError as error:
            errors.append(error)
    if not found:
        raise telling(errors)
    first = list(found[0][2].values.items())
    if any(list(one.values.items()) != first for _, _, one in found):
        raise ModelUnknownError(
            f"{model.path}: the adapter fits the models "
            f"{', '.join(adapter.table.name for adapter, _, _ in found)}, whose layouts "
            f"({', '.join(dict.fromkeys(target.name for _, target, _ in found))}) hold it in "
            f"different ways; name its own with {option('model')}, or give its config.json with "
            f"{option('config')}."
        )
    return found[0]


def _learn_shapes(sizes: AxisSizes, adapter: Adapter) -> None:
    """Checks the factors' shapes against each other and against config.json."""
    shapes: list[tuple[Pattern, str, tuple[int, ...]]] = []
    for one in adapter.factors:
        weight = one.weight.weight
        columns = Pattern(weight.template, weight.axes[1:], weight.tensors)
        shapes += [
            (one.weight.rows, one.b.origin.name, (one.height,)),
            (columns, one.a.origin.name, (one.columns,)),
        ]
    sizes.learn_shapes(shapes)


def _side(adapter: Adapter, rank: int, scale: float) -> HuggingFaceSide | None:
    """What is kept for the way back, with an adapter_config.json that holds for what is written."""
    if adapter.kept.side is None or adapter.kept.config is None:
        return None
    if holds(adapter.kept.config, rank, scale):
        return adapter.kept.side
    changed = peft.config_json((), rank, scale * rank, adapter.kept.config)
    return replace(adapter.kept.side, files={**adapter.kept.side.files, peft.CONFIG: changed})
