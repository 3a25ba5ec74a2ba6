"""One model of several: tensors of the same name are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from ckptforge.errors import LayoutError, MissingTensorsError, UsageError
from ckptforge.formats.index import FileIndex
from ckptforge.model import Account, Model
from ckptforge.spelling import option
from ckptforge.surgery.sums import Mix
from ckptforge.surgery.weights import Role, Weights
from ckptforge.tables.state import companion_prefix, state_of
from ckptforge.values import Term
from ckptforge.wording import counted, listing

Combine = Callable[[Mix], tuple[Term, ...]]


class Weighted(msgspec.Struct, frozen=True, kw_only=True):
    """An input of an average, and how much it counts."""

    model: Model
    weights: Weights


def mixes(
    inputs: Sequence[Weighted], roles: Mapping[str, Role], base: Model | None, scale: float
) -> dict[str, Mix]:
    """Name → what is to be averaged, of all weights; optimizer state, counters and what isn't of
    floating-point numbers are none. Raises `MissingTensorsError` and `LayoutError`, naming both
    sides, where the inputs aren't the same model."""
    models = [one.model for one in inputs] + ([base] if base is not None else [])
    first, *others = models
    for other in others:
        _refuse_other(first, other)
    found = {}
    for name, value in first.values.items():
        if state_of(first, name) or not value.dtype.floating:
            continue
        role = roles.get(name) or Role(kinds=(name,))
        found[name] = Mix(
            name=name,
            kind="+".join(role.kinds) if name in roles else value.kind,
            values=tuple(one.model.values[name] for one in inputs),
            weights=tuple(one.weights.of(name, role) for one in inputs),
            base=None if base is None else base.values[name],
            scale=scale,
        )
    return found


def average(
    inputs: Sequence[Weighted], base: Model | None, found: Mapping[str, Mix], combine: Combine
) -> Model:
    """The first model with the averages of all in the place of its weights, in the dtypes of the
    first. Integers and counters are the last's; optimizer state is left out."""
    first, last = inputs[0].model, inputs[-1].model
    values = {}
    kept: list[str] = []
    for name, value in first.values.items():
        if name in found:
            values[name] = replace(value, terms=combine(found[name]), kind=found[name].kind)
        elif not _is_optimizers(first, name):
            values[name] = last.values.get(name, value)
            kept.append(name)
    models = [one.model for one in inputs]
    files = files_of([*models, *([base] if base is not None else [])])
    account = _account(models, kept)
    return replace(first, values=values, files=files, account=account, optimizer=frozenset())


def files_of(models: Sequence[Model]) -> tuple[FileIndex, ...]:
    """The files of several models, each once."""
    return tuple({file.path: file for model in models for file in model.files}.values())


def _refuse_other(first: Model, other: Model) -> None:
    """Raises where two models haven't the same weights."""
    mine, theirs = (
        {name: value for name, value in model.values.items() if not state_of(model, name)}
        for model in (first, other)
    )
    for a, b, names in ((first, other, mine.keys() - theirs), (other, first, theirs.keys() - mine)):
        if names:
            raise MissingTensorsError(
                f"{a.path} and {b.path} aren't the same model: {counted(len(names), 'tensor')} "
                f"of the first, by name, not in the second:\n{listing(sorted(names))}"
            )
    for name, value in mine.items():
        if value.shape != theirs[name].shape:
            raise LayoutError(
                f"{name} is {list(value.shape)} in {first.path}, but {list(theirs[name].shape)} in "
                f"{other.path}: only checkpoints of one model can be averaged.",
                (name,),
            )


def _is_optimizers(model: Model, name: str) -> bool:
    return name in model.optimizer or companion_prefix(name) is not None


def _account(models: Sequence[Model], kept: Sequence[str]) -> Account:
    account = Account(
        notes=tuple(dict.fromkeys(note for model in models for note in model.account.notes)),
        must_equal={
            pair: both for model in models for pair, both in model.account.must_equal.items()
        },
    )
    for model in models[:1]:
        for reason, names in model.account.left_out.items():
            account = account.leaving(reason, names)
        state = tuple(name for name in model.values if _is_optimizers(model, name))
        account = account.leaving("optimizer state, of which an average has none", state)
    if kept:
        some = f"{kept[0]}" + (f" and {len(kept) - 1} more" if len(kept) > 1 else "")
        account = account.noting(
            f"integers and counters are those of the last input, {models[-1].path}: {some}."
        )
    return account


def check_method(method: str, count: int, base: bool) -> None:
    """Raises `UsageError` for a method that these inputs aren't for."""
    if method == "slerp" and (count != 2 or base):
        raise UsageError(
            f"{option('method', 'slerp')} goes from one checkpoint to another: give two, and no "
            "base."
        )
    if method == "dare" and not base:
        raise UsageError(
            f"{option('method', 'dare')} drops differences from a base: name it with "
            f"{option('base')}."
        )
