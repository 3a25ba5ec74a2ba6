"""Adding an adapter to a checkpoint's weights where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from ckptforge.adapters.adapter import Adapter, read_adapter, read_kept
from ckptforge.adapters.factors import Factors, Index, Lengths, row_count, row_lengths, row_transfer
from ckptforge.adapters.whole import refuse_tied, taken_whole
from ckptforge.boxes import Box, full_box
from ckptforge.checkpoints.opening import Checkpoint
from ckptforge.errors import LayoutError, counted, listing
from ckptforge.formats.entry import LowRank, Product, TensorEntry
from ckptforge.reading.source import Source
from ckptforge.spelling import command
from ckptforge.tables.axes import Pattern
from ckptforge.tables.lora import rows_of
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Table


def merge_adapter(source: Source, checkpoint: Checkpoint, alpha: float | None) -> Source:
    """A checkpoint to whose weights an adapter is added where they are read, in float32, and whose
    weights are those that the adapter holds whole.

    Raises what `read_adapter` raises, and `LayoutError` for factors that the checkpoint has no
    weight for, whose shapes don't fit, or that would change two weights of the model that are one.
    """
    binding = source.binding
    advice = (
        f"Convert it first, with {command('to_torch', checkpoint.path, 'DIR', layout='LAYOUT')}."
    )
    adapter = read_adapter(
        checkpoint,
        read_kept(checkpoint),
        source.table,
        binding.sizes.lengths,
        alpha,
        None,
        binding.layout.name,
        advice,
    )
    refuse_tied(adapter, source)
    whole = taken_whole(adapter, source)
    tensors = {**source.checkpoint.tensors, **whole}
    shards = {name: parts for name, parts in source.checkpoint.shards.items() if name not in whole}
    merged, used = _add(adapter, source, tensors, shards)
    if lost := [
        f"{one.a.name} for {tensor}"
        for (tensor, index), one in adapter.by_tensor.items()
        if (tensor, index) not in used
    ]:
        raise LayoutError(
            f"{adapter.path}: {source.checkpoint.path}, in layout {binding.layout.name}, has no "
            f"matrix that can take up\n{listing(lost)}\n"
            "Is it an adapter of this model? Experts that are stacked take none: merge into the "
            "Hugging Face directory."
        )
    files = {file.path: file for file in (*source.checkpoint.files, *adapter.checkpoint.files)}
    notes = [
        note for note in (*checkpoint.notes, *adapter.notes) if note not in source.checkpoint.notes
    ]
    notes.append(f"the adapter {adapter.path} is merged into {counted(merged, 'weight')}.")
    notes += [f"the adapter's {text}, which replaces the model's." for text in adapter.whole_texts]
    changed = replace(
        source.checkpoint,
        tensors=tensors,
        shards=shards,
        files=tuple(files.values()),
        notes=(*source.checkpoint.notes, *notes),
    )
    own = {entry for one in adapter.factors for entry in (one.a, one.b)}
    unmapped = tuple(name for name in source.unmapped if source.checkpoint.tensors[name] not in own)
    return replace(
        source, checkpoint=changed, unmapped=unmapped, unmerged=source.checkpoint.tensors
    )


def _add(
    adapter: Adapter,
    source: Source,
    tensors: dict[str, TensorEntry],
    shards: dict[str, tuple[tuple[Box, TensorEntry], ...]],
) -> tuple[int, set[tuple[str, Index]]]:
    """Adds the products to the tensors and their parts; (to how many weights, whose factors were
    used)."""
    binding = source.binding
    matrices = source.table.lora.matrices.get(binding.layout.name, frozenset())
    merged = 0
    used: set[tuple[str, Index]] = set()
    for pattern, names in binding.names.items():
        for numbers, name in names.items() if pattern in matrices else ():
            index = tuple(sorted(zip(pattern.name_axes, numbers, strict=True)))
            adapted = {
                t: adapter.by_tensor[t, index]
                for t in pattern.tensors
                if (t, index) in adapter.by_tensor
            }
            if not adapted:
                continue
            used.update((tensor, index) for tensor in adapted)
            entry = tensors[name]
            found = list(_products(adapted, rows_of(pattern), entry, binding.sizes, source.table))
            if products := tuple(product for product in found if product.scale):
                merged += 1
                tensors[name] = replace(entry, plus=LowRank(products, full_box(entry.shape)))
                if name in shards:
                    shards[name] = tuple(
                        (box, replace(part, plus=LowRank(products, box)))
                        for box, part in shards[name]
                    )
    return merged, used


def _products(
    adapted: Mapping[str, Factors],
    into: Pattern,
    entry: TensorEntry,
    sizes: AxisSizes,
    table: Table,
) -> Iterator[Product]:
    """The products for one matrix, whose rows are `into`."""
    lengths: Lengths = {}
    if not entry.value_dtype.floating:
        raise LayoutError(
            f"{entry.path}: {entry.label} is {entry.dtype}, to which nothing can be added."
        )
    for tensor, one in adapted.items():
        if one.columns != entry.shape[1]:
            raise LayoutError(
                f"{one.a.path}: {one.a.name} has shape {list(one.a.shape)}, but {entry.label} in "
                f"{entry.path} has {entry.shape[1]} columns."
            )
        alike = one.rows_as(into)
        if not alike:
            lengths = lengths or row_lengths(table, sizes, adapted, into)
        rows = row_transfer(tensor, one, into, lengths)
        whole = rows.size if alike else row_count(one.weight.rows, lengths)
        if (
            rows.last_source >= one.height
            or rows.last_target >= entry.shape[0]
            or whole != one.height
            or (alike and whole != entry.shape[0])
        ):
            raise LayoutError(
                f"{one.b.path}: {one.b.name} has shape {list(one.b.shape)}, whose rows don't fit "
                f"those of {tensor} in {entry.label} "
                f"{list(entry.shape)} of {entry.path}; is it an adapter of this model?"
            )
        yield Product(one.a, one.b, one.scale, rows, one.turned)
        if alike:
            return  # all rows at once
