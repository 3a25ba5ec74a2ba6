"""The precision that the forward check computes in: float32, or half precision with its gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptforge.errors import UsageError
from ckptforge.spelling import option


@dataclass(frozen=True)
class Precision:
    """`name` is numpy's, torch's and MindSpore's; `layer_gate` and `end_gate` are relative L2.

    Half precision lets a layer be off by 16 units of roundoff (2⁻¹¹ and 2⁻⁸), for tokens that took
    the same experts.
    """

    option: str
    name: str
    layer_gate: float
    end_gate: float

    @property
    def half(self) -> bool:
        """Whether a number takes two bytes."""
        return self.name != "float32"

    def rounding(self, mindspore: Any) -> Callable[[Any], Any]:
        """Rounds a float32 tensor to this precision and keeps it in float32."""
        if not self.half:
            return lambda values: values
        narrow = getattr(mindspore, self.name)
        return lambda values: values.astype(narrow).astype(mindspore.float32)


FLOAT32 = Precision("fp32", "float32", 2e-5, 1e-4)
PRECISIONS = {
    precision.option: precision
    for precision in (
        FLOAT32,
        Precision("fp16", "float16", 16 * 2.0**-11, 16 * 2.0**-11),
        Precision("bf16", "bfloat16", 16 * 2.0**-8, 16 * 2.0**-8),
    )
}


def precision_of(name: str) -> Precision:
    """Raises `UsageError` for another than fp32, fp16 and bf16."""
    if name not in PRECISIONS:
        raise UsageError(f"{option('compute', name)}: expected {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
