"""LoRA in tables: which weights may have an adapter, and what its two factors are called in each
layout.

A weight W of shape (out, in) gets A (r, in) and B (out, r): W + scale · B·A (Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models", 2021). In a table:

    [lora]
    modules = ["wq", "wk", "wv", "wo", "lm_head"]
    embeddings = ["embedding"]

    [lora.names]
    hub   = ["base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"]
    mcore = ["{}.lora_A.weight", "{}.lora_B.weight"]

    [lora.embedding_names]
    hub   = ["base_model.model.{}.lora_embedding_A", "base_model.model.{}.lora_embedding_B"]

`{}` is the name of the weight without `.weight`. A weight that a layout holds in one with others
has one adapter with them. The factors of an embedding (V, H) are those of its transpose: A (r, V)
and B (H, r), so that it gets scale · (B·A)ᵀ (peft/tuners/lora/layer.py, class Embedding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from ckptforge.model import Model
from ckptforge.tables.axes import Axis, Concat, Pattern
from ckptforge.tables.rows import at, check_known, check_layout
from ckptforge.tables.state import state_of

if TYPE_CHECKING:
    from ckptforge.tables.table import Layout
    from ckptforge.tables.table_file import LoraSection, TableFile

LORA_MARK = "lora_"  # in the names of factors, in every layout
WEIGHT = ".weight"
RANK = "rank"
Columns = tuple[Axis, frozenset[str]]


class AdaptedWeight(msgspec.Struct, frozen=True, dict=True):
    """A stored weight that may have an adapter: its pattern, and those of its two factors. It gets
    their product: `b`, of its rows and the rank, times `a`, of the rank and its columns. `turned`:
    both are stored as their transposes, as an embedding's are."""

    weight: Pattern
    a: Pattern
    b: Pattern
    turned: bool = False

    @cached_property
    def rows(self) -> Pattern:
        """The rows of the weight alone."""
        return rows_of(self.weight)


class Lora(msgspec.Struct, frozen=True):
    """By layout: the weights that may have an adapter with names of their own, and the matrices
    that can take up the product of one. `embeddings` are the logical tensors whose factors are
    stored as their transposes."""

    weights: Mapping[str, tuple[AdaptedWeight, ...]] = msgspec.field(default_factory=dict)
    matrices: Mapping[str, frozenset[Pattern]] = msgspec.field(default_factory=dict)
    embeddings: frozenset[str] = frozenset()


def rows_of(weight: Pattern) -> Pattern:
    """The rows of a weight alone."""
    return Pattern(weight.template, weight.axes[:1], weight.tensors)


def adaptable(
    modules: Sequence[str], patterns: Sequence[Pattern], columns: Mapping[str, Columns]
) -> frozenset[Pattern]:
    """The matrices of a layout that hold nothing but modules and whose columns are `columns`, which
    leaves out what is stored (in, out) and what holds several matrices."""
    matrices = (p for p in patterns if len(p.axes) == 2 and not p.reshaped)
    found = (p for p in matrices if set(p.tensors) <= set(modules))
    own = {p: (p.axes[1], frozenset(p.name_axes)) for p in found}
    return frozenset(p for p in own if all(own[p] == columns[t] for t in p.tensors))


def adapted_weights(
    patterns: Iterable[Pattern], names: Sequence[str], turned: bool
) -> Iterator[AdaptedWeight]:
    """Matrices with their factors, by the templates of the names of A and B."""
    for pattern in patterns:
        if not pattern.template.endswith(WEIGHT):
            continue
        stem = pattern.template.removesuffix(WEIGHT)
        first, second = (template.replace("{}", stem) for template in names)
        rows, columns = pattern.axes
        if turned:
            a = Pattern(second, (columns, (RANK,)), pattern.tensors)
            b = Pattern(first, ((RANK,), rows), pattern.tensors)
        else:
            a = Pattern(first, ((RANK,), columns), pattern.tensors)
            b = Pattern(second, (rows, (RANK,)), pattern.tensors)
        yield AdaptedWeight(pattern, a, b, turned)


def columns_of(modules: Sequence[str], patterns: Sequence[Pattern]) -> dict[str, Columns]:
    """Module → the axis of its columns, and those in its name. Raises `ValueError`."""
    found: dict[str, Columns] = {}
    for tensor in modules:
        pattern = next(pattern for pattern in patterns if tensor in pattern.tensors)
        concats = [item for axis in pattern.axes[1:] for item in axis if isinstance(item, Concat)]
        plain = len(pattern.axes) == 2 and not pattern.reshaped and not concats
        if not plain or not pattern.template.endswith(WEIGHT):
            raise ValueError(
                f"{pattern.template!r}, which holds {tensor!r}, isn't a matrix of rows and columns "
                f"named …{WEIGHT}"
            )
        found[tensor] = pattern.axes[1], frozenset(pattern.name_axes)
    return found


