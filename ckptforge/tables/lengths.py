"""Lengths of axes, and which layers are those of an axis that counts only some."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

_MOST = 10**6  # names with longer numbers aren't read


class Lengths(dict[str, int]):
    """Axis → its length. `numbers` are, for an axis that counts only some indexes of another
    (`tables/selection.py`), those indexes in order: they are what stands in names."""

    def __init__(
        self,
        lengths: Mapping[str, int] | None = None,
        numbers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(lengths or {})
        self.numbers: Mapping[str, Sequence[int]] = numbers or {}

    def changed(
        self, lengths: Mapping[str, int], numbers: Mapping[str, Sequence[int]] | None = None
    ) -> Lengths:
        """The same with other lengths of some axes."""
        return Lengths({**self, **lengths}, {**self.numbers, **(numbers or {})})

    def number(self, axis: str, index: int, added: str | None = None) -> int:
        """What stands in a name for an index; `added` is the axis whose length is added to it."""
        if axis in self.numbers:
            return self.numbers[axis][index]
        return index + (self[added] if added else 0)

    def index(self, axis: str, number: int, added: str | None = None) -> int:
        """The index that a number in a name stands for; negative where it stands for none."""
        if axis in self.numbers:
            numbers = self.numbers[axis]
            return numbers.index(number) if number in numbers else -1
        return number - (self[added] if added else 0)

    def in_names(self, axis: str, added: str | None = None) -> Container[int]:
        """The numbers that stand in names for an axis, as far as is known."""
        if axis in self.numbers:
            return frozenset(self.numbers[axis])
        least = self.get(added, 0) if added else 0
        return range(least, least + self[axis] if axis in self else _MOST)
