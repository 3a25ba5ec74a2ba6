"""Adapters as they are stored: which factors there are, and what their products are multiplied
with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.adapters import peft
from ckptforge.adapters.factors import Factors, Index
from ckptforge.adapters.peft_names import of_the_base, whole_weight
from ckptforge.checkpoints.card import HuggingFaceSide, hugging_face_side
from ckptforge.checkpoints.manifest import find_manifest
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import (
    ConfigError,
    FormatError,
    LayoutError,
    ModelUnknownError,
    UnmappedTensorsError,
    UsageError,
    counted,
    listing,
    nearest,
    shown,
)
from ckptforge.model import Model
from ckptforge.spelling import command, option
from ckptforge.tables.lora import LORA_MARK, WEIGHT, is_lora
from ckptforge.tables.names import Names, recognise_names, without_offsets
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Value


class Kept(msgspec.Struct, frozen=True):
    """What is known of an adapter beside its factors: adapter_config.json and the small files that
    go with it, from beside them or from the manifest of a conversion, and the model and the layout
    that this wrote."""

    side: HuggingFaceSide | None = None
    config: peft.AdapterConfig | None = None
    model: str | None = None
    layout: str | None = None


class Adapter(msgspec.Struct, frozen=True):
    """An adapter read as a layout of a table. `by_tensor` is (logical tensor, index) → the factors
    that it is adapted by, `whole` the weights that it holds whole, by their names in the model."""

    path: Path
    model: Model
    table: Table
    layout: Layout
    factors: tuple[Factors, ...]
    kept: Kept
    by_tensor: Mapping[tuple[str, Index], Factors] = msgspec.field(default_factory=dict)
    whole: Mapping[str, Value] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def whole_texts(self) -> list[str]:
        """What it holds whole, in words."""
        trained = [name for name, entry in self.whole.items() if not of_the_base(entry.origin.name)]
        along = [name for name in self.whole if name not in set(trained)]
        kinds = (
            ("whole, as training left them", trained),
            ("of the base model, stored along", along),
        )
        return [
            f"{counted(len(names), 'weight')} {what}: "
            f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in kinds
            if names
        ]

    @property
    def scales(self) -> list[float]:
        return sorted({one.scale for one in self.factors})


def open_adapter(path: Path, step: int | None = None) -> Model:
    """The tensors of an adapter: of a PEFT directory, whatever else lies there, or of a checkpoint
    that holds factors, perhaps with the weights."""
    if peft.is_adapter(path):
        return peft.PEFT_ADAPTER.open(path, step)
    return open_checkpoint(path, step)


def read_kept(model: Model) -> Kept:
    """Raises `FormatError` for an adapter_config.json of what isn't a plain LoRA."""
    if model.format == "peft adapter":
        content, config = peft.read_config(model.path)
        side = hugging_face_side(model.path, model.files, "hub")
        return Kept(replace(side, files={**side.files, peft.CONFIG: content}), config)
    manifest = find_manifest(model.path, model.files)
    if manifest is None:
        return Kept()
    layout, beside = (
        manifest.layout if manifest.untouched(model.files) else None,
        manifest.hugging_face,
    )
    if beside is None or peft.CONFIG not in beside.files:
        return Kept(None, None, manifest.model, layout)
    config = peft.parse_config(beside.files[peft.CONFIG], f"{peft.CONFIG} in {manifest.path}")
    return Kept(beside, config, manifest.model, layout)


