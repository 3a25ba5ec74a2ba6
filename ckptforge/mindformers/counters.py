"""What the tensors of a checkpoint say of its training run: counters of MindFormers before r1.7."""

from __future__ import annotations

import struct

from ckptforge.mindformers.common import Number
from ckptforge.mindformers.versions import COMMON_KEYS
from ckptforge.model import Model
from ckptforge.storage.files import read_range

_CODES = {"int32": "<i", "int64": "<q", "float32": "<f", "float64": "<d"}


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
