"""Megatron's checkpoints: against files of MindSpeed-LLM's converter, there and back for any job,
and what a training script keeps beside weights."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.checkpoints.files import read_file
from ckptforge.errors import (
    ConfigError,
    FormatError,
    InputNotFoundError,
    LayoutError,
    ModelUnknownError,
    UsageError,
)
from ckptforge.examine.window import Window
from ckptforge.megatron.arguments import read_arguments
from ckptforge.megatron.job import Job, Rank, spread_layers
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import FIXTURES, contents

TABLES = {table.name: table for table in shipped_tables()}
MINDSPEED = FIXTURES / "mindspeed"
TENSOR, STAGES = "tensor_model_parallel_size", "pipeline_model_parallel_size"
EXPERT, EXPERT_TENSOR = "expert_model_parallel_size", "expert_tensor_parallel_size"
PART = "num_layers_per_virtual_pipeline_stage"
CASES = [
    ("llama_tp2_pp2_vpp", "llama", "mindspeed", {TENSOR: 2, STAGES: 2, PART: 1}),
    ("moe_tp2_pp2_ep2_grouped", "qwen3_moe", "mindspeed", {TENSOR: 2, STAGES: 2, EXPERT: 2}),
    (
        "mla_mtp_tp2_pp2_ep2_grouped",
        "deepseek_v3",
        "mindspeed",
        {TENSOR: 2, STAGES: 2, EXPERT: 2},
    ),
    (
        "moe_tp2_ep4_etp1",
        "qwen3_moe",
        "mindspeed-sequential",
        {TENSOR: 2, EXPERT: 4, EXPERT_TENSOR: 1},
    ),
    (
        "llama_tp1_pp2_noop_vpp",
        "llama",
        "mindspeed",
        {STAGES: 2, PART: 2, "noop_layers": "0,3,5,7"},
    ),
    ("llama_pp3_list", "llama", "mindspeed", {STAGES: 3, "num_layer_list": "1,2,1"}),
    ("llama_pp2_dualpipev", "llama", "mindspeed", {STAGES: 2, "schedules_method": "dualpipev"}),
    (
        "moe_tp2_ep2_extended",
        "qwen3_moe",
        "mindspeed",
        {TENSOR: 2, EXPERT: 2, "moe_tp_extend_ep": "true"},
    ),
    (
        "mla_mtp_tp2_ep2_mm_split",
        "deepseek_v3",
        "mindspeed-mm-split",
        {TENSOR: 2, EXPERT: 2},
    ),
    (
        "mla_v2_tp2_pp2_ep2_grouped",
        "deepseek_v2",
        "mindspeed",
        {TENSOR: 2, STAGES: 2, EXPERT: 2},
    ),
    ("mla_v2_lite_tp2_ep2", "deepseek_v2_lite", "mindspeed-sequential", {TENSOR: 2, EXPERT: 2}),
    ("minimax_tp2_ep2_grouped", "minimax_m2", "mindspeed", {TENSOR: 2, EXPERT: 2}),
]


def numbers(root):
    """File of a rank → tensor → (dtype, shape, bytes)."""
    found, window = {}, Window()
    for path in sorted(root.rglob("*.pt")):
        values = dict(read_file(path).values())
        found[str(path.relative_to(root))] = {
            name: (value.dtype.name, value.shape, window.read(name, value).tobytes())
            for name, value in values.items()
        }
    return found


@pytest.mark.parametrize(("name", "model", "layout", "job"), CASES, ids=[c[0] for c in CASES])
def test_files_of_mindspeeds_converter_are_read_and_written(name, model, layout, job, tmp_path):
    hub = MINDSPEED / model
    result = ckptforge.to_torch(MINDSPEED / name, tmp_path / "hub", config=hub)
    assert contents(tmp_path / "hub") == contents(hub) and result.left_out == {}
    assert ckptforge.inspect(MINDSPEED / name).layout == layout
    (tmp_path / "job.yaml").write_text("".join(f"{key}: {n}\n" for key, n in job.items()))
    how = {"format": "megatron", "dst_parallel_config": tmp_path / "job.yaml"}
    ckptforge.convert(hub, tmp_path / "back", to=layout, **how)
    assert numbers(tmp_path / "back") == numbers(MINDSPEED / name)
    wanted, found = (
        read_arguments(next(iter(sorted(root.rglob("*.pt")))))
        for root in (MINDSPEED / name, tmp_path / "back")
    )
    for key in (*job, "num_layers", PART):  # which its converter back reads
        assert found.get(key) == wanted.get(key), key
    tracker = "latest_checkpointed_iteration.txt"
    assert (tmp_path / "back" / tracker).read_bytes() == (MINDSPEED / name / tracker).read_bytes()


def test_files_of_every_rank_are_read_where_a_job_needs_only_some(tmp_path):
    """As MindSpeed-LLM's convert_ckpt_deepseek4.py writes them for expert-tensor-parallel 1."""
    run = tmp_path / "run"
    shutil.copytree(MINDSPEED / "moe_tp2_ep4_etp1", run)
    held = sorted((run / "iter_0000001").iterdir())
    for tensor in range(2):
        for expert in range(4):
            rank = run / "iter_0000001" / f"mp_rank_{tensor:02}_{expert:03}"
            if rank not in held:
                shutil.copytree(held[0], rank)
    result = ckptforge.to_torch(run, tmp_path / "hub", config=MINDSPEED / "qwen3_moe")
    assert contents(tmp_path / "hub") == contents(MINDSPEED / "qwen3_moe")
    assert any(
        note.startswith("4 files of ranks that share their experts") for note in result.notes
    )
    shutil.rmtree(run / "iter_0000001" / "mp_rank_01_000")
    with pytest.raises(FormatError, match="are they of one job"):
        ckptforge.to_torch(run, tmp_path / "x", config=MINDSPEED / "qwen3_moe")


