"""PEFT's adapters of parameters that stack experts (`target_parameters`), as one of each expert's
matrices, or of parameters that a model stores.

A parameter of shape (e, out, in) has A of shape (e · r, in), whose rows run over experts and then
ranks, and B of shape (out, r · e), whose columns run over ranks and then experts; an expert gets
scale · B·A of its own rows and columns. One of shape (e, in, out) has the same factors, and gets
the transpose (peft/tuners/lora/layer.py, class ParamWrapper, since 0.19; `stack_orders.py`).
Several parameters of one module are wrapped one around the other, each with `.base_layer` more in
its name; which is which their shapes say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from ckptforge.adapters.factors import Scales
from ckptforge.adapters.peft_names import PREFIX
from ckptforge.adapters.stack_orders import OTHERWISE, of_three_axes, refuse_doubtful
from ckptforge.errors import ConfigError, FormatError, shown
from ckptforge.quantisation.parts import rows_of
from ckptforge.quantisation.stacks import inputs_first
from ckptforge.spelling import option
from ckptforge.tables.axes import Concat, Pattern, axis_size
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.lora import AdaptedWeight
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.tables.table import Table
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Term, Value, value_of

_FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+?)(?:\.base_layer)*\.lora_A\.weight")
Values = Mapping[str, Value]

Kind = tuple[Pattern, tuple[int, ...]]  # how a parameter is stored, and the index in its name


class _Place(msgspec.Struct, frozen=True):
    """The part of a stacked parameter that is one kind of matrix: its pattern and the index in its
    name, the matrix with its factors' names, and which rows of an expert's part are its own."""

    pattern: Pattern
    index: tuple[int, ...]
    weight: AdaptedWeight
    first: int
    rows: int


class Stack(msgspec.Struct, frozen=True):
    """The factors of a parameter that is stored so, with the index of its name, the rank of each
    expert, and what the products are multiplied with."""

    pattern: Pattern
    index: tuple[int, ...]
    a: Value
    b: Value
    rank: int
    scale: float


def unstacked(
    path: Path,
    values: Values,
    table: Table,
    lengths: Lengths,
    scales: Scales,
    stored: Collection[Pattern] = (),
) -> tuple[dict[str, Value], tuple[Stack, ...]]:
    """An adapter's tensors, with the factors of stacked experts as those of each expert's matrices
    under the hub's names, but for those of `stored` patterns. Raises `FormatError` for factors that
    are of none of the table's parameters, or of which nobody says in which order they are,
    `ConfigError` where lengths aren't known."""
    found, stacks = dict(values), []
    pairs = list(_pairs(path, found, table, lengths, stored))
    order = [(one.kind[0], one.a, one.b) for one in pairs]
    refuse_doubtful(path, order, table, scales.version)
    for one in pairs:
        (pattern, index), a, b = one.kind, one.a, one.b
        if pattern in stored:
            rank = a.shape[0] // lengths[str(pattern.axes[0][0])]
            low = value_of(rows_of(a.origin, 0, rank))
            scale = scales.of(path, table.first_layout("huggingface"), one.module, low)
            stacks.append(Stack(pattern, _numbers(pattern, index, lengths), a, b, rank, scale))
            continue
        for weight, first, rows in _matrices(path, pattern, table, lengths):
            place = _Place(pattern, index, weight, first, rows)
            found |= _of_each_expert(a, b, place, lengths)
    return found, tuple(stacks)


class _Pair(msgspec.Struct, frozen=True):
    """The factors of one stacked parameter of a module."""

    module: str
    kind: Kind
    a: Value
    b: Value


