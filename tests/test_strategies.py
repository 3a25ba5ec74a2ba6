"""Strategies computed from parallel configurations: against MindSpore's own, against slicing by
hand, and their rules."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import ConfigError, FormatError, InputNotFoundError, TableError, UsageError
from ckptforge.parallel.config import Counts, Degrees, OptimizerParallel
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.strategy_files import read_strategy
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.shipped import shipped_tables
from tests.helpers import HUB, MINDSPORE, contents, tiny_config, write_hub

STRATEGIES = MINDSPORE / "strategies"
# The network of these fixtures isn't MindFormers': its lm_head is cut although its embedding isn't,
# and optimizer parallelism may cut norms and embedding.
FIXTURE_NETWORK = {
    "lm_head": {"cut": "V:mp"},
    **{key: {} for key in ("embedding", "norm", "attention_norm", "ffn_norm")},
}
FIXTURES = {
    "dp2mp2": {"dp": 2, "mp": 2},
    "dp4mp2ep2": {"dp": 4, "mp": 2, "ep": 2},
    "dp4mp2ep2_json": {"dp": 4, "mp": 2, "ep": 2},
    "dp4mp2ep2_opt2": {
        "data_parallel": 4,
        "model_parallel": 2,
        "expert_parallel": 2,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_threshold": 0,
        "optimizer_weight_shard_size": 2,
    },
    "mp4": {"model_parallel": 4},
    "mp8": {"parallel_config": {"model_parallel": 8, "data_parallel": 1, "recompute": True}},
    "mp8_json": {"mp": 8},
    "mp8_gmm": {"mp": 8},
    "pp2mp2": {"model_parallel": 2, "pipeline_stage": 2},
}


def configuration(path, **keys):
    path.write_text(json.dumps(keys))
    return path


def layouts_of(strategy):
    """Without full shapes, which protobuf strategies don't hold."""
    return [
        {
            name: (layout.device_matrix, layout.tensor_map, layout.optimizer_shards)
            for name, layout in stage.items()
        }
        for stage in strategy.stages
    ]


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("file_format", ["ckpt", "json"])
def test_computed_strategies_are_those_of_mindspore(tmp_path, name, file_format):
    config = configuration(tmp_path / "c.json", **FIXTURES[name], shard=FIXTURE_NETWORK)
    like = MINDSPORE / ("full_gmm.ckpt" if name == "mp8_gmm" else "full.ckpt")
    result = ckptforge.strategy(
        tmp_path / "out", parallel_config=config, like=like, format=file_format
    )
    computed, theirs = read_strategy(tmp_path / "out"), read_strategy(STRATEGIES / name)
    assert layouts_of(computed) == layouts_of(theirs)
    if name.endswith("_json"):
        shapes = [{n: layout.full_shape for n, layout in stage.items()} for stage in theirs.stages]
        assert (
            file_format == "ckpt"
            or [{n: layout.full_shape for n, layout in stage.items()} for stage in computed.stages]
            == shapes
        )
    # nothing else lies there
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in result.files
    }


