"""Whatever stops a run, the output is whole or not there, and a resumed run ends with the same
bytes."""

import errno
import functools
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

import ckptforge
from ckptforge.cli.text import cleaned_text
from ckptforge.errors import FormatError, InputNotFoundError, LeftError, OutputError, ReadError
from ckptforge.publish import refusals as checks
from ckptforge.publish import replace as placing
from ckptforge.publish import staging
from ckptforge.run import worker as stream
from tests.helpers import FIXTURES, HUB, with_default_signals

STRATEGIES = FIXTURES / "mindspore" / "strategies"
SHARDED = FIXTURES / "mindspore" / "sharded"
# What a run does to the disk; it is stopped before one of these calls.
CALLS = [
    "pwrite",
    "write",
    "copy_file_range",
    "rename",
    "replace",
    "link",
    "fsync",
    "mkdir",
    "unlink",
    "rmdir",
    "ftruncate",
    "open",
]


def jobs(tmp_path):
    """Name → (verb, arguments) without the output."""
    full = FIXTURES / "mindspore" / "full.ckpt"
    return {
        "to_ms": (ckptforge.to_ms, (HUB,), "x.ckpt", {"dtype": "fp16", "layout": "gmm"}),
        "to_torch": (
            ckptforge.to_torch,
            (tmp_path / "dense.ckpt",),
            "hf",
            {"max_shard_size": "200KB"},
        ),
        "merge": (
            ckptforge.merge,
            (SHARDED / "mp8",),
            "m.ckpt",
            {"strategy_dir": STRATEGIES / "mp8"},
        ),
        "split": (ckptforge.split, (full,), "ranks", {"strategy_dir": STRATEGIES / "dp4mp2ep2"}),
    }


def tree(path):
    """Every file below a path with its contents, but for manifests, which hold times."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and "manifest" not in f.name
    }


def in_a_process(action):
    """Runs `action` in a forked process; returns its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def at_call(stop, count_only=None):
    """Replaces the calls of `os` by ones that kill the process before the `stop`-th."""
    done = [0]

    def wrap(real):
        @functools.wraps(real)
        def counted(*args, **kwargs):
            done[0] += 1
            if done[0] == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    return done


@pytest.mark.parametrize("name", ["to_ms", "to_torch", "merge", "split"])
def test_kills_at_any_moment(tmp_path, name):
    """50 a verb; each resumed, some after a second and third kill."""
    ckptforge.to_ms(HUB, tmp_path / "dense.ckpt")
    verb, inputs, output, options = jobs(tmp_path)[name]
    verb(*inputs, tmp_path / "whole" / output, **options)
    expected = tree(tmp_path / "whole" / output)
    counted = tmp_path / "count"

    def count():
        done = at_call(0)
        verb(*inputs, tmp_path / "counted" / output, **options)
        counted.write_text(str(done[0]))

    assert in_a_process(count) == 0
    calls = int(counted.read_text())
    assert calls > 100
    chance = random.Random(name)
    kept = 0
    for i in range(50):
        place = tmp_path / f"run{i}"
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            stop = chance.randrange(1, calls + 1)

            def run(stop=stop, place=place):
                at_call(stop)
                verb(*inputs, place / output, resume=True, workers=chance.choice([1, 2]), **options)

            status = in_a_process(run)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if (place / output).exists():
                assert tree(place / output) == expected
            assert killed or (place / output).exists()
            if not killed:
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
    new = tree_of_replacement(tmp_path / "new")
    old = tmp_path / "old"
    ckptforge.to_ms(HUB, old / "o")
    (old / "o" / "notes.txt").write_text("mine")
    before = tree(old / "o")
    for stop in range(1, 400, 7):
        place = tmp_path / "run"
        shutil.copytree(old, place)

        def run(stop=stop, place=place):
            at_call(stop)
            ckptforge.to_ms(HUB, place / "o", layout="gmm", overwrite=True)

        in_a_process(run)
        now = tree(place / "o")
        assert now in (before, new | {"notes.txt": b"mine"}), sorted(now)
        ckptforge.clean(place)
        assert tree(place / "o") == now and [path.name for path in place.iterdir()] == ["o"]
        shutil.rmtree(place)


def tree_of_replacement(path):
    ckptforge.to_ms(HUB, path, layout="gmm")
    return tree(path)


