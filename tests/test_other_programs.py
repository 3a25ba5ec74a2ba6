"""Our output, read back by the programs it is for: MindSpore, transformers, the safetensors
library."""

import json
import shutil

import numpy as np
import pytest

import ckptforge
from ckptforge.dtypes import BY_MINDSPORE
from ckptforge.formats import mindspore_ckpt
from ckptforge.tables.shipped import shipped_tables
from tests.helpers import (
    FIXTURES,
    HUB,
    MINDSPORE,
    contents,
    raw_safetensors,
    tiny_config,
    write_hub,
)

MIXTRAL = next(table for table in shipped_tables() if table.name == "mixtral")
MINDSPORE_LAYOUTS = [
    layout.name for layout in MIXTRAL.layouts.values() if layout.family == "mindspore"
]


@pytest.mark.parametrize("layout", ["hub", "fused"])
def test_the_safetensors_library_reads_hugging_face_output(tmp_path, layout):
    safetensors = pytest.importorskip("safetensors")
    ckptforge.convert(HUB, tmp_path / "out", to=layout, max_shard_size="300KB")
    ours = contents(tmp_path / "out")
    seen = set()
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                seen.add(name)
                assert list(file.get_slice(name).get_shape()) == list(ours[name][1])
        for name, array in raw_safetensors(path).items():
            assert array.tobytes() == ours[name][2]
    assert seen == set(ours)


@pytest.fixture(scope="module")
def mindspore():
    return pytest.importorskip("mindspore")