def by_hand(tensors, config, layout):
    """rank → name → slice: index arithmetic as MindFormers' parallel groups are, with numpy alone,
    without optimizer parallelism."""
    dp, mp, ep, pp = (config.get(key, 1) for key in ("dp", "mp", "ep", "pp"))
    layers = 1 + max(
        int(match[1]) for name in tensors if (match := re.search(r"layers\.(\d+)\.", name))
    )
    counts = [
        layers // pp + (config["offset"][stage] if "offset" in config else 0) for stage in range(pp)
    ]
    stage_of_layer = [stage for stage, count in enumerate(counts) for _ in range(count)]
    found = {}
    for rank in range(dp * mp * pp):
        stage, r = divmod(rank, dp * mp)
        mp_i, dp_i = r % mp, r // mp
        held = {}
        for name, value in tensors.items():
            match = re.search(r"layers\.(\d+)\.", name)
            if stage != (
                stage_of_layer[int(match[1])] if match else 0 if "embed" in name else pp - 1
            ):
                continue
            cuts = []
            if re.search(r"\.w[qkv]\.", name) or (
                re.search("lm_head|embed", name)
                and not config.get("vocab_emb_dp", True)
                and len(value) % mp == 0
            ):
                cuts = [(0, mp, mp_i)]
            elif ".wo." in name:
                cuts = [(1, mp, mp_i)]
            elif ".ffn.w" in name and layout == "gmm-v3":
                cuts = [(0, ep, r % ep)]
            elif ".ffn.w" in name:
                inside = {("dense", "2"): 2, ("dense", "13"): 1, ("gmm", "2"): 1, ("gmm", "13"): 2}[
                    layout, "2" if ".w2." in name else "13"
                ]
                cuts = [(inside, mp, mp_i)] + ([(0, ep, dp_i % ep)] if layout == "dense" else [])
            for axis, parts, part in cuts:
                value = np.split(value, parts, axis)[part]
            held[name] = value
        found[rank] = held
    return found


def arrays(path):
    return {
        name: np.frombuffer(data, "u2").reshape(shape)
        for name, (_, shape, data) in contents(path).items()
    }


@st.composite
def jobs(draw):
    """A parallel configuration, the changes of config.json that fit it, and a layout."""
    layout = draw(st.sampled_from(["dense", "gmm", "gmm-v3"]))
    mp, pp = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 3]))
    ep = 1 if layout == "gmm" else draw(st.sampled_from([1, 2, 3]))
    dp = ep * draw(st.sampled_from([1, 2]))
    layers = draw(st.integers(pp, 5))
    config = {"dp": dp, "mp": mp, "ep": ep, "pp": pp, "vocab_emb_dp": draw(st.booleans())}
    rest = layers % pp
    if rest:
        config["offset"] = draw(st.permutations([1] * rest + [0] * (pp - rest)))
    model = {
        "num_hidden_layers": layers,
        "num_local_experts": ep * draw(st.sampled_from([1, 2])),
        "num_key_value_heads": mp * draw(st.sampled_from([1, 2])),
        "intermediate_size": mp * draw(st.sampled_from([2, 3])),
        "vocab_size": draw(st.sampled_from([7, 12])),
        "head_dim": draw(st.sampled_from([1, 2])),
        "hidden_size": draw(st.sampled_from([4, 6])),
    }
    model["num_attention_heads"] = model["num_key_value_heads"] * draw(st.sampled_from([1, 2]))
    if draw(st.booleans()):
        config |= {
            "enable_parallel_optimizer": True,
            "parallel_optimizer_threshold": draw(st.sampled_from([0, 0, 1])),
            "optimizer_weight_shard_size": draw(st.sampled_from([-1, 1, 2])) if dp * mp > 1 else -1,
        }
    return config, model, layout


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(jobs())
def test_hundreds_of_configurations_split_and_merge(tmp_path_factory, job):
    """HF → ranks → HF is the identity, and without optimizer parallelism each rank holds what
    slicing by hand gives."""
    config, model, layout = job
    work = tmp_path_factory.mktemp("job")
    write_hub(work / "hub", tiny_config(**model))
    file = configuration(work / "c.json", **config)
    ckptforge.to_ms(work / "hub", work / "ranks", layout=layout, parallel_config=file, workers=1)
    ckptforge.strategy(work / "strategy", parallel_config=file, like=work / "hub", layout=layout)
    ckptforge.to_torch(
        work / "ranks", work / "back", strategy_dir=work / "strategy", layout=layout, workers=1
    )
    assert contents(work / "hub") == contents(work / "back")
    if not config.get("enable_parallel_optimizer"):
        ckptforge.to_ms(work / "hub", work / "full.ckpt", layout=layout, workers=1)
        for rank, expected in by_hand(arrays(work / "full.ckpt"), config, layout).items():
            held = arrays(work / f"ranks/rank_{rank}/checkpoint_{rank}.ckpt")
            assert held.keys() == expected.keys()
            assert all(np.array_equal(held[name], expected[name]) for name in expected)
    shutil.rmtree(work)


