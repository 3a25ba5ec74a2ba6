"""An input that changes while it is read is an error, and no output is created."""

import os
import shutil
import time

import pytest

import ckptforge
from ckptforge.errors import FormatError, InputNotFoundError, ReadError
from tests.crash.common import on_a_disk
from tests.helpers import FIXTURES, HUB


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


def test_an_input_that_changes_between_its_index_and_the_run(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")

    def before(call):
        if call.name == "lock":
            os.utime(tmp_path / "hub" / "model-00001-of-00002.safetensors")

    with (
        on_a_disk(tmp_path, before),
        pytest.raises(
            FormatError, match="model-00001-of-00002.safetensors: was changed while it was read"
        ),
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_check_of_a_stored_crc_ends_when_the_run_does(tmp_path):
    index = ckptforge.formats.mindspore_ckpt.read_index(
        FIXTURES / "mindspore" / "bad" / "crc_mismatch.ckpt"
    )
    index.verify(memoryview(bytearray(64)), lambda: True)
    with pytest.raises(FormatError, match="crc32"):
        index.verify(memoryview(bytearray(64)), lambda: False)