@pytest.mark.parametrize("damage", ["byte", "short", "gone", "journal"])
def test_what_is_on_the_disk_is_checked_not_trusted(tmp_path, damage):
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    out = tmp_path / "b.ckpt"
    interrupt(out, after=0.6)
    work = staging.staging_path(out)
    if damage == "byte":
        content = bytearray((work / "out" / "b.ckpt").read_bytes())
        content[len(content) // 8] ^= 1
        content[len(content) // 4] ^= 1
        (work / "out" / "b.ckpt").write_bytes(content)
    elif damage == "short":
        os.truncate(work / "out" / "b.ckpt", 50_000)
    elif damage == "gone":
        (work / "out" / "b.ckpt").unlink()
    else:
        journal = (work / "journal").read_bytes()
        (work / "journal").write_bytes(journal[: len(journal) * 2 // 3] + b'{"file": 7}\n\xff\x00')
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert out.read_bytes() == expected
    assert ckptforge.check(out).problems == []


def interrupt(out, after, source=HUB, **options):
    """Leaves a run of `to_ms` that stopped after a part of its bytes."""

    def progress(done, total):
        if done > after * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        ckptforge.to_ms(source, out, progress=progress, workers=1, **{"layout": "gmm", **options})
    assert "resume=True continues from there" in stopped.value.__notes__[-1]


def test_what_was_finished_is_not_made_again(tmp_path, monkeypatch):
    out = tmp_path / "b.ckpt"
    interrupt(out, after=0.6)
    seen = []
    real = ckptforge.run.worker.Worker.fill
    monkeypatch.setattr(
        ckptforge.run.worker.Worker,
        "fill",
        lambda self, task: seen.append(task.target.name) or real(self, task),
    )
    shown = []
    ckptforge.to_ms(
        HUB,
        out,
        layout="gmm",
        resume=True,
        progress=lambda done, total: shown.append((done, total)),
    )
    assert 0 < len(seen) < 6 and shown[-1][0] == shown[-1][1]


def test_a_resumed_run_counts_all_casts(tmp_path):
    whole = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm", dtype="fp16")
    interrupt(tmp_path / "b.ckpt", after=0.6, dtype="fp16")
    resumed = ckptforge.to_ms(HUB, tmp_path / "b.ckpt", layout="gmm", dtype="fp16", resume=True)
    assert resumed.audit == whole.audit and whole.audit.counts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("time", "has changed since: its time of change was"),
        ("size", "has changed since: its size was"),
        ("command", "begun by another command"),
        ("version", "begun by ckptforge 0.0.9, this is"),
        ("path", "its inputs are other files"),
    ],
)
def test_what_does_not_belong_together_is_not_resumed(tmp_path, change, reason, monkeypatch):
    hub, out = tmp_path / "hub", tmp_path / "b.ckpt"
    shutil.copytree(HUB, hub)
    interrupt(out, after=0.6, source=hub)
    victim = hub / "model-00001-of-00002.safetensors"
    options = {"layout": "gmm"}
    if change == "time":
        os.utime(victim, ns=(1, 1))
    elif change == "size":
        content = victim.read_bytes()
        header = int.from_bytes(content[:8], "little")
        victim.write_bytes(
            (header + 8).to_bytes(8, "little")
            + content[8 : 8 + header]
            + b" " * 8
            + content[8 + header :]
        )
    elif change == "command":
        options["dtype"] = "fp32"
    elif change == "version":
        journal = staging.staging_path(out) / "journal"
        first, *rest = (line.partition(b" ")[2] for line in journal.read_bytes().splitlines())
        old = first.replace(
            f'"ckptforge":"{ckptforge.__version__}"'.encode(), b'"ckptforge":"0.0.9"'
        )
        journal.write_bytes(b"".join(map(staging.journals.journal_line, (old, *rest))))
    else:
        hub = hub.rename(tmp_path / "moved")
    left = tree(staging.staging_path(out))
    with pytest.raises(LeftError, match=reason):
        ckptforge.to_ms(hub, out, resume=True, **options)
    assert tree(staging.staging_path(out)).keys() == left.keys() and not out.exists()
    ckptforge.to_ms(hub, out, overwrite=True, **options)  # begins anew
    assert ckptforge.check(out).problems == [] and not staging.staging_path(out).exists()


def test_the_second_run_at_one_output_is_refused(tmp_path):
    out = tmp_path / "x.ckpt"
    refused = []

    def progress(done, total):
        if not refused:
            with pytest.raises(
                OutputError,
                match=r"another run is writing it \(process "
                rf"{os.getpid()} on ",
            ) as error:
                ckptforge.to_ms(HUB, out, overwrite=True)
            refused.append(error)
            assert "left alone" in cleaned_text(ckptforge.clean(tmp_path))

    ckptforge.to_ms(HUB, out, progress=progress)
    assert refused and ckptforge.check(out).problems == []


def test_a_dead_process_keeps_no_lock(tmp_path):
    def killed():
        at_call(50)
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")

    in_a_process(killed)
    assert (tmp_path / ".x.ckpt.ckptforge" / "lock").exists()
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm", resume=True)


def test_a_full_disk_is_resumable(tmp_path, monkeypatch):
    """A real one: 600 kB of memory."""
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(OutputError, match=r"needs \d+ bytes but only \d+ are free"):
            ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm")
        with (
            monkeypatch.context() as patched,
            pytest.raises(OutputError, match="No space left on device") as error,
        ):
            # others fill the disk only later
            patched.setattr("ckptforge.verbs.job.check_room", lambda *_: None)
            ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm", workers=1)
        assert "resume=True" in error.value.__notes__[-1] and os.listdir(disk) == [
            ".x.ckpt.ckptforge"
        ]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm", resume=True)
        assert (disk / "x.ckpt").read_bytes() == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_write_errors_are_said_and_resumable(tmp_path, monkeypatch, number):
    out = tmp_path / "x.ckpt"
    real, calls, most = os.pwrite, [], math.inf

    def failing(fd, data, offset):
        calls.append(len(data))
        if len(calls) > most:
            raise OSError(number, os.strerror(number))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    expected = ckptforge.to_ms(
        HUB, tmp_path / "a.ckpt", layout="gmm", workers=1
    ).output.read_bytes()
    most = len(calls) * 15 // 8
    with pytest.raises(OutputError, match=os.strerror(number)) as error:
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    assert "of 23 tensors are finished" in error.value.__notes__[-1] and not out.exists()
    monkeypatch.setattr(os, "pwrite", real)
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert out.read_bytes() == expected


def test_read_errors_are_said_and_resumable(tmp_path, monkeypatch):
    out = tmp_path / "x.ckpt"
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    real, calls = os.preadv, []

    def failing(fd, buffers, offset):
        calls.append(offset)
        if len(calls) > 60:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(
        ReadError,
        match=r"model-0000\d-of-00002.safetensors: reading at byte \d+ "
        r"failed: Input/output error",
    ) as error:
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    assert "resume=True" in error.value.__notes__[-1]
    monkeypatch.setattr(os, "preadv", real)
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert out.read_bytes() == expected


def test_short_reads_and_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    expected = {
        layout: ckptforge.to_ms(HUB, tmp_path / f"{layout}.ckpt", layout=layout).output.read_bytes()
        for layout in ("dense", "gmm")
    }
    chance = random.Random(1)
    read, write, copy = os.preadv, os.pwrite, os.copy_file_range
    few = lambda n: max(1, n // chance.randrange(1, 9))  # noqa: E731
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][: few(len(buffers[0]))]], at)
    )
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: few(len(data))], at))
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, *at: copy(a, b, few(count), *at))
    for layout, content in expected.items():
        assert (
            ckptforge.to_ms(HUB, tmp_path / f"{layout}2.ckpt", layout=layout).output.read_bytes()
            == content
        )


