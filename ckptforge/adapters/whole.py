"""Weights that an adapter holds whole, and those of a model that are one."""

from __future__ import annotations

from ckptforge.adapters.adapter import Adapter
from ckptforge.errors import LayoutError
from ckptforge.reading.source import Source
from ckptforge.tables.names import indexed, recognise_names
from ckptforge.values import Value

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
