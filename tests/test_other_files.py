"""Paths that hold no checkpoint: what each is, is said, with what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

import ckptforge
from ckptforge.checkpoints.huggingface import shard_of
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.checkpoints.sniff import identify
from ckptforge.errors import CkptforgeError, FormatError, InputNotFoundError
from tests.helpers import HUB, MINDSPORE, tiny_config, write_hub
from tests.test_models import TABLES, write_model

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4976698672\n"
)


def zipped(name):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, b"x" * 50)
    return made.getvalue()


def tarred():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.safetensors"))
    return made.getvalue()


def numpy_archive():
    made = io.BytesIO()
    np.savez(made, a=np.zeros(2))
    return made.getvalue()


def numpy_array():
    made = io.BytesIO()
    np.save(made, np.zeros(2))
    return made.getvalue()


WHOLE = (HUB / "model-00001-of-00002.safetensors").read_bytes()
OTHERS = {
    "pointer": (
        POINTER,
        r"a Git LFS pointer, in place of the file itself of 4,976,698,672 bytes: "
        r"run `git lfs pull`",
    ),
    "torch": (zipped("archive/data.pkl"), r"a torch file \(a zip with a pickle\) under another"),
    "script": (zipped("net/version"), "a PyTorch file"),
    "zip": (zipped("notes.txt"), "a zip archive: unpack"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "a Python pickle"),
    "pickle4": (pickle.dumps({"a": [1] * 99}, protocol=4), "a Python pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "a GGUF file"),
    "npy": (numpy_array(), r"a NumPy array \(.npy\)"),
    "npz": (numpy_archive(), r"a NumPy archive \(.npz\)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gzip": (gzip.compress(WHOLE), "compressed with gzip: unpack it"),
    "xz": (lzma.compress(WHOLE[:99]), "compressed with xz: unpack it"),
    "bz2": (bz2.compress(WHOLE[:99]), "compressed with bzip2: unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd: unpack it"),
    "tar": (tarred(), "a tar archive: unpack it"),
    "html": (b"<!DOCTYPE html>\n<html><head><title>403</title></head></html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "a web page"),
    "message": (b"Entry not found", "a text file starting with 'Entry not found'"),
    "json": (b'{"error": "Repository not found"}', "a JSON file"),
    "index": (
        b'{"metadata": {}, "weight_map": {"a": "b"}}',
        "the index of a model in several files: name the directory",
    ),
    "strategy": (
        (MINDSPORE / "strategies" / "mp8" / "rank_0.ckpt").read_bytes(),
        r"a MindSpore "
        r"strategy file, "
        r".*strategy_dir",
    ),
    "strategy2": (
        (MINDSPORE / "strategies" / "pp2mp2_merged.ckpt").read_bytes(),
        "a MindSpore strategy file",
    ),
    "strategy3": (
        (MINDSPORE / "strategies" / "mp8_json" / "rank_0.json").read_bytes(),
        "a MindSpore strategy file",
    ),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(20), "an ONNX graph"),
    "mindir": (b"\x0a\x051.1.0\x12\x09MindSpore\x1a\x052.7.0" + bytes(20), "a MindIR graph"),
    "empty": (b"", r"empty \(0 bytes\)"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pth", ".bin", ""])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_named_whatever_it_is_called(tmp_path, kind, ending):
    content, what = OTHERS[kind]
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    if kind == "torch" and ending in (".pth", ".bin"):
        what = "n't a pickle"
    with pytest.raises(FormatError, match=f"model{ending}: is ?{what}"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_inside_of_a_model_directory(tmp_path, kind):
    shutil.copytree(HUB, tmp_path / "hub")
    content, what = OTHERS[kind]
    (tmp_path / "hub" / "model-00002-of-00002.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=f"model-00002-of-00002.safetensors: is {what}"):
        open_checkpoint(tmp_path / "hub")


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3)}, tmp_path / "new.ckpt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, what in (
        ("new.ckpt", "a torch file .* under another name: rename it"),
        ("old.pth", "a PyTorch file of the old format.*safetensors.torch.save_file"),
    ):
        with pytest.raises(FormatError, match=f"{name}: is {what}"):
            open_checkpoint(tmp_path / name)


def test_checkpoints_are_no_files_of_another_kind(tmp_path):
    for path in [
        *MINDSPORE.glob("*.ckpt"),
        *MINDSPORE.glob("misc/*.ckpt"),
        *HUB.glob("*.safetensors"),
    ]:
        found = identify(path)
        assert found is None or "under another name" in found.what, path
    shutil.copy(MINDSPORE / "full.ckpt", tmp_path / "full.bin")
    with pytest.raises(
        FormatError,
        match=r"a MindSpore checkpoint under another name: rename it, "
        r".* ends in .ckpt",
    ):
        open_checkpoint(tmp_path / "full.bin")
    shutil.copy(HUB / "model-00001-of-00002.safetensors", tmp_path / "x.ckpt")
    with pytest.raises(
        FormatError,
        match=r"a safetensors file under another name: rename it, .* "
        r"ends in .safetensors",
    ):
        open_checkpoint(tmp_path / "x.ckpt")


def test_a_directory_of_strategy_files_is_said_to_be_one():
    directory = MINDSPORE / "strategies" / "pp2mp2"
    with pytest.raises(
        FormatError,
        match="holds 2 files, of which rank_0.ckpt is a MindSpore strategy file.*strategy_dir",
    ):
        ckptforge.inspect(directory)


def test_a_strategy_that_is_not_there_is_no_model_of_the_hub(tmp_path):
    with pytest.raises(
        InputNotFoundError, match="no such strategy file or directory; check the path.$"
    ):
        ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "out", strategy_dir="outputt/strategy")


def test_one_shard_is_said_to_be_one(tmp_path):
    path = HUB / "model-00001-of-00002.safetensors"
    with pytest.raises(
        CkptforgeError, match=f"is one shard of 2 of a model; name the directory, {HUB}"
    ):
        ckptforge.to_ms(path, tmp_path / "x.ckpt", config=HUB)
    assert any("one shard of 2" in note for note in ckptforge.inspect(path).notes)
    write_hub(tmp_path / "hub", tiny_config())
    assert shard_of(tmp_path / "hub" / "model.safetensors") is None
    index = {
        "weight_map": {"a": "model.safetensors", "b": "more.safetensors", "c": "last.safetensors"}
    }
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "one shard of 3" in shard_of(tmp_path / "hub" / "model.safetensors")


def test_the_root_of_the_hubs_cache_names_its_snapshots(tmp_path):
    root = tmp_path / "models--org--name"
    for revision in ("aaa", "bbb"):
        shutil.copytree(HUB, root / "snapshots" / revision)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    with pytest.raises(
        InputNotFoundError,
        match=r"cache of the Hugging Face hub; name the "
        r"snapshot:\n.*/snapshots/aaa\n.*/snapshots/bbb \(main\)",
    ):
        open_checkpoint(root)
    with pytest.raises(InputNotFoundError, match="models--org--name"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("depth", ["weights", "global/weights"])
def test_a_model_further_down_is_named_if_it_is_near(tmp_path, depth):
    shutil.copytree(HUB, tmp_path / "top" / depth)
    (tmp_path / "top" / "README.md").write_text("x")
    near = depth == "weights"
    with pytest.raises(
        InputNotFoundError,
        match="one level down; name .*/top/weights"
        if near
        else "no .safetensors, .ckpt, .pt, .pth or .bin files",
    ):
        ckptforge.inspect(tmp_path / "top")


def test_the_output_of_a_training_job_names_both_directories(tmp_path):
    shutil.copytree(MINDSPORE / "sharded" / "mp8", tmp_path / "out" / "checkpoint")
    shutil.copytree(MINDSPORE / "strategies" / "mp8", tmp_path / "out" / "strategy")
    with pytest.raises(
        InputNotFoundError,
        match=r"training job; name .*/out/checkpoint, with "
        r"strategy_dir=.*/out/strategy",
    ):
        open_checkpoint(tmp_path / "out")
    with pytest.raises(
        InputNotFoundError,
        match=r"no rank_<r> directories in it. .*name "
        r".*/out/checkpoint",
    ):
        ckptforge.merge(
            tmp_path / "out", tmp_path / "x.ckpt", strategy_dir=tmp_path / "out" / "strategy"
        )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "mistralai/Mixtral-8x7B-v0.1",
            r"name it as hf://mistralai/Mixtral-8x7B-v0.1",
        ),
        ("ftp9://bucket/key", "is an address.*download it first"),
    ],
)
def test_a_hub_id_or_an_address_is_said_to_be_one(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFoundError, match=f"(?i)No such file.*{message}"):
        ckptforge.to_ms(path, "x.ckpt")
    (tmp_path / "here").mkdir()
    with pytest.raises(InputNotFoundError, match=r"No such file or directory\.$"):
        ckptforge.to_ms("here/none", "x.ckpt")


def test_a_directory_of_other_weights_names_them(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        InputNotFoundError,
        match=r"no .safetensors, .ckpt, .pt, .pth or .bin files in it. It holds "
        r"config.json",
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "model.gguf").write_bytes(OTHERS["gguf"][0])
    with pytest.raises(InputNotFoundError, match=r"It holds model.gguf, which is a GGUF file"):
        open_checkpoint(tmp_path)


def test_a_download_under_way_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.incomplete").write_bytes(b"x")
    with pytest.raises(InputNotFoundError, match="incomplete: the download isn't finished"):
        open_checkpoint(tmp_path)


def test_codes_without_their_description_name_it(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise="w8a8-dynamic")
    (tmp_path / "x" / "quant_model_description.json").unlink()
    with pytest.raises(CkptforgeError, match="quant_model_description.json, which says how, is"):
        ckptforge.convert(tmp_path / "x", tmp_path / "y", to="hub")


def test_only_options_that_a_verb_has_are_advised(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(CkptforgeError) as error:
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert "is missing" in str(error.value) and "allow_no_config" not in str(error.value)
    with pytest.raises(CkptforgeError, match="allow_no_config=True"):
        ckptforge.edit(tmp_path / "hub", tmp_path / "x", take=["l=0"], to="hub")
