"""The proof of a plan: what doesn't fill every element exactly once is refused before anything is
read."""

from pathlib import Path

import pytest

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import PlanError
from ckptforge.planning.assembly import Assembly, prove_filled
from ckptforge.tables.grid import Grid
from ckptforge.tables.pieces import Piece, fill
from ckptforge.transfers import Transfer
from ckptforge.values import Extent, Fragment, Place, Stored, Term

FLOAT = BY_NAME["float32"]
WHOLE = Piece("whole", ((0, 4), (0, 3)), Grid(0, (3, 1)))
TOP, BOTTOM = (
    Piece(name, ((lo, lo + 2), (0, 3)), Grid(0, (3, 1))) for name, lo in (("top", 0), ("bottom", 2))
)


def stored(*shape):
    return Stored(path=Path("x"), name="s", dtype=FLOAT, shape=shape, extents=(Extent(0, 0, 48),))


def test_pieces_fill_one_another_both_ways():
    assert {
        name: [source for source, _, _ in parts]
        for name, parts in fill([WHOLE], [BOTTOM, TOP], []).items()
    } == {"whole": ["bottom", "top"]}
    found = fill([TOP, BOTTOM], [WHOLE], [])
    assert [found[name][0][2].source for name in ("top", "bottom")] == [0, 6]


@pytest.mark.parametrize("sources", [[TOP], [TOP, BOTTOM, TOP], [WHOLE, TOP], []])
def test_gaps_and_overlaps_are_refused(sources):
    with pytest.raises(PlanError, match="whole: the sources (gap|overlap)"):
        fill([WHOLE], sources, [])


def copy(size, source=0, target=0):
    return Transfer((size,), source, (1,), target, (1,))


def assembly(*terms):
    """A tensor of 12 numbers whose terms are made of these transfers from one of 12, or of 13."""
    place = Place(path=Path("y"), name="t", dtype=FLOAT, shape=(12,), extents=(Extent(0, 0, 48),))
    made = tuple(
        Term(fragments=tuple(Fragment(stored(12), transfer) for transfer in term), fill=fill)
        for term, fill in terms
    )
    return Assembly(place=place, terms=made, kind="t")


def test_a_complete_plan_passes():
    prove_filled(assembly(([copy(5), copy(7, 5, 5)], None)))
    prove_filled(assembly(([copy(12)], None), ([copy(4)], 0.0)))


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ([copy(11)], "t: 11 of 12 elements are filled"),
        ([copy(12, 1)], "reaches outside"),
        ([copy(12, 0, 1)], "reaches outside"),
        ([copy(6), copy(7, 5, 5)], "t: 13 of 12"),
    ],
)
def test_an_incomplete_plan_is_refused(copies, message):
    with pytest.raises(PlanError, match=message):
        prove_filled(assembly((copies, None)))
    with pytest.raises(PlanError, match=message):
        prove_filled(assembly(([copy(12)], None), (copies, None)))


def test_a_tensor_that_nothing_fills_is_refused():
    with pytest.raises(PlanError, match="t: nothing fills it"):
        prove_filled(assembly())
