"""compare: whether two checkpoints, of any formats, layouts and splits, are the same model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace as choices_with

from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.dtypes import DType, parse_target
from ckptforge.errors import (
    CkptforgeError,
    LayoutError,
    MissingTensorsError,
    ModelUnknownError,
    QuantisedError,
    UsageError,
    brief,
    counted,
    shown,
)
from ckptforge.examine.differences import Difference, differing, unlike
from ckptforge.model import Model
from ckptforge.reading.source import Choices, Source, bind_source, known_of
from ckptforge.reading.state import state_in
from ckptforge.reading.tied import differing as differing_ties
from ckptforge.reading.tied import notes as tied_notes
from ckptforge.reading.tied import stored_heads, tied
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress
from ckptforge.surgery.cast import cast
from ckptforge.tables.constants import Used, differing_constants
from ckptforge.tables.convert import convert, uncast_note
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.state import is_state
from ckptforge.tables.table import names_that_keep_dtype
from ckptforge.targets.huggingface import parse_size
from ckptforge.values import Value
from ckptforge.verbs.explain import Differs, causes, pairs_of, rounded
from ckptforge.verbs.options import Compare
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import in_ranks, open_ranks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorDifference:
    """A tensor of B that isn't what A makes it: `what` in words, and the figures where both have
    its shape.

    `index` is the first that differs in B's tensor, `source` and `source_index` A's tensor and
    index there (in a shard: of the shard).
    """

    name: str
    what: str
    dtypes: tuple[str, str]
    elements: int = 0
    count: int = 0
    max_abs: float = 0.0
    relative_l2: float | None = None
    nonfinite: int = 0
    index: tuple[int, ...] | None = None
    source: str | None = None
    source_index: tuple[int, ...] | None = None


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found. `equal`: every tensor has the same bits, or the same values after the
    named cast, and the constants of the configs are the same.

    `constants` are the keys of config.json by which A and B compute something else, with A's value
    and B's, absent ones filled in as transformers does; those of rope_parameters are called
    rope_scaling.KEY too. `through` is the mapping that tensors were compared through, None where
    they were compared by their names; `causes` are likely reasons for the differences, in words.
    """

    a: str
    b: str
    through: str | None
    layouts: tuple[str | None, str | None]
    after_cast: str | None
    tensors: int
    bytes: int
    equal: bool
    differences: list[TensorDifference]
    only_in_a: list[str]
    only_in_b: list[str]
    constants: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.equal

    def __repr__(self) -> str:
        found = (
            "equal"
            if self.equal
            else f"different, {counted(len(self.differences), 'tensor')} of {self.tensors}"
        )
        return f"<Comparison of {brief(self.a)} and {brief(self.b)}: {found}>"

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.equal, "verb": "compare", **asdict(self)}


