"""LoRA in tables: which weights may have an adapter, and what its two factors are called in each layout.

A weight W of shape (out, in) gets A (r, in) and B (out, r): W + scale · B·A (Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models", 2021). In a table:

    [lora]
    modules = ["wq", "wk", "wv", "wo"]

    [lora.names]
    hub   = ["base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"]
    mcore = ["{}.lora_A.weight", "{}.lora_B.weight"]

`{}` is the name of the weight without `.weight`. A weight that a layout holds in one with others has one adapter with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from ckptforge.mapping.axes import Axis, Concat, Pattern

WEIGHT = ".weight"
RANK = "rank"
Columns = tuple[Axis, frozenset[str]]


class AdaptedWeight(msgspec.Struct, frozen=True, dict=True):
    """A stored weight that may have an adapter: its pattern, and those of A and B."""

    weight: Pattern
    a: Pattern
    b: Pattern

    @cached_property
    def rows(self) -> Pattern:
        """The rows of the weight alone, which are those of B."""
        return Pattern(self.weight.template, self.weight.axes[:1], self.weight.tensors)


Lora = Mapping[str, tuple[AdaptedWeight, ...]]  # by layout


def adapted_weights(
    modules: Sequence[str], names: Sequence[str], patterns: Sequence[Pattern], columns: Mapping[str, Columns]
) -> Iterator[AdaptedWeight]:
    """The weights of a layout that may have an adapter there: those that hold nothing but modules and whose columns are `columns`,
    which leaves out what is stored (in, out) and what holds several matrices."""
    for pattern in patterns:
        if not set(pattern.tensors) <= set(modules) or not pattern.template.endswith(WEIGHT) or len(pattern.axes) != 2 or pattern.reshaped:
            continue
        if any((pattern.axes[1], frozenset(pattern.name_axes)) != columns[tensor] for tensor in pattern.tensors):
            continue
        a, b = (template.replace("{}", pattern.template.removesuffix(WEIGHT)) for template in names)
        yield AdaptedWeight(
            pattern, Pattern(a, ((RANK,), pattern.axes[1]), pattern.tensors), Pattern(b, (pattern.axes[0], (RANK,)), pattern.tensors)
        )


def columns_of(modules: Sequence[str], patterns: Sequence[Pattern]) -> dict[str, Columns]:
    """Module → the axis of its columns, and those in its name. Raises `ValueError` for one that isn't a matrix."""
    found: dict[str, Columns] = {}
    for tensor in modules:
        pattern = next(pattern for pattern in patterns if tensor in pattern.tensors)
        plain = len(pattern.axes) == 2 and not pattern.reshaped and not any(isinstance(item, Concat) for item in pattern.axes[1])
        if not plain or not pattern.template.endswith(WEIGHT):
            raise ValueError(f"{pattern.template!r}, which holds {tensor!r}, isn't a matrix of rows and columns named …{WEIGHT}")
        found[tensor] = pattern.axes[1], frozenset(pattern.name_axes)
    return found
