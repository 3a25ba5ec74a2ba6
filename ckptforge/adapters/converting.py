"""Adapters in another layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ckptforge.adapters.adapter import Adapter
from ckptforge.adapters.factors import Factors, row_count, row_lengths, row_transfer
from ckptforge.adapters.peft_names import of_the_base
from ckptforge.composing import terms_through
from ckptforge.dtypes import DType
from ckptforge.errors import LayoutError, PlanError
from ckptforge.examine.hashes import tensor_hashes
from ckptforge.run.budget import Budget
from ckptforge.spelling import option
from ckptforge.tables.lora import WEIGHT, AdaptedWeight
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout
from ckptforge.transfers import Transfer
from ckptforge.values import Stored, Value
from ckptforge.wording import listing


class Converted(msgspec.Struct, frozen=True):
    """An adapter in another layout: its tensors, the names of the weights that have one, and the
    rank and the scale that all have, or None where they have several."""

    values: dict[str, Value]
    modules: tuple[str, ...]
    rank: int | None
    scale: float | None


def convert_adapter(
    adapter: Adapter, target: Layout, sizes: AxisSizes, dtype: DType | None
) -> Converted:
    """The factors of every weight of `target`.

    Where weights that have adapters of their own are one there, that gets the A's concatenated and
    the B's on the diagonal: the same product, of a rank that is the sum. MindFormers has one rank
    and one alpha for all weights: smaller adapters get rows and columns of zeros. Raises
    `PlanError` where scales differ, and `LayoutError` for weights that can't have an adapter in
    `target`.
    """
    weights = adapter.table.lora.weights.get(target.name, ())
    _refuse_homeless(adapter, target, weights)
    stacks = _stacks(adapter, weights)
    scales, ranks = {one.scale for one in adapter.factors}, {stack.rank for stack in stacks}
    if len(scales) > 1 and target.family == "mindspore":
        raise PlanError(
            f"{adapter.path}: its modules have different scales "
            f"({', '.join(f'{scale:g}' for scale in sorted(scales)[:5])}), but MindFormers has one "
            f"lora_alpha for all; merge it with {option('merge_lora')}."
        )
    values: dict[str, Value] = {}
    for stack in stacks:
        own = max(ranks) if target.family == "mindspore" else stack.rank
        values |= stack.values(adapter, sizes, own, dtype)
    _prove_used(adapter, values)
    names = (stack.weight.weight.name(stack.index, sizes.lengths) for stack in stacks)
    modules = tuple(name.removesuffix(WEIGHT) for name in names)
    rank = max(ranks) if target.family == "mindspore" or len(ranks) == 1 else None
    return Converted(values, modules, rank, next(iter(scales)) if len(scales) == 1 else None)


def _refuse_homeless(adapter: Adapter, target: Layout, weights: Iterable[AdaptedWeight]) -> None:
    """Raises `PlanError` for weights that were trained whole, and `LayoutError` for factors of
    weights that can't have an adapter in `target`."""
    whole = [entry.origin.name for entry in adapter.whole.values()]
    advice = f"Merge it while converting the model, with {option('merge_lora')}."
    if trained := [name for name in whole if not of_the_base(name)]:
        raise PlanError(
            f"{adapter.path}: holds weights that were trained whole, beside its factors:\n"
            f"{listing(trained)}\nAn adapter in layout {target.name} has none. {advice}"
        )
    adaptable = {tensor for weight in weights for tensor in weight.weight.tensors}
    others = (one for (tensor, _), one in adapter.by_tensor.items() if tensor not in adaptable)
    if lost := sorted({one.a.origin.name for one in others}):
        raise LayoutError(
            f"{adapter.path}: in layout {target.name} the weights of these can't have an adapter:\n"
            f"{listing(lost)}\n{advice}"
        )