def test_an_input_that_changes_while_it_is_read(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")

    def progress(done, total):
        os.utime(
            tmp_path / "hub" / "model-00002-of-00002.safetensors",
            ns=(time.time_ns(), time.time_ns()),
        )

    with pytest.raises(
        FormatError, match="model-00002-of-00002.safetensors: was changed while it was read"
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", progress=progress)
    assert os.listdir(tmp_path) == ["hub"]


def test_an_input_that_vanishes_while_it_is_read(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")

    def progress(done, total):
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)

    with pytest.raises(
        (ReadError, InputNotFoundError),
        match=r"has vanished while it was "
        r"read|can't be opened",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", progress=progress)
    assert not (tmp_path / "x.ckpt").exists()


def test_unfinished_outputs_are_not_read(tmp_path):
    interrupt(tmp_path / "x.ckpt", after=0.6)
    for path in (
        tmp_path / ".x.ckpt.ckptforge" / "out" / "x.ckpt",
        tmp_path / ".x.ckpt.ckptforge" / "out",
    ):
        with pytest.raises(InputNotFoundError, match="is the unfinished output of a run"):
            ckptforge.inspect(path)


def test_clean(tmp_path):
    assert ckptforge.clean(tmp_path).left == []
    interrupt(tmp_path / "x.ckpt", after=0.6)
    (tmp_path / ".mine.ckptforge").mkdir()
    (tmp_path / ".mine.ckptforge" / "lock").write_text("")
    (tmp_path / ".mine.ckptforge" / "notes.txt").write_text("not of a run")
    (tmp_path / ".link.ckptforge").symlink_to(tmp_path / ".x.ckpt.ckptforge")
    before = sorted(os.listdir(tmp_path))
    (found,) = ckptforge.clean(tmp_path, dry_run=True).left
    assert found.finished > 5 and found.bytes > 100_000 and sorted(os.listdir(tmp_path)) == before
    assert ckptforge.clean(tmp_path / "x.ckpt").bytes > 0  # by the output's own name
    assert sorted(os.listdir(tmp_path)) == [".link.ckptforge", ".mine.ckptforge"]
    with pytest.raises(InputNotFoundError):
        ckptforge.clean(tmp_path / "nowhere")


def test_without_hashes_nothing_is_kept(tmp_path):
    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", no_hash=True, progress=progress)
    assert os.listdir(tmp_path) == []


def test_a_staging_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("p")
    (tmp_path / ".x.ckpt.ckptforge").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link, which no run"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    assert os.listdir(tmp_path / "elsewhere") == ["precious"]


def stopped_while_placed(out, monkeypatch, **options):
    """Leaves a run of `to_ms` that was stopped when all was written and before it was put in
    place."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        for name in ("place_files", "place_directory"):
            patched.setattr(staging, name, raising(KeyboardInterrupt))
        ckptforge.to_ms(HUB, out, **options)
    assert "publishing" in (staging.staging_path(out) / "journal").read_text()


def raising(error):
    def stop(*_):
        raise error

    return stop


def test_what_was_written_is_checked_again_before_it_is_put_in_place(tmp_path, monkeypatch):
    expected = tree(ckptforge.to_ms(HUB, tmp_path / "whole").output)
    stopped_while_placed(tmp_path / "o", monkeypatch)
    victim = staging.staging_path(tmp_path / "o") / "out" / "rank_0" / "checkpoint_0.ckpt"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    ckptforge.to_ms(HUB, tmp_path / "o", resume=True)
    assert tree(tmp_path / "o") == expected


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
def test_a_finished_output_of_another_command_is_not_put_in_place(tmp_path, monkeypatch, name):
    stopped_while_placed(tmp_path / name, monkeypatch)
    for options in ({"layout": "gmm"}, {"layout": "gmm", "resume": True}):
        with pytest.raises(LeftError):
            ckptforge.to_ms(HUB, tmp_path / name, **options)
    assert sorted(os.listdir(tmp_path)) == [f".{name}.ckptforge"]
    if name == "o":
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt")
        with pytest.raises(LeftError):  # of the other kind
            ckptforge.to_torch(tmp_path / "y.ckpt", tmp_path / name)
    assert not (tmp_path / name).exists() and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
def test_an_output_that_appears_during_the_run_is_not_replaced(tmp_path, name):
    out = tmp_path / name

    def progress(done, total):
        mine = out if name == "x.ckpt" else out / "rank_0" / "checkpoint_0.ckpt"
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")

    with pytest.raises(OutputError, match="exists already"):
        ckptforge.to_ms(HUB, out, progress=progress)
    assert list(tree(out).values()) == [b"mine"]


def test_an_input_that_is_away_for_a_while_costs_nothing(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.4, source=tmp_path / "hub")

    def progress(done, total):
        for shard in (tmp_path / "hub").glob("*.safetensors"):
            shard.unlink()

    with pytest.raises((ReadError, InputNotFoundError)) as error:
        ckptforge.to_ms(
            tmp_path / "hub", out, layout="gmm", resume=True, workers=1, progress=progress
        )
    assert (
        "resume=True" in error.value.__notes__[-1]
        and (staging.staging_path(out) / "journal").exists()
    )


def test_a_users_file_is_taken_along_as_it_is_at_last(tmp_path, monkeypatch):
    ckptforge.to_ms(HUB, tmp_path / "o")
    (tmp_path / "o" / "notes").write_text("old")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("ckptforge.publish.replace._exchange", raising(KeyboardInterrupt))
        ckptforge.to_ms(HUB, tmp_path / "o", layout="gmm", overwrite=True)
    (tmp_path / "o" / "new").write_text("new")
    os.replace(tmp_path / "o" / "new", tmp_path / "o" / "notes")
    ckptforge.to_ms(HUB, tmp_path / "o", layout="gmm", overwrite=True, resume=True)
    assert (tmp_path / "o" / "notes").read_text() == "new"


def test_what_lies_where_the_manifest_goes_is_said_before_any_work(tmp_path):
    (tmp_path / "x.ckpt.manifest.json").write_text("mine")
    with pytest.raises(
        OutputError,
        match=r"x.ckpt.manifest.json: would be written with x.ckpt, "
        r"but is there already",
    ):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt.manifest.json").read_text() == "mine"
    (tmp_path / "y.ckpt.manifest.json").mkdir()
    with pytest.raises(OutputError, match="isn't a file"):
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt", overwrite=True)


def test_names_too_long_for_what_goes_beside_them(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        ckptforge.to_ms(HUB, tmp_path / ("x" * 238 + ".ckpt"))
    assert os.listdir(tmp_path) == []


def test_a_directory_of_others_by_the_name_of_ours_is_let_alone(tmp_path):
    (tmp_path / ".o.ckptforge").mkdir()
    (tmp_path / ".o.ckptforge" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes.txt, which no run"):
        ckptforge.to_ms(HUB, tmp_path / "o")
    assert (tmp_path / ".o.ckptforge" / "notes.txt").read_text() == "mine"


def test_a_mounted_file_system_is_neither_replaced_nor_emptied(tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "precious").write_text("p")
    ckptforge.to_ms(HUB, tmp_path / "o")
    (tmp_path / "o" / "data").mkdir()
    if subprocess.run(
        ["mount", "--bind", str(volume), str(tmp_path / "o" / "data")], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(OutputError, match=r"is mounted there, at .*o/data"):
            ckptforge.to_ms(HUB, tmp_path / "o", overwrite=True)
        assert (volume / "precious").read_text() == "p"
    finally:
        subprocess.run(["umount", str(tmp_path / "o" / "data")], check=True)


def test_half_a_line_of_the_journal_loses_nothing_before_it(tmp_path, monkeypatch):
    out = tmp_path / "x.ckpt"
    real, lines = os.write, []

    def short(fd, data):
        lines.append(data)
        return real(fd, data[: len(data) // 2] if len(lines) == 25 and b' {"' in data else data)

    with (
        monkeypatch.context() as patched,
        pytest.raises(OutputError, match="journal: can't be written: No space left"),
    ):
        patched.setattr(os, "write", short)
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    content = (staging.staging_path(out) / "journal").read_bytes()
    assert content.endswith(b"\n") and content.count(b"\n") == 24
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert ckptforge.check(out).problems == []


if sys.platform != "linux":
    pytest.skip("forks and limits", allow_module_level=True)


def test_a_replaced_directory_keeps_its_modes_and_empty_directories(tmp_path):
    out = tmp_path / "o"
    ckptforge.to_ms(HUB, out)
    (out / "logs" / "empty").mkdir(parents=True)
    (out / "logs").chmod(0o750)
    (out / "rank_0").chmod(0o711)
    out.chmod(0o700)
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert (out / "logs" / "empty").is_dir()
    assert [path.stat().st_mode & 0o777 for path in (out, out / "rank_0", out / "logs")] == [
        0o700,
        0o711,
        0o750,
    ]
    (tmp_path / "x.ckpt").write_bytes(b"")
    (tmp_path / "x.ckpt").chmod(0o640)
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", overwrite=True)
    assert (tmp_path / "x.ckpt").stat().st_mode & 0o777 == 0o640


def test_an_input_that_changes_between_its_index_and_the_run(tmp_path, monkeypatch):
    shutil.copytree(HUB, tmp_path / "hub")
    real = staging.lock_directory

    def lock(*args):
        os.utime(tmp_path / "hub" / "model-00001-of-00002.safetensors")
        return real(*args)

    monkeypatch.setattr(staging, "lock_directory", lock)
    with pytest.raises(
        FormatError, match="model-00001-of-00002.safetensors: was changed while it was read"
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize(
    "name",
    [
        "open",
        "mkdir",
        "fsync",
        "rename",
        "replace",
        "link",
        "ftruncate",
        "pwrite",
        "write",
        "chmod",
    ],
)
@pytest.mark.parametrize("output", ["new/x.ckpt", "new/dir", "dir"])
def test_errors_of_the_system_are_ours_wherever_they_come(tmp_path, monkeypatch, name, output):
    """The n-th call fails, for every n."""
    ckptforge.to_ms(HUB, tmp_path / "whole.ckpt")
    (tmp_path / "dir").mkdir()
    real = getattr(os, name)
    for n in range(1, 200):
        count = [0]

        def failing(*args, count=count, n=n, **kwargs):
            count[0] += 1
            if count[0] == n:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch, suppress(ckptforge.CkptforgeError):
            patch.setattr(os, name, failing)
            ckptforge.to_ms(HUB, tmp_path / output, layout="gmm", overwrite=True, workers=1)
        if count[0] < n:
            break
        ckptforge.clean(tmp_path)
        for path in ((tmp_path / "new"), tmp_path / "new" / "dir"):
            if path.exists():
                ckptforge.clean(path)
    else:
        pytest.fail(f"{name} is called without end")
    assert (tmp_path / output).exists()


def test_a_check_of_a_stored_crc_ends_when_the_run_does(tmp_path):
    index = ckptforge.formats.mindspore_ckpt.read_index(
        FIXTURES / "mindspore" / "bad" / "crc_mismatch.ckpt"
    )
    index.verify(memoryview(bytearray(64)), lambda: True)
    with pytest.raises(FormatError, match="crc32"):
        index.verify(memoryview(bytearray(64)), lambda: False)


def test_clean_finds_small_files_of_dead_processes_and_says_what_was_whole(tmp_path, monkeypatch):
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    dead, ours = (
        tmp_path / f".report.html.ckptforge-{pid}.tmp"
        for pid in (child.stdout.strip(), os.getpid())
    )
    dead.write_text("x")
    ours.write_text("x")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "place_files", stop)
        with pytest.raises(KeyboardInterrupt):
            ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    text = cleaned_text(ckptforge.clean(tmp_path))
    assert (
        "x.ckpt.ckptforge" in text
        and "whole, but not put in place" in text
        and f"process {os.getpid()} may be writing it" in text
    )
    assert [path.name for path in tmp_path.iterdir()] == [ours.name]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ETXTBSY, 524, None])
def test_where_the_kernel_does_not_copy_the_bytes_are_read_and_written(
    tmp_path, monkeypatch, number
):
    calls = []

    def refuse(*at):
        calls.append(at)
        if number is None:
            return 0  # as old kernels do in /proc and the like
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    ckptforge.convert(HUB, tmp_path / "a", to="hub")
    expected = {path.name: path.read_bytes() for path in HUB.glob("*.safetensors")}
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.safetensors")
    } == expected and calls


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EMFILE, "too many")])
@pytest.mark.parametrize("place", ["head_of", "reopen"])
def test_what_stops_a_run_that_has_not_begun_removes_nothing(
    tmp_path, monkeypatch, resume, error, place
):
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.4)
    before = tree(staging.staging_path(out) / "out")
    with monkeypatch.context() as patch:
        patch.setattr(staging.journals, place, raising(error))
        with pytest.raises((KeyboardInterrupt, OutputError)):
            ckptforge.to_ms(HUB, out, layout="gmm", resume=resume)
    assert tree(staging.staging_path(out) / "out") == before
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True, workers=1)


def killed_between_renames(output):
    """As SIGKILL leaves it where the system can't swap names: the old one is away, the new one not
    there."""

    def run():
        placing._exchange = lambda a, b: False
        real, calls = os.rename, []

        def rename(a, b):
            calls.append(a)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)

        os.rename = rename
        ckptforge.to_ms(HUB, output, layout="gmm", overwrite=True)

    ckptforge.to_ms(HUB, output)
    (output / "notes.txt").write_text("mine")
    assert os.WIFSIGNALED(in_a_process(run)) and not output.exists()


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
        assert (staging.staging_path(out) / "old" / "notes.txt").read_text() == "mine"
        return
    actions[then]()
    assert (out / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["o"]


def test_a_directory_that_cannot_be_listed_is_not_lost(tmp_path, monkeypatch):
    out = tmp_path / "o"
    ckptforge.to_ms(HUB, out)
    (out / "private").mkdir()
    (out / "private" / "notes.txt").write_text("mine")
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(OutputError, match="private"):
            ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert (out / "private" / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["o"]


def test_a_signal_after_the_output_took_its_name_says_so(tmp_path, monkeypatch):
    for name in ("x.ckpt", "o"):
        with monkeypatch.context() as patch:
            patch.setattr(
                staging,
                "sync_directory",
                lambda path: raising(KeyboardInterrupt)() if path == tmp_path else None,
            )
            with pytest.raises(KeyboardInterrupt) as error:
                ckptforge.to_ms(HUB, tmp_path / name)
        (note,) = error.value.__notes__
        assert "is in place and whole" in note and (tmp_path / name).exists()


@pytest.mark.parametrize("then", ["resume", "clean"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["the file is there", "its manifest is next"])
def test_a_kill_between_a_file_and_its_manifest(tmp_path, then, overwrite, moment):
    out, manifest = tmp_path / "x.ckpt", tmp_path / "x.ckpt.manifest.json"
    if overwrite:
        ckptforge.to_ms(HUB, out)

    def run():
        replace, link = os.replace, os.link

        def killing(real):
            def called(a, b, **kwargs):
                before = moment == "its manifest is next" and str(b).endswith("manifest.json")
                if not before:
                    real(a, b, **kwargs)
                if before or (moment == "the file is there" and str(b) == str(out)):
                    os.kill(os.getpid(), signal.SIGKILL)

            return called

        os.replace, os.link = killing(replace), killing(link)
        ckptforge.to_ms(HUB, out, layout="gmm", overwrite=overwrite)

    assert os.WIFSIGNALED(in_a_process(run))
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


def test_names_that_are_not_unicode(tmp_path):
    hub = os.fsdecode(os.fsencode(tmp_path) + b"/h\xff")
    shutil.copytree(HUB, hub)
    command = [sys.executable, "-m", "ckptforge", "to-ms", hub, str(tmp_path / "x.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "x.ckpt.manifest.json").exists(), done.stderr
    with pytest.raises(OutputError, match="isn't Unicode"):
        ckptforge.to_ms(HUB, hub + ".ckpt")


@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started(tmp_path, monkeypatch, started):
    real, count = stream.ThreadPoolExecutor.submit, [0]

    def submit(*args):
        count[0] += 1
        if count[0] > started:
            raise RuntimeError("can't start new thread")
        return real(*args)

    monkeypatch.setattr(stream.ThreadPoolExecutor, "submit", submit)
    if started:
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=4)
        monkeypatch.undo()
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt")
        assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "y.ckpt").read_bytes()
    else:
        with pytest.raises(OutputError, match="no thread can be started"):
            ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_signals_in_a_row_end_as_one(tmp_path, number):
    code = f"""
import os, signal, sys
from ckptforge.cli import entry
from ckptforge.cli.entry import main
from ckptforge.publish import staging
from ckptforge.run import worker as stream
def signalling(real):
    def signalled(*args):
        os.kill(os.getpid(), {int(number)})
        return real(*args)
    return signalled
stream.Worker.do = signalling(stream.Worker.do)
staging.empty_staging = signalling(staging.empty_staging)
entry._notes = signalling(entry._notes)
sys.argv = ["ckptforge", "to-ms", {str(HUB)!r}, {str(tmp_path / "x.ckpt")!r}]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=with_default_signals,
    )
    assert done.returncode == 128 + number and "Traceback" not in done.stderr
    assert "No output was created" in done.stderr and not (tmp_path / "x.ckpt").exists()


def test_a_second_interrupt_waits_for_the_workers_too():
    """Or they would go on writing into files that others have opened meanwhile."""
    ended = []

    class Slow:
        def do(self, task):
            time.sleep(0.4)
            ended.append(task)
            return 0

    def interrupting(*_):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupting)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            stream.run_workers(iter(range(100)), [Slow(), Slow()], threading.Event(), None, 0)
        assert len(ended) == 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_line_of_the_journal_that_is_not_as_it_was_written_ends_it(tmp_path):
    expected = tree(ckptforge.to_ms(HUB, tmp_path / "whole.ckpt", layout="gmm").output)
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.5)
    path = staging.staging_path(out) / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = [i for i, line in enumerate(lines) if b'"source":' in line][:1] or [len(lines) - 1]
    for i in changed:
        lines[i] = (
            lines[i]
            .replace(b'"source":0', b'"source":9')
            .replace(b'"source":1', b'"source":8')
            .replace(b'"values":', b'"values":1')
        )
    path.write_bytes(b"".join(lines))
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True, workers=1)
    assert tree(out) == expected and ckptforge.check(out).equal


