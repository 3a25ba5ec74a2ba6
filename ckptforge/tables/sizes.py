"""The lengths of a model's axes, by names, shapes and config.json, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ckptforge.errors import ConfigError, LayoutError
from ckptforge.spelling import option
from ckptforge.tables.axes import Axis, Concat, Pattern, axis_factors, axis_size, shared_runs
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.model_config import Config
from ckptforge.tables.selection import selections_of
from ckptforge.tables.table import Table


class AxisSizes:
    """Known lengths by axis name. Contradictions raise `LayoutError` with both reasons."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, str]] = {}
        self.numbers: dict[str, tuple[int, ...]] = {}

    def copy(self) -> AxisSizes:
        """The same lengths, to try others with."""
        copied = AxisSizes()
        copied.known = dict(self.known)
        copied.numbers = dict(self.numbers)
        return copied

    def learn(self, axis: str, size: int, reason: str) -> None:
        """Adds a length. Raises `LayoutError` where another is known."""
        before = self.known.setdefault(axis, (size, reason))
        if before[0] != size:
            raise LayoutError(f"axis {axis} is {before[0]} by {before[1]}, but {size} by {reason}.")

    def learn_numbers(self, axis: str, numbers: tuple[int, ...], reason: str) -> None:
        """Adds which indexes an axis that counts only some of another counts."""
        self.learn(axis, len(numbers), reason)
        self.numbers[axis] = numbers

    @property
    def lengths(self) -> Lengths:
        """The known lengths by axis."""
        return Lengths({axis: size for axis, (size, _) in self.known.items()}, self.numbers)

    def learn_config(self, table: Table, config: Config, where: str) -> None:
        """Learns what config.json says. Raises `ConfigError` for a length of 0 in a shape."""
        config = table.constants.with_lengths(config)
        for axis, expression in table.axes.items():
            size = None if expression.may_be_none else expression.evaluate(config, where)
            if size == 0 and axis not in table.counted:
                raise ConfigError(f"{where}: {expression.text} is 0, expected a positive integer.")
            if size is not None:
                self.learn(axis, size, f"{where} ({expression.text})")
        for axis, selection in selections_of(table.axes):
            if (numbers := selection.numbers(config, where)) is not None:
                self.numbers[axis] = numbers

    def get(self, axis: str) -> int | None:
        """The length of an axis, if it is known."""
        return self.known[axis][0] if axis in self.known else None

    def learn_shapes(self, shapes: Sequence[tuple[Pattern, str, tuple[int, ...]]]) -> None:
        """Solves the axes of (pattern, tensor name, shape) one unknown at a time and checks every
        axis that is known.

        An axis of several unknown factors stays open: it matters only if its factors must be told
        apart.
        """
        open_axes = [
            (pattern, axis, size, name, shape)
            for pattern, name, shape in shapes
            for axis, size in zip(pattern.shape_axes, shape, strict=True)
        ]
        # Plain axes first: what they say is easiest to name in a message.
        open_axes.sort(key=lambda item: len(axis_factors(item[1])))
        progress = True
        while progress:
            progress = False
            remaining = []
            for pattern, axis, size, name, shape in open_axes:
                unknown = [factor for factor in axis_factors(axis) if factor not in self.known]
                reason = f"{name} {list(shape)}"
                if len(unknown) > 1:
                    remaining.append((pattern, axis, size, name, shape))
                elif unknown:
                    found = self._solve(pattern, axis, unknown[0], size, reason)
                    self.learn(unknown[0], found, reason)
                    progress = True
                else:
                    expected = self._length(pattern, axis, {})
                    if expected != size:
                        raise LayoutError(
                            f"{self._explain(axis)}, so an axis of {name} should be {expected}, "
                            f"but its shape is {list(shape)}.",
                            (name,),
                        )
            open_axes = remaining

    def _length(self, pattern: Pattern, axis: Axis, trial: Mapping[str, int]) -> int:
        lengths = {**self.lengths, **trial}
        return axis_size(axis, pattern.tensors[0], lambda _, factor: lengths[factor])

    def _solve(self, pattern: Pattern, axis: Axis, unknown: str, size: int, reason: str) -> int:
        """An axis is linear in each of its factors: length(x) = a·x + b."""
        constant = self._length(pattern, axis, {unknown: 0})
        slope = self._length(pattern, axis, {unknown: 1}) - constant
        if slope <= 0 or size < constant or (size - constant) % slope:
            known = self._explain(axis)
            raise LayoutError(
                f"{reason}: an axis of {size} can't be {_text(axis)}"
                + (f", as {known}." if known else ".")
            )
        return (size - constant) // slope

    def _explain(self, axis: Axis) -> str:
        known = sorted(factor for factor in axis_factors(axis) if factor in self.known)
        return " and ".join(
            f"{factor} is {self.known[factor][0]} by {self.known[factor][1]}" for factor in known
        )

    def telling(
        self,
        table: Table,
        tensor: str,
        source: Pattern,
        target: Pattern,
        shape: tuple[int, ...],
        axes: Sequence[str] | None = None,
    ) -> dict[str, int]:
        """The length of every axis of a logical tensor, or of some `axes`, that is to go from one
        pattern to another; `shape` is the source's.

        Where factors aren't known but stay together on both sides, their product does: it is given
        to the last, 1 to the others. Raises `ConfigError`, naming the keys of config.json, where
        they must be told apart.
        """
        found = {axis: self.get(axis) for axis in (table.tensors[tensor] if axes is None else axes)}
        for run in shared_runs(source, target, tensor):
            if any(found[axis] is None for axis in run):
                product = self._run_product(source, tensor, run, shape)
                if product is not None:
                    found.update(dict.fromkeys(run, 1), **{run[-1]: product})
        if unknown := [axis for axis, size in found.items() if size is None]:
            keys = "; ".join(f"{axis} = {table.axes[axis].text}" for axis in unknown)
            raise ConfigError(
                f"{source.template}: to store {tensor} as {target.template!r} the lengths of its "
                f"axes {', '.join(unknown)} are needed, which the shapes don't give; they come "
                f"from config.json ({keys}), which is absent or lacks them. Put it beside the "
                f"tensors, or give it with {option('config')}."
            )
        return {axis: size for axis, size in found.items() if size is not None}

    def _run_product(
        self, source: Pattern, tensor: str, run: tuple[str, ...], shape: tuple[int, ...]
    ) -> int | None:
        for axis, size in zip(source.shape_axes, shape, strict=True):
            concats = [item for item in axis if isinstance(item, Concat)]
            if set(run) <= axis_factors(axis) and not concats:
                others = [self.get(factor) for factor in axis_factors(axis) - set(run)]
                if all(others):
                    return size // math.prod(other for other in others if other is not None)
        return None


def lengths_of(table: Table, config: Config, where: str) -> Lengths:
    """The lengths that a config.json gives, 0 where there may be none. Raises `ConfigError`."""
    sizes = AxisSizes()
    sizes.learn_config(table, config, where)
    optional = {axis: e for axis, e in table.axes.items() if e.may_be_none}
    return sizes.lengths.changed({a: e.evaluate(config, where) or 0 for a, e in optional.items()})


def _text(axis: Axis) -> str:
    return " × ".join(
        "(" + " + ".join("·".join(part.factors) or "1" for part in item.parts) + ")"
        if isinstance(item, Concat)
        else item
        if isinstance(item, str)
        else item.axis
        for item in axis
    )
