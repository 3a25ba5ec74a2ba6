"""WHAT an edit is of: a kind of tensor of the mapping table, or a glob of stored names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import chain

from ckptforge.errors import UsageError, shown
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.tables.axes import kind_of
from ckptforge.tables.state import COMPANION_PREFIXES
from ckptforge.wording import nearest


def names_of(model: Model, source: Source | None, what: str) -> list[str]:
    """The stored tensors that are meant, without optimizer state. Raises `UsageError` where there
    are none, and for a kind that is stored in one tensor with others."""
    own = [] if source is None else [t for t in source.table.tensors if kind_of(t) == what]
    if source is not None and own:
        patterns = [source.binding.layout.holding(tensor) for tensor in own]
        pattern = patterns[0]
        if pattern.kind != what:
            others = ", ".join(one for one in map(kind_of, pattern.tensors) if one != what)
            raise UsageError(
                f"{what} is stored in one tensor with {others} in layout "
                f"{source.binding.layout.name}: name that ({pattern.template}), or bring the model "
                "into a layout that holds them apart."
            )
        stored = [source.binding.names.get(pattern, {}).values() for pattern in patterns]
        if names := list(chain.from_iterable(stored)):
            return names
    found = [name for name in model.values if fnmatchcase(name, what)]
    if found:
        return found
    kinds = map(kind_of, source.table.tensors if source is not None else ())
    known = [*model.values, *kinds]
    raise UsageError(
        f"{model.path}: no tensor has the name {shown(what)}, and no kind that is there."
        f"{nearest(what, known)}"
    )


def with_state(model: Model, names: Iterable[str]) -> dict[str, None]:
    """Names with those of the optimizer state of these weights."""
    found = dict.fromkeys(names)
    for name in list(found):
        for prefix in COMPANION_PREFIXES:
            if prefix + name in model.values:
                found[prefix + name] = None
    return found
