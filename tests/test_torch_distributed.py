"""Checkpoints of torch.distributed.checkpoint, and files of FSDP's ranks, that torch 2.13 wrote."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptforge
from ckptforge.errors import FormatError, InputNotFoundError, UsageError
from ckptforge.torch_files.pickle_data import Inert
from ckptforge.torch_files.pickling import encoded
from tests.helpers import FIXTURES

HOME = FIXTURES / "torch_distributed"
WHOLE = dict(np.load(HOME / "whole.npz"))


KINDS = ["dcp_2", "dcp_2x2", "dcp_local_2", "hub_shards_2", "fsdp_2", "fsdp_2x2", "sharded_2"]


@pytest.mark.parametrize("name", [*KINDS, "replicated.pt"])
def test_parts_are_put_together_bit_for_bit(name):
    """Cut by rows that don't divide, by columns, not at all, and replicated along a mesh."""
    opened = ckptforge.open(HOME / name)
    found = {name.removeprefix("model."): tensor for name, tensor in opened.items()}
    assert found.keys() == WHOLE.keys()
    for key, numbers in WHOLE.items():
        assert found[key].shape == numbers.shape
        assert found[key][...].tobytes() == numbers.tobytes(), key
    assert str(found["a.weight"].dtype) == "bfloat16"
    assert (
        found["a.weight"][2:5, 1].tobytes()
        == np.ascontiguousarray(WHOLE["a.weight"][2:5, 1]).tobytes()
    )


def test_a_model_in_chunks_is_converted(tmp_path):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    from ckptforge.tables.shipped import shipped_tables
    from ckptforge.verbs.synthetic import write_model
    from tests.helpers import contents

    table = next(table for table in shipped_tables() if table.name == "llama")
    write_model(tmp_path / "hub", table, table.example)
    dcp.save(
        {"model": load_file(tmp_path / "hub" / "model.safetensors")}, checkpoint_id=tmp_path / "d"
    )
    ckptforge.to_ms(tmp_path / "d", tmp_path / "x.ckpt", config=tmp_path / "hub")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt")
    assert contents(tmp_path / "x.ckpt") == contents(tmp_path / "y.ckpt")
    assert torch.__version__


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    from ckptforge.tables.shipped import shipped_tables
    from ckptforge.verbs.synthetic import write_model

    path = tmp_path_factory.mktemp("chunks") / "hub"
    table = next(table for table in shipped_tables() if table.name == "llama")
    write_model(path, table, table.example)
    return path


def test_what_is_written_is_loaded_by_torch(hub, tmp_path):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    ckptforge.to_ms(hub, tmp_path / "x.ckpt")
    out = tmp_path / "dcp"
    ckptforge.to_torch(tmp_path / "x.ckpt", out, format="dcp", max_shard_size=20_000)
    assert len(list(out.glob("__0_*.distcp"))) > 1 and (out / "config.json").exists()
    wanted = load_file(hub / "model.safetensors")
    loaded = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    dcp.load(loaded, checkpoint_id=out)
    dcp_to_torch_save(out, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert saved.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor) and torch.equal(saved[name], tensor), name
    result = ckptforge.convert(out, tmp_path / "back", to="hub")
    assert result.left_out == {}
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        hub / "model.safetensors"
    ).read_bytes()


def test_tensors_of_every_kind_are_written_as_chunks(tmp_path):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    names = "float64 float32 float16 bfloat16 int8 int16 int32 int64 uint8 bool float8_e4m3fn"
    held = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names.split()}
    held |= {"number": torch.tensor(3.5), "empty": torch.zeros(0, 4), "a\u00e9": torch.ones(1)}
    save_file(held, tmp_path / "x.safetensors")
    for verb in ("edit", "merge"):
        out = tmp_path / verb
        if verb == "edit":
            ckptforge.edit(tmp_path / "x.safetensors", out, format="dcp", rename=["empty=void"])
        else:
            with ckptforge.open(tmp_path / "x.safetensors") as model:
                model.rename({"empty": "void"}).save(out, format="dcp")
        loaded = {name: torch.zeros_like(one) for name, one in held.items() if name != "empty"}
        loaded["void"] = torch.ones(0, 4)
        dcp.load(loaded, checkpoint_id=out)
        for name, tensor in loaded.items():
            same = held.get(name, held["empty"])
            assert tensor.dtype == same.dtype and torch.equal(tensor.double(), same.double()), name
        found = ckptforge.open(out)
        assert found["float8_e4m3fn"].dtype == "float8_e4m3fn" and found["void"].shape == (0, 4)


