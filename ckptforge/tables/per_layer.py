"""The lengths of an axis in each layer, by config.json, where they may differ between layers.

transformers' `per_layer_config` (transformers/integrations/heterogeneity) is an object: layer → the
keys that differ there. In place of a number a list with one for each layer is read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptforge.errors import ConfigError, shown
from ckptforge.tables.model_config import Config, Expression

PER_LAYER = "per_layer_config"


def differs(config: Config, expression: Expression) -> bool:
    """Whether a config.json says a length of some layers alone, or of each."""
    listed = any(isinstance(config.get(key), list) for key in expression.keys)
    return listed or bool(config.get(PER_LAYER))


def lengths_by_layer(
    expression: Expression, config: Config, layers: int, where: str
) -> list[int | None]:
    """The length in each of so many layers; None where config.json doesn't say. Raises
    `ConfigError`."""
    told = _told(config, layers, where)
    base = {key: config[key] for key in expression.keys if config.get(key) is not None}
    for key, value in base.items():
        if isinstance(value, list) and len(value) != layers:
            raise ConfigError(
                f"{where}: {key} is a list of {len(value)}, expected a number, or a list of "
                f"{layers}, one for each layer."
            )
    known: dict[tuple[tuple[str, Any], ...], int | None] = {}
    found = []
    for layer in range(layers):
        values = {k: v[layer] if isinstance(v, list) else v for k, v in base.items()}
        own = {k: v for k, v in told.get(layer, {}).items() if k in expression.keys}
        kind = (*values.items(), ("", 0), *own.items())
        if any(isinstance(value, list | dict) for _, value in kind) or kind not in known:
            known[kind] = _length(expression, values, own, f"{where}, layer {layer}")
        found.append(known[kind])
    return found


def _length(
    expression: Expression, values: Config, own: Mapping[str, Any], where: str
) -> int | None:
    """The length in a layer: by the first choice of which it has a key of its own, if any; the
    whole model may name the same length by another key."""
    for choice in expression.choices if own else ():
        if any(key in own for key in Expression(choice).keys):
            return Expression(choice).evaluate({**values, **own}, where)
    return expression.evaluate(values, where)


def _told(config: Config, layers: int, where: str) -> dict[int, Mapping[str, Any]]:
    """Layer → the keys of `per_layer_config` there."""
    section = config.get(PER_LAYER)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: {PER_LAYER} is {shown(section)}, expected an object.")
    found: dict[int, Mapping[str, Any]] = {}
    for key, values in section.items():
        layer = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 7 else -1
        if not 0 <= layer < layers or not isinstance(values, Mapping):
            raise ConfigError(
                f"{where}: {PER_LAYER} has {shown(key)}: {shown(values)}, expected the number of "
                f"one of {layers} layers, with an object."
            )
        if found.setdefault(layer, values) is not values:
            raise ConfigError(f"{where}: {PER_LAYER} has layer {layer} twice.")
    return found
