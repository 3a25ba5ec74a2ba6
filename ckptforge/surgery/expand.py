"""`expand`: a dense model becomes one with experts, of another table: its feed-forward network is
repeated, or cut along its inner axis, and the router is made.

He et al., "Upcycling Large Language Models into Mixture of Experts", 2024: with a router that
prefers none, experts that are repeated compute what the dense model does; pieces of a network give
a share of its output each, so that the last matrix of each is multiplied by their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.composing import terms_through
from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.edited import refuse_unmapped, with_config
from ckptforge.surgery.fills import Fill, parse_fill
from ckptforge.surgery.lengths import with_lengths
from ckptforge.surgery.rebuild import times
from ckptforge.surgery.rules import broken
from ckptforge.tables.axes import Pattern
from ckptforge.tables.convert import in_checkpoint_order
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.selection import selections_of
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Layout, Table
from ckptforge.transfers import Transfer
from ckptforge.values import Value
from ckptforge.wording import listing, nearest

NAME = "expand"
_CHOSEN = "num_experts_per_tok"


class Expansion(msgspec.Struct, frozen=True, kw_only=True):
    """Into which table, how many experts of which so many are chosen for a token, how many pieces
    the network is cut into, and how the router is filled."""

    table: Table
    experts: int
    active: int
    pieces: int
    router: Fill


def parse_expansion(written: Mapping[str, Any]) -> Expansion:
    """`to`, `experts`, `active` (2), `pieces` (1) and `router` ("zero") as written. Raises
    `UsageError`."""
    tables = {table.name: table for table in shipped_tables() if _experts_axis(table)}
    name = written.get("to")
    if name not in tables:
        near = nearest(str(name), tables)
        raise UsageError(
            f"{option('expand')}: to is {name!r}, expected a mapping of a model with experts: "
            f"{', '.join(tables)}.{near}"
        )
    counts = {
        key: written.get(key, usual)
        for key, usual in (("experts", 8), ("active", 2), ("pieces", 1))
    }
    for key, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UsageError(f"{option('expand')}: {key} is {count!r}, expected 1 or more.")
    if counts["experts"] % counts["pieces"] or counts["active"] > counts["experts"]:
        raise UsageError(
            f"{option('expand')}: {counts['experts']} experts must be a multiple of the "
            f"{counts['pieces']} pieces, and at least the {counts['active']} that are chosen."
        )
    router = parse_fill(str(written.get("router", "zero")))
    if router.kind not in ("zero", "normal"):
        raise UsageError(f"{option('expand')}: a router is filled with zero or normal:STD,SEED.")
    return Expansion(table=tables[name], router=router, **counts)


def expand(source: Source, written: Mapping[str, Any]) -> tuple[Model, list[str]]:
    """(the model as one of a table with experts, what config.json can't say of it). Raises
    `UsageError` for a model that has something else than that."""
    refuse_unmapped(source)
    wanted = parse_expansion(written)
    if _experts_axis(source.table):
        raise UsageError(
            f"{option('expand')}: {source.model.path} is {source.table.name}, which has experts "
            "already; only a dense model gets them."
        )
    if beside := source.binding.beside:
        raise UsageError(
            f"{option('expand')}: {source.model.path} has {beside[0]}, which "
            f"{wanted.table.name} hasn't: only a language model alone gets experts."
        )
    layout = wanted.table.first_layout("huggingface")
    work = _Expanding(source, wanted, layout)
    values = {}
    for pattern, pinned, name in in_checkpoint_order(work.patterns, work.lengths):
        values[name] = work.value(pattern, pinned)
    account = source.model.account.leaving("optimizer state and counters", source.state)
    made = replace(source.model, values=values, account=account)
    if not source.config:
        return made, []
    config, unsaid = work.config()
    return with_config(source, made, config), [*unsaid, *broken(config)]


class _Expanding:
    """A dense model while it gets experts."""

    def __init__(self, source: Source, wanted: Expansion, layout: Layout) -> None:
        self.source, self.wanted = source, wanted
        self.axis, self.inner = _experts_axis(wanted.table) or "", ""
        self.old = source.binding.sizes.lengths
        dense, table = source.table, wanted.table
        self.layers, without = _layers_with_experts(table, self.axis)
        held = [tensor for tensor in dense.tensors if source.binding.holds(tensor)]
        if strange := [tensor for tensor in held if tensor not in table.tensors]:
            raise UsageError(f"{table.name} has no {listing(strange).strip()}.")
        self.made = [
            tensor
            for tensor, axes in table.tensors.items()
            if tensor not in dense.tensors and tensor not in table.optional
            if without.isdisjoint(axes)
        ]
        for tensor in held:
            if self._axes(tensor) - {self.axis} != set(dense.tensors[tensor]):
                raise UsageError(
                    f"{tensor} is {' '.join(dense.tensors[tensor])} in {dense.name}, but "
                    f"{' '.join(table.tensors[tensor])} in {table.name}."
                )
            if self.axis in table.tensors[tensor]:
                self.inner = self._inner(tensor)
        if unknown := [t for t in self.made if self.axis not in table.tensors[t]]:
            raise UsageError(
                f"{table.name} has {', '.join(unknown)}, which {dense.name} hasn't, and which "
                "nothing here could make."
            )
        if not self.inner or self.old[self.inner] % wanted.pieces:
            raise UsageError(
                f"{option('expand')}: the inner axis of {self.old.get(self.inner)} can't be cut "
                f"into {wanted.pieces} pieces."
            )
        kept = {axis: self.old[axis] for axis in table.axes if axis in self.old}
        counted = {axis: range(self.old[every]) for axis, every in self.layers.items()}
        self.lengths = Lengths(kept | {axis: len(own) for axis, own in counted.items()}, counted)
        self.lengths = self.lengths.changed(
            {self.axis: wanted.experts, self.inner: self.old[self.inner] // wanted.pieces}
        )
        present = {*held, *self.made}
        self.patterns = [p for p in layout.patterns if set(p.tensors) <= present]

    def _axes(self, tensor: str) -> set[str]:
        """Those of a tensor of the new table, as the dense model has layers."""
        return {self.layers.get(axis, axis) for axis in self.wanted.table.tensors[tensor]}

    def _inner(self, tensor: str) -> str:
        """The inner axis: that of a network's matrix which isn't its input's or output's."""
        outer = {axis for made in self.made for axis in self._axes(made)}
        inner = [axis for axis in self.source.table.tensors[tensor] if axis not in outer]
        return inner[0] if len(inner) == 1 else ""

    def value(self, pattern: Pattern, pinned: Mapping[str, int]) -> Value:
        """A stored tensor of the new table."""
        layers = {self.layers[axis]: i for axis, i in pinned.items() if axis in self.layers}
        pinned = {**pinned, **layers}
        parts = [
            part for tensor in pattern.tensors for part in self._parts(pattern, tensor, pinned)
        ]
        return Value(
            dtype=parts[0][0].dtype,
            shape=pattern.shape(lambda _, axis: self.lengths[axis]),
            terms=tuple(terms_through(parts)),
            kind=pattern.kind,
        )

    def _parts(
        self, pattern: Pattern, tensor: str, pinned: Mapping[str, int]
    ) -> Iterator[tuple[Value, Transfer]]:
        axes = self.wanted.table.tensors[tensor]
        grid = pattern.place(tensor, axes, lambda _, axis: self.lengths[axis])
        if tensor in self.made:
            shape = tuple(self.lengths[axis] for axis in axes)
            dtype = next(iter(self.source.model.values.values())).dtype
            filled = self.wanted.router.filling()(tensor, "", shape, dtype)
            yield filled, _boxed(axes, self.lengths, pinned, grid.strides, grid.offset)
            return
        stored = self.source.binding.layout.holding(tensor)
        own = self.source.table.tensors[tensor]
        old = stored.place(tensor, own, lambda _, axis: self.old[axis])
        strides = dict(zip(own, old.strides, strict=True))
        name = stored.name({axis: pinned[axis] for axis in stored.name_axes}, self.old)
        value = self.source.model.values[name]
        experts = range(self.lengths[self.axis]) if self.axis in axes else range(1)
        if self.axis in pinned:
            experts = range(pinned[self.axis], pinned[self.axis] + 1)
        targets = dict(zip(axes, grid.strides, strict=True))
        whole = [axis for axis in own if axis not in pinned]
        cut = self.axis in axes and self.wanted.pieces > 1
        for expert in experts:
            piece = expert % self.wanted.pieces if cut else 0
            start = old.offset + piece * self.lengths[self.inner] * strides.get(self.inner, 0)
            at = grid.offset + (0 if self.axis in pinned else expert * targets.get(self.axis, 0))
            transfer = Transfer(
                tuple(self.lengths[axis] for axis in whole),
                start,
                tuple(strides[axis] for axis in whole),
                at,
                tuple(targets[axis] for axis in whole),
            )
            scaled = cut and own[-1] == self.inner
            yield times(value, self.wanted.pieces) if scaled else value, transfer.ordered()

    def config(self) -> tuple[dict[str, Any], list[str]]:
        """(config.json of the new model, what it can't say)."""
        dense, table = self.source.table, self.wanted.table
        config = dict(self.source.config)
        constants = dense.constants.of(config)
        mine = {} if constants is None else dict(constants.defaults)
        example = table.example
        new = {
            key: value
            for key, value in example.items()
            if key in ("architectures", "model_type")
            or (key not in config and key in _of_experts(table))
        }
        theirs = table.constants.by_model_type.get(str(example.get("model_type")))
        for key in theirs.defaults if theirs is not None else ():
            if key not in config and key in mine:
                new[key] = mine[key]
        config |= {**new, _CHOSEN: self.wanted.active}
        if "norm_topk_prob" in example:
            config["norm_topk_prob"] = True
        for axis in (self.axis, self.inner):
            for key in table.axes[axis].choices[:1]:
                config[key] = self.lengths[axis]
        return with_lengths(table, config, self.lengths, [self.axis])


def _of_experts(table: Table) -> set[str]:
    """Keys of a table's example that say how experts are used."""
    return {
        key
        for key, value in table.example.items()
        if any(word in key for word in ("expert", "sparse", "mlp_only", "topk", "router"))
        or key in (choice for one in table.axes.values() for choice in one.choices)
    }


def _experts_axis(table: Table) -> str | None:
    """The axis that counts experts: that of the router."""
    found = [axis for axis, one in table.axes.items() if "experts" in one.text]
    return found[0] if found else None


def _layers_with_experts(table: Table, experts: str) -> tuple[dict[str, str], set[str]]:
    """(the axis of a table that counts the layers with experts, where it counts only some → that of
    all layers; axes that count other layers)."""
    with_experts = {axis for axes in table.tensors.values() if experts in axes for axis in axes}
    some = dict(selections_of(table.axes))
    found = {axis: one.of for axis, one in some.items() if axis in with_experts}
    return found, {axis for axis, one in some.items() if one.but in map(some.get, found)}


def _boxed(
    axes: tuple[str, ...],
    lengths: Mapping[str, int],
    pinned: Mapping[str, int],
    strides: tuple[int, ...],
    offset: int,
) -> Transfer:
    """From a whole logical tensor the part that a stored one holds."""
    own, step = [1] * len(axes), 1
    for i in reversed(range(len(axes))):
        own[i], step = step, step * lengths[axes[i]]
    source = sum(
        pinned[axis] * stride for axis, stride in zip(axes, own, strict=True) if axis in pinned
    )
    whole = [i for i, axis in enumerate(axes) if axis not in pinned]
    return Transfer(
        tuple(lengths[axes[i]] for i in whole),
        source,
        tuple(own[i] for i in whole),
        offset,
        tuple(strides[i] for i in whole),
    ).ordered()
