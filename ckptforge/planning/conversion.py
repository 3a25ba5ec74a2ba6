"""From a bound checkpoint to another layout of its table: the tensors to write, and the copies that
fill them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box, Transfer, row_major_strides, within_source, within_target
from ckptforge.dtypes import DType, holds
from ckptforge.errors import MissingTensorsError, PlanError, listing
from ckptforge.formats.entry import TensorEntry
from ckptforge.formats.layout import FileLayout, TensorSpec
from ckptforge.planning.plan import Assembly, Pair, fill, prove_complete, prove_filled
from ckptforge.spelling import flag, option
from ckptforge.tables.axes import Pattern, skeleton_of
from ckptforge.tables.binding import Binding, name_pieces, pieces, whole_pieces
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout

Sources = dict[str, TensorEntry]
Copies = list[tuple[TensorEntry, Transfer]]
Absent = dict[str, list[str]]
Shards = Mapping[str, tuple[tuple[Box | None, TensorEntry], ...]]


class PlacedFile(msgspec.Struct, frozen=True):
    """A file to be written, and which box of the full tensor each of its tensors is; no box: all of
    it."""

    layout: FileLayout
    boxes: Mapping[str, Box] = msgspec.field(default_factory=dict)


@dataclass
class Conversion:
    """Target tensors in the order of the layout, and what fills each; `used` are the source tensors
    that go into them, `zeroed` the targets that are 0 where nothing fills them, `repeated` those
    that are others once more, `uncast` those that a cast of the weights left as they are."""

    specs: list[TensorSpec]
    copies: dict[str, Copies]
    groups: dict[str, str]
    used: list[TensorEntry]
    zeroed: set[str] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    uncast: list[TensorSpec] = field(default_factory=list)

    def keep(self, entry: TensorEntry, dtype: DType | None = None) -> None:
        """Adds a source tensor as it is, except for a cast."""
        self.specs.append(TensorSpec(entry.name, dtype or entry.value_dtype, entry.shape))
        strides = row_major_strides(entry.shape)
        self.copies[entry.name] = (
            [(entry, Transfer(entry.shape, 0, strides, 0, strides).ordered())]
            if entry.elements
            else []
        )
        self.groups[entry.name] = skeleton_of(entry.name)[0]
        self.used.append(entry)

    def repeat(self, original: str, name: str) -> None:
        """Adds a target tensor that is another once more."""
        spec = next(spec for spec in self.specs if spec.name == original)
        self.specs.append(replace(spec, name=name))
        self.copies[name], self.groups[name] = self.copies[original], self.groups[original]
        self.repeated.add(name)

    def extend(self, other: Conversion) -> None:
        self.specs += other.specs
        self.copies.update(other.copies)
        self.groups.update(other.groups)
        self.used += other.used
        self.zeroed |= other.zeroed
        self.repeated |= other.repeated
        self.uncast += other.uncast

    def uncast_notes(self, dtype: DType | None, keyword: str = "dtype") -> tuple[str, ...]:
        """A sentence about the tensors that a cast to `dtype`, by the option `keyword`, left as
        they are."""
        if dtype is None or not self.uncast:
            return ()
        counts = sorted(Counter(spec.dtype.name for spec in self.uncast).items())
        found = " and ".join(f"{n} tensor{'s' if n > 1 else ''} in {name}" for name, n in counts)
        example = f"{'such as ' if len(self.uncast) > 1 else ''}{self.uncast[0].name}"
        return (
            f"{option(keyword, dtype.name)} left {found}, as the model's table says: {example}.",
        )

    def assemblies(self, outputs: Sequence[PlacedFile], shards: Shards) -> tuple[Assembly, ...]:
        """The assemblies for files that hold the target tensors or boxes of them; coverage is
        proved.

        `shards` are the parts of source tensors that don't lie in one piece. Raises `PlanError`.
        """
        lowered = {
            name: tuple(_from_shards(copies, shards)) for name, copies in self.copies.items()
        }
        if not any(output.boxes for output in outputs):
            found = [
                Assembly(
                    entry, self.groups[entry.name], lowered[entry.name], entry.name in self.zeroed
                )
                for output in outputs
                for entry in output.layout.tensors.values()
            ]
            prove_complete(
                [a for a in found if a.target.name not in self.repeated], _parts(self.used, shards)
            )
            prove_complete([a for a in found if a.target.name in self.repeated], ())
            return tuple(found)
        return tuple(self._cut(outputs, lowered))

    def _cut(
        self,
        outputs: Sequence[PlacedFile],
        lowered: Mapping[str, tuple[tuple[TensorEntry, Transfer], ...]],
    ) -> Iterator[Assembly]:
        """The assemblies of ranks. What is alike, as layers and replicas are, is cut and proved
        once."""
        shapes = {spec.name: spec.shape for spec in self.specs}
        alike: dict[tuple[object, ...], int] = {}
        kinds: dict[str, int] = {}
        for name, copies in lowered.items():
            key = (
                shapes[name],
                name in self.zeroed,
                tuple((source.elements, transfer) for source, transfer in copies),
            )
            kinds[name] = alike.setdefault(key, len(alike))
        cuts: dict[tuple[int, Box | None], tuple[tuple[Transfer, ...], ...]] = {}
        seen: set[tuple[str, Box | None]] = set()
        for output in outputs:
            for entry in output.layout.tensors.values():
                name = entry.name
                box, copies = output.boxes.get(name), lowered[name]
                parts = cuts.get((kinds[name], box))
                proved = parts is not None
                if parts is None:
                    parts = tuple(
                        (copy,) if box is None else within_target(copy, shapes[name], box)
                        for _, copy in copies
                    )
                    cuts[kinds[name], box] = parts
                pairs = tuple(
                    [
                        (source, part)
                        for (source, _), cut in zip(copies, parts, strict=True)
                        for part in cut
                    ]
                )
                assembly = Assembly(
                    entry, self.groups[name], pairs, name in self.zeroed, (name, box) in seen
                )
                seen.add((name, box))
                if not proved:
                    prove_filled(assembly)
                yield assembly

    def against(
        self, names: Sequence[str], others: Sources, shards: Shards, other_shards: Shards
    ) -> list[Pair]:
        """The target tensors of these names beside tensors of the same names and shapes that are
        there already, part by part."""
        pairs = []
        dtypes = {spec.name: spec.dtype for spec in self.specs}
        for name in names:
            lowered = _from_shards(self.copies.get(name, []), shards)
            whole = others[name]
            for box, entry in other_shards.get(name, ((None, whole),)):
                copies = lowered
                if box is not None:
                    copies = [
                        (source, part)
                        for source, copy in lowered
                        for part in within_target(copy, whole.shape, box)
                    ]
                target = replace(entry, dtype=dtypes[name], extents=())
                pairs.append(Pair(Assembly(target, self.groups[name], tuple(copies)), entry, box))
        return pairs

    def only(self, names: Sequence[str], shards: Shards) -> list[Assembly]:
        """The assemblies of some target tensors, of no file."""
        chosen = set(names)
        return [
            Assembly(
                TensorEntry(spec.name, spec.dtype, spec.shape, Path(), ()),
                self.groups[spec.name],
                tuple(_from_shards(self.copies.get(spec.name, []), shards)),
            )
            for spec in self.specs
            if spec.name in chosen
        ]


def _from_shards(copies: Copies, shards: Shards) -> Copies:
    return [
        (part, piece.ordered())
        for source, copy in copies
        for box, part in shards.get(source.name, ((None, source),))
        for piece in ([copy] if box is None else within_source(copy, source.shape, box))
    ]


def _parts(used: Sequence[TensorEntry], shards: Shards) -> Iterator[TensorEntry]:
    for source in used:
        yield from (part for _, part in shards.get(source.name, ((None, source),)))


def identity(
    sources: Sources, names: Sequence[str], dtype: DType | None, kept: frozenset[str]
) -> Conversion:
    """These tensors as they are, except for a cast to `dtype`, unless that is None, of the
    floating-point weights that aren't `kept`."""
    conversion = Conversion([], {}, {}, [])
    for name in names:
        entry = sources[name]
        castable = dtype is not None and entry.dtype.floating and not is_state(name)
        cast = dtype is not None and castable and (name not in kept or holds(dtype, entry.dtype))
        conversion.keep(entry, dtype if cast else entry.dtype)
        if castable and not cast:
            conversion.uncast.append(conversion.specs[-1])
    return conversion