def test_optimizer_parallelism_cuts_replicas_by_its_own_rules(tmp_path):
    """Threshold in KB of the full tensor, divisibility, the group's size, and the tensors that
    never take part."""
    write_hub(
        tmp_path / "hub",
        tiny_config(
            hidden_size=64, intermediate_size=64, num_key_value_heads=4, head_dim=16, vocab_size=64
        ),
    )
    keys = {"dp": 4, "mp": 2, "enable_parallel_optimizer": True}

    def shards(**more):
        ckptforge.strategy(
            tmp_path / "s",
            parallel_config=configuration(tmp_path / "c.json", **keys, **more),
            like=tmp_path / "hub",
            overwrite=True,
        )
        found = read_strategy(tmp_path / "s").stages[0]
        return {
            name.split(".")[-2]: layout.optimizer_shards
            for name, layout in found.items()
            if not name.startswith("adam")
        }

    everything = shards(parallel_optimizer_threshold=0)
    # 3 experts don't divide
    assert (everything["wq"], everything["wo"], everything["lm_head"], everything["w1"]) == (
        -1,
        -1,
        -1,
        0,
    )
    assert (everything["tok_embeddings"], everything["attention_norm"], everything["norm_out"]) == (
        0,
        0,
        0,
    )
    assert shards(parallel_optimizer_threshold=0, parallel_optimizer=True)["tok_embeddings"] == -1
    assert set(shards().values()) == {0}  # 64 × 64 × 2 bytes are under 64 KB
    assert (
        shards(parallel_optimizer_threshold=8)["wq"],
        shards(parallel_optimizer_threshold=9)["wq"],
    ) == (-1, 0)
    assert shards(parallel_optimizer_threshold=0, optimizer_weight_shard_size=2)["wq"] == 2
    # doesn't divide 4: no effect
    assert shards(parallel_optimizer_threshold=0, optimizer_weight_shard_size=3)["wq"] == -1
    # the network holds the router in float32: 3 · 64 · 4 bytes
    assert everything["dense"] == 0  # 3 rows by 8 replicas
    ours = shards(parallel_optimizer_threshold=0, shard={"wq": {"optimizer": False}})
    assert (ours["wq"], ours["wo"]) == (0, -1)


def test_a_tied_embedding_is_on_the_first_stage_and_not_cut_by_the_optimizer(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(tie_word_embeddings=True))
    keys = {
        "dp": 2,
        "parallel_optimizer": True,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_threshold": 0,
        "vocab_emb_dp": False,
    }
    for pp, expected in ((1, 0), (2, 0)):
        config = configuration(
            tmp_path / "c.json", **keys, pp=pp, optimizer_weight_shard_size=1 if pp == 1 else -1
        )
        ckptforge.strategy(
            tmp_path / "s", parallel_config=config, like=tmp_path / "hub", overwrite=pp == 1
        )
        stages = read_strategy(tmp_path / "s").stages
        assert [name for stage in stages[1:] for name in stage if "embedding" in name] == []
        assert stages[0]["model.tok_embeddings.embedding_weight"].optimizer_shards == expected
        shutil.rmtree(tmp_path / "s")


def test_the_published_layer_example(tmp_path):
    """10 layers over 4 stages with offset [0, 1, 1, 0] → 2, 3, 3, 2; interleaved stages take
    turns."""
    config = read_parallel_config(configuration(tmp_path / "c.json", pp=4, offset=[0, 1, 1, 0]))
    assert config.layers_by_stage(10) == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    keys = {"pp": 2, "pipeline_interleave": True, "pp_interleave_num": 2}
    config = read_parallel_config(
        configuration(tmp_path / "c.json", **keys, offset=[[0, 1], [0, 0]])
    )
    assert config.layers_by_stage(9) == [0, 0, 1, 1, 1, 0, 0, 1, 1]
    # counts only with pipeline_interleave
    config = read_parallel_config(configuration(tmp_path / "c.json", pp=2, pp_interleave_num=2))
    assert config.layers_by_stage(8) == [0, 0, 0, 0, 1, 1, 1, 1]