def test_norms_behind_attention_and_mlp_are_called_as_mindspeed_does(tmp_path):
    """Its models.py and model_cfg.json "glm4", with --post-norm."""
    table = TABLES["glm4"]
    write_model(tmp_path / "hub", table, table.example)
    (tmp_path / "job.json").write_text(json.dumps({TENSOR: 2}))
    ckptforge.convert(
        tmp_path / "hub",
        tmp_path / "run",
        to="mindspeed",
        dst_parallel_config=tmp_path / "job.json",
    )
    held, hub = numbers(tmp_path / "run"), contents(tmp_path / "hub")
    second = held["iter_0000001/mp_rank_01/model_optim_rng.pt"]
    for own, theirs in (
        ("post_self_attn_layernorm", "post_attn_norm"),
        ("post_attention_layernorm", "pre_mlp_layernorm"),
        ("post_mlp_layernorm", "post_mlp_layernorm"),
    ):
        name = f"decoder.layers.1.{theirs}.weight"
        found = second.get(name) or second[f"model.{name}"]
        assert found == hub[f"model.layers.1.{own}.weight"]
    both = np.frombuffer(hub["model.layers.1.mlp.gate_up_proj.weight"][2], np.uint16)
    parts = both.reshape(2, 2, -1)[:, 1]  # of the gate and of up, the second half
    name = next(n for n in second if n.endswith("layers.1.mlp.linear_fc1.weight"))
    assert second[name][2] == parts.tobytes()


def test_names_of_transformer_engine_for_latent_attention(tmp_path):
    """Dense layers have the norm in their first linear layer, those with experts apart."""
    hub = MINDSPEED / "deepseek_v3"
    job = {TENSOR: 2, STAGES: 2, EXPERT: 2}
    (tmp_path / "job.json").write_text(json.dumps(job))
    how = {"to": "megatron", "dst_parallel_config": tmp_path / "job.json"}
    ckptforge.convert(hub, tmp_path / "run", **how)
    names = {
        name.removeprefix("model.decoder.layers.")
        for held in numbers(tmp_path / "run").values()
        for name in held
    }
    assert "0.mlp.linear_fc1.layer_norm_weight" in names
    for name in (
        "0.pre_mlp_layernorm.weight",
        "0.self_attention.linear_q_up_proj.layer_norm_weight",
        "0.self_attention.linear_kv_down_proj.weight",
        "0.mlp.experts.linear_fc1.weight0",
    ):
        assert name in names, name
    dense = [
        held
        for held in numbers(tmp_path / "run").values()
        if "model.decoder.layers.0.mlp.linear_fc1.weight" in held
    ]
    assert dense and not any("model.decoder.layers.0.pre_mlp_layernorm.weight" in h for h in dense)
    (tmp_path / "run" / "ckptforge.manifest.json").unlink()
    assert ckptforge.inspect(tmp_path / "run").layout == "megatron"
    ckptforge.to_torch(tmp_path / "run", tmp_path / "hub", config=hub)
    assert contents(tmp_path / "hub") == contents(hub)