class _Stack(msgspec.Struct, frozen=True):
    """What one weight takes up: the adapters of its parts, and at which rank each begins."""

    weight: AdaptedWeight
    index: dict[str, int]
    found: Mapping[str, Factors]
    starts: Mapping[str, int]
    blocks: tuple[Factors, ...]

    @property
    def rank(self) -> int:
        return sum(one.rank for one in self.blocks)

    def values(
        self, adapter: Adapter, sizes: AxisSizes, rank: int, dtype: DType | None
    ) -> dict[str, Value]:
        """A of shape (rank, in) and B of shape (out, rank). Raises `LayoutError` for factors
        that don't fit each other, and `PlanError` for what can't become one tensor."""
        columns = self.blocks[0].columns
        if wrong := [one for one in self.blocks if one.columns != columns]:
            raise LayoutError(
                f"{adapter.path}: {self.blocks[0].a.origin.name} has {columns} columns, but "
                f"{wrong[0].a.origin.name} {wrong[0].columns}."
            )
        rows, beside = self._beside(adapter, sizes, rank)
        found = {}
        for pattern, kind, sides, parts in (
            (self.weight.a, "A", (rank, columns), self._above(rank, columns)),
            (self.weight.b, "B", (rows, rank), beside),
        ):
            shape = (sides[1], sides[0]) if self.weight.turned else sides
            name = pattern.name(self.index, sizes.lengths)
            dtypes = {value.dtype for value, _ in parts}
            if len(dtypes) > 1 and dtype is None:
                raise PlanError(
                    f"{name} is made of tensors of different dtypes "
                    f"({', '.join(sorted(map(str, dtypes)))}); cast them with {option('dtype')}."
                )
            written = sum(transfer.size for _, transfer in parts)
            fill = 0.0 if written < shape[0] * shape[1] else None
            found[name] = Value(
                dtype=dtype or parts[0][0].dtype,
                shape=shape,
                terms=tuple(terms_through([(v, t.ordered()) for v, t in parts], fill)),
                kind=f"{'+'.join(self.weight.weight.tensors)} {kind}",
            )
        return found

    def _above(self, rank: int, columns: int) -> list[tuple[Value, Transfer]]:
        """The A's, one above the other."""
        found: list[tuple[Value, Transfer]] = []
        placed: set[int] = set()
        for tensor, one in self.found.items():
            if id(one.a) in placed or not any(one is block for block in self.blocks):
                continue
            placed.add(id(one.a))
            from_ = _strides(one.rank, columns, one.turned)
            to = _strides(rank, columns, self.weight.turned)
            place = self.starts[tensor] * to[0]
            found.append((one.a, Transfer((one.rank, columns), 0, from_, place, to)))
        return found

    def _beside(
        self, adapter: Adapter, sizes: AxisSizes, rank: int
    ) -> tuple[int, list[tuple[Value, Transfer]]]:
        """(rows of B, the B's, on the diagonal)."""
        first = self.blocks[0]
        same = first.rows_as(self.weight.rows)
        lengths = {} if same else row_lengths(adapter.table, sizes, self.found, self.weight.rows)
        rows = first.height if same else row_count(self.weight.rows, lengths)
        found: list[tuple[Value, Transfer]] = []
        for tensor, one in self.found.items():
            moved = row_transfer(tensor, one, self.weight.rows, lengths)
            from_row, from_rank = _strides(one.height, one.rank, one.turned)
            to_row, to_rank = _strides(rows, rank, self.weight.turned)
            transfer = Transfer(
                (*moved.shape, one.rank),
                moved.source * from_row,
                (*(n * from_row for n in moved.source_strides), from_rank),
                moved.target * to_row + self.starts[tensor] * to_rank,
                (*(n * to_row for n in moved.target_strides), to_rank),
            )
            found.append((one.b, transfer))
            if same:
                break  # all rows at once
        return rows, found


def _prove_used(adapter: Adapter, values: Mapping[str, Value]) -> None:
    """Every element of every B goes somewhere. Raises `PlanError`."""
    read: Counter[Stored] = Counter()
    for value in values.values():
        for fragment in value.fragments:
            read[fragment.stored] += fragment.transfer.size
    for one in adapter.factors:
        for fragment in one.b.fragments:
            if read[fragment.stored] != fragment.stored.elements:
                raise PlanError(
                    f"{fragment.stored.name}: {read[fragment.stored]} of "
                    f"{fragment.stored.elements} elements are used; a defect of the mapping."
                )


def _strides(rows: int, columns: int, turned: bool) -> tuple[int, int]:
    """Those of a matrix of (rows, columns), which is stored so, or as its transpose."""
    return (1, rows) if turned else (columns, 1)


def _stacks(adapter: Adapter, weights: Iterable[AdaptedWeight]) -> list[_Stack]:
    """What each of these weights takes up, of those that have an adapter."""
    parts = [
        (weight, index, adapter.at(weight.weight.tensors, index))
        for weight in weights
        for index in sorted({i for t, i in adapter.by_tensor if t in weight.weight.tensors})
    ]
    several = [one.a for _, _, found in parts if len(found) > 1 for one in found.values()]
    contents = _contents(several)
    return [_stack(weight, dict(index), found, contents) for weight, index, found in parts]


def _contents(values: Iterable[Value]) -> dict[Stored, str]:
    """Hashes of tensors that lie in one file; parts of several aren't looked into."""
    files: dict[Path, dict[Stored, None]] = {}
    for value in values:
        if (stored := value.whole) is not None:
            files.setdefault(stored.path, {})[stored] = None
    hashes = tensor_hashes(files, Budget.of(None, None))
    return {stored: hashes[path][stored.name] for path, own in files.items() for stored in own}


def _stack(
    weight: AdaptedWeight,
    index: dict[str, int],
    found: Mapping[str, Factors],
    contents: Mapping[Stored, str],
) -> _Stack:
    """Adapters with one A, be it one tensor or equal ones, share their ranks."""
    blocks: dict[object, tuple[Factors, int]] = {}
    starts: dict[str, int] = {}
    for tensor, one in found.items():
        same = (one.a.shape, one.a.dtype, contents.get(one.a.origin, one.a.origin.name))
        rank = sum(other.rank for other, _ in blocks.values())
        _, starts[tensor] = blocks.setdefault(same, (one, rank))
    return _Stack(weight, index, found, starts, tuple(one for one, _ in blocks.values()))
