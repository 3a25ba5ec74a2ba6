"""Pickles and archives that mean harm: each refused by what is wrong in it, nothing run, in bounded
time and memory."""

import os
import pickle
import resource
import shutil
import signal
import struct
import zipfile
from pathlib import Path

import pytest

import ckptforge
from ckptforge.errors import CkptforgeError, FormatError
from ckptforge.torch_files import pickle_data
from tests.helpers import FIXTURES
from tests.torch_archives import FOUR, Call, Storage, archive, encoded, pickled, view

RUN = "/tmp/ckptforge-was-run"
ROOM = {"a": view(Storage("0", 4))}
EQUAL = (1 << 61) - 1  # by multiples of which integers have one hash


@pytest.fixture(autouse=True)
def bounded():
    """20 seconds and half a gigabyte more than the process has."""

    def stop(*_):
        raise AssertionError("over 20 seconds")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 29), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not os.path.exists(RUN)


def run_by(name, *arguments):
    """A pickle that calls a function, and the message that names it."""
    return pickled({"a": Call(name, *arguments)}), f"names '{name}'.*nothing of the file was run"


def of(text):
    return b"X" + struct.pack("<I", len(text)) + text


def memoised(content, place):
    return content + b"r" + struct.pack("<I", place)


def laughs(depth, width, first=b"N", kind=b"t"):
    """A tuple of tuples of the same: width ** depth items if anybody walked them all; it is at
    `depth` in the memo."""
    out = memoised(first, 0) + b"0"
    for i in range(depth):
        inner = (b"j" + struct.pack("<I", i)) * width
        out += memoised(b"(" + inner + kind, i + 1) + b"0"
    return out


def got(place):
    return b"j" + struct.pack("<I", place)


