"""Every error that ckptforge raises for bad input: one family, so that a caller can catch them all
by `CkptforgeError`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from reprlib import Repr

# What would move a terminal's cursor, garble a line or can't be encoded: control characters, turns
# of direction, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class CkptforgeError(Exception):
    """The message says which file and tensor, what was expected and found, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class UsageError(CkptforgeError):
    """The call itself is wrong: an option's value, or options that can't be used together."""

    exit_code = 2


class InputNotFoundError(CkptforgeError):
    """An input path doesn't exist, can't be read, or holds no checkpoint."""


class FormatError(CkptforgeError):
    """A file isn't what its format says: truncated, inconsistent, encrypted, an unknown dtype."""


class ReadError(FormatError):
    """Reading failed: the disk or the network, not the file's contents."""


class TableError(CkptforgeError):
    """A mapping table is refused; the message names the row and the reason."""


class ModelUnknownError(CkptforgeError):
    """No mapping table, or more than one, describes the checkpoint."""


class LayoutError(CkptforgeError):
    """The tensors don't fit the layout that was asked for, or fit more than one. The message is
    about `tensors`, so that whoever knows the files can name them."""

    def __init__(self, message: str, tensors: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tensors = tensors


class MissingTensorsError(LayoutError):
    """Tensors that the layout needs are not in the checkpoint; the message lists them."""


class UnmappedTensorsError(CkptforgeError):
    """Tensors of the checkpoint that the mapping table doesn't know; the message lists them."""


class QuantisedError(CkptforgeError):
    """The weights are quantised in a way that can't be undone, or integers of unknown meaning."""


class ConfigError(CkptforgeError):
    """config.json is missing, unreadable, lacks a needed value, or contradicts the tensors."""


class PlanError(CkptforgeError):
    """The plan can't be made: dtypes that differ inside one tensor or that the target can't hold,
    elements that nothing fills."""


class VerifyError(CkptforgeError):
    """The forward check can't be run: no such device, or packages that don't fit together."""


class CastOverflowError(CkptforgeError):
    """A cast would make infinities out of finite values."""


class OutputError(CkptforgeError):
    """The output exists already, can't be written, or doesn't fit on the disk."""


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note`, which Python 3.10 lacks: there the notes are kept, but its tracebacks don't
    show them."""
    setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010


def printable(text: str) -> str:
    """`text` with control characters and whatever else a terminal shouldn't be sent as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shown(value: object) -> str:
    """`value`, which stood in a file, as it is shown in a message: its repr, cut where it is long,
    many or deep."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deeply
        return f"a {type(value).__name__} too large to show"


def brief(path: object, limit: int = 60) -> str:
    """A path for a line of a program's own, its end where it is long."""
    text = printable(str(path))
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 16
_SHORT.maxlong = 60


class LeftError(OutputError):
    """An earlier run left an unfinished output, which is neither resumed nor discarded unasked."""


_PLURAL = ["are", "aren't", "have", "were", "weren't", "don't"]
_SINGULAR = dict(zip(_PLURAL, ["is", "isn't", "has", "was", "wasn't", "doesn't"], strict=True))


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


def alternatives(words: Iterable[str]) -> str:
    """Words as what may be chosen: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'gmm'?" with the known word that is most like another, to be put after a
    message; "" if none is. Dashes before a word don't count, so that options aren't alike by
    them."""
    from difflib import get_close_matches

    # a value in other letters is the nearest, too
    by_folded = {name.casefold().lstrip("-"): name for name in known}
    found = get_close_matches(word.casefold().lstrip("-"), by_folded, 1)
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
