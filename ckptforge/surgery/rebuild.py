"""A model in its own layout after its axes were changed: every stored tensor that has one of them,
in its name or in its shape, is made of those of before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import row_major_strides
from ckptforge.composing import terms_through
from ckptforge.dtypes import DType
from ckptforge.errors import ConfigError, MissingTensorsError
from ckptforge.spelling import option
from ckptforge.surgery.along import Along, Entry, Run, runs_of
from ckptforge.tables.axes import Pattern, in_parts
from ckptforge.tables.binding import Binding
from ckptforge.tables.convert import in_checkpoint_order
from ckptforge.tables.lengths import Lengths
from ckptforge.transfers import Transfer
from ckptforge.values import Term, Value

Values = Mapping[str, Value]
Part = tuple[Value, Transfer]


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """Stored tensors of one kind: their pattern, and the axes of each logical tensor in it, in the
    table's order."""

    pattern: Pattern
    axes: Mapping[str, tuple[str, ...]]
    lengths: Mapping[str, int]


class Rebuilding(msgspec.Struct, frozen=True, kw_only=True):
    """What is rebuilt: the values by name, the axes that change, and what stands before the names
    (optimizer state)."""

    values: Values
    changes: Mapping[str, Along]
    prefix: str = ""

    def lengths(self, before: Mapping[str, int]) -> Lengths:
        """How long the axes are then."""
        own = before if isinstance(before, Lengths) else Lengths(before)
        changed = self.changes.items()
        numbers = {axis: along.numbers for axis, along in changed if along.numbers is not None}
        return own.changed({axis: along.length for axis, along in changed}, numbers)

    def change_of(self, axes: Sequence[str]) -> str | None:
        """The axis that changes, of some."""
        found = [axis for axis in axes if axis in self.changes]
        assert len(found) < 2, found  # each edit changes one, and those that count the same layers
        return found[0] if found else None


def rebuilt(binding: Binding, work: Rebuilding) -> dict[str, Value]:
    """Every tensor of the layout after the change, by its name with the prefix. Raises
    `ConfigError` for an axis whose length isn't known where it must be, and `MissingTensorsError`
    for parts that aren't there."""
    layout = binding.layout
    before = binding.sizes.lengths
    after = work.lengths(before)
    held = [p for p in layout.patterns if all(binding.holds(tensor) for tensor in p.tensors)]
    stocks = {pattern: stock_of(binding, pattern, work) for pattern in held}
    present = [p for p in held if all(axis in after for axis in p.name_axes)]
    found: dict[str, Value] = {}
    for pattern, pinned, name in in_checkpoint_order(present, after):
        value = value_at(stocks[pattern], work, pinned, before)
        if value is not None:
            found[work.prefix + name] = value
    if not work.prefix:
        copied = set(binding.copies.values())
        for copy in layout.copies:
            original = layout.holding(copy.tensors[0]).template
            if original in copied and original in found:
                for _, _, name in in_checkpoint_order([copy], after):
                    found[name] = found[original]
    return found


