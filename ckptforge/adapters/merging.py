"""Adding an adapter to a checkpoint's weights where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from ckptforge.adapters.adapter import read_adapter, read_kept
from ckptforge.adapters.factors import Factors, Index, Lengths, row_count, row_lengths, row_transfer
from ckptforge.boxes import full_box
from ckptforge.errors import LayoutError, counted, listing
from ckptforge.formats.checkpoint import Checkpoint
from ckptforge.formats.entry import LowRank, Product, TensorEntry
from ckptforge.mapping.lora import AdaptedWeight
from ckptforge.mapping.sizes import AxisSizes
from ckptforge.mapping.table import Table
from ckptforge.source import Source
from ckptforge.spelling import command


def merge_adapter(source: Source, checkpoint: Checkpoint, alpha: float | None) -> Source:
    """A checkpoint to whose weights an adapter is added where they are read, in float32.

    Raises what `read_adapter` raises, and `LayoutError` for factors that the checkpoint has no weight for, or whose shapes don't fit.
    """
    binding = source.binding
    advice = f"Convert it first, with {command('to_torch', checkpoint.path, 'DIR', layout='LAYOUT')}."
    adapter = read_adapter(checkpoint, read_kept(checkpoint), source.table, binding.sizes.lengths, alpha, None, binding.layout.name, advice)
    weights = {weight.weight: weight for weight in source.table.lora.get(binding.layout.name, ())}
    used: set[tuple[str, Index]] = set()
    tensors, shards = dict(source.checkpoint.tensors), dict(source.checkpoint.shards)
    merged = 0
    for pattern, names in binding.names.items():
        for numbers, name in names.items():
            index = tuple(sorted(zip(pattern.name_axes, numbers, strict=True)))
            adapted = {t: adapter.by_tensor[t, index] for t in pattern.tensors if (t, index) in adapter.by_tensor}
            if not adapted or pattern not in weights:
                continue
            entry = tensors[name]
            products = tuple(_products(adapted, weights[pattern], entry, binding.sizes, source.table))
            used.update((tensor, index) for tensor in adapted)
            merged += 1
            tensors[name] = replace(entry, plus=LowRank(products, full_box(entry.shape)))
            if name in shards:
                shards[name] = tuple((box, replace(part, plus=LowRank(products, box))) for box, part in shards[name])
    if lost := [f"{one.a.name} for {tensor}" for (tensor, index), one in adapter.by_tensor.items() if (tensor, index) not in used]:
        raise LayoutError(
            f"{adapter.path}: {source.checkpoint.path}, in layout {binding.layout.name}, has no matrix that can take up\n{listing(lost)}\n"
            "Is it an adapter of this model? Experts that are stacked take none: merge into the Hugging Face directory."
        )
    files = {file.path: file for file in (*source.checkpoint.files, *adapter.checkpoint.files)}
    factors = {entry for one in adapter.factors for entry in (one.a, one.b)}
    note = f"the adapter {adapter.path} is merged into {counted(merged, 'weight')}."
    added = [note for note in checkpoint.notes if note not in source.checkpoint.notes]
    changed = replace(
        source.checkpoint, tensors=tensors, shards=shards, files=tuple(files.values()), notes=(*source.checkpoint.notes, *added, note)
    )
    unmapped = tuple(name for name in source.unmapped if source.checkpoint.tensors[name] not in factors)
    return replace(source, checkpoint=changed, unmapped=unmapped)


def _products(
    adapted: Mapping[str, Factors], weight: AdaptedWeight, entry: TensorEntry, sizes: AxisSizes, table: Table
) -> Iterator[Product]:
    lengths: Lengths = {}
    if not entry.value_dtype.floating:
        raise LayoutError(f"{entry.path}: {entry.name} is {entry.dtype}, to which nothing can be added.")
    for tensor, one in adapted.items():
        if one.a.shape[1] != entry.shape[1]:
            raise LayoutError(
                f"{one.a.path}: {one.a.name} has shape {list(one.a.shape)}, but {entry.name} in {entry.path} has {entry.shape[1]} columns."
            )
        if not one.rows_as(weight):
            lengths = lengths or row_lengths(table, sizes, adapted, weight)
        rows = row_transfer(tensor, one, weight, lengths)
        whole = rows.size if one.rows_as(weight) else row_count(one.weight, lengths)
        if (
            rows.last_source >= one.b.shape[0]
            or rows.last_target >= entry.shape[0]
            or whole != one.b.shape[0]
            or (one.rows_as(weight) and whole != entry.shape[0])
        ):
            raise LayoutError(
                f"{one.b.path}: {one.b.name} has shape {list(one.b.shape)}, whose rows don't fit those of {tensor} in {entry.name} "
                f"{list(entry.shape)} of {entry.path}; is it an adapter of this model?"
            )
        yield Product(one.a, one.b, one.scale, rows)
        if one.rows_as(weight):
            return  # all rows at once
