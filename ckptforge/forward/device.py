"""Choosing the device that MindSpore computes on: never another one than was asked for."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Any

from ckptforge.errors import UsageError, VerifyError
from ckptforge.spelling import option
from ckptforge.wording import install_hint


def parse_device(text: str) -> tuple[str, int]:
    """(`CPU` or `Ascend`, number) of `cpu`, `ascend` or `ascend:3`. Raises `UsageError`."""
    match = re.fullmatch(r"cpu|ascend(?::(\d{1,4}))?", text.lower())
    if not match:
        raise UsageError(f"{option('device', text)}: expected cpu, ascend or ascend:N.")
    return ("CPU", 0) if text.lower() == "cpu" else ("Ascend", int(match[1] or 0))


def import_mindspore() -> Any:
    """MindSpore, its warnings silenced. Raises `VerifyError` where it can't be used."""
    import numpy

    if find_spec("mindspore") is None:
        raise VerifyError(
            f"the forward check needs mindspore: {install_hint('torch', 'mindspore')}."
        )
    if int(numpy.__version__.split(".")[0]) >= 2:
        raise VerifyError(
            f"MindSpore computes only with numpy 1, but numpy {numpy.__version__} is installed: "
            f"{install_hint('mindspore')}."
        )
    os.environ.setdefault("GLOG_v", "3")
    import mindspore

    return mindspore


def select_device(mindspore: Any, text: str) -> str:
    """Selects the device before any operation is run; returns its name. Raises `VerifyError`."""
    name, number = parse_device(text)
    try:
        mindspore.set_device(name, number)
    except (RuntimeError, ValueError, TypeError) as error:
        raise VerifyError(
            f"{option('device', text)}: MindSpore can't use it: "
            f"{' '.join(str(error).split())[:300]} Nothing was computed; use "
            f"{option('device', 'cpu')}, or run where the device and its driver are."
        ) from error
    if name == "CPU":
        mindspore.runtime.launch_blocking()  # a missing kernel is then reported where it is missing
    return name
