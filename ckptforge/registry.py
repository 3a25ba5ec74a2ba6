"""Things of one kind that can be added to, such as formats: those of the package, those that a
program registers, and those that other packages announce by entry points."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Generic, TypeVar, cast

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """All of a kind, in the order of preference: `built_in`, what a program registers, what other
    packages announce by entry points of the `group`, and `last`. Built-in ones are named
    `module:object`, or `module` where the module itself is meant.

    Each is loaded when the iteration gets there; to look entry points up, which most never need,
    takes longer than opening a checkpoint.
    """

    def __init__(self, group: str, *built_in: str, last: tuple[str, ...] = ()) -> None:
        self.group = group
        self._first, self._last = built_in, last
        self._registered: list[T] = []
        self._loaded: dict[str, tuple[T, ...]] = {}

    def __iter__(self) -> Iterator[T]:
        for name in self._first:
            yield from self._load(name)
        yield from self._registered
        yield from self._announced
        for name in self._last:
            yield from self._load(name)

    @contextmanager
    def registered(self, *added: T) -> Iterator[None]:
        """While it is entered, these are of them, too."""
        before, self._registered = self._registered, [*self._registered, *added]
        try:
            yield
        finally:
            self._registered = before

    @cached_property
    def usual(self) -> tuple[T, ...]:
        """Those of the package that come first."""
        return tuple(one for name in self._first for one in self._load(name))

    def _load(self, name: str) -> tuple[T, ...]:
        """What a name stands for; nothing where the part of the package that has it isn't there."""
        if name not in self._loaded:
            module, _, attribute = name.partition(":")
            self._loaded[name] = ()
            try:
                found = import_module(module)
                self._loaded[name] = (getattr(found, attribute) if attribute else cast(T, found),)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                    raise
        return self._loaded[name]

    @cached_property
    def _announced(self) -> tuple[T, ...]:
        from importlib.metadata import entry_points

        found = []
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            try:
                found.append(cast(T, point.load()))
            except Exception as error:
                _log.warning("%s %s can't be loaded: %s", self.group, point.value, error)
        return tuple(found)
