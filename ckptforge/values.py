"""What a tensor is: stored in a file, and as a value that can be made of stored ones.

A *stored* tensor is a name, a dtype, a shape and the extents of the file where its bytes lie. A
*value* is a dtype, a shape and the *fragments* that fill it: runs of stored tensors, each with the
*steps* that its numbers go through on the way. Ranks, scales, adapters, casts and layouts are
nothing but fragments, so that whoever reads a value needs to know of none of them.

Plans hold millions of these, which can't be part of cycles: the collector doesn't see them.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import row_major_strides
from ckptforge.digits import numbers_marked
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.transfers import Transfer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Extent(msgspec.Struct, frozen=True, gc=False):
    """`length` bytes of a tensor, from its byte `start`, lie at byte `offset` of the file."""

    start: int
    offset: int
    length: int


class Located(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tensor's place in a file: row-major, little-endian, its bytes cut into consecutive
    extents."""

    path: Path
    name: str
    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]

    def __hash__(self) -> int:
        return hash((self.name, self.path))  # plans of many ranks hash millions of times

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.bytes_of(0, self.elements)[1]

    def bytes_of(self, first: int, count: int) -> tuple[int, int]:
        """(first byte, how many) of the bytes in which so many elements lie."""
        each, per = self.dtype.itemsize, self.dtype.per_byte
        start, end = first // per, -(-(first + count) // per)
        return start * each, (end - start) * each

    def identity(self) -> bytes:
        """Bytes that name it, for the identity of what is made of it."""
        place = (self.path.parent.name, self.path.name, self.name, self.dtype, self.shape)
        return repr(tuple(map(str, place))).encode(errors="surrogatepass")

    def file_offset(self, start: int) -> int:
        """Where byte `start` of the tensor lies in the file; 0 in a tensor without bytes."""
        return next(self.file_ranges(start, 1))[0] if self.extents else 0

    def file_ranges(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """(file offset, length) of the pieces that hold bytes [start, start + length) of the
        tensor, in order."""
        index = bisect_right(self.extents, start, key=lambda extent: extent.start) - 1
        while length > 0:
            extent = self.extents[index]
            skip = start - extent.start
            take = min(length, extent.length - skip)
            if take > 0:
                yield extent.offset + skip, take
                start += take
                length -= take
            index += 1


class Stored(Located, frozen=True, kw_only=True, gc=False):
    """A tensor that lies in a file. Only readers make one."""

    __hash__ = Located.__hash__


class Place(Located, frozen=True, kw_only=True, gc=False):
    """Where a tensor will lie in a file that is to be written. Only formats make one."""

    __hash__ = Located.__hash__


class Window(NamedTuple):
    """Rows of a stored tensor, its leading axes taken as one, in a buffer: `rows` rows from
    `first`, of each the columns [start, stop), from the buffer's number `at` on."""

    at: int
    first: int
    rows: int
    start: int
    stop: int


_NUMBER = re.compile(r"\d+")

Read = Callable[[Stored, "DType | None"], "Array"]


class Prepared(Protocol):
    """A step with what it needs in memory."""

    def apply(self, numbers: Array, windows: Sequence[Window]) -> int:
        """Changes numbers, which are windows of the stored tensor, in place. Returns how many
        became NaN that weren't."""


@runtime_checkable
class Decoder(Protocol):
    """A prepared step that can make of stored codes at once what its numbers are cast to."""

    def decodes(self, target: DType) -> bool:
        """Whether it can for this dtype, and is faster so."""

    def decode(self, codes: Array, windows: Sequence[Window], target: DType, out: Array) -> Any:
        """Fills `out`, of this dtype, with what `apply` makes of the numbers that codes stand for,
        cast; both are windows of the stored tensor. Returns what the cast did, as a `CastCount`."""


class Step(Protocol):
    """What the numbers of a stored tensor go through where they are read, before they are cast to
    the dtype of their value."""

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """Stored tensors that are needed whole."""

    def gives(self, dtype: DType) -> DType:
        """The dtype that numbers of `dtype` are computed in."""

    def memory(self, stored: Stored) -> int:
        """Bytes that a worker holds for this tensor."""

    def identity(self) -> bytes:
        """Bytes that are the same where the step does the same, and differ where it doesn't; a run
        is resumed only where all are the same."""

    def prepare(self, stored: Stored, read: Read) -> Prepared:
        """The step for a tensor. `read` gives a stored tensor as an array of its shape, cast to a
        floating-point dtype, or as it is stored where that is None."""


class Encoding(Protocol):
    """What is made of the numbers of a value where they are written: one of the tensors that its
    blocks become, such as their codes, or their scales. `shape` is that of the numbers, of two axes
    at least, `source` their dtype, `block` the rows and columns of them that must be seen at a
    time, and `unit` those that make one element of what is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""

    @property
    def source(self) -> DType:
        """Their dtype."""

    @property
    def made(self) -> DType:
        """What numbers become, for counts."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are seen at a time."""

    @property
    def unit(self) -> tuple[int, int]:
        """Rows and columns of an element."""

    def identity(self) -> bytes:
        """Bytes that differ wherever it does, as those of a step."""

    @property
    def family(self) -> Hashable:
        """What encodings that are made together have alike, of the same numbers: those of a family
        see the same blocks of the same shape."""

    def takes(self, dtype: DType) -> bool:
        """Whether it is given numbers of this dtype as they are. It always takes float32."""

    def encode(
        self, numbers: Array, name: str, into: Sequence[tuple[Encoding, Array]]
    ) -> Sequence[Any]:
        """Fills bytes with what whole blocks of numbers make, [rows, columns], of a dtype that it
        takes, for each of some encodings of its family. Returns for each what that did to them, as
        a `CastCount`, or None where that is counted with another. Raises errors of the numbers,
        with the tensor's `name`."""


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """A strided run of a stored tensor: where it lands in the value, and the steps that its numbers
    go through."""

    stored: Stored
    transfer: Transfer
    steps: tuple[Step, ...] = ()

    @property
    def dtype(self) -> DType:
        """The dtype of its numbers after the steps."""
        dtype = self.stored.dtype
        for step in self.steps:
            dtype = step.gives(dtype)
        return dtype


class Term(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is added up to a value: `weight` times the numbers of its fragments. With `fill` the
    elements that no fragment covers are that number."""

    fragments: tuple[Fragment, ...]
    weight: float = 1.0
    fill: float | None = None


class Value(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tensor that can be made: a sum of terms, one of weight 1 but for averages and the like.
    `kind` names tensors of its kind, by which casts are counted. With an `encoding` the terms make
    its numbers, and `dtype` and `shape` are those of what is stored in their place."""

    dtype: DType
    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    kind: str
    encoding: Encoding | None = None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.elements * self.dtype.itemsize

    @property
    def fragments(self) -> Iterator[Fragment]:
        """The fragments of all terms."""
        return (fragment for term in self.terms for fragment in term.fragments)

    @property
    def origin(self) -> Stored:
        """The stored tensor that it begins with, for messages."""
        return next(self.fragments).stored

    @property
    def whole(self) -> Stored | None:
        """The stored tensor that it is as it is; None where there is more to it."""
        if len(self.terms) != 1 or self.encoding is not None:
            return None
        (term,) = self.terms
        if not term.fragments or term.weight != 1:
            return None
        fragment = term.fragments[0]
        stored, whole = fragment.stored, whole_transfer(self.shape)
        if fragment.steps or stored.shape != self.shape or stored.dtype.name != self.dtype.name:
            return None
        return stored if fragment.transfer is whole or fragment.transfer == whole else None

    def map(self, change: Callable[[Fragment], Fragment]) -> Value:
        """The value with each of its fragments changed."""
        terms = [replace(one, fragments=tuple(map(change, one.fragments))) for one in self.terms]
        return replace(self, terms=tuple(terms))


def kind_of(name: str) -> str:
    """A tensor's name with its numbers as `#`: what the tensors of its kind have in common."""
    return sys.intern(_NUMBER.sub("#", name))  # one text for all layers and experts


def kinds_of(names: Collection[str]) -> Iterator[str]:
    """`kind_of` of each, for many names at once."""
    text = "\n".join(names)
    found = numbers_marked(text).split("\n") if text.isascii() else []
    if len(found) != len(names):  # a name has lines, or may have other digits
        return map(kind_of, names)
    return map(sys.intern, found)


def value_of(stored: Stored, kind: str | None = None) -> Value:
    """A stored tensor as a value, of the kind that its name is of unless that is given."""
    term = Term(fragments=(Fragment(stored, whole_transfer(stored.shape)),))
    return Value(
        dtype=stored.dtype,
        shape=stored.shape,
        terms=(term,),
        kind=kind_of(stored.name) if kind is None else kind,
    )


@lru_cache(maxsize=1 << 12)
def whole_transfer(shape: tuple[int, ...]) -> Transfer:
    """The transfer of all of a tensor to itself."""
    strides = row_major_strides(shape)
    return Transfer(shape, 0, strides, 0, strides).ordered()


def computing_dtype(dtypes: Iterable[DType]) -> DType:
    """What steps compute in: float32, or float64 where something is of that."""
    return BY_NAME["float64" if any(dtype.name == "float64" for dtype in dtypes) else "float32"]