MINDFORMERS_YAML = """
run_mode: 'finetune'
moe_config:
  expert_num: 8
  capacity_factor: 1.1
train_dataset: &train_dataset
  batch_size: 4
train_dataset_task:
  dataset_config: *train_dataset
parallel:
  parallel_mode: 1 # 0-data parallel, 1-semi-auto parallel
  enable_parallel_optimizer: True
  parallel_optimizer_config:
    gradient_accumulation_shard: False
    parallel_optimizer_threshold: 64
parallel_config:
  data_parallel: 8
  model_parallel: 1
  expert_parallel: 8
  pipeline_stage: 2
  use_seq_parallel: False
  micro_batch_num: 16
  vocab_emb_dp: True
  gradient_aggregation_group: 4
lr_schedule:
  learning_rate: 5.e-6
model:
  model_config:
    type: LlamaConfig
    num_layers: 2
    offset: 0
"""


def test_a_mindformers_yaml(tmp_path):
    pytest.importorskip("yaml")
    file = tmp_path / "finetune.yaml"
    file.write_text(MINDFORMERS_YAML)
    config = read_parallel_config(file)
    assert config.degrees == Degrees(data=8, model=1, expert=8, pipeline=2)
    assert config.degrees.ranks == 16
    assert config.optimizer == OptimizerParallel(enabled=True, threshold=64)
    assert config.flags["vocab_emb_dp"]
    assert config.counts == Counts(layers=2, experts=8)
    file.write_text(MINDFORMERS_YAML.replace("threshold: 64", "threshold: 0"))
    result = ckptforge.to_ms(HUB, tmp_path / "ranks", parallel_config=file, layout="dense")
    assert len(list((tmp_path / "ranks").glob("rank_*"))) == 16 and not result.notes
    ckptforge.strategy(tmp_path / "strategy", parallel_config=file, like=HUB)
    ckptforge.to_torch(tmp_path / "ranks", tmp_path / "back", strategy_dir=tmp_path / "strategy")
    for path in HUB.iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()


