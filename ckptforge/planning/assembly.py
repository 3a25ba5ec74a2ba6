"""What fills a tensor of an output file, and the proof that it does."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from ckptforge.errors import PlanError
from ckptforge.values import Encoding, Fragment, Place, Term


class Assembly(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One output tensor: its place, and the terms that are added up in it. `kind` names its kind
    for the audit, in which a `replica`, the same numbers once more in another file, doesn't
    count. With an `encoding` the terms make the numbers that it takes."""

    place: Place
    terms: tuple[Term, ...]
    kind: str
    replica: bool = False
    encoding: Encoding | None = None

    @property
    def elements(self) -> int:
        """How many numbers the terms make."""
        if self.encoding is not None:
            return math.prod(self.encoding.shape)
        return self.place.elements

    @property
    def summed(self) -> bool:
        """Whether there is more to it than one term as it is."""
        return len(self.terms) != 1 or self.terms[0].weight != 1

    @property
    def fragments(self) -> Iterator[Fragment]:
        """The fragments of all terms."""
        return (fragment for term in self.terms for fragment in term.fragments)


def prove_filled(assembly: Assembly) -> None:
    """As many elements of an output are written by each of its terms as it has, all inside it and
    from inside their sources. Raises `PlanError`.

    Together with the proof that no two fragments meet (`tables/pieces.py`) and that all of the
    input is used (`tables/convert.py`) this is the proof of a plan.
    """
    elements, name = assembly.elements, assembly.place.name
    if not assembly.terms and elements:
        raise PlanError(f"{name}: nothing fills it; this is a defect of the mapping.")
    for term in assembly.terms:
        written = 0
        for stored, transfer in ((one.stored, one.transfer) for one in term.fragments):
            written += transfer.size
            inside = transfer.last_source < stored.elements and transfer.last_target < elements
            if transfer.size and not inside:
                raise PlanError(
                    f"{name}: a copy from {stored.name} reaches outside; this is a defect of the "
                    "mapping."
                )
        if written != elements and term.fill is None:
            raise PlanError(
                f"{name}: {written} of {elements} elements are filled; this is a defect of the "
                "mapping."
            )
