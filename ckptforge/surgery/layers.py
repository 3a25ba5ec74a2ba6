"""The axes of a table that count layers: which layer of the model an index of each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.along import Along, Entry, taking
from ckptforge.surgery.lengths import single
from ckptforge.tables.binding import Binding
from ckptforge.tables.table import Table
from ckptforge.wording import counted


def layer_axes(table: Table) -> dict[str, str | None]:
    """Axis that counts some of the layers → the axis whose length is added to its index; the first
    counts all of them."""
    return dict(table.pipeline.layers) if table.pipeline is not None else {}


def layers_with(binding: Binding, axis: str) -> Iterator[tuple[str, int, int]]:
    """(axis of layers, index, number of the layer) of the layers that have an axis in some tensor;
    layers that no stage divides, such as those that predict further tokens, come after the
    others."""
    table, sizes = binding.table, binding.sizes
    counted_axes = layer_axes(table)
    total, lengths = sizes.get(next(iter(counted_axes), "")) or 0, sizes.lengths
    beside = {
        axes[0]: None
        for axes in table.tensors.values()
        if axis in axes and axes[0] != axis and axes[0] in table.counted
    }
    for layers in beside:
        for i in range(sizes.get(layers) or 0):
            if layers in counted_axes:
                yield layers, i, lengths.number(layers, i, counted_axes[layers])
            else:
                yield layers, i, total + i


def by_layer(
    binding: Binding,
    axis: str,
    lists: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    where: str,
) -> dict[tuple[str, int], tuple[Entry, ...]]:
    """The entries of an axis for each layer that has it: `lists` are by the number of the layer, or
    one for each such layer in order, or one for each layer of the model. Raises `UsageError`."""
    layers = list(layers_with(binding, axis))
    if not layers:
        raise UsageError(f"{where}: axis {axis} lies in no layers, so that one list is for all.")
    total = binding.sizes.get(next(iter(layer_axes(binding.table)), "")) or 0
    if isinstance(lists, Mapping):
        numbered = dict(lists)
    elif len(lists) == len(layers):
        numbered = {number: own for (_, _, number), own in zip(layers, lists, strict=True)}
    elif len(lists) in (total, total + sum(1 for *_, number in layers if number >= total)):
        numbered = dict(enumerate(lists))
    else:
        raise UsageError(
            f"{where}: {counted(len(lists), 'list')}, and {counted(len(layers), 'layer')} have "
            f"axis {axis} (of {total})."
        )
    if missing := [number for *_, number in layers if number not in numbered]:
        raise UsageError(
            f"{where}: layer {missing[0]} has axis {axis}, too, and no list is for it."
        )
    found = {(layer, i): taking(numbered[number]) for layer, i, number in layers}
    lengths = {len(entries) for entries in found.values()}
    if len(lengths) > 1:
        raise UsageError(
            f"{where}: the lists have different lengths, from {min(lengths)} to {max(lengths)}: "
            "all layers have as many, by config.json."
        )
    return found


def of_layers(binding: Binding, layers: Sequence[int], where: str) -> dict[str, Along]:
    """What becomes of each axis that counts layers where the model is made of these. Raises
    `UsageError` for an order that the table can't say."""
    table, sizes = binding.table, binding.sizes
    found: dict[str, Along] = {}
    starts: dict[str, tuple[list[int], int]] = {}
    for axis, offset in layer_axes(table).items():
        if axis in sizes.numbers:
            own = sizes.numbers[axis]
            at = tuple(i for i, layer in enumerate(layers) if layer in own)
            picks = taking([own.index(layers[i]) for i in at])
            found[axis] = Along(entries=picks, numbers=at)
            continue
        start, length = sizes.get(offset or "") or 0, sizes.get(axis) or 0
        places = [i for i, layer in enumerate(layers) if start <= layer < start + length]
        found[axis] = Along(entries=taking([layers[i] - start for i in places]))
        starts[axis] = places, 0 if offset is None else -1
    for axis, (places, _) in starts.items():
        offset = layer_axes(table)[axis]
        begin = 0 if offset is None else found[offset].length
        if places != list(range(begin, begin + len(places))):
            raise UsageError(
                f"{where}: the layers of axis {axis} ({table.axes[axis].text}) must stay together, "
                f"from layer {begin} on: config.json says only how many there are."
            )
    return found


def layers_gone(source: Source, made: Model) -> list[str]:
    """Of axes that count layers, and of which nothing is left in a model, what config.json would
    say wrongly. Of a tower nothing need be there."""
    table, binding, found = source.table, source.binding, []
    gone = {
        tower.layers
        for tower in table.towers.values()
        if made.values.keys().isdisjoint(binding.stored(tower.tensors))
    }
    for axis in table.axes if source.config else ():
        if axis in gone:
            continue
        own = [names for pattern, names in binding.names.items() if axis in pattern.name_axes]
        stored = [name for names in own for name in names.values()]
        if axis in table.counted and stored and not any(name in made.values for name in stored):
            key = single(table, axis, source.config) or table.axes[axis].text
            instead = option("take", f"{axis}=")
            found.append(
                f"{key} is {binding.sizes.get(axis)}, and nothing of them is left, as {instead} "
                "would say"
            )
    return found
