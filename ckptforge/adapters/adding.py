"""Adding an adapter to a checkpoint: its products where weights are read, and the weights that it
holds whole in place of the model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from ckptforge.adapters.adapter import Adapter, read_adapter, read_kept
from ckptforge.adapters.adapter_layout import factor_names
from ckptforge.adapters.factors import (
    Factors,
    Index,
    RowLengths,
    row_count,
    row_lengths,
    row_transfer,
)
from ckptforge.adapters.stack_adding import add_stacks
from ckptforge.composing import box_of
from ckptforge.errors import FormatError, LayoutError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import command
from ckptforge.steps.low_rank import Added, Product
from ckptforge.tables.axes import Pattern
from ckptforge.tables.lora import rows_of
from ckptforge.tables.names import indexed, recognise_names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Table
from ckptforge.values import Fragment, Value, whole_transfer
from ckptforge.wording import counted, listing


def add_adapter(source: Source, model: Model, alpha: float | None) -> Source:
    """A checkpoint to whose weights an adapter is added where they are read, in float32, and whose
    weights are those that the adapter holds whole.

    Raises what `read_adapter` raises, and `LayoutError` for factors that the checkpoint has no
    weight for, whose shapes don't fit, or that would change two weights of the model that are one.
    """
    binding = source.binding
    lengths, layout, table = binding.sizes.lengths, binding.layout.name, source.table
    refuse_views(model)
    kept = read_kept(model)
    adapter = read_adapter(
        model, kept, table, lengths, alpha, like=layout, stored=binding.names.keys()
    )
    refuse_tied(adapter, source)
    whole = taken_whole(adapter, source)
    values = {**source.model.values, **whole}
    merged, used = _add(adapter, source, values)
    if lost := {key: one for key, one in adapter.by_tensor.items() if key not in used}:
        raise LayoutError(_lost(adapter, source, lost))
    stacked = add_stacks(source, adapter.stacks, values)
    merged, values = merged + len(stacked), {**values, **stacked}
    files = {file.path: file for file in (*source.model.files, *adapter.model.files)}
    notes = [note for note in (*model.notes, *adapter.notes) if note not in source.model.notes]
    notes.append(f"the adapter {adapter.path} is merged into {counted(merged, 'weight')}.")
    notes += [f"the adapter's {text}, which replaces the model's." for text in adapter.whole_texts]
    changed = replace(source.model, values=values, files=tuple(files.values())).noting(*notes)
    own = {factor.origin for one in adapter.factors for factor in (one.a, one.b)}
    own |= {factor.origin for one in adapter.stacks for factor in (one.a, one.b)}
    unmapped = [name for name in source.unmapped if source.model.values[name].origin not in own]
    return replace(source, model=changed, unmapped=tuple(unmapped))


def refuse_views(model: Model) -> None:
    """Raises `FormatError` for factors that are views of what is stored, as torch.save keeps
    them."""
    for name in factor_names(model.values):
        value = model.values[name]
        fragments, whole = list(value.fragments), whole_transfer(value.shape).coalesced()
        plain = [one for one in fragments if one.stored.shape == value.shape]
        if len(fragments) != 1 or [one.transfer.coalesced() for one in plain] != [whole]:
            raise FormatError(
                f"{value.origin.path}: {name} is a view of what is stored, a transpose or the "
                "like; save the adapter with its factors made .contiguous(), or as safetensors."
            )


def _lost(adapter: Adapter, source: Source, lost: Mapping[tuple[str, Index], Factors]) -> str:
    """That some factors have no matrix, and what to do where the table's first layout of Hugging
    Face has them, in which nothing is stacked that may have an adapter."""
    table, layout = source.table, source.binding.layout
    names = dict.fromkeys(f"{one.a.origin.name} for {tensor}" for (tensor, _), one in lost.items())
    hub = table.first_layout("huggingface")
    there = {t for one in table.lora.matrices.get(hub.name, ()) for t in one.tensors}
    advice = "Is it an adapter of this model?"
    if hub is not layout and {tensor for tensor, _ in lost} <= there:
        way = command("convert", source.model.path, "DIR", to=hub.name)
        advice = (
            f"What it holds in one, such as stacked experts, takes none; in layout {hub.name} "
            f"each is a matrix of its own: convert the model first, with {way}, and merge into DIR."
        )
    return (
        f"{adapter.path}: {source.model.path}, in layout {layout.name}, has no matrix that can "
        f"take up\n{listing(list(names))}\n{advice}"
    )


def _add(
    adapter: Adapter, source: Source, values: dict[str, Value]
) -> tuple[int, set[tuple[str, Index]]]:
    """Adds the products to the values; (to how many weights, whose factors were used)."""
    binding = source.binding
    matrices = source.table.lora.matrices.get(binding.layout.name, frozenset())
    merged = 0
    used: set[tuple[str, Index]] = set()
    for pattern, names in binding.names.items():
        for numbers, name in names.items() if pattern in matrices else ():
            index = tuple(sorted(zip(pattern.name_axes, numbers, strict=True)))
            adapted = adapter.at(pattern.tensors, index)
            if not adapted:
                continue
            used.update((tensor, index) for tensor in adapted)
            entry = values[name]
            found = list(_products(adapted, rows_of(pattern), entry, binding.sizes, source.table))
            if products := tuple(product for product in found if product.scale):
                merged += 1
                values[name] = _added(entry, products)
    return merged, used


def _added(value: Value, products: tuple[Product, ...]) -> Value:
    """A matrix with products added to each of its stored parts."""

    def add(fragment: Fragment) -> Fragment:
        step = Added(products=products, box=box_of(fragment.transfer, value.shape))
        return replace(fragment, steps=(*fragment.steps, step))

    return value.map(add)


def _part_of(factor: Value) -> tuple[int, int, int] | None:
    """Which part of what is stored a factor is; None for all of it."""
    if factor.shape == factor.origin.shape:
        return None
    (fragment,) = factor.fragments
    row, column = divmod(fragment.transfer.source, factor.origin.shape[1])
    return row, column, fragment.transfer.source_strides[-1]


def _products(
    adapted: Mapping[str, Factors], into: Pattern, entry: Value, sizes: AxisSizes, table: Table
) -> Iterator[Product]:
    """The products for one matrix, whose rows are `into`."""
    lengths: RowLengths = {}
    if not entry.dtype.floating:
        raise LayoutError(
            f"{entry.origin.path}: {entry.origin.name} is {entry.dtype}, to which nothing can be "
            "added."
        )
    for tensor, one in adapted.items():
        if one.columns != entry.shape[1]:
            raise LayoutError(
                f"{one.a.origin.path}: {one.a.origin.name} has shape {list(one.a.shape)}, but "
                f"{entry.origin.name} in {entry.origin.path} has {entry.shape[1]} columns."
            )
        same = one.rows_as(into)
        if not same:
            lengths = lengths or row_lengths(table, sizes, adapted, into)
        rows = row_transfer(tensor, one, into, lengths)
        whole = rows.size if same else row_count(one.weight.rows, lengths)
        outside = rows.last_source >= one.height or rows.last_target >= entry.shape[0]
        if outside or whole != one.height or (same and whole != entry.shape[0]):
            raise LayoutError(
                f"{one.b.origin.path}: {one.b.origin.name} has shape {list(one.b.shape)}, whose "
                f"rows don't fit those of {tensor} in {entry.origin.name} {list(entry.shape)} of "
                f"{entry.origin.path}; is it an adapter of this model?"
            )
        yield Product(
            a=one.a.origin,
            b=one.b.origin,
            scale=one.scale,
            rows=rows,
            turned=one.turned,
            b_part=_part_of(one.b),
        )
        if same:
            return  # all rows at once


_TIED = "tie_word_embeddings"


def taken_whole(adapter: Adapter, source: Source) -> dict[str, Value]:
    """Name in the source's layout → the tensor of the adapter that takes its place.

    Raises `LayoutError` where the source stores such a weight with others or in another order, or
    in another shape.
    """
    binding = source.binding
    lengths = binding.sizes.lengths
    found, _ = recognise_names(adapter.layout, adapter.whole, lengths)
    taken: dict[str, Value] = {}
    for pattern, names in indexed(found, lengths).items():
        same = next(
            (names for stored, names in binding.names.items() if stored.stores_as(pattern)), {}
        )
        for numbers, name in names.items():
            entry = adapter.whole[name]
            if numbers not in same:
                raise LayoutError(
                    f"{entry.origin.path}: holds {entry.origin.name} whole, for which "
                    f"{source.model.path}, in layout {binding.layout.name}, has no tensor of its "
                    "own with the same order of numbers: merge into the Hugging Face directory, "
                    "then convert that."
                )
            base = source.model.values[same[numbers]]
            if entry.shape != base.shape or not entry.dtype.floating:
                raise LayoutError(
                    f"{entry.origin.path}: {entry.origin.name} is {entry.dtype} "
                    f"{list(entry.shape)}, but {base.origin.name} in {base.origin.path} "
                    f"{list(base.shape)}. Where the vocabulary was extended, extend the model too "
                    "(transformers' resize_token_embeddings), save it, and merge into that."
                )
            taken[same[numbers]] = entry
    return taken


def refuse_tied(adapter: Adapter, source: Source) -> None:
    """Raises `LayoutError` for one that changes only one of a tied embedding and head."""
    table, binding = source.table, source.binding
    optional = table.optional.items()
    conditions = {tensor: one for tensor, one in optional if one.text == _TIED}
    heads = {
        tensor
        for tensor, condition in conditions.items()
        if not binding.holds(tensor) or condition.holds(source.config)
    }
    if not heads:
        return
    tied = table.pipeline.tied if table.pipeline else {}
    one = {*heads, *table.lora.embeddings, *(tied[head] for head in heads if head in tied)}
    adapted = ((tensor, one) for (tensor, _), one in adapter.by_tensor.items())
    changed = [f.b.origin.name for tensor, f in adapted if tensor in one and f.scale]
    found, _ = recognise_names(adapter.layout, adapter.whole)
    whole = (names for pattern, names in found.items() if one & set(pattern.tensors))
    changed += [adapter.whole[name].origin.name for names in whole for name in names.values()]
    if changed:
        raise LayoutError(
            f"{adapter.path}: {changed[0]} changes the embedding or the head alone, but in "
            f"{source.model.path} both are one tensor ({_TIED} in config.json), so that merging "
            f"would change the other too. Save the model with {_TIED} = false and a head of its "
            "own (a copy of the embedding), and merge into that; or keep the adapter apart."
        )