class _Kind(msgspec.Struct, frozen=True):
    """Weights, or embeddings: the key that lists them, the section of their factors' names, and
    what both say; `turned` as in `AdaptedWeight`."""

    key: str
    section: str
    tensors: Sequence[str]
    templates: Mapping[str, Sequence[str]]
    turned: bool


def make_lora(file: TableFile, layouts: Mapping[str, Layout]) -> Lora:
    """[lora] of a table. Raises `TableError` with the row and the rule that it breaks."""
    if file.lora is None:
        return Lora()
    with at("lora"):
        for tensor in file.lora.modules:
            if tensor in file.lora.embeddings:
                raise ValueError(f"{tensor!r} stands in modules and in embeddings")
    weights: dict[str, tuple[AdaptedWeight, ...]] = {}
    matrices: dict[str, frozenset[Pattern]] = dict.fromkeys(layouts, frozenset())
    for kind in _kinds(file.lora):
        _check_kind(kind, file, layouts)
        names = _names_by_layout(kind, file, layouts)
        if not names and not kind.tensors:
            continue
        columns = _columns(kind, names, layouts)
        for layout in layouts.values():
            found = adaptable(kind.tensors, layout.patterns, columns)
            matrices[layout.name] |= found
            if (pair := names.get(layout.name)) is not None:
                ordered = (pattern for pattern in layout.patterns if pattern in found)
                made = adapted_weights(ordered, pair, kind.turned)
                weights[layout.name] = (*weights.get(layout.name, ()), *made)
    return Lora(weights, matrices, frozenset(file.lora.embeddings))


def _kinds(section: LoraSection) -> Iterator[_Kind]:
    yield _Kind("modules", "names", section.modules, section.names, turned=False)
    names = section.embedding_names
    yield _Kind("embeddings", "embedding_names", section.embeddings, names, turned=True)


def _check_kind(kind: _Kind, file: TableFile, layouts: Mapping[str, Layout]) -> None:
    with at("lora", kind.key):
        check_known(kind.tensors, file.tensors, "[tensors]")
    for name, templates in kind.templates.items():
        with at("lora", kind.section, name):
            check_layout(name, layouts)
            _check_factor_names(templates)


def _check_factor_names(templates: Sequence[str]) -> None:
    """Two names that differ, of which each can be told from a weight's and holds the weight's."""
    for template in templates:
        if template.count("{}") != 1 or set(template.replace("{}", "")) & set("{}#"):
            raise ValueError(
                "each name must hold {} once, where the weight's name goes, and no other brace"
            )
        if "lora_" not in template.lower():
            raise ValueError(
                "a factor's name must hold lora_, which distinguishes it from a weight"
            )
    if templates[0] == templates[1]:
        raise ValueError("both factors have one name")


def _names_by_layout(
    kind: _Kind, file: TableFile, layouts: Mapping[str, Layout]
) -> dict[str, Sequence[str]]:
    """Layout → the names of the factors, its own or those of the nearest layout that it extends."""
    return {
        layout: kind.templates[ancestor]
        for layout in layouts
        for ancestor in file.lineage(layout)
        if ancestor in kind.templates
    }


def _columns(
    kind: _Kind, names: Mapping[str, Sequence[str]], layouts: Mapping[str, Layout]
) -> dict[str, Columns]:
    """Each matrix's columns, by the first layout of Hugging Face with adapters' names."""
    for layout in layouts.values():
        if layout.family == "huggingface" and layout.name in names:
            with at("lora", kind.key):
                return columns_of(kind.tensors, layout.patterns)
    with at("lora", kind.section):
        raise ValueError(
            "names no layout of Hugging Face, whose matrices say what is a row and what a column"
        )


def is_lora(name: str) -> bool:
    """Whether a tensor is a factor of an adapter, by its name, in whatever layout."""
    return LORA_MARK in name.lower()


def holds_only_factors(model: Model) -> bool:
    """Whether a model is an adapter, without the weights that it is for."""
    if model.format == "peft adapter":
        return True
    weights = (name for name in model.values if not state_of(model, name))
    return next(map(is_lora, weights), False) and all(map(is_lora, weights))