def tensor(storage, shape):
    """A tensor of a shape that is an expression of opcodes."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return function + encoded(storage) + b"K\x00" + shape + encoded((1,)) + b"\x89NtR"


def of_many(count, call):
    """A list of `count` items at 0 in the memo, and `count` calls on it."""
    items = memoised(b"](" + b"N" * count + b"e", 0) + b"0"
    return b"\x80\x02" + items + b"](" + call * count + b"e."


LONG_LIST = (b"cbuiltins\nlist\n" + got(0) + b"\x85R", "has more than .* opcodes and items")
NAMED = pickled({"module": "os", "name": "system"})

CALLS = {
    "os.system": run_by("os.system", f"touch {RUN}"),
    "posix.system": run_by("posix.system", f"touch {RUN}"),
    "eval": run_by("builtins.eval", f"open({RUN!r}, 'w')"),
    "exec": run_by("builtins.exec", f"open({RUN!r}, 'w')"),
    "getattr": run_by("builtins.getattr", 1, "x"),
    "getattr of a class": (
        b"\x80\x02cbuiltins\ngetattr\ncargparse\nNamespace\n" + encoded("mro") + b"\x86R.",
        "names 'builtins.getattr'",
    ),
    "getattr without an end": (
        b"\x80\x02"
        + memoised(encoded("x" * 99), 1)
        + memoised(b"cnumpy\ndtype\n", 0)
        + (b"0cbuiltins\ngetattr\n" + got(0) + got(1) + b"\x86Rr\x00\x00\x00\x00") * 99
        + b".",
        "names a class .* within others",
    ),
    "open": run_by("builtins.open", RUN, "w"),
    "import": run_by("builtins.__import__", "os"),
    "python 2": (pickled(Call("__builtin__.eval", "1")), "names 'builtins.eval'"),
    "popen": run_by("subprocess.Popen", ("touch", RUN)),
    "import_module": run_by("importlib.import_module", "antigravity"),
    "run_code": run_by("runpy._run_code", "1"),
    "attrgetter": run_by("operator.attrgetter", "system"),
    "partial": run_by("functools.partial", 1),
    "pickle": run_by("pickle.loads", b"cos\nsystem\n."),
    "marshal": run_by("marshal.loads", b"x"),
    "code": run_by("types.CodeType", 1),
    "ctypes": run_by("ctypes.CDLL", "libc.so.6"),
    "torch.load": run_by("torch.load", "x"),
    "jit": run_by("torch.jit.load", "x"),
    "hub": run_by("torch.hub.load", "a/b", "c"),
    "a class": run_by("my.model.Net"),
    "a name of escapes": (pickled(Call("a\x1b[2J.b")), r"names 'a\\x1b\[2J.b'"),
}
NESTED = {
    "in a parameter": (
        pickled(Call("torch._utils._rebuild_parameter", Call("posix.system", "ls"), True, 0)),
        "names 'posix.system'",
    ),
    "in a state": (
        b"\x80\x02cargparse\nNamespace\n)\x81"
        + encoded({"x": Call("os.system", f"touch {RUN}")})
        + b"b.",
        "names 'os.system'",
    ),
    "in a key": (b"\x80\x02}" + encoded(Call("os.system", "ls")) + b"Ns.", "names 'os.system'"),
    "in what is thrown away": (
        b"\x80\x02" + encoded(Call("os.system", f"touch {RUN}")) + b"0" + encoded(ROOM) + b".",
        "names 'os.system'",
    ),
    "in a persistent id": (
        b"\x80\x02(" + encoded("storage") + b"cos\nsystem\ntQ.",
        "names 'os.system'",
    ),
    "by the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names 'os.system'"),
    "by the memo": (
        b"\x80\x04" + memoised(of(b"os"), 1) + b"0" + got(1) + of(b"system") + b"\x93.",
        "names 'os.system'",
    ),
    "of dotted names": (b"\x80\x04" + of(b"torch") + of(b"os.system") + b"\x93.", "'torch.os.sys"),
    "named by data": (b"\x80\x02" + NAMED[2:-1] + b"N\x93.", "a global whose name is no text"),
    "called data": (b"\x80\x02" + of(b"os.system") + b")R.", "a call of what is no function"),
    "made of a call": (
        b"\x80\x02" + encoded(Call("collections.OrderedDict")) + b")R.",
        "a call of what is no function",
    ),
    "instance": (b"(S'ls'\nios\nsystem\n.", "the opcode INST"),
    "object": (b"\x80\x02(ctorch\nSize\no.", "the opcode OBJ"),
    "extension": (b"\x80\x02\x82\x01.", "the opcode EXT1|isn't a pickle"),
    "extension of 2": (b"\x80\x02\x83\x01\x01.", "the opcode EXT2|isn't a pickle"),
    "persistent text": (b"\x80\x02Pstorage\n.", "the opcode PERSID"),
    "buffer": (b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
    "a pickle within": (
        pickled({"a": Call("torch.storage._load_from_bytes", b"x")}),
        "is a pickle within the pickle",
    ),
}
BOMBS = {
    "lists": (b"\x80\x02" + laughs(40, 2, b"]", b"l") + got(40) + b".", "nested too deep, or are"),
    "deep": (b"\x80\x02" + b"](" * 40 + b"e" * 40 + b".", "holds no tensors|nested too deep"),
    "very deep": (b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".", "nested too deep"),
    "very deep objects": (
        b"\x80\x02" + b"cargparse\nNamespace\n" * 20_000 + b")" + b"\x81\x85" * 20_000 + b".",
        "holds no tensors",
    ),
    "a shape": (
        b"\x80\x02" + laughs(30, 16) + tensor(Storage("0", 4), got(30)) + b".",
        "a tensor has offset 0, shape",
    ),
    "an object that is shown": (
        b"\x80\x02"
        + laughs(30, 2)
        + tensor(Storage("0", 4), b"ctorch\ndevice\n(" + got(30) + b"tR\x85")
        + b".",
        r"shape \(an object torch.device,\)",
    ),
    "a key": (
        b"\x80\x02" + laughs(30, 16) + b"}(" + got(30) + encoded(ROOM["a"]) + b"u.",
        None,
    ),
    "keys of one hash": (
        b"\x80\x02}("
        + b"".join(
            b"\x8a\x0a" + (i * EQUAL).to_bytes(10, "little") + b"N" for i in range(1, 60_000)
        )
        + b"u.",
        "holds no tensors",
    ),
    "a memo of one hash": (
        b"\x80\x02N" + b"".join(b"p%d\n" % (i * EQUAL) for i in range(1, 60_000)) + b".",
        "a place in the memo that no pickle needs",
    ),
    "copies of a list": (of_many(20_000, LONG_LIST[0]), LONG_LIST[1]),
    "copies of a size": (
        of_many(20_000, b"ctorch\nSize\n" + got(0) + b"\x85R"),
        LONG_LIST[1],
    ),
    "copies of pairs": (
        of_many(20_000, b"ccollections\nOrderedDict\n" + got(0) + b"\x85R"),
        LONG_LIST[1] + "|isn't a pickle",
    ),
    "many arguments": (
        b"\x80\x02" + memoised(b"(" + b"N" * 20_000 + b"t", 0) + b"0"
        b"](" + (b"ctorch._utils\n_rebuild_parameter\n" + got(0) + b"R") * 9 + b"e.",
        "a call of 'torch._utils._rebuild_parameter' with 20000 arguments",
    ),
    "long names": (
        b"\x80\x02"
        + memoised(encoded(ROOM["a"]), 0)
        + b"0}("
        + of(b"x" * 60_000)
        + b"]("
        + got(0) * 5000
        + b"eu.",
        "its names have over 67108864 characters",
    ),
    "a name too long": (
        b"\x80\x02}(" + of(b"x" * 70_000) + encoded(ROOM["a"]) + b"u.",
        "x.pt: .* name",
    ),
    "many views that repeat": (
        pickled([view(Storage("0", 4), 0, (4096,), (0,)) for _ in range(40)]),
        "repeat over 131072 times what they are of",
    ),
    "a view that repeats": (
        pickled([view(Storage("0", 4), 0, (1 << 40,), (0,))]),
        "repeats its numbers 1099511627776 times",
    ),
    "a view of everything": (
        pickled([view(Storage("0", 4), 0, (1 << 61, 1 << 61), (1, 1))]),
        "ends at number",
    ),
    "long text": (b"\x80\x02X\xff\xff\xff\xffab.", "isn't a pickle"),
    "longer text": (b"\x80\x04\x8d" + b"\xff" * 8 + b"ab.", "isn't a pickle"),
    "a long number": (b"\x80\x02\x8b\xff\xff\xff\x7fab.", "isn't a pickle"),
    "a negative length": (b"\x80\x02\x8b\xff\xff\xff\xffab.", "isn't a pickle"),
    "many digits": (b"I" + b"9" * 100_000 + b"\n.", "isn't a pickle"),
    "a long frame": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "holds no tensors|isn't a pickle"),
    "a memo that isn't there": (b"\x80\x02h\x07.", "isn't a pickle"),
    "no end": (b"\x80\x02K\x01", "has no end|isn't a pickle"),
    "marks": (b"\x80\x02" + b"(" * 100_000 + b".", "isn't a pickle"),
}
TENSORS = {
    "a view beyond": (pickled({"a": view(Storage("0", 4), 1)}), "ends at number 4 of storage '0'"),
    "a longer storage": (
        pickled({"a": view(Storage("0", 99))}),
        "should have 396 bytes but has 16",
    ),
    "no storage": (pickled({"a": view(Storage("7", 4))}), "which the archive doesn't hold"),
    "a storage elsewhere": (
        pickled({"a": view(Storage("../../etc/passwd", 4))}),
        "which the archive doesn't hold",
    ),
    "negative": (pickled({"a": view(Storage("0", 4), 0, (4,), (-1,))}), "expected numbers from 0"),
    "many axes": (pickled({"a": view(Storage("0", 4), 0, (1,) * 70, (1,) * 70)}), "70 axes"),
    "a strange storage": (pickled({"a": view(Storage("0", 4, "Size"))}), "isn't one of torch's"),
    "sparse": (pickled({"a": Call("torch._utils._rebuild_sparse_tensor", 1)}), "a sparse tensor"),
    "twice": (pickled({"a": {"b": ROOM["a"]}, "a.b": ROOM["a"]}), "two tensors are called 'a.b'"),
}
BROKEN = {"never stored": (b"\x80\x02g99\n.", "object 99 is used before it is stored")}
HOSTILE = {**BROKEN, **CALLS, **NESTED, **BOMBS, **TENSORS}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, kind):
    content, message = HOSTILE[kind]
    path = archive(tmp_path / "x.pt", content, FOUR)
    if message is None:
        assert len(ckptforge.open(path)) == 1
        return
    with pytest.raises(CkptforgeError, match=message) as error:
        ckptforge.open(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 4000


def test_names_that_are_data_are_not_called(tmp_path):
    """Of modules whose objects lie in training files, with what others abuse in them."""
    held = [
        Call("numpy.testing._private.utils.runstring", f"open({RUN!r}, 'w')", {}),
        Call("random._os.system", f"touch {RUN}"),
        Call("megatron.core.utils.os.system", f"touch {RUN}"),
    ]
    path = archive(tmp_path / "x.pt", pickled({**ROOM, "held": held}), FOUR)
    assert [*ckptforge.open(path)] == ["a"]


@pytest.mark.parametrize("limit", ["_MAX_WORK", "_MAX_TEXT"])
def test_opcodes_and_text_have_a_bound(tmp_path, monkeypatch, limit):
    path = archive(tmp_path / "x.pt", pickled({"a" * 99: [1] * 99, **ROOM}), FOUR)
    assert len(ckptforge.open(path)) == 1
    monkeypatch.setattr(pickle_data, limit, 80)
    with pytest.raises(FormatError, match="more than 80"):
        ckptforge.open(path)


# archives


def sparse(path, length):
    """The archive at a path with so many empty bytes before its directory."""
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at + length)
        file.write(content[at:])
    return at


def with_entry(path, name, **changes):
    """The archive with other numbers in the directory's entry of a member."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"archive/" + name) - 46
    for field, number in changes.items():
        offset, size = {"flags": (8, 2), "method": (10, 2), "length": (24, 4), "at": (42, 4)}[field]
        content[at + offset : at + offset + size] = number.to_bytes(size, "little")
        if field == "length":
            content[at + 20 : at + 24] = number.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.fixture
