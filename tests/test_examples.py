"""The examples do what their pages say, and what every format, step and kind of directory must."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import ckptforge
from ckptforge.checkpoints.kinds import KINDS
from ckptforge.errors import CkptforgeError, FormatError
from ckptforge.formats import safetensors
from ckptforge.formats.registry import FORMATS
from ckptforge.testing.checkpoints import DirectoryKindTests
from ckptforge.testing.formats import FormatTests
from ckptforge.testing.steps import StepCase, StepTests
from tests.helpers import HUB, raw_safetensors, tiny_config, write_hub, write_safetensors

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import int8_per_channel  # noqa: E402
import npz_format  # noqa: E402
import sharded_directory  # noqa: E402


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 60 and max(map(len, path.open())) <= 101


def test_the_page_shows_the_examples_as_they_are():
    page = (EXAMPLES.parent / "docs" / "extending.md").read_text()
    shown = re.findall(r"```python\n# examples/(\S+)\n(.*?)```", page, re.DOTALL)
    assert {name for name, _ in shown} == {path.name for path in EXAMPLES.glob("*.py")}
    for name, code in shown:
        assert code in (EXAMPLES / name).read_text(), code


class TestNpz(FormatTests):
    @pytest.fixture
    def form(self):
        return npz_format

    def read_independently(self, path):
        with np.load(path) as archive:
            return {
                name: (archive[name].dtype.name, archive[name].shape, archive[name].tobytes())
                for name in archive.files
            }


def test_a_model_goes_to_npz_and_back(tmp_path):
    with FORMATS.registered(npz_format):
        ckptforge.to_ms(HUB, tmp_path / "x.npz", dtype="fp32")
        ckptforge.to_ms(HUB, tmp_path / "in ranks", format="npz", dtype="fp32")
        assert (tmp_path / "in ranks" / "rank_0" / "checkpoint_0.npz").is_file()
        assert ckptforge.inspect(tmp_path / "x.npz").format == "npz"
        assert ckptforge.check(tmp_path / "x.npz")
        assert ckptforge.compare(HUB, tmp_path / "in ranks", after_cast="fp32")
        ckptforge.to_torch(tmp_path / "x.npz", tmp_path / "hub", dtype="bf16")
        with pytest.raises(CkptforgeError, match="bfloat16"):
            ckptforge.to_ms(HUB, tmp_path / "y.npz", dtype="bf16")
    assert ckptforge.compare(HUB, tmp_path / "hub")
    with np.load(tmp_path / "x.npz") as archive:  # which checks every crc32
        assert sum(archive[name].nbytes for name in archive.files) > 1_000_000
    with pytest.raises(FormatError, match=r"NumPy archive \(.npz\)"):
        ckptforge.inspect(tmp_path / "x.npz")


def test_what_numpy_writes_is_read_unless_it_lies_otherwise(tmp_path):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.savez(tmp_path / "x.npz", a=array, b=array[0])
    found = npz_format.read_index(tmp_path / "x.npz").tensors
    assert {name: one.shape for name, one in found.items()} == {"a": (2, 3), "b": (3,)}
    np.savez(tmp_path / "x.npz", a=array.T)
    with pytest.raises(FormatError, match="otherwise than in rows"):
        npz_format.read_index(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=array.astype(">i4"))
    with pytest.raises(FormatError, match="otherwise than in rows"):
        npz_format.read_index(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", a=array)
    with pytest.raises(FormatError, match="isn't an uncompressed archive"):
        npz_format.read_index(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array([None]))
    with pytest.raises(FormatError, match="isn't an uncompressed archive"):
        npz_format.read_index(tmp_path / "x.npz")


class TestPerChannel(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        codes = np.random.default_rng(0).integers(-128, 128, (5000, 6), np.int8)
        scales = np.linspace(0.1, 2, 10_000, dtype=np.float32)
        write_safetensors(
            tmp_path / "x.safetensors",
            {
                "w": ("I8", [5000, 6], codes.tobytes()),
                "w_scale": ("F32", [5000], scales[:5000].tobytes()),
                "other": ("F32", [5000], scales[5000:].tobytes()),
            },
        )
        held = safetensors.read_index(tmp_path / "x.safetensors").tensors
        step = int8_per_channel.PerChannel(held["w_scale"])
        return StepCase(
            step=step,
            stored=held["w"],
            expected=codes.astype(np.float32) * scales[:5000, None],
            others=[replace(step, scale=held["other"])],
        )


def test_a_quantised_model_is_saved_as_what_it_stands_for(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    random, tensors, meant = np.random.default_rng(0), {}, {}
    for name, raw in raw_safetensors(tmp_path / "hub").items():
        tensors[name] = meant[name] = ("BF16", list(raw.shape), raw.tobytes())
        if name.endswith("proj.weight"):
            codes = random.integers(-128, 128, raw.shape, np.int8)
            scales = (2.0 ** random.integers(-9, -3, len(raw))).astype(np.float32)
            tensors[name] = ("I8", list(raw.shape), codes.tobytes())
            tensors[f"{name}_scale"] = ("F32", [len(raw)], scales.tobytes())
            bits = (codes.astype(np.float32) * scales[:, None]).view(np.uint32) >> 16
            meant[name] = ("BF16", list(raw.shape), bits.astype(np.uint16).tobytes())
    write_safetensors(tmp_path / "hub" / "model.safetensors", tensors, {"format": "pt"})
    with ckptforge.open(tmp_path / "hub") as model:
        plain = model.apply(int8_per_channel.dequantised)
        assert plain.layout == "hub"
        plain.save(tmp_path / "plain")
        plain.as_layout("gmm").save(tmp_path / "gmm.ckpt")
    found = raw_safetensors(tmp_path / "plain")
    assert {name: raw.tobytes() for name, raw in found.items()} == {
        name: data for name, (_, _, data) in meant.items()
    }
    assert ckptforge.compare(tmp_path / "plain", tmp_path / "gmm.ckpt")


def write_tree(directory, arrays):
    for name, array in arrays.items():
        path = directory / f"{name.replace('.', '/')}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    (directory / sharded_directory.MARK).touch()


class TestNpyTree(DirectoryKindTests):
    @pytest.fixture
    def kind(self):
        return sharded_directory.NPY_TREE

    @pytest.fixture
    def arrays(self):
        return {f"layers.{i}.w": np.arange(6.0).reshape(i + 1, -1) for i in range(3)}

    @pytest.fixture
    def directory(self, tmp_path, arrays):
        write_tree(tmp_path / "tree", arrays)
        return tmp_path / "tree"

    @pytest.fixture
    def tensors(self, arrays):
        return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in arrays.items()}


def test_a_tree_is_read_by_every_verb(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(), dtype="F32")
    arrays = raw_safetensors(tmp_path / "hub")
    write_tree(tmp_path / "tree", {name: raw.view(np.float32) for name, raw in arrays.items()})
    (tmp_path / "tree" / "config.json").write_text(json.dumps(tiny_config()))
    with KINDS.registered(sharded_directory.NPY_TREE):
        assert ckptforge.inspect(tmp_path / "tree").format == "npy tree"
        assert ckptforge.compare(tmp_path / "hub", tmp_path / "tree")
        ckptforge.to_ms(tmp_path / "tree", tmp_path / "x.ckpt", layout="gmm")
    assert ckptforge.compare(tmp_path / "hub", tmp_path / "x.ckpt")
    with pytest.raises(CkptforgeError, match="one level down|no .safetensors, .ckpt"):
        ckptforge.inspect(tmp_path / "tree")
