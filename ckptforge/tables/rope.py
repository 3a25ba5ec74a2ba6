"""Rotary position embeddings: what a config.json's parameters compute, in any spelling.

Spellings, defaults and formulas are those of transformers 5.24.0, modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any

import msgspec

from ckptforge.errors import ConfigError
from ckptforge.tables.model_config import Config, Expression
from ckptforge.tables.rows import means

THETA = "rope_theta"
LONGEST = "max_position_embeddings"
_TYPE, _ORIGINAL = "rope_type", "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
# of config.json itself, which are read here
KEYS = frozenset({THETA, LONGEST, _ORIGINAL, _PARTIAL})
PREFIX = "rope_scaling."

_SCALED = ("factor", _PARTIAL)
_LONG = ("short_factor", "long_factor", "attention_factor")
_BANDS = ("low_freq_factor", "high_freq_factor")
_YARN = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")
_DEFAULTS = {_PARTIAL: 1.0, "beta_fast": 32, "beta_slow": 1, "truncate": True}
_ALIASES = {"mrope": "default"}  # of a text without pictures; transformers 5 saves it so
_MAX_DIM = 1 << 12
_MAX_NESTED = 16

Parameters = Mapping[str, Any]
Way = tuple[Callable[[Parameters, int], tuple[Any, ...]], tuple[str, ...]]


class RopeSection(msgspec.Struct, frozen=True):
    """Rotary embeddings: rope_scaling, rope_parameters and the keys beside them."""

    dim: Annotated[str, means("how many numbers of a head are rotated, as in [axes]")]
    scales_softmax: Annotated[
        bool, means("yarn's mscale_all_dim scales the attention's scores, too")
    ] = False
    rotated: Annotated[
        str | None,
        means(
            "the key of config.json that says how many of these are rotated, where "
            "partial_rotary_factor doesn't"
        ),
    ] = None
    types: Annotated[
        dict[str, str],
        means(
            "rope types of config.json that are computed as another: banded is that "
            "with low_freq_factor and high_freq_factor"
        ),
    ] = {}


class Rope(msgspec.Struct, frozen=True):
    """`dim` numbers of a head are rotated. `scales_softmax`: where there is an mscale_all_dim, the
    attention's scores are multiplied by the square of the scale that it gives. `rotated`: the key
    that says how many are rotated where partial_rotary_factor doesn't. `types`: rope type → the one
    in whose way it is computed."""

    dim: Expression
    scales_softmax: bool
    rotated: str | None = None
    types: Mapping[str, str] = msgspec.field(default_factory=dict)

    def way(self, kind: object) -> Way | None:
        """How a rope type is computed; None for an unknown one."""
        return _TYPES.get(self.types.get(kind, kind)) if isinstance(kind, str) else None


def rope_parameters(config: Config, defaults: Config, rope: Rope) -> dict[str, Parameters]:
    """What the rotation of each layer type reads, by its name, or that of all layers, by ''.

    `rope_scaling` {type or rope_type, …} beside `rope_theta`, as transformers 4 writes it, and
    `rope_parameters`, as 5 does, come out alike. Keys that the rope type doesn't read aren't there,
    but for LONGEST; those of a fixed default always are. A default rope type reads
    partial_rotary_factor only where there is a default for it.
    """
    spellings = (config.get(key) for key in ("rope_scaling", "rope_parameters"))
    given: Any = next(filter(None, spellings), {})
    if not isinstance(given, Mapping):
        return {"": {_TYPE: given}}
    types = config.get("layer_types")
    objects = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    nested = {k: v for k, v in objects.items() if not isinstance(types, list) or k in types}
    if len(nested) > _MAX_NESTED:
        return {"": {_TYPE: given}}
    rows = (nested or {"": given}).items()
    return {key: _standard(value, config, defaults, rope) for key, value in rows}


def _standard(given: Mapping[str, Any], config: Config, defaults: Config, rope: Rope) -> Parameters:
    outer = {key: config[key] for key in KEYS if config.get(key) is not None}
    own = {key: value for key, value in given.items() if value is not None and key != LONGEST}
    values = {**defaults, **_by_count(config, rope), **outer, **own}
    kind = values.get(_TYPE) or given.get("type") or "default"
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if _ORIGINAL in outer and given.get(_ORIGINAL) != outer[_ORIGINAL]:
        values[_ORIGINAL] = outer[_ORIGINAL]  # beside the parameters it counts more than among them
    if "truncate" in given:
        values["truncate"] = bool(given["truncate"])
    read: tuple[str, ...] = ()
    if isinstance(kind, str):
        others = tuple(key for key in given if key not in ("type", _TYPE))
        way = rope.way(kind)
        read = others if way is None else way[1]
    if kind == "default" and _PARTIAL in defaults:
        read = (_PARTIAL,)
    if rope.scales_softmax and kind != "default":
        read = (*read, "factor", "mscale_all_dim")
    values = {**_DEFAULTS, **values}
    return {_TYPE: kind, **{key: values[key] for key in (THETA, *read, LONGEST) if key in values}}


def _by_count(config: Config, rope: Rope) -> Parameters:
    """partial_rotary_factor where config.json says the number instead."""
    count = None if rope.rotated is None else config.get(rope.rotated)
    with suppress(ConfigError):
        dim = rope.dim.evaluate(config, "config.json")
        if dim and isinstance(count, int) and 0 <= count <= dim:
            return {_PARTIAL: count / dim}
    return {}


def rotation(parameters: Parameters, dim: int | None, rope: Rope) -> tuple[Any, ...]:
    """What the parameters make of positions: the inverse frequencies, the factors of the attention,
    and where they change with the length of the text. Equal for whatever computes the same.

    Parameters that no formula here is for (another rope type, missing or wrong values, an unknown
    `dim`) stand for themselves.
    """
    try:
        if dim is None or not 0 < dim <= _MAX_DIM:
            raise ValueError(dim)
        if (way := rope.way(parameters[_TYPE])) is None:
            raise ValueError(parameters[_TYPE])
        found = way[0](parameters, dim)
        return (*found, _softmax_scale(parameters) if rope.scales_softmax else 1.0)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        _, read = rope.way(str(parameters.get(_TYPE))) or (None, (LONGEST,))
        unread = None if LONGEST in read else LONGEST
        items = (item for item in parameters.items() if item[0] != unread)
        return tuple(sorted(items, key=lambda item: item[0]))


def nearly_equal(one: Any, other: Any) -> bool:
    """Whether two rotations are the same except for the rounding of float64."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(nearly_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12) or (one != one and other != other)
    return bool(one == other)


