"""`set_dtype`: the dtype of some tensors, in the place of any other cast."""

from __future__ import annotations

from msgspec.structs import replace

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.what import names_of


def set_dtype(model: Model, source: Source | None, what: str, dtype: DType) -> Model:
    """The model with some floating-point tensors in another dtype, cast from what is stored. Raises
    `UsageError` where there are none."""
    names = [name for name in names_of(model, source, what) if model.values[name].dtype.floating]
    if not names:
        raise UsageError(f"{option('set_dtype', f'{what}={dtype}')}: none holds floats.")
    changed = {name: replace(model.values[name], dtype=dtype) for name in names}
    return replace(model, values={**model.values, **changed})
