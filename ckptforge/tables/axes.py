"""The little language of the tables: a tensor's name and its named axes, as text and as arithmetic.

    model.layers.{l}.attention.wq.weight   : (g r d) H
    model.layers.{l}.attention.w_qkv.weight: (g [wq: r d + wk: d + wv: d]) H
    model.layers.{m+k}.mlp.gate.weight     : e H

`{l}` in the name is an axis whose index stands in the name; `{m+k}` one whose index stands there
with the length of `k` added. `H` is an axis of the tensor; `(g r d)` is one axis made of factors,
the last running fastest; `[wq: … + wk: …]` concatenates parts of several logical tensors along the
axis.

    model.layers.{l}.experts.weight1       : e H [w1: M + w3: M] as H (e [w1: M + w3: M])

Before `as` stands the order of the numbers, behind it the shape that they are given where that
isn't the order's.

    layers.{l}.attention.wq.weight         : (g r d/2 2) H

`d/2 2` is the axis `d` in the order in which its 2 halves take turns: cut into 2 parts, of which
an axis of that constant length, the fastest, says which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import msgspec

from ckptforge.errors import LayoutError
from ckptforge.tables.grid import Grid
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.skeletons import index_of, is_number

# The size of an axis for one logical tensor: sizes("wq", "d").
Sizes = Callable[[str, str], int]

_NAME = r"[A-Za-z_]\w*(?:@[0-9.]+)?"  # behind @ which layers, see `tables/layer_counts.py`
_WORD = re.compile(rf"\{{{_NAME}(?:\+{_NAME})?\}}|\d+|[^{{}}\d]+|[{{}}]")
_PLACEHOLDER = re.compile(rf"\{{({_NAME})(?:\+({_NAME}))?\}}")


def kind_of(tensor: str) -> str:
    """A logical tensor as [tensors] calls it, of whatever layers."""
    return tensor.partition("@")[0]


class Part(msgspec.Struct, frozen=True):
    """One logical tensor's part of a concatenation: an axis of these factors (none: one row)."""

    tensor: str
    factors: tuple[str, ...]

    @property
    def text(self) -> str:
        """The part as a table writes it."""
        return f"{self.tensor}: {' '.join(self.factors)}" if self.factors else self.tensor


class Concat(msgspec.Struct, frozen=True):
    """Parts of several logical tensors one after another in one axis."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The concatenation as a table writes it."""
        return f"[{' + '.join(part.text for part in self.parts)}]"


class Turns(msgspec.Struct, frozen=True):
    """An axis of which so many equal parts take turns: the first number of each, the second of
    each, and so on."""

    axis: str
    parts: int

    @property
    def text(self) -> str:
        """The axis as a table writes it."""
        return f"{self.axis}/{self.parts} {self.parts}"


Item = str | Concat | Turns
Axis = tuple[Item, ...]


