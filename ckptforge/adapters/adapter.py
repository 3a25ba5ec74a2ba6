"""Adapters as they are stored: which factors there are, and the scale of their products."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.adapters import peft
from ckptforge.adapters.adapter_layout import factor_names, recognise_factors
from ckptforge.adapters.factors import Factors, Index, Scales, paired_factors
from ckptforge.adapters.peft_names import of_the_base, whole_weight
from ckptforge.adapters.stacked import Stack, kept_stacked, unstacked
from ckptforge.checkpoints.card import HuggingFaceSide, hugging_face_side
from ckptforge.checkpoints.manifest import find_manifest
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.checkpoints.pynative_adapter import read_adapter_config
from ckptforge.errors import FormatError, LayoutError, UnmappedTensorsError, UsageError, shown
from ckptforge.model import Model
from ckptforge.spelling import option
from ckptforge.tables.axes import Pattern
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.lora import LORA_MARK, is_lora
from ckptforge.tables.names import Names, recognise_names
from ckptforge.tables.table import Layout, Table
from ckptforge.values import Value
from ckptforge.wording import counted, listing


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
    that it is adapted by, `whole` the weights that it holds whole, by their names in the model,
    `stacks` the factors of stacked experts that the model stores so."""

    path: Path
    model: Model
    table: Table
    layout: Layout
    factors: tuple[Factors, ...]
    kept: Kept
    by_tensor: Mapping[tuple[str, Index], Factors] = msgspec.field(default_factory=dict)
    whole: Mapping[str, Value] = msgspec.field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def whole_texts(self) -> list[str]:
        """What it holds whole, in words."""
        trained = [name for name, entry in self.whole.items() if not of_the_base(entry.origin.name)]
        along = [name for name in self.whole if name not in set(trained)]
        kinds = {"whole, as training left them": trained, "of the base model, stored along": along}
        found = []
        for what, names in kinds.items():
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            found += [f"{counted(len(names), 'weight')} {what}: {some}"] if names else []
        return found

    def at(self, tensors: Iterable[str], index: Index) -> dict[str, Factors]:
        """Those of some logical tensors that have factors at an index, with these."""
        keys = ((tensor, index) for tensor in tensors)
        return {key[0]: self.by_tensor[key] for key in keys if key in self.by_tensor}

    @property
    def ranks(self) -> list[int]:
        """The ranks of products, each once."""
        return sorted({one.rank for one in self.factors} | {one.rank for one in self.stacks})

    @property
    def scales(self) -> list[float]:
        """What products are multiplied with, each once."""
        return sorted({one.scale for one in self.factors} | {one.scale for one in self.stacks})


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
    own = read_adapter_config(file.path for file in model.files)
    if own is not None:
        said = {"peft_type": "LORA", "r": own.rank, "lora_alpha": own.alpha}
        return Kept(None, peft.AdapterConfig(str(own.path), said))
    manifest = find_manifest(model.path, model.files)
    if manifest is None:
        return Kept()
    layout = manifest.layout if manifest.untouched(model.files) else None
    beside = manifest.hugging_face
    if beside is None or peft.CONFIG not in beside.files:
        return Kept(None, None, manifest.model, layout)
    config = peft.parse_config(beside.files[peft.CONFIG], f"{peft.CONFIG} in {manifest.path}")
    return Kept(beside, config, manifest.model, layout)


def read_adapter(
    model: Model,
    kept: Kept,
    table: Table,
    lengths: Lengths,
    alpha: float | None,
    layout: str | None = None,
    like: str | None = None,
    stored: Collection[Pattern] = (),
) -> Adapter:
    """Reads the factors in a checkpoint as those of a table; `lengths` are known ones of its axes.
    `layout` is the one that they must have; of several that fit, the one that a manifest recorded
    is taken, else `like`, that of the model which it is merged into, and which has the `stored`
    patterns.

    Raises `LayoutError` where their names fit none or several layouts, `UnmappedTensorsError` for
    factors that the table doesn't know, `FormatError` for ones that don't fit each other,
    `UsageError` where the scale isn't recorded.
    """
    path, is_peft = model.path, model.format == "peft adapter"
    if not factor_names(model.values):
        raise LayoutError(f"{path}: holds no factors of an adapter (no tensor *{LORA_MARK}*).")
    kept, notes = _with_alpha(path, kept, alpha)
    scales = Scales(kept.config, alpha)
    model, stacks = _taken_apart(model, table, lengths, scales, stored)
    chosen, found, unknown = _nothing_else(table)
    if names := factor_names(model.values):
        family = "huggingface" if is_peft else "mindspore"
        asked = family, layout, (kept.layout, like)
        chosen, found, unknown = recognise_factors(path, table, names, lengths, *asked)
    others = {name: e for name, e in model.values.items() if is_peft and not is_lora(name)}
    whole, strange = _whole(chosen, others, lengths)
    _refuse_unknown(path, table, chosen, [*unknown, *strange])
    if kept.config is not None and is_peft:
        _check_saved(path, kept.config, whole)
    factors = tuple(paired_factors(path, model.values, table, chosen, found, scales, lengths))
    config_notes = kept.config.notes if kept.config is not None else ()
    return Adapter(
        path=path,
        model=model,
        table=table,
        layout=chosen,
        factors=factors,
        kept=kept,
        by_tensor={(t, one.index): one for one in factors for t in one.weight.weight.tensors},
        whole=whole,
        stacks=stacks,
        notes=(*notes, *config_notes, *_idle((*factors, *stacks))),
    )


