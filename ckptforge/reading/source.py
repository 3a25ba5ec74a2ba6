"""An input model: its tensors, its config, and the layout that it is read as."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.dtypes import DType
from ckptforge.errors import (
    CkptforgeError,
    ConfigError,
    LayoutError,
    MissingTensorsError,
    QuantisedError,
    UnmappedTensorsError,
    UsageError,
    shown,
)
from ckptforge.foreign.json import parse_object
from ckptforge.foreign.paths import is_directory
from ckptforge.model import Model
from ckptforge.quantisation.undo import undo, without_quantisation
from ckptforge.reading.known import Choices, Known, known_of
from ckptforge.reading.naming import declared, language_side, renamed, side_renamed, with_config_of
from ckptforge.reading.vocabulary import KEY, Padding, padding_of, refusal, trimmed
from ckptforge.spelling import command, flag, offered, option
from ckptforge.steps.grouped import Grouped
from ckptforge.steps.scaled import Scaled
from ckptforge.tables.binding import Binding, Shapes
from ckptforge.tables.layout_choice import Hints, recognise
from ckptforge.tables.model_config import Config
from ckptforge.tables.names import NamedShapes
from ckptforge.tables.recognition import Identified, identify
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.state import state_in
from ckptforge.tables.table import Table
from ckptforge.tables.unmapped import HEAD, of_kind, other_task, undroppable
from ckptforge.wording import alternatives, counted, listing

_log = logging.getLogger(__name__)
_IN_LAYER = re.compile(r"\.[0-9]+\.")


class Source(msgspec.Struct, frozen=True):
    """A checkpoint bound to a layout. `state` are optimizer state and counters, `unmapped` what
    nothing knows, `activations` scales that only a quantised model needs."""

    model: Model
    binding: Binding
    config: Config
    hugging_face: HuggingFaceSide | None
    state: tuple[str, ...]
    unmapped: tuple[str, ...]
    activations: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The table that it is read by."""
        return self.binding.table

    @property
    def whole_config(self) -> Config:
        """What config.json says of all of the model, where the table is for one with other parts
        beside its language model; else `config`."""
        side = self.hugging_face
        if side is None or CONFIG not in side.files:
            return self.config
        whole = parse_object(side.files[CONFIG], CONFIG, constants=True)
        return whole if self.table.of_the_whole(whole) else self.config

    @property
    def quantised(self) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """Name of a quantised weight → its dtype, and how many elements share a scale."""
        return {
            name: (fragment.stored.dtype, scaled.block)
            for name, value in self.model.values.items()
            for fragment in value.fragments
            for step in fragment.steps
            for scaled in (step.scaled if isinstance(step, Grouped) else step,)
            if isinstance(scaled, Scaled)
        }

    def refuse_unmapped(self, allowed: bool, drop: Sequence[str] = ()) -> None:
        """Raises `UnmappedTensorsError` with the list of unmapped tensors unless they are allowed,
        and always for one that the table says makes a conversion wrong, or without which the model
        would be another one, unless a glob in `drop` names it. Raises `UsageError` for a glob that
        names none."""
        for glob in drop:
            if not any(fnmatchcase(name, glob) for name in self.unmapped):
                raise UsageError(
                    f"{option('drop', glob)}: no tensor that the mapping {self.table.name} doesn't "
                    "know has that name"
                    + (f"; there are\n{self._places(self.unmapped)}" if self.unmapped else ".")
                )
        dropped = {n for n in self.unmapped for glob in drop if fnmatchcase(n, glob)}
        unmapped = [name for name in self.unmapped if name not in dropped]
        if refusal := self.table.refusal(self.binding.layout, unmapped):
            raise UnmappedTensorsError(f"{self.model.path}: holds {refusal[0]}: {refusal[1]}.")
        if kept := undroppable(unmapped):
            kind, names = kept
            drop = f" To drop them anyway, name them with {option('drop')}."
            raise UnmappedTensorsError(
                f"{self.model.path}: holds {kind.what}:\n{self._places(names)}\n{kind.advice}"
                f"{drop if offered('drop') else ''}"
            )
        if unmapped and not allowed:
            unknown = counted(len(unmapped), "tensor", "aren't")
            raise UnmappedTensorsError(
                f"{self.model.path}: {unknown} known to the mapping {self.table.name} in "
                "layout "
                f"{self.binding.layout.name}:\n{self._places(unmapped)}\n{self._advice(unmapped)}"
            )

    def _advice(self, unmapped: Sequence[str]) -> str:
        """What to do about tensors that the table doesn't know."""
        patterns = self.binding.names.values()
        names = [*(name for pattern in patterns for name in pattern.values()), *unmapped]
        family = self.binding.layout.family
        others = (table for table in shipped_tables() if table.name != self.table.name)
        lacking = {
            one.name: number for one in others if (number := one.lacking(names, family)) is not None
        }
        if fitting := [name for name, number in lacking.items() if number == min(lacking.values())]:
            which, ways = alternatives(fitting), [option("model", name) for name in fitting]
            return (
                f"The mapping {which} knows all names: is it a model of that kind? Then give its "
                f"own config.json with {option('config')}, or {alternatives(ways)}."
            )
        if not offered("allow_unmapped"):
            verbs = f"{command('convert')} or {command('to_torch')}"
            return f"Leave them out first, with {flag('allow_unmapped')} of {verbs}."
        if in_layers := [name for name in unmapped if _IN_LAYER.search(name)]:
            return (
                f"{in_layers[0]} lies in a layer: a model that computes with it isn't the same "
                f"without it. If nothing computes with them, {flag('allow_unmapped')} leaves them "
                "out."
            )
        return f"Give {flag('allow_unmapped')} to leave them out."

    def _places(self, names: Sequence[str]) -> str:
        origins = [self.model.values[name].origin for name in names]
        return listing([f"{stored.name} in {stored.path.name}" for stored in origins])

    def refuse_codes(self, dtype: DType | None) -> None:
        """Raises `QuantisedError` for weights of integers, but for those that the table has, and
        for eight-bit floats without scales that aren't cast to `dtype`: whatever reads them would
        take codes for weights."""
        patterns = self.binding.names.items()
        weights_of = [names for p, names in patterns if not self.table.holds_integers(p)]
        names = [name for names in weights_of for name in names.values()]
        weights = [self.model.values[name] for name in names]
        dtypes = {value.dtype for value in weights}
        if all(one.floating and (one.itemsize > 1 or dtype) for one in dtypes):
            return
        if codes := [value.origin for value in weights if not value.dtype.floating]:
            raise QuantisedError(
                f"{codes[0].path}: {shown(codes[0].name)} is {codes[0].dtype} "
                f"{list(codes[0].shape)}, expected floating-point numbers "
                f"({counted(len(codes), 'such weight')}). Integers are codes of a quantised "
                "weight, and no scales stand beside it; take the model before it was quantised."
            )
        if dtype is None and (codes := [v.origin for v in weights if v.dtype.itemsize == 1]):
            raise QuantisedError(
                f"{codes[0].path}: {shown(codes[0].name)} is {codes[0].dtype} "
                f"{list(codes[0].shape)}, without scales ({counted(len(codes), 'such weight')}). "
                f"If these numbers are the weights, cast them with {option('dtype', 'bf16')}; if "
                "they were made with scales, take the files that hold those."
            )