def read_adapter(
    model: Model,
    kept: Kept,
    table: Table,
    lengths: Mapping[str, int],
    alpha: float | None,
    layout: str | None = None,
    like: str | None = None,
) -> Adapter:
    """Reads the factors in a checkpoint as those of a table; `lengths` are known ones of its axes.
    `layout` is the one that they must have; of several that fit, the one that a manifest recorded
    is taken, else `like`, that of the model which it is merged into.

    Raises `LayoutError` where their names fit none or several layouts, `UnmappedTensorsError` for
    factors that the table doesn't know, `FormatError` for ones that don't fit each other,
    `UsageError` where the scale isn't recorded.
    """
    path = model.path
    is_peft = model.format == "peft adapter"
    names = [name for name in model.values if is_lora(name) and not is_state(name)]
    if not names:
        raise LayoutError(
            f"{path}: holds no factors of an adapter (no tensor named *{LORA_MARK}*)."
        )
    kept, notes = _with_alpha(path, kept, alpha)
    family = "huggingface" if is_peft else "mindspore"
    chosen, found, unknown = _recognise(
        model,
        table,
        names,
        lengths,
        family,
        layout,
        (kept.layout, like),
    )
    others = {name: e for name, e in model.values.items() if is_peft and not is_lora(name)}
    whole, strange = _whole(chosen, others, lengths)
    if unknown := [*unknown, *strange]:
        tensors = counted(len(unknown), "tensor of the adapter", "aren't")
        raise UnmappedTensorsError(
            f"{path}: {tensors} known to the mapping {table.name} in layout {chosen.name}:\n"
            f"{listing(unknown)}\nIts [lora] section says which weights may have one; merge such "
            "an adapter with peft itself."
        )
    if kept.config is not None and is_peft:
        _check_saved(path, kept.config, whole)
    factors = tuple(_pair(model, table, chosen, found, kept.config, alpha, lengths))
    by_tensor = {
        (tensor, one.index): one for one in factors for tensor in one.weight.weight.tensors
    }
    said = kept.config.notes if kept.config is not None else ()
    return Adapter(
        path,
        model,
        table,
        chosen,
        factors,
        kept,
        by_tensor,
        whole,
        (*notes, *said, *_idle(factors)),
    )


def _with_alpha(path: Path, kept: Kept, alpha: float | None) -> tuple[Kept, tuple[str, ...]]:
    """(what is known, with the lora_alpha that a user gives, which overrides that of
    adapter_config.json, a note with both)."""
    if kept.config is None and alpha is None:
        raise UsageError(
            f"{path}: the adapter's lora_alpha isn't recorded there; give the one it was trained "
            f"with, with {option('lora_alpha')}."
        )
    if (
        kept.config is None
        or alpha is None
        or kept.config.content.get("lora_alpha", peft.DEFAULT) == alpha
    ):
        return kept, ()
    config = kept.config.with_alpha(alpha)
    given, said = (
        option("lora_alpha", config.content["lora_alpha"]),
        shown(kept.config.content.get("lora_alpha", peft.DEFAULT)),
    )
    note = f"{given} overrides the lora_alpha {said} of {config.where}."
    if config.content.get("alpha_pattern"):
        note += " The modules that its alpha_pattern names keep theirs."
    side = kept.side
    if side is not None:
        side = replace(side, files={**side.files, peft.CONFIG: config.json()})
    return replace(kept, config=config, side=side), (note,)


def _whole(
    layout: Layout, others: Mapping[str, Value], lengths: Mapping[str, int]
) -> tuple[dict[str, Value], list[str]]:
    """(the weights that are stored whole, by their names in the model, the tensors that are
    none)."""
    names = {whole_weight(name): name for name in others}
    _, unknown = recognise_names(layout, dict.fromkeys(names), lengths)
    return {name: others[stored] for name, stored in names.items() if name not in set(unknown)}, [
        names[name] for name in unknown
    ]


def _check_saved(path: Path, config: peft.AdapterConfig, whole: Mapping[str, Value]) -> None:
    modules = [name.rpartition(".")[0] for name in whole]
    for saved in config.saved_modules:
        if not any(module == saved or module.endswith(f".{saved}") for module in modules):
            raise FormatError(
                f"{path}: {config.where} names {shown(saved)} in modules_to_save, but "
                f"{peft.WEIGHTS} holds no weight of it."
            )


