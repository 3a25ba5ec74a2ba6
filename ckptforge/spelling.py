"""How messages spell options and commands: as keywords for a Python caller, with dashes for a user
of the command line.

A message is spelled when it is made, by what is running, so that nothing has to be distinguished
from paths and names afterwards.
"""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_UNSET = object()
_called: ContextVar[Mapping[str, str]] = ContextVar("_called")
_offered: ContextVar[Container[str] | None] = ContextVar("_offered", default=None)
_on_command_line = False  # of the whole process: threads of a command belong to it


@contextmanager
def command_line() -> Iterator[None]:
    """Messages made within are for the command line."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """In messages made within, options have the names of a verb that has several inputs: the
    `layout` of the second is `layout_b`."""
    before = _called.set(names)
    try:
        yield
    finally:
        _called.reset(before)


@contextmanager
def offering(names: Container[str]) -> Iterator[None]:
    """Messages made within are for the caller of a verb that has these options."""
    before = _offered.set(names)
    try:
        yield
    finally:
        _offered.reset(before)


def offered(name: str) -> bool:
    """Whether the verb that runs has an option, so that a message may advise it; True where no verb
    is known."""
    names = _offered.get()
    return names is None or name in names


def flag(name: str) -> str:
    """A switch, on: `--allow-unmapped` or `allow_unmapped=True`."""
    return dashes(name) if _on_command_line else f"{name}=True"


def option(name: str, value: object = _UNSET) -> str:
    """An option, with the value that it has or should have: `--layout-b gmm` or
    `layout_b='gmm'`."""
    name = _called.get({}).get(name, name)
    if value is _UNSET:
        return dashes(name) if _on_command_line else name
    return f"{dashes(name)} {_word(value)}" if _on_command_line else f"{name}={_literal(value)}"


def command(verb: str, *arguments: object, **options: object) -> str:
    """A call in backquotes: `ckptforge to-torch DIR OUT --layout gmm` or `ckptforge.to_torch('DIR',
    'OUT', layout='gmm')`. Without arguments it names the verb."""
    if _on_command_line:
        given = [flag(n) if value is True else option(n, value) for n, value in options.items()]
        words = ["ckptforge", verb.replace("_", "-"), *map(_word, arguments), *given]
        return f"`{' '.join(words)}`"
    if not arguments and not options:
        return f"`ckptforge.{verb}`"
    given = [*map(_literal, arguments), *(option(name, value) for name, value in options.items())]
    return f"`ckptforge.{verb}({', '.join(given)})`"


def dashes(name: str) -> str:
    """An option of the command line: `--from` for `from_`."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def _word(value: object) -> str:
    joined = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return shlex.quote(joined)


def _literal(value: object) -> str:
    return repr(str(value) if isinstance(value, Path) else value)
