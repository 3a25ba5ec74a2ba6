"""The proof of a plan: what doesn't fill every element exactly once is refused before anything is
read."""

from pathlib import Path

import pytest

from ckptforge.boxes import Grid, Transfer
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import PlanError
from ckptforge.formats.entry import Extent, TensorEntry
from ckptforge.planning.plan import Assembly, fill, prove_complete
from ckptforge.tables.binding import Piece

WHOLE = Piece("whole", ((0, 4), (0, 3)), Grid(0, (3, 1)))
TOP, BOTTOM = (
    Piece(name, ((lo, lo + 2), (0, 3)), Grid(0, (3, 1))) for name, lo in (("top", 0), ("bottom", 2))
)


def entry(name, *shape):
    return TensorEntry(name, BY_NAME["float32"], shape, Path("x"), (Extent(0, 0, 48),))


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


def test_a_complete_plan_passes():
    source = entry("s", 12)
    prove_complete(
        [Assembly(entry("t", 12), "g", ((source, copy(5)), (source, copy(7, 5, 5))))], [source]
    )


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
    source = entry("s", 12)
    with pytest.raises(PlanError, match=message):
        prove_complete(
            [Assembly(entry("t", 12), "g", tuple((source, transfer) for transfer in copies))],
            [source],
        )


def test_a_source_used_in_part_is_refused():
    with pytest.raises(PlanError, match="s: 12 of 13 elements are used"):
        prove_complete(
            [Assembly(entry("t", 12), "g", ((entry("s", 13), copy(12)),))], [entry("s", 13)]
        )
