"""The model card of an output, README.md: a section on how it was made, below what stood there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.spelling import dashes
from ckptforge.storage.address import address
from ckptforge.verbs.job import Job
from ckptforge.verbs.options import Average, Edit, ToTorch
from ckptforge.verbs.options.record import Options, options_of
from ckptforge.verbs.options.shared import Parted
from ckptforge.version import __version__

Written = ToTorch | Edit | Average
CARD = "README.md"
_TITLE = "## Conversion with ckptforge"
_BEGIN, _END = "<!-- ckptforge: begin -->", "<!-- ckptforge: end -->"
_NOT_TEXT = "README.md isn't UTF-8, so nothing of this conversion was added to it."


def carded(job: Job, options: Written) -> Job:
    """A job whose model card, where it has one, says what the job does."""
    card = job.plan.small_files.get(CARD)
    if card is None or options.no_card:
        return job
    plan = job.plan
    try:
        text = card.decode("utf-8")
    except UnicodeDecodeError:
        account = plan.account.noting(_NOT_TEXT)
        return replace(job, plan=replace(plan, account=account))
    made = with_entry(text, entry(plan.verb, options)).encode()
    return replace(job, plan=replace(plan, small_files={**plan.small_files, CARD: made}))


def with_entry(text: str, made: str) -> str:
    """A card with an entry in its section, which comes last, unless it stands there already. What
    else stands in the card, such as its front matter, stays as it is."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = made.replace("\n", end)
    begin = text.find(_BEGIN)
    finish = text.find(_END, begin) if begin >= 0 else -1
    if finish < 0:
        gap = "" if not text else end if text.endswith("\n") else 2 * end
        return text + gap + end.join([_BEGIN, _TITLE, "", lines, "", _END, ""])
    if made in text[begin:finish].replace("\r\n", "\n"):
        return text
    return f"{text[:finish]}{lines}{end}{end}{text[finish:]}"


def entry(verb: str, options: Written) -> str:
    """What one call did: of what, the call, and the version of ckptforge. Of a path only the last
    part is named, as a card is passed on."""
    names = [f"`{_printable(_place(one)).replace('`', '')}`" for one in _sources(options)]
    words = shlex.join(map(_printable, words_of(verb, options)))
    return f"Made from {', '.join(names)} by ckptforge {__version__}:\n\n    {words}"


def _sources(options: Written) -> list[Any]:
    if isinstance(options, Average):
        return [*options.sources] or [options.recipe]
    return [options.ms if isinstance(options, ToTorch) else options.source]


def words_of(verb: str, options: Options) -> list[str]:
    """The call as words of a command line, without how it was run: workers, memory, parts."""
    words, running = ["ckptforge", verb], options_of(Parted).keys() | {"no_card"}
    for name, one in options_of(type(options)).items():
        value = getattr(options, name)
        if name in running or value == one.default:
            continue
        if not one.kw_only:
            words += map(_place, value if isinstance(value, list | tuple) else [value])
        elif name == "edits":
            for edit, argument in value:
                words += _flagged(edit, argument or True)
        elif one.into:
            for argument in value if isinstance(value, list | tuple) else [value]:
                words += _flagged(name, argument)
        else:
            words += _flagged(name, value)
    return words


def _flagged(name: str, value: Any) -> list[str]:
    if value is True:
        return [dashes(name)]
    if isinstance(value, list | tuple):
        return [dashes(name), ",".join(map(str, value))]
    return [dashes(name), _short(value)]


def _place(path: str | Path) -> str:
    """An address, or the last part of a path."""
    return str(path) if address(path) else Path(path).name or str(path)


def _short(value: Any) -> str:
    """A value as text; of a path, also of one behind an @, the last part."""
    if isinstance(value, Path):
        return _place(value)
    before, at, path = str(value).partition("=@")
    return f"{before}{at}{Path(path).name}" if at else before


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
