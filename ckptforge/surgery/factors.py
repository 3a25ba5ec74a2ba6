"""The factors of LoRA adapters beside the weights: they follow the axes of their weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from ckptforge.surgery.fills import zeros
from ckptforge.surgery.rebuild import Rebuilding, Stock, value_at
from ckptforge.tables.axes import Concat, Pattern
from ckptforge.tables.binding import Binding
from ckptforge.tables.convert import in_checkpoint_order
from ckptforge.tables.lora import RANK
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.values import Value


def factor_names(binding: Binding, names: Sequence[str]) -> dict[str, Pattern]:
    """Those of the names that are of factors of the table's adapters in this layout, each with its
    pattern."""
    patterns: dict[str, list[Pattern]] = {}
    for adapted in binding.table.lora.weights.get(binding.layout.name, ()):
        for pattern in (adapted.a, adapted.b):
            patterns.setdefault(pattern.skeleton, []).append(pattern)
    found = {}
    for name in names:
        skeleton, numbers = skeleton_of(name)
        for pattern in patterns.get(skeleton, ()):
            if pattern.match(numbers) is not None:
                found[name] = pattern
                break
    return found


def factors_rebuilt(
    binding: Binding, factors: Mapping[str, Pattern], work: Rebuilding
) -> Iterator[tuple[str, Value]]:
    """(name, value) of the factors after a change of axes, those of a prefix where it has one."""
    before = binding.sizes.lengths
    after = work.lengths(before)
    zeroed = {
        axis: replace(along, filling=lambda tensor, _, shape, dtype: zeros(tensor, shape, dtype))
        for axis, along in work.changes.items()
    }
    work = replace(work, changes=zeroed)
    for pattern in dict.fromkeys(factors.values()):
        held = [work.prefix + name for name, own in factors.items() if own is pattern]
        present = next((name for name in held if name in work.values), None)
        if present is None:
            continue
        rank = work.values[present].shape[pattern.axes.index((RANK,))]
        stock = _stock(binding, pattern, rank)
        for _, pinned, name in in_checkpoint_order([pattern], after):
            value = value_at(stock, work, pinned, before)
            if value is not None:
                yield work.prefix + name, value


def _stock(binding: Binding, pattern: Pattern, rank: int) -> Stock:
    """How a factor is stored: with the rank as an axis more. Of several weights that share one
    factor's axes the first stands for all."""
    parted = any(isinstance(item, Concat) for axis in pattern.axes for item in axis)
    tensors = pattern.tensors if parted else pattern.tensors[:1]
    return Stock(
        pattern=pattern,
        axes={tensor: (*pattern.name_axes, *pattern.factors(tensor)) for tensor in tensors},
        lengths={**binding.sizes.lengths, RANK: rank},
    )