def good(tmp_path):
    return archive(tmp_path / "x.pt", pickled(ROOM), {**FOUR, "1": FOUR["0"]})


def refused(path, message):
    with pytest.raises(FormatError, match=message) as error:
        ckptforge.open(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 4000


def test_compressed_and_encrypted_members_are_refused(good, tmp_path):
    with_entry(good, b"data/0", flags=1)
    refused(good, "'archive/data/0' is encrypted")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        with made.open("archive/data.pkl", "w") as member:
            for _ in range(64):
                member.write(bytes(1 << 20))
    refused(bomb, "'archive/data.pkl' is compressed")
    for method in (9, 12, 14, 93, 99):
        path = archive(tmp_path / "m.pt", pickled(ROOM), FOUR)
        with_entry(path, b"data/0", method=method)
        refused(path, "is compressed")


def test_members_that_share_bytes_or_lie_outside_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    for changes, message in (
        ({"at": 0}, "overlap|isn't a zip archive"),
        ({"at": 1 << 30}, "isn't a zip archive|no local header"),
        ({"at": 1}, "no local header"),
        ({"length": 1 << 30}, "the file has"),
        ({"length": 200}, "overlap|the file has"),
    ):
        archive(path, pickled(ROOM), {**FOUR, "1": FOUR["0"]})
        with_entry(path, b"data/0", **changes)
        refused(path, message)


SLIPS = ["../../slip", "/etc/slip", "archive/data/../../slip", "C:\\slip", "../data.pkl", "a/.."]


@pytest.mark.parametrize("name", SLIPS)
def test_members_that_would_lead_elsewhere_are_refused(name, tmp_path):
    path = archive(tmp_path / "x.pt", pickled(ROOM), FOUR)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(name, b"x")
    before = sorted(tmp_path.rglob("*"))
    refused(path, "a path that leads elsewhere, as no torch file's does; nothing was unpacked")
    refused(archive(tmp_path / "y.pt", pickled(ROOM), FOUR, root="../evil"), "leads elsewhere")
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "y.pt"]


