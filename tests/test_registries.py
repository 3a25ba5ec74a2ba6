"""What is added to formats and kinds of directories, by a program or by other packages."""

import subprocess
import sys
from pathlib import Path

import pytest

import ckptforge
from ckptforge.checkpoints.files import of_a_format, read_file
from ckptforge.checkpoints.kinds import KINDS
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import CkptforgeError, FormatError, UsageError
from ckptforge.foreign.stream import index_of, parsing
from ckptforge.formats import mindspore_ckpt
from ckptforge.formats.index import FileIndex
from ckptforge.formats.registry import FORMATS, endings, format_by_ending
from ckptforge.registry import Registry
from ckptforge.storage.store import Kind, Status
from ckptforge.values import Extent, Stored
from tests.helpers import HUB, write_safetensors

ROOT = Path(__file__).parents[1]


class Zeros:
    """A format of files that are nothing but a tensor of zeros behind eight letters."""

    NAME = "a file of zeros"
    ENDINGS = (".zeros", ".ckpt")

    def recognises(self, head):
        return head[:8] == b"ZEROZERO"

    def read_index(self, path):
        size = path.stat().st_size
        status = Status(kind=Kind.FILE, size=size, mtime_ns=0)
        dtype, extents = BY_NAME["uint8"], (Extent(0, 8, size - 8),)
        one = Stored(path=path, name="z", dtype=dtype, shape=(size - 8,), extents=extents)
        return index_of(path, "zeros", status, [one])


def test_a_file_is_read_by_whichever_format_of_its_ending_recognises_it(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"ZEROZERO" + bytes(8))
    with pytest.raises(FormatError, match="x.ckpt: the record at byte 0"):
        read_file(path)
    with FORMATS.registered(Zeros()):
        assert read_file(path).format == "zeros"
        assert ckptforge.inspect(path).entries["z"].shape == (8,)
        path.write_bytes(b"another ")
        with pytest.raises(FormatError, match="x.ckpt: is a text file starting with 'another"):
            read_file(path)
        (tmp_path / "x.bin").write_bytes(b"ZEROZERO" + bytes(8))
        with pytest.raises(FormatError, match="a file of zeros under another name.*in .zeros"):
            read_file(tmp_path / "x.bin")


def test_endings_that_are_added_are_known_everywhere(tmp_path):
    assert endings() == [".safetensors", ".ckpt", ".pt", ".pth", ".bin"]
    (tmp_path / "x.zeros").write_bytes(b"ZEROZERO" + bytes(8))
    with pytest.raises(CkptforgeError, match="no .safetensors, .ckpt, .pt, .pth or .bin files"):
        ckptforge.inspect(tmp_path)
    with pytest.raises(
        UsageError, match="'mindformers', 'megatron', 'dcp', 'pt', 'pth', 'bin' or None"
    ):
        ckptforge.to_ms(HUB, tmp_path / "out", format="zeros")
    with FORMATS.registered(Zeros()):
        assert endings()[:3] == [".safetensors", ".ckpt", ".zeros"]
        assert ckptforge.inspect(tmp_path).entries["z"].shape == (8,)
        with pytest.raises(UsageError, match="'dcp', 'zeros', 'pt', 'pth'"):
            ckptforge.to_ms(HUB, tmp_path / "out", format="zero")
        with pytest.raises(FormatError, match="must end in .*.ckpt, .*.zeros"):
            (tmp_path / "x.strange").write_bytes(b"\xfe" * 100)
            read_file(tmp_path / "x.strange")
    assert format_by_ending(Path("x.zeros")) is None


def test_files_of_built_in_formats_go_before_those_of_others():
    paths = [Path("a.ckpt"), Path("b.zeros"), Path("c.json"), Path("d")]
    with FORMATS.registered(Zeros()):
        assert of_a_format(paths) == [Path("a.ckpt")]
        assert of_a_format(paths[1:]) == [Path("b.zeros")]
        assert format_by_ending(Path("x.ckpt")) is mindspore_ckpt
    assert of_a_format(paths[1:]) == []


class Marked:
    """A kind of directory that is known by a file."""

    def recognises(self, directory):
        return (directory / "marked").exists()

    def open(self, directory, step, check_replicas=False):
        raise FormatError(f"{directory}: is marked.")


