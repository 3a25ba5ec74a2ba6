"""Weights that are stored in several tensors, none of them the weight: codes that are packed into
bytes or words, and scales. What each of these packings has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import row_major_strides
from ckptforge.dtypes import DType
from ckptforge.errors import FormatError, shown
from ckptforge.quantisation.parts import in_parts
from ckptforge.steps.scaled import Scaled
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Step, Stored, Term, Value, kind_of, whole_transfer

Tensors = Mapping[str, Stored]


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A weight as what it stands for: `value` is computed of the tensors `taken`, among which its
    codes are the first. `what` says how they are stored, `beside` what only the quantised model
    needs."""

    name: str
    value: Value
    taken: tuple[str, ...]
    what: str
    beside: tuple[str, ...] = ()


class Packing(Protocol):
    """A way in which weights are packed."""

    def weights(self, tensors: Tensors) -> Iterator[Packed]:
        """The weights among the tensors of a model that are packed so. Raises `FormatError` for
        tensors that are missing or don't fit."""


def viewed(stored: Stored, dtype: DType, shape: tuple[int, ...]) -> Stored:
    """The bytes of a tensor as numbers of another dtype."""
    return replace(stored, dtype=dtype, shape=shape)


def value_of_codes(
    name: str, codes: Stored, shape: tuple[int, ...], transfer: Transfer | None, *steps: Step
) -> Value:
    """A value of `shape` that all of a tensor's numbers make, after these steps; its dtype is that
    of the numbers. Without a `transfer` they lie in their order, and where the last step has many
    scales, it is made of several parts."""
    if transfer is None and isinstance(steps[-1], Scaled):
        fragments = fragments_of_codes(codes, *steps)
    else:
        whole = whole_transfer(shape) if transfer is None else transfer
        fragments = (Fragment(codes, whole.ordered(), steps),)
    term = Term(fragments=fragments)
    return Value(dtype=fragments[0].dtype, shape=shape, terms=(term,), kind=kind_of(name))


def fragments_of_codes(codes: Stored, *steps: Step) -> tuple[Fragment, ...]:
    """All of a tensor's numbers in their order after these steps, of which the last has scales: in
    several parts where it has many."""
    *others, last = steps
    assert isinstance(last, Scaled)
    row = codes.elements // max(codes.shape[0], 1) if codes.shape else 1
    return tuple(
        Fragment(
            part,
            replace(whole_transfer(part.shape), target=first * row)
            if first
            else whole_transfer(part.shape),
            (*others, scaled),
        )
        for first, part, scaled in in_parts(codes, last)
    )


def strided(shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]) -> Transfer:
    """The transfer of a box of this shape with these strides, from the first element to the
    first."""
    return Transfer(shape, 0, source, 0, target)


def swapped(shape: tuple[int, ...]) -> Transfer:
    """The transfer of a tensor of this shape to one whose last two axes have changed places."""
    strides = row_major_strides((*shape[:-2], shape[-1], shape[-2]))
    target = (*strides[:-2], strides[-1], strides[-2])
    return strided(shape, row_major_strides(shape), target)


def module_of(name: str, ending: str) -> str | None:
    """What stands before the last part of a name where that is `ending`."""
    return name[: -len(ending)] if name.endswith(ending) and name != ending else None


def modules_with(tensors: Tensors, ending: str) -> Iterator[tuple[str, Stored]]:
    """What stands before the last part of each name where that is `ending`, and its tensor."""
    for name, stored in tensors.items():
        if (module := module_of(name, ending)) is not None:
            yield module, stored


def beside(
    tensors: Tensors, codes: Stored, name: str, shape: tuple[int, ...], *dtypes: str
) -> Stored:
    """The tensor `name` that belongs to some codes. Raises `FormatError` where it isn't there, or
    is of another shape or dtype."""
    found = tensors.get(name)
    if not codes.elements:
        raise refused_codes(codes, "some numbers")
    if found is None:
        raise FormatError(
            f"{codes.path}: {shown(codes.name)} is {codes.dtype} {list(codes.shape)}, but there is "
            f"no {shown(name)}, without which it can't be read; is a file missing?"
        )
    same = found.shape == shape or (shape == (1,) and found.shape == ())
    if not same or found.dtype.name not in dtypes:
        raise FormatError(
            f"{found.path}: {shown(name)} is {found.dtype} {list(found.shape)}, expected "
            f"{' or '.join(dtypes)} {list(shape)}, as {shown(codes.name)} is {codes.dtype} "
            f"{list(codes.shape)}."
        )
    return found


def refused_codes(codes: Stored, expected: str) -> FormatError:
    """The error for codes that aren't as the method has them."""
    return FormatError(
        f"{codes.path}: {shown(codes.name)} is {codes.dtype} {list(codes.shape)}, expected "
        f"{expected}."
    )