@pytest.mark.parametrize("name", ["rank_0", "rank_0/checkpoint_0.ckpt"])
def test_what_lies_where_the_output_has_something_of_another_kind(tmp_path, name):
    out = tmp_path / "o"
    out.mkdir()
    if name == "rank_0":
        (out / name).write_text("mine")
    else:
        (out / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="move it away"):
        ckptforge.to_ms(HUB, out, overwrite=True)


def test_our_own_files_may_be_links_nowhere(tmp_path):
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.4)
    kept = staging.staging_path(out) / "out"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    shutil.rmtree(kept)
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link"):
        ckptforge.to_ms(HUB, out, layout="gmm", resume=True, workers=1)
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"


def test_modes_that_hinder_nobody(tmp_path, monkeypatch):
    """A file of mode 0400, stopped after its replacement got that; a directory without permission
    to write."""
    out = tmp_path / "x.ckpt"
    ckptforge.to_ms(HUB, out)
    out.chmod(0o400)
    with monkeypatch.context() as patch:
        patch.setattr(placing.os, "replace", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True, resume=True)
    assert out.stat().st_mode & 0o777 == 0o400
    ckptforge.to_ms(HUB, tmp_path / "o")
    with monkeypatch.context() as patch:
        patch.setattr(checks.os, "access", lambda path, mode: path != tmp_path / "o")
        with pytest.raises(OutputError, match="no permission to write in it"):
            ckptforge.to_ms(HUB, tmp_path / "o", overwrite=True)


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
@pytest.mark.parametrize("what", ["all", "out"])
def test_what_is_removed_under_a_run_is_not_put_in_place(tmp_path, name, what):
    """As those do who clean up temporary directories; the old output stays."""
    ckptforge.to_ms(HUB, tmp_path / name)
    before = tree(tmp_path / name)

    def progress(done, total):
        directory = staging.staging_path(tmp_path / name)
        shutil.rmtree(directory if what == "all" else directory / "out", ignore_errors=True)

    with pytest.raises(OutputError, match="was removed or replaced while it was written"):
        ckptforge.to_ms(HUB, tmp_path / name, layout="gmm", overwrite=True, progress=progress)
    assert tree(tmp_path / name) == before


