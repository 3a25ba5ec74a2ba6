"""The file systems that are ours do what every file system must."""

import errno
import threading
from pathlib import Path

import pytest

import ckptforge
from ckptforge.errors import OutputError, UsageError
from ckptforge.foreign.files import read_small
from ckptforge.foreign.paths import is_file
from ckptforge.publish.file_system import FileSystem
from ckptforge.storage.files import read_exactly, write_exactly
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted, store_of
from ckptforge.storage.store import Kind
from ckptforge.testing.memory import Memory
from ckptforge.testing.store_tests import FileSystemTests, get, put
from ckptforge.testing.stores import FailingStore
from tests.helpers import HUB


class TestDisk(FileSystemTests):
    @pytest.fixture
    def disk(self):
        return DISK

    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path


class TestMemory(FileSystemTests):
    @pytest.fixture
    def disk(self, place):
        return Memory(place)

    @pytest.fixture
    def place(self):
        return Path("/nowhere/at/all")


class TestFailingStoreWithoutFaults(FileSystemTests):
    @pytest.fixture
    def disk(self, place):
        return FailingStore(Memory(place))

    @pytest.fixture
    def place(self):
        return Path("/nowhere")


def test_they_are_file_systems():
    for store in (DISK, Memory(Path("/m")), FailingStore(DISK)):
        assert isinstance(store, FileSystem)


def test_links_in_memory_lead_where_the_systems_do(tmp_path):
    memory = Memory(tmp_path)

    def link(path, target):
        memory.make_link(path, target)
        path.symlink_to(target)

    for disk in (memory, DISK):
        disk.make_directory(tmp_path / "d")
        put(disk, tmp_path / "d" / "x", b"x")
    link(tmp_path / "up", "../" + tmp_path.name + "/d")
    link(tmp_path / "loop", "loop")
    link(tmp_path / "d" / "far", str(tmp_path / "d" / "x"))
    link(tmp_path / "gone", "nowhere")
    for name in ("up", "up/x", "up/far", "loop", "loop/x", "gone", "d/x/../x", "up/../d"):
        found = []
        for disk in (memory, DISK):
            try:
                found.append(disk.status(tmp_path / name).kind)
            except OSError as error:
                found.append(error.errno)
        assert found[0] == found[1], name
        if name not in ("loop", "loop/x"):
            assert memory.real_path(tmp_path / name) == DISK.real_path(tmp_path / name), name
    with pytest.raises(OSError, match="symbolic links"):
        memory.create(tmp_path / "gone")
    memory.copy(tmp_path / "up", tmp_path / "copy")
    assert memory.status(tmp_path / "copy", follow=False).kind is Kind.LINK


def test_a_memory_has_no_more_than_its_capacity():
    memory = Memory(Path("/m"), capacity=10)
    put(memory, Path("/m/a"), b"12345678")
    with pytest.raises(OutputError, match="/m/b: writing at byte 0 failed: No space left"):
        write_exactly(memory.create(Path("/m/b")), 0, b"123", Path("/m/b"))
    memory.unlink(Path("/m/a"))
    put(memory, Path("/m/b"), b"1234567890")
    assert memory.room(Path("/m")).free_bytes == 0


def test_a_path_finds_the_store_that_is_mounted_there(tmp_path, monkeypatch):
    memory, inner = Memory(tmp_path / "m"), Memory(tmp_path / "m" / "inner")
    with mounted(tmp_path / "m", memory), mounted(tmp_path / "m" / "inner", inner):
        assert store_of(tmp_path / "m") is store_of(tmp_path / "m" / "x") is memory
        assert store_of(tmp_path / "m" / "inner" / "x") is inner
        assert store_of(tmp_path / "m" / "inner" / ".." / "x") is memory
        assert store_of(tmp_path / "mx") is store_of(tmp_path) is DISK
        monkeypatch.chdir(tmp_path)
        assert store_of(Path("m/x")) is memory
    assert store_of(tmp_path / "m") is DISK