def _pairs(
    path: Path,
    found: dict[str, Value],
    table: Table,
    lengths: Lengths,
    stored: Collection[Pattern],
) -> Iterator[_Pair]:
    """Takes the factors of stacked parameters out of what was found."""
    seen: dict[tuple[tuple[str, ...], tuple[int, ...]], str] = {}
    for name in list(found):
        match = _FACTOR.fullmatch(name)
        kinds = [] if match is None else list(_parameters(table, match[1], lengths))
        if match is None or not kinds:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        if other not in found:
            raise FormatError(f"{path}: {name} is there without {other}: it is damaged.")
        if not any(pattern in stored or _parted(pattern, table) for pattern, _ in kinds):
            raise FormatError(_stays_stacked(path, name, kinds, table))
        a, b = found.pop(name), found.pop(other)
        kind = _fitting(path, kinds, a, b, table, lengths, stored)
        key = kind[0].tensors, kind[1]
        if key in seen:
            raise FormatError(
                f"{path}: {seen[key]} and {name} are both of {kind[0].template}, by their shapes; "
                "the adapter is damaged, or of another model."
            )
        seen[key] = name
        yield _Pair(match[1], kind, a, b)


def is_of_stack(table: Table, name: str) -> bool:
    """Whether a factor is, by its name, of a parameter in which a layout of the table stacks
    experts."""
    match = _FACTOR.fullmatch(name.replace(".lora_B.", ".lora_A."))
    return match is not None and any(_parameters(table, match[1], Lengths()))


def _parameters(table: Table, module: str, lengths: Lengths) -> Iterator[Kind]:
    """The parameters of a module that stack experts."""
    skeleton, numbers = skeleton_of(f"{module}.")
    for layout in table.layouts.values():
        for pattern in layout.patterns if layout.family == "huggingface" else ():
            stem, _, leaf = pattern.skeleton.rpartition(".")
            stacks = len(pattern.axes) == 3 and len(pattern.axes[0]) == 1 and not pattern.reshaped
            fits = stacks and leaf != "weight" and f"{stem}." == skeleton
            index = pattern.match(numbers) if fits else None
            axes = [(axis, pattern.offsets.get(axis)) for axis in pattern.name_axes]
            if index is not None and all(
                number in lengths.in_names(*axis) for number, axis in zip(index, axes, strict=True)
            ):
                yield pattern, index


def _numbers(pattern: Pattern, index: tuple[int, ...], lengths: Lengths) -> tuple[int, ...]:
    """The numbers in a name as those of the table's axes."""
    axes = zip(pattern.name_axes, index, strict=True)
    return tuple(lengths.index(axis, i, pattern.offsets.get(axis)) for axis, i in axes)


def _fitting(
    path: Path,
    kinds: list[Kind],
    a: Value,
    b: Value,
    table: Table,
    lengths: Lengths,
    stored: Collection[Pattern],
) -> Kind:
    """The parameter that two factors are of, a stored one before others that hold the same. Raises
    `FormatError` and `ConfigError`."""
    needed = {axis for pattern, _ in kinds for axis in _axes_of(pattern)}
    if lost := needed - set(lengths):
        raise ConfigError(
            f"{path}: {a.origin.name} is of stacked experts, and how long {min(lost)} is nobody "
            f"says: give the model's config.json with {option('config')}, or merge the adapter "
            f"into its model, with {option('merge_lora')}."
        )
    if not a.dtype.floating or not b.dtype.floating:
        raise FormatError(
            f"{path}: {a.origin.name} is {a.dtype} and {b.origin.name} {b.dtype}; expected "
            "floating-point numbers."
        )
    ranked = [
        one
        for one in kinds
        if len(a.shape) == len(b.shape) == 2
        and a.shape[0] == b.shape[1]
        and a.shape[0] % lengths[str(one[0].axes[0][0])] == 0
    ]
    sides = (b.shape[0], a.shape[-1]) if ranked else ()
    fits = [one for one in ranked if _sides(one[0], table, lengths) == sides]
    fits.sort(key=lambda one: one[0] not in stored)
    if len({one[0].tensors for one in fits}) != 1:
        there = "; ".join(f"{p.template}: {list(_sides(p, table, lengths))}" for p, _ in kinds)
        turned = any(_sides(one[0], table, lengths) == sides[::-1] for one in ranked)
        why = f" {OTHERWISE}" if turned else ""
        raise FormatError(
            f"{path}: {a.origin.name} {list(a.shape)} and {b.origin.name} {list(b.shape)} aren't "
            f"factors of one stacked parameter there is ({there}, with a rank for each expert)."
            f"{why}"
        )
    return fits[0]


