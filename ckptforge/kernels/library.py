"""The compiled kernels, if there are any."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path

from ckptforge.kernels.form import Effects, Form, Range
from ckptforge.kernels.seal import is_sealed, sources_of

NAME = "kernels.so"
SWITCH = "CKPTFORGE_KERNELS"  # "off": numpy, as where they weren't compiled
_DIRECTORY = Path(__file__).parent
_POINTER = c_void_p
_SIZE = c_ssize_t
_ARGUMENTS = {
    "ckptforge_largest": [_POINTER, c_int, *5 * [_SIZE], _POINTER],
    "ckptforge_round": [
        _POINTER,
        c_int,
        *5 * [_SIZE],
        _POINTER,
        ctypes.POINTER(Form),
        _POINTER,
        ctypes.POINTER(Effects),
    ],
    "ckptforge_look_up": [_POINTER, *2 * [_SIZE], *2 * [_POINTER], _SIZE, *3 * [_POINTER]],
    "ckptforge_cast": [_POINTER, _SIZE, _POINTER, ctypes.POINTER(Range), *2 * [_POINTER]],
    "ckptforge_turn": [_POINTER, _SIZE, _POINTER, *3 * [_SIZE], c_int],
}


def library() -> ctypes.CDLL | None:
    """The kernels; None where they weren't compiled, were for another system or of other sources,
    are damaged, or are switched off."""
    return None if os.environ.get(SWITCH, "").lower() == "off" else _loaded()


def arithmetic() -> str:
    """What does the arithmetic, for who asks why it is slow."""
    return "numpy's arithmetic" if library() is None else "compiled kernels"


@cache
def _loaded() -> ctypes.CDLL | None:
    try:
        if not is_sealed((_DIRECTORY / NAME).read_bytes(), sources_of(_DIRECTORY)):
            return None
        found = ctypes.CDLL(str(_DIRECTORY / NAME))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError):
        return None
    return found
