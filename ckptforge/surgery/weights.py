"""How much an input counts in a tensor of an average: by the tensor's kind and by its layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from ckptforge.errors import UsageError, shown
from ckptforge.tables.axes import kind_of
from ckptforge.tables.binding import Binding

LAYERS, DEFAULT = "l", "default"
_ARROWS = ("->", "→")
Written = float | int | str


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """What a tensor is: the logical tensors that it holds (or its name, where no table knows it),
    and how far through the layers it lies, from 0 to 1; None for one of no layer."""

    kinds: tuple[str, ...]
    depth: float | None = None


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """How much an input counts: `default`, or what the first glob of `kinds` says that fits a
    tensor's kind; `layers` for the others of a layer. Each is a curve over the depth, from the
    first layer to the last, by straight lines between its points."""

    default: tuple[float, ...]
    kinds: tuple[tuple[str, tuple[float, ...]], ...] = ()
    layers: tuple[float, ...] | None = None

    def of(self, name: str, role: Role) -> float:
        """The weight of a tensor. Raises `UsageError` where it holds several kinds of different
        weights."""
        found = {self._of_kind(kind, role.depth) for kind in role.kinds}
        if len(found) > 1:
            raise UsageError(
                f"{name} holds {', '.join(role.kinds)}, which have different weights: give them "
                "one, or average the model in a layout that holds them apart."
            )
        return found.pop()

    def _of_kind(self, kind: str, depth: float | None) -> float:
        curve = next((curve for glob, curve in self.kinds if fnmatchcase(kind, glob)), None)
        if curve is None:
            curve = self.layers if self.layers is not None and depth is not None else self.default
        return at_depth(curve, depth)


def plain(weight: float) -> Weights:
    """The same weight for all tensors."""
    return Weights(default=(weight,))


def parse_weights(written: Written | Mapping[str, Written], where: str) -> Weights:
    """Weights as people write them: a number, a curve `0.2 -> 0.8`, or both by `default`, `l` (all
    tensors of a layer) and globs of kinds. Raises `UsageError`, beginning with `where`."""
    if not isinstance(written, Mapping):
        return Weights(default=_curve(written, where))
    curves = {key: _curve(value, f"{where}, {key}") for key, value in written.items()}
    layers = curves.pop(LAYERS, None)
    default = curves.pop(DEFAULT, (1.0,))
    return Weights(default=default, kinds=tuple(curves.items()), layers=layers)


def _curve(written: Written, where: str) -> tuple[float, ...]:
    words: Sequence[Written] = [written]
    if isinstance(written, str):
        words = written.replace(_ARROWS[1], _ARROWS[0]).split(_ARROWS[0])
    try:
        found = tuple(float(word) for word in words)
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise UsageError(
            f"{where} is {shown(written)}, expected a finite number, or several that lead from the "
            "first layer to the last, such as 0.2 -> 0.8."
        )
    return found


def at_depth(curve: Sequence[float], depth: float | None) -> float:
    """The value of a curve at a depth from 0 to 1; the first point where there is none."""
    if depth is None or len(curve) == 1:
        return curve[0]
    place = depth * (len(curve) - 1)
    before = min(int(place), len(curve) - 2)
    share = place - before
    return curve[before] * (1 - share) + curve[before + 1] * share


def roles_of(binding: Binding) -> dict[str, Role]:
    """Name of a stored tensor → what it is."""
    counted = dict(binding.table.pipeline.layers) if binding.table.pipeline is not None else {}
    first = next(iter(counted), None)
    layers = binding.sizes.get(first) if first is not None else None
    lengths, found = binding.sizes.lengths, {}
    for pattern, names in binding.names.items():
        axis = next((axis for axis in pattern.name_axes if axis in counted), None)
        for index, name in names.items():
            depth = None
            if axis is not None and layers is not None:
                place = index[pattern.name_axes.index(axis)]
                layer = lengths.number(axis, place, counted[axis])
                depth = min(layer / (layers - 1), 1.0) if layers > 1 else 0.0
            found[name] = Role(kinds=tuple(map(kind_of, pattern.tensors)), depth=depth)
    return found