def stock_of(binding: Binding, pattern: Pattern, work: Rebuilding) -> Stock:
    """How a pattern of a binding stores its tensors. Raises `ConfigError`."""
    table, sizes = binding.table, binding.sizes
    axes = {tensor: table.tensors[tensor] for tensor in pattern.tensors}
    lengths = dict(sizes.lengths)
    for tensor, own in axes.items():
        if any(sizes.get(axis) is None for axis in own):
            told = sizes.telling(table, tensor, pattern, pattern, binding.shapes[pattern])
            changed = work.change_of(own)
            if changed is not None and told[changed] != sizes.get(changed):
                raise ConfigError(
                    f"{pattern.template}: the length of axis {changed} of {tensor} isn't known; it "
                    f"comes from config.json ({table.axes[changed].text}). Put it beside the "
                    f"tensors, or give it with {option('config')}."
                )
            lengths |= told
    for axis in pattern.turns.keys() - work.changes.keys():
        parts, inner = in_parts(axis)
        lengths |= {parts: pattern.turns[axis], inner: lengths[axis] // pattern.turns[axis]}
        for tensor, own in axes.items():
            cut = ((parts, inner) if one == axis else (one,) for one in own)
            axes[tensor] = tuple(chain.from_iterable(cut))
    return Stock(pattern=pattern, axes=axes, lengths=lengths)


def value_at(
    stock: Stock, work: Rebuilding, pinned: Mapping[str, int], before: Lengths
) -> Value | None:
    """The stored tensor of an index after the change; None where nothing that it comes from is
    there. Raises `MissingTensorsError` where only some is."""
    making = _Making(stock, work, pinned, before)
    if (source := making.moved_whole()) is not None:
        return making.value(source)
    slots: list[list[Part]] = []
    while found := [part for tensor in stock.axes for part in making.of(tensor, len(slots))]:
        slots.append(found)
    if not slots:
        return None
    if making.absent:
        raise MissingTensorsError(
            f"{making.absent[0]}: isn't there, while other parts of what it would become are; "
            "drop such state, or keep all of it."
        )
    shape = stock.pattern.shape(lambda _, axis: making.new[axis])
    elements, terms = math.prod(shape), list[Term]()
    for slot in slots:
        covered = sum(transfer.size for _, transfer in slot)
        terms += terms_through(slot, None if covered == elements else 0.0)
    kind = stock.pattern.kind
    return Value(dtype=slots[0][0][0].dtype, shape=shape, terms=tuple(terms), kind=kind)


class _Making:
    """One stored tensor while it is put together: at an index after the change."""

    def __init__(
        self, stock: Stock, work: Rebuilding, pinned: Mapping[str, int], before: Lengths
    ) -> None:
        self.stock, self.work, self.pinned, self.before = stock, work, pinned, before
        self.old, self.new = stock.lengths, work.lengths(stock.lengths)
        self.absent: list[str] = []

    def moved_whole(self) -> dict[str, int] | None:
        """The index of before of a stored tensor that goes over as it is; None for another."""
        pattern, found = self.stock.pattern, []
        for tensor, axes in self.stock.axes.items():
            changed = self.work.change_of(axes)
            if changed is not None and changed not in pattern.name_axes:
                return None
            (runs, *more) = product(*self._choices(tensor, 0))
            if more or any(run.filled or run.weight != 1 for run in runs):
                return None
            if changed is not None and all(self._choices(tensor, 1)):
                return None
            found.append({a: r.source for a, r in zip(axes, runs, strict=True) if a in self.pinned})
        return found[0] if all(one == found[0] for one in found) else None

    def of(self, tensor: str, slot: int) -> Iterator[Part]:
        """What fills the part of a logical tensor, by the picks of one slot."""
        axes, pattern = self.stock.axes[tensor], self.stock.pattern
        if slot and self.work.change_of(axes) is None:
            return
        new = pattern.place(tensor, axes, lambda _, axis: self.new[axis])
        old = pattern.place(tensor, axes, lambda _, axis: self.old[axis])
        for runs in product(*self._choices(tensor, slot)):
            lengths = tuple(run.length for run in runs)
            target = new.at([run.start for run in runs])
            if any(run.filled for run in runs):
                value, source, strides = self._filled(tensor, runs)
            else:
                along = dict(zip(axes, runs, strict=True))
                found = self.value({axis: along[axis].source for axis in pattern.name_axes})
                if found is None:
                    continue
                weight = math.prod(run.weight for run in runs)
                value = found if weight == 1 else times(found, weight)
                inner = [0 if axis in self.pinned else run.source for axis, run in along.items()]
                source = old.at(inner)
                strides = tuple(s * run.step for s, run in zip(old.strides, runs, strict=True))
            yield value, Transfer(lengths, source, strides, target, new.strides).ordered()

    def value(self, pinned: Mapping[str, int]) -> Value | None:
        """The stored tensor at an index of before."""
        name = self.work.prefix + self.stock.pattern.name(pinned, self.before)
        found = self.work.values.get(name)
        if found is None:
            self.absent.append(name)
        return found

    def _choices(self, tensor: str, slot: int) -> list[list[Run]]:
        """The runs along each axis of a logical tensor."""
        axes = self.stock.axes[tensor]
        changed = self.work.change_of(axes)
        found = []
        for axis in axes:
            if axis == changed:
                entries: Sequence[Entry] = self._entries(axes, axis)
                if axis in self.pinned:
                    at = self.pinned[axis]
                    number = sum(entry is None for entry in entries[:at])
                    entries = entries[at : at + 1]
                    runs = [
                        replace(run, source=number) if run.filled else run
                        for run in runs_of(entries, slot)
                    ]
                else:
                    runs = list(runs_of(entries, slot))
            elif axis in self.pinned:
                runs = [Run(start=0, length=1, source=self.pinned[axis])]
            else:
                runs = [Run(start=0, length=self.old[axis], source=0)]
            found.append(runs)
        return found

    def _entries(self, axes: Sequence[str], axis: str) -> tuple[Entry, ...]:
        layer = axes[0] if axes[0] != axis and axes[0] in self.pinned else None
        return self.work.changes[axis].of(None if layer is None else (layer, self.pinned[layer]))

    def _filled(self, tensor: str, runs: Sequence[Run]) -> tuple[Value, int, tuple[int, ...]]:
        """(what fills the whole logical tensor, so that it doesn't depend on the layout; where a
        part of it begins in that; its strides)."""
        axes = self.stock.axes[tensor]
        changed = self.work.change_of(axes)
        assert changed is not None
        count = sum(entry is None for entry in self._entries(axes, changed))
        shape = tuple(count if axis == changed else self.new[axis] for axis in axes)
        filling = self.work.changes[changed].filling
        assert filling is not None
        strides = row_major_strides(shape)
        source = sum(run.source * stride for run, stride in zip(runs, strides, strict=True))
        return filling(tensor, self.work.prefix, shape, self._dtype()), source, strides

    def _dtype(self) -> DType:
        """The dtype of the tensors of this kind: that of the nearest one that is there."""
        names = self.stock.pattern.name_axes
        near = {axis: min(self.pinned[axis], self.before[axis] - 1) for axis in names}
        name = self.work.prefix + self.stock.pattern.name(near, self.before)
        return self.work.values[name].dtype


def times(value: Value, weight: float) -> Value:
    """A value times a number."""
    return replace(
        value,
        terms=tuple(replace(term, weight=term.weight * weight) for term in value.terms),
    )