def test_mp8_gmm_and_back(tmp_path):
    write_hub(
        tmp_path / "hub",
        tiny_config(
            num_key_value_heads=8, num_attention_heads=16, intermediate_size=16, vocab_size=16
        ),
        files=2,
    )
    config = configuration(tmp_path / "c.json", mp=8, vocab_emb_dp=False)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ranks", layout="gmm", parallel_config=config)
    ckptforge.strategy(
        tmp_path / "s", parallel_config=config, like=tmp_path / "ranks/../hub", layout="gmm"
    )
    ckptforge.to_torch(tmp_path / "ranks", tmp_path / "back", strategy_dir=tmp_path / "s")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    assert (tmp_path / "back/config.json").read_bytes() == (
        tmp_path / "hub/config.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dp": 4, "ep": 8}, "expert_parallel 8 does not divide data_parallel 4"),
        ({"dp": 3, "ep": 3}, "expert_parallel 3 does not divide e = 8"),
        ({"mp": 4}, "model_parallel 4 does not divide g = 2"),
        ({"dp": 2, "num_heads": 8, "mp": 3}, "model_parallel 3 does not divide num_heads 8"),
        ({"pp": 3}, "2 layers for 3 stages"),
        ({"pp": 2, "offset": [1, 0]}, "offset must sum to 0"),
        ({"pp": 2, "offset": [-1, 1]}, "leave one of 2 stages without layers"),
        ({"pp": 2, "offset": [0]}, "a number for each of 2 pipeline stages"),
        ({"pp": 2, "offset": "no"}, "expected an integer, a list"),
        ({"pp": 2, "num_layers": 4}, "num_layers is 4, but the model has 2 layers"),
        ({"dp": 2, "expert_num": 4}, "expert_num is 4, but the model has 8 experts"),
        ({"dp": 2, "num_heads": 16}, "num_heads is 16, but the model has 8 .num_attention_heads"),
        ({"dp": 2, "n_kv_heads": 4}, "n_kv_heads is 4, but the model has 2 .num_key_value_heads"),
        (
            {"dp": 2, "num_heads": 8, "n_kv_heads": 3},
            "num_heads 8 isn't a multiple of n_kv_heads 3",
        ),
        (
            {"model": {"model_config": {"num_attention_heads": 4}}, "parallel_config": {"mp": 2}},
            "num_heads is 4, but the model has 8",
        ),
        ({"dp": 0}, "dp is 0, expected a positive integer"),
        ({"dp": True}, "dp is True, expected a positive integer"),
        ({"mp": "8"}, "mp is '8', expected a positive integer"),
        (
            {"parallel_config": {"mp": 0, "dp": 1.5}, "parallel": {"parallel_mode": 1}},
            r"2 places are wrong:\n  parallel_config.dp is 1.5, expected a positive integer.\n"
            r"  parallel_config.mp is 0",
        ),
        ({"vocab_emb_dp": 1}, "vocab_emb_dp is 1, expected true or false"),
        ({"cp": 2}, "context_parallel 2 isn't supported"),
        (
            {"parallel_mode": 0},
            "parallel_mode is 0, expected|parallel_mode is 0; .* semi_auto_parallel.$",
        ),
        ({"mp": 2, "parallel_mode": "MANUAL_PARALLEL"}, "loads the hub's safetensors by itself"),
        ({"optimizer_weight_shard_size": 0}, "optimizer_weight_shard_size is 0"),
        ({"optimizer_weight_shard_size": 3, "dp": 2}, "3 is more than the 2 devices"),
        ({"parallel_optimizer_threshold": -1}, "parallel_optimizer_threshold is -1"),
        (
            {"model_paralel": 8},
            "model_paralel isn't a key of MindFormers; did you mean model_parallel",
        ),
        (
            {"parallel_config": {"model_paralel": 8, "data_parallel": 1}},
            "did you mean parallel_config.model_parallel",
        ),
        (
            {"parallel_confg": {"model_parallel": 2}},
            "parallel_confg isn't a key of MindFormers; did you mean parallel_config",
        ),
        ({"paralel_config": {"mp": 2}, "model": {}, "seed": 0}, "did you mean parallel_config"),
        ({"Parallel-Config": {"mp": 2}, "model": {}}, "did you mean parallel_config"),
        (
            {"parallel_config": {"mp": 2}, "moe_cofnig": {"expert_num": 3}},
            "did you mean moe_config",
        ),
        (
            {"parallel_config": {"mp": 2}, "parallel": {"enable_paralel_optimizer": True}},
            "did you mean parallel.enable_parallel_optimizer",
        ),
        (
            {
                "parallel_config": {"mp": 2},
                "parallel": {"parallel_optimizer_config": {"parallel_optimizer_treshold": 1}},
            },
            "did you mean parallel.parallel_optimizer_config.parallel_optimizer_threshold",
        ),
        (
            {"parallel_config": {"mp": 2}, "model": {"model_confg": {}}},
            "did you mean model.model_config",
        ),
        (
            {"parallel_config": {"mp": 2}, "model": {"model_config": {"num_layer": 3}}},
            "did you mean model.model_config.num_layers",
        ),
        (
            {"parallel": {"parallel_mode": 1}, "seed": 0, "trainer": {}},
            "says no degree of parallelism",
        ),
        ({"model": {"model_config": {"num_layers": 2}}}, "says no degree of parallelism"),
        ({"moe_config": {"other": 8}, "run_mode": "predict"}, "has none of the keys"),
        ({"parallel_config": 3}, "parallel_config is 3, expected keys and values"),
        ({"dp": 2, "data_parallel": 4}, "dp is 2, but data_parallel is 4"),
        ({"other": 1}, "'other' isn't a key"),
        ({"dp": 2, "use_seq_parallel": False}, "'use_seq_parallel' isn't a key"),
        ({"parallel": {}}, "has none of the keys"),
        ({"dp": 2, "shard": {"nope": {}}}, "no such tensor"),
        ({"dp": 2, "shard": {"wq": {"cut": "r:mp"}}}, "isn't the slowest"),
        ({"dp": 2, "shard": {"wq": {"cut": "g=mp"}}}, "isn't of the form"),
        (
            {"dp": 2, "shard": {"wq": {"cuts": "g:mp"}}},
            "shard.wq has the key 'cuts'; there are cut, whole_if, optimizer, fsdp, dtype. "
            "Did you mean 'cut'",
        ),
        (
            {"dp": 2, "shard": {"wq": {"whole_if": "x"}}},
            "shard.wq.whole_if is 'x', expected vocab_emb_dp or parallel_optimizer.$",
        ),
        (
            {"dp": 2, "shard": {"wq": {"optimizer": "paralel_optimiser"}}},
            "shard.wq.optimizer is .*, expected true, false, vocab_emb_dp or parallel_optimizer. "
            "Did you mean 'parallel_optimizer'",
        ),
        (
            {"dp": 2, "shard": {"wq": {"dtype": "bflaot16"}}},
            "shard.wq.dtype is 'bflaot16', expected a dtype, .* Did you mean 'bfloat16'",
        ),
        ({"dp": 2, "shard": {"wq": 3}}, "shard.wq is 3, expected keys and values"),
    ],
)
def test_broken_rules_are_named(tmp_path, keys, message):
    config = configuration(tmp_path / "c.json", **keys)
    with pytest.raises(ConfigError, match=message) as caught:
        ckptforge.strategy(tmp_path / "out", parallel_config=config, like=HUB)
    assert str(config) in str(caught.value) and not (tmp_path / "out").exists()


