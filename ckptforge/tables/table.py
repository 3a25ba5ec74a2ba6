"""What a mapping table says of a model: its logical tensors, and how each layout stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import msgspec

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern, kind_of
from ckptforge.tables.constants import Constants
from ckptforge.tables.lora import Lora
from ckptforge.tables.model_config import Condition, Config, Expression
from ckptforge.tables.passed import PassedRow
from ckptforge.tables.pipeline import Pipeline
from ckptforge.tables.selection import Counted, Selection, selections_of
from ckptforge.tables.sharding import Sharding
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.wording import nearest

FAMILY_NAMES = {
    "huggingface": "Hugging Face",
    "mindspore": "MindSpore",
    "megatron": "Megatron",
    "consolidated": "releases",
}


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """What config.json says where a key of params.json is true, and what is to be said of that."""

    config: Config
    note: str = ""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How one layout stores a model: its patterns in checkpoint order, each logical tensor in
    exactly one.

    `sharding` is how the network that holds this layout spreads each logical tensor; None where the
    table doesn't say. `copies` are tensors that hold once more what a logical tensor holds,
    `passed` the rows that pass through unchanged.
    `by_name_only`: names and shapes are those of another layout, which is meant unless a user or a
    manifest names this one. `in_eight_files`: releases in it are spread over so many. `config` are
    keys of config.json that hold for models in it, `switches` keys of params.json that stand for
    others where they are true.
    """

    name: str
    family: str
    patterns: tuple[Pattern, ...]
    sharding: dict[str, Sharding] | None = None
    copies: tuple[Pattern, ...] = ()
    passed: tuple[PassedRow, ...] = ()
    by_name_only: bool = False
    in_eight_files: bool = False
    config: Config = msgspec.field(default_factory=dict)
    switches: Mapping[str, Switch] = msgspec.field(default_factory=dict)

    def holding(self, tensor: str) -> Pattern:
        """How a logical tensor is stored."""
        return next(pattern for pattern in self.patterns if tensor in pattern.tensors)

    def passes(self, name: str) -> bool:
        """Whether a tensor passes through unchanged."""
        return any(row.rest(name) is not None for row in self.passed)

    def renamed(self, name: str, target: Layout) -> str | None:
        """What a tensor that passes through is called in another layout; None where that has no
        place for it."""
        found = ((row.tensor, rest) for row in self.passed if (rest := row.rest(name)) is not None)
        tensor, rest = next(found)
        return next((row.name(rest) for row in target.passed if row.tensor == tensor), None)


class Tower(msgspec.Struct, frozen=True, kw_only=True):
    """A part beside the language model, with an axis of `layers` of its own: a checkpoint holds all
    of its logical `tensors` or none."""

    layers: str
    tensors: tuple[str, ...]


class Logical(msgspec.Struct, frozen=True, kw_only=True):
    """Logical tensors with their axes, and what config.json says of the lengths of these.
    `passed` are those that stand for any number of tensors that pass through unchanged, with the
    axes that these may have. `optional` tensors are absent under a condition, a cast of the weights
    leaves those of `keep_dtype` in their dtype; those of `integers` hold numbers of an axis.
    `towers` are parts beside the language model."""

    axes: Mapping[str, Expression | Selection]
    tensors: Mapping[str, tuple[str, ...]]
    passed: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    optional: Mapping[str, Condition] = msgspec.field(default_factory=dict)
    keep_dtype: frozenset[str] = frozenset()
    integers: Mapping[str, str] = msgspec.field(default_factory=dict)
    towers: Mapping[str, Tower] = msgspec.field(default_factory=dict)

    @property
    def in_towers(self) -> frozenset[str]:
        """The logical tensors of all towers."""
        return frozenset(tensor for tower in self.towers.values() for tensor in tower.tensors)


class OtherNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names, with *, that are no logical tensors, by family: those that are dropped, and those
    whose presence makes a conversion wrong, with the reason."""

    ignored: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    refused: Mapping[str, Mapping[str, str]] = msgspec.field(default_factory=dict)


class Table(Logical, frozen=True, dict=True, kw_only=True):
    """A model's mapping: its logical tensors, and their patterns in every layout. `source` is where
    its `text` lies, `model_types` those of config.json that it is for, `aliases` names that
    MindFormers' scripts have for the model, `example` a tiny config.json; `demo` for the table that
    the demo shows. `pipeline` says where tensors lie when the layers are divided among stages,
    `lora` which weights may have an adapter, `constants` what else of config.json the model
    computes with. `cannot_hold` says of layouts why they can't hold this model."""

    name: str
    source: str
    text: bytes
    model_types: tuple[str, ...]
    layouts: dict[str, Layout]
    aliases: tuple[str, ...] = ()
    example: Mapping[str, Any] = msgspec.field(default_factory=dict)
    demo: bool = False
    pipeline: Pipeline | None = None
    lora: Lora = Lora()
    constants: Constants = Constants()
    other_names: OtherNames = OtherNames()
    cannot_hold: Mapping[str, str] = msgspec.field(default_factory=dict)

    @cached_property
    def counted(self) -> frozenset[str]:
        """The axes whose length may be 0: those that stand in names only, never in a shape, those
        that there may be none of, and those that count only some of another."""
        patterns = [p for layout in self.layouts.values() for p in layout.patterns]
        shaped = {axis for p in patterns for tensor in p.tensors for axis in p.factors(tensor)}
        some = (a for a, one in self.axes.items() if isinstance(one, Selection) or one.may_be_none)
        return frozenset(self.axes).difference(shaped).union(some)

    @cached_property
    def differing(self) -> dict[str, list[str]]:
        """What has another length in some layers, by its axis and by keys of config.json, with the
        layers' axes, where this is the table of such a model (`tables/layer_counts.py`)."""
        found: dict[str, list[str]] = {}
        for axis, one in selections_of(self.axes):
            if isinstance(one.only, Counted):
                own = {kind_of(other) for other in self.axes if "@" in other} - {kind_of(axis)}
                keys = {key for expression, _ in one.only.wanted for key in expression.keys}
                for name in {*own, *keys} - {kind_of(a) for a, _ in selections_of(self.axes)}:
                    found.setdefault(name, []).append(one.text)
        return found

    @cached_property
    def expert_matrices(self) -> frozenset[str]:
        """The matrices that each expert has: (outputs, inputs) behind the axis of the experts."""
        named = {a for a, one in self.axes.items() if "experts" in one.text}
        named |= {a for a, texts in self.differing.items() if "experts" in "".join(texts)}
        own = {t: [kind_of(a) in named for a in axes] for t, axes in self.tensors.items()}
        return frozenset(t for t, of in own.items() if of[-3:] == [True, False, False])

    @cached_property
    def kept_patterns(self) -> tuple[Pattern, ...]:
        """How the tensors that keep their dtype are stored, in whatever layout."""
        patterns = (p for layout in self.layouts.values() for p in layout.patterns)
        return tuple(dict.fromkeys(filter(self.keeps_dtype, patterns)))

    def holds_integers(self, pattern: Pattern) -> bool:
        """Whether what is stored so are numbers of an axis."""
        return self.integers.keys() >= set(pattern.tensors)

    def keeps_dtype(self, pattern: Pattern) -> bool:
        """Whether a cast of the weights leaves what is stored so in its dtype."""
        return pattern.tensors[0] in self.keep_dtype

    def layout(self, name: str) -> Layout:
        """Raises `UsageError`, listing the layouts, for a name that the table doesn't have, and for
        one that can't hold this model."""
        if (reason := self.cannot_hold.get(name)) is not None:
            raise UsageError(
                f"layout {name} can't hold this model: {reason}. Those that can are "
                f"{', '.join(self.layouts)}."
            )
        try:
            return self.layouts[name]
        except KeyError:
            raise UsageError(
                f"layout {name!r} is unknown for {self.name}; it has "
                f"{', '.join(self.layouts)}.{nearest(name, self.layouts)}"
            ) from None

    def names_of(self, family: str) -> list[str]:
        """The names of the layouts of a family."""
        return [layout.name for layout in self.layouts.values() if layout.family == family]

    def named_of(self, family: str) -> str:
        """The same, in a sentence that says what a command reads or writes."""
        none = f"layouts of {FAMILY_NAMES[family]}, of which {self.name} has none"
        return ", ".join(self.names_of(family)) or none

    @property
    def by_family(self) -> dict[str, list[str]]:
        """The names of the layouts of each family."""
        others = (layout.family for layout in self.layouts.values())
        return {one: self.names_of(one) for one in ("huggingface", "mindspore", *others)}

    def present(self, layout: Layout, config: Config, lengths: Mapping[str, int]) -> list[Pattern]:
        """The patterns of a layout, without those of optional tensors that a config.json denies, of
        towers that it doesn't describe, and of tensors with an axis of length 0."""
        absent = {t for t, condition in self.optional.items() if condition.holds(config)}
        for tower in self.towers.values():
            if any(axis not in lengths for t in tower.tensors for axis in self.tensors[t]):
                absent.update(tower.tensors)
        absent |= {t for t, axes in self.tensors.items() if 0 in map(lengths.get, axes)}
        return [pattern for pattern in layout.patterns if absent.isdisjoint(pattern.tensors)]

    def first_layout(self, family: str) -> Layout:
        """The first layout of a family, written where none is named. Raises `UsageError`."""
        if names := self.names_of(family):
            return self.layouts[names[0]]
        raise UsageError(
            f"the mapping {self.name} has no layout of family {family}; it has "
            f"{', '.join(self.layouts)}."
        )

    def mindspore_layout(self, name: str | None) -> tuple[Layout, tuple[str, ...]]:
        """The MindSpore layout to write, and a sentence where nobody named it."""
        if name is not None:
            return self.layout(name), ()
        chosen = self.first_layout("mindspore")
        if len(self.names_of("mindspore")) == 1:
            return chosen, (f"layout {chosen.name}, the only MindSpore layout of {self.name}.",)
        return chosen, (
            f"layout {chosen.name}, the first of {self.name}'s MindSpore layouts; "
            f"{option('layout')} picks another.",
        )

    def refusal(self, layout: Layout, names: Iterable[str]) -> tuple[str, str] | None:
        """(tensor, reason) of the first name with which a checkpoint can't be converted."""
        globs = self.other_names.refused.get(layout.family, {}).items()
        found = ((n, reason) for n in names for glob, reason in globs if fnmatchcase(n, glob))
        return next(found, None)

    def of_the_whole(self, config: Config) -> bool:
        """Whether it is for a model with other parts beside the language model, which pass through,
        and so for all that a config.json describes."""
        return bool(self.passed) and config.get("model_type") in self.model_types

    def knows(self, names: Iterable[str], family: str) -> bool:
        """Whether one of the family's layouts has all of these names."""
        return self.lacking(names, family) is not None

    def lacking(self, names: Iterable[str], family: str) -> int | None:
        """How many kinds of tensors aren't there, but for optional ones, of the family's layout
        that has all of these names and most else of which is there; None where none has all."""
        kinds = {skeleton_of(name)[0] for name in names}
        found = []
        for layout in map(self.layouts.__getitem__, self.names_of(family)):
            if kinds <= {p.skeleton for p in (*layout.patterns, *layout.copies)}:
                needed = (p for p in layout.patterns if not set(p.tensors) <= set(self.optional))
                found.append(len({p.skeleton for p in needed} - kinds))
        return min(found, default=None)

    def is_ignored(self, layout: Layout, tensor_name: str) -> bool:
        """Whether a tensor is one that is dropped."""
        globs = self.other_names.ignored.get(layout.family, ())
        return any(fnmatchcase(tensor_name, glob) for glob in globs)


def table_named(tables: Sequence[Table], name: str) -> Table:
    """The table of a name. Raises `UsageError` with the nearest."""
    by_name = {table.name: table for table in tables}
    if name not in by_name:
        near = nearest(name, by_name)
        raise UsageError(f"model {name!r} is unknown; tables: {', '.join(by_name)}.{near}")
    return by_name[name]


def names_that_keep_dtype(tables: Iterable[Table], names: Iterable[str]) -> frozenset[str]:
    """Those of the names of stored tensors that a table has, in any of its layouts, for a tensor
    that keeps its dtype: for commands that need no table, and so don't know which model it is."""
    by_skeleton: dict[str, list[Pattern]] = {}
    for pattern in {pattern for table in tables for pattern in table.kept_patterns}:
        by_skeleton.setdefault(pattern.skeleton, []).append(pattern)
    found = set()
    for name in names if by_skeleton else ():
        skeleton, numbers = skeleton_of(name)
        if any(pattern.match(numbers) is not None for pattern in by_skeleton.get(skeleton, ())):
            found.add(name)
    return frozenset(found)
