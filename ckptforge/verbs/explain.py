"""compare, why checkpoints differ: another layout, moved tensors, transposed, rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ckptforge.dtypes import DType
from ckptforge.errors import CkptforgeError
from ckptforge.examine.differences import Pair, differing
from ckptforge.examine.fingerprints import fingerprints
from ckptforge.planning.lower import in_memory
from ckptforge.reading.source import Source
from ckptforge.run.budget import Budget
from ckptforge.spelling import option
from ckptforge.tables.convert import convert
from ckptforge.tables.names import recognise_names
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout
from ckptforge.values import Value
from ckptforge.verbs.options.dtypes import parse_target

_ROUNDINGS = ("fp16", "bf16")
Values = Mapping[str, Value]


class Differs(NamedTuple):
    """A tensor of B that isn't what A makes it, and how many of its numbers aren't."""

    name: str
    numbers: int


def pairs_of(names: Sequence[str], one: Values, other: Values) -> list[Pair]:
    """The tensors of these names on both sides."""
    return [Pair(in_memory(name, one[name]), in_memory(name, other[name])) for name in names]


def causes(
    one: Source, other: Source, found: Sequence[Differs], dtype: DType | None, budget: Budget
) -> list[str]:
    """Likely reasons why tensors of B aren't what A makes them."""
    found = [difference for difference in found if not is_state(difference.name)]
    names = [difference.name for difference in found if difference.numbers]
    if not names:
        return []
    if layout := _other_layout(one, other, names, dtype, budget):
        return layout
    misplaced = _misplaced(one, other, names, dtype, budget)
    mine = convert(one.binding, other.binding.layout, one.model.values, dtype, partly=True).values
    return misplaced + rounded(found, mine, other.model.values, dtype, budget)


def _other_layout(
    one: Source, other: Source, names: Sequence[str], dtype: DType | None, budget: Budget
) -> list[str]:
    """Whether B is what A makes in another layout of the same names and shapes."""
    theirs = other.model.values
    for layout in other.table.layouts.values():
        if layout is other.binding.layout or layout.family != other.binding.layout.family:
            continue
        try:
            mine = convert(one.binding, layout, one.model.values, dtype, partly=True).values
        except CkptforgeError:  # nothing that this model can be in
            continue
        if any(name not in mine or mine[name].shape != theirs[name].shape for name in names):
            continue
        if not differing(pairs_of(names, mine, theirs), budget):
            return [
                f"B is what A is in layout {layout.name}; it was read as "
                f"{other.binding.layout.name}. The names and shapes of both are the same, so say "
                f"which it is with {option('layout_b', layout.name)}, or convert it again."
            ]
    return []


def _misplaced(
    one: Source, other: Source, names: Sequence[str], dtype: DType | None, budget: Budget
) -> list[str]:
    """Matches the smallest pieces of any layout (one expert's matrix) by their contents."""
    hub = other.table.names_of("huggingface")
    layout = other.table.layouts[hub[0]] if hub else other.binding.layout
    try:
        mine = convert(one.binding, layout, one.model.values, dtype, partly=True).values
        theirs = convert(other.binding, layout, other.model.values, None, partly=True).values
    except CkptforgeError:
        return []
    patterns = other.binding.names.items()
    differing_names = set(names)
    held = [p.tensors for p, stored in patterns if differing_names & set(stored.values())]
    touched = {tensor for tensors in held for tensor in tensors}
    places = _pieces(layout, list(mine), touched)
    prints_a = fingerprints({name: mine[name] for name in mine if name in places}, budget)
    prints_b = fingerprints({name: theirs[name] for name in prints_a if name in theirs}, budget)
    shapes = {name: value.shape for name, value in mine.items()}
    by_print: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, printed in prints_a.items():
        by_print.setdefault((printed.straight, shapes[name]), name)
    moved: dict[str, str] = {}
    transposed: list[str] = []
    for name, printed in prints_b.items():
        if printed.straight == prints_a[name].straight:
            continue
        square = len(shapes[name]) == 2 and len(set(shapes[name])) == 1
        if square and printed.transposed == prints_a[name].straight:
            transposed.append(name)
        elif (origin := by_print.get((printed.straight, shapes[name]))) is not None:
            moved[name] = origin
    found = [f"transposed in B: {_some(transposed)}"] if transposed else []
    return found + _moved_texts(moved, places)


def _pieces(
    layout: Layout, names: Sequence[str], touched: set[str]
) -> dict[str, tuple[str, dict[str, int]]]:
    """Name → (logical tensor, index by axis), of the names that hold a touched tensor."""
    found, _ = recognise_names(layout, dict.fromkeys(names))
    return {
        name: (pattern.kind, dict(zip(pattern.name_axes, index, strict=True)))
        for pattern, indexed in found.items()
        if touched & set(pattern.tensors)
        for index, name in indexed.items()
    }


def _moved_texts(
    moved: Mapping[str, str], places: Mapping[str, tuple[str, dict[str, int]]]
) -> list[str]:
    """A sentence for each kind of misplacement, with examples."""
    kinds: dict[str, list[str]] = {}
    for name, origin in moved.items():
        (tensor, index), (from_tensor, from_index) = places[name], places[origin]
        mutual = moved.get(origin) == name
        if tensor != from_tensor:
            both = " and ".join(sorted((tensor, from_tensor)))
            kind = f"{both} exchanged" if mutual else f"{tensor} holds {from_tensor}"
        else:
            axes = [axis for axis in index if index[axis] != from_index.get(axis)]
            steps = {index[axis] - from_index[axis] for axis in axes}
            shift = f"shifted by {min(steps)}" if len(steps) == 1 else "permuted"
            kind = f"{', '.join(axes)} {'exchanged' if mutual else shift}"
        kinds.setdefault(kind, []).append(f"{name} in B holds A's {origin}")
    return [f"{kind}: {_some(examples)}" for kind, examples in kinds.items()]


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def rounded(
    found: Sequence[Differs], mine: Values, theirs: Values, dtype: DType | None, budget: Budget
) -> list[str]:
    """Whether the differing tensors of B hold A's values rounded to a smaller dtype."""
    names = {difference.name for difference in found if difference.numbers}
    floats = {n: value for n, value in mine.items() if n in names and value.dtype.floating}
    if not floats:
        return []
    if dtype is not None:
        return _cast_side(floats, theirs, dtype)
    for rounding in _ROUNDINGS:
        smaller = parse_target(rounding)
        assert smaller is not None
        trial = {name: replace(value, dtype=smaller) for name, value in floats.items()}
        unequal = differing(pairs_of(list(trial), trial, theirs), budget)
        if equal := [name for name in trial if name not in unequal]:
            return [f"rounded to {rounding} in B: {_some(equal)}"]
    return []


def _cast_side(mine: Values, theirs: Values, dtype: DType) -> list[str]:
    """Whether the cast changes nothing in A, as it is B that holds the wider numbers."""
    stored = {fragment.stored.dtype for value in mine.values() for fragment in value.fragments}
    wider = {theirs[name].dtype for name in mine}
    if stored != {dtype} or any(one.itemsize <= dtype.itemsize for one in wider):
        return []
    names = " and ".join(sorted(one.name for one in wider))
    return [
        f"A is {dtype} already, and B is {names}: {option('after_cast')} casts A, so name B first."
    ]
