"""Inputs are removed when all that was made of them is durable, and not before."""

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import CastOverflowError, LeftError, OutputError, UsageError
from ckptforge.publish.directory import staging_path
from ckptforge.publish.tree import lies_at
from ckptforge.run.needs import most_disk
from ckptforge.storage.mounts import mounted
from ckptforge.testing.memory import Memory
from ckptforge.testing.power_loss import Durable, PowerLoss
from ckptforge.testing.store_tests import get, put
from ckptforge.testing.stores import CHANGES, FailingStore, counting, kill
from tests.crash.common import in_a_process, on_a_disk, tree
from tests.helpers import HUB, write_safetensors

pytestmark = pytest.mark.slow

PLACE = Path("/consumed")
SHARDED = {"to": "hub", "dtype": "fp16", "max_shard_size": "40KB"}  # outputs need few inputs each


@pytest.fixture
def hub(tmp_path):
    """The model in several files."""
    out = tmp_path / "hub"
    ckptforge.to_torch(ckptforge.to_ms(HUB, tmp_path / "m.ckpt").output, out, max_shard_size="20KB")
    (tmp_path / "m.ckpt").unlink()
    (tmp_path / "m.ckpt.manifest.json").unlink()
    return out


def weights(directory):
    return sorted(path.name for path in directory.glob("*.safetensors"))


@pytest.mark.parametrize("options", [{"layout": "gmm"}, {"layout": "dense", "dtype": "fp32"}])
def test_inputs_are_gone_and_the_output_is_the_same(tmp_path, hub, options):
    expected = ckptforge.to_ms(hub, tmp_path / "a.ckpt", **options).output.read_bytes()
    assert len(weights(hub)) > 3
    ckptforge.to_ms(hub, tmp_path / "b.ckpt", consume=True, **options)
    assert (tmp_path / "b.ckpt").read_bytes() == expected and not weights(hub)
    assert (
        ckptforge.check(tmp_path / "b.ckpt").equal
        and not staging_path(tmp_path / "b.ckpt").exists()
    )


def test_no_more_room_is_asked_for_than_is_needed(tmp_path, hub):
    plan = ckptforge.plan("to_ms", hub, tmp_path / "x.ckpt", layout="dense")
    largest = max(file.size for file in plan.sources)
    assert most_disk(plan) <= 3 * largest + plan.nbytes // 8 < plan.nbytes
    again = ckptforge.plan("to_ms", HUB, tmp_path / "x.ckpt")
    assert 0 < most_disk(again) <= again.tensor_bytes


class Rig:
    """A job on a file system whose power goes."""

    def __init__(self, hub, work):
        ckptforge.to_ms(hub, work / "x.ckpt", layout="gmm", dtype="fp32")
        self.expected = (work / "x.ckpt").read_bytes()
        self.files = {path.name: path.read_bytes() for path in hub.iterdir()}

    def memory(self):
        memory = Memory(PLACE)
        memory.make_directory(PLACE / "hub")
        for name, content in self.files.items():
            put(memory, PLACE / "hub" / name, content)
        return Durable(memory).cut(random.Random(0))

    def run(self, memory, stop, chance, **more):
        """Runs until the `stop`-th change, when the power goes; what is there then."""
        calls = 0

        def fault(call):
            nonlocal calls
            calls += call.name in CHANGES
            if calls >= stop:
                raise PowerLoss

        durable, self.ended = Durable(memory), False
        with mounted(PLACE, FailingStore(memory, fault)):
            try:
                ckptforge.to_ms(
                    PLACE / "hub",
                    PLACE / "x.ckpt",
                    layout="gmm",
                    dtype="fp32",
                    workers=chance.choice((1, 2)),
                    consume=True,
                    **more,
                )
                self.ended = True
            except PowerLoss:
                pass
        self.calls = calls
        return durable.cut(chance)

    def gone(self, memory):
        return [name for name in self.files if not lies_at(memory, PLACE / "hub" / name)]