class Pattern(msgspec.Struct, frozen=True, dict=True):
    """One kind of stored tensor: name template, axes in the order of the numbers, and the logical
    tensors it holds, in order; `reshaped` is what the axes of its shape are made of, where they
    aren't those."""

    template: str
    axes: tuple[Axis, ...]
    tensors: tuple[str, ...]
    reshaped: tuple[Axis, ...] = ()

    @cached_property
    def kind(self) -> str:
        """The tensors that it holds, as messages and audits call what it stores."""
        return "+".join(map(kind_of, self.tensors))

    @property
    def shape_axes(self) -> tuple[Axis, ...]:
        """What each axis of the shape is made of."""
        return self.reshaped or self.axes

    @property
    def axes_text(self) -> str:
        """The axes as a table writes them."""
        shape = f" as {_axes_text(self.reshaped)}" if self.reshaped else ""
        return _axes_text(self.axes) + shape

    @cached_property
    def name_axes(self) -> tuple[str, ...]:
        """The axes whose index stands in the name."""
        return tuple(axis for axis, _ in _PLACEHOLDER.findall(self.template))

    @cached_property
    def offsets(self) -> dict[str, str]:
        """Axis of the name → the axis whose length is added to its index there."""
        return {axis: offset for axis, offset in _PLACEHOLDER.findall(self.template) if offset}

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The template cut into text, numbers and placeholders."""
        return tuple(_WORD.findall(self.template))

    @cached_property
    def skeleton(self) -> str:
        """The template with each number and placeholder as `#`; see `skeleton_of`."""
        return "".join("#" if is_number(word) else word for word in self.words)

    def stores_as(self, other: Pattern) -> bool:
        """Whether both store the same in the same order and shape, under names with the same
        axes."""
        one, another = (
            (pattern.tensors, pattern.axes, pattern.shape_axes, pattern.name_axes)
            for pattern in (self, other)
        )
        return one == another

    @cached_property
    def _own_numbers(self) -> tuple[str | None, ...]:
        """The numbers of a name with this skeleton; None for those of an axis."""
        words = (word for word in self.words if is_number(word))
        return tuple(word if word.isdigit() else None for word in words)

    def match(self, numbers: Sequence[str]) -> tuple[int, ...] | None:
        """The numbers of the axes in a name with this skeleton; None if another is written."""
        index = []
        for word, number in zip(self._own_numbers, numbers, strict=True):
            if word is not None:
                if word != number:
                    return None
            elif (value := index_of(number)) is None:
                return None
            else:
                index.append(value)
        return tuple(index)

    @property
    def has_numbers(self) -> bool:
        """Whether numbers stand in its names that are of no axis."""
        return any(self._own_numbers)

    @cached_property
    def _format(self) -> str:
        return _PLACEHOLDER.sub("%d", self.template.replace("%", "%%"))

    def name(self, index: Mapping[str, int], lengths: Lengths) -> str:
        """The name at an index; `lengths` of the axes that are added to others."""
        return self.name_at(tuple([index[axis] for axis in self.name_axes]), lengths)

    def name_at(self, index: tuple[int, ...], lengths: Lengths) -> str:
        """The same, at an index of the axes in the name in their order."""
        return self.namer(lengths)(index)

    def namer(self, lengths: Lengths) -> Callable[[tuple[int, ...]], str]:
        """`name_at` for many names."""
        form = self._format
        if not self.offsets and lengths.numbers.keys().isdisjoint(self.name_axes):
            return form.__mod__
        axes = [(axis, self.offsets.get(axis)) for axis in self.name_axes]
        known: dict[tuple[int, int], int] = {}

        def name(index: tuple[int, ...]) -> str:
            numbers = []
            for at in enumerate(index):
                if (number := known.get(at)) is None:
                    axis, added = axes[at[0]]
                    number = known[at] = lengths.number(axis, at[1], added)
                numbers.append(number)
            return form % tuple(numbers)

        return name

    def segments(self, tensor: str) -> Iterator[tuple[str, ...]]:
        """The factors of one logical tensor that lie one after another in one axis."""
        for axis in self.axes:
            run: list[str] = []
            for item in axis:
                if isinstance(item, Concat):
                    yield tuple(run)
                    run = []
                    yield from (part.factors for part in item.parts if part.tensor == tensor)
                elif isinstance(item, Turns):
                    yield from (tuple(run), (item.axis,))
                    run = []
                else:
                    run.append(item)
            yield tuple(run)

    def factors(self, tensor: str) -> list[str]:
        """The axes of one logical tensor, slowest first, without those in the name."""
        return [factor for segment in self.segments(tensor) for factor in segment]

    @property
    def turns(self) -> dict[str, int]:
        """The axes of which parts take turns, and how many parts."""
        items = (item for axis in self.axes for item in axis if isinstance(item, Turns))
        return {item.axis: item.parts for item in items}

    def place(self, tensor: str, order: Sequence[str], size: Sizes) -> Grid:
        """Where a logical tensor lies in the stored one; axes in the name have stride 0. Raises
        `LayoutError` for an axis whose parts take turns, unless `order` has it `in_parts`."""
        strides: dict[str, int] = {}
        offset, stride = 0, 1
        for axis in reversed(self.axes):
            for item in reversed(axis):
                if isinstance(item, Concat):
                    before = 0
                    for part in item.parts:
                        if part.tensor == tensor:
                            offset += before * stride
                            inner = stride
                            for factor in reversed(part.factors):
                                strides[factor] = inner
                                inner *= size(tensor, factor)
                        before += _part_size(part, size)
                    stride *= before
                elif isinstance(item, Turns):
                    first, second = in_parts(item.axis)
                    strides |= {first: stride, second: stride * item.parts}
                    stride *= size(tensor, item.axis)
                else:
                    first, second = in_parts(item)
                    if second in order:
                        strides |= {first: stride * size(tensor, second), second: stride}
                    strides[item] = stride
                    stride *= size(tensor, item)
        if turned := self.turns.keys() & set(order):
            raise LayoutError(
                f"{self.template}: parts of its axis {min(turned)} take turns, which only "
                "conversions to another layout put in order; convert the model first."
            )
        return Grid(offset, tuple(strides.get(factor, 0) for factor in order))

    def shape(self, size: Sizes) -> tuple[int, ...]:
        """The shape of the stored tensor."""
        return tuple(axis_size(axis, self.tensors[0], size) for axis in self.shape_axes)


def _axes_text(axes: tuple[Axis, ...]) -> str:
    texts = [[item if isinstance(item, str) else item.text for item in axis] for axis in axes]
    return " ".join(items[0] if len(items) == 1 else f"({' '.join(items)})" for items in texts)


def in_parts(axis: str) -> tuple[str, str]:
    """An axis cut into equal parts, as two axes: which part, and where in it."""
    return f"{axis}:part", f"{axis}:in part"


def _part_size(part: Part, size: Sizes) -> int:
    return math.prod(size(part.tensor, factor) for factor in part.factors)


def axis_size(axis: Axis, tensor: str, size: Sizes) -> int:
    """Length of an axis; `tensor` is one that the pattern holds."""
    return math.prod(
        sum(_part_size(part, size) for part in item.parts)
        if isinstance(item, Concat)
        else size(tensor, item if isinstance(item, str) else item.axis)
        for item in axis
    )


def axis_factors(axis: Axis) -> set[str]:
    """Every factor that the length of an axis depends on."""
    concats = [item for item in axis if isinstance(item, Concat)]
    inner = {factor for concat in concats for part in concat.parts for factor in part.factors}
    others = (item for item in axis if not isinstance(item, Concat))
    return inner.union(item if isinstance(item, str) else item.axis for item in others)


def shared_runs(a: Pattern, b: Pattern, tensor: str) -> list[tuple[str, ...]]:
    """Factors of a logical tensor that follow one another in both patterns, as runs of two and
    more.

    A run can be copied as one axis, so that only its total size must be known.
    """
    in_b = _followers(b, tensor)
    mine = _followers(a, tensor).items()
    pairs = {first: second for first, second in mine if in_b.get(first) == second}
    runs = []
    for first in pairs:
        if first not in pairs.values():
            run = [first]
            while run[-1] in pairs:
                run.append(pairs[run[-1]])
            runs.append(tuple(run))
    return runs


def _followers(pattern: Pattern, tensor: str) -> dict[str, str]:
    pairs = (pair for segment in pattern.segments(tensor) for pair in pairwise(segment))
    return dict(pairs)