@dataclass(frozen=True)
class _Side:
    model: Model
    choices: Choices
    source: Source | None
    reason: str = ""


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
    memory = None if options.memory is None else parse_size(options.memory, "memory")
    budget = Budget.of(options.workers, memory)
    shared: dict[str, Any] = {
        "model": options.model,
        "mapping": options.mapping,
        "config": options.config,
        "trim_vocab": options.trim_vocab,
    }
    cut_a: dict[str, Any] = {
        "strategy": options.strategy_dir_a,
        "parallel_config": options.parallel_config_a,
    }
    cut_b: dict[str, Any] = {
        "strategy": options.strategy_dir_b,
        "parallel_config": options.parallel_config_b,
    }
    one = _open(
        options.a,
        Choices(
            **shared, **cut_a, layout=options.layout_a, layout_option="layout_a", option="{}_a"
        ),
    )
    other = _open(
        options.b,
        Choices(
            **shared, **cut_b, layout=options.layout_b, layout_option="layout_b", option="{}_b"
        ),
    )
    after_cast, weights_only = options.after_cast, options.weights_only
    progress = options.progress
    dtype = parse_target(after_cast, "after_cast")
    if (
        one.source is None
        or other.source is None
        or one.source.table.name != other.source.table.name
    ):
        return _by_name(one, other, dtype, after_cast, weights_only, budget, progress)
    if other.source.quantised and other.source.quantised == one.source.quantised:
        found_by_name = _by_name(one, other, dtype, after_cast, weights_only, budget, progress)
        constants, _ = _constants(one.source, other.source)
        constants |= _heads(one.source, other.source, budget)
        return replace(
            found_by_name, constants=constants, equal=found_by_name.equal and not constants
        )
    if other.source.quantised:
        raise UsageError(
            f"{options.b}: its weights are quantised, which is undone in A only: name it first, "
            "or, where both are quantised in different ways, convert it."
        )
    _share_sizes(one.source, other.source)
    values, left_a, left_b, notes = _through_mapping(one.source, other.source, dtype, weights_only)
    left_a += [
        f"{copy}, which isn't the copy of {name} that it should be"
        for copy, name in unlike(one.source.model.account.must_equal, budget).items()
    ]
    if needless := _needless(other.source, left_b, budget):
        left_b = [name for name in left_b if name not in needless]
        notes.append(
            f"only B holds {', '.join(needless)}, which config.json ties to the embedding, and "
            "which is the same."
        )
    elif one.source.binding.layout is other.source.binding.layout and (
        needless := _needless(one.source, left_a, budget)
    ):
        left_a = [name for name in left_a if name not in needless]
        notes.append(
            f"only A holds {', '.join(needless)}, which config.json ties to the embedding, and "
            "which is the same."
        )
    layouts = (one.source.binding.layout.name, other.source.binding.layout.name)
    _log.info(
        "comparing %s of B through %s, %s with %s",
        counted(len(values), "tensor"),
        one.source.table.name,
        *layouts,
    )
    found, equal_bytes = _differences(values, other.source.model.values, budget, progress)
    reasons = causes(one.source, other.source, _differs(found), dtype, budget)
    constants, unknown = _constants(one.source, other.source)
    constants |= _heads(one.source, other.source, budget)
    for side in (one.source, other.source):
        unknown += [f"{side.model.path}: {note}" for note in tied_notes(tied(side), budget)]
    return Comparison(
        str(options.a),
        str(options.b),
        one.source.table.name,
        (one.source.binding.layout.name, other.source.binding.layout.name),
        after_cast,
        len(values),
        equal_bytes,
        not (found or left_a or left_b or constants),
        found,
        left_a,
        left_b,
        constants,
        reasons,
        [*one.source.model.notes, *other.source.model.notes, *notes, *unknown],
    )


def _open(path: Path, choices: Choices) -> _Side:
    checkpoint = open_ranks(path, choices) if in_ranks(path, choices) else open_checkpoint(path)
    if choices.config is not None and _config_of(
        checkpoint, without := choices_with(choices, config=None)
    ):
        choices = without  # what lies beside a side, or in its manifest, is its own
    try:
        return _Side(checkpoint, choices, bind_source(checkpoint, choices))
    except (ModelUnknownError, MissingTensorsError, QuantisedError) as error:
        if choices.layout is not None or choices.model is not None or choices.mapping is not None:
            raise
        return _Side(checkpoint, choices, None, str(error))


def _config_of(model: Model, choices: Choices) -> Mapping[str, Any]:
    """The config.json of a checkpoint, empty where none is known."""
    try:
        return known_of(model, choices).described
    except CkptforgeError:
        return {}


def _share_sizes(one: Source, other: Source) -> None:
    """What either side knows of the axes, both know. Raises `LayoutError` where they contradict:
    other models."""
    for mine, theirs in ((one, other), (other, one)):
        for axis, (size, reason) in theirs.binding.sizes.known.items():
            try:
                mine.binding.sizes.learn(axis, size, reason)
            except LayoutError as error:
                raise LayoutError(
                    f"{one.model.path} and {other.model.path} are models of different sizes: "
                    f"{error}"
                ) from error


