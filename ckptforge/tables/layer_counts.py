"""Tables for models in which the length of an axis differs between layers, as the number of experts
does in pruned models:

    e = "num_experts per l"

For such a model the table is another, without that: the layers of each length are an axis of their
own. Of a row of 8 experts in most layers and of 6 in others

    w1 = "model.layers.{l}.mlp.experts.{e}.up_proj.weight : I H"

two become, of `w1@8` and `w1@6`, with `{l@8}`, `{e@8}` and `{l@6}`, `{e@6}` in their names. All
else that there is for axes and rows holds for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.errors import ConfigError
from ckptforge.spelling import option
from ckptforge.tables.axes import Axis, Concat, Item, Part, Pattern, Turns
from ckptforge.tables.lora import AdaptedWeight, Lora
from ckptforge.tables.model_config import Config, Expression
from ckptforge.tables.names import recognise_names
from ckptforge.tables.per_layer import differs, lengths_by_layer
from ckptforge.tables.pipeline import Pipeline
from ckptforge.tables.selection import Counted, Ordered, Selection, selections_of
from ckptforge.tables.table import Layout, Table

Lengths = tuple[int | None, ...]


def table_for(table: Table, config: Config, where: str) -> Table:
    """The table of a model, which is another where its layers differ in length. Raises
    `ConfigError`."""
    axes = {a: one for a, one in table.axes.items() if isinstance(one, Expression) and one.per}
    if not any(differs(config, one) for one in axes.values()):
        return table
    config = table.constants.with_lengths(config)
    of = next(iter(axes.values())).per
    layers = table.axes[of].evaluate(config, where)
    if layers is None:
        raise ConfigError(
            f"{where}: doesn't say {table.axes[of].text}, and so not which layers differ. Give the "
            f"model's config.json with {option('config')}."
        )
    columns = [lengths_by_layer(one, config, layers, where) for one in axes.values()]
    differing = [
        (axis, column)
        for axis, column in zip(axes, columns, strict=True)
        if len(set(column)) > 1 or column[:1] != [_whole(axes[axis], config, where)]
    ]
    if not differing:
        return table
    groups = list(dict.fromkeys(zip(*(column for _, column in differing), strict=True)))
    if any(None in group for group in groups):
        raise ConfigError(f"{where}: says {axes[differing[0][0]].text} for some layers only.")
    return _Split(table, [axis for axis, _ in differing], groups).table


def config_by_shapes(
    table: Table, layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What config.json says of a model whose tensors have these shapes, where these differ between
    layers; nothing where they don't, and where a layout doesn't tell."""
    found: dict[str, Any] = {}
    names, _ = recognise_names(layout, shapes)
    for axis, one in table.axes.items():
        of = one.per if isinstance(one, Expression) else ""
        layers = {of, *(name for name, some in selections_of(table.axes) if some.of == of)}
        telling = (p for p in names if layers & {*p.name_axes[:1]} and (axis,) in p.shape_axes)
        for pattern in telling if of else ():
            at = pattern.shape_axes.index((axis,))
            own = {n[0]: shapes[name][at : at + 1] for n, name in names[pattern].items()}
            lengths = [size for layer in sorted(own) for size in own[layer]]
            if len(set(lengths)) > 1 and sorted(own) == list(range(len(lengths))):
                found |= {one.choices[0]: lengths, table.axes[of].choices[0]: len(lengths)}
    return found


def _whole(expression: Expression, config: Config, where: str) -> int | None:
    """What config.json says for all layers alike."""
    if any(isinstance(config.get(key), list) for key in expression.keys):
        return None
    return expression.evaluate(config, where)


class _Group(msgspec.Struct, frozen=True):
    """Layers that are alike: what stands behind @ in names, and the lengths of axes there."""

    mark: str
    lengths: Mapping[str, int | None]