def test_names_with_dots_are_names(tmp_path):
    path = archive(tmp_path / "x.pt", pickled(ROOM), FOUR, root="a..b.")
    assert [*ckptforge.open(path)] == ["a"]


def test_lengths_of_gigabytes_are_not_read(tmp_path):
    order = tmp_path / "order.pt"
    with zipfile.ZipFile(order, "w") as made:
        made.writestr("archive/data.pkl", pickled(ROOM))
        made.writestr("archive/byteorder", b"little")
    with_entry(order, b"byteorder", length=1 << 30)
    at = sparse(order, 1 << 30)
    content = order.open("r+b")
    with content:
        content.seek(-22 + 16, os.SEEK_END)
        content.write(struct.pack("<I", at + (1 << 30)))
    refused(order, "byte order is")
    path = archive(tmp_path / "x.pt", pickled(ROOM), FOUR)
    sparse(path, 1 << 30)
    with path.open("r+b") as file:  # a directory that is as long as the file
        file.seek(-22 + 12, os.SEEK_END)
        file.write(struct.pack("<II", (1 << 30) + 100, 0))
    refused(path, "directory has over 33,554,432 bytes")


def test_a_directory_of_many_names_with_the_last_one_twice(tmp_path):
    path = archive(tmp_path / "x.pt", pickled(ROOM), {str(i): b"" for i in range(5000)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"archive/data/4999", b"archive/data/4998"))
    refused(path, "holds 'archive/data/4998' twice")


