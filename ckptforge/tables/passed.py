"""Rows that pass through unchanged: tensors of which a table knows only what their names begin with
and end in, such as a vision tower's.

    visual = "model.visual.* : *"
"""

from __future__ import annotations

import msgspec

ANY = "*"


class PassedRow(msgspec.Struct, frozen=True):
    """The stored tensors of a logical one that stands for any number of them: all names with this
    beginning and end."""

    tensor: str
    begin: str
    end: str

    def rest(self, name: str) -> str | None:
        """What stands for * in a name; None for a name of another row."""
        least = len(self.begin) + len(self.end)
        if len(name) <= least or not (name.startswith(self.begin) and name.endswith(self.end)):
            return None
        return name[len(self.begin) : len(name) - len(self.end)]

    def name(self, rest: str) -> str:
        """The name with that in place of *."""
        return f"{self.begin}{rest}{self.end}"


def parse_passed(text: str, tensor: str) -> PassedRow:
    """Raises `ValueError` for a row that isn't `NAME : *` with one * in the name."""
    template, separator, axes = text.rpartition(" : ")
    template = template.strip()
    if not separator or axes.strip() != ANY or template.count(ANY) != 1 or " " in template:
        raise ValueError(
            f"{text!r} isn't of the form 'name.* : *', as {tensor!r} passes through unchanged"
        )
    begin, _, end = template.partition(ANY)
    if not begin:
        raise ValueError(f"{text!r} must have something before the *")
    return PassedRow(tensor, begin, end)


def overlap(one: PassedRow, other: PassedRow) -> bool:
    """Whether two rows can have one name."""
    begins = one.begin.startswith(other.begin) or other.begin.startswith(one.begin)
    ends = one.end.endswith(other.end) or other.end.endswith(one.end)
    return begins and ends
