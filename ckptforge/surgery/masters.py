"""Master weights: the float32 numbers of which an optimizer rounds a model's weights."""

from __future__ import annotations

from msgspec.structs import replace

from ckptforge.errors import FormatError, UsageError, shown
from ckptforge.model import Model
from ckptforge.spelling import flag
from ckptforge.tables.state import MAIN_PARAM
from ckptforge.wording import counted


def from_main_params(model: Model) -> Model:
    """The model with its master weights in place of the rounded ones, where there are some.

    Raises `UsageError` where there are none, `FormatError` for one of another shape than its
    weight.
    """
    values = dict(model.values)
    masters = [name for name in values if name.startswith(MAIN_PARAM)]
    if not masters:
        raise UsageError(
            f"{model.path}: holds no {MAIN_PARAM}*, the float32 weights of an optimizer, among its "
            f"{counted(len(values), 'tensor')}; omit {flag('from_main_params')}."
        )
    for name in masters:
        weight, master = name.removeprefix(MAIN_PARAM), values.pop(name)
        if weight not in values:
            raise FormatError(
                f"{master.origin.path}: {shown(name)} is the master of {shown(weight)}, which "
                "isn't there."
            )
        if values[weight].shape != master.shape:
            raise FormatError(
                f"{master.origin.path}: {shown(name)} has shape {list(master.shape)}, but its "
                f"weight {list(values[weight].shape)}."
            )
        values[weight] = replace(master, kind=values[weight].kind)
    note = f"{counted(len(masters), 'weight', 'are')} taken from {MAIN_PARAM}*, in float32."
    return replace(model, values=values).noting(note)