def _axes_of(pattern: Pattern) -> set[str]:
    return {axis for tensor in pattern.tensors for axis in pattern.factors(tensor)}


def _sides(pattern: Pattern, table: Table, lengths: Lengths) -> tuple[int, int]:
    """(outputs, inputs) of one expert's part of a parameter."""
    rows, columns = (
        axis_size(axis, pattern.tensors[0], lambda _, factor: lengths[factor])
        for axis in pattern.axes[1:]
    )
    return (columns, rows) if inputs_first(table, pattern) else (rows, columns)


def _of_each_expert(a: Value, b: Value, place: _Place, lengths: Lengths) -> dict[str, Value]:
    """Name → factor, of one matrix of each expert."""
    axis = str(place.pattern.axes[0][0])
    experts, ranks = lengths[axis], a.shape[0]
    rank, shape = ranks // experts, (place.rows, ranks // experts)
    numbers = _numbers(place.pattern, place.index, lengths)
    pinned = dict(zip(place.pattern.name_axes, numbers, strict=True))
    found: dict[str, Value] = {}
    for expert in range(experts):
        at = {**pinned, axis: expert}
        own = rows_of(a.origin, expert * rank, (expert + 1) * rank)
        found[place.weight.a.name(at, lengths)] = value_of(own)
        start = place.first * ranks + expert
        transfer = Transfer(shape, start, (ranks, experts), 0, (rank, 1))
        term = Term(fragments=(Fragment(b.origin, transfer),))
        name = place.weight.b.name(at, lengths)
        found[name] = Value(dtype=b.dtype, shape=shape, terms=(term,), kind=b.kind)
    return found


def _matrices(
    path: Path, pattern: Pattern, table: Table, lengths: Lengths
) -> Iterator[tuple[AdaptedWeight, int, int]]:
    """(matrix, its first row, its rows) of one expert's part of a parameter. Raises `FormatError`
    where the hub has no matrices that may have adapters, or rows of several take turns."""
    found, first = _parted(pattern, table), 0
    if found is None:
        raise FormatError(_stays_stacked(path, pattern.template, [(pattern, ())], table))
    for weight, named in found:
        rows = 1
        for factor in named:
            rows *= lengths[factor]
        yield weight, first, rows
        first += rows


def _parted(pattern: Pattern, table: Table) -> list[tuple[AdaptedWeight, list[str]]] | None:
    """The matrices of one expert's part of a parameter, with the axes of their rows; None where the
    hub has none that may have adapters, or rows of several take turns."""
    hub = table.first_layout("huggingface")
    weights = {one.weight: one for one in table.lora.weights.get(hub.name, ())}
    item, *others = pattern.axes[1]
    parts = item.parts if isinstance(item, Concat) else ()
    found = []
    for tensor in pattern.tensors:
        weight = weights.get(hub.holding(tensor))
        named = next((part.factors for part in parts if part.tensor == tensor), pattern.axes[1])
        if weight is None or others or not all(isinstance(factor, str) for factor in named):
            return None
        found.append((weight, list(map(str, named))))
    return found


def _stays_stacked(path: Path, name: str, kinds: list[Kind], table: Table) -> str:
    """That the adapter of a parameter isn't read, however right it is."""
    templates = " or ".join(dict.fromkeys(pattern.template for pattern, _ in kinds))
    holders = [
        layout.name
        for layout in table.layouts.values()
        if any(pattern in layout.patterns for pattern, _ in kinds)
    ]
    return (
        f"{path}: {shown(name)} is of stacked experts ({templates}), for each of which the mapping "
        f"{table.name} has no matrix that may have an adapter of its own. It can be merged, with "
        f"{option('merge_lora')}, into a model that stores them so: in layout "
        f"{' or '.join(holders)}, to which others can be converted first."
    )


def kept_stacked(table: Table) -> frozenset[Pattern]:
    """Those that stack experts of which no layout has matrices that may have an adapter."""
    return frozenset(one for one in of_three_axes(table) if _parted(one, table) is None)
