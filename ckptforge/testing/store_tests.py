"""What every file system must do, as tests that run with pytest. For a store of one's own:

class TestMyStore(FileSystemTests):
    @pytest.fixture
    def disk(self): return MyStore(...)

    @pytest.fixture
    def place(self): return Path("/a/directory/of/it")
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptforge.publish.file_system import FileSystem
from ckptforge.publish.tree import disk_bytes, lies_at, names_in, remove_tree
from ckptforge.storage.store import Kind


def put(disk: FileSystem, path: Path, content: bytes) -> None:
    """Writes a file."""
    writer = disk.create(path)
    writer.resize(0)
    assert writer.write(0, memoryview(content)) == len(content)
    writer.sync()
    writer.close()


def get(disk: FileSystem, path: Path) -> bytes:
    """A file's contents."""
    reader = disk.open(path)
    assert reader is not None
    buffer = bytearray(reader.status().size + 1)
    count = reader.read_into(0, memoryview(buffer))
    reader.close()
    return bytes(buffer[:count])


def refused(action: Callable[[], object], *numbers: int) -> None:
    """Asserts that an action is an error of the system's."""
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno in numbers, caught.value


class FileSystemTests:
    """`disk` is the file system, `place` an empty directory in it."""

    def test_a_file_holds_what_was_written_at_its_places(
        self, disk: FileSystem, place: Path
    ) -> None:
        writer = disk.create(place / "a")
        writer.resize(6)
        assert writer.write(4, memoryview(b"ef")) == 2
        assert writer.write(0, memoryview(b"ab")) == 2
        assert writer.write(6, memoryview(b"g")) == 1
        writer.begin_sync(0, 7)
        writer.sync()
        assert get(disk, place / "a") == b"ab\0\0efg"
        writer.begin_read(0, 7)
        writer.drop_cached(0, 7)
        part = bytearray(9)
        assert writer.read_into(4, memoryview(part)) == 3 and part[:3] == b"efg"
        assert writer.read_into(7, memoryview(part)) == 0
        writer.resize(1)
        writer.close()
        assert get(disk, place / "a") == b"a"

    def test_create_keeps_what_is_there(self, disk: FileSystem, place: Path) -> None:
        put(disk, place / "a", b"abc")
        again = disk.create(place / "a")
        again.write(1, memoryview(b"x"))
        again.close()
        assert get(disk, place / "a") == b"axc"
        found = disk.reopen(place / "a")
        assert found is not None
        found.close()
        refused(lambda: disk.reopen(place / "b"), errno.ENOENT)
        refused(lambda: disk.create(place / "no" / "b"), errno.ENOENT)

    def test_bytes_are_copied_or_none_at_all(self, disk: FileSystem, place: Path) -> None:
        put(disk, place / "a", b"abcdef")
        reader, writer = disk.open(place / "a"), disk.create(place / "b")
        assert reader is not None
        try:
            done = writer.copy_from(reader, 1, 2, 3)
        except OSError:
            done = 0
        assert get(disk, place / "b") in (b"", b"\0\0bcd"[: 2 + done])
        reader.close()
        writer.close()

    def test_status_says_what_has_a_name(self, disk: FileSystem, place: Path) -> None:
        put(disk, place / "a", b"abc")
        disk.make_directory(place / "d")
        file, directory = disk.status(place / "a"), disk.status(place / "d")
        assert (file.kind, file.size, directory.kind) == (Kind.FILE, 3, Kind.DIRECTORY)
        assert file.number != directory.number
        opened = disk.open(place / "a")
        assert opened is not None and opened.status() == file
        opened.close()
        assert sorted(disk.names(place)) == ["a", "d"]
        assert disk.open(place / "d") is None
        refused(lambda: disk.status(place / "b"), errno.ENOENT)
        refused(lambda: disk.open(place / "b"), errno.ENOENT)
        refused(lambda: disk.status(place / "a" / "b"), errno.ENOTDIR)
        refused(lambda: disk.names(place / "a"), errno.ENOTDIR)
        disk.set_mode(place / "a", 0o640)
        assert disk.status(place / "a").mode == 0o640
        assert disk.real_path(place / "d" / ".." / "a") == disk.real_path(place) / "a"

    def test_a_rename_replaces_files_and_empty_directories(
        self, disk: FileSystem, place: Path
    ) -> None:
        for name in "abc":
            put(disk, place / name, name.encode())
        number = disk.status(place / "a").number
        disk.rename(place / "a", place / "b")
        assert get(disk, place / "b") == b"a" and disk.status(place / "b").number == number
        for name in "def":
            disk.make_directory(place / name)
        put(disk, place / "d" / "x", b"x")
        disk.rename(place / "d", place / "e")
        assert names_in(disk, place) == ["b", "c", "e/x"]
        refused(lambda: disk.rename(place / "f", place / "e"), errno.ENOTEMPTY, errno.EEXIST)
        refused(lambda: disk.rename(place / "c", place / "e"), errno.EISDIR)
        refused(lambda: disk.rename(place / "e", place / "c"), errno.ENOTDIR)
        refused(lambda: disk.rename(place / "e", place / "e" / "f"), errno.EINVAL)
        refused(lambda: disk.rename(place / "no", place / "c"), errno.ENOENT)

    def test_an_open_file_is_the_same_under_another_name(
        self, disk: FileSystem, place: Path
    ) -> None:
        put(disk, place / "a", b"abc")
        reader = disk.open(place / "a")
        assert reader is not None
        put(disk, place / "b", b"x")
        disk.rename(place / "b", place / "a")
        part = bytearray(3)
        assert reader.read_into(0, memoryview(part)) == 3 and part == b"abc"
        assert reader.status().number != disk.status(place / "a").number
        reader.close()

    def test_names_are_exchanged_or_that_is_an_error(self, disk: FileSystem, place: Path) -> None:
        disk.make_directory(place / "d")
        put(disk, place / "d" / "x", b"x")
        put(disk, place / "a", b"a")
        try:
            disk.exchange(place / "d", place / "a")
        except OSError:
            assert names_in(disk, place) == ["a", "d/x"]
        else:
            assert names_in(disk, place) == ["d", "a/x"]

    def test_a_link_is_a_second_name(self, disk: FileSystem, place: Path) -> None:
        put(disk, place / "a", b"a")
        try:
            disk.link(place / "a", place / "b")
        except OSError:
            disk.copy(place / "a", place / "b")
        else:
            assert disk.status(place / "a").number == disk.status(place / "b").number
        disk.unlink(place / "a")
        assert get(disk, place / "b") == b"a"
        put(disk, place / "c", b"c")
        refused(lambda: disk.link(place / "c", place / "b"), errno.EEXIST, errno.EPERM)

    def test_a_copy_has_the_mode_and_the_time(self, disk: FileSystem, place: Path) -> None:
        put(disk, place / "a", b"abc")
        disk.set_mode(place / "a", 0o604)
        disk.copy(place / "a", place / "b")
        a, b = disk.status(place / "a"), disk.status(place / "b")
        assert get(disk, place / "b") == b"abc" and a.number != b.number
        assert (a.mode, a.mtime_ns) == (b.mode, b.mtime_ns)

    def test_what_is_not_empty_is_not_removed(self, disk: FileSystem, place: Path) -> None:
        disk.make_directory(place / "d")
        put(disk, place / "d" / "x", b"x")
        refused(lambda: disk.make_directory(place / "d"), errno.EEXIST)
        refused(lambda: disk.remove_directory(place / "d"), errno.ENOTEMPTY, errno.EEXIST)
        refused(lambda: disk.unlink(place / "d"), errno.EISDIR, errno.EPERM)
        refused(lambda: disk.remove_directory(place / "d" / "x"), errno.ENOTDIR)
        refused(lambda: disk.unlink(place / "no"), errno.ENOENT)
        assert disk_bytes(disk, place) > 0
        disk.sync_directory(place)
        remove_tree(disk, place / "d")
        assert not lies_at(disk, place / "d") and lies_at(disk, place, Kind.DIRECTORY)

    def test_one_has_the_lock(self, disk: FileSystem, place: Path) -> None:
        first, second = disk.create(place / "lock"), disk.create(place / "lock")
        assert first.lock()
        if second.lock():
            return  # a file system without locks
        first.close()
        assert second.lock()
        second.close()

    def test_several_share_a_lock_that_none_has_alone(self, disk: FileSystem, place: Path) -> None:
        first, second, third = (disk.create(place / "lock") for _ in range(3))
        assert first.lock(shared=True) and second.lock(shared=True)
        if third.lock():
            return  # a file system without locks
        first.close()
        assert not third.lock()
        second.close()
        assert third.lock()
        third.close()

    def test_there_is_room_and_nothing_is_mounted(self, disk: FileSystem, place: Path) -> None:
        disk.make_directory(place / "d")
        room = disk.room(place)
        assert room.permitted and not room.read_only and room.free_bytes > 0
        assert disk.mounts_below(place / "d") == []