def test_whenever_the_power_goes_nothing_is_lost(tmp_path, hub):
    rig = Rig(hub, tmp_path)
    whole = rig.run(rig.memory(), 1 << 60, random.Random(0))
    assert rig.ended and get(whole, PLACE / "x.ckpt") == rig.expected
    total, removed = rig.calls, []
    for seed in range(15):
        chance = random.Random(seed)
        memory = rig.memory()
        for _ in range(chance.choice((1, 2, 3))):
            memory = rig.run(memory, chance.randrange(total // 3, total), chance, resume=True)
            removed.append(len(rig.gone(memory)))
            if rig.ended or lies_at(memory, PLACE / "x.ckpt"):
                break
        if not lies_at(memory, PLACE / "x.ckpt"):
            memory = rig.run(memory, 1 << 60, chance, resume=True)
        assert get(memory, PLACE / "x.ckpt") == rig.expected, seed
    assert len(set(removed)) > 2


def interrupted(hub, out, **options):
    """A run that stops when some of its inputs are gone."""

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > 0.8 * total and len(weights(hub)) < before:
            raise Stopped

    before = len(weights(hub))
    with pytest.raises(Stopped):
        ckptforge.to_ms(hub, out, workers=1, consume=True, progress=stop, **options)
    assert 0 < len(weights(hub)) < before


def test_what_is_left_of_consumed_inputs_is_neither_removed_nor_started_over(tmp_path, hub):
    out, options = tmp_path / "b.ckpt", {"layout": "dense", "dtype": "fp32"}
    expected = ckptforge.to_ms(hub, tmp_path / "a.ckpt", **options).output.read_bytes()
    interrupted(hub, out, **options)
    copy = shutil.copytree(hub, tmp_path / "copy")
    (left,) = ckptforge.clean(out).left
    assert "can't be started over" in left.busy
    for more in ({"overwrite": True}, {"layout": "gmm", "resume": True}):
        with pytest.raises(LeftError, match=r"(?s)all that is left of files.*can't be started"):
            ckptforge.to_ms(hub, out, **{**options, **more})
    assert weights(copy) == weights(hub)
    ckptforge.to_ms(hub, out, resume=True, consume=True, **options)
    assert out.read_bytes() == expected and not weights(hub)


def test_a_cast_that_overflows_stops_before_its_input_is_removed(tmp_path):
    hub, out = shutil.copytree(HUB, tmp_path / "hub"), tmp_path / "x.ckpt"
    name = weights(hub)[-1]
    content = bytearray((hub / name).read_bytes())
    content[-2:] = np.array([0x7F7F], "<u2").tobytes()  # the largest number of bfloat16
    (hub / name).write_bytes(content)
    with pytest.raises(CastOverflowError) as error:
        ckptforge.to_ms(hub, out, dtype="fp16", consume=True)
    assert name in weights(hub) and not out.exists()
    assert len(weights(hub)) == 2 or "are finished and kept" in error.value.__notes__[-1]
    ckptforge.to_ms(hub, out, dtype="fp16", consume=True, resume=True, allow_overflow=True)
    assert out.exists() and not weights(hub)


@pytest.mark.parametrize("what", ["link", "behind", "names", "lost", "part", "no_hash"])
def test_what_cannot_be_removed_is_refused(tmp_path, hub, what):
    more, error, message = {}, OutputError, "so consume=True can't be given"
    first = hub / weights(hub)[0]
    if what == "link":
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
    elif what == "behind":
        (tmp_path / "l").symlink_to(hub)
        hub = tmp_path / "l"
    elif what == "names":
        os.link(first, tmp_path / "second")
    elif what == "lost":
        (hub / "model.safetensors.index.json").unlink()
        write_safetensors(hub / "more.safetensors", {"x": ("F32", [1], bytes(4))})
        more, message = {"allow_unmapped": True}, "would lose what the output doesn't hold"
    else:
        more = {"part": {"part": "1/2"}, "no_hash": {"no_hash": True}}[what]
        error, message = UsageError, "consume=True"
    with pytest.raises(error, match=message):
        ckptforge.to_ms(hub, tmp_path / "x.ckpt", consume=True, **more)
    assert not (tmp_path / "x.ckpt").exists() and first.exists()


class Disk:
    """The bytes that lie below a directory, at most: they are less only after something goes."""

    def __init__(self, place):
        self.place, self.most = place, 0

    def __call__(self, call):
        if call.name in ("unlink", "rename"):
            found = (path.lstat() for path in self.place.rglob("*") if path.is_file())
            self.most = max(self.most, sum(min(one.st_blocks * 512, one.st_size) for one in found))


def edited(place, **options):
    ckptforge.convert(place / "hub", place / "out", **SHARDED, consume=True, **options)


def test_the_disk_needs_room_for_one_output_more(tmp_path, hub):
    held = Disk(tmp_path)
    before, inputs = sum(path.stat().st_size for path in hub.iterdir()), len(weights(hub))
    with on_a_disk(tmp_path, held):
        edited(tmp_path, workers=1)
    outputs = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(outputs) > 5
    beside = (len(outputs) + inputs) * 4096 + 64 * 1024  # headers on both sides, and the journal
    assert held.most <= before + max(outputs) + beside < before + sum(outputs)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_wherever_it_is_killed_every_tensor_is_whole(tmp_path, hub):
    """12 kills: of an input that is gone, all that is made of it is in the staged outputs."""
    place = tmp_path / "whole"
    shutil.copytree(hub, place / "hub")
    made = ckptforge.plan("convert", hub, place / "out", **SHARDED)
    count, calls = counting()
    with on_a_disk(place, count):
        edited(place, workers=1)
    expected = tree(place / "out")
    chance, gone, kills = random.Random(0), set(), 0
    while kills < 12:
        run = tmp_path / "run"
        shutil.copytree(hub, run / "hub")
        while not (run / "out").exists():
            stop = chance.randrange(calls() // 4, calls() + 1)
            workers = chance.choice((1, 2))

            def killed(stop=stop, workers=workers, run=run):
                with on_a_disk(run, kill(stop)):
                    edited(run, workers=workers, resume=True)

            kills += os.WIFSIGNALED(in_a_process(killed))
            staged = staging_path(run / "out") / "out"
            there = run / "out" if (run / "out").exists() else staged
            for assembly in made.assemblies:
                inputs = [run / "hub" / one.stored.path.name for one in assembly.fragments]
                if all(path.exists() for path in inputs):
                    for path in inputs:
                        assert path.read_bytes() == (hub / path.name).read_bytes()
                    continue
                gone.update(path.name for path in inputs if not path.exists())
                name = assembly.place.path.name
                content = (there / name).read_bytes()
                for at, length in assembly.place.file_ranges(0, assembly.place.nbytes):
                    assert content[at : at + length] == expected[name][at : at + length]
        assert tree(run / "out") == expected and not weights(run / "hub")
        shutil.rmtree(run)
    assert len(gone) == len(weights(hub))
