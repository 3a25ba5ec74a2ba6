"""A loss of power at any moment leaves a whole output or none. `power_loss.py` is what does it,
here a few times; by itself, as often as one likes."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from ckptforge.publish.single_file import write_file
from ckptforge.publish.tree import names_in
from ckptforge.storage.mounts import mounted
from ckptforge.storage.store import Kind
from ckptforge.testing.memory import Memory
from ckptforge.testing.power_loss import BLOCK, Durable, PowerLoss
from ckptforge.testing.store_tests import get, put
from ckptforge.testing.stores import FailingStore, fail
from tests.crash.power_loss import Rig, clean, jobs, lose_power

pytestmark = pytest.mark.slow

TIMES = 10  # of each job
PLACE = Path("/power")


@pytest.fixture(scope="module")
def every_job(tmp_path_factory):
    return jobs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    "name",
    [
        "to-ms",
        "to-ms without links",
        "to-torch",
        "merge",
        "split",
        "strategy",
        "replace a file",
        "replace a directory",
        "replace without exchange",
        "replace ranks",
        "replace a model",
    ],
)
def test_power_is_lost_and_nothing_else(every_job, name):
    rig = Rig(every_job[name])
    for i in range(TIMES):
        seed = f"{name} {i}"
        try:
            lose_power(rig, random.Random(seed))
        except Exception as error:
            raise AssertionError(f"with the seed {seed!r}") from error


def test_what_was_moved_away_is_put_back_for_good(every_job):
    """It isn't removed before its name is durable."""
    rig = Rig(every_job["replace without exchange"])
    memory, renames = rig.copy(), fail(2, PowerLoss(), {"rename"}, ever=True)
    missing = rig.fault(10**9)
    faults = FailingStore(memory, lambda call: missing(call) or renames(call))
    with mounted(PLACE, faults), pytest.raises(PowerLoss):
        rig.job(workers=1)
    rig.ended = False
    assert rig.judge(memory) == "old, moved away"
    for i in range(150):
        chance = random.Random(i)
        again = Durable(memory).cut(random.Random(0))
        left = clean(rig, again, chance, stop=chance.randrange(1, 16))
        assert rig.judge(left) in ("old", "old, moved away")
        assert rig.judge(clean(rig, left, chance)) == "old"


def test_a_run_that_syncs_nothing_is_found_out(every_job, monkeypatch):
    monkeypatch.setattr(Durable, "synced", lambda self, node: None)
    rig = Rig(every_job["to-ms"])
    with pytest.raises(AssertionError):
        for i in range(100):
            lose_power(rig, random.Random(i))


def test_a_small_file_is_the_old_or_the_new_one():
    path, seen = PLACE / "report.html", set()
    old, new = b"old" * 1000, b"new" * 2000
    for i in range(200):
        memory, chance = Memory(PLACE), random.Random(i)
        put(memory, path, old)
        durable = Durable(memory)
        stop = fail(chance.randrange(1, 8), PowerLoss(), ever=True)
        with mounted(PLACE, FailingStore(memory, stop)), suppress(PowerLoss):
            write_file(path, new)
        seen.add(get(durable.cut(chance), path))
    assert seen == {old, new}


def cuts(memory, durable, times=200):
    """What is there after each of many losses of power: path → contents or, of others, kinds."""
    for i in range(times):
        left = durable.cut(random.Random(i))
        yield {name: get(left, PLACE / name) for name in names_in(left, PLACE)}


def test_what_is_synced_stays_and_what_is_not_may_go():
    memory = Memory(PLACE)
    durable = Durable(memory)
    put(memory, PLACE / "named", b"a" * BLOCK * 3)
    memory.sync_directory(PLACE)
    put(memory, PLACE / "nameless", b"b")
    file = memory.create(PLACE / "named")
    file.write(BLOCK, memoryview(b"c" * BLOCK * 3))
    found = list(cuts(memory, durable))
    assert {"nameless" in names for names in found} == {True, False}
    assert all("named" in names for names in found)
    blocks = {names["named"][BLOCK : 2 * BLOCK] for names in found}
    assert blocks == {b"a" * BLOCK, b"c" * BLOCK}
    assert all(names["named"][:BLOCK] == b"a" * BLOCK for names in found)
    sizes = {len(names["named"]) for names in found}
    assert {3 * BLOCK, 4 * BLOCK} <= sizes and len(sizes) > 2
    file.sync()
    memory.sync_directory(PLACE)
    assert all(names["named"] == b"a" * BLOCK + b"c" * BLOCK * 3 for names in cuts(memory, durable))


def test_a_file_that_was_never_synced_may_be_empty():
    memory = Memory(PLACE)
    durable = Durable(memory)
    memory.create(PLACE / "x").write(0, memoryview(b"x" * 100))
    memory.sync_directory(PLACE)
    found = [names["x"] for names in cuts(memory, durable)]
    assert b"" in found and b"x" * 100 in found and bytes(100) in found


def test_names_change_each_for_itself_but_a_rename_in_one_step():
    memory = Memory(PLACE)
    for name in ("a", "b", "c"):
        put(memory, PLACE / name, name.encode())
    durable = Durable(memory)
    memory.rename(PLACE / "a", PLACE / "b")
    memory.unlink(PLACE / "c")
    memory.rename(PLACE / "b", PLACE / "d")
    found = {tuple(sorted(names.items())) for names in cuts(memory, durable)}
    before, first = {"a": b"a", "b": b"b"}, {"b": b"a"}
    expected = [{**names, **c} for names in (before, first, {"d": b"a"}) for c in ({}, {"c": b"c"})]
    assert found == {tuple(sorted(names.items())) for names in expected}


def test_a_directory_that_is_not_synced_may_go_with_what_is_in_it():
    memory = Memory(PLACE)
    durable = Durable(memory)
    memory.make_directory(PLACE / "d")
    put(memory, PLACE / "d" / "x", b"x")
    memory.sync_directory(PLACE / "d")
    kinds = set()
    for i in range(50):
        left = durable.cut(random.Random(i))
        kinds.add(tuple(names_in(left, PLACE)))
        assert left.status(PLACE).kind is Kind.DIRECTORY
    assert kinds == {(), ("d/x",)}
