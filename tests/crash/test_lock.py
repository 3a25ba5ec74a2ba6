"""One run at a time makes an output, in a directory that is its own."""

import os
import sys

import pytest

import ckptforge
from ckptforge.cli.text import cleaned_text
from ckptforge.errors import InputNotFoundError, OutputError
from ckptforge.testing.stores import kill
from tests.crash.common import in_a_process, interrupt, on_a_disk
from tests.helpers import HUB


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


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_dead_process_keeps_no_lock(tmp_path):
    def killed():
        with on_a_disk(tmp_path, kill(50)):
            ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")

    in_a_process(killed)
    assert (tmp_path / ".x.ckpt.ckptforge" / "lock").exists()
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm", resume=True)


def test_a_staging_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("p")
    (tmp_path / ".x.ckpt.ckptforge").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link, which no run"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    assert os.listdir(tmp_path / "elsewhere") == ["precious"]


def test_what_is_no_directory_by_the_name_of_ours_is_named(tmp_path):
    (tmp_path / ".x.ckpt.ckptforge").write_text("mine")
    with pytest.raises(OutputError, match=r"\.x\.ckpt\.ckptforge: isn't a directory, so no run"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", overwrite=True)
    assert (tmp_path / ".x.ckpt.ckptforge").read_text() == "mine"


def test_a_directory_of_others_by_the_name_of_ours_is_let_alone(tmp_path):
    (tmp_path / ".o.ckptforge").mkdir()
    (tmp_path / ".o.ckptforge" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes.txt, which no run"):
        ckptforge.to_ms(HUB, tmp_path / "o")
    assert (tmp_path / ".o.ckptforge" / "notes.txt").read_text() == "mine"


def test_unfinished_outputs_are_not_read(tmp_path):
    interrupt(tmp_path / "x.ckpt", after=0.6)
    for path in (
        tmp_path / ".x.ckpt.ckptforge" / "out" / "x.ckpt",
        tmp_path / ".x.ckpt.ckptforge" / "out",
    ):
        with pytest.raises(InputNotFoundError, match="is the unfinished output of a run"):
            ckptforge.inspect(path)