def bind_source(model: Model, choices: Choices) -> Source:
    """Finds the layout of an open model. Raises the errors of the tables and of binding."""
    path, known = model.path, known_of(model, choices)
    config, config_source, side = known.hints.config, known.hints.config_source, known.side
    undone = undo(model, config, config_source)
    model = undone.model
    # tables have some names of weights that are like those of scales
    named = [name for name in undone.activations if not _known(known.tables, name)]
    beside = {*named, *state_in(model)}
    weights = ((name, value) for name, value in model.values.items() if name not in beside)
    shapes = NamedShapes((name, value.shape) for name, value in weights)
    try:
        model, identified = _identified(model, shapes, known, choices)
    except LayoutError as error:
        names = error.tensors if is_directory(path) else ()
        origins = {name: model.values[name].origin for name in names if name in model.values}
        places = "".join(f" {name} lies in {one.path.name}." for name, one in origins.items())
        raise type(error)(f"{path}: {error}{places}") from error
    except CkptforgeError as error:
        raise type(error)(f"{path}: {error}") from error
    binding = identified.binding
    if task := other_task(known.described):
        heads = of_kind(binding.unknown, HEAD)
        there = f", and {shown(heads[0])} is there" if heads else ""
        raise MissingTensorsError(
            f"{path}: {config_source} says {task}, which isn't a causal language model{there}. "
            f"{HEAD.advice}"
        )
    if side is not None:
        if side.layout is None and binding.layout.family == "huggingface":
            side = replace(side, layout=binding.layout.name)
        side = replace(side, files=without_quantisation(side.files, known.described))
        if identified.renaming is not None:
            side = side_renamed(side, identified.renaming)
        if model.derived is not None:
            side = with_config_of(side, binding.layout)
        side, notes = language_side(side, binding.table)
        model = model.noting(*notes)
    model = model.noting(*_undeclared(binding, config, config_source))
    side, notes = declared(side, binding, config)
    model = model.noting(*notes)
    values = model.values
    copies = binding.copies.items()
    copied = {(copy, original): (values[copy], values[original]) for copy, original in copies}
    must_equal = {**model.account.must_equal, **copied}
    model = replace(model, account=replace(model.account, must_equal=must_equal))
    state = tuple(state_in(model))
    _log_choice(binding, choices, known.hints)
    return Source(model, binding, config, side, state, binding.unknown, tuple(named))


