"""Adapters in another layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ckptforge.adapters.adapter import Adapter
from ckptforge.adapters.factors import Factors, Index, row_count, row_lengths, row_transfer
from ckptforge.adapters.peft_names import of_the_base
from ckptforge.boxes import Transfer
from ckptforge.dtypes import DType
from ckptforge.errors import LayoutError, PlanError, listing
from ckptforge.formats.entry import TensorEntry
from ckptforge.formats.layout import TensorSpec
from ckptforge.planning.conversion import Conversion
from ckptforge.run.budget import Budget
from ckptforge.run.hashing import tensor_hashes
from ckptforge.spelling import option
from ckptforge.tables.lora import WEIGHT, AdaptedWeight
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout


class Converted(msgspec.Struct, frozen=True):
    """An adapter in another layout: its tensors, the names of the weights that have one, and the
    rank and the scale that all have, or None where they have several."""

    conversion: Conversion
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
    if trained := [entry.name for entry in adapter.whole.values() if not of_the_base(entry.name)]:
        raise PlanError(
            f"{adapter.path}: holds weights that were trained whole, beside its "
            f"factors:\n{listing(trained)}\nAn adapter in layout "
            f"{target.name} has none. Merge it while converting the model, with "
            f"{option('merge_lora')}."
        )
    weights = adapter.table.lora.weights.get(target.name, ())
    held = {tensor for weight in weights for tensor in weight.weight.tensors}
    if lost := sorted(
        {one.a.name for (tensor, _), one in adapter.by_tensor.items() if tensor not in held}
    ):
        raise LayoutError(
            f"{adapter.path}: in layout {target.name} the weights of these can't have an "
            f"adapter:\n{listing(lost)}\n"
            f"Merge it while converting the model, with {option('merge_lora')}."
        )
    parts: list[tuple[AdaptedWeight, Index, dict[str, Factors]]] = []
    for weight in weights:
        for index in sorted(
            {index for tensor, index in adapter.by_tensor if tensor in weight.weight.tensors}
        ):
            found = {
                t: adapter.by_tensor[t, index]
                for t in weight.weight.tensors
                if (t, index) in adapter.by_tensor
            }
            parts.append((weight, index, found))
    contents = _contents(
        [one.a for _, _, found in parts if len(found) > 1 for one in found.values()]
    )
    stacks = [_stack(weight, dict(index), found, contents) for weight, index, found in parts]
    scales, ranks = {one.scale for one in adapter.factors}, {stack.rank for stack in stacks}
    if len(scales) > 1 and target.family == "mindspore":
        raise PlanError(
            f"{adapter.path}: its modules have different scales "
            f"({', '.join(f'{scale:g}' for scale in sorted(scales)[:5])}), but "
            f"MindFormers has one lora_alpha for all; merge it with {option('merge_lora')}."
        )
    conversion = Conversion([], {}, {}, [])
    for stack in stacks:
        stack.add_to(
            conversion,
            adapter,
            sizes,
            max(ranks) if target.family == "mindspore" else stack.rank,
            dtype,
        )
    conversion.used += [one.b for one in adapter.factors]
    modules = tuple(
        stack.weight.weight.name(stack.index, sizes.lengths).removesuffix(WEIGHT)
        for stack in stacks
    )
    rank = max(ranks) if target.family == "mindspore" or len(ranks) == 1 else None
    return Converted(conversion, modules, rank, next(iter(scales)) if len(scales) == 1 else None)


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

    def add_to(
        self,
        conversion: Conversion,
        adapter: Adapter,
        sizes: AxisSizes,
        rank: int,
        dtype: DType | None,
    ) -> None:
        """Adds A of shape (rank, in) and B of shape (out, rank)."""
        first = self.blocks[0]
        columns = first.columns
        if wrong := [one for one in self.blocks if one.columns != columns]:
            raise LayoutError(
                f"{adapter.path}: {first.a.name} has {columns} columns, but "
                f"{wrong[0].a.name} {wrong[0].columns}."
            )
        turned = self.weight.turned
        above: list[tuple[TensorEntry, Transfer]] = []
        for tensor, one in self.found.items():
            if any(one is block for block in self.blocks) and one.a not in [
                entry for entry, _ in above
            ]:
                from_, to = _strides(one.rank, columns, one.turned), _strides(rank, columns, turned)
                above.append(
                    (
                        one.a,
                        Transfer((one.rank, columns), 0, from_, self.starts[tensor] * to[0], to),
                    )
                )
        alike = first.rows_as(self.weight.rows)
        lengths = {} if alike else row_lengths(adapter.table, sizes, self.found, self.weight.rows)
        rows = first.height if alike else row_count(self.weight.rows, lengths)
        beside: list[tuple[TensorEntry, Transfer]] = []
        for tensor, one in self.found.items():
            moved = row_transfer(tensor, one, self.weight.rows, lengths)
            (from_row, from_rank), (to_row, to_rank) = (
                _strides(one.height, one.rank, one.turned),
                _strides(rows, rank, turned),
            )
            out_of, into = (
                (*(n * from_row for n in moved.from_), from_rank),
                (*(n * to_row for n in moved.to), to_rank),
            )
            place = moved.target * to_row + self.starts[tensor] * to_rank
            beside.append(
                (
                    one.b,
                    Transfer(
                        (*moved.shape, one.rank), moved.source * from_row, out_of, place, into
                    ),
                )
            )
            if alike:
                break  # all rows at once
        written = {
            name: sum(transfer.size for _, transfer in copies)
            for name, copies in (("A", above), ("B", beside))
        }
        for pattern, kind, sides, copies in (
            (self.weight.a, "A", (rank, columns), above),
            (self.weight.b, "B", (rows, rank), beside),
        ):
            shape = (sides[1], sides[0]) if turned else sides
            name = pattern.name(self.index, sizes.lengths)
            dtypes = {entry.dtype for entry, _ in copies}
            if len(dtypes) > 1 and dtype is None:
                raise PlanError(
                    f"{name} is made of tensors of different dtypes "
                    f"({', '.join(sorted(map(str, dtypes)))}); cast them with {option('dtype')}."
                )
            conversion.specs.append(TensorSpec(name, dtype or copies[0][0].dtype, shape))
            conversion.copies[name] = [(entry, transfer.ordered()) for entry, transfer in copies]
            conversion.groups[name] = f"{'+'.join(self.weight.weight.tensors)} {kind}"
            if written[kind] < shape[0] * shape[1]:
                conversion.zeroed.add(name)


def _strides(rows: int, columns: int, turned: bool) -> tuple[int, int]:
    """Those of a matrix of (rows, columns), which is stored so, or as its transpose."""
    return (1, rows) if turned else (columns, 1)


def _contents(entries: Iterable[TensorEntry]) -> dict[TensorEntry, str]:
    """Hashes of tensors that lie in one file; parts of several aren't looked into."""
    files: dict[Path, dict[TensorEntry, None]] = {}
    for entry in entries:
        if entry.extents:
            files.setdefault(entry.path, {})[entry] = None
    hashes = tensor_hashes(files, Budget.of(None, None))
    return {entry: hashes[path][entry.name] for path, held in files.items() for entry in held}


def _stack(
    weight: AdaptedWeight,
    index: dict[str, int],
    found: Mapping[str, Factors],
    contents: Mapping[TensorEntry, str],
) -> _Stack:
    """Adapters with one A, be it one tensor or equal ones, share their ranks."""
    blocks: dict[object, tuple[Factors, int]] = {}
    starts: dict[str, int] = {}
    for tensor, one in found.items():
        same = (one.a.shape, one.a.dtype, contents.get(one.a, one.a.name))
        _, starts[tensor] = blocks.setdefault(
            same, (one, sum(other.rank for other, _ in blocks.values()))
        )
    return _Stack(weight, index, found, starts, tuple(one for one, _ in blocks.values()))
