"""Resumed, a run goes on with what is on the disk as its journal says, and with nothing else."""

import errno
import os
import shutil

import pytest

import ckptforge
from ckptforge.errors import InputNotFoundError, LeftError, OutputError, ReadError
from ckptforge.publish.directory import staging_path
from ckptforge.publish.journal import journal_line
from ckptforge.testing.stores import fail_when
from tests.crash.common import interrupt, on_a_disk, stopped_while_placed, tree
from tests.helpers import HUB


@pytest.mark.parametrize("damage", ["byte", "short", "gone", "journal"])
def test_what_is_on_the_disk_is_checked_not_trusted(tmp_path, damage):
    expected = ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout="gmm").output.read_bytes()
    out = tmp_path / "b.ckpt"
    interrupt(out, after=0.6)
    work = staging_path(out)
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


def test_what_was_finished_is_not_made_again(tmp_path):
    out = tmp_path / "b.ckpt"
    interrupt(out, after=0.6)
    written, shown = [], []

    def before(call):
        if call.name in ("write", "copy_from") and call.path.name == out.name:
            written.append(call.length)

    with on_a_disk(tmp_path, before):
        ckptforge.to_ms(
            HUB,
            out,
            layout="gmm",
            resume=True,
            progress=lambda done, total: shown.append((done, total)),
        )
    assert 0 < sum(written) < 0.6 * out.stat().st_size
    assert shown[0][0] > 0.5 * shown[0][1] and shown[-1][0] == shown[-1][1]


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
def test_what_does_not_belong_together_is_not_resumed(tmp_path, change, reason):
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
        journal = staging_path(out) / "journal"
        first, *rest = (line.partition(b" ")[2] for line in journal.read_bytes().splitlines())
        old = first.replace(
            f'"ckptforge":"{ckptforge.__version__}"'.encode(), b'"ckptforge":"0.0.9"'
        )
        journal.write_bytes(b"".join(map(journal_line, (old, *rest))))
    else:
        hub = hub.rename(tmp_path / "moved")
    left = tree(staging_path(out))
    with pytest.raises(LeftError, match=reason):
        ckptforge.to_ms(hub, out, resume=True, **options)
    assert tree(staging_path(out)).keys() == left.keys() and not out.exists()
    ckptforge.to_ms(hub, out, overwrite=True, **options)  # begins anew
    assert ckptforge.check(out).problems == [] and not staging_path(out).exists()


def test_without_hashes_nothing_is_kept(tmp_path):
    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", no_hash=True, progress=progress)
    assert os.listdir(tmp_path) == []


def test_what_was_written_is_checked_again_before_it_is_put_in_place(tmp_path):
    expected = tree(ckptforge.to_ms(HUB, tmp_path / "whole").output)
    stopped_while_placed(tmp_path / "o")
    victim = staging_path(tmp_path / "o") / "out" / "rank_0" / "checkpoint_0.ckpt"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    ckptforge.to_ms(HUB, tmp_path / "o", resume=True)
    assert tree(tmp_path / "o") == expected


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
def test_a_finished_output_of_another_command_is_not_put_in_place(tmp_path, name):
    stopped_while_placed(tmp_path / name)
    for options in ({"layout": "gmm"}, {"layout": "gmm", "resume": True}):
        with pytest.raises(LeftError):
            ckptforge.to_ms(HUB, tmp_path / name, **options)
    assert sorted(os.listdir(tmp_path)) == [f".{name}.ckptforge"]
    if name == "o":
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt")
        with pytest.raises(LeftError):  # of the other kind
            ckptforge.to_torch(tmp_path / "y.ckpt", tmp_path / name)
    assert not (tmp_path / name).exists() and not (tmp_path / "config.json").exists()


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
    assert "resume=True" in error.value.__notes__[-1] and (staging_path(out) / "journal").exists()


def test_half_a_line_of_the_journal_loses_nothing_before_it(tmp_path):
    """Of a line, half is written, and then the disk is full."""
    out = tmp_path / "x.ckpt"
    lines = []

    def short(call):
        if call.name != "write" or call.path.name != "journal":
            return None
        lines.append(call)
        if len(lines) > 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call.length // 2 if len(lines) == 25 else None

    with (
        on_a_disk(tmp_path, short),
        pytest.raises(OutputError, match="journal: can't be written: No space left"),
    ):
        ckptforge.to_ms(HUB, out, layout="gmm", workers=1)
    content = (staging_path(out) / "journal").read_bytes()
    assert content.endswith(b"\n") and content.count(b"\n") == 24
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True)
    assert ckptforge.check(out).problems == []


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EMFILE, "too many")])
@pytest.mark.parametrize("place", ["reopen", "read_into", "resize"])
def test_what_stops_a_run_that_has_not_begun_removes_nothing(tmp_path, resume, error, place):
    """While it reads the journal of the one before."""
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.4)
    before = tree(staging_path(out) / "out")
    reading = fail_when(lambda call: call.name == place and call.path.name == "journal", error)
    with on_a_disk(tmp_path, reading), pytest.raises((KeyboardInterrupt, OutputError)):
        ckptforge.to_ms(HUB, out, layout="gmm", resume=resume)
    assert tree(staging_path(out) / "out") == before
    ckptforge.to_ms(HUB, out, layout="gmm", resume=True, workers=1)


def test_a_line_of_the_journal_that_is_not_as_it_was_written_ends_it(tmp_path):
    expected = tree(ckptforge.to_ms(HUB, tmp_path / "whole.ckpt", layout="gmm").output)
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.5)
    path = staging_path(out) / "journal"
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


def test_a_journal_that_cannot_be_read_is_not_thrown_away_unasked(tmp_path):
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.5)
    path = staging_path(out) / "journal"
    path.write_bytes(b"0" + path.read_bytes())
    for resume in (False, True):
        with pytest.raises(LeftError, match="its journal can't be read"):
            ckptforge.to_ms(HUB, out, layout="gmm", resume=resume)
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)


def test_our_own_files_may_be_links_nowhere(tmp_path):
    out = tmp_path / "x.ckpt"
    interrupt(out, after=0.4)
    kept = staging_path(out) / "out"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    shutil.rmtree(kept)
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link"):
        ckptforge.to_ms(HUB, out, layout="gmm", resume=True, workers=1)
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
