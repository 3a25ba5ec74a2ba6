"""DeepSeek-V4: its names in MindFormers, its files as they are published, its layers of several
kinds."""

import importlib
import json
import re

import ml_dtypes
import numpy as np
import pytest

import ckptforge
from ckptforge.errors import ConfigError, UsageError
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import FIXTURES, contents, write_safetensors

TABLE = next(table for table in shipped_tables() if table.name == "deepseek_v4")
THEIRS = json.loads((FIXTURES / "mindformers_deepseek4.json").read_text())["names"]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def written(directory, **changes):
    write_model(directory, TABLE, {**TABLE.example, **changes})
    return contents(directory)


def nameless(template):
    """A name of the table, or of MindFormers' converters, without what its numbers are called.
    These know the first layer that predicts a further token only."""
    plain = re.sub(r"\{\w*\}", "{}", template)
    return re.sub(r"^mtp\.(layers\.)?0\.", r"mtp.\1{}.", plain)


def test_names_are_those_of_mindformers_converters():
    hub, pynative = TABLE.layouts["hub"], TABLE.layouts["pynative"]
    ours = {
        tensor: (
            nameless(hub.holding(tensor).template),
            nameless(pynative.holding(tensor).template),
        )
        for tensor in TABLE.tensors
    }
    theirs = {(nameless(hf), nameless(mf)) for hfs, mfs in THEIRS for hf in hfs for mf in mfs}
    assert set(ours.values()) == theirs
    for hfs, _ in THEIRS:  # what they concatenate lies in this order
        held = [t for name in hfs for t, (own, _) in ours.items() if own == nameless(name)]
        assert held == [t for t in held if t in TABLE.tensors]


