"""What is replaced stays until the new output is whole; what isn't ours stays, whatever happens."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

import ckptforge
from ckptforge.errors import OutputError
from ckptforge.publish.directory import staging_path
from ckptforge.storage.mounts import mounted
from ckptforge.storage.store import Room
from ckptforge.testing.stores import fail_when
from tests.crash.common import on_a_disk, tree
from tests.helpers import HUB, WithRoom


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


def test_a_users_file_is_taken_along_as_it_is_at_last(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "o")
    (tmp_path / "o" / "notes").write_text("old")
    exchanging = fail_when(lambda call: call.name == "exchange", KeyboardInterrupt())
    with on_a_disk(tmp_path, exchanging), pytest.raises(KeyboardInterrupt):
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


def test_modes_that_hinder_nobody(tmp_path):
    """A file of mode 0400, stopped after its replacement got that; a directory without permission
    to write."""
    out = tmp_path / "x.ckpt"
    ckptforge.to_ms(HUB, out)
    out.chmod(0o400)
    renaming = fail_when(lambda call: call.name == "rename", KeyboardInterrupt())
    with on_a_disk(tmp_path, renaming), pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    left = staging_path(out) / "out" / "x.ckpt"
    assert left.stat().st_mode & 0o777 == 0o400
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True, resume=True)
    assert out.stat().st_mode & 0o777 == 0o400
    ckptforge.to_ms(HUB, tmp_path / "o")
    with (
        mounted(tmp_path, WithRoom({tmp_path / "o": Room(1 << 40, False, False)})),
        pytest.raises(OutputError, match="no permission to write in it"),
    ):
        ckptforge.to_ms(HUB, tmp_path / "o", overwrite=True)


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
@pytest.mark.parametrize("what", ["all", "out"])
def test_what_is_removed_under_a_run_is_not_put_in_place(tmp_path, name, what):
    """As those do who clean up temporary directories; the old output stays."""
    ckptforge.to_ms(HUB, tmp_path / name)
    before = tree(tmp_path / name)

    def progress(done, total):
        directory = staging_path(tmp_path / name)
        shutil.rmtree(directory if what == "all" else directory / "out", ignore_errors=True)

    with pytest.raises(OutputError, match="was removed or replaced while it was written"):
        ckptforge.to_ms(HUB, tmp_path / name, layout="gmm", overwrite=True, progress=progress)
    assert tree(tmp_path / name) == before


def test_what_appears_in_a_directory_while_it_is_replaced_is_taken_along(tmp_path):
    out = tmp_path / "o"
    ckptforge.to_ms(HUB, out)

    def before(call):
        if call.name == "exchange":
            (out / "late.txt").write_text("mine")

    with on_a_disk(tmp_path, before):
        ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert (out / "late.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_listed_is_not_lost(tmp_path):
    out = tmp_path / "o"
    ckptforge.to_ms(HUB, out)
    (out / "private").mkdir()
    (out / "private" / "notes.txt").write_text("mine")
    private = str(out / "private")
    listing = fail_when(
        lambda call: call.name == "names" and str(call.path) == private,
        PermissionError(errno.EACCES, "Permission denied", private),
    )
    with on_a_disk(tmp_path, listing), pytest.raises(OutputError, match="private"):
        ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert (out / "private" / "notes.txt").read_text() == "mine" and os.listdir(tmp_path) == ["o"]


def test_names_that_are_not_unicode(tmp_path):
    hub = os.fsdecode(os.fsencode(tmp_path) + b"/h\xff")
    shutil.copytree(HUB, hub)
    command = [sys.executable, "-m", "ckptforge", "to-ms", hub, str(tmp_path / "x.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "x.ckpt.manifest.json").exists(), done.stderr
    with pytest.raises(OutputError, match="isn't Unicode"):
        ckptforge.to_ms(HUB, hub + ".ckpt")
