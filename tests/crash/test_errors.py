"""Errors of the system are ours, wherever they come, and what was finished is kept for a resume."""

import concurrent.futures
import errno
import os
import random
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

import ckptforge
from ckptforge.errors import OutputError, ReadError
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.testing.memory import Memory
from ckptforge.testing.store_tests import get
from ckptforge.testing.stores import FailingStore, counting, fail
from tests.crash.common import clean_all, on_a_disk
from tests.helpers import HUB, tiny_config, write_hub

pytestmark = pytest.mark.slow


def test_a_full_disk_is_resumable(tmp_path):
    """A real one: 600 kB of memory."""
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(
            OutputError, match=r"needs [\d,]+ bytes and [\d,]+ to spare, but only [\d,]+ are free"
        ):
            ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm")
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)

        def fill(done, total):
            """Others fill the disk only later."""
            with suppress(OSError), (disk / "other").open("ab", buffering=0) as other:
                other.write(bytes(3 << 20))

        with pytest.raises(OutputError, match="No space left on device") as error:
            ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm", workers=1, progress=fill)
        assert "resume=True" in error.value.__notes__[-1]
        assert sorted(os.listdir(disk)) == [".x.ckpt.ckptforge", "other"]
        (disk / "other").unlink()
        ckptforge.to_ms(HUB, disk / "x.ckpt", layout="gmm", resume=True)
        assert (disk / "x.ckpt").read_bytes() == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_memory_is_resumable(tmp_path):
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    memory = Memory(Path("/memory"), capacity=600_000)
    out = Path("/memory/x.ckpt")
    with mounted("/memory", memory):
        with pytest.raises(OutputError, match="No space left on device"):
            ckptforge.to_ms(HUB, out, layout="gmm")
        memory.nodes.capacity = 4_000_000

        def fill(done, total):
            memory.nodes.capacity = 900_000

        with pytest.raises(OutputError, match="No space left on device") as error:
            ckptforge.to_ms(HUB, out, layout="gmm", workers=1, progress=fill)
        assert "resume=True" in error.value.__notes__[-1]
        assert memory.names(out.parent) == [".x.ckpt.ckptforge"]
        memory.nodes.capacity = 4_000_000
        ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
        assert get(memory, out) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_write_errors_are_said_and_resumable(tmp_path, number):
    out = tmp_path / "x.ckpt"
    count, calls = counting({"write"})
    with on_a_disk(tmp_path, count):
        whole = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm", workers=1).output
    error = OSError(number, os.strerror(number))
    with (
        on_a_disk(tmp_path, fail(calls() * 7 // 8, error, {"write"}, ever=True)),
        pytest.raises(OutputError, match=os.strerror(number)) as raised,
    ):
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    assert "of 23 tensors are finished" in raised.value.__notes__[-1] and not out.exists()
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert out.read_bytes() == whole.read_bytes()


def test_read_errors_are_said_and_resumable(tmp_path):
    out = tmp_path / "x.ckpt"
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    bad = fail(60, OSError(errno.EIO, os.strerror(errno.EIO)), {"read_into"}, ever=True)
    with (
        on_a_disk(HUB, bad),
        pytest.raises(
            ReadError,
            match=r"model-0000\d-of-00002.safetensors: reading at byte \d+ "
            r"failed: Input/output error",
        ) as error,
    ):
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    assert "resume=True" in error.value.__notes__[-1]
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert out.read_bytes() == expected


def test_short_reads_and_short_writes_are_gone_on_with(tmp_path):
    expected = {
        layout: ckptforge.to_ms(HUB, tmp_path / f"{layout}.ckpt", layout=layout).output.read_bytes()
        for layout in ("dense", "gmm")
    }
    chance = random.Random(1)
    shortened = []

    def few(call):
        if call.name not in ("read_into", "write", "copy_from"):
            return None
        shortened.append(call.name)
        return max(1, call.length // chance.randrange(1, 9))

    with mounted("/", FailingStore(DISK, few)):
        for layout, content in expected.items():
            out = tmp_path / f"{layout}2.ckpt"
            assert ckptforge.to_ms(HUB, out, layout=layout).output.read_bytes() == content
            ckptforge.to_ms(HUB, out, layout=layout, no_hash=True, overwrite=True)
            assert out.read_bytes() == content
    assert set(shortened) == {"read_into", "write", "copy_from"}


@pytest.mark.parametrize(
    "name",
    [
        "create",
        "reopen",
        "make_directory",
        "sync",
        "sync_directory",
        "rename",
        "exchange",
        "link",
        "resize",
        "write",
        "set_mode",
        "unlink",
        "remove_directory",
        "names",
        "status",
        "room",
        "mounts_below",
        "close",
    ],
)
@pytest.mark.parametrize("output", ["new/x.ckpt", "new/dir", "dir"])
def test_errors_of_the_system_are_ours_wherever_they_come(tmp_path, name, output):
    """The n-th call fails, for every n."""
    write_hub(tmp_path / "hub", tiny_config())
    place = tmp_path / "place"
    (place / "dir").mkdir(parents=True)
    (place / "dir" / "notes.txt").write_text("mine")
    out = place / output
    for n in range(1, 300):
        count, calls = counting({name})
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        bad = fail(n, error, {name})
        with (
            on_a_disk(place, lambda call: bad(call) or count(call)),  # noqa: B023
            suppress(ckptforge.CkptforgeError),
        ):
            ckptforge.to_ms(tmp_path / "hub", out, layout="gmm", overwrite=True, workers=1)
        if calls() < n - 1:
            break
        clean_all(place, place / "new", place / "new" / "dir")
    else:
        pytest.fail(f"{name} is called without end")
    assert out.exists() and (place / "dir" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ETXTBSY, 524, None])
def test_where_the_kernel_does_not_copy_the_bytes_are_read_and_written(tmp_path, number):
    calls = []

    def refuse(call):
        if call.name != "copy_from":
            return None
        calls.append(call)
        if number is None:
            return 0  # as old kernels do in /proc and the like
        raise OSError(number, "refused")

    with on_a_disk(tmp_path, refuse):
        ckptforge.convert(HUB, tmp_path / "a", to="hub", no_hash=True)
    expected = {path.name: path.read_bytes() for path in HUB.glob("*.safetensors")}
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.safetensors")
    } == expected and calls


def test_errors_of_closing_hide_nothing(tmp_path):
    stopped = []

    def close(call):
        if call.name == "close" and stopped:
            raise OSError(errno.EDQUOT, "quota")

    def progress(done, total):
        stopped.append(done)
        raise OutputError("the first")

    with on_a_disk(tmp_path, after=close), pytest.raises(OutputError, match="the first"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", progress=progress)
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", overwrite=True)


@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started(tmp_path, monkeypatch, started):
    executor = concurrent.futures.ThreadPoolExecutor
    real, count = executor.submit, [0]

    def submit(*args):
        count[0] += 1
        if count[0] > started:
            raise RuntimeError("can't start new thread")
        return real(*args)

    monkeypatch.setattr(executor, "submit", submit)
    if started:
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=4)
        monkeypatch.undo()
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt")
        assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "y.ckpt").read_bytes()
    else:
        with pytest.raises(OutputError, match="no thread can be started"):
            ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=4)