# what stands in the pickles of checkpoints


def metadata(tensors, places):
    """A `.metadata` of tensors: name → (size, [(offsets, sizes)]), and where chunks lie."""
    home = "torch.distributed.checkpoint."

    def made(name, state):
        module, _, own = f"{home}{name}".rpartition(".")
        return f"c{module}\n{own}\n".encode() + b")\x81" + encode(state) + b"b"

    def encode(found):
        if isinstance(found, bytes):
            return found
        if isinstance(found, dict):
            items = (encode(key) + encode(one) for key, one in found.items())
            return b"}(" + b"".join(items) + b"u"
        if isinstance(found, list):
            return b"](" + b"".join(map(encode, found)) + b"e"
        return encoded(found)

    about = {
        name: made(
            "metadata.TensorStorageMetadata",
            {
                "size": size,
                "chunks": [
                    made("metadata.ChunkStorageMetadata", {"offsets": lo, "sizes": n})
                    for lo, n in chunks
                ],
            },
        )
        for name, (size, chunks) in tensors.items()
    }
    data = {}
    for (name, offset), (file, start, length) in places.items():
        key = made("metadata.MetadataIndex", {"fqn": name, "offset": offset, "index": 0})
        data[key] = made(
            "filesystem._StorageInfo", {"relative_path": file, "offset": start, "length": length}
        )
    root = made("metadata.Metadata", {"state_dict_metadata": about, "storage_data": data})
    return b"\x80\x02" + root + b"."


def chunked(directory, tensors, places, content):
    directory.mkdir(exist_ok=True)
    (directory / ".metadata").write_bytes(metadata(tensors, places))
    (directory / "__0_0.distcp").write_bytes(content)
    return directory