def _idle(factors: Sequence[Factors]) -> tuple[str, ...]:
    """A sentence about those whose product counts nothing."""
    idle = [one for one in factors if not one.scale]
    if not idle:
        return ()
    if len(idle) == len(factors):
        return ("lora_alpha is 0, so that the adapter does nothing.",)
    return (
        f"lora_alpha is 0 for {len(idle)} of {len(factors)} modules, such as that of "
        f"{idle[0].a.origin.name}, which do nothing.",
    )


def describe_adapter(model: Model, kept: Kept, table: Table) -> Adapter:
    """The same without knowing the model's sizes or the scale."""
    unknown = {
        offset: 0
        for weights in table.lora.weights.values()
        for weight in weights
        for offset in weight.weight.offsets.values()
    }
    return read_adapter(model, kept, table, unknown, 1.0 if kept.config is None else None)


def _recognise(
    model: Model,
    table: Table,
    names: list[str],
    lengths: Mapping[str, int],
    family: str,
    named: str | None,
    preferred: tuple[str | None, str | None],
) -> tuple[Layout, Names, list[str]]:
    """The layout whose names most factors have, those found, and the names that it doesn't know."""
    best: dict[str, tuple[Layout, Names, list[str]]] = {}
    for name, weights in table.lora.weights.items():
        known = table.layouts[name]
        if known.family != family or not weights:
            continue
        patterns = tuple(pattern for weight in weights for pattern in (weight.a, weight.b))
        numbered, unknown = recognise_names(
            Layout(name=name, family=family, patterns=patterns), dict.fromkeys(names), lengths
        )
        if lost := {offset for pattern in numbered for offset in pattern.offsets.values()} - set(
            lengths
        ):
            raise ConfigError(
                f"{model.path}: to read the adapter {table.axes[min(lost)].text} must be known; "
                f"give the model's config.json with {option('config')}."
            )
        best[name] = known, without_offsets(numbered, lengths), unknown
    if named is not None:
        if (
            table.layout(named).family != family
            or named not in best
            or len(best[named][2]) == len(names)
        ):
            raise LayoutError(
                f"{model.path}: the adapter isn't of layout {named}; its first tensor is "
                f"{shown(names[0])}."
            )
        return best[named]
    fewest = min((len(unknown) for _, _, unknown in best.values()), default=len(names))
    if fewest == len(names):
        raise LayoutError(
            f"{model.path}: the adapter's tensors fit no layout of {table.name} "
            f"({', '.join(best) or 'its table has no [lora]'}), the first is {shown(names[0])}."
        )
    for choice in preferred:
        if choice in best and len(best[choice][2]) == fewest:
            return best[choice]
    fitting = [one for one in best.values() if len(one[2]) == fewest]
    fitting = [one for one in fitting if not one[0].by_name_only] or fitting
    if (
        len({tuple(sorted((p.template, p.axes_text) for p in found)) for _, found, _ in fitting})
        > 1
    ):
        advice = f"Name the right one with {option('layout')}."
        if preferred[1] is not None:
            way = command("to_torch", model.path, "DIR", layout="LAYOUT")
            advice = f"Convert it first, with {way}."
        raise LayoutError(
            f"{model.path}: the adapter's tensors fit layouts "
            f"{' and '.join(one[0].name for one in fitting)} alike, which order the rows of a "
            f"weight in different ways. {advice}"
        )
    return fitting[0]


