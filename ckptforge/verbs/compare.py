"""compare: whether two checkpoints, of any formats, layouts and splits, are the same model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from ckptforge.dtypes import DType
from ckptforge.errors import (
    CkptforgeError,
    LayoutError,
    MissingTensorsError,
    ModelUnknownError,
    QuantisedError,
    UsageError,
)
from ckptforge.examine.block_errors import BlockError, block_errors
from ckptforge.examine.differences import unlike
from ckptforge.model import Model
from ckptforge.quantisation.scale_blocks import scale_block
from ckptforge.reading.known import Choices, known_of
from ckptforge.reading.source import Source, bind_source
from ckptforge.reading.state import state_in
from ckptforge.reading.tied import differing as differing_ties
from ckptforge.reading.tied import notes as tied_notes
from ckptforge.reading.tied import tied
from ckptforge.run.budget import Budget
from ckptforge.spelling import called, flag
from ckptforge.surgery.cast import cast
from ckptforge.tables.convert import convert, uncast_note
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.state import is_state
from ckptforge.tables.table import names_that_keep_dtype
from ckptforge.values import Value
from ckptforge.verbs import compared_configs as configs
from ckptforge.verbs.choices import SIDE_A, SIDE_B, Names, budget_of, choices_of
from ckptforge.verbs.comparison import Comparison, differences
from ckptforge.verbs.explain import Differs, causes, rounded
from ckptforge.verbs.options import Compare
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import open_whole
from ckptforge.wording import counted

_log = logging.getLogger(__name__)


class _Side(NamedTuple):
    """A checkpoint, and what it was read as; else the reason why it wasn't."""

    model: Model
    choices: Choices
    source: Source | None
    reason: str = ""


class _Matched(NamedTuple):
    """The tensors that both have, as A makes them and as B has them, and what differs."""

    mine: dict[str, Value]
    theirs: Mapping[str, Value]
    only_a: list[str]
    only_b: list[str]
    constants: dict[str, tuple[Any, Any]]
    notes: list[str]


@verb(Compare)
def compare(options: Compare) -> Comparison:
    """Compares two checkpoints of any format, layout and split, tensor by tensor, bit by bit.
    Returns a `Comparison`.

    A is brought into B's layout in passing; the `Comparison` is true where both are equal. Where no
    mapping knows the models, tensors are compared by name. Optimizer state counts where both sides
    have some.

    Raises `InputNotFoundError` and `FormatError` for what can't be read, `ConfigError` for a
    config.json that is wrong, `LayoutError` for a layout that is ambiguous and for models of
    different sizes, `ModelUnknownError` and `MissingTensorsError` where a model, mapping or layout
    that was named doesn't fit, `TableError` for the mapping, and `UsageError` for arguments that
    can't be. A difference is no error.
    """
    budget = budget_of(options)
    dtype = parse_target(options.after_cast, "after_cast")
    one, other = _open(options.a, options, SIDE_A), _open(options.b, options, SIDE_B)
    pair = _of_one_table(one, other, options.dequantise)
    matched = (
        _by_name(one, other, dtype, options, budget)
        if pair is None
        else _through_mapping(*pair, dtype, options, budget)
    )
    mine, theirs = matched.mine, matched.theirs
    found, equal_bytes = differences(mine, theirs, budget, options.progress)
    differ = [Differs(difference.name, difference.count) for difference in found]
    return Comparison(
        a=str(options.a),
        b=str(options.b),
        through=None if pair is None else pair[0].table.name,
        layouts=(None, None)
        if pair is None
        else (pair[0].binding.layout.name, pair[1].binding.layout.name),
        after_cast=options.after_cast,
        tensors=len(mine),
        bytes=equal_bytes,
        equal=not (found or matched.only_a or matched.only_b or matched.constants),
        differences=found,
        only_in_a=matched.only_a,
        only_in_b=matched.only_b,
        constants=matched.constants,
        causes=rounded(differ, mine, theirs, dtype, budget)
        if pair is None
        else causes(*pair, differ, dtype, budget),
        notes=matched.notes,
        quantisation=_errors(pair[1], matched, budget) if pair and options.dequantise else [],
    )


def _errors(other: Source, matched: _Matched, budget: Budget) -> list[BlockError]:
    """How far B's quantised weights are from A's."""
    blocks: dict[str, tuple[int, int]] = {}
    for name, (_, block) in other.quantised.items():
        value = other.model.values[name]
        mine = matched.mine.get(name)
        if mine is not None and mine.shape == value.shape and len(value.shape) > 1:
            blocks[name] = scale_block(value, block) or (1, value.shape[-1])
    return block_errors(matched.mine, matched.theirs, blocks, budget)


def _open(path: Path, options: Compare, names: Names) -> _Side:
    choices = choices_of(options, names)
    with called(names):
        model = open_whole(path, choices)
        alone = replace(model, described={})  # what it says of itself may not be all
        if choices.config is not None and _config(alone, own := replace(choices, config=None)):
            choices = own  # what lies beside a side, or in its manifest, is its own
        try:
            return _Side(model, choices, bind_source(model, choices))
        except (ModelUnknownError, MissingTensorsError, QuantisedError) as error:
            if any((choices.layout, choices.model, choices.mapping)):
                raise
            return _Side(model, choices, None, str(error))