@pytest.mark.parametrize(
    ("layout", "part", "rows"),
    [("megatron", "linear_q_proj", 48), ("mindspeed", "linear_qkv", 4 * 24 + 16 + 8)],
)
def test_queries_that_are_not_compressed_are_cut_by_heads_or_whole(tmp_path, layout, part, rows):
    """Megatron-core's multi_latent_attention.py: linear_q_proj is a ColumnParallelLinear."""
    config = {**TABLES["deepseek_v3"].example, "q_lora_rank": None, "num_nextn_predict_layers": 0}
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], config)
    (tmp_path / "job.json").write_text(json.dumps({TENSOR: 2, EXPERT: 2}))
    how = {"to": layout, "dst_parallel_config": tmp_path / "job.json"}
    ckptforge.convert(tmp_path / "hub", tmp_path / "run", **how)
    for held in numbers(tmp_path / "run").values():
        shapes = [shape for name, (_, shape, _) in held.items() if f".{part}.weight" in name]
        assert shapes == [(rows, 64)] * 3
    (tmp_path / "run" / "ckptforge.manifest.json").unlink()
    ckptforge.to_torch(tmp_path / "run", tmp_path / "back", config=tmp_path / "hub")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "deepseek_v32", "qwen3_next"])
def test_the_last_norm_is_called_by_whether_more_tokens_are_predicted(name, tmp_path):
    """MindSpeed-LLM, convert_hf2mg.py: outside of the decoder with --mtp-num-layers."""
    key = "num_nextn_predict_layers"
    for count, wanted in ((0, "decoder.final_layernorm.weight"), (1, "final_layernorm.weight")):
        work = tmp_path / str(count)
        write_model(work / "hub", TABLES[name], {**TABLES[name].example, key: count})
        for layout in TABLES[name].names_of("megatron"):
            if layout != "megatron":
                ckptforge.convert(work / "hub", work / layout, to=layout)
                (held,) = numbers(work / layout).values()
                norms = [n for n in held if n.endswith(".final_layernorm.weight")]
                assert norms == [f"model.{wanted}"]
                (work / layout / "ckptforge.manifest.json").unlink()
                assert ckptforge.inspect(work / layout).layout == layout
                ckptforge.to_torch(work / layout, work / f"{layout}-hub", config=work / "hub")
                assert contents(work / f"{layout}-hub") == contents(work / "hub")