def test_chunks_are_written_without_torch(hub, tmp_path):
    ckptforge.convert(hub, tmp_path / "d", to="hub", format="dcp")
    assert not ckptforge.compare(hub, tmp_path / "d").differences
    merged = tmp_path / "m"
    ckptforge.to_ms(hub, tmp_path / "x.ckpt")
    ckptforge.edit(tmp_path / "x.ckpt", merged, set_dtype=["*=fp32"], format="dcp")
    with ckptforge.open(merged) as model:
        assert all(str(tensor.dtype) == "float32" for tensor in model.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "meta"}, "omit it"),
        ({"to": "dense", "dst_parallel_config": "x.yaml"}, "holds whole tensors"),
    ],
)
def test_what_is_not_written_as_chunks_is_refused(options, message, hub, tmp_path):
    with pytest.raises(UsageError, match=message):
        ckptforge.convert(hub, tmp_path / "d", format="dcp", **options)


@pytest.mark.parametrize("package", ["distributed_checkpoint", "checkpoint"])
def test_hyper_parallels_chunks_in_safetensors(package, tmp_path):
    """Made by hand, as its source says: classes of its own, a file for each rank."""
    rows = np.arange(28, dtype=np.float32).reshape(7, 4)
    whole = np.arange(3, dtype=np.int32)
    home = f"hyper_parallel.core.{package}"
    tensors = {
        "a.weight": (rows.shape, [((0, 0), (4, 4)), ((4, 0), (3, 4))]),
        "b": ((3,), [((0,), (3,))]),
    }
    key = "a.weight.__dcp_chunk_0"
    save_file({key: rows[:4], "b": whole}, tmp_path / "_rank0_.safetensors")
    save_file({"a.weight": rows[4:]}, tmp_path / "_rank1_.safetensors")
    places = {
        ("a.weight", (0, 0)): {"relative_path": "_rank0_.safetensors", "tensor_key": key},
        ("a.weight", (4, 0)): {"relative_path": "_rank1_.safetensors"},
        ("b", ()): {"relative_path": "_rank0_.safetensors", "tensor_key": "b"},
        ("step", ()): {"relative_path": "_rank0_.bytes"},
    }

    def made(name, **state):
        return Inert(f"{home}.{name}", (), state)

    about = {
        name: made(
            "metadata.TensorStorageMetadata",
            properties=made("metadata.TensorProperties", dtype="Float32"),
            size=size,
            chunks=[made("metadata.ChunkStorageMetadata", offsets=lo, sizes=n) for lo, n in chunks],
        )
        for name, (size, chunks) in tensors.items()
    }
    about["step"] = made("metadata.BytesStorageMetadata", nothing=None)
    root = made(
        "metadata.Metadata",
        state_dict_metadata=about,
        planner_data=None,
        storage_data={
            made("metadata.MetadataIndex", fqn=name, offset=offset, index=None): made(
                "storage.StorageInfo", offset=0, length=-1, **place
            )
            for (name, offset), place in places.items()
        },
        version="1.0",
    )
    (tmp_path / ".metadata").write_bytes(b"\x80\x02" + encoded(root) + b".")
    opened = ckptforge.open(tmp_path)
    assert [*opened] == ["a.weight", "b"]
    assert (opened["a.weight"][...] == rows).all() and (opened["b"][...] == whole).all()
    save_file({"other": rows[4:]}, tmp_path / "_rank1_.safetensors")
    with pytest.raises(FormatError, match="_rank1_.safetensors: doesn't hold 'a.weight'"):
        ckptforge.open(tmp_path)


def test_a_rank_that_is_not_there_is_named(tmp_path):
    run = Path(shutil.copytree(HOME / "fsdp_2x2", tmp_path / "run"))
    (run / "model_world_size_4_rank_2.pt").unlink()
    with pytest.raises(InputNotFoundError, match="missing:\n  model_world_size_4_rank_2.pt"):
        ckptforge.open(run)
    shutil.copy(HOME / "fsdp_2" / "model_world_size_2_rank_0.pt", run)
    with pytest.raises(FormatError, match="of jobs with 2 and 4 ranks"):
        ckptforge.open(run)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("fsdp_2", r"'a.weight' is a part \[4, 6\] of a tensor \[7, 6\] \(DTensor\), which isn't"),
        ("sharded_2", r"'model.a.weight' is a part of a tensor \[7, 6\] \(ShardedTensor\), which"),
    ],
)
def test_a_part_alone_is_no_tensor(run, message):
    with pytest.raises(FormatError, match=message):
        ckptforge.open(HOME / run / "model_world_size_2_rank_0.pt")


def test_pieces_that_do_not_make_up_the_whole_are_refused(tmp_path):
    run = Path(shutil.copytree(HOME / "sharded_2", tmp_path / "run"))
    first = run / "model_world_size_2_rank_0.pt"
    shutil.copy(first, run / "model_world_size_2_rank_1.pt")
    with pytest.raises(FormatError, match=r"gap \[4:7, 0:6\] of 'model.a.weight'; are the files"):
        ckptforge.open(run)
    shutil.copy(HOME / "replicated.pt", run / "model_world_size_2_rank_1.pt")
    with pytest.raises(FormatError, match="gap .* of 'model.a.weight'"):
        ckptforge.open(run)