def _of_one_table(one: _Side, other: _Side, dequantise: bool) -> tuple[Source, Source] | None:
    """Both sides as models that are compared through their mapping, if they are: those that are
    quantised in one way are compared by name, unless that is to be undone. Raises `UsageError`
    where only B is quantised."""
    a, b = one.source, other.source
    if a is None or b is None or a.table.name != b.table.name:
        return None
    if dequantise:
        return a, b
    if b.quantised and a.quantised != b.quantised:
        raise UsageError(
            f"{b.model.path}: its weights are quantised, which is undone in A only: name it first, "
            f"or give {flag('dequantise')}."
        )
    return None if b.quantised else (a, b)


def _config(model: Model, choices: Choices) -> Mapping[str, Any]:
    """The config.json of a checkpoint, empty where none is known."""
    try:
        return known_of(model, choices).described
    except CkptforgeError:
        return {}


def _share_sizes(one: Source, other: Source) -> None:
    """What either side knows of the axes, both know. Raises `LayoutError` for other models."""
    for mine, theirs in ((one, other), (other, one)):
        for axis, (size, reason) in theirs.binding.sizes.known.items():
            try:
                mine.binding.sizes.learn(axis, size, reason)
            except LayoutError as error:
                raise LayoutError(
                    f"{one.model.path} and {other.model.path} are models of different sizes: "
                    f"{error}"
                ) from error


def _through_mapping(
    one: Source, other: Source, dtype: DType | None, options: Compare, budget: Budget
) -> _Matched:
    """A in B's layout."""
    _share_sizes(one, other)
    target, copies, theirs = other.binding.layout, other.binding.copies, other.model.values
    made, uncast = convert(
        one.binding, target, one.model.values, dtype, copied=copies.__contains__, partly=True
    )
    stored = {*copies, *(n for names in other.binding.names.values() for n in names.values())}
    stored.update(other.binding.passed)
    only_a = [*one.unmapped, *sorted(made.keys() - stored)]
    only_b = [*other.unmapped, *sorted(stored - made.keys())]
    mine = {name: value for name, value in made.items() if name in stored}
    notes = list(uncast_note(uncast, dtype, "after_cast"))
    state_a, state_b = ([] if options.weights_only else list(side.state) for side in (one, other))
    if bool(state_a) != bool(state_b):
        side, count = ("A", len(state_a)) if state_a else ("B", len(state_b))
        notes.append(
            f"only {side} has optimizer state and counters ({counted(count, 'tensor')}), which "
            "weren't compared."
        )
    elif state_a:
        state = state_in(one, target, state_a, partly=True)
        only_b += [name for name in state_b if name not in state]
        only_a += [name for name in state if name not in theirs]
        mine |= {name: value for name, value in state.items() if name in theirs}
    only_a += [
        f"{copy}, which isn't the copy of {name} that it should be"
        for copy, name in unlike(one.model.account.must_equal, budget).items()
    ]
    if not _drop_needless("B", other, only_b, notes, budget) and one.binding.layout is target:
        _drop_needless("A", one, only_a, notes, budget)
    constants, uncompared = configs.of_models(one, other, budget)
    for each in (one, other):
        ties = tied_notes(tied(each), budget)
        uncompared += [f"{each.model.path}: {note}" for note in ties]
    notes = [*one.model.notes, *other.model.notes, *notes, *uncompared]
    tensors, layouts = counted(len(mine), "tensor"), (one.binding.layout.name, target.name)
    _log.info("comparing %s of B through %s, %s with %s", tensors, one.table.name, *layouts)
    return _Matched(mine, theirs, only_a, only_b, constants, notes)


def _drop_needless(
    side: str, source: Source, only: list[str], notes: list[str], budget: Budget
) -> bool:
    """Takes those out of the names that only one side has that are heads which config.json ties to
    the embedding, and that hold the same. Whether there were any."""
    pairs = tuple(pair for pair in tied(source) if pair.name in only)
    unequal = {pair.name for pair in differing_ties(pairs, budget)}
    needless = [pair.name for pair in pairs if pair.name not in unequal]
    if needless:
        only[:] = [name for name in only if name not in needless]
        notes.append(
            f"only {side} holds {', '.join(needless)}, which config.json ties to the embedding, "
            "and which is the same."
        )
    return bool(needless)


def _by_name(
    one: _Side, other: _Side, dtype: DType | None, options: Compare, budget: Budget
) -> _Matched:
    a, b = (
        {n: v for n, v in side.model.values.items() if not (options.weights_only and is_state(n))}
        for side in (one, other)
    )
    names = [name for name in a if name in b]
    if not names:
        reasons = "\n".join(side.reason for side in (one, other) if side.reason)
        raise ModelUnknownError(
            f"{one.model.path} and {other.model.path} have no tensor name in common, and no "
            "mapping knows both" + (f":\n{reasons}" if reasons else ".")
        )
    kept = names_that_keep_dtype(shipped_tables(), names) if dtype is not None else frozenset()
    mine, uncast = cast({name: a[name] for name in names}, dtype, kept)
    _log.info("comparing %s by name, as no mapping knows both sides", counted(len(names), "tensor"))
    if one.source and other.source and one.source.table is other.source.table:
        constants, uncompared = configs.of_models(one.source, other.source, budget)
    else:
        described = [_config(side.model, side.choices) for side in (one, other)]
        constants, uncompared = configs.of_unknown_models(*described)
    notes = [
        *one.model.notes,
        *other.model.notes,
        *uncast_note(uncast, dtype, "after_cast"),
        "compared by name, without a mapping.",
        *uncompared,
    ]
    constants = {**configs.of_adapters(one.model.path, other.model.path), **constants}
    only_a, only_b = [name for name in a if name not in b], [name for name in b if name not in a]
    return _Matched(mine, b, only_a, only_b, constants, notes)
