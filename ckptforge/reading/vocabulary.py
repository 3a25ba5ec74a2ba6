"""Padded vocabularies: rows beyond config.json's vocab_size, for an even division."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import full_box
from ckptforge.composing import part_of
from ckptforge.errors import LayoutError
from ckptforge.model import Model
from ckptforge.spelling import command, flag, option
from ckptforge.tables.binding import Binding
from ckptforge.tables.model_config import Config
from ckptforge.tables.state import COMPANION_PREFIXES
from ckptforge.values import Value
from ckptforge.wording import counted

KEY = "vocab_size"


class Padding(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors with `rows` rows, of which config.json gives `tokens` a meaning."""

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
            f"{tensors} {verb} {counted(self.rows, 'row')}, {self.rows - self.tokens} more than "
            f"{KEY} {self.tokens}"
        )


def padding_of(binding: Binding, tensors: Mapping[str, Value], config: Config) -> Padding | None:
    """The padding of a checkpoint that was bound without config.json's vocab_size; None where there
    is none.

    Raises `LayoutError` for a tensor whose tokens aren't its rows.
    """
    tokens, axes = config.get(KEY), binding.table.axes.items()
    axis = next((axis for axis, expression in axes if KEY in expression.choices), None)
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
                f"{next(iter(indexed.values()))}: its tokens aren't its rows, so that padding "
                "can't be cut off."
            )
        names += indexed.values()
    names += [copy for copy, original in binding.copies.items() if original in names]
    state = [prefix + name for prefix in COMPANION_PREFIXES for name in names]
    names += [name for name in state if name in tensors]
    return Padding(names=tuple(names), rows=rows, tokens=tokens)


def refusal(padding: Padding, where: str) -> str:
    """The sentence that refuses a padded vocabulary; `where` names config.json."""
    return (
        f"{padding.text} ({where}): rows that pad the vocabulary. Cut them off with "
        f"{flag('trim_vocab')} of {command('to_ms')}, {command('to_torch')}, {command('convert')} "
        f"or {command('compare')}, or keep them by giving the config.json of the padded model, "
        f"with {KEY} {padding.rows}, with {option('config')}."
    )


def trimmed(model: Model, padding: Padding) -> Model:
    """The model without the rows that pad its vocabulary, and a note of them."""
    values = dict(model.values)
    for name in padding.names:
        _, *sides = full_box(values[name].shape)
        values[name] = part_of(values[name], ((0, padding.tokens), *sides))
    cut = counted(padding.rows - padding.tokens, "row")
    return replace(model, values=values).noting(f"{padding.text}: {cut} of padding cut off.")
