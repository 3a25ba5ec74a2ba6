"""Files that are damaged: each message names the file and ends with what to do."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import CkptforgeError, DamagedError
from tests.helpers import HUB, MINDSPORE, write_safetensors
from tests.test_iterations import QWEN

TODO = re.compile(r"[Cc]opy|[Gg]et |download|[Ss]ave|[Rr]ename|leave it out|export|keep one|fetch")


def header_of(change):
    def spoil(directory):
        path = directory / "x.safetensors"
        write_safetensors(path, {"t": ("F32", [2, 3], np.zeros(6, "f4").tobytes())})
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header = change(json.dumps(header, separators=(",", ":")).encode())
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
        return path

    return spoil


def cut(name, keep):
    def spoil(directory):
        source = next(
            path
            for path in (*HUB.iterdir(), *MINDSPORE.parent.rglob("*.ckpt"))
            if path.name.endswith(name)
        )
        path = directory / f"x{source.suffix}"
        content = source.read_bytes()
        path.write_bytes(content[: keep if keep >= 0 else len(content) + keep])
        return path

    return spoil


def ckpt(*content):
    def spoil(directory):
        path = directory / "x.ckpt"
        path.write_bytes(b"".join(content))
        return path

    return spoil


def torch_file(change):
    def spoil(directory):
        torch = pytest.importorskip("torch")

        path = directory / "x.pt"
        torch.save({"t": torch.zeros(3)}, path)
        path.write_bytes(change(path.read_bytes()))
        return path

    return spoil


def pickled(content):
    def spoil(directory):
        import zipfile

        path = directory / "x.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
        return path

    return spoil


def metadata(change):
    def spoil(directory):
        shutil.copytree(QWEN, directory / "run")
        path = next((directory / "run").glob("*/metadata.json"))
        content = json.loads(path.read_text())
        change(content["state_dict_metadata"], content["storage_data"])
        path.write_text(json.dumps(content))
        return directory / "run"

    return spoil


def first(found):
    return next(iter(found.values()))


DAMAGES = {
    "a header that isn't JSON": header_of(lambda header: b"{" + b"x" * (len(header) - 1)),
    "an unknown dtype": header_of(lambda header: header.replace(b"F32", b"F3X")),
    "a shape": header_of(lambda header: header.replace(b"[2,3]", b"[2,9]")),
    "a negative size": header_of(lambda header: header.replace(b"[2,3]", b"[-2,3]")),
    "offsets": header_of(lambda header: header.replace(b"[0,24]", b"[0,25]")),
    "fewer bytes": header_of(lambda header: header.replace(b"[0,24]", b"[0,20]")),
    "a header of another kind": header_of(lambda header: b"[]"),
    "a truncated header": cut(".safetensors", 20),
    "truncated data": cut(".safetensors", -9),
    "a truncated .ckpt": cut(".ckpt", -9),
    "an empty .ckpt": ckpt(),
    "another field": ckpt(b"\x1a\x02\x08\x01"),
    "a value without a tensor": ckpt(b"\x0a\x03\x0a\x01t"),
    "a strange wire type": ckpt(b"\x0b\x00"),
    "an endless number": ckpt(b"\x0a\xff"),
    "a truncated archive": torch_file(lambda content: content[:-30]),
    "a local header": torch_file(lambda content: content.replace(b"PK\x03\x04", b"PK\x03\x00", 1)),
    "a pickle without an end": pickled(pickle.dumps({"t": 1}, 2)[:-1]),
    "a pickle of another kind": pickled(b"hello"),
    "a strange opcode": pickled(b"\x80\x02Q."),
    "a dtype in metadata.json": metadata(lambda t, s: first(t)["properties"].update(dtype="x")),
    "a shape in metadata.json": metadata(lambda t, s: first(t).update(global_shape=[-1, 2])),
    "cuts": metadata(lambda t, s: first(t).update(axis_fragmentations=[1, 1, 1])),
    "a rank": metadata(lambda t, s: first(s)[0].update(storage_rank=-1)),
    "no chunk": metadata(lambda t, s: first(t)["chunk"].clear()),
    "no file": metadata(lambda t, s: first(s).clear()),
    "a key": metadata(lambda t, s: s.update(x=first(s))),
    "a matrix": metadata(lambda t, s: first(t)["layout"].update(device_matrix=[3])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    path = damage(tmp_path)
    with pytest.raises(CkptforgeError) as error:
        ckptforge.convert(path, tmp_path / "o", to="dense")
    text = str(error.value)
    assert str(path) in text
    assert TODO.search(text.rpartition(str(path))[2]), text
    assert text.count("copy or download it again") <= 1


def test_what_to_do_is_said_once_whatever_the_message_ends_with():
    again = "copy or download it again, or save it anew."
    assert str(DamagedError("x: ends early.")) == f"x: ends early; the file is damaged: {again}"
    assert str(DamagedError("x: ends; truncated.")) == f"x: ends; truncated: {again}"
    assert str(DamagedError(f"y: {DamagedError('x: ends.')}")).count(again) == 1
    assert str(pickle.loads(pickle.dumps(DamagedError("x: ends.")))).count(again) == 1