def _nothing_else(table: Table) -> tuple[Layout, Names, list[str]]:
    """What is recognised where all factors are of stacked experts."""
    return table.first_layout("huggingface"), {}, []


def _taken_apart(
    model: Model, table: Table, lengths: Lengths, scales: Scales, stored: Collection[Pattern]
) -> tuple[Model, tuple[Stack, ...]]:
    """An adapter without factors of stacked experts: of those that the model doesn't store so, it
    has each expert's."""
    config, path = scales.config, model.path
    if config is None or model.format != "peft adapter" or not config.stacked:
        return model, ()
    values, stacks = unstacked(path, model.values, table, lengths, scales, stored)
    return replace(model, values=values), stacks


def _refuse_unknown(path: Path, table: Table, layout: Layout, unknown: list[str]) -> None:
    if unknown:
        tensors = counted(len(unknown), "tensor of the adapter", "aren't")
        raise UnmappedTensorsError(
            f"{path}: {tensors} known to the mapping {table.name} in layout {layout.name}:\n"
            f"{listing(unknown)}\nIts [lora] section says which weights may have one; merge such "
            "an adapter with peft itself."
        )


def _with_alpha(path: Path, kept: Kept, alpha: float | None) -> tuple[Kept, tuple[str, ...]]:
    """(what is known, with the lora_alpha that a user gives in its place; a note with both)."""
    if kept.config is None and alpha is None:
        raise UsageError(
            f"{path}: the adapter's lora_alpha isn't recorded there; give the one it was trained "
            f"with, with {option('lora_alpha')}."
        )
    recorded = kept.config.content.get("lora_alpha", peft.DEFAULT) if kept.config else None
    if kept.config is None or alpha in (None, recorded):
        return kept, ()
    config = kept.config.with_alpha(alpha)
    given = option("lora_alpha", config.content["lora_alpha"])
    note = f"{given} overrides the lora_alpha {shown(recorded)} of {config.where}."
    if config.content.get("alpha_pattern"):
        note += " The modules that its alpha_pattern names keep theirs."
    side = kept.side
    if side is not None:
        side = replace(side, files={**side.files, peft.CONFIG: config.json()})
    return replace(kept, config=config, side=side), (note,)


def _whole(
    layout: Layout, others: Mapping[str, Value], lengths: Lengths
) -> tuple[dict[str, Value], list[str]]:
    """(the weights stored whole, by their names in the model; the tensors that are none)."""
    names = {whole_weight(name): name for name in others}
    _, unknown = recognise_names(layout, dict.fromkeys(names), lengths)
    whole = {name: others[stored] for name, stored in names.items() if name not in set(unknown)}
    return whole, [names[name] for name in unknown]


def _check_saved(path: Path, config: peft.AdapterConfig, whole: Mapping[str, Value]) -> None:
    modules = [name.rpartition(".")[0] for name in whole]
    for saved in config.saved_modules:
        if not any(module == saved or module.endswith(f".{saved}") for module in modules):
            raise FormatError(
                f"{path}: {config.where} names {shown(saved)} in modules_to_save, but "
                f"{peft.WEIGHTS} holds no weight of it."
            )


def _idle(factors: Sequence[Factors | Stack]) -> tuple[str, ...]:
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


def describe_adapter(model: Model, kept: Kept, table: Table, lengths: Lengths) -> Adapter:
    """The same without knowing more of the model's sizes than these `lengths`, or the scale."""
    weights = (weight.weight for found in table.lora.weights.values() for weight in found)
    unknown = {o: 0 for weight in weights for o in weight.offsets.values() if o not in lengths}
    alpha = 1.0 if kept.config is None else None
    stored = kept_stacked(table)
    return read_adapter(model, kept, table, lengths.changed(unknown), alpha, stored=stored)