def test_kinds_go_by_how_surely_they_are_known(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a": ("U8", [1], b"a")})
    (tmp_path / "marked").touch()
    with KINDS.registered(Marked()):
        with pytest.raises(CkptforgeError, match="is marked"):
            ckptforge.inspect(tmp_path)
        (tmp_path / "a.safetensors").rename(tmp_path / "model.safetensors")
        assert ckptforge.inspect(tmp_path).format == "hugging face directory"
        assert "a" in ckptforge.open(tmp_path)


PACKAGE = """
from ckptforge.errors import FormatError

NAME, ENDINGS = "an odd file", (".odd",)

def recognises(head):
    return head.startswith(b"odd")

def read_index(path):
    raise FormatError(f"{path}: is odd.")

class Kind:
    def recognises(self, directory):
        return (directory / "odd").exists()

    def open(self, directory, step, check_replicas=False):
        raise FormatError(f"{directory}: is an odd directory.")
"""
ENTRY_POINTS = """
[ckptforge.formats]
odd = odd_package
broken = a_package_that_is_not_there

[ckptforge.checkpoints]
odd = odd_package:KIND
"""
PROGRAM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import ckptforge
from ckptforge.checkpoints.kinds import KINDS
from ckptforge.formats.registry import FORMATS, endings

ckptforge.inspect(sys.argv[2])
assert "importlib.metadata" not in sys.modules
for path in sys.argv[3:]:
    try:
        ckptforge.inspect(path)
    except ckptforge.FormatError as error:
        print(str(error).partition(": ")[2])
print(endings())
"""


def test_other_packages_announce_theirs_and_are_asked_only_when_that_is_needed(tmp_path):
    (tmp_path / "odd_package.py").write_text(PACKAGE + "\nKIND = Kind()\n")
    about = tmp_path / "odd_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "x.odd").write_bytes(b"odd")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "odd").touch()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, HUB, tmp_path / "x.odd", tmp_path / "directory"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == [
        "is odd.",
        "is an odd directory.",
        "['.safetensors', '.ckpt', '.odd', '.pt', '.pth', '.bin']",
    ], done.stderr
    assert "ckptforge.formats a_package_that_is_not_there can't be loaded" in done.stderr


def test_a_part_of_the_package_that_is_not_there_is_passed_over():
    """What it needs itself must be there."""
    assert list(Registry("x", "ckptforge.nowhere:THING", "ckptforge.errors:FormatError")) == [
        FormatError
    ]
    with pytest.raises(AttributeError):
        list(Registry("x", "ckptforge.errors:Nothing"))


@pytest.mark.parametrize(
    ("name", "shape", "extents", "message"),
    [
        ("t", (2, 3), [(0, 10, 6)], None),
        ("t", (2, 3), [(0, 10, 4), (4, 90, 2)], None),
        ("t", (2, 3), [(0, 10, 5)], "should have 6 bytes but 5 are there"),
        ("t", (2, 3), [(0, 95, 6)], "should have 6 bytes but 0 are there"),
        ("t", (-2, -3), [(0, 10, 6)], "should have 6 bytes"),
        ("t", (1 << 62, 8), [], "more bytes than 63 bits"),
        ("\ud800", (6,), [(0, 10, 6)], "isn't Unicode"),
        ("twice", (6,), [(0, 10, 6)], "'twice' is there twice"),
    ],
)
def test_what_every_index_is_checked_for(name, shape, extents, message):
    path, dtype = Path("x.new"), BY_NAME["uint8"]
    status = Status(kind=Kind.FILE, size=100, mtime_ns=7)
    found = tuple(Extent(*extent) for extent in extents)
    one = Stored(path=path, name=name, dtype=dtype, shape=shape, extents=found)
    tensors = [one, one] if name == "twice" else [one]
    if message is None:
        index = index_of(path, "new", status, tensors)
        assert index == FileIndex(path=path, format="new", size=100, mtime_ns=7, tensors={"t": one})
        return
    with pytest.raises(FormatError, match=message) as caught:
        index_of(path, "new", status, tensors)
    assert "x.new" in str(caught.value)


def test_errors_of_other_parsers_name_the_file():
    with pytest.raises(FormatError, match=r"x.new: isn't an archive \('boom'\)"):
        with parsing(Path("x.new"), "an archive"):
            raise KeyError("boom")
    with pytest.raises(UsageError, match="^ours$"):
        with parsing(Path("x.new"), "an archive"):
            raise UsageError("ours")