def test_what_mindformers_files_hold_beside_is_no_slip_of_the_pen(tmp_path):
    """Sections and keys of MindFormers' own files, of which some are much like those that are
    read."""
    sections = {
        "use_parallel": True,
        "model_config": {},
        "pet_config": {},
        "runner_config": {},
        "parallel_speed_up_json": "",
    }
    inner = {
        "micro_batch_num": 4,
        "optimizer_shard": 1,
        "use_seq_parallel": False,
        "expert_model_parallel": 1,
        "mp_comm_recompute": 1,
    }
    model = {
        "num_hidden_groups": 1,
        "n_heads": 8,
        "model_type": "x",
        "offset": [0],
        "num_layers": 2,
        "seq_length": 1,
    }
    file = configuration(
        tmp_path / "c.json",
        **sections,
        parallel_config={"data_parallel": 2, **inner},
        model={"model_config": model},
    )
    assert read_parallel_config(file).degrees.ranks == 2


def test_heads_that_no_config_tells_must_fit_the_shapes(tmp_path):
    """wk of the fixture is (2 · 8, 32) and wq (4 · 8, 32); its checkpoint has no config.json beside
    it."""
    full = MINDSPORE / "full.ckpt"
    for heads, kv_heads, fits in (
        (4, 2, True),
        (8, 4, True),
        (4, 4, False),
        (16, 2, False),
        (12, 6, False),
    ):
        config = configuration(tmp_path / "c.json", dp=2, num_heads=heads, n_kv_heads=kv_heads)
        if fits:
            assert (
                ckptforge.strategy(
                    tmp_path / "s", parallel_config=config, like=full, dry_run=True
                ).tensors
                == 0
            )
        else:
            with pytest.raises(ConfigError, match="num_heads or n_kv_heads aren't the model's"):
                ckptforge.strategy(tmp_path / "s", parallel_config=config, like=full, dry_run=True)


