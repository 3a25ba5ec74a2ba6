"""What of config.json, beside sizes, a model computes with, and where two differ in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ckptforge.errors import ConfigError
from ckptforge.tables.model_config import Constant, Expression, classes_of
from ckptforge.tables.rope import (
    KEYS,
    LONGEST,
    PREFIX,
    THETA,
    Rope,
    nearly_equal,
    rope_parameters,
    rotation,
)
from ckptforge.tables.rows import at, check_known
from ckptforge.tables.window import WindowRow

if TYPE_CHECKING:
    from ckptforge.tables.table_file import TableFile

Values = Mapping[str, Any]
Found = dict[str, tuple[Any, Any]]

_WORD = re.compile(r"[A-Za-z_]\w*")
_ABSENT = object()
_MAX_KEYS = 64
_SLIDING, _FULL = "sliding_attention", ("full_attention", "attention")
# Names that transformers has for one function (activations.py).
_SAME_FUNCTION = {"swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_pytorch_tanh"}


class ModelConstants(msgspec.Struct, frozen=True):
    """What models of one model_type compute with: keys of config.json, with defaults, and
    `lengths` that an absent key of an axis has."""

    defaults: Values
    rope: Rope | None = None
    window: WindowRow | None = None
    lengths: Values = msgspec.field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """Those that are read as they stand, not by the rotation or the window."""
        rope, window = KEYS if self.rope else (), self.window.keys if self.window else ()
        taken = {*rope, *window}
        return {key: value for key, value in self.defaults.items() if key not in taken}


class Used(msgspec.Struct, frozen=True):
    """A config.json with the constants of its model_type and its number of layers."""

    constants: ModelConstants
    config: Values
    layers: int

    def value(self, key: str) -> Any:
        """A key's value, or the one that stands for an absent one."""
        return self.config[key] if key in self.config else self.constants.defaults.get(key)


class Constants(msgspec.Struct, frozen=True, kw_only=True):
    """What else of config.json a table's model computes with: `listed` values that are compared as
    they stand, and constants by model_type, taken `defaults_from` somewhere."""

    listed: tuple[Constant, ...] = ()
    by_model_type: Mapping[str, ModelConstants] = msgspec.field(default_factory=dict)
    defaults_from: str = ""

    def with_lengths(self, config: Values) -> Values:
        """A config.json that names its model_type, with the lengths that it doesn't say."""
        found = self.by_model_type.get(str(config.get("model_type")))
        return {**found.lengths, **config} if found is not None and found.lengths else config

    def of(self, config: Values) -> ModelConstants | None:
        """Those of the model_type, else of the class in `architectures`, else the first."""
        if (named := self.by_model_type.get(str(config.get("model_type")))) is not None:
            return named
        names = {name.partition("For")[0].lower() for name in classes_of(config)}
        types = self.by_model_type.items()
        fitting = (found for name, found in types if name.replace("_", "") in names)
        return next(fitting, next(iter(self.by_model_type.values()), None))


def make_constants(file: TableFile) -> Constants:
    """`constants`, [defaults], [rope] and [window] of a table. Raises `TableError`."""
    with at("constants"):
        listed = tuple(map(Constant, file.constants))
    with at("window"):
        if file.window and file.pipeline is None:
            raise ValueError("needs [pipeline], which says what axis the layers are")
    for section, rows in (("defaults", file.defaults), ("window", file.window)):
        with at(section):
            check_known(rows, file.model_type, "model_type")
    _check_defaults(file)
    rope = None
    if file.rope is not None:
        with at("rope", "dim"):
            written = file.rope
            dim = Expression(written.dim)
            rope = Rope(dim, written.scales_softmax, written.rotated, written.types)
    keys = {key for text in file.axes.values() for key in _WORD.findall(str(text))}
    by_model_type = {
        name: ModelConstants(
            {key: value for key, value in values.items() if key not in keys},
            rope,
            file.window.get(name),
            {key: value for key, value in values.items() if key in keys},
        )
        for name, values in file.defaults.items()
    }
    return Constants(listed=listed, by_model_type=by_model_type, defaults_from=file.defaults_from)


def _check_defaults(file: TableFile) -> None:
    """Where there are defaults, or what needs them, each model_type has its own, and [rope] those
    that it needs."""
    if not (file.defaults or file.window or file.rope):
        return
    for name in file.model_type:
        with at("defaults", name):
            if name not in file.defaults:
                raise ValueError("is missing: [defaults] must have every model_type, or none")
            for key in (THETA, LONGEST) if file.rope else ():
                if key not in file.defaults[name]:
                    raise ValueError(f"has no {key}, which [rope] needs")


def differing_constants(one: Used, other: Used) -> Found:
    """key → both values, absent ones filled in, of all by which two configs compute differently.

    Where several keys make up one thing, the rotation or the windows, only those are named by which
    it differs. The rotation's parameters are called rope_scaling.KEY in every spelling.
    """
    return {**_plain(one, other), **_rotations(one, other), **_windows(one, other)}


def _plain(one: Used, other: Used) -> Found:
    found = {}
    mine, theirs = one.constants.plain, other.constants.plain
    for key in {**mine, **theirs}:
        # A model_type that doesn't read a key computes as the other's default does.
        default = mine.get(key, theirs.get(key))
        here = one.value(key) if key in mine else default
        there = other.value(key) if key in theirs else default
        if not nearly_equal(_meaning(here, default), _meaning(there, default)):
            found[key] = here, there
    return found


