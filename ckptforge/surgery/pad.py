"""`pad`: an axis gets more indexes at its end, or loses those that it got."""

from __future__ import annotations

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.surgery.along import Along, Filling, taking
from ckptforge.surgery.edited import axis_of, changed, length_of, rotated
from ckptforge.surgery.fills import Fill, parse_fill, zeros
from ckptforge.surgery.layers import layer_axes
from ckptforge.surgery.lists import parse_size
from ckptforge.surgery.means import mean_rows
from ckptforge.values import Value

NAME = "pad"
_FEW = 64  # indexes that are averaged as terms; of more the mean is made once, before


def pad(source: Source, axis: str, size: str | int, fill: str) -> tuple[Model, list[str]]:
    """(the model with an axis of this size, its new indexes filled; what config.json can't say of
    it). Raises `UsageError` for a size below the axis' own."""
    where = option("pad", f"{axis}={size}")
    name = axis_of(source.table, axis, source.config)
    if name in layer_axes(source.table):
        raise UsageError(f"{where}: layers aren't filled: repeat some with {option('take')}.")
    length = length_of(source, name)
    wanted = parse_size(size, length, where)
    if wanted < length:
        raise UsageError(
            f"{where}: axis {name} has {length} already; "
            f"{option('take', f'{name}=0-{wanted - 1}')} cuts it."
        )
    chosen = parse_fill(fill)
    many = chosen.kind == "mean" and length > _FEW
    kind = Fill(kind="zero") if many else chosen
    entries = (*taking(range(length)), *kind.entries(wanted - length, length))
    filling = _of_means(source, name) if many else chosen.filling()
    along = Along(entries=entries, filling=filling)
    wrong = rotated(source, name) if wanted > length else []
    return changed(source, {name: along}, dict(source.config), wrong)


def _of_means(source: Source, axis: str) -> Filling:
    """Fills with the mean of all rows. Raises `UsageError` for tensors of which the axis isn't the
    rows."""
    binding = source.binding

    def fill(tensor: str, prefix: str, shape: tuple[int, ...], dtype: DType) -> Value:
        if prefix:
            return zeros(tensor, shape, dtype)
        pattern = binding.layout.holding(tensor)
        if binding.table.tensors[tensor][0] != axis or pattern.name_axes:
            raise UsageError(
                f"{option('fill', 'mean')}: the mean of more than {_FEW} indexes is made of rows, "
                f"and {axis} isn't that of {tensor}: fill with zeros, or a copy."
            )
        (name,) = binding.names[pattern].values()
        return mean_rows(source.model.values[name], tensor, shape, dtype)

    return fill