def _pair(
    model: Model,
    table: Table,
    layout: Layout,
    found: Names,
    config: peft.AdapterConfig | None,
    alpha: float | None,
    lengths: Mapping[str, int],
) -> Iterator[Factors]:
    tensors, path = model.values, model.path
    for weight in table.lora.weights[layout.name]:
        firsts, seconds = found.get(weight.a, {}), found.get(weight.b, {})
        for numbers in sorted({*firsts, *seconds}):
            index = dict(zip(weight.weight.name_axes, numbers, strict=True))
            module = weight.weight.name(index, lengths).removesuffix(WEIGHT)
            if beyond := next(
                (axis for axis, i in index.items() if i >= lengths.get(axis, i + 1)), None
            ):
                raise LayoutError(
                    f"{path}: holds the adapter of {module}, whose number is {index[beyond]}, but "
                    f"the model has only {lengths[beyond]} ({table.axes[beyond].text}); is it an "
                    "adapter of this model?"
                )
            if numbers not in firsts or numbers not in seconds:
                there = firsts.get(numbers) or seconds[numbers]
                raise FormatError(
                    f"{path}: {there} is there without the other factor of {module}; the adapter "
                    "is damaged."
                )
            a, b = tensors[firsts[numbers]], tensors[seconds[numbers]]
            low, high = (b, a) if weight.turned else (a, b)  # of shapes (r, …) and (…, r)
            if (
                len(a.shape) != 2
                or len(b.shape) != 2
                or low.shape[0] != high.shape[1]
                or not low.shape[0]
            ):
                expected = (
                    "(r, vocabulary) and (hidden, r)" if weight.turned else "(r, in) and (out, r)"
                )
                raise FormatError(
                    f"{path}: {low.origin.name} has shape {list(low.shape)} and {high.origin.name} "
                    f"{list(high.shape)}; expected {expected} with one r."
                )
            if not a.dtype.floating or not b.dtype.floating:
                raise FormatError(
                    f"{path}: {a.origin.name} is {a.dtype} and {b.origin.name} {b.dtype}; expected "
                    "floating-point numbers."
                )
            yield Factors(
                weight,
                tuple(sorted(index.items())),
                a,
                b,
                _scale(path, config, alpha, layout, module, low),
            )


def _scale(
    path: Path,
    config: peft.AdapterConfig | None,
    alpha: float | None,
    layout: Layout,
    module: str,
    low: Value,
) -> float:
    """What a product is multiplied with; `low` is the factor whose rows are the rank."""
    rank = low.shape[0]
    if config is None:
        assert alpha is not None
        return alpha / rank
    if config.rank(module if layout.family == "huggingface" else "") != rank:
        raise FormatError(
            " ".join(
                (
                    f"{path}: {low.origin.name} has rank {rank}, but {config.where} says "
                    f"{config.rank(module)}.",
                    *config.notes,
                )
            )
        )
    return config.scale(module if layout.family == "huggingface" else "")


def adapter_tables(
    tables: Iterable[Table], held: Model, kept: Kept, config: Mapping[str, Any], model: str | None
) -> list[Table]:
    """The tables that may be an adapter's model's: the one named, else those of config.json's
    model_type or of the manifest, else all that know its names. Raises `UsageError` and
    `ModelUnknownError`."""
    tables = list(tables)
    model = model or (kept.model if kept.model in {table.name for table in tables} else None)
    if model is not None:
        named = [table for table in tables if table.name == model]
        if not named:
            names = [table.name for table in tables]
            raise UsageError(
                f"model {model!r} is unknown; tables: {', '.join(names)}.{nearest(model, names)}"
            )
        return named
    by_type = [table for table in tables if config.get("model_type") in table.model_types]
    found = by_type or [table for table in tables if table.lora.weights]
    if not found:
        raise ModelUnknownError(
            f"{held.path}: no mapping table has a [lora] section; name one with "
            f"{option('mapping')}."
        )
    unknown = {table.name: _fewest_unknown(held, table) for table in found}
    return [table for table in found if unknown[table.name] == min(unknown.values())]


def _fewest_unknown(model: Model, table: Table) -> int:
    names = dict.fromkeys(name for name in model.values if is_lora(name) and not is_state(name))
    patterns = [
        tuple(pattern for weight in weights for pattern in (weight.a, weight.b))
        for weights in table.lora.weights.values()
    ]
    layouts = [Layout(name="", family="", patterns=held) for held in patterns]
    return min((len(recognise_names(layout, names)[1]) for layout in layouts), default=len(names))