def _meaning(value: Any, default: Any) -> Any:
    """null counts as false and as empty."""
    if isinstance(default, bool):
        return bool(value)
    if value is None and not default:
        return default
    return _SAME_FUNCTION.get(value, value) if isinstance(value, str) else value


def _rotations(one: Used, other: Used) -> Found:
    mine, theirs = (_parameters_of(side) for side in (one, other))
    found: Found = {}
    types = list(dict.fromkeys((*mine, *theirs)))
    if {*mine} != {*theirs}:
        types = list(filter(None, types)) or [""]
    for layer_type in types:
        a, b = (
            parameters.get(layer_type) or parameters.get("") or {LONGEST: _longest(side)}
            for side, parameters in ((one, mine), (other, theirs))
        )
        prefix = f"{PREFIX}{layer_type}." if layer_type else PREFIX
        for key in _telling(a, b, _rotation_of(one), _rotation_of(other)):
            name = key if key == LONGEST or (key == THETA and not layer_type) else prefix + key
            found[name] = (a.get(key), b.get(key))
    return found


def _longest(side: Used) -> Any:
    """As `rope_parameters` has it: null says nothing."""
    given = side.config.get(LONGEST)
    return side.constants.defaults.get(LONGEST) if given is None else given


def _parameters_of(side: Used) -> Mapping[str, Any]:
    rope = side.constants.rope
    return {} if rope is None else rope_parameters(side.config, side.constants.defaults, rope)


def _rotation_of(side: Used) -> Callable[[Values], Any]:
    rope = side.constants.rope
    try:
        dim = (
            None
            if rope is None
            else rope.dim.evaluate({**side.constants.lengths, **side.config}, "config.json")
        )
    except ConfigError:
        dim = None
    return lambda parameters: None if rope is None else rotation(parameters, dim, rope)


def _windows(one: Used, other: Used) -> Found:
    rows = [side.constants.window for side in (one, other) if side.constants.window is not None]
    keys = dict.fromkeys(key for row in rows for key in row.keys)
    mine, theirs = ({key: side.value(key) for key in keys} for side in (one, other))
    listing = dict.fromkeys(row.layer_types for row in rows if row.layer_types is not None)
    listed = [key for key in listing if list in (type(mine[key]), type(theirs[key]))]
    for side, values in ((one, mine), (other, theirs)):
        for key in listed:
            if values[key] is None:
                values[key] = list(_kinds(side.constants.window, values, side.layers))
    telling = _telling(mine, theirs, partial(_windows_by, one), partial(_windows_by, other))
    return {key: (mine[key], theirs[key]) for key in telling}


def _kinds(row: WindowRow | None, values: Values, layers: int) -> Iterator[str]:
    """The type of each layer where config.json doesn't list them."""
    sized = row is not None and values.get(row.size) is not None
    switched = sized and row is not None and (row.switch is None or values.get(row.switch))
    first = values.get(row.first_layer) if row is not None and row.first_layer is not None else 0
    end = values.get(row.before_layer) if row is not None and row.before_layer is not None else None
    begin = first if isinstance(first, int) else layers
    stop = end if isinstance(end, int) else layers
    every = row.every if row is not None else 1
    for layer in range(layers):
        slides = begin <= layer < stop and not layer % every
        yield _SLIDING if switched and slides else _FULL[0]


def windows(used: Used) -> list[Any]:
    """How far back each layer attends, in tokens, None without a bound; for a layer of another type
    that type's name."""
    row = used.constants.window
    values = {key: used.value(key) for key in row.keys} if row is not None else {}
    return _windows_by(used, values)


def _windows_by(side: Used, values: Values) -> list[Any]:
    """Each layer's window by these values, None for none; a layer of another type by its name."""
    row = side.constants.window
    if row is None:
        return [None] * side.layers
    kinds = values.get(row.layer_types) if row.layer_types is not None else None
    if not isinstance(kinds, list):
        kinds = list(_kinds(row, values, side.layers))
    size = values.get(row.size) if row.switch is None or values.get(row.switch) else None
    lengths = {_SLIDING: _SLIDING if size is None else size, **dict.fromkeys(_FULL)}
    return [lengths.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]


def _telling(
    mine: Values,
    theirs: Values,
    compute_mine: Callable[[Values], Any],
    compute_theirs: Callable[[Values], Any],
) -> list[str]:
    """The keys that, taken from one config into the other, change what is computed."""
    here, there = compute_mine(mine), compute_theirs(theirs)
    if nearly_equal(here, there):
        return []
    keys = [key for key in {**mine, **theirs} if mine.get(key, _ABSENT) != theirs.get(key, _ABSENT)]
    telling = [
        key
        for key in keys[:_MAX_KEYS]
        if not nearly_equal(compute_mine(_taken(key, mine, theirs)), here)
        or not nearly_equal(compute_theirs(_taken(key, theirs, mine)), there)
    ]
    return telling or keys


def _taken(key: str, into: Values, source: Values) -> Values:
    rest = {k: v for k, v in into.items() if k != key}
    return {**rest, key: source[key]} if key in source else rest