def test_chunks_that_lead_elsewhere_are_refused(tmp_path):
    one = archive(tmp_path / "one.pt", pickled(view(Storage("0", 4))), FOUR).read_bytes()
    run = tmp_path / "dcp"
    whole = {"w": ((4,), [((0,), (4,))])}
    chunked(run, whole, {("w", (0,)): ("__0_0.distcp", 0, len(one))}, one)
    assert ckptforge.open(run)["w"].shape == (4,)
    for file in ("../one.pt", "/etc/passwd", "..", "a/b", "a\\b", "x" * 300, "\x00"):
        chunked(run, whole, {("w", (0,)): (file, 0, len(one))}, one)
        refused_in(run, "isn't the name of a file")
    for start, length in ((0, 1 << 61), (1 << 61, 5), (-1, 5), (3, len(one) - 3), (0, 0)):
        chunked(run, whole, {("w", (0,)): ("__0_0.distcp", start, length)}, one)
        refused_in(run, "but has|aren't lengths|isn't a zip archive|local header")
    chunked(run, whole, {("w", (1,)): ("__0_0.distcp", 0, len(one))}, one)
    refused_in(run, r"'w' at \[0\] has no place in any file")


def refused_in(directory, message):
    with pytest.raises(CkptforgeError, match=message) as error:
        ckptforge.open(directory)
    assert str(directory) in str(error.value) and len(str(error.value)) < 4000


def test_chunks_that_make_up_no_grid_are_refused(tmp_path):
    """A diagonal of many has a grid of their square."""
    count = 300
    one = archive(tmp_path / "one.pt", pickled(view(Storage("0", 4), 0, (1, 1), (1, 1))), FOUR)
    content = one.read_bytes()
    chunks = [((i, i), (1, 1)) for i in range(count)]
    places = {("w", lo): ("__0_0.distcp", 0, len(content)) for lo, _ in chunks}
    run = chunked(tmp_path / "dcp", {"w": ((count, count), chunks)}, places, content)
    refused_in(run, "the chunks of 'w' make up no grid")


def test_a_chunk_that_is_a_large_archive_is_refused(tmp_path):
    many = {**FOUR, **{str(i): b"" for i in range(1, 2000)}}
    one = archive(tmp_path / "one.pt", pickled(view(Storage("0", 4))), many).read_bytes()
    places = {("w", (0,)): ("__0_0.distcp", 0, len(one))}
    run = chunked(tmp_path / "dcp", {"w": ((4,), [((0,), (4,))])}, places, one)
    refused_in(run, "directory has over 65,536 bytes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_model_parallel_size": 65535, "pipeline_model_parallel_size": 65535}, "131072 ra"),
        ({"tensor_model_parallel_size": 1 << 70}, "expected a positive integer"),
        ({"pipeline_model_parallel_size": -1}, "expected a positive integer"),
        ({1: 2, None: 3, "num_layers": 1 << 80, "hidden_size": "x" * 9999}, None),
    ],
)
def test_arguments_of_training_that_cannot_be(tmp_path, changes, message):
    torch = pytest.importorskip("torch")
    run = Path(shutil.copytree(FIXTURES / "mindspeed" / "llama_tp2_pp2_vpp", tmp_path / "run"))
    for path in run.rglob("*.pt"):
        held = torch.load(path, weights_only=False)
        held["args"].__dict__.update(changes)
        torch.save(held, path)
    try:
        ckptforge.open(run)
    except CkptforgeError as error:
        assert message is None or message in str(error)
        assert str(run) in str(error) and len(str(error)) < 4000
    else:
        assert message is None


def test_a_part_of_a_stage_of_many_digits_is_no_part(tmp_path):
    torch = pytest.importorskip("torch")
    run = Path(shutil.copytree(FIXTURES / "mindspeed" / "llama_tp2_pp2_vpp", tmp_path / "run"))
    path = next(iter(sorted(run.rglob("*.pt"))))
    held = torch.load(path, weights_only=False)
    held["model999999999999"] = held.pop("model1")
    held["model\u00b2"] = {"a": torch.zeros(1)}
    torch.save(held, path)
    with pytest.raises(CkptforgeError) as error:
        ckptforge.inspect(run)
    assert str(run) in str(error.value)


def test_a_pickle_of_its_own_is_no_archive(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CkptforgeError, match="x.pt"):
        ckptforge.open(tmp_path / "x.pt")