def test_a_journal_that_cannot_be_read_is_not_thrown_away_unasked(tmp_path):
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.5)
    path = staging.staging_path(out) / "journal"
    path.write_bytes(b"0" + path.read_bytes())
    for resume in (False, True):
        with pytest.raises(LeftError, match="its journal can't be read"):
            ckptforge.to_ms(HUB, out, layout="gmm", resume=resume)
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)


def test_what_appears_in_a_directory_while_it_is_replaced_is_taken_along(tmp_path, monkeypatch):
    out = tmp_path / "o"
    ckptforge.to_ms(HUB, out)
    real = placing._exchange

    def exchange(a, b):
        (out / "late.txt").write_text("mine")
        return real(a, b)

    monkeypatch.setattr(placing, "_exchange", exchange)
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert (out / "late.txt").read_text() == "mine"


def test_errors_of_closing_hide_nothing(tmp_path, monkeypatch):
    real = os.close

    def close(fd):
        real(fd)
        raise OSError(errno.EDQUOT, "quota")

    def progress(done, total):
        monkeypatch.setattr(staging.os, "close", close)
        raise OutputError("the first")

    with pytest.raises(OutputError, match="the first"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", progress=progress)
    monkeypatch.undo()
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", overwrite=True)


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10's pathlib doesn't look functions of os up when they are called",
)
def test_clean_ends_with_1_for_what_cannot_be_removed(tmp_path, monkeypatch):
    interrupt(tmp_path / "x.ckpt", after=0.5)
    real = os.unlink

    def unlink(path, *args, **kwargs):
        if str(path).endswith("journal"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        found = ckptforge.clean(tmp_path)
    assert (
        not found.ok
        and not found.to_json()["ok"]
        and "can't be removed: Permission denied" in cleaned_text(found)
    )
    assert ckptforge.clean(tmp_path).ok and os.listdir(tmp_path) == []
