"""`clean` removes what runs left, and nothing else."""

import errno
import os
import subprocess
import sys

import pytest

import ckptforge
from ckptforge.cli.text import cleaned_text
from ckptforge.errors import InputNotFoundError
from ckptforge.testing.stores import fail_when
from tests.crash.common import interrupt, on_a_disk, stopped_while_placed


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


def test_clean_finds_small_files_of_dead_processes_and_says_what_was_whole(tmp_path):
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
    stopped_while_placed(tmp_path / "x.ckpt")
    text = cleaned_text(ckptforge.clean(tmp_path))
    assert (
        "x.ckpt.ckptforge" in text
        and "whole, but not put in place" in text
        and f"process {os.getpid()} may be writing it" in text
    )
    assert [path.name for path in tmp_path.iterdir()] == [ours.name]


def test_clean_ends_with_1_for_what_cannot_be_removed(tmp_path):
    interrupt(tmp_path / "x.ckpt", after=0.5)
    removing = fail_when(
        lambda call: call.name == "unlink" and call.path.name == "journal",
        PermissionError(errno.EACCES, "Permission denied", "journal"),
    )
    with on_a_disk(tmp_path, removing):
        found = ckptforge.clean(tmp_path)
    assert (
        not found.ok
        and not found.to_json()["ok"]
        and "can't be removed: Permission denied" in cleaned_text(found)
    )
    assert ckptforge.clean(tmp_path).ok and os.listdir(tmp_path) == []