def loaded(mindspore, path):
    """name → (dtype, shape, bytes) as MindSpore loads a file."""
    kind = "safetensors" if path.suffix == ".safetensors" else "ckpt"
    found = {}
    for name, parameter in mindspore.load_checkpoint(str(path), format=kind).items():
        if isinstance(parameter, str):
            found[name] = parameter
            continue
        array = parameter.asnumpy()
        found[name] = (BY_MINDSPORE[str(parameter.dtype)].name, array.shape, array.tobytes())
    return found


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("dtype", ["keep", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("layout", MINDSPORE_LAYOUTS)
def test_mindspore_loads_what_we_write(mindspore, tmp_path, layout, dtype, ending):
    path = tmp_path / f"x.{ending}"
    ckptforge.to_ms(HUB, path, layout=layout, dtype=dtype)
    assert loaded(mindspore, path) == contents(path)


def test_mindspore_loads_optimizer_state_and_scalars(mindspore, tmp_path):
    for ending in ("ckpt", "safetensors"):
        ckptforge.convert(MINDSPORE / "full.ckpt", tmp_path / f"x.{ending}", to="gmm")
        assert loaded(mindspore, tmp_path / f"x.{ending}") == contents(MINDSPORE / "full_gmm.ckpt")


@pytest.mark.parametrize(
    "name",
    [
        "misc/dtypes.ckpt",
        "misc/append.ckpt",
        "misc/chunked_small.ckpt",
        "misc/one_message.ckpt",
        "full.ckpt",
    ],
)
def test_we_read_what_mindspore_reads(mindspore, name):
    ours = contents(MINDSPORE / name)
    for tensor, value in loaded(mindspore, MINDSPORE / name).items():
        if isinstance(value, str):
            assert ours[tensor][2].decode("utf-32-le").rstrip("\0") == value
        elif ours[tensor][0] != "qint4x2":
            assert ours[tensor] == value


@pytest.mark.parametrize("slice_kb", [1, 3])
def test_the_ckpt_writer_equals_save_checkpoint_with_chunks(
    mindspore, tmp_path, monkeypatch, slice_kb
):
    """MindSpore's own save, its chunk size made small, against ours; bfloat16 and scalars
    included."""
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", slice_kb)
    monkeypatch.setattr(mindspore_ckpt, "CHUNK_BYTES", slice_kb * 1024)
    write_hub(tmp_path / "hub", tiny_config(hidden_size=24, intermediate_size=40))
    path = tmp_path / "ours.ckpt"
    ckptforge.to_ms(tmp_path / "hub", path)
    parameters = mindspore.load_checkpoint(str(path))
    saved = [{"name": name, "data": parameter} for name, parameter in parameters.items()]
    mindspore.save_checkpoint(saved, str(tmp_path / "theirs.ckpt"))
    assert (tmp_path / "theirs.ckpt").read_bytes() == path.read_bytes()
    assert any(len(entry.extents) > 1 for entry in mindspore_ckpt.read_index(path).tensors.values())


def test_save_checkpoint_of_every_dtype_equals_ours(mindspore, tmp_path):
    random = np.random.default_rng(0)
    names = [
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
        "bool",
    ]
    saved = []
    for name in names:
        saved.append(
            {
                "name": f"t.{name}",
                "data": mindspore.Tensor(random.integers(0, 2, (3, 5)).astype(name)),
            }
        )
        saved.append({"name": f"s.{name}", "data": mindspore.Tensor(np.array(1, name))})
    mindspore.save_checkpoint(
        saved,
        str(tmp_path / "theirs.ckpt"),
        append_dict={"epoch_num": 3, "lr": 0.5, "done": True, "note": "héllo"},
    )
    from tests.test_formats import rewrite

    index = mindspore_ckpt.read_index(tmp_path / "theirs.ckpt")
    assert list(index.tensors)[-1] == "note" and len(index.tensors) == 28
    assert (
        rewrite(index, mindspore_ckpt.lay_out, tmp_path / "x")
        == (tmp_path / "theirs.ckpt").read_bytes()
    )


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def load_model(transformers, path):
    import torch

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize(
    ("layout", "hf_layout"),
    [
        ("dense", "hub"),
        ("gmm", "hub"),
        ("gmm-v3", "fused"),
        ("dense-qkv-r1.3", "hub"),
        ("gmm-qkv-r1.4", "hub"),
    ],
)
def test_transformers_loads_the_directory_and_gives_the_logits(
    transformers, tmp_path, layout, hf_layout
):
    import torch
    from safetensors.torch import load_file

    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout=layout)
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf", hf_layout=hf_layout)
    model = load_model(transformers, tmp_path / "hf")
    recorded = load_file(FIXTURES / "peer" / "torch_logits_fp32.safetensors")
    original = load_model(transformers, HUB)
    tokens = next(tensor for tensor in recorded.values() if tensor.dtype == torch.int64)
    with torch.no_grad():
        logits, expected = model(tokens).logits, original(tokens).logits
    assert torch.equal(logits, expected)
    fitting = [
        tensor
        for tensor in recorded.values()
        if tensor.shape == logits.shape and tensor.dtype == torch.float32
    ]
    assert fitting and torch.allclose(logits, fitting[0], atol=1e-5, rtol=0)


def test_models_saved_by_transformers_go_both_ways(transformers, tmp_path):
    """Tied embeddings, its own head_dim, other expert counts: saved by the real class, converted,
    reloaded."""
    import torch

    variants = [
        {"tie_word_embeddings": True, "head_dim": None},
        {"num_local_experts": 11, "head_dim": 6},
        {"num_key_value_heads": 1, "head_dim": 4},
    ]
    for seed, changes in enumerate(variants):
        torch.manual_seed(seed)
        config = transformers.MixtralConfig(
            **{
                **tiny_config(hidden_size=24, intermediate_size=12, **changes),
                "torch_dtype": "float32",
                "max_position_embeddings": 32,
            }
        )
        model = transformers.MixtralForCausalLM(config).eval()
        hub = tmp_path / f"hub{seed}"
        model.save_pretrained(hub)
        ckptforge.to_ms(hub, tmp_path / f"{seed}.ckpt", layout="gmm")
        ckptforge.to_torch(tmp_path / f"{seed}.ckpt", tmp_path / f"back{seed}")
        tokens = torch.arange(6)[None] % config.vocab_size
        with torch.no_grad():
            assert torch.equal(
                load_model(transformers, hub)(tokens).logits,
                load_model(transformers, tmp_path / f"back{seed}")(tokens).logits,
            )
        assert json.loads((tmp_path / f"back{seed}" / "config.json").read_text()) == json.loads(
            (hub / "config.json").read_text()
        )
        shutil.rmtree(hub)


@pytest.mark.parametrize("name", ["mp8", "dp4mp2ep2_opt2", "dp2mp2"])
@pytest.mark.parametrize("as_json", [False, True])
def test_mindspore_takes_our_strategy_files_and_our_shards(mindspore, tmp_path, name, as_json):
    """Its transform_checkpoints merges what we split, under the strategy as we write it."""
    from ckptforge.parallel.strategy_files import read_strategy, strategy_bytes

    path = tmp_path / ("s.json" if as_json else "s.ckpt")
    path.write_bytes(
        strategy_bytes(0, read_strategy(MINDSPORE / "strategies" / name).stages[0], as_json=as_json)
    )
    ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "ours", strategy_dir=path)
    mindspore.transform_checkpoints(
        str(tmp_path / "ours"), str(tmp_path / "theirs"), "x", str(path), None
    )
    assert contents(tmp_path / "theirs" / "rank_0") == contents(MINDSPORE / "full.ckpt")


