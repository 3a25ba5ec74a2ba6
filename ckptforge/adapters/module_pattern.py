"""Keys of PEFT's rank_pattern and alpha_pattern, which match modules by their names.

Convention of the peft library (0.21, peft/utils/other.py, get_pattern_key): the first key, in the
order of the file, for which `re.match(rf"(.*\\.)?({key})$", module)` finds something. Such keys
come from strangers' files, and are matched without backtracking (`bounded_regex.py`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ckptforge.adapters.bounded_regex import Name, parse
from ckptforge.errors import FormatError, shown

MAX_KEYS = 4096
MAX_KEY = 500  # characters
MAX_STEPS = 5_000_000  # of all matches together: some seconds
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\\.)+", re.ASCII)


class ModulePatterns:
    """One of the two, as `field` of a file `where`: the value of the first key that matches a
    module. `notes` name keys of different values that match one module, once there was such.

    Raises `FormatError` for too many keys, or one that isn't a regular expression, is too long, or
    has what isn't understood.
    """

    def __init__(self, where: str, field: str, values: object) -> None:
        self._what = f"{where}: {field}"
        if not isinstance(values, dict):
            what = shown(values)
            raise FormatError(f"{self._what} is {what}, expected an object of module names.")
        if len(values) > MAX_KEYS:
            count = f"{len(values):,} keys, at most {MAX_KEYS:,} are read"
            raise FormatError(f"{self._what} has {count}.")
        self._values: Mapping[str, Any] = values
        self._matchers = [(key, self._matcher(key), value) for key, value in values.items()]
        self.notes: tuple[str, ...] = ()
        self._found: dict[str, Any] = {}
        self._steps = 0

    def value(self, module: str, default: object) -> object:
        """The value for a module of that name, or `default`, as for one without a name. Raises
        `FormatError` where matching takes too many steps."""
        if not module or not self._matchers:
            return default
        if module not in self._found:
            self._found[module] = self._first(module, default)
        return self._found[module]

    def _first(self, module: str, default: object) -> object:
        name = Name(module, self._spend)
        try:
            matching = [(key, value) for key, matches, value in self._matchers if matches(name)]
        except RecursionError as error:
            raise FormatError(f"{self._what} has a key that is nested too deeply.") from error
        if not matching:
            return default
        key, first = matching[0]
        if other := next((other for other, value in matching if value != first), None):
            self.notes = self.notes or (
                f"{self._what}: {shown(key)} and {shown(other)} both match {module}; as in PEFT "
                "the first in the file counts, and PEFT sorts them when it saves.",
            )
        return first

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise FormatError(
                f"{self._what}: its {len(self._values)} keys take too many steps to be matched "
                "with the names of modules; write them as plain names."
            )

    def _matcher(self, key: str) -> Callable[[Name], bool]:
        if len(key) > MAX_KEY:
            raise self._bad(key, f"at most {MAX_KEY} characters are read")
        whole = rf"(.*\.)?({key})$"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = re.compile(whole)
            if _PLAIN.fullmatch(key):
                tail = key.rpartition(".")[2].removeprefix("^")
                return lambda name: (
                    name.text.endswith(tail) and compiled.match(name.text) is not None
                )
            node = parse(whole)
        except (re.error, OverflowError) as error:
            raise self._bad(key, f"which isn't a regular expression: {error}") from error
        except RecursionError as error:
            raise self._bad(key, "which is nested too deeply") from error
        except ValueError as error:
            raise self._bad(key, f"in which {error} isn't understood") from error
        return lambda name: node(name, 1) != 0

    def _bad(self, key: str, why: str) -> FormatError:
        return FormatError(f"{self._what} has the key {shown(key)}, {why}.")
