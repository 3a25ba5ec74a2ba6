"""torch's zip files: read as torch wrote them, written as torch reads them, and never run."""

import io
import math
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import FormatError, InputNotFoundError, PlanError
from ckptforge.torch_files.pickle_data import Machine
from ckptforge.torch_files.tensors import constructors, is_inert
from tests.helpers import HUB, raw_safetensors
from tests.torch_archives import FOUR, Call, Storage, archive, pickled, view

DTYPES = "float64 float32 float16 bfloat16 int8 int16 int32 int64 uint8 bool"
NEWER = "float8_e4m3fn float8_e5m2 uint16 uint32 uint64"


def bits(tensor):
    torch = pytest.importorskip("torch")
    plain = tensor.detach().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def tensors():
    """Tensors of every dtype, and views of all kinds."""
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    found = {
        "base": base,
        "turned": base.transpose(0, 2),
        "part": base[1:, ::2],
        "row": base[1],
        "end": base[2, 3, 2:],
        "wide": torch.arange(3.0).view(3, 1).expand(3, 4),
        "wide_turned": base[:, :1].expand(3, 4, 5).transpose(1, 2),
        "number": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(base * 2),
    }
    for name in (DTYPES + " " + NEWER).split(" "):
        found[f"of.{name}"] = torch.arange(6).to(getattr(torch, name))
    return found


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saved_is_read_bit_for_bit(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    saved = tensors()
    training = {
        "model": OrderedDict(saved),
        "args": Namespace(dtype=torch.bfloat16, size=torch.Size([2]), at=torch.device("cpu")),
        "rng": [torch.get_rng_state(), np.random.get_state()],
        "more": defaultdict(dict, {"step": 5}),
    }
    torch.save(saved, tmp_path / "flat.pt", pickle_protocol=protocol)
    torch.save(training, tmp_path / "deep.pth", pickle_protocol=protocol)
    for path, start in ((tmp_path / "flat.pt", ""), (tmp_path / "deep.pth", "model.")):
        with ckptforge.open(path) as model:
            for name, tensor in saved.items():
                found = model[start + name]
                assert found.shape == tuple(tensor.shape), name
                assert found[...].tobytes() == bits(tensor), name
            assert len(model) == len(saved) + (start != "")


def test_a_module_and_tied_weights_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(3, 4))
    net[2].weight = net[0].weight
    torch.save(net.state_dict(), tmp_path / "net.bin")
    with ckptforge.open(tmp_path / "net.bin") as model:
        assert model.keys() == net.state_dict().keys()
        for name, tensor in net.state_dict().items():
            assert model[name][...].tobytes() == bits(tensor)


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(tensors(), tmp_path / "a.pt")
    ckptforge.open(tmp_path / "a.pt").save(tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(back) == list(tensors())
    assert all(bits(back[name]) == bits(tensor) for name, tensor in tensors().items())
    assert zipfile.ZipFile(tmp_path / "b.pt").testzip() is None


def test_a_hugging_face_directory_of_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(HUB)
    model.config.save_pretrained(tmp_path / "bin")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    ckptforge.to_ms(tmp_path / "bin", tmp_path / "a.ckpt", layout="dense")
    ckptforge.to_ms(HUB, tmp_path / "b.ckpt", layout="dense", dtype="fp32")
    with ckptforge.open(tmp_path / "a.ckpt") as a, ckptforge.open(tmp_path / "b.ckpt") as b:
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name][...], b[name][...]) for name in a)


