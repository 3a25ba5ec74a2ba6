"""The two factors of each weight's adapter, with what their product is multiplied with, and how
their rows lie in another layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ckptforge.adapters.peft import AdapterConfig
from ckptforge.errors import FormatError, LayoutError
from ckptforge.steps.low_rank import columns_of, rank_of
from ckptforge.tables.axes import Pattern
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.lora import WEIGHT, AdaptedWeight
from ckptforge.tables.names import Names
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout, Table
from ckptforge.transfers import Transfer
from ckptforge.values import Value

RowLengths = dict[str, dict[str, int]]  # logical tensor → axis → length
Index = tuple[tuple[str, int], ...]  # (axis, number) of the axes in a weight's name, sorted


class Factors(msgspec.Struct, frozen=True):
    """The adapter of one stored weight: A of shape (r, in), B of shape (out, r), and what their
    product is multiplied with. Both are stored as their transposes where the weight says so."""

    weight: AdaptedWeight
    index: Index
    a: Value
    b: Value
    scale: float

    @property
    def turned(self) -> bool:
        """Whether both factors are stored as their transposes."""
        return self.weight.turned

    @property
    def rank(self) -> int:
        """r, which A's rows and B's columns count."""
        return rank_of(self.a.shape, self.turned)

    @property
    def columns(self) -> int:
        """Columns of A, which are those of the weight."""
        return columns_of(self.a.shape, self.turned)

    @property
    def height(self) -> int:
        """Rows of B, which are those of the weight."""
        return self.b.shape[1 if self.turned else 0]

    def rows_as(self, rows: Pattern) -> bool:
        """Whether a weight whose rows these are has the same ones in the same order."""
        return self.weight.rows.axes == rows.axes


def row_lengths(
    table: Table, sizes: AxisSizes, found: Mapping[str, Factors], rows: Pattern
) -> RowLengths:
    """Logical tensor → length of each axis that is rows, of what a weight and its adapters hold.
    Raises `ConfigError` for one that nothing tells."""
    lengths: RowLengths = {}
    for one in found.values():
        for part in one.weight.rows.tensors:
            lengths[part] = sizes.telling(
                table, part, one.weight.rows, rows, (one.height,), one.weight.rows.factors(part)
            )
    for part in rows.tensors:
        if part not in lengths:
            lengths[part] = sizes.telling(table, part, rows, rows, (0,), rows.factors(part))
    return lengths


def row_count(rows: Pattern, lengths: RowLengths) -> int:
    """Rows of a weight, and so of its B."""
    return rows.shape(lambda part, axis: lengths[part][axis])[0]


def row_transfer(tensor: str, one: Factors, rows: Pattern, lengths: RowLengths) -> Transfer:
    """Rows of B → rows of another layout's weight, for the part of a logical tensor, or all."""
    if one.rows_as(rows):
        return Transfer((one.height,), 0, (1,), 0, (1,))
    axes = one.weight.rows.factors(tensor)

    def size(part: str, axis: str) -> int:
        return lengths[part][axis]

    source, target = (p.place(tensor, axes, size) for p in (one.weight.rows, rows))
    shape = tuple(lengths[tensor][axis] for axis in axes)
    return Transfer(shape, source.offset, source.strides, target.offset, target.strides)


class Scales(msgspec.Struct, frozen=True):
    """What products are multiplied with: by an adapter_config.json, else by one `alpha`."""

    config: AdapterConfig | None
    alpha: float | None

    @property
    def version(self) -> object:
        """What is said of the version of peft."""
        return None if self.config is None else self.config.content.get("peft_version")

    def of(self, path: Path, layout: Layout, module: str, low: Value) -> float:
        """The scale of a module; the rows of `low` are the rank. Raises `FormatError`."""
        rank, config = low.shape[0], self.config
        if config is None:
            assert self.alpha is not None
            return self.alpha / rank
        known = module if layout.family == "huggingface" else ""
        if config.rank(known) != rank:
            raise FormatError(
                f"{path}: {low.origin.name} has rank {rank}, but {config.where} says "
                f"{' '.join((f'{config.rank(module)}.', *config.notes))}"
            )
        return config.scale(known)


def paired_factors(
    path: Path,
    tensors: Mapping[str, Value],
    table: Table,
    layout: Layout,
    found: Names,
    scales: Scales,
    lengths: Lengths,
) -> Iterator[Factors]:
    """The adapters of a layout whose factors were found under these names. Raises `LayoutError` for
    a module that the model doesn't have, `FormatError` for factors that don't fit each other."""
    for weight in table.lora.weights.get(layout.name, ()):
        firsts, seconds = found.get(weight.a, {}), found.get(weight.b, {})
        for numbers in sorted({*firsts, *seconds}):
            index = dict(zip(weight.weight.name_axes, numbers, strict=True))
            module = weight.weight.name(index, lengths).removesuffix(WEIGHT)
            for axis, number in index.items():
                if number >= lengths.get(axis, number + 1):
                    raise LayoutError(
                        f"{path}: holds the adapter of {module}, whose number is {number}, but the "
                        f"model has only {lengths[axis]} ({table.axes[axis].text}); is it an "
                        "adapter of this model?"
                    )
            if numbers not in firsts or numbers not in seconds:
                there = firsts.get(numbers) or seconds[numbers]
                raise FormatError(
                    f"{path}: {there} is there without the other factor of {module}: it is damaged."
                )
            a, b = tensors[firsts[numbers]], tensors[seconds[numbers]]
            low = _checked(path, weight, a, b)
            scale = scales.of(path, layout, module, low)
            yield Factors(weight, tuple(sorted(index.items())), a, b, scale)


def _checked(path: Path, weight: AdaptedWeight, a: Value, b: Value) -> Value:
    """The factor whose rows are the rank. Raises `FormatError` for what can't be multiplied."""
    low, high = (b, a) if weight.turned else (a, b)  # of shapes (r, …) and (…, r)
    matrices = len(a.shape) == len(b.shape) == 2
    if not matrices or low.shape[0] != high.shape[1] or not low.shape[0]:
        expected = "(r, vocabulary) and (hidden, r)" if weight.turned else "(r, in) and (out, r)"
        raise FormatError(
            f"{path}: {low.origin.name} has shape {list(low.shape)} and {high.origin.name} "
            f"{list(high.shape)}; expected {expected} with one r."
        )
    if not a.dtype.floating or not b.dtype.floating:
        raise FormatError(
            f"{path}: {a.origin.name} is {a.dtype} and {b.origin.name} {b.dtype}; expected "
            "floating-point numbers."
        )
    return low
