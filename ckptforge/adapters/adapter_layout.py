"""Which model and which layout the factors of an adapter are of, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptforge.adapters.stacked import is_of_stack
from ckptforge.errors import CkptforgeError, ConfigError, LayoutError, ModelUnknownError, shown
from ckptforge.spelling import command, option
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.lora import is_lora
from ckptforge.tables.names import Names, indexed, recognise_names
from ckptforge.tables.state import is_state
from ckptforge.tables.table import Layout, Table, table_named


class FactorNames(NamedTuple):
    """Names of factors as those of a layout, and those that it doesn't know."""

    layout: Layout
    found: Names
    unknown: list[str]


def factor_names(names: Iterable[str]) -> list[str]:
    """Those of the names that are of an adapter's factors."""
    return [name for name in names if is_lora(name) and not is_state(name)]


def _patterns(table: Table, layout: str) -> Layout:
    """A layout of the factors alone."""
    weights = table.lora.weights[layout]
    patterns = tuple(pattern for weight in weights for pattern in (weight.a, weight.b))
    return Layout(name=layout, family=table.layouts[layout].family, patterns=patterns)


def recognise_factors(
    path: Path,
    table: Table,
    names: Sequence[str],
    lengths: Lengths,
    family: str,
    named: str | None,
    preferred: Sequence[str | None],
) -> FactorNames:
    """The layout whose names most factors have: the one that is `named`; of several that fit, one
    that is `preferred`, first that of a manifest, then that of the model which they are merged
    into. Raises `LayoutError`, and `ConfigError` for an axis that must be known."""
    best = {
        name: _read_as(path, table, name, names, lengths)
        for name, weights in table.lora.weights.items()
        if weights and table.layouts[name].family == family
    }
    if named is not None:
        table.layout(named)
        if named not in best or len(best[named].unknown) == len(names):
            first = shown(names[0])
            raise LayoutError(f"{path}: the adapter isn't of layout {named}; it has {first}.")
        return best[named]
    fewest = min((len(one.unknown) for one in best.values()), default=len(names))
    if fewest == len(names):
        raise LayoutError(
            f"{path}: the adapter's tensors fit no layout of {table.name} "
            f"({', '.join(best) or 'its table has no [lora]'}), the first is {shown(names[0])}."
        )
    fitting = {name: one for name, one in best.items() if len(one.unknown) == fewest}
    wanted = next((name for name in preferred if name in fitting), None)
    return fitting[wanted] if wanted else _only_one(path, list(fitting.values()), preferred[-1])


def _read_as(
    path: Path, table: Table, layout: str, names: Sequence[str], lengths: Lengths
) -> FactorNames:
    """Names as those of a layout. Raises `ConfigError` for an axis that must be known."""
    numbered, unknown = recognise_names(_patterns(table, layout), dict.fromkeys(names), lengths)
    offsets = {offset for pattern in numbered for offset in pattern.offsets.values()}
    if lost := offsets - set(lengths):
        raise ConfigError(
            f"{path}: to read the adapter {table.axes[min(lost)].text} must be known; give the "
            f"model's config.json with {option('config')}."
        )
    return FactorNames(table.layouts[layout], indexed(numbered, lengths), unknown)


def _only_one(path: Path, fitting: Sequence[FactorNames], into: str | None) -> FactorNames:
    """One of several that are alike; `into` is the layout of the model that they are merged into.
    Raises `LayoutError` where they differ."""
    told = [one for one in fitting if not one.layout.by_name_only] or fitting
    if len({tuple(sorted((p.template, p.axes_text) for p in one.found)) for one in told}) > 1:
        advice = f"Name the right one with {option('layout')}."
        if into is not None:
            way = command("to_torch", path, "DIR", layout="LAYOUT")
            advice = f"Convert it first, with {way}."
        raise LayoutError(
            f"{path}: the adapter's tensors fit layouts "
            f"{' and '.join(one.layout.name for one in told)} alike, which order the rows of a "
            f"weight in different ways. {advice}"
        )
    return told[0]


def adapter_tables(
    tables: Sequence[Table],
    path: Path,
    names: Iterable[str],
    model_type: object,
    named: str | None,
    recorded: str | None,
) -> list[Table]:
    """The tables that may be those of the model of an adapter with tensors of these names: the one
    `named`, else those of config.json's model_type or `recorded` in a manifest, else all that know
    its names. Raises `UsageError` and `ModelUnknownError`."""
    if named is None and recorded in {table.name for table in tables}:
        named = recorded
    if named is not None:
        return [table_named(tables, named)]
    found = [table for table in tables if model_type in table.model_types]
    found = found or [table for table in tables if table.lora.weights]
    if not found:
        raise ModelUnknownError(
            f"{path}: no mapping table has a [lora] section; name one with {option('mapping')}."
        )
    factors = dict.fromkeys(factor_names(names))
    unknown = {table.name: _unknown(table, factors) for table in found}
    return [table for table in found if unknown[table.name] == min(unknown.values())]


def _unknown(table: Table, factors: Mapping[str, object]) -> int:
    """How many factors the layout doesn't know that knows most, nor are of stacked experts."""
    own = {name: None for name in factors if not is_of_stack(table, name)}
    layouts = (_patterns(table, layout) for layout in table.lora.weights)
    counts = (len(recognise_names(layout, own)[1]) for layout in layouts)
    return min(counts, default=len(factors))


def telling(errors: Sequence[CkptforgeError]) -> CkptforgeError:
    """The error to raise of those that several tables gave: what a config.json would say, if that
    is lacking for one, since it would say which table is meant, too."""
    return next((error for error in errors if isinstance(error, ConfigError)), errors[0])
