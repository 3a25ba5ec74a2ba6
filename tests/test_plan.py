"""The proof of a plan: what doesn't fill every element exactly once is refused before anything is
read."""

import json
import pickle
import re
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.composing import part_of
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import PlanError
from ckptforge.planning import lower
from ckptforge.planning.assembly import Assembly, prove_filled
from ckptforge.planning.lower import Assemblies
from ckptforge.publish.journal import fingerprint
from ckptforge.tables.grid import Grid
from ckptforge.tables.pieces import Piece, fill
from ckptforge.transfers import Transfer
from ckptforge.values import Extent, Fragment, Place, Stored, Term
from tests.helpers import HUB

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


DEGREES = st.sampled_from([1, 2])


@given(DEGREES, DEGREES, st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_made_by_kinds_is_what_is_made_tensor_by_tensor(
    tmp_path_factory, dp, mp, ep, stages, optimizer
):
    config = job(tmp_path_factory.mktemp("job"), dp, mp, ep, stages, optimizer)
    plan = ckptforge.plan("to_ms", HUB, Path("x"), parallel_config=config)
    held, made = set(), plan_of(plan)
    for placed, file in zip(plan.assemblies.files, plan.files, strict=True):
        box_of = {name: part.box for part in placed.parts for name in part.names}
        for name, place in file.places.items():
            value, box = plan.assemblies.values[name], box_of[name]
            terms = value.terms if box is None else part_of(value, box).terms
            again = (name, box) in held
            held.add((name, box))
            alone = Assembly(place=place, terms=terms, kind=value.kind, replica=again)
            prove_filled(alone)
            assert alone in made[file.path]
    assert plan.tensor_count == sum(1 for _ in plan.assemblies)
    assert plan.tensor_bytes == sum(one.place.nbytes for one in plan.assemblies)


@pytest.mark.parametrize("together", [3, 64])
def test_ranks_are_made_side_by_side_in_the_order_of_their_sources(tmp_path, monkeypatch, together):
    """So that each source is read once, whichever ranks hold something of it."""
    monkeypatch.setattr(lower, "_FILES_TOGETHER", together)
    config = job(tmp_path, 2, 2, 2, 2, False)
    plan = ckptforge.plan("to_ms", HUB, Path("x"), parallel_config=config)
    made = list(plan.assemblies.as_sources_lie())
    by_file = {(one.place.path, one.place.name): one for one in plan.assemblies}
    assert {(one.place.path, one.place.name): one for one in made} == by_file
    assert len(made) == len(by_file) > len(plan.files) > 4
    if together >= len(plan.files):
        names = [one.place.name for one in made]
        assert len(list(groupby(names))) == len(set(names))
        values = plan.assemblies.values
        where = {name: next(values[name].fragments).stored for name in names}
        begun = [(where[name].path.name, where[name].extents[0].offset) for name in names]
        assert begun == sorted(begun)


def test_one_layer_that_lacks_something_is_seen_among_those_that_are_alike(tmp_path):
    config = job(tmp_path, 2, 2, 1, 1, True)
    plan = ckptforge.plan("to_ms", HUB, Path("x"), parallel_config=config)
    values = dict(plan.assemblies.values)
    name = next(name for name in values if ".1." in name)
    (term,) = values[name].terms
    whole = term.fragments[0].transfer
    half = replace(whole, shape=(whole.shape[0] // 2, *whole.shape[1:]))
    broken = replace(term, fragments=(replace(term.fragments[0], transfer=half),))
    values[name] = replace(values[name], terms=(broken,))
    Assemblies(plan.assemblies.values, plan.assemblies.files).prove()
    with pytest.raises(PlanError, match=re.escape(name)):
        Assemblies(values, plan.assemblies.files).prove()


def test_a_process_proves_the_files_that_it_writes_and_each_unit(tmp_path):
    config = job(tmp_path, 1, 1, 1, 2, False)
    plan = ckptforge.plan("to_ms", HUB, Path("x"), parallel_config=config)
    values, files = dict(plan.assemblies.values), plan.assemblies.files
    last = len(files) - 1
    name = next(iter(files[last].file.places.keys() - files[0].file.places.keys()))
    values[name] = replace(values[name], terms=(Term(fragments=()),))
    Assemblies(values, files).prove([0])
    for broken in (
        lambda made: made.prove([last]),
        lambda made: made.prove(),
        lambda made: made.only(last, 0, 1),
    ):
        with pytest.raises(PlanError, match=re.escape(name)):
            broken(Assemblies(values, files))


def test_a_plan_that_was_sent_elsewhere_is_made_of_the_same(tmp_path):
    config = job(tmp_path, 2, 2, 1, 1, True)
    plan = ckptforge.plan("to_ms", HUB, Path("x"), parallel_config=config)
    sent = pickle.loads(pickle.dumps(plan.assemblies))
    assert list(sent) == list(plan.assemblies)
    sent.prove()


def plan_of(plan):
    """The assemblies of a plan by file."""
    numbers = range(len(plan.files))
    return {plan.files[i].path: list(plan.assemblies.of(i)) for i in numbers}


def job(directory, dp, mp, ep, stages, optimizer):
    """A parallel configuration as a file."""
    path = directory / "job.json"
    keys = {
        "data_parallel": dp,
        "model_parallel": mp,
        "expert_parallel": min(ep, dp),
        "pipeline_stage": stages,
        "enable_parallel_optimizer": optimizer,
    }
    path.write_text(json.dumps(keys))
    return path


def test_a_resume_tells_files_apart_whose_own_values_are_others():
    plan = ckptforge.plan("to_ms", HUB, Path("x.ckpt"))
    (placed,) = plan.assemblies.files
    values = plan.assemblies.values
    a, b, *_ = (name for name in values if name.endswith("attention_norm.weight"))
    other = {**values, a: values[b], b: values[a]}
    plans = [
        replace(plan, assemblies=Assemblies(values, (replace(placed, own=own),)))
        for own in (values, dict(values), other)
    ]
    same, again, swapped = map(fingerprint, plans)
    assert same == again != swapped
