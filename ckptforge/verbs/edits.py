"""The edits of docs/surgery.md as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge.verbs.options.dtypes import parse_target

if TYPE_CHECKING:
    from typing_extensions import Self


class Edits:
    """What can be edited: each gives another one, at no cost."""

    def edit(self, name: str, argument: Any, allow_unloadable: bool = False) -> Self:
        """The same after an edit by its name in recipes."""
        raise NotImplementedError

    def take(self, **axes: Any) -> Self:
        """The model with only some indexes of an axis, in this order, wherever the axis occurs:
        `take(e=[0, 2, 5])`, `take(l="0-23,8-31")`, `take(e="@kept.json")`. Raises `UsageError`."""
        return self._each("take", list(axes.items()))

    def pad(self, fill: str = "zero", **axes: Any) -> Self:
        """The model with more indexes at the end of an axis, filled: `pad(V="multiple:128",
        fill="mean")`. Raises `UsageError`."""
        return self._each("pad", [(axis, size, fill) for axis, size in axes.items()])

    def merge(self, **axes: Any) -> Self:
        """The model with an index for each group of an axis, their mean: `merge(e=[[0, 3], [1,
        2]])`. Raises `UsageError`."""
        return self._each("merge", list(axes.items()))

    def expand(self, to: str, experts: int = 8, **more: Any) -> Self:
        """A dense model as one with experts, of another table: `expand("TABLE", experts=8,
        active=2, pieces=1, router="normal:0.02,0")`. Raises `UsageError`."""
        return self.edit("expand", {"to": to, "experts": experts, **more})

    def set_dtype(self, **kinds: str) -> Self:
        """The model with kinds of tensors in other dtypes, in the place of any other cast:
        `set_dtype(router="fp32")`. Raises `UsageError`."""
        parsed = [(kind, parse_target(dtype, "set_dtype")) for kind, dtype in kinds.items()]
        return self._each("set_dtype", parsed)

    def tie(self) -> Self:
        """The model without its head, which must be its embedding. Raises `UsageError`."""
        return self.edit("tie", None)

    def untie(self) -> Self:
        """The model with a copy of its embedding as its head. Raises `UsageError`."""
        return self.edit("untie", None)

    def _each(self, name: str, arguments: list[tuple[Any, ...]]) -> Self:
        model = self
        for argument in arguments:
            model = model.edit(name, argument)
        return model