def _known(tables: Sequence[Table], name: str) -> bool:
    return any(table.knows([name], "huggingface") for table in tables)


def _undeclared(binding: Binding, config: Config, where: str) -> Iterator[str]:
    """A sentence for each key by which config.json says that tensors aren't there that are. Heads
    that are tied to the embedding are compared with it instead."""
    table = binding.table
    tied = table.pipeline.tied if table.pipeline is not None else {}
    present: dict[str, list[str]] = {}
    for pattern, names in binding.names.items():
        for tensor in pattern.tensors:
            condition = table.optional.get(tensor)
            if condition is not None and tensor not in tied and config and condition.holds(config):
                present.setdefault(condition.key, []).extend(names.values())
    for key, names_there in present.items():
        verb = "is" if len(names_there) == 1 else "are"
        yield (
            f"{where} has {key} {shown(config.get(key))}, but "
            f"{counted(len(names_there), 'tensor')} such as {names_there[0]} {verb} there and "
            f"{verb} kept. Programs that follow config.json compute without them: set {key} if the "
            "model was trained with them."
        )


def _identified(
    model: Model, shapes: Shapes, known: Known, choices: Choices
) -> tuple[Model, Identified]:
    """A model under its layout's names, without padding that isn't wanted, and what it is."""
    hints = known.hints
    if choices.trim_vocab and KEY not in hints.config:
        raise ConfigError(
            f"{hints.config_source}: {flag('trim_vocab')} needs {KEY}; give the model's "
            f"config.json with {option('config')}."
        )
    try:
        identified = identify(known.tables, shapes, hints)
    except LayoutError as error:
        if (found := _padded(model, shapes, known)) is None:
            raise
        model, identified, padding = found
        if not choices.trim_vocab:
            raise LayoutError(refusal(padding, hints.config_source), padding.names) from error
        model = trimmed(model, padding)
        kept = {name: model.values[name].shape for name in map(identified.renamed, shapes)}
        return model, replace(identified, binding=recognise(identified.binding.table, kept, hints))
    if choices.trim_vocab:
        note = f"no tensor has more rows than {KEY} {hints.config[KEY]}: nothing is cut off."
        model = model.noting(note)
    return _as_identified(model, identified), identified


def _padded(model: Model, shapes: Shapes, known: Known) -> tuple[Model, Identified, Padding] | None:
    """The same and its vocabulary's padding, where only that contradicts config.json."""
    config = known.hints.config
    if KEY not in config:
        return None
    unsaid = {key: value for key, value in config.items() if key != KEY}
    try:
        identified = identify(known.tables, shapes, replace(known.hints, config=unsaid))
        model = _as_identified(model, identified)
        padding = padding_of(identified.binding, model.values, config)
    except CkptforgeError:
        return None
    return None if padding is None else (model, identified, padding)


def _as_identified(model: Model, identified: Identified) -> Model:
    """A model under the names that the layout has, with what a user should hear of."""
    if identified.note and identified.binding.layout.family == "huggingface":
        model = model.noting(f"{model.path}: {identified.note}")
    return model if identified.renaming is None else renamed(model, identified.renaming)


def _log_choice(binding: Binding, choices: Choices, hints: Hints) -> None:
    """Says which model and layout a model is read as, and by what that was known."""
    model_type = hints.config.get("model_type")
    if choices.model is not None or choices.mapping is not None:
        why = "as was asked for"
    elif hints.model is not None:
        why = "as its manifest says"
    elif model_type in binding.table.model_types:
        why = f"by model_type {model_type!r} in {hints.config_source}"
    else:
        why = "by the names of its tensors"
    _log.info("model %s (%s): %s", binding.table.name, binding.table.source, why)
    if choices.layout is not None:
        why = "as was asked for"
    elif binding.layout.name == hints.recorded_layout:
        why = "as its manifest says"
    else:
        why = "the only one that fits its names and shapes"
    _log.info("layout %s: %s", binding.layout.name, why)
