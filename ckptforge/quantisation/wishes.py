"""What is to be written as codes, and which tensors of a model that is.

Source of what stays as it is: published FP8 releases, whose `modules_to_not_convert` name
routers, gates, embeddings and heads; vLLM's models with gated delta nets, where the projection
of b and a isn't quantised, and those of q, k, v, z and the output are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from ckptforge.errors import UsageError, shown
from ckptforge.model import Model
from ckptforge.quantisation.stacks import inputs_first
from ckptforge.spelling import option
from ckptforge.steps.encoded import CODES, Code
from ckptforge.tables.axes import Pattern, kind_of
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.wording import alternatives, counted, nearest

EXPERTS = "experts"
"""All matrices of experts, in place of a kind of tensor."""


class Wish(msgspec.Struct, frozen=True):
    """What is to be written as codes: a kind of tensor, `experts`, or a glob of names; None for the
    weights of all layers that are multiplied with, which are those that may have an adapter."""

    what: str | None
    code: Code


def wishes_of(words: Sequence[str]) -> tuple[Wish, ...]:
    """`KIND` and `WHAT=KIND` as wishes. Raises `UsageError` for kinds that aren't known, and for
    several, which no config.json can say."""
    found = []
    for word in words:
        what, equals, name = word.rpartition("=")
        if name not in CODES or (equals and not what):
            raise UsageError(
                f"{option('quantise', word)}: expected {alternatives(CODES)}, or one of them for a "
                f"kind of tensor or a glob, as WHAT=KIND.{nearest(name, CODES)}"
            )
        found.append(Wish(what if equals else None, CODES[name]))
    kinds = list(dict.fromkeys(wish.code.name for wish in found))
    if len(kinds) > 1:
        raise UsageError(
            f"{option('quantise')}: {' and '.join(kinds)} in one model is nothing that a "
            "config.json says; give one."
        )
    return tuple(found)


class Chosen(msgspec.Struct, frozen=True):
    """The names of the weights that become codes, and of what globs caught beside them that can't:
    norms, biases and the like."""

    names: frozenset[str]
    passed_over: frozenset[str]


def chosen_of(model: Model, table: Table, layout: Layout, wishes: Sequence[Wish]) -> Chosen:
    """What is wished of a model in a layout. Raises `UsageError` where there is no such tensor."""
    found, _ = recognise_names(layout, model.values)
    chosen: set[str] = set()
    over: set[str] = set()
    for wish in wishes:
        if wish.what is None:
            names = _usual(table, layout, found)
        elif not (names := _of_kind(table, wish.what, found)):
            caught = [name for name in model.values if fnmatchcase(name, wish.what)]
            names = [name for name in caught if _may_be_codes(model, name)]
            over.update(set(caught).difference(names))
            if caught and not names:
                raise UsageError(
                    f"{option('quantise', f'{wish.what}={wish.code.name}')}: {model.path} has "
                    f"{counted(len(caught), 'such tensor')}, such as {shown(min(caught))}, but "
                    "none of floats with two axes or more, as codes stand for."
                )
        if not names:
            known = [*map(kind_of, table.tensors), *model.values]
            known += [EXPERTS] * bool(table.expert_matrices)
            raise UsageError(
                f"{option('quantise', wish.what or wish.code.name)}: {model.path} has no such "
                f"tensor.{nearest(wish.what or '', known)}"
            )
        chosen.update(names)
    return Chosen(frozenset(chosen), frozenset(over - chosen))


def _may_be_codes(model: Model, name: str) -> bool:
    value = model.values[name]
    return len(value.shape) > 1 and value.dtype.floating


def _of_kind(table: Table, what: str, found: Mapping[Pattern, Mapping[Any, str]]) -> list[str]:
    """The tensors of a kind, or all matrices of experts."""
    meant = {tensor for tensor in table.tensors if kind_of(tensor) == what}
    if what == EXPERTS:
        meant |= table.expert_matrices
    return [
        name
        for pattern, members in found.items()
        if not meant.isdisjoint(pattern.tensors)
        for name in members.values()
    ]


def _usual(table: Table, layout: Layout, found: Mapping[Pattern, Mapping[Any, str]]) -> list[str]:
    """The weights of layers that may have an adapter; also those of another kind that are called
    alike in other layers, as those of multi-token prediction are; and the experts of such layers.
    Stacks with a column for each output, which few programs read as codes, aren't among them."""
    adapted = _adapted(table)
    layers = {axis for p in found if adapted.issuperset(p.tensors) for axis in p.name_axes[:1]}
    return [
        name
        for pattern, members in found.items()
        if len(pattern.axes) > 1 and not inputs_first(table, pattern) and pattern.name_axes
        if adapted.issuperset(pattern.tensors)
        or (
            table.expert_matrices.issuperset(pattern.tensors)
            and layers.issuperset(pattern.name_axes[:1])
        )
        for name in members.values()
    ]


def _adapted(table: Table) -> frozenset[str]:
    """The logical tensors in layers that may have an adapter, and those that a layout of Hugging
    Face calls alike behind the number of the layer."""
    matrices = {pattern for one in table.lora.matrices.values() for pattern in one}
    modules = {t for pattern in matrices if pattern.name_axes for t in pattern.tensors}
    found = set(modules)
    for name in table.names_of("huggingface"):
        patterns = [p for p in table.layouts[name].patterns if p.name_axes]
        own = {_in_layer(p) for p in patterns if modules.issuperset(p.tensors)}
        found.update(t for p in patterns if _in_layer(p) in own for t in p.tensors)
    return frozenset(found) - table.in_towers


def _in_layer(pattern: Pattern) -> str:
    return pattern.skeleton.partition("#")[2]


def kinds_of(layout: Layout, names: Sequence[str]) -> list[str]:
    """What kinds of tensors names are of, each once; those that no row has by their names."""
    found, unknown = recognise_names(layout, dict.fromkeys(names))
    kinds = {name: p.kind for p, members in found.items() for name in members.values()}
    for name in unknown:
        rows = (row.tensor for row in layout.passed if row.rest(name) is not None)
        kinds[name] = next(rows, name)
    return list(dict.fromkeys(kinds[name] for name in names))
