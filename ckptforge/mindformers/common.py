"""common.json: what a checkpoint says of the run that wrote it.

Source: MindFormers r1.7 … r2.1, `mindformers/checkpoint/checkpoint.py` (`CommonInfo`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from ckptforge.errors import DamagedError, shown
from ckptforge.foreign.json import read_object
from ckptforge.mindformers.versions import COMMON_KEYS
from ckptforge.model import Model
from ckptforge.storage.files import read_range

Number = int | float | None
ITERATION = "iteration"  # the number in the name of its directory, beside those of common.json
_OBSOLETE = "data_plan_state"  # of development builds, which MindFormers' loader drops
_MAX_BYTES = 1 << 16
_CODES = {"int32": "<i", "int64": "<q", "float32": "<f", "float64": "<d"}


def read_common(path: Path) -> tuple[dict[str, Number], tuple[str, ...]]:
    """(the numbers of a common.json by their keys, sentences about keys that no version has).

    Raises `FormatError` for a key of MindFormers that holds something else than a number or null.
    """
    found = read_object(path, _MAX_BYTES)
    for key in COMMON_KEYS:
        value = found.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise DamagedError(f"{path}: {key} is {shown(value)}, expected a number or null.")
    unknown = [key for key in found if key not in COMMON_KEYS and key != _OBSOLETE]
    notes = (
        (
            f"{path}: holds {', '.join(map(shown, unknown[:5]))}{', …' if len(unknown) > 5 else ''}"
            ", which no known version of MindFormers writes; not kept.",
        )
        if unknown
        else ()
    )
    return {key: found[key] for key in COMMON_KEYS if key in found}, notes


def common_json(numbers: Mapping[str, Number], iteration: int, keys: tuple[str, ...]) -> bytes:
    """common.json with these keys, those that aren't known as null."""
    known = {"step_num": iteration, "global_step": iteration, **numbers}
    return json.dumps({key: known.get(key) for key in keys}, indent=4).encode()


def run_of(model: Model) -> dict[str, Number]:
    """The numbers of a model's run by the keys of common.json: what it says itself, else what its
    counters hold. Raises the errors of reading."""
    found: dict[str, Number] = dict(model.run)
    for key in COMMON_KEYS:
        value = model.values.get(key)
        stored = None if value is None else value.whole
        if stored is None or found.get(key) is not None or stored.elements != 1:
            continue
        if (code := _CODES.get(stored.dtype.name)) is not None:
            buffer = bytearray(stored.nbytes)
            read_range(stored, 0, memoryview(buffer))
            (found[key],) = struct.unpack(code, buffer)
    return found
