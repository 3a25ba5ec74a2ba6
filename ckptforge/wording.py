"""How messages say numbers, names and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ckptforge.errors import printable

_PLURAL = ["are", "aren't", "have", "were", "weren't", "don't"]
_SINGULAR = dict(zip(_PLURAL, ["is", "isn't", "has", "was", "wasn't", "doesn't"], strict=True))
_MOST_RUNS = 4  # of numbers, in a name


def counted(count: int, noun: str, verb: str = "") -> str:
    """A number with its noun, in the plural unless it is one: "1 tensor", "2 axes", "1,024 ranks of
    a job". `verb` follows, given in the plural: "are", "aren't", "differ" …"""
    if count == 1:
        return f"1 {noun}" + (f" {_SINGULAR.get(verb, verb + 's')}" if verb else "")
    head, of, rest = noun.partition(" of ")
    head, that, rest = (head, of, rest) if of else noun.partition(" that")
    if head.endswith("axis"):
        plural = f"{head[:-2]}es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        plural = f"{head[:-1]}ies"
    else:
        plural = f"{head}{'es' if head.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
    return f"{count:,} {plural}{that}{rest}" + (f" {verb}" if verb else "")


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{int(value)} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def runs_of(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, as ranges: "0-7, 9"; of every n-th number "0-56 by 8"."""
    left = sorted(set(numbers))
    made = []
    while left:
        step = left[1] - left[0] if len(left) > 1 else 1
        end = 1
        while end < len(left) and left[end] - left[end - 1] == step:
            end += 1
        if end < 3 and step > 1:  # two numbers are no run
            end = 1
        by = f" by {step}" if step > 1 and end > 1 else ""
        made.append(str(left[0]) if end == 1 else f"{left[0]}-{left[end - 1]}{by}")
        left = left[end:]
    more = f", … ({len(made)} runs)" if len(made) > _MOST_RUNS else ""
    return ", ".join(made[:_MOST_RUNS]) + more


def kind_text(about: Sequence[Any] | None) -> str:
    """So many tensors of a shape and a dtype: "32 × [8, 4096] bfloat16"; "none" for None."""
    if about is None:
        return "none"
    count, shape, dtype = about
    return f"{count:,} × {shape} {dtype}"


def alternatives(words: Iterable[str]) -> str:
    """Words as what may be chosen: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'gmm'?" with the known word that is most like another, to be put after a
    message; "" if none is. The only one that begins with it is. Dashes before a word don't count,
    so that options aren't alike by them."""
    from difflib import get_close_matches

    # a value in other letters is the nearest, too
    by_folded = {name.casefold().lstrip("-"): name for name in known}
    own = word.casefold().lstrip("-")
    begun = [name for name in by_folded if len(own) > 2 and name.startswith(own)]
    found = begun if len(begun) == 1 else get_close_matches(own, by_folded, 1)
    return f" Did you mean {by_folded[found[0]]!r}?" if found else ""


def install_hint(*extras: str) -> str:
    """The command that installs optional packages, for messages: in a clone, as the project is
    installed from one."""
    return f"pip install '.[{','.join(extras)}]' in a clone of ckptforge"


def listing(names: list[str], limit: int = 10, total: int | None = None) -> str:
    """`names` as indented lines for a message, cut after `limit` with the number left out; `total`
    if there are more."""
    lines = [
        f"  {printable(name if len(name) <= 300 else name[:299] + '…')}" for name in names[:limit]
    ]
    rest = (len(names) if total is None else total) - len(lines)
    if rest > 0:
        lines.append(f"  … and {rest} more")
    return "\n".join(lines)


def brief(path: object, limit: int = 60) -> str:
    """A path for a line of a program's own, its end where it is long."""
    text = printable(str(path))
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note`, which Python 3.10 lacks: there the notes are kept, but its tracebacks don't
    show them."""
    setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010