def _inverse(p: Parameters, dim: int, length: int | None = None) -> list[float]:
    """1 / theta^(2i / length) of the `dim` rotated numbers."""
    return [p[THETA] ** (-2.0 * i / (length or dim)) for i in range((dim + 1) // 2)]


def _rotated(p: Parameters, dim: int) -> int:
    rotated = int(1.0 * p.get(_PARTIAL, 1.0) * dim)
    if not 0 <= rotated <= dim:
        raise ValueError(rotated)
    return rotated


def _original(p: Parameters) -> Any:
    return p.get(_ORIGINAL, p.get(LONGEST))


def _fixed(frequencies: list[float], attention: float = 1.0) -> tuple[Any, ...]:
    return (tuple(frequencies), attention)


def _linear(p: Parameters, dim: int) -> tuple[Any, ...]:
    return _fixed([frequency / p["factor"] for frequency in _inverse(p, _rotated(p, dim))])


def _proportional(p: Parameters, dim: int) -> tuple[Any, ...]:
    angles = _rotated(p, dim) // 2
    turning = [frequency / p.get("factor", 1.0) for frequency in _inverse(p, 2 * angles, dim)]
    return _fixed(turning + [0.0] * (dim // 2 - angles))


def _dynamic(p: Parameters, dim: int) -> tuple[Any, ...]:
    """The base grows with a text longer than LONGEST: the numbers themselves say how."""
    return ("dynamic", 1.0 * p[THETA], 1.0 * p["factor"], 1.0 * p[LONGEST], _rotated(p, dim))


def _yarn(p: Parameters, dim: int) -> tuple[Any, ...]:
    dim, theta, original = _rotated(p, dim), p[THETA], _original(p)
    factor = p["factor"] if "factor" in p else p[LONGEST] / original
    attention = p.get("attention_factor")
    if attention is None:
        upper, lower = p.get("mscale"), p.get("mscale_all_dim")
        both = upper and lower
        attention = _mscale(factor, upper if both else 1) / (_mscale(factor, lower) if both else 1)

    def turn(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turn(p.get("beta_fast") or 32), turn(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 * (low == high)
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    pairs = zip(_inverse(p, dim), ramp, strict=True)
    return _fixed([x / factor * share + x * (1 - share) for x, share in pairs], 1.0 * attention)


def _mscale(scale: Any, mscale: Any) -> Any:
    return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0


def _longrope(p: Parameters, dim: int) -> tuple[Any, ...]:
    original = _original(p)
    factor = p["factor"] if "factor" in p else p[LONGEST] / original
    attention = p.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    plain = _inverse(p, _rotated(p, dim))
    short, long = (
        [x / y for x, y in zip(plain, p[key], strict=True)]
        for key in ("short_factor", "long_factor")
    )
    if nearly_equal(tuple(short), tuple(long)):
        return _fixed(short, 1.0 * attention)
    return ("longrope", tuple(short), tuple(long), original, 1.0 * attention)


def _banded(p: Parameters, dim: int) -> tuple[Any, ...]:
    factor, original = p["factor"], _original(p)
    low, high = p["low_freq_factor"], p["high_freq_factor"]

    def scaled(frequency: float) -> Any:
        wavelength = 2 * math.pi / frequency
        if wavelength > original / low:
            return frequency / factor
        if wavelength < original / high:
            return frequency
        share = (original / wavelength - low) / (high - low)
        return (1 - share) * frequency / factor + share * frequency

    return _fixed([scaled(frequency) for frequency in _inverse(p, _rotated(p, dim))])


def _softmax_scale(p: Parameters) -> float:
    scale = p.get("mscale_all_dim") if p[_TYPE] != "default" else None
    return float(_mscale(p["factor"], scale) ** 2) if scale else 1.0


# Rope type, by transformers' name → what computes it, and the parameters that it reads.
_TYPES: Mapping[str, Way] = {
    "default": (lambda p, dim: _fixed(_inverse(p, _rotated(p, dim))), ()),
    "linear": (_linear, _SCALED),
    "proportional": (_proportional, _SCALED),
    "dynamic": (_dynamic, (*_SCALED, LONGEST)),
    "yarn": (_yarn, (*_SCALED, _ORIGINAL, *_YARN, LONGEST)),
    "longrope": (_longrope, (*_SCALED, _ORIGINAL, *_LONG, LONGEST)),
    "banded": (_banded, (*_SCALED, _ORIGINAL, *_BANDS, LONGEST)),
}