def convert(
    binding: Binding,
    target: Layout,
    sources: Sources,
    dtype: DType | None,
    prefix: str = "",
    copied: Callable[[str], bool] = lambda _: True,
) -> Conversion:
    """Every tensor of `target` from the tensors of a binding, cast to `dtype` unless that is None,
    except those that keep theirs by the table.

    Of the copies that `target` has of some tensors, those are made that are `copied`. With a
    `prefix`, the same for the tensors that bear it before their weight's name (optimizer state);
    those whose sources are all absent are left away. Raises `PlanError` when tensors that become
    one differ in dtype, and `ConfigError` when a size is needed that nothing tells.
    """
    table = binding.table
    tensors = [tensor for tensor in table.tensors if binding.holds(tensor)]
    origin = {tensor: binding.layout.holding(tensor) for tensor in tensors}
    wanted = [pattern for pattern in target.patterns if set(pattern.tensors) <= set(tensors)]
    counts = {axis: size for axis, (size, _) in binding.sizes.known.items()}
    lengths: dict[str, dict[str, int]] = {}
    shapes: dict[Pattern, tuple[int, ...]] = {}
    copies: dict[str, Copies] = {}
    groups: dict[str, str] = {}
    absent: Absent = {}
    opaque = {
        pattern: origin[pattern.tensors[0]]
        for pattern in wanted
        if _same_inside(pattern, [origin[t] for t in pattern.tensors])
    }
    for pattern in wanted:
        if pattern not in opaque:
            for tensor in pattern.tensors:
                for neighbour in (*pattern.tensors, *origin[tensor].tensors):
                    source = origin[neighbour]
                    lengths[neighbour] = binding.sizes.telling(
                        table, neighbour, source, target.holding(neighbour), binding.shapes[source]
                    )
    for pattern in wanted:
        if pattern in opaque:
            source = opaque[pattern]
            shapes[pattern] = binding.shapes[source]
            pinned = range(len(pattern.name_axes))
            found = fill(
                whole_pieces(pattern, shapes[pattern], counts),
                whole_pieces(source, shapes[pattern], counts),
                pinned,
            )
            _gather(copies, absent, found, sources, prefix)
        else:
            shapes[pattern] = pattern.shape(lambda part, axis: lengths[part][axis])
            for tensor in pattern.tensors:
                axes = table.tensors[tensor]
                both = set(pattern.name_axes) & set(origin[tensor].name_axes)
                found = fill(
                    pieces(pattern, tensor, axes, lengths, counts),
                    pieces(origin[tensor], tensor, axes, lengths, counts),
                    [i for i, axis in enumerate(axes) if axis in both],
                )
                _gather(copies, absent, found, sources, prefix)
        for _, name in name_pieces(pattern, counts):
            groups[prefix + name] = "+".join(pattern.tensors)
    _refuse_partial(copies, absent)
    specs, uncast = [], []
    for pattern, name in _in_order(wanted, lambda pattern: list(name_pieces(pattern, counts))):
        full = prefix + name
        if full in copies:
            kept = table.keeps_dtype(pattern)
            widened = (
                kept
                and dtype is not None
                and all(holds(dtype, source.value_dtype) for source, _ in copies[full])
            )
            specs.append(
                TensorSpec(
                    full,
                    _target_dtype(full, copies[full], None if kept and not widened else dtype),
                    shapes[pattern],
                )
            )
            if kept and dtype is not None and specs[-1].dtype.floating and specs[-1].dtype != dtype:
                uncast.append(specs[-1])
    used = [
        sources[prefix + name]
        for names in binding.names.values()
        for name in names.values()
        if prefix + name in sources
    ]
    conversion = Conversion(specs, copies, groups, used, uncast=uncast)
    if not prefix:
        _repeat(conversion, target, binding, counts, copied)
    return conversion


