"""The edits that there are, by their names in recipes.

An edit is an object with a `NAME` and `apply`, which makes another model of one, and says what
config.json can't say of that. Another package announces one by an entry point of the group
`ckptforge.edits`, a program by `EDITS.registered(…)` (docs/surgery.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ckptforge.errors import LayoutError, UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.registry import Registry
from ckptforge.surgery import dtypes, expand, heads, merge, names, pad, take
from ckptforge.surgery.layers import layers_gone
from ckptforge.wording import nearest

Edited = tuple[Model, list[str]]


class Edit(Protocol):
    """One kind of change of a model."""

    @property
    def NAME(self) -> str:
        """What it is called in recipes."""

    def apply(self, model: Model, source: Source | None, argument: Any) -> Edited:
        """(the model after it, what config.json or the table can't say of that): sentences without
        a full stop. `source` is how a table reads the model; None where none does. Raises
        `UsageError` for an argument that doesn't fit."""


class Step(NamedTuple):
    """An edit and its argument; `where` it is written, if that is a recipe."""

    name: str
    argument: Any
    where: str = ""


class _BuiltIn:
    def __init__(self, name: str, apply: Callable[[Model, Source | None, Any], Edited]) -> None:
        self.NAME, self.apply = name, apply


def bound(model: Model, source: Source | None) -> Source:
    """How a table reads a model. Raises `LayoutError` where none does."""
    if source is None:
        raise LayoutError(
            f"{model.path}: no mapping knows these tensors, so that they have no axes with names."
        )
    return source


def _fewer(choose: Callable[..., Model], model: Model, source: Source | None, what: Any) -> Edited:
    made = choose(model, *what, source=source)
    return made, layers_gone(source, made) if source is not None else []


def _renamed(model: Model, source: Source | None, argument: Any) -> Edited:
    return names.rename(model, argument), []


TAKE = _BuiltIn("take", lambda model, source, a: take.take(bound(model, source), *a))
PAD = _BuiltIn("pad", lambda model, source, a: pad.pad(bound(model, source), *a))
MERGE = _BuiltIn("merge", lambda model, source, a: merge.merge(bound(model, source), *a))
EXPAND = _BuiltIn("expand", lambda model, source, a: expand.expand(bound(model, source), a))
TIE = _BuiltIn("tie", lambda model, source, a: heads.tie(bound(model, source)))
UNTIE = _BuiltIn("untie", lambda model, source, a: heads.untie(bound(model, source)))
DROP = _BuiltIn("drop", lambda model, source, a: _fewer(names.drop, model, source, a))
KEEP = _BuiltIn("keep", lambda model, source, a: _fewer(names.keep, model, source, a))
RENAME = _BuiltIn("rename", _renamed)
SET_DTYPE = _BuiltIn(
    "set_dtype", lambda model, source, a: (dtypes.set_dtype(model, source, *a), [])
)
_HERE = "TAKE PAD MERGE EXPAND TIE UNTIE DROP KEEP RENAME SET_DTYPE"
EDITS: Registry[Edit] = Registry(
    "ckptforge.edits", *(f"{__name__}:{name}" for name in _HERE.split())
)


def edit_named(name: str) -> Edit:
    """The edit of a name. Raises `UsageError` with the nearest."""
    for one in EDITS:
        if name == one.NAME:
            return one
    known = [one.NAME for one in EDITS]
    raise UsageError(
        f"there is no edit {name!r}; there are {', '.join(known)}.{nearest(name, known)}"
    )
