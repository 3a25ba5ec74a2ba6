"""Every error that ckptforge raises for bad input: one family, so that a caller can catch them all
by `CkptforgeError`."""

from __future__ import annotations

import re
from reprlib import Repr

_AGAIN = "copy or download it again, or save it anew."
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


class DamagedError(FormatError):
    """A file contradicts itself, ends too early or breaks its format's rules. What to do is the
    same for all of them, and ends the message."""

    def __str__(self) -> str:
        text = super().__str__()
        if text.endswith(_AGAIN):  # as it is in a message that another error was made of
            return text
        text = text.removesuffix(".")
        said = any(word in text.rpartition("; ")[2] for word in ("damaged", "truncated"))
        return f"{text}{': ' if said else '; the file is damaged: '}{_AGAIN}"


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


class ConfigNeededError(LayoutError):
    """What the names and shapes of tensors don't tell, and config.json, which would say it, is
    absent or doesn't."""


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


class LeftError(OutputError):
    """An earlier run left an unfinished output, which is neither resumed nor discarded unasked."""


def printable(text: str) -> str:
    """`text` with control characters and whatever else a terminal shouldn't be sent as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """`text` cut where it is long."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def shown(value: object) -> str:
    """`value`, which stood in a file, as it is shown in a message: its repr, cut where it is long,
    many or deep."""
    try:
        return shortened(_SHORT.repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deeply
        return f"a {type(value).__name__} too large to show"


_MAX_SHOWN = 600  # characters
_SHORT = Repr()
_SHORT.maxlevel = 3  # what is shared can be endless
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 16
_SHORT.maxlong = 60
