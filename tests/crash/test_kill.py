"""Killed at any moment, a run leaves a whole output or none, and is resumed with the same bytes."""

import errno
import os
import random
import shutil
import signal
import sys

import pytest

import ckptforge
from ckptforge.cli.text import cleaned_text
from ckptforge.errors import OutputError
from ckptforge.publish.directory import staging_path
from ckptforge.testing.stores import counting, kill, kill_when
from tests.crash.common import in_a_process, jobs, on_a_disk, tree
from tests.helpers import HUB

pytestmark = pytest.mark.slow

if sys.platform != "linux":
    pytest.skip("forks", allow_module_level=True)


def killed(status):
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("name", ["to_ms", "to_torch", "merge", "split"])
def test_kills_at_any_moment(tmp_path, name):
    """50 a verb; each resumed, some after a second and third kill."""
    ckptforge.to_ms(HUB, tmp_path / "dense.ckpt")
    verb, inputs, output, options = jobs(tmp_path / "dense.ckpt")[name]
    verb(*inputs, tmp_path / "whole" / output, **options)
    expected = tree(tmp_path / "whole" / output)
    count, calls = counting()
    with on_a_disk(tmp_path / "counted", count):
        verb(*inputs, tmp_path / "counted" / output, **options)
    assert calls() > 90
    chance = random.Random(name)
    kept = 0
    for i in range(50):
        place = tmp_path / f"run{i}"
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            stop = chance.randrange(1, calls() + 1)

            def run(stop=stop, place=place):
                with on_a_disk(place, kill(stop)):
                    workers = chance.choice([1, 2])
                    verb(*inputs, place / output, resume=True, workers=workers, **options)

            status = in_a_process(run)
            if (place / output).exists():
                assert tree(place / output) == expected
            assert killed(status) or (place / output).exists()
            if not killed(status):
                break
        kept += bool(list(place.glob(".*/journal"))) if place.exists() else 0
        if not (place / output).exists():
            verb(*inputs, place / output, resume=True, **options)
        elif list(
            place.glob(".*")
        ):  # killed while it put its manifest in place, or was cleaning up
            try:
                verb(*inputs, place / output, resume=True, **options)
            except OutputError as error:
                assert "exists already" in str(error)
            ckptforge.clean(place)
        assert tree(place / output) == expected
        assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(place)
    assert kept > 25  # or the kills came too early to show anything


def test_kills_while_an_output_is_replaced(tmp_path):
    """The old or the new output is there whole, always, and what isn't ours stays."""
    ckptforge.to_ms(HUB, tmp_path / "new", layout="gmm")
    new = tree(tmp_path / "new")
    old = tmp_path / "old"
    ckptforge.to_ms(HUB, old / "o")
    (old / "o" / "notes.txt").write_text("mine")
    before = tree(old / "o")
    for stop in (*range(1, 60, 7), *range(60, 200, 2)):
        place = tmp_path / "run"
        shutil.copytree(old, place)

        def run(stop=stop, place=place):
            with on_a_disk(place, kill(stop)):
                ckptforge.to_ms(HUB, place / "o", layout="gmm", overwrite=True)

        status = in_a_process(run)
        now = tree(place / "o")
        assert now in (before, new | {"notes.txt": b"mine"}), sorted(now)
        ckptforge.clean(place)
        assert tree(place / "o") == now and [path.name for path in place.iterdir()] == ["o"]
        shutil.rmtree(place)
        if not killed(status):
            break
    assert not killed(status) and stop > 60  # or it wasn't stopped in all places


def killed_between_renames(output):
    """As SIGKILL leaves it where the system can't swap names: the old one is away, the new one not
    there."""
    renames = []

    def before(call):
        if call.name == "exchange":
            raise OSError(errno.ENOSYS, "no exchange")
        if call.name == "rename":
            renames.append(call)
            if len(renames) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    def run():
        with on_a_disk(output.parent, before):
            ckptforge.to_ms(HUB, output, layout="gmm", overwrite=True)

    ckptforge.to_ms(HUB, output)
    (output / "notes.txt").write_text("mine")
    assert killed(in_a_process(run)) and not output.exists()


@pytest.mark.parametrize("then", ["resume", "overwrite", "clean"])
@pytest.mark.parametrize("appeared", [None, "empty", "full"])
def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, then, appeared):
    out = tmp_path / "o"
    killed_between_renames(out)
    if appeared:
        out.mkdir()
        if appeared == "full":
            (out / "new.txt").write_text("new")
    actions = {
        "resume": lambda: ckptforge.to_ms(HUB, out, layout="gmm", resume=True, overwrite=True),
        "overwrite": lambda: ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True),
        "clean": lambda: ckptforge.clean(tmp_path),
    }
    if appeared == "full":
        if then == "clean":
            assert "was stopped while it replaced" in cleaned_text(actions[then]())
        else:
            with pytest.raises(OutputError, match="was stopped while it replaced"):
                actions[then]()
        assert (out / "new.txt").read_text() == "new"
        assert (staging_path(out) / "old" / "notes.txt").read_text() == "mine"
        return
    actions[then]()
    assert (out / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["o"]


@pytest.mark.parametrize("then", ["resume", "clean"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["the file is there", "its manifest is next"])
def test_a_kill_between_a_file_and_its_manifest(tmp_path, then, overwrite, moment):
    out, manifest = tmp_path / "x.ckpt", tmp_path / "x.ckpt.manifest.json"
    if overwrite:
        ckptforge.to_ms(HUB, out)

    def run():
        there = kill_when(lambda call: call.name in ("rename", "link") and call.other == out)
        follows = kill_when(lambda call: call.name == "rename" and call.other == manifest)
        faults = {"after": there} if moment == "the file is there" else {"before": follows}
        with on_a_disk(tmp_path, **faults):
            ckptforge.to_ms(HUB, out, layout="gmm", overwrite=overwrite)

    assert killed(in_a_process(run))
    assert out.exists() and not manifest.exists()
    if then == "resume":
        with pytest.raises(OutputError):  # another command's
            ckptforge.to_ms(HUB, out, layout="dense", resume=True)
        result = ckptforge.to_ms(HUB, out, layout="gmm", overwrite=overwrite, resume=True)
        assert manifest in result.files and "only the manifest" in result.notes[-1]
    else:
        ckptforge.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x.ckpt", "x.ckpt.manifest.json"]
    assert ckptforge.check(out).equal and ckptforge.inspect(out).layout == "gmm"
