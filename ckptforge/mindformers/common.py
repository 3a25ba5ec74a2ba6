"""common.json: what a checkpoint says of the run that wrote it.

Source: MindFormers r1.7 … r2.1, `mindformers/checkpoint/checkpoint.py` (`CommonInfo`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.foreign.json import read_object
from ckptforge.mindformers.versions import COMMON_KEYS

Number = int | float | None
ITERATION = "iteration"  # the number in the name of its directory, beside those of common.json
_OBSOLETE = "data_plan_state"  # of development builds, which MindFormers' loader drops
_MAX_BYTES = 1 << 16


def read_common(path: Path) -> tuple[dict[str, Number], tuple[str, ...]]:
    """(the numbers of a common.json by their keys, sentences about keys that no version has).

    Raises `FormatError` for a key of MindFormers that holds something else than a number or null.
    """
    found = read_object(path, _MAX_BYTES)
    for key in COMMON_KEYS:
        value = found.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise FormatError(f"{path}: {key} is {shown(value)}, expected a number or null.")
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
