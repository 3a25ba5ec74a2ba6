"""A model while it is edited: values, and the small files that say what it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ckptforge.checkpoints.huggingface import CONFIG, INDEX
from ckptforge.errors import UnmappedTensorsError, UsageError
from ckptforge.foreign.json import parse_object
from ckptforge.model import Account, Model
from ckptforge.reading.source import Source
from ckptforge.spelling import command, flag, offered
from ckptforge.surgery.along import Along
from ckptforge.surgery.factors import factor_names, factors_rebuilt
from ckptforge.surgery.lengths import first_key, single, with_lengths
from ckptforge.surgery.rebuild import Rebuilding, rebuilt
from ckptforge.surgery.rules import broken, heads_following
from ckptforge.tables.axes import Pattern
from ckptforge.tables.model_config import with_language_part
from ckptforge.tables.state import companion_prefix
from ckptforge.tables.table import Table
from ckptforge.values import Value
from ckptforge.wording import listing, nearest

OF_STATE = "optimizer state, which such an edit has none of"


def axis_of(table: Table, name: str, config: Mapping[str, Any]) -> str:
    """The axis of a table that is called so, or that a key of config.json stands for. Raises
    `UsageError` with the nearest."""
    if name in table.axes:
        return name
    alone = [
        axis
        for axis in table.axes
        if name == (single(table, axis, config) or first_key(table, axis))
    ]
    if len(alone) == 1:
        return alone[0]
    if differing := table.differing.get(name):
        raise UsageError(
            f"{name} isn't the same in all layers of this model ({', '.join(differing)}), so that "
            "an edit can't change it in all of them."
        )
    among = [axis for axis, one in table.axes.items() if name in one.text.replace("(", " ").split()]
    if len(among) == 1 and name == table.axes[among[0]].text:
        return among[0]
    if among:
        raise UsageError(
            f"{name} stands for the axes {', '.join(among)} of {table.name}, which are cut each by "
            "itself: name one of them."
        )
    keys = [key for one in table.axes.values() for key in one.choices if key.isidentifier()]
    known = ", ".join(f"{axis} ({one.text})" for axis, one in table.axes.items())
    raise UsageError(
        f"{table.name} has no axis {name!r}; it has {known}.{nearest(name, [*table.axes, *keys])}"
    )


def length_of(source: Source, axis: str) -> int:
    """The length of an axis. Raises `UsageError` where nothing tells it."""
    found = source.binding.sizes.get(axis)
    if found is None:
        raise UsageError(
            f"{source.model.path}: the length of axis {axis} ({source.table.axes[axis].text}) "
            "isn't known: no config.json says it, and the shapes don't."
        )
    return found


def changed(
    source: Source,
    changes: Mapping[str, Along],
    config: Mapping[str, Any],
    wrong: Sequence[str] = (),
    stateful: bool = True,
) -> tuple[Model, list[str]]:
    """(the model after a change of axes, what config.json can't say of it); `config` is what it
    says of all that isn't a length, `wrong` what it can't say of that. Raises `UsageError` for
    tensors that can't follow."""
    binding, model = source.binding, source.model
    factors = factor_names(binding, source.unmapped)
    refuse_unmapped(source, factors)
    if factors and any(along.weighted for along in changes.values()):
        raise UsageError(
            f"{model.path}: holds the factors of a LoRA adapter, such as {next(iter(factors))}, "
            "and a mean of factors isn't that of their products: merge the adapter first."
        )
    for tensor, axis in source.table.integers.items():
        if axis in changes and binding.holds(tensor):
            raise UsageError(
                f"{model.path}: {tensor} holds numbers of axis {axis} "
                f"({source.table.axes[axis].text}), which would be those of others then."
            )
    work = Rebuilding(values=model.values, changes=changes)
    _refuse_unknown_places(source, changes)
    passed = {name: model.values[name] for name in binding.passed}
    values = {**rebuilt(binding, work), **dict(factors_rebuilt(binding, factors, work)), **passed}
    account = model.account.leaving("recomputed by the network", tuple(binding.ignored))
    state, optimizer, account = _state(source, work, factors, stateful, account)
    values |= state
    after = work.lengths(binding.sizes.lengths)
    said, unsaid = with_lengths(source.table, config, after, [*changes])
    made = replace(model, values=values, account=account, optimizer=optimizer)
    if not source.config:
        return made, []
    if not any("num_key_value_heads" in one.text for one in source.table.axes.values()):
        said |= heads_following(said, config)
    return with_config(source, made, said), [*wrong, *unsaid, *broken(said, source.config)]


def _state(
    source: Source,
    work: Rebuilding,
    factors: Mapping[str, Pattern],
    stateful: bool,
    account: Account,
) -> tuple[dict[str, Value], frozenset[str], Account]:
    """(optimizer state and counters after a change, those of them that lie in files of state, the
    account with what is left out)."""
    binding, model = source.binding, source.model
    known = {name for names in binding.names.values() for name in names.values()} | set(factors)
    known.update(binding.passed)
    values: dict[str, Value] = {}
    optimizer: set[str] = set()
    for prefix in dict.fromkeys(filter(None, map(companion_prefix, source.state))):
        names = tuple(name for name in source.state if name.startswith(prefix))
        if not stateful:
            account = account.leaving(OF_STATE, names)
            continue
        own = replace(work, prefix=prefix)
        made = {**rebuilt(binding, own), **dict(factors_rebuilt(binding, factors, own))}
        passed = (prefix + name for name in binding.passed)
        made |= {name: model.values[name] for name in passed if name in model.values}
        values |= made
        optimizer |= made.keys() if model.optimizer.intersection(names) else set()
        lost = tuple(name for name in names if name.removeprefix(prefix) not in known)
        account = account.leaving("optimizer state of tensors that are left out", lost)
    for name in source.state:
        if companion_prefix(name) is not None:
            continue
        if model.values[name].elements > 1:
            account = account.leaving("state of which nothing says the axes", (name,))
            continue
        values[name] = model.values[name]
        optimizer |= model.optimizer & {name}
    return values, frozenset(optimizer), account


def _refuse_unknown_places(source: Source, changes: Mapping[str, Along]) -> None:
    """Raises `UsageError` for an axis that tensors may have somewhere which pass through."""
    binding, table = source.binding, source.table
    beside = next(iter(binding.beside), None)
    for axis in changes if beside is not None else ():
        if any(axis in axes for axes in table.passed.values()):
            raise UsageError(
                f"{source.model.path}: where {beside} has axis {axis} "
                f"({table.axes[axis].text}) isn't known to the mapping {table.name}, so that it "
                "can't be edited."
            )


def refuse_unmapped(source: Source, known: Collection[str] = ()) -> None:
    """Raises `UnmappedTensorsError` where nobody knows which axes some tensors have."""
    unmapped = [name for name in source.unmapped if name not in known]
    if names := [*unmapped, *source.activations]:
        raise UnmappedTensorsError(
            f"{source.model.path}: which axes these tensors have isn't known to the mapping "
            f"{source.table.name}:\n{listing(names)}\nLeave them out "
            f"{'with' if offered('allow_unmapped') else 'first, with'} {flag('allow_unmapped')}"
            f"{'' if offered('allow_unmapped') else ' of ' + command('edit')}."
        )


def with_config(source: Source, model: Model, config: Mapping[str, Any]) -> Model:
    """The model with another config.json beside it; the very same where it says the same."""
    side = source.hugging_face
    card = dict(model.card if model.card is not None else side.files if side is not None else {})
    card.pop(INDEX, None)
    if CONFIG in card and config != source.config:
        whole = parse_object(card[CONFIG], CONFIG, constants=True)
        if source.table.of_the_whole(whole):
            config = with_language_part(whole, source.config, config)
        card[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return replace(model, card=card)


def rotated(source: Source, axis: str) -> list[str]:
    """Axes whose indexes RoPE turns: which turns how far follows from their number."""
    constants = source.table.constants.of(source.config)
    rope = None if constants is None else constants.rope
    if rope is None:
        return []
    keys = {word for choice in source.table.axes[axis].choices[:1] for word in choice.split()}
    dims = {word for choice in rope.dim.choices[:1] for word in choice.split()}
    if not keys & dims:
        return []
    return [f"axis {axis} is turned by RoPE, by the numbers of its indexes ({rope.dim.text})"]