def test_a_model_goes_through_memory_and_back(tmp_path):
    """By an address, and without a file on the disk."""
    memory = Memory(Path("memory:"))
    with pytest.raises(UsageError, match="nowhere://x.ckpt: is an address"):
        ckptforge.to_ms(HUB, Path("nowhere://x.ckpt"))
    with mounted("memory://", memory):
        ckptforge.to_ms(HUB, "memory://d/x.ckpt", layout="gmm")
        assert memory.names(Path("memory://d")) == ["x.ckpt", "x.ckpt.manifest.json"]
        assert ckptforge.check("memory://d/x.ckpt").equal
        assert ckptforge.compare(HUB, "memory://d/x.ckpt").equal
        ckptforge.to_torch("memory://d/x.ckpt", "memory://hf")
        ckptforge.to_torch("memory://d/x.ckpt", tmp_path / "hf")
        for path in (tmp_path / "hf").iterdir():
            if "manifest" not in path.name:  # that has times
                assert get(memory, Path("memory://hf") / path.name) == path.read_bytes()
        assert is_file(Path("memory://hf/config.json"))
        with pytest.raises(OutputError, match="exists already"):
            ckptforge.to_torch("memory://d/x.ckpt", "memory://hf")
    assert list(tmp_path.iterdir()) == [tmp_path / "hf"]


class OnlyRead:
    """A store that is no file system."""

    def __init__(self, inner):
        self.status, self.names = inner.status, inner.names
        self.open, self.real_path = inner.open, inner.real_path


def test_a_store_without_renames_can_be_read_from(tmp_path):
    with mounted(HUB, OnlyRead(DISK)):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
        assert ckptforge.compare(HUB, tmp_path / "x.ckpt").equal
    with mounted(tmp_path, OnlyRead(DISK)):
        with pytest.raises(OutputError, match=r"y.ckpt: lies in a store that can only be read"):
            ckptforge.to_ms(HUB, tmp_path / "y.ckpt")
        assert ckptforge.check(tmp_path / "x.ckpt").equal


def test_threads_write_into_one_file_in_memory():
    memory = Memory(Path("/m"))
    file = memory.create(Path("/m/a"))
    file.resize(8 * 1000)

    def write(i):
        for at in range(i, 1000, 8):
            write_exactly(file, at * 8, bytes([i]) * 8, Path("/m/a"))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get(memory, Path("/m/a")) == b"".join(bytes([at % 8]) * 8 for at in range(1000))


def test_reads_that_are_short_are_gone_on_with():
    memory = Memory(Path("/m"))
    content = bytes(range(250))
    put(memory, Path("/m/a"), content)
    few = FailingStore(memory, lambda call: 7 if call.name in ("read_into", "write") else None)
    with mounted("/m", few):
        assert read_small(Path("/m/a"), 250) == content
        buffer = bytearray(100)
        read_exactly(few.open(Path("/m/a")), 50, memoryview(buffer), Path("/m/a"))
        assert buffer == content[50:150]
        write_exactly(few.create(Path("/m/b")), 3, content, Path("/m/b"))
    assert get(memory, Path("/m/b")) == b"\0\0\0" + content


def test_a_failing_store_says_what_was_called():
    calls = []
    memory = Memory(Path("/m"))
    store = FailingStore(memory, calls.append, calls.append)
    put(store, Path("/m/a"), b"abc")
    store.rename(Path("/m/a"), Path("/m/b"))
    assert [call.name for call in calls[::2]][:2] == ["create", "resize"]
    assert calls[-1][:3] == ("rename", Path("/m/a"), Path("/m/b"))

    def fault(call):
        raise OSError(errno.EIO, "bad")

    with pytest.raises(OSError, match="bad"):
        FailingStore(memory, fault).unlink(Path("/m/b"))
    assert memory.names(Path("/m")) == ["b"]
