"""Adding the adapter of stacked experts to a model that stores them so: each expert's part of what
is stored gets its own product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from ckptforge.adapters.stacked import Stack
from ckptforge.errors import LayoutError
from ckptforge.quantisation.packed import swapped
from ckptforge.quantisation.parts import rows_of
from ckptforge.quantisation.stacks import inputs_first
from ckptforge.reading.source import Source
from ckptforge.spelling import command
from ckptforge.steps.low_rank import Added, Product
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Value, whole_transfer


class _Expert(msgspec.Struct, frozen=True):
    """What is read of one expert, a matrix whose rows are those of the parameter or, `turned`, its
    columns."""

    number: int
    fragment: Fragment
    turned: bool


def add_stacks(
    source: Source, stacks: tuple[Stack, ...], values: Mapping[str, Value]
) -> dict[str, Value]:
    """Name → parameter with the products of its experts. Raises `LayoutError` for a layer that the
    model doesn't have, and for parameters that aren't floats or are stored otherwise than whole."""
    found: dict[str, Value] = {}
    for stack in stacks:
        names = source.binding.names[stack.pattern]
        if stack.index not in names:
            raise LayoutError(
                f"{stack.a.origin.path}: {stack.a.origin.name} is of a layer that "
                f"{source.model.path} doesn't have; is it an adapter of this model?"
            )
        name = names[stack.index]
        if stack.scale:
            found[name] = _added(source, values[name], stack)
    return found


def _added(source: Source, value: Value, stack: Stack) -> Value:
    experts = list(_experts(source, value))
    rows_are_inputs = inputs_first(source.table, stack.pattern)
    fragments = []
    for one in experts:
        stored = one.fragment.stored
        inputs = rows_are_inputs != one.turned
        product = _product(stack, one.number, len(experts), inputs)
        box = (0, stored.elements // stored.shape[-1]), (0, stored.shape[-1])
        step = Added(products=(product,), box=box)
        fragments.append(replace(one.fragment, steps=(*one.fragment.steps, step)))
    (term,) = value.terms
    return replace(value, terms=(replace(term, fragments=tuple(fragments)),))


def _product(stack: Stack, expert: int, experts: int, inputs: bool) -> Product:
    """One expert's, for a matrix whose rows are the inputs or else the outputs. B's columns run
    over ranks and then experts."""
    a = rows_of(stack.a.origin, expert * stack.rank, (expert + 1) * stack.rank)
    b, part = stack.b.origin, (0, expert, experts)
    height = a.shape[1] if inputs else b.shape[0]
    rows = Transfer((height,), 0, (1,), 0, (1,))
    if inputs:  # (B·A)ᵀ = Aᵀ·Bᵀ
        return Product(a=b, b=a, scale=stack.scale, rows=rows, turned=True, a_part=part)
    return Product(a=a, b=b, scale=stack.scale, rows=rows, b_part=part)


def _experts(source: Source, value: Value) -> Iterator[_Expert]:
    """The experts of a parameter. Raises `LayoutError`."""
    experts, height, width = value.shape
    each = height * width
    fragments = value.terms[0].fragments if len(value.terms) == 1 else ()
    if not value.dtype.floating:
        raise LayoutError(
            f"{value.origin.path}: {value.origin.name} is {value.dtype}, to which nothing can be "
            "added."
        )
    if len(fragments) == 1 and not fragments[0].steps:
        fragments = tuple(_cut(fragments[0], value.shape)) or fragments
    ordered = sorted(fragments, key=lambda one: one.transfer.target)
    for i, one in enumerate(ordered):
        plain = Transfer((each,), 0, (1,), i * each, (1,))
        turned = replace(swapped((1, width, height)), target=i * each)
        fits = one.stored.elements == each and len(ordered) == experts
        transfer = one.transfer.coalesced()
        if not fits and any(fragment.steps for fragment in fragments):
            way = command("convert", source.model.path, "DIR", to=source.binding.layout.name)
            raise LayoutError(
                f"{value.origin.path}: {value.origin.name} holds the experts' codes with their "
                f"scales in one tensor, to which nothing can be added; undo them first, with {way},"
                " and merge into DIR."
            )
        if not fits or transfer not in (plain, turned.coalesced()):
            way = command("convert", source.model.path, "DIR", to=source.binding.layout.name)
            raise LayoutError(
                f"{value.origin.path}: the experts of {value.origin.name} aren't stored one after "
                f"the other in one tensor; convert the model first, with {way}, and merge into DIR."
            )
        yield _Expert(i, one, transfer != plain)


def _cut(fragment: Fragment, shape: tuple[int, ...]) -> Iterator[Fragment]:
    """Each expert's part of a parameter that is stored in one; none of another."""
    stored, whole = fragment.stored, whole_transfer(shape)
    if stored.shape != shape or fragment.transfer.coalesced() != whole.coalesced():
        return
    each = stored.elements // shape[0]
    for i in range(shape[0]):
        yield Fragment(rows_of(stored, i, i + 1), Transfer((each,), 0, (1,), i * each, (1,)))