def test_files_are_written_and_read_without_torch(tmp_path):
    with ckptforge.open(HUB) as hub:
        expected = {name: tensor[...].tobytes() for name, tensor in hub.items()}
    ckptforge.open(HUB).save(tmp_path / "model.pt")
    with ckptforge.open(tmp_path / "model.pt") as model:
        assert {name: tensor[...].tobytes() for name, tensor in model.items()} == expected
    assert zipfile.ZipFile(tmp_path / "model.pt").testzip() is None
    ckptforge.open(tmp_path / "model.pt").save(tmp_path / "model.safetensors")
    assert len(raw_safetensors(tmp_path / "model.safetensors")) == len(expected)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_view_is_what_numpy_makes_of_it(tmp_path_factory, data):
    numbers = np.arange(data.draw(st.integers(1, 60)), dtype=np.float32)
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape)
    offset = data.draw(st.integers(0, 8))
    path = tmp_path_factory.getbasetemp() / "view.pt"
    content = pickled({"a": view(Storage("0", len(numbers)), offset, shape, strides)})
    archive(path, content, {"0": numbers.tobytes()})
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    try:
        with ckptforge.open(path) as model:
            found = model["a"][...]
    except FormatError as error:
        assert "overlap" in str(error) or (math.prod(shape) and last >= len(numbers))
        return
    if math.prod(shape):
        steps = tuple(4 * stride for stride in strides)
        wanted = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps)
        assert np.array_equal(found, wanted)
    assert found.shape == shape


ROOM = {"a": view(Storage("0", 4))}


def test_a_view_of_other_numbers_is_refused(tmp_path):
    hooks = Call("collections.OrderedDict")
    arguments = (Storage("0", 4), 0, (4,), (1,), False, hooks, {"neg": True})
    content = pickled({"a": Call("torch._utils._rebuild_tensor_v2", *arguments)})
    with pytest.raises(FormatError, match=r"'a' is a view of other numbers \('neg'\)"):
        ckptforge.open(archive(tmp_path / "x.pt", content, FOUR))


def test_archives_that_cannot_be_read_in_place_are_refused(tmp_path):
    content = pickled(ROOM)
    packed = archive(tmp_path / "p.pt", content, FOUR, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="is compressed, as no torch file is"):
        ckptforge.open(packed)
    whole = archive(tmp_path / "w.pt", content, FOUR).read_bytes()
    for length in range(40, len(whole), 7):
        (tmp_path / "t.pt").write_bytes(whole[:length])
        with pytest.raises((FormatError, InputNotFoundError)):
            ckptforge.open(tmp_path / "t.pt")
    with pytest.raises(
        FormatError, match="its end is missing: truncated or damaged: copy or download"
    ):
        ckptforge.open(tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/byteorder", "big")
    with pytest.raises(FormatError, match="byte order is 'big'"):
        ckptforge.open(tmp_path / "big.pt")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as made:
        for root in ("a", "b"):
            made.writestr(f"{root}/data.pkl", content)
    (tmp_path / "two.pt").write_bytes(twice.getvalue())
    with pytest.raises(FormatError, match="with 2 members data.pkl"):
        ckptforge.open(tmp_path / "two.pt")


def test_members_that_overlap_are_refused(tmp_path):
    path = archive(tmp_path / "x.pt", pickled(ROOM), {**FOUR, "1": FOUR["0"]})
    content = bytearray(path.read_bytes())
    first, second = (
        found.header_offset
        for found in zipfile.ZipFile(path).infolist()
        if "data/" in found.filename
    )
    at = content.rindex(struct.pack("<I", second) + b"archive/data/1")
    content[at : at + 4] = struct.pack("<I", first)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="overlap|isn't a zip archive of torch"):
        ckptforge.open(path)


def test_dtypes_that_torch_does_not_have(tmp_path):
    from ckptforge.dtypes import BY_NAME
    from ckptforge.formats.layout import TensorSpec
    from ckptforge.torch_files import torch_zip

    with pytest.raises(PlanError, match="torch has no dtype for 'a', hifloat8"):
        torch_zip.lay_out(tmp_path / "x.pt", [TensorSpec("a", BY_NAME["hifloat8"], (2,))], {})


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_data_or_an_error(content):
    machine = Machine("x.pt", constructors("x.pt"), is_inert, lambda said: said)
    try:
        machine.load(content)
    except FormatError as error:
        assert "x.pt" in str(error)