def _constants(one: Source, other: Source) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """(constants of config.json that differ, a note where they can't be compared)."""
    listed = one.table.constants.listed
    names = [constant.name for constant in listed]
    used = [_used(source) for source in (one, other)]
    names += [key for side in used[:1] if side is not None for key in side.constants.defaults]
    if not names:
        return {}, []
    if lacking := [side for side, source in (("A", one), ("B", other)) if not source.config]:
        return {}, [
            f"no config.json is known of {' and '.join(lacking)}, so {', '.join(names[:3])} and "
            "the like weren't compared."
        ]
    values = {
        constant.name: (constant.value(one.config), constant.value(other.config))
        for constant in listed
    }
    found = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    mine, theirs = used
    return found | ({} if mine is None or theirs is None else differing_constants(mine, theirs)), []


def _used(source: Source) -> Used | None:
    constants = source.table.constants.of(source.config)
    if constants is None:
        return None
    pipeline = source.table.pipeline
    layers = source.binding.sizes.get(pipeline.layers[0][0]) if pipeline is not None else None
    return Used(constants=constants, config=source.config, layers=layers or 0)


def _heads(one: Source, other: Source, budget: Budget) -> dict[str, tuple[bool, bool]]:
    """Keys of config.json by which one side uses another tensor in place of a stored one that
    differs from it, and the other side doesn't: key → whether it says so in A and in B."""
    ties = [{pair.key: pair for pair in tied(side)} for side in (one, other)]
    found = {}
    for key in ties[0].keys() ^ ties[1].keys():
        if all(
            side.config and key in stored_heads(side) for side in (one, other)
        ) and differing_ties(tuple(pair[key] for pair in ties if key in pair), budget):
            found[key] = key in ties[0], key in ties[1]
    return found


def _needless(source: Source, names: Sequence[str], budget: Budget) -> list[str]:
    """Those of the names that are heads which config.json ties to the embedding, and that hold the
    same."""
    pairs = tuple(pair for pair in tied(source) if pair.name in names)
    unequal = {pair.name for pair in differing_ties(pairs, budget)}
    return [pair.name for pair in pairs if pair.name not in unequal]


class _Through(NamedTuple):
    """A in B's layout: the tensors that both have, names that only one has, and notes."""

    values: dict[str, Value]
    only_a: list[str]
    only_b: list[str]
    notes: list[str]


def _through_mapping(
    one: Source, other: Source, dtype: DType | None, weights_only: bool
) -> _Through:
    target, copies = other.binding.layout, other.binding.copies
    mine, theirs = one.model.values, other.model.values
    made, uncast = convert(
        one.binding, target, mine, dtype, copied=copies.__contains__, partly=True
    )
    stored = {*copies, *(name for names in other.binding.names.values() for name in names.values())}
    only_b = [*other.unmapped, *sorted(stored - made.keys())]
    only_a = [*one.unmapped, *sorted(made.keys() - stored)]
    values = {name: value for name, value in made.items() if name in stored}
    notes = []
    state_a, state_b = ([] if weights_only else list(source.state) for source in (one, other))
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
        values |= {name: value for name, value in state.items() if name in theirs}
    return _Through(values, only_a, only_b, [*uncast_note(uncast, dtype, "after_cast"), *notes])


def _by_name(
    one: _Side,
    other: _Side,
    dtype: DType | None,
    after_cast: str | None,
    weights_only: bool,
    budget: Budget,
    progress: Progress | None,
) -> Comparison:
    mine, theirs = one.model.values, other.model.values
    names = [name for name in mine if name in theirs and not (weights_only and is_state(name))]
    if not names:
        reasons = "\n".join(side.reason for side in (one, other) if side.reason)
        raise ModelUnknownError(
            f"{one.model.path} and {other.model.path} have no tensor name in common, and no "
            "mapping knows both" + (f":\n{reasons}" if reasons else ".")
        )
    kept = names_that_keep_dtype(shipped_tables(), names) if dtype is not None else frozenset()
    values, uncast = cast({name: mine[name] for name in names}, dtype, kept)
    _log.info("comparing %s by name, as no mapping knows both sides", counted(len(names), "tensor"))
    only_a, only_b = (
        [name for name in x if name not in y and not (weights_only and is_state(name))]
        for x, y in ((mine, theirs), (theirs, mine))
    )
    found, count = _differences(values, theirs, budget, progress)
    said = uncast_note(uncast, dtype, "after_cast")
    notes = [*one.model.notes, *other.model.notes, *said, "compared by name, without a mapping."]
    scales = _scales(one.model.path, other.model.path)
    configs, uncompared = _configs(one, other)
    scales, notes = {**scales, **configs}, [*notes, *uncompared]
    return Comparison(
        str(one.model.path),
        str(other.model.path),
        None,
        (None, None),
        after_cast,
        len(names),
        count,
        not (found or only_a or only_b or scales),
        found,
        only_a,
        only_b,
        scales,
        causes=rounded(_differs(found), values, theirs, dtype, budget),
        notes=notes,
    )


