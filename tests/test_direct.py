"""Disks read and written past the page cache give and take the same bytes."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import UsageError
from ckptforge.storage import direct
from ckptforge.storage.direct import DIRECT_DISK, LEAST_BYTES
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.storage.local import DISK
from ckptforge.storage.machine import PAGE
from ckptforge.storage.mounts import disk
from ckptforge.testing.store_tests import FileSystemTests
from tests.helpers import HUB, tiny_config, write_hub
from tests.test_machines import same_outputs

SIZE = 3 * direct.MOST_BYTES + 77
CONTENT = bytes(range(251)) * (SIZE // 251 + 1)


class TestDirectDisk(FileSystemTests):
    @pytest.fixture
    def disk(self):
        return DIRECT_DISK

    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("direct")


@pytest.fixture
def past_the_cache(place, monkeypatch):
    """What is read and written past the page cache, as (call, offset, bytes)."""
    found = []
    with closing(DIRECT_DISK.create(place / "probe")) as writer:
        if writer.direct is None or not _takes(writer):
            pytest.skip("this file system has no direct I/O")

    def spied(name):
        call = getattr(os, name)

        def spy(fd, data, offset):
            count = call(fd, data, offset)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                found.append((name, offset, count))
            return count

        return spy

    for name in ("pwrite", "preadv"):
        monkeypatch.setattr(os, name, spied(name))
    return found


def _takes(writer):
    with suppress(OSError):
        return os.pwrite(writer.direct, direct._memory()[:PAGE], 0) == PAGE
    return False


spans = st.tuples(st.integers(0, SIZE), st.integers(0, 2 * direct.MOST_BYTES))


@settings(max_examples=60)
@given(written=st.lists(spans, max_size=6), read=st.lists(spans, max_size=6))
def test_the_same_bytes_at_any_offset(place, written, read):
    (place / "a").write_bytes(bytes(SIZE))
    expected = bytearray(SIZE)
    with closing(DIRECT_DISK.reopen(place / "a")) as writer:
        for at, length in written:
            piece = memoryview(CONTENT)[at : min(at + length, SIZE)]
            write_exactly(writer, at, piece, place / "a")
            expected[at : at + len(piece)] = piece
        writer.sync()
    assert (place / "a").read_bytes() == expected
    with closing(DIRECT_DISK.open(place / "a")) as reader:
        for at, length in read:
            into = bytearray(min(at + length, SIZE) - at)
            read_exactly(reader, at, memoryview(into), place / "a")
            assert into == expected[at : at + length]
        assert reader.read_into(SIZE, memoryview(bytearray(LEAST_BYTES))) == 0
        assert reader.read_into(SIZE - 5, memoryview(bytearray(LEAST_BYTES))) == 5


def test_whole_pages_go_past_the_cache(place, past_the_cache):
    with closing(DIRECT_DISK.create(place / "b")) as writer:
        write_exactly(writer, 100, memoryview(CONTENT)[: 5 * LEAST_BYTES], place / "b")
        write_exactly(writer, 0, b"small", place / "b")
    with closing(DIRECT_DISK.open(place / "b")) as reader:
        read_exactly(reader, 7, memoryview(bytearray(4 * LEAST_BYTES)), place / "b")
    assert past_the_cache == [
        ("pwrite", PAGE, 5 * LEAST_BYTES - PAGE),
        ("preadv", 0, 4 * LEAST_BYTES + PAGE),
    ]


def test_a_file_system_without_it_is_written_as_ever(place, monkeypatch):
    monkeypatch.setattr(direct, "_again", lambda fd, access: None)
    with closing(DIRECT_DISK.create(place / "c")) as writer:
        write_exactly(writer, 0, memoryview(CONTENT), place / "c")
    with closing(DIRECT_DISK.open(place / "c")) as reader:
        into = bytearray(len(CONTENT))
        read_exactly(reader, 0, memoryview(into), place / "c")
    assert into == CONTENT


def test_jobs_write_the_same(tmp_path, past_the_cache):
    write_hub(tmp_path / "hub", tiny_config(hidden_size=256, intermediate_size=512))
    ways = {"layout": "gmm"}
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "buffered", **ways)
    assert not past_the_cache
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "direct", io="direct", **ways)
    assert {name for name, _, _ in past_the_cache} == {"pwrite", "preadv"}
    assert disk() is DISK
    assert same_outputs(tmp_path / "direct", tmp_path / "buffered")


def test_another_word(tmp_path):
    with pytest.raises(UsageError, match="io='fast': expected buffered or direct"):
        ckptforge.to_ms(HUB, tmp_path / "out", io="fast")
    assert not (tmp_path / "out").exists()


def test_calls_in_other_threads_have_disks_of_their_own(tmp_path, past_the_cache):
    """Each waits in its progress until the other is under way."""
    write_hub(tmp_path / "hub", tiny_config(hidden_size=256, intermediate_size=512))
    both, found = Barrier(2, timeout=60), {}

    def convert(io):
        def progress(done, total):
            if io not in found:
                both.wait()
                found[io] = disk()

        ckptforge.to_ms(tmp_path / "hub", tmp_path / io, layout="gmm", io=io, progress=progress)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(convert, ("direct", "buffered")))
    assert found == {"direct": DIRECT_DISK, "buffered": DISK}
    assert same_outputs(tmp_path / "direct", tmp_path / "buffered")
