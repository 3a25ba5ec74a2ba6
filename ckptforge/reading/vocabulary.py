"""Padded vocabularies: rows of the embedding and of the head beyond config.json's vocab_size, which
jobs add to divide them evenly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import Box
from ckptforge.checkpoints.opening import Checkpoint
from ckptforge.errors import LayoutError, counted
from ckptforge.formats.entry import Extent, TensorEntry
from ckptforge.spelling import command, flag, option
from ckptforge.tables.binding import Binding
from ckptforge.tables.state import COMPANION_PREFIXES
from ckptforge.tables.table import Table

KEY = "vocab_size"


class Padding(msgspec.Struct, frozen=True, kw_only=True):
    """Stored tensors with more rows than there are tokens: `rows` of them, of which config.json
    gives `tokens` a meaning."""

    names: tuple[str, ...]
    rows: int
    tokens: int

    @property
    def text(self) -> str:
        """What there is, in words."""
        tensors = f"{self.names[0]}" + (
            f" and {counted(len(self.names) - 1, 'more tensor')}" if len(self.names) > 1 else ""
        )
        verb = "has" if len(self.names) == 1 else "have"
        return (
            f"{tensors} {verb} {counted(self.rows, 'row')}, {self.rows - self.tokens} more "
            "than "
            f"{KEY} {self.tokens}"
        )


def vocabulary_axis(table: Table) -> str | None:
    """The axis of a table that counts tokens."""
    return next(
        (axis for axis, expression in table.axes.items() if KEY in expression.choices), None
    )


def padding_of(
    binding: Binding, tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]
) -> Padding | None:
    """The padding of a checkpoint that was bound without config.json's vocab_size; None where there
    is none.

    Raises `LayoutError` for a tensor whose tokens aren't its rows.
    """
    tokens, axis = config.get(KEY), vocabulary_axis(binding.table)
    if type(tokens) is not int or axis is None or tokens < 1:
        return None
    rows = binding.sizes.get(axis)
    if rows is None or rows <= tokens:
        return None
    names: list[str] = []
    for pattern, indexed in binding.names.items():
        if not any(axis in binding.table.tensors[tensor] for tensor in pattern.tensors):
            continue
        if not pattern.shape_axes or pattern.shape_axes[0] != (axis,):
            raise LayoutError(
                f"{next(iter(indexed.values()))}: its tokens aren't its rows, so "
                "that padding can't be cut off."
            )
        names += indexed.values()
    names += [copy for copy, original in binding.copies.items() if original in names]
    names += [
        prefix + name for prefix in COMPANION_PREFIXES for name in names if prefix + name in tensors
    ]
    return Padding(names=tuple(names), rows=rows, tokens=tokens)


def refusal(padding: Padding, where: str) -> str:
    """The sentence that refuses a padded vocabulary; `where` names config.json."""
    return (
        f"{padding.text} ({where}): rows that pad the vocabulary. Cut them off with "
        f"{flag('trim_vocab')} of {command('to_ms')}, "
        f"{command('to_torch')}, {command('convert')} or {command('compare')}, or keep them by "
        "giving the "
        f"config.json of the padded model, with {KEY} {padding.rows}, with {option('config')}."
    )


def trimmed(checkpoint: Checkpoint, padding: Padding) -> Checkpoint:
    """The checkpoint without the rows that pad its vocabulary, and a note of them."""
    tensors, shards = dict(checkpoint.tensors), dict(checkpoint.shards)
    for name in padding.names:
        tensors[name] = _first_rows(tensors[name], padding.tokens)
        if name in shards:
            shards[name] = tuple(_trimmed_parts(shards[name], padding.tokens))
    note = f"{padding.text}: {counted(padding.rows - padding.tokens, 'row')} of padding cut off."
    return replace(checkpoint, tensors=tensors, shards=shards, notes=(*checkpoint.notes, note))


def _trimmed_parts(
    parts: tuple[tuple[Box, TensorEntry], ...], rows: int
) -> Iterator[tuple[Box, TensorEntry]]:
    for box, entry in parts:
        first, last = box[0]
        if first < rows:
            kept = min(last, rows)
            yield ((first, kept), *box[1:]), _first_rows(entry, kept - first)


def _first_rows(entry: TensorEntry, rows: int) -> TensorEntry:
    """The first rows of a tensor, which are the first of its bytes."""
    nbytes = entry.nbytes // entry.shape[0] * rows
    extents = tuple(
        Extent(extent.start, extent.offset, min(extent.length, nbytes - extent.start))
        for extent in entry.extents
        if extent.start < nbytes
    )
    return replace(entry, shape=(rows, *entry.shape[1:]), extents=extents)