_SAYS_NOTHING = {
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "use_cache",
    "auto_map",
}


def _configs(one: _Side, other: _Side) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Of two checkpoints that no mapping knows: model types that differ, and a note of other keys
    of config.json that do."""
    if (
        one.source is not None
        and other.source is not None
        and one.source.table is other.source.table
    ):
        return {}, []
    a, b = (_config_of(side.model, side.choices) for side in (one, other))
    if not a and not b:
        return {}, []
    if not a or not b:
        return {}, [
            f"no config.json is known of {'B' if a else 'A'}, so the configs weren't compared."
        ]
    keys = sorted(
        key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and key not in _SAYS_NOTHING
    )
    found = {key: (a.get(key), b.get(key)) for key in keys if key == "model_type"}
    rest = [key for key in keys if key not in found]
    listed = ", ".join(map(shown, rest[:8])) + (
        f" and {len(rest) - 8} more" if len(rest) > 8 else ""
    )
    note = (
        f"config.json differs in {listed}; without a mapping it isn't known which of them change "
        "what is computed."
    )
    return found, [note] if rest else []


def _scales(one: Path, other: Path) -> dict[str, tuple[Any, Any]]:
    """What two PEFT adapters say differently of what their products are multiplied with."""
    from ckptforge.adapters import peft

    if not (peft.is_adapter(one) and peft.is_adapter(other)):
        return {}
    a, b = (peft.read_config(path)[1].content for path in (one, other))
    keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    return {
        key: (a.get(key), b.get(key))
        for key in keys
        if (a.get(key) or None) != (b.get(key) or None)
    }


def _differences(
    mine: Mapping[str, Value],
    theirs: Mapping[str, Value],
    budget: Budget,
    progress: Progress | None,
) -> tuple[list[TensorDifference], int]:
    """(what differs of A's tensors from B's of the same names, in the order of B, bytes of B that
    were compared)."""
    found: dict[str, TensorDifference] = {}
    comparable = []
    for name, value in mine.items():
        other = theirs[name]
        dtypes = (value.dtype.name, other.dtype.name)
        if other.shape != value.shape:
            what = f"shape {list(value.shape)} in A, {list(other.shape)} in B"
            found[name] = TensorDifference(name, what, dtypes)
            continue
        comparable.append(name)
        if value.dtype != other.dtype and not (value.dtype.floating and other.dtype.floating):
            what = f"dtype {dtypes[0]} in A, {dtypes[1]} in B"
            found[name] = TensorDifference(name, what, dtypes)
    unequal = differing(pairs_of(comparable, mine, theirs), budget, progress)
    for name in comparable:
        dtypes = (mine[name].dtype.name, theirs[name].dtype.name)
        if name in unequal:
            found[name] = _described(name, dtypes, unequal[name])
        elif dtypes[0] != dtypes[1] and name not in found:
            what = f"the same values, but {dtypes[0]} in A and {dtypes[1]} in B"
            found[name] = TensorDifference(name, what, dtypes)
    order = {name: i for i, name in enumerate(theirs)}
    return sorted(found.values(), key=lambda difference: order[difference.name]), sum(
        theirs[name].nbytes for name in comparable
    )


def _differs(found: Sequence[TensorDifference]) -> list[Differs]:
    return [Differs(difference.name, difference.count) for difference in found]


def _described(name: str, dtypes: tuple[str, str], difference: Difference) -> TensorDifference:
    source, index = difference.first_source or (None, None)
    return TensorDifference(
        name,
        "values differ",
        dtypes,
        difference.elements,
        difference.count,
        difference.max_abs,
        difference.relative_l2,
        difference.nonfinite,
        difference.first,
        source,
        index,
    )