def _repeat(
    conversion: Conversion,
    target: Layout,
    binding: Binding,
    counts: Mapping[str, int],
    copied: Callable[[str], bool],
) -> None:
    """Adds the copies that `target` has of tensors."""
    for copy in target.copies:
        if binding.holds(copy.tensors[0]) and all(axis in counts for axis in copy.name_axes):
            for _, name in name_pieces(copy, counts):
                if copied(name):
                    conversion.repeat(target.holding(copy.tensors[0]).template, name)


def _same_inside(pattern: Pattern, origins: Sequence[Pattern]) -> bool:
    """Whether a stored tensor goes over as it is: one source pattern with the same axes, name axes
    and parts."""
    first = origins[0]
    return (
        all(origin is first for origin in origins)
        and first.tensors == pattern.tensors
        and (first.axes, first.shape_axes) == (pattern.axes, pattern.shape_axes)
        and first.name_axes == pattern.name_axes
    )


def _gather(
    copies: dict[str, Copies],
    absent: Absent,
    found: dict[str, list[tuple[str, Box, Transfer]]],
    sources: Sources,
    prefix: str,
) -> None:
    for name, parts in found.items():
        for source, _, transfer in parts:
            if prefix + source in sources:
                copies.setdefault(prefix + name, []).append((sources[prefix + source], transfer))
            else:
                absent.setdefault(prefix + name, []).append(prefix + source)


def _refuse_partial(copies: dict[str, Copies], absent: Absent) -> None:
    for name, missing in absent.items():
        if name in copies:
            raise MissingTensorsError(
                f"{name} can't be made, as some of its parts are "
                f"missing:\n{listing(missing)}\nGive {flag('weights_only')} to drop such state."
            )


def _target_dtype(name: str, copies: Copies, dtype: DType | None) -> DType:
    dtypes = {entry.value_dtype: entry for entry, _ in copies}
    if dtype is not None and all(found.floating for found in dtypes):
        return dtype
    if len(dtypes) > 1:
        found = "; ".join(
            f"{entry.label} is {entry.value_dtype} in {entry.path}" for entry in dtypes.values()
        )
        raise PlanError(
            f"{name} is made of tensors of different dtypes: {found}. Cast them all "
            f"with {option('dtype')}."
        )
    return next(iter(dtypes))


def _in_order(
    patterns: Sequence[Pattern], names: Callable[[Pattern], list[tuple[dict[str, int], str]]]
) -> Iterator[tuple[Pattern, str]]:
    """(pattern, name) in checkpoint order: neighbouring patterns that begin with the same axis (the
    layers) take turns."""
    for axis, group in groupby(patterns, key=lambda pattern: pattern.name_axes[:1]):
        members = list(group)
        if not axis:
            yield from ((pattern, name) for pattern in members for _, name in names(pattern))
            continue
        turns: dict[int, list[tuple[Pattern, str]]] = {}
        for pattern in members:
            for pinned, name in names(pattern):
                turns.setdefault(pinned[axis[0]], []).append((pattern, name))
        for turn in sorted(turns):
            yield from turns[turn]
