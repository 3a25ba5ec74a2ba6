"""What config.json, and notes, say of the modules whose weights are written as codes or kept.

Sources: transformers 5.24: quantizers/quantizers_utils.py (`should_convert_module`: a name stands
for all below it), integrations/finegrained_fp8.py (the experts of a layer are one module, and
`Fp8Dequantize` divides axes evenly into blocks).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from ckptforge.errors import shown
from ckptforge.model import Model
from ckptforge.steps.encoded import Code
from ckptforge.tables.names import recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.wording import counted

WEIGHT = ".weight"


def experts_of(table: Table, layout: Layout, names: Iterable[str]) -> frozenset[str]:
    """Those of the names that are matrices of routed experts."""
    found, _ = recognise_names(layout, dict.fromkeys(names))
    return frozenset(
        name
        for pattern, members in found.items()
        if table.expert_matrices.issuperset(pattern.tensors)
        for name in members.values()
    )


def module_of_experts(name: str) -> str:
    """The module that holds all experts of a layer, by the name of a matrix."""
    holder = name.removesuffix(WEIGHT).rpartition(".")[0]
    above, _, last = holder.rpartition(".")
    return above if last.isdecimal() else holder


def kept_modules(
    kept: Iterable[str], experts: Collection[str], chosen: Collection[str]
) -> dict[str, list[str]]:
    """The modules whose weights are kept, each with those of its weights: the experts of a layer
    are one, unless some of their weights are written as codes."""
    divided = {module_of_experts(name) for name in chosen if name in experts}
    found: dict[str, list[str]] = {}
    for name in kept:
        module = module_of_experts(name) if name in experts else name
        if module in divided:
            module = name
        found.setdefault(module.removesuffix(WEIGHT), []).append(name)
    return found


def notes_of(
    model: Model, chosen: Collection[str], experts: Collection[str], code: Code
) -> Iterator[str]:
    """A sentence for each thing in which programs that load such models differ from what is
    written."""
    own = [name for name in chosen if name in experts]
    holders = {module_of_experts(name) for name in own}
    others = (name for name in experts if name not in chosen)
    if divided := sorted(holders.intersection(map(module_of_experts, others))):
        yield (
            f"in {counted(len(divided), 'module')}, such as {shown(divided[0])}, some matrices of "
            "the experts are written as codes and others aren't: transformers 5 and vLLM take all "
            "of a layer for one or the other."
        )
    rows, columns = code.block
    stacks = [name for name in own if rows > 1 and len(model.values[name].shape) > 2]
    if stacks:
        yield (
            f"{counted(len(stacks), 'weight', 'hold')} the experts of a layer, such as "
            f"{shown(min(stacks))}: transformers 5, where it turns codes into numbers as it loads "
            "them, as without a GPU, takes these codes for the weights. It reads layouts that "
            "hold each expert by itself."
        )
    odd = [
        name
        for name in chosen
        if rows > 1
        and any(
            n > step and n % step
            for n, step in zip(model.values[name].shape[-2:], (rows, columns), strict=True)
        )
    ]
    if odd:
        yield (
            f"{counted(len(odd), 'weight', 'end')} within a block, such as {shown(min(odd))}: "
            "transformers 5, where it turns codes into numbers as it loads them, expects blocks "
            "of equal size, and refuses such weights or reads other numbers."
        )
