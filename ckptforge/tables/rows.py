"""The rows of a table's file, as messages name them, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Meta

from ckptforge.errors import TableError, shown
from ckptforge.wording import nearest

# Sections that stand in others: [layout.hub], but [axes] H.
_NESTED = {"layout", "copies", "shard", "refused", "defaults", "switches", "config", "tower"}
_IN_LORA = {("lora", "names"), ("lora", "embedding_names")}
_FEW = 8  # names that are listed
_KEYS = ("name", "model_type", "aliases", "constants", "keep_dtype", "defaults_from", "demo")


def means(
    description: str, *, expected: str = "", known: Collection[str] = (), **bounds: Any
) -> Meta:
    """What a key says, for the schema, and what messages call its values, with words of which the
    nearest is named."""
    extra = {"expected": expected, "known": known} if expected else None
    return Meta(description=description, extra=extra, **bounds)


@contextmanager
def at(*place: str | int, note: str = "") -> Iterator[None]:
    """Makes `TableError`s of the `ValueError`s that rules raise within: they name the row at this
    place. A row within a section names the section, too, so that the innermost is enough."""
    try:
        yield
    except ValueError as error:
        row = f"{spell_row(place)} {note}".strip()
        raise TableError(f"{row}: {sentence(str(error))}") from error


def spell_row(place: tuple[str | int, ...]) -> str:
    """A place in a table's file, such as `[layout.hub] up`, `keep_dtype` or `[lora] modules[1]`."""
    if not place or place[0] in _KEYS:
        return _joined(place)
    depth = 2 if place[0] in _NESTED or place[:2] in _IN_LORA else 1
    return f"[{_joined(place[:depth])}] {_joined(place[depth:])}".strip()


def _joined(keys: tuple[str | int, ...]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def sentence(why: str) -> str:
    """A reason with a full stop, if it has no end."""
    return why if why.endswith((".", "?")) else f"{why}."


def check_known(names: Iterable[str], known: Collection[str], where: str, what: str = "") -> None:
    """Raises `ValueError` for the first name that isn't known, with the nearest."""
    for name in names:
        if name not in known:
            there = f", which has {', '.join(known)}" if 0 < len(known) <= _FEW else ""
            unknown = f"{what} {shown(name)}".lstrip()
            raise ValueError(f"{unknown} isn't in {where}{there}.{nearest(name, known)}")


def check_layout(name: str, layouts: Collection[str]) -> None:
    """Raises `ValueError` where rows are said to be of a layout that there isn't."""
    if name not in layouts:
        raise ValueError(
            "there is no layout of that name; the table has "
            f"{', '.join(layouts)}.{nearest(name, layouts)}"
        )
