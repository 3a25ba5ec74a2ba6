"""A call of a verb that is both run and shown as a command line."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from typing import Any

import msgspec


class Call(msgspec.Struct, frozen=True):
    """A call of a verb: the same as `ckptforge NAME ARGUMENTS --OPTION VALUE …` on the command
    line. `notes` are sentences about flags that it has no counterpart of."""

    name: str
    verb: Callable[..., Any]
    arguments: tuple[str, ...]
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line, quoted for a shell."""
        words = ["ckptforge", self.name, *self.arguments]
        for option, value in self.options.items():
            name = f"--{option.replace('_', '-')}"
            words += [name] if value is True else [name, str(value)]
        return shlex.join(words)

    def run(self, **running: Any) -> Any:
        """Carries the call out, with the arguments of `Running`; what the verb returns."""
        result = self.verb(*self.arguments, **self.options, **running)
        notes = (*result.notes, *self.notes)
        return dataclasses.replace(result, notes=notes) if self.notes else result
