"""How options name dtypes."""

from __future__ import annotations

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.wording import nearest

SHORT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def parse_target(name: str | None, asked: str = "dtype") -> DType | None:
    """The dtype that the option `asked` asks for: None for `keep`, else the float type (`fp16` or
    `float16`, …).

    Raises `UsageError` for any other value.
    """
    if name is None or name == "keep":
        return None
    dtype = BY_NAME.get(SHORT_NAMES.get(name, name))
    if dtype is None or dtype.name not in SHORT_NAMES.values():
        words = [*(["keep"] if asked == "dtype" else []), *sorted(SHORT_NAMES)]
        raise UsageError(
            f"{option(asked)} {name!r} is unknown: use {', '.join(words)}.{nearest(name, words)}"
        )
    return dtype