def test_ranks_that_saved_alone_are_read_together(tmp_path):
    opened = ckptforge.inspect(HOME / "dcp_local_2")
    assert any("1 tensor lies in the files of several ranks" in note for note in opened.notes)
    run = Path(shutil.copytree(HOME / "dcp_local_2", tmp_path / "run"))
    (run / "__1.metadata").unlink()
    with pytest.raises(FormatError, match=r"__0.metadata: its chunks gap \[4:7, 0:6\]"):
        ckptforge.open(run)
    shutil.copy(HOME / "dcp_local_2" / "__1.metadata", run / "__2.metadata")
    with pytest.raises(InputNotFoundError, match="missing:\n  __1.metadata"):
        ckptforge.open(run)


def shards(run, about=None):
    """Two files of ranks, of which the second says `about` where its parts lie."""
    rows, saved = np.arange(28, dtype=np.float32).reshape(7, 4), {"a": {"saved_offsets": [4, 0]}}
    for i, (part, said) in enumerate(
        (
            (rows[:4], {"a": {"saved_offsets": [0, 0]}}),
            (rows[4:], saved if about is None else about),
        ),
        1,
    ):
        metadata = {"DCP_SHARDING_INFO": json.dumps(said), "format": "pt"}
        save_file({"a": part}, run / f"shard-{i:05}-model-00001-of-00001.safetensors", metadata)
    return rows


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "says None of 'a', expected where its part begins"),
        ({"a": {"saved_offsets": [4]}}, "says 1 numbers of 'a'"),
        ({"a": {"saved_offsets": [-4, 0]}}, "expected where its part begins"),
        ({"a": {"saved_offsets": [True, 0]}}, "expected where its part begins"),
        ({"a": {"saved_offsets": [5, 0]}}, r"gap \[4:5, 0:4\] of 'a'; are the files of one job"),
        ({"a": {"saved_offsets": [3, 0]}}, r"overlap \[3:4, 0:4\] of 'a'"),
    ],
)
def test_shards_in_safetensors_that_make_up_nothing_are_refused(about, message, tmp_path):
    shards(tmp_path, about)
    with pytest.raises(FormatError, match=message):
        ckptforge.open(tmp_path)


def test_shards_in_safetensors_say_how_many_they_are(tmp_path):
    rows = shards(tmp_path)
    assert (ckptforge.open(tmp_path)["a"][...] == rows).all()
    assert "holds the files of 2 ranks" in ckptforge.inspect(tmp_path).notes[0]
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(InputNotFoundError, match="missing:\n  shard-00001-model"):
        ckptforge.open(tmp_path)


def test_parts_that_do_not_make_up_the_whole_are_refused(tmp_path):
    shutil.copytree(HOME / "fsdp_2", tmp_path / "run")
    first = tmp_path / "run" / "model_world_size_2_rank_0.pt"
    shutil.copy(first, tmp_path / "run" / "model_world_size_2_rank_1.pt")
    with pytest.raises(FormatError, match=r"'a.weight' \[7, 6\] is cut along axis 0.*4 of 7"):
        ckptforge.open(tmp_path / "run")


def test_chunks_that_are_not_there_are_refused(tmp_path):
    run = Path(shutil.copytree(HOME / "dcp_2", tmp_path / "run"))
    last = run / "__1_0.distcp"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(FormatError, match=r"__1_0.distcp: should hold bytes \d+ to \d+, but has"):
        ckptforge.open(run)
    last.unlink()
    with pytest.raises(InputNotFoundError, match="__1_0.distcp"):
        ckptforge.open(run)


class _Danger:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Danger()), "names 'builtins.exec', which is no part of a checkpoint's data"),
        (pickle.dumps({"state_dict_metadata": {}}), "where state_dict_metadata should stand"),
        (b"", "no end|isn't a pickle"),
        (pickle.dumps([1]), "where state_dict_metadata should stand"),
    ],
)
def test_metadata_of_another_kind_is_refused_and_not_run(content, message, tmp_path):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        ckptforge.open(tmp_path)


def test_an_adapter_of_peft_in_torchs_format(tmp_path):
    torch = pytest.importorskip("torch")
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB"]
    tensors = {name: torch.arange(8.0).reshape(2, 4) for name in names}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    torch.save(tensors, tmp_path / "adapter_model.bin")
    opened = ckptforge.open(tmp_path)
    assert sorted(opened) == sorted(names)
    assert (opened[names[0]][...] == tensors[names[0]].numpy()).all()