@st.composite
def jobs(draw, layers, experts):
    """A job's configuration for a model of 4 kv heads."""
    tensor, stages = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    found = {TENSOR: tensor, STAGES: stages}
    if experts:
        found[EXPERT] = draw(st.sampled_from([1, 2, 4]))
        how = draw(st.sampled_from(["cut", "whole", "extended"]))
        if how == "whole":
            found[EXPERT_TENSOR] = 1
        if how == "extended" and tensor * found[EXPERT] <= experts:
            found["moe_tp_extend_ep"] = True
    parts = draw(st.sampled_from(["one", "several", "v", "listed"]))
    if parts == "listed":
        cuts = sorted(draw(st.tuples(*[st.integers(0, layers)] * (stages - 1))))
        found["num_layer_list"] = [b - a for a, b in zip([0, *cuts], [*cuts, layers], strict=True)]
        return found
    length = draw(st.integers(1, 2))
    chunks = stages * {"one": 1, "several": 2, "v": 2}[parts]
    length = max(length, -(-layers // chunks))
    places = range(length * chunks)
    idle = draw(st.permutations(places))[layers:]
    found |= {"noop_layers": sorted(idle)} if idle else {}
    found |= {PART: length} if parts == "several" else {}
    return found | ({"schedules_method": "dualpipev"} if parts == "v" else {})


HEADS = ("lm_head.weight", "shared_head.head.weight")  # the latter of an MTP layer
LAYOUTS = [
    (name, layout)
    for name in ("llama", "qwen2", "qwen2_moe", "qwen3_moe", "glm4_moe")
    for layout in TABLES[name].names_of("megatron")
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_any_job_there_and_back(name, layout, data):
    layers = data.draw(st.integers(1, 4))
    small = {"hidden_size": 16, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}
    config = {**TABLES[name].example, **small, "vocab_size": 8, "intermediate_size": 8}
    config |= {"num_hidden_layers": layers, "tie_word_embeddings": data.draw(st.booleans())}
    if "moe_intermediate_size" in config:
        config |= dict.fromkeys(("num_experts", "n_routed_experts"), 8)
        config |= {"moe_intermediate_size": 4, "first_k_dense_replace": min(1, layers)}
        config |= {"num_nextn_predict_layers": data.draw(st.integers(0, 1))}
    job = data.draw(jobs(layers, config.get("num_experts")))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_model(work / "hub", TABLES[name], config)
        (work / "job.json").write_text(json.dumps(job))
        ckptforge.convert(
            work / "hub", work / "there", to=layout, dst_parallel_config=work / "job.json"
        )
        (work / "there" / "ckptforge.manifest.json").unlink()
        kept = (work / "there").rglob("mp_rank_*")
        assert len(list(kept)) == len(list(Job(**_degrees(job)).ranks()))
        ckptforge.convert(work / "there", work / "back", to="hub", config=work / "hub")
        found, wanted = contents(work / "back"), contents(work / "hub")
        if job[STAGES] > 1:  # where the head is tied, the last stage has a copy
            found, wanted = (
                {name: one for name, one in held.items() if not name.endswith(HEADS)}
                for held in (found, wanted)
            )
        assert found == wanted


def _degrees(job):
    tensor = job[TENSOR]
    return {
        "tensor": tensor,
        "stages": job[STAGES],
        "expert": job.get(EXPERT, 1),
        "expert_tensor": job.get(EXPERT_TENSOR, tensor),
        "extended": job.get("moe_tp_extend_ep", False),
    }


def test_layers_of_two_parts_in_v_shape():
    """MindSpeed-LLM, convert_hf2mg.py: pp2: [0 1 6 7 | 2 3 4 5], pp4: [0 7 | 1 6 | 2 5 | 3 4]."""
    for stages, wanted in (
        (2, [[0, 1, 6, 7], [2, 3, 4, 5]]),
        (4, [[0, 7], [1, 6], [2, 5], [3, 4]]),
    ):
        job = Job(stages=stages, parts=2, v_shaped=True)
        held = spread_layers(job, 8, None, (), "").held
        found = [[*held[s, 0].values(), *held[s, 1].values()] for s in range(stages)]
        assert found == wanted and job.last == (0, 1)


def test_ranks_that_write_where_experts_are_whole():
    """MindSpeed-LLM, get_etp_valid_ckpts_list."""
    job = Job(tensor=4, expert=2, expert_tensor=1)
    assert [(r.tensor, r.expert) for r in job.ranks()] == [(0, 0), (2, 0), (1, 1), (3, 1)]
    job = Job(tensor=2, expert=4, expert_tensor=1)
    assert [(r.tensor, r.expert) for r in job.ranks()] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert job.cut("mp", True, Rank(tensor=1)) == (1, 0)


def test_from_one_trainer_to_the_other_in_one_pass(tmp_path):
    moe, hub = MINDSPEED / "moe_tp2_pp2_ep2_grouped", MINDSPEED / "qwen3_moe"
    (tmp_path / "p.json").write_text(json.dumps({"model_parallel": 2, "data_parallel": 1}))
    for source, name in ((moe, "a"), (hub, "b")):
        ckptforge.convert(
            source,
            tmp_path / name,
            to="mcore",
            config=hub,
            format="mindformers",
            iteration=7,
            dst_parallel_config=tmp_path / "p.json",
        )
    home = "iteration_00000007"
    files = {file.name: file.read_bytes() for file in (tmp_path / "a" / home).glob("*.safetensors")}
    assert len(files) == 2
    assert all((tmp_path / "b" / home / name).read_bytes() == own for name, own in files.items())
    (tmp_path / "job.json").write_text(json.dumps({TENSOR: 2, EXPERT: 4, EXPERT_TENSOR: 1}))
    ckptforge.convert(
        tmp_path / "a",
        tmp_path / "back",
        to="mindspeed-sequential",
        config=hub,
        dst_parallel_config=tmp_path / "job.json",
    )
    assert (tmp_path / "back" / "iter_0000007").is_dir()
    found = numbers(tmp_path / "back" / "iter_0000007")
    assert found == numbers(MINDSPEED / "moe_tp2_ep4_etp1" / "iter_0000001")


def test_what_lies_beside_weights_in_a_training_run_is_left_out(tmp_path):
    torch = pytest.importorskip("torch")
    import argparse
    import io
    import random

    source = MINDSPEED / "llama_tp2_pp2_vpp"
    for path in source.rglob("*.pt"):
        held = torch.load(path, weights_only=False)
        held["args"].params_dtype, held["args"].rank = torch.bfloat16, 3
        held["args"].exit_signal = __import__("signal").SIGTERM
        held["optimizer"] = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
        held["rng_state"] = [
            {
                "random_rng_state": random.getstate(),
                "np_rng_state": np.random.get_state(),
                "cuda_rng_state": torch.zeros(8, dtype=torch.uint8),
            }
        ]
        held["model0"]["decoder.layers.0.self_attention._extra_state"] = io.BytesIO(b"x")
        held["model1"]["decoder.layers.0.mlp._extra_state"] = torch.zeros(4, dtype=torch.uint8)
        out = tmp_path / "run" / path.relative_to(source).parent
        out.mkdir(parents=True)
        torch.save(held, out / path.name)
    result = ckptforge.to_torch(tmp_path / "run", tmp_path / "hub", config=MINDSPEED / "llama")
    assert contents(tmp_path / "hub") == contents(MINDSPEED / "llama")
    assert [*result.left_out] == ["optimizer state and the state of the training run"]
    assert any("the highest iteration is taken" in note for note in result.notes)
    how = {"to": "megatron", "format": "megatron", "iteration": 5}
    ckptforge.convert(MINDSPEED / "llama", tmp_path / "own", **how)
    file = tmp_path / "own" / "iter_0000005" / "mp_rank_00" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        held = torch.load(file, weights_only=True)
    assert [*held] == ["args", "checkpoint_version", "iteration", "model"]
    assert (held["iteration"], held["checkpoint_version"]) == (5, 3.0)
    args = held["args"]
    assert (args.num_layers, args.num_query_groups, args.kv_channels) == (4, 2, 2)
    assert args.ffn_hidden_size == 6 and args.untie_embeddings_and_output_weights is True
    assert held["model"]["decoder.layers.3.mlp.linear_fc1.layer_norm_weight"].shape == (8,)


CORE = FIXTURES / "megatron_core"
OF_CORE = {
    "llama_tp2": ("mindspeed", {TENSOR: 2}),
    "moe_ep2_grouped": ("mindspeed", {EXPERT: 2}),
    "moe_ep2_numbered": ("mindspeed-sequential", {EXPERT: 2}),
}


@pytest.mark.parametrize("name", OF_CORE)
def test_what_megatron_core_saved_in_chunks_is_what_its_ranks_hold(name, tmp_path):
    """Layers and experts along axes of their own or by numbers; the halves of fc1 apart."""
    layout, job = OF_CORE[name]
    (tmp_path / "job.json").write_text(json.dumps(job))
    said = ckptforge.inspect(CORE / name)
    assert (said.layout, said.format) == ("megatron", "megatron")
    how = {"to": layout, "dst_parallel_config": tmp_path / "job.json"}
    result = ckptforge.convert(CORE / name, tmp_path / "ranks", **how)
    assert result.left_out == {}
    found = numbers(tmp_path / "ranks" / "iter_0000005")
    for rank, held in enumerate(found.values()):
        wanted = dict(read_file(CORE / name / f"plain_{rank}.pt").values())
        window = Window()
        assert held == {
            f"model.{key}": (one.dtype.name, one.shape, window.read(key, one).tobytes())
            for key, one in wanted.items()
        }


def test_chunks_of_several_iterations_and_of_other_backends(tmp_path):
    run = Path(shutil.copytree(CORE / "llama_tp2", tmp_path / "run"))
    shutil.copytree(run / "iter_0000005", run / "iter_0000007")
    whole = {name: tensor[...].tobytes() for name, tensor in ckptforge.open(run).items()}
    (run / "latest_checkpointed_iteration.txt").write_text("7")
    for path, step in ((run, None), (run, 5), (run / "iter_0000007", None)):
        opened = ckptforge.open(path, step=step)
        assert {name: tensor[...].tobytes() for name, tensor in opened.items()} == whole
    described = run / "iter_0000007" / "metadata.json"
    described.write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(FormatError, match="sharded_backend 'zarr', and only torch_dist is read"):
        ckptforge.open(run)
    described.write_text('{"sharded_backend": ')
    with pytest.raises(FormatError, match="metadata.json"):
        ckptforge.open(run)
    (run / "iter_0000005" / "common.pt").unlink()
    opened = ckptforge.open(run, step=5)
    assert {name: tensor[...].tobytes() for name, tensor in opened.items()} == whole


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(MINDSPEED / "moe_tp2_pp2_ep2_grouped", tmp_path / "run"))


def test_replicas_that_differ_are_refused_unless_they_may(run, tmp_path):
    file = run / "iter_0000001" / "mp_rank_01_000_001" / "model_optim_rng.pt"
    norm = read_file(file).tensors["model.decoder.layers.0.input_layernorm.weight"]
    data = bytearray(file.read_bytes())
    data[norm.extents[0].offset] ^= 1
    file.write_bytes(data)
    ckptforge.merge(run, tmp_path / "x.safetensors", allow_unequal_replicas=True)
    for more in ({}, {"check_replicas": True}):
        with pytest.raises(FormatError, match=r"mp_rank_01_000_001.*input_layernorm.weight' diff"):
            ckptforge.merge(run, tmp_path / "y.safetensors", **more)


def test_a_rank_that_is_not_there_is_named(run):
    shutil.rmtree(run / "iter_0000001" / "mp_rank_01_001_000")
    with pytest.raises(FormatError, match="file of rank tensor 1, stage 1, expert 0 isn't there"):
        ckptforge.open(run)


def test_a_model_that_no_mapping_knows_is_not_put_together(run):
    for path in run.rglob("*.pt"):
        path.write_bytes(path.read_bytes().replace(b"qwen3_moe", b"qwen9_moe"))
    with pytest.raises(ModelUnknownError, match="put together only where a mapping says"):
        ckptforge.open(run)


def test_the_tracker_and_the_step_say_which_iteration(run):
    (run / "iter_0000001").rename(run / "iter_0000020")
    with pytest.raises(InputNotFoundError, match="names iteration 1, which isn't there"):
        ckptforge.open(run)
    assert len(ckptforge.open(run, step=20)) == len(ckptforge.open(run / "iter_0000020"))
    (run / "latest_checkpointed_iteration.txt").write_text("last\n")
    with pytest.raises(FormatError, match="holds 'last', expected the number"):
        ckptforge.open(run)
    (run / "iter_0000020").rename(run / "release")
    (run / "latest_checkpointed_iteration.txt").write_text("release")
    assert len(ckptforge.open(run)) > 9


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({TENSOR: 3}, r"its axis \w+ \(\w+.*\) is \d+, which can't be cut into 3 parts"),
        ({STAGES: 3}, "2 layers can't be divided into 3 parts of equal length"),
        ({STAGES: 2, "num_layer_list": "1,2"}, "into 2 parts of lengths 1, 2"),
        ({"num_layer_list": "1,x"}, "num_layer_list is '1,x', expected numbers joined by commas"),
        ({STAGES: 2, "noop_layers": [9, 1]}, "noop_layers has 9, expected 0 to 3"),
        ({PART: 2}, "num_layers_per_virtual_pipeline_stage is 2, which doesn't divide the 2"),
        ({TENSOR: 4, EXPERT_TENSOR: 2}, "expert_tensor_parallel_size is 2, expected 1 or 4"),
        ({"tensor_parallel": 2}, "has the key 'tensor_parallel'"),
        ({TENSOR: 0}, "tensor_model_parallel_size is 0, expected a positive integer"),
        ({"num_layer_list": "1", "noop_layers": "1"}, "num_layer_list says where each layer is"),
    ],
    ids=str,
)
def test_jobs_that_cannot_be_are_refused(job, message, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(ConfigError, match=message):
        ckptforge.convert(
            MINDSPEED / "qwen3_moe",
            tmp_path / "out",
            to="mindspeed",
            dst_parallel_config=tmp_path / "job.json",
        )


def test_formats_and_layouts_that_do_not_go_together_are_refused(run, tmp_path):
    hub = MINDSPEED / "qwen3_moe"
    with pytest.raises(UsageError, match="is for layouts of Megatron's, such as mindspeed"):
        ckptforge.convert(hub, tmp_path / "x", to="mcore", format="megatron")
    with pytest.raises(UsageError, match="for layouts of Megatron's, which .*convert"):
        ckptforge.to_ms(hub, tmp_path / "x", format="megatron")
    with pytest.raises(UsageError, match="mindspeed is a layout of Megatron's, which is written"):
        ckptforge.convert(hub, tmp_path / "x", to="mindspeed", format="ckpt")
    with pytest.raises(LayoutError, match=r"run: H is 64 by .*hidden_size.*shape is \[12, 8\]"):
        ckptforge.to_torch(run, tmp_path / "x", config=FIXTURES / "peer" / "hf_hub")