def test_mindspore_takes_computed_strategies(mindspore, tmp_path):
    """Its merge of a pipeline's strategies and its merge of our ranks: 16 ranks, expert and
    optimizer parallel."""
    config = tmp_path / "c.json"
    keys = {
        "dp": 8,
        "ep": 4,
        "pp": 2,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_threshold": 0,
    }
    config.write_text(json.dumps(keys))
    full = MINDSPORE / "full.ckpt"
    ckptforge.strategy(tmp_path / "strategy", parallel_config=config, like=full)
    ckptforge.split(full, tmp_path / "ranks", parallel_config=config)
    mindspore.merge_pipeline_strategys(
        str(tmp_path / "strategy"), str(tmp_path / "merged_strategy.ckpt")
    )
    (tmp_path / "merged").mkdir()
    mindspore.transform_checkpoints(
        str(tmp_path / "ranks"),
        str(tmp_path / "merged"),
        "m",
        str(tmp_path / "merged_strategy.ckpt"),
        None,
    )
    assert contents(tmp_path / "merged/rank_0/m0.ckpt") == contents(full)


def test_mindspore_loads_unified_safetensors(mindspore, tmp_path, monkeypatch):
    """load_distributed_checkpoint, from several parts, into the ranks of a computed strategy."""
    monkeypatch.setattr("ckptforge.targets.mindspore.UNIFIED_PART_BYTES", 100_000)
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"mp": 4, "vocab_emb_dp": False}))
    full = MINDSPORE / "full.ckpt"
    ckptforge.convert(
        full, tmp_path / "unified", to="dense", format="unified", dtype="fp32", weights_only=True
    )
    ckptforge.convert(full, tmp_path / "whole.ckpt", to="dense", dtype="fp32", weights_only=True)
    assert len(list((tmp_path / "unified").glob("part*.safetensors"))) > 1
    ckptforge.strategy(tmp_path / "s", parallel_config=config, like=full)
    ckptforge.split(tmp_path / "whole.ckpt", tmp_path / "ours", parallel_config=config)
    mindspore.load_distributed_checkpoint(
        None,
        predict_strategy=str(tmp_path / "s/ckpt_strategy_rank_0.ckpt"),
        format="safetensors",
        unified_safetensors_dir=str(tmp_path / "unified"),
        dst_safetensors_dir=str(tmp_path / "theirs"),
        max_process_num=1,
    )
    for rank in range(4):
        (theirs,) = (tmp_path / f"theirs/rank_{rank}").glob("*.safetensors")
        assert contents(theirs) == contents(tmp_path / f"ours/rank_{rank}/checkpoint_{rank}.ckpt")