def test_parts_of_hyper_connections_and_projections_lie_where_mindformers_has_them(tmp_path):
    hub = written(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", to="pynative")
    made = contents(tmp_path / "x.ckpt")

    def array(held, name):
        dtype, shape, data = held[name]
        return np.frombuffer(data, {"bfloat16": np.uint16, "int64": np.int64}[dtype]).reshape(shape)

    for layer, kind in ((0, "attn"), (4, "ffn")):
        scale = array(hub, f"layers.{layer}.hc_{kind}_scale")
        for at, part in enumerate(("pre", "post", "res")):
            alpha = array(made, f"decoder.layers.{layer}.{kind}_hc.alpha_{part}")
            assert alpha.shape == (1,) and alpha[0] == scale[at]
    both = [array(hub, f"mtp.0.{x}_proj.weight") for x in "eh"]
    assert (array(made, "mtp.layers.0.eh_proj.weight") == np.concatenate(both, 1)).all()
    stacked = array(made, "decoder.layers.3.mlp.experts.weight1")
    for e in range(8):
        w1, w3 = (array(hub, f"layers.3.ffn.experts.{e}.{w}.weight").T for w in ("w1", "w3"))
        assert (stacked[e] == np.concatenate([w1, w3], 1)).all()
    # ConcatConvertOp, unless it is told otherwise: row by row
    for ours, theirs in (("layers.3.ffn.", "decoder.layers.3."), ("mtp.0.ffn.", "mtp.layers.0.")):
        theirs += "transformer_layer." * theirs.startswith("mtp")
        w1, w3 = (array(hub, f"{ours}shared_experts.{w}.weight") for w in ("w1", "w3"))
        shared = array(made, f"{theirs}mlp.shared_experts.linear_fc1.weight")
        assert (shared[0::2] == w1).all() and (shared[1::2] == w3).all()
    table = array(made, "decoder.layers.1.mlp.router.tid2eid")
    assert (table == array(hub, "layers.1.ffn.gate.tid2eid")).all() and table.dtype == np.int64


def published(directory, blocks=(128, 128)):
    """As its makers publish it: experts in FP4, other matrices in FP8, all scales in E8M0, each
    called `scale` beside `weight`. Returns the numbers that are meant."""
    sizes = {"hidden_size": 192, "moe_intermediate_size": 64}
    held, rng = written(directory, **sizes), np.random.default_rng(0)
    stored, meant = {}, {}
    for name, (dtype, shape, data) in held.items():
        module = name.removesuffix("weight")
        kinds = {"bfloat16": "BF16", "int64": "I64"}
        stored[name] = kinds[dtype], list(shape), data
        if re.search(r"ffn\.experts\.\d+\.w", name):
            codes = rng.integers(0, 256, (shape[0], shape[1] // 2), np.uint8)
            powers = rng.integers(100, 130, (shape[0], shape[1] // 32), np.uint8)
            values = E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(shape)]
            scales = np.repeat(np.exp2(powers.astype(np.float32) - 127), 32, 1)
            stored[name] = "I8", list(codes.shape), codes.tobytes()
        elif re.search(r"\.(attn\.w|attn\.indexer\.wq_b|ffn\.shared|[eh]_proj)", name):
            codes = rng.integers(0, 256, shape, np.uint8)
            codes[(codes & 127) == 127] = 0
            grid = [-(-n // step) for n, step in zip(shape, blocks, strict=True)]
            powers = rng.integers(110, 130, grid, np.uint8)
            values = codes.view(FP8).astype(np.float32)
            spread = np.repeat(np.repeat(powers, blocks[0], 0), blocks[1], 1)[
                : shape[0], : shape[1]
            ]
            scales = np.exp2(spread.astype(np.float32) - 127)
            stored[name] = "F8_E4M3", list(shape), codes.tobytes()
        else:
            continue
        stored[f"{module}scale"] = "F8_E8M0", list(powers.shape), powers.tobytes()
        meant[name] = (values * scales).astype(BF16).tobytes()
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"expert_dtype": "fp4", "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "scale_fmt": "ue8m0", "weight_block_size": list(blocks)}}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return {name: meant.get(name, held[name][2]) for name in held}


def test_files_as_they_are_published_are_read_as_what_they_stand_for(tmp_path):
    meant = published(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", to="pynative")
    ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "back", to="hub")
    back = contents(tmp_path / "back")
    assert {name: data for name, (_, _, data) in back.items()} == meant
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not {"quantization_config", "expert_dtype"} & config.keys()
    assert back["layers.0.ffn.gate.tid2eid"][0] == "int64"


@pytest.mark.slow
def test_transformers_reads_the_published_experts_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    fp8 = importlib.import_module("transformers.integrations.finegrained_fp8")
    meant = published(tmp_path / "hub")
    held = contents(tmp_path / "hub")
    (name,) = [n for n in meant if n.startswith("layers.1.ffn.experts.5.w2.")]
    _, shape, data = held[name]
    codes = torch.frombuffer(bytearray(data), dtype=torch.int8).reshape(shape)
    _, grid, powers = held[name.removesuffix("weight") + "scale"]
    scales = torch.frombuffer(bytearray(powers), dtype=torch.float8_e8m0fnu).reshape(grid)
    made = fp8.Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    assert made.view(torch.int16).numpy().tobytes() == meant[name]


def test_what_transformers_saves_is_a_layout_of_its_own(tmp_path):
    hub = written(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "saved", to="saved")
    names = contents(tmp_path / "saved")
    assert "model.layers.0.attn.norm.weight" in names and "head.weight" in names
    ckptforge.convert(tmp_path / "saved", tmp_path / "back", to="hub")
    assert contents(tmp_path / "back") == hub


def test_layers_take_their_kind_along_and_experts_stay_with_the_table_of_tokens(tmp_path):
    written(tmp_path / "hub")
    model = ckptforge.open(tmp_path / "hub")
    taken = model.take(l=[0, 1, 4, 3])
    assert taken.config["compress_ratios"] == [0, 128, 4, 128, 0]
    taken.save(tmp_path / "taken")
    ckptforge.convert(tmp_path / "taken", tmp_path / "x.ckpt", to="pynative")
    with pytest.raises(UsageError, match="router_table holds numbers of axis e"):
        model.take(e=[0, 1, 2])
    # by their numbers the first of these would be routed by the table
    with pytest.raises(UsageError, match="axis x is 0, but l where .* would be 2"):
        model.take(l=[2, 3, 4])


def test_tables_of_tokens_are_integers_and_no_cast_touches_them(tmp_path):
    written(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="fused", dtype="float32")
    made = contents(tmp_path / "x")
    assert made["model.layers.0.mlp.gate.tid2eid"][0] == "int64"
    assert made["model.layers.0.mlp.gate.weight"][0] == "float32"


def test_a_model_whose_kinds_of_layers_config_does_not_say_is_refused(tmp_path):
    written(tmp_path / "hub")
    config = {k: v for k, v in TABLE.example.items() if k != "compress_ratios"}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, ckptforge.CkptforgeError), match="compress_ratios"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", to="pynative")


@pytest.mark.parametrize("more", [1, 0], ids=["with more tokens", "without"])
@pytest.mark.parametrize("layout", ["mindspeed", "mindspeed-sequential"])
def test_ranks_of_mindspeed_hold_what_its_converter_gives_them(tmp_path, layout, more):
    """Tensor and expert parallel, two each, in the names and cuts of convert_ckpt_deepseek4.py."""
    hub = written(tmp_path / "hub", num_nextn_predict_layers=more)
    job = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}
    (tmp_path / "job.json").write_text(json.dumps(job))
    ranks = tmp_path / "ranks"
    ckptforge.convert(tmp_path / "hub", ranks, to=layout, dst_parallel_config=tmp_path / "job.json")
    torch = pytest.importorskip("torch")
    path = ranks / "iter_0000001" / "mp_rank_01_000" / "model_optim_rng.pt"
    held = torch.load(path, weights_only=False)["model"]
    assert "final_layernorm.weight" in held and "decoder.final_layernorm.weight" not in held
    assert ("mtp.final_layernorms.0.weight" in held) == bool(more)

    def whole(name):
        _, shape, data = hub[name]
        return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape)

    attention = "decoder.layers.2.self_attention."
    for name, own, dim in (
        ("linear_o_down_proj", "wo_a", 0),
        ("linear_o_up_proj", "wo_b", 1),
        ("linear_q_up_proj", "wq_b", 0),
    ):
        second = torch.chunk(whole(f"layers.2.attn.{own}.weight"), 2, dim)[1]
        assert torch.equal(held[f"{attention}{name}.weight"], second)
    assert torch.equal(held[f"{attention}attn_sink"], whole("layers.2.attn.attn_sink")[2:])
    both = [whole(f"layers.2.ffn.shared_experts.{w}.weight").chunk(2)[1] for w in ("w1", "w3")]
    shared = held["decoder.layers.2.mlp.shared_experts.linear_fc1.weight"]
    assert torch.equal(shared, torch.cat(both))
    ckptforge.convert(ranks, tmp_path / "back", to="hub", config=tmp_path / "hub")
    assert contents(tmp_path / "back") == hub


PYNATIVE = """
parallelism:
  data_parallel_shard: 4
  tensor_parallel: 2
  expert_parallel: 4
"""
STAGES = """  pipeline_parallel: 2
  pipeline_parallel_layers_per_stage: ['0-1', '2-4']
"""
# the first layer's, as pynative/base_models/gpt/parallelize.py cuts them
CUTS = {
    "embedding.word_embeddings.weight": [8, 1],
    "self_attention.linear_q_down_proj.weight": [4, 1],
    "self_attention.linear_q_up_proj.weight": [8, 1],
    "self_attention.linear_o_group_proj": [4, 1],
    "self_attention.linear_proj.weight": [4, 1],
    "self_attention.core_attention.attn_sink": [4],
    "attn_hc.mapping_proj.weight": [1, 4],
    "ffn_hc.bias": [1],
    "ffn_hc.alpha_res": [1],
    "mlp.router.tid2eid": [1, 1],
    "mlp.shared_experts.linear_fc1.weight": [4, 1],
    "mlp.experts.weight1": [8, 1, 1],
    "decoder.hc_head.hc_fn.weight": [1, 4],
    "decoder.hc_head.hc_base": [1],
    "mtp.layers.0.hc_head.hc_fn.weight": [1, 4],
    "mtp.layers.0.transformer_layer.mlp.expert_bias": [1],
    "mtp.layers.0.transformer_layer.ffn_hc.mapping_proj.weight": [1, 4],
}


@pytest.mark.parametrize("stages", ["", STAGES], ids=["one stage", "two stages"])
def test_the_pynative_trainer_shards_it_and_what_it_saved_comes_back(tmp_path, stages):
    hub = written(tmp_path / "hub")
    (tmp_path / "job.yaml").write_text(PYNATIVE + stages)
    ckptforge.to_ms(
        tmp_path / "hub",
        tmp_path / "run",
        layout="pynative",
        parallel_config=tmp_path / "job.yaml",
        format="mindformers",
    )
    (path,) = (tmp_path / "run").glob("iteration_*/metadata.json")
    said = json.loads(path.read_text())["state_dict_metadata"]
    for name, expected in CUTS.items():
        full = name if name in said else f"decoder.layers.0.{name}"
        assert said[full]["axis_fragmentations"] == expected, name
    ckptforge.to_torch(tmp_path / "run", tmp_path / "back", config=tmp_path / "hub")
    assert contents(tmp_path / "back") == hub
    small = tmp_path / "small.yaml"
    small.write_text("parallelism: {data_parallel_shard: 2, expert_parallel: 2}")
    ckptforge.reshard(
        tmp_path / "run", tmp_path / "again", dst_parallel_config=small, format="mindformers"
    )
    ckptforge.to_torch(tmp_path / "again", tmp_path / "more", config=tmp_path / "hub")
    assert contents(tmp_path / "more") == hub
