"""The factors of each weight's adapter, two and two, with what their product is multiplied with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ckptforge.adapters.factors import Factors
from ckptforge.adapters.peft import AdapterConfig
from ckptforge.errors import FormatError, LayoutError
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.lora import WEIGHT, AdaptedWeight
from ckptforge.tables.names import Names
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Value


class Scales(msgspec.Struct, frozen=True):
    """What products are multiplied with: by an adapter_config.json, else by one `alpha`."""

    config: AdapterConfig | None
    alpha: float | None

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
    for weight in table.lora.weights[layout.name]:
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