def test_configurations_that_are_something_else(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(InputNotFoundError):
        read_parallel_config(path)
    for content in (
        b"\xff\xfe",
        b"[1, 2]",
        b"",
        b"{" * 100_000,
        b"[" * 5000,
        b"a: [",
        b"!!python/object/apply:os.system ['true']",
        b"1: 2",
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_parallel_config(path)


def test_what_goes_together(tmp_path):
    config = configuration(tmp_path / "c.json", mp=2)
    with pytest.raises(UsageError, match="give one"):
        ckptforge.to_ms(
            HUB, tmp_path / "o", parallel_config=config, strategy_dir=STRATEGIES / "mp8"
        )
    with pytest.raises(UsageError, match="needs a directory"):
        ckptforge.to_ms(HUB, tmp_path / "o.ckpt", parallel_config=config)
    with pytest.raises(UsageError, match="has no ranks"):
        ckptforge.strategy(tmp_path / "o", parallel_config=config, like=HUB, layout="fused")
    with pytest.raises(UsageError, match="is no layout of MindSpore's ranks"):
        ckptforge.convert(
            MINDSPORE / "full.ckpt", tmp_path / "o", to="hub", dst_parallel_config=config
        )
    with pytest.raises(UsageError, match="needs strategy_dir or"):
        ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "o")
    with pytest.raises(UsageError, match="can't be split into ranks"):
        ckptforge.to_ms(HUB, tmp_path / "o", parallel_config=config, format="unified")
    with pytest.raises(ConfigError, match="no tensor of layout gmm is cut by it"):
        ckptforge.to_ms(
            HUB,
            tmp_path / "o",
            layout="gmm",
            parallel_config=configuration(tmp_path / "e.json", dp=2, ep=2),
        )
    assert not (tmp_path / "o").exists()


def test_split_and_reshard_by_configuration_carry_the_optimizer_state(tmp_path):
    full = MINDSPORE / "full.ckpt"
    first = configuration(tmp_path / "a.json", dp=2, mp=2, pp=2)
    second = configuration(tmp_path / "b.json", mp=8, vocab_emb_dp=False)
    for name, config in (("a", first), ("b", second)):
        ckptforge.strategy(tmp_path / f"s{name}", parallel_config=config, like=full)
    ckptforge.split(full, tmp_path / "ra", parallel_config=first)
    ckptforge.reshard(
        tmp_path / "ra",
        tmp_path / "rb",
        src_strategy_dir=tmp_path / "sa",
        dst_parallel_config=second,
    )
    ckptforge.merge(tmp_path / "rb", tmp_path / "merged.ckpt", strategy_dir=tmp_path / "sb")
    assert contents(tmp_path / "merged.ckpt") == contents(full)
    assert contents(tmp_path / "rb/rank_3/checkpoint_3.ckpt")["adam_m.lm_head.weight"][1] == (
        10,
        32,
    )


def test_layouts_change_between_splits_with_the_state(tmp_path):
    """Ranks of one layout to ranks of another in one pass; adam states follow their weights'
    layout."""
    config = configuration(tmp_path / "c.json", mp=4)
    ckptforge.convert(
        MINDSPORE / "sharded/mp8",
        tmp_path / "ranks",
        to="gmm",
        src_strategy_dir=STRATEGIES / "mp8",
        dst_parallel_config=config,
    )
    ckptforge.strategy(tmp_path / "s", parallel_config=config, like=MINDSPORE / "full_gmm.ckpt")
    ckptforge.merge(tmp_path / "ranks", tmp_path / "merged.ckpt", strategy_dir=tmp_path / "s")
    assert contents(tmp_path / "merged.ckpt") == contents(MINDSPORE / "full_gmm.ckpt")
    ckptforge.convert(
        tmp_path / "ranks", tmp_path / "back.ckpt", to="dense", src_strategy_dir=tmp_path / "s"
    )
    assert contents(tmp_path / "back.ckpt") == contents(MINDSPORE / "full.ckpt")


def test_unified_safetensors(tmp_path):
    ckptforge.merge(
        MINDSPORE / "sharded/mp8", tmp_path / "u", strategy_dir=STRATEGIES / "mp8", format="unified"
    )
    full = contents(MINDSPORE / "full.ckpt")
    assert contents(tmp_path / "u") == full
    index = json.loads((tmp_path / "u/param_name_map.json").read_text())
    scalars = {"global_step", "scale_sense", "epoch_num", "step_num"}
    assert index["weight_map"] == dict.fromkeys(full.keys() - scalars, "part0.safetensors")
    assert contents(tmp_path / "u/hyper_param.safetensors").keys() == scalars
    with pytest.raises(UsageError, match="needs a directory"):
        ckptforge.to_ms(HUB, tmp_path / "u.safetensors", format="unified")


def test_unified_parts_are_filled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptforge.targets.mindspore.UNIFIED_PART_BYTES", 300_000)
    ckptforge.to_ms(HUB, tmp_path / "u", format="unified")
    sizes = [
        sum(len(data) for _, _, data in contents(path).values())
        for path in sorted((tmp_path / "u").glob("part*.safetensors"))
    ]
    assert len(sizes) == 3 and sum(sizes) == 895_616 and max(sizes) < 1.4 * min(sizes)
    ckptforge.to_torch(tmp_path / "u", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(HUB)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('wq             = { cut = "g:mp" }', 'wq = { cut = "d:mp" }', "isn't the slowest"),
        ('wq             = { cut = "g:mp" }', 'wq = { cut = "l:mp" }', "stands in the name"),
        ('wq             = { cut = "g:mp" }', 'wq = { cut = "Z:mp" }', "no axis 'Z'"),
        ('wq             = { cut = "g:mp" }', 'wq = { cut = "g:dp" }', "isn't of the form"),
        ('wq             = { cut = "g:mp" }', 'wq = { cut = "g:mp H:mp" }', "'mp' twice"),
        ('wq             = { cut = "g:mp" }', 'wq = { fsdp = "Z" }', "no axis 'Z'"),
        ('wq             = { cut = "g:mp" }', 'wq = { fsdp = "d" }', "isn't the slowest"),
        (
            'wq             = { cut = "g:mp" }',
            'wq = { fsdp = "H", optimizer = false }',
            "optimizer = false says that none is",
        ),
        (
            'wo             = { cut = "g:mp" }',
            'wo = { cut = "g:mp", fsdp = "g" }',
            "by mp and by fsdp",
        ),
        (
            'wq             = { cut = "g:mp" }',
            'wq = { optimizer = "x" }',
            r"\[shard.dense\] wq.optimizer is 'x', expected true",
        ),
        (
            'wq             = { cut = "g:mp" }',
            'wq = { dtype = "flaot32" }',
            "wq.dtype is .*Did you mean 'float32'",
        ),
        ('wq             = { cut = "g:mp" }', "wq = { }", "spread in different ways"),
        ("[shard.gmm] ", "[shard.nope] ", "no layout of that name"),
        ('first  = ["embedding"]', 'first = ["x"]', "isn't in"),
        ('first  = ["embedding"]', "first = []", "must have the axis"),
        ('layers = "l"', 'layers = "e"', "must have the axis"),
    ],
)
def test_shard_rows_are_checked_with_the_table(old, new, message):
    text = next(table for table in shipped_tables() if table.name == "mixtral").text.decode()
    assert old in text
    with pytest.raises(TableError, match=message):
        parse_table(text.replace(old, new).encode(), "t.toml")


def test_another_json_file_is_no_strategy(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(FormatError, match="isn't a strategy file: it has no 'parallel_layout_item"):
        ckptforge.merge(tmp_path, tmp_path / "x.ckpt", strategy_dir=tmp_path / "config.json")