class _Split:
    """A table whose tensors of some axes are split by the layers that are alike."""

    def __init__(self, table: Table, axes: Sequence[str], groups: Sequence[Lengths]) -> None:
        self.whole = table
        self.groups = [
            _Group(".".join(map(str, lengths)), dict(zip(axes, lengths, strict=True)))
            for lengths in groups
        ]
        self.lengths = axes
        first = table.axes[axes[0]]
        assert isinstance(first, Expression)
        self.of = first.per
        self.layers = self._layers()
        self.tensors = self._tensors()

    def _layers(self) -> dict[str, Selection]:
        """Each axis that counts layers, as one that counts some of all layers."""
        length = self.whole.axes[self.of]
        assert isinstance(length, Expression)
        every = Selection(text=f"{self.of} where", of=self.of, length=length, rule=((),))
        found = {self.of: every}
        for axis, added in self.whole.pipeline.layers[1:] if self.whole.pipeline else ():
            own, offset = self.whole.axes[axis], self.whole.axes.get(added or "")
            if isinstance(own, Selection):
                found[axis] = own
            elif offset is None:
                found[axis] = replace(every, rule=((Ordered(own, True),),))
            elif isinstance(offset, Expression):
                found[axis] = replace(every, rule=((Ordered(offset, False),),))
        return found

    def _tensors(self) -> frozenset[str]:
        """The tensors to be split: those of layers with one of the axes, and what any layout stores
        in one with these."""
        found = {
            tensor
            for tensor, axes in self.whole.tensors.items()
            if not set(self.lengths).isdisjoint(axes) and not set(self.layers).isdisjoint(axes)
        }
        rows = [p.tensors for one in self.whole.layouts.values() for p in one.patterns]
        while more := {t for row in rows if found & set(row) for t in row} - found:
            found |= more
        return frozenset(found)

    @property
    def table(self) -> Table:
        """The table."""
        whole = self.whole
        tensors: dict[str, tuple[str, ...]] = {}
        for tensor, own in whole.tensors.items():
            if tensor not in self.tensors:
                tensors[tensor] = own
            else:
                tensors |= {self._in(tensor, g): self._axes(own, g) for g in self.groups}
        used = {axis for own in tensors.values() for axis in own}
        axes = {a: one for a, one in whole.axes.items() if a not in self.lengths or a in used}
        for group in self.groups:
            axes |= {self._in(axis, group): self._axis(axis, group) for axis in self._renamed}
        stacked = {name for name, one in whole.layouts.items() if self._stacks(one)}
        optional = whole.optional.items()
        return replace(
            whole,
            axes=axes,
            tensors=tensors,
            optional={name: one for tensor, one in optional for name in self._split([tensor])},
            keep_dtype=frozenset(self._split(whole.keep_dtype)),
            integers={n: of for t, of in whole.integers.items() for n in self._split([t])},
            layouts={n: self._layout(one) for n, one in whole.layouts.items() if n not in stacked},
            cannot_hold=dict.fromkeys(stacked, self._reason()),
            pipeline=self._pipeline(whole.pipeline),
            lora=self._lora(whole.lora),
        )

    @property
    def _renamed(self) -> list[str]:
        return [*self.layers, *self.lengths]

    @staticmethod
    def _in(name: str, group: _Group) -> str:
        return f"{name}@{group.mark}"

    def _axes(self, axes: Iterable[str], group: _Group) -> tuple[str, ...]:
        return tuple(self._in(a, group) if a in self._renamed else a for a in axes)

    def _axis(self, axis: str, group: _Group) -> Expression | Selection:
        """An axis for the layers of a group: its length there, or which layers they are."""
        if axis in self.lengths:
            return Expression(str(group.lengths[axis]))
        wanted = []
        for one, size in group.lengths.items():
            expression = self.whole.axes[one]
            assert isinstance(expression, Expression) and size is not None
            wanted.append((Expression(expression.text), size))
        said = " and ".join(f"{one.text} is {size}" for one, size in wanted)
        layers = self.layers[axis]
        return replace(layers, text=f"{layers.text} {said}", only=Counted(tuple(wanted)))

    def _split(self, tensors: Iterable[str]) -> Iterator[str]:
        """Tensors, with those for each group in place of one that is split."""
        for tensor in tensors:
            if tensor in self.tensors:
                yield from (self._in(tensor, group) for group in self.groups)
            else:
                yield tensor

    def _stacks(self, layout: Layout) -> bool:
        """Whether a layout stores layers of several lengths in one tensor."""
        return any(
            not set(self.layers).isdisjoint(pattern.factors(tensor))
            for pattern in layout.patterns
            for tensor in self.tensors.intersection(pattern.tensors)
        )

    def _reason(self) -> str:
        differing = ", ".join(self.whole.axes[axis].text for axis in self.lengths)
        return f"it stores all layers in one tensor, and {differing} differs between layers here"

    def _layout(self, layout: Layout) -> Layout:
        rows = layout.sharding
        split = None
        if rows is not None:
            split = {tensor: row for tensor, row in rows.items() if tensor not in self.tensors}
            for group in self.groups:
                for tensor in self.tensors.intersection(rows):
                    cuts = rows[tensor].cuts
                    own = tuple(replace(c, axis=self._axes([c.axis], group)[0]) for c in cuts)
                    split[self._in(tensor, group)] = replace(rows[tensor], cuts=own)
        return replace(layout, patterns=tuple(self._patterns(layout.patterns)), sharding=split)

    def _patterns(self, patterns: Iterable[Pattern]) -> Iterator[Pattern]:
        for pattern in patterns:
            if self.tensors.isdisjoint(pattern.tensors):
                yield pattern
            else:
                yield from (self._pattern(pattern, group) for group in self.groups)

    def _pattern(self, pattern: Pattern, group: _Group) -> Pattern:
        """A row as it is for the layers of a group."""
        template = pattern.template
        for axis in pattern.name_axes:
            old = (
                f"{{{axis}+{pattern.offsets[axis]}}}" if axis in pattern.offsets else f"{{{axis}}}"
            )
            if axis in self._renamed:
                template = template.replace(old, f"{{{self._in(axis, group)}}}")
        return Pattern(
            template,
            tuple(self._items(axis, group) for axis in pattern.axes),
            tuple(self._in(tensor, group) for tensor in pattern.tensors),
            tuple(self._items(axis, group) for axis in pattern.reshaped),
        )

    def _items(self, axis: Axis, group: _Group) -> Axis:
        found: list[Item] = []
        for item in axis:
            if isinstance(item, Concat):
                parts = (
                    Part(self._in(part.tensor, group), self._axes(part.factors, group))
                    for part in item.parts
                )
                found.append(Concat(tuple(parts)))
            elif isinstance(item, Turns):
                found.append(Turns(self._axes([item.axis], group)[0], item.parts))
            else:
                found += self._axes([item], group)
        return tuple(found)

    def _pipeline(self, pipeline: Pipeline | None) -> Pipeline | None:
        if pipeline is None:
            return None
        own = [(self._in(axis, g), None) for g in self.groups for axis in self.layers]
        return replace(pipeline, layers=(*pipeline.layers, *own))

    def _lora(self, lora: Lora) -> Lora:
        weights = {
            name: tuple(split for one in own for split in self._adapted(one))
            for name, own in lora.weights.items()
        }
        matrices = {name: frozenset(self._patterns(own)) for name, own in lora.matrices.items()}
        return replace(lora, weights=weights, matrices=matrices)

    def _adapted(self, one: AdaptedWeight) -> Iterator[AdaptedWeight]:
        if self.tensors.isdisjoint(one.weight.tensors):
            yield one
            return
        for group in self.groups:
            weight, a, b = (self._pattern(each, group) for each in (one.weight, one.a, one.b))
            yield AdaptedWeight(weight, a, b, one.turned)
