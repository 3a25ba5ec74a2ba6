"""Pickles as data: an interpreter of their opcodes that makes what a closed list names, and runs
nothing.

Source: Python's `pickletools` (the opcodes and what each does), which reads them without executing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ckptforge.errors import DamagedError, FormatError, shown

MAX_BYTES = 1 << 28
# What to do about a pickle that is no checkpoint's, or too much of one.
SAVE_ALONE = (
    "If it is harmless, save the tensors alone (torch.save(model.state_dict(), …)) where it came "
    "from."
)
_MAX_WORK = 1 << 24  # opcodes, and items that calls copy
_MAX_TEXT = 1 << 26
_MAX_ARGUMENTS = 16  # of a call
_MAX_NUMBER = 1 << 62  # of keys: larger ones can all have one hash
_MAX_MEMO = 1 << 32
_MARK = object()
_DAMAGE = ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError
_TEXTS = (str, bytes, bytearray)
_CONTAINERS = (*_TEXTS, list, tuple, dict)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MADE = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_PLAIN = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_OTHERS = frozenset(
    (
        *("MARK", "POP_MARK", "DUP", "MEMOIZE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST"),
        *("APPEND", "APPENDS", "ADDITEMS", "FROZENSET", "DICT", "SETITEM", "SETITEMS", "GLOBAL"),
        *("STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"),
    )
)
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # by Python 2, as protocol 2 has it
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_NOTHING = frozenset(("PROTO", "FRAME"))


class Named(msgspec.Struct, frozen=True):
    """A function, a class or a value by its name, `module.name`: nothing but the name."""

    name: str


class Inert(msgspec.Struct, eq=False):
    """An object of which only the name of its class is known, what it was made of, and its state.
    Each is like no other, so that it can be a key."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    def __repr__(self) -> str:
        return f"an object {self.name}"  # what it holds may be endless


def refused(where: str, name: str) -> FormatError:
    """The error for a name that isn't on the lists."""
    return FormatError(
        f"{where}: names {shown(name)}, which is no part of a checkpoint's data; nothing of the "
        f"file was run. {SAVE_ALONE}"
    )


Constructor = Callable[[tuple[Any, ...]], Any]


class Machine:
    """What a pickle says. `constructors` are by name what may be called, each a function of ours;
    `inert` tells which other names stand for data that nobody needs."""

    def __init__(
        self,
        where: str,
        constructors: Mapping[str, Constructor],
        inert: Callable[[str], bool],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.where, self.constructors, self.inert = where, constructors, inert
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.work = self.text = 0

    def load(self, content: bytes) -> Any:
        """The object. Raises `FormatError` for a name that isn't on the lists, and for what is
        damaged or too large."""
        try:
            for opcode, argument, at in pickletools.genops(content):
                self._count(1)
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument, at or 0)
        except FormatError:
            raise
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedError(f"{self.where}: isn't a pickle ({reason}); damaged.") from error
        raise DamagedError(f"{self.where}: the pickle has no end; truncated.")

    def _step(self, name: str, argument: Any, at: int) -> None:
        if name in _NOTHING:
            return
        if name in _PLAIN:
            self._push_plain(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _PUTS:
            if not 0 <= argument < _MAX_MEMO:
                raise ValueError("a place in the memo that no pickle needs")
            self.memo[argument] = self._top()
        elif name in _GETS:
            if argument not in self.memo:
                raise ValueError(f"object {argument} is used before it is stored")
            self.stack.append(self.memo[argument])
        elif name == "POP":
            self._pop()
        elif name in _OTHERS:
            getattr(self, f"_{name.lower()}")(argument)
        else:
            raise FormatError(
                f"{self.where}: at byte {at} stands the opcode {name}, which no checkpoint needs. "
                f"{SAVE_ALONE}"
            )

    def _push_plain(self, value: Any) -> None:
        if isinstance(value, _TEXTS):
            self.text += len(value)
            if self.text > _MAX_TEXT:
                raise FormatError(
                    f"{self.where}: holds more than {_MAX_TEXT} characters of text. {SAVE_ALONE}"
                )
        self.stack.append(value)

    def _pop(self) -> Any:
        found = self.stack.pop()
        if found is _MARK:
            raise ValueError("a mark where a value is expected")
        return found

    def _top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value is expected")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                found = self.stack[i + 1 :]
                del self.stack[i:]
                return found
        raise ValueError("no mark")

    def _count(self, more: int) -> None:
        self.work += more
        if self.work > _MAX_WORK:
            raise FormatError(
                f"{self.where}: has more than {_MAX_WORK} opcodes and items. {SAVE_ALONE}"
            )

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _additems(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _frozenset(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _extend(self, items: Sequence[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError("items for what is no list")

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set(items)

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: Sequence[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if _is_key(key) else shown(key)] = value

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_named(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global whose name is no text")
        self._push_named(module, name)

    def _push_named(self, module: str, name: str) -> None:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self.constructors and not self.inert(full):
            raise refused(self.where, full)
        self.stack.append(Named(full))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._make(function, arguments)

    def _newobj(self, _: Any) -> None:
        self._reduce(None)

    def _newobj_ex(self, _: Any) -> None:
        self._pop()
        self._reduce(None)

    def _make(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        constructor = self.constructors.get(function.name)
        if constructor is None:
            self.stack.append(Inert(function.name, arguments))
            return
        if len(arguments) > _MAX_ARGUMENTS:
            raise ValueError(f"a call of {shown(function.name)} with {len(arguments)} arguments")
        self._count(sum(len(one) for one in arguments if isinstance(one, _CONTAINERS)))
        self.stack.append(constructor(arguments))

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Inert):
            target.state = state

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self._pop()))


def _is_key(key: Any) -> bool:
    """Whether it can be a key as it is: the hash of nested tuples can take for ever."""
    if isinstance(key, int):
        return -_MAX_NUMBER < key < _MAX_NUMBER
    return isinstance(key, str | bytes | float | Inert | None)
