"""Every shipped table and layout: there and back, against MindFormers' arithmetic, real
transformers models, published counts."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import (
    ConfigError,
    FormatError,
    LayoutError,
    PlanError,
    TableError,
    UnmappedTensorsError,
    UsageError,
)
from ckptforge.tables.parsing import load_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from ckptforge.verbs.tables import check_table, describe, list_tables, table_schema
from tests.helpers import (
    FIXTURES,
    contents,
    eight_bits,
    raw_safetensors,
    transformers_config,
    write_safetensors,
)

TABLES = {table.name: table for table in shipped_tables()}
IN_MINDSPORE = [name for name, table in TABLES.items() if table.names_of("mindspore")]
CASES = [
    (table.name, layout.name)
    for table in TABLES.values()
    for layout in table.layouts.values()
    if layout.name != "hub"
]


@st.composite
def configs(draw, name):
    """A tiny config.json of a table's model, of another size in everything that its tensors depend
    on."""
    config = dict(TABLES[name].example)
    heads = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    config |= {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(1, 9)),
        "num_key_value_heads": groups,
        "num_attention_heads": groups * heads,
        "hidden_size": groups * heads * draw(st.sampled_from([2, 4])),
        "intermediate_size": draw(st.integers(1, 9)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if "head_dim" in config or draw(st.booleans()):
        config["head_dim"] = draw(st.integers(1, 5))
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if key in config:
            config[key] = draw(st.integers(1, 11))
    for key in (
        "moe_intermediate_size",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "v_head_dim",
    ):
        if key in config:
            config[key] = draw(st.integers(1, 5))
    if "attention_bias" in config and name == "llama":
        config["attention_bias"] = draw(st.booleans())
    if "first_k_dense_replace" in config:
        config["n_shared_experts"] = draw(st.integers(1, 2))
        config["first_k_dense_replace"] = draw(st.integers(0, config["num_hidden_layers"]))
    if name == "deepseek_v32" and draw(st.booleans()):
        layers = st.lists(st.sampled_from(["dense", "sparse"]), min_size=3, max_size=3)
        config["mlp_layer_types"] = draw(layers)
    if "n_head" in config:
        config |= {"n_head": groups * heads, "n_layer": config["num_hidden_layers"]}
    if "qk_rope_head_dim" in config:
        config["qk_rope_head_dim"] = 2 * draw(st.integers(1, 3))
    if "num_nextn_predict_layers" in config:
        config["num_nextn_predict_layers"] = draw(st.integers(0, 2))
    if "o_groups" in config:
        config |= {"o_groups": groups, "hc_mult": draw(st.integers(1, 3))}
    if name in ("deepseek_v2", "deepseek_v3") and draw(st.booleans()):
        config["q_lora_rank"] = None
        if "num_nextn_predict_layers" in config:  # which compress theirs
            config["num_nextn_predict_layers"] = 0
    if "decoder_sparse_step" in config:
        config["decoder_sparse_step"] = draw(st.integers(1, 2))
        layers = range(config["num_hidden_layers"])
        config["mlp_only_layers"] = draw(st.sampled_from([None, [], [layers[-1]], [*layers]]))
    if name == "glm4_moe":
        config |= {key: draw(st.booleans()) for key in ("attention_bias", "use_qk_norm")}
    return config


@pytest.mark.parametrize(("name", "layout"), CASES)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_hub_to_every_layout_and_back(name, layout, data):
    config = data.draw(configs(name))
    if "num_local_experts" in config:  # params.json is refused that chooses more than there are
        config["num_experts_per_tok"] = 1
    if any(pattern.turns for pattern in TABLES[name].layouts[layout].patterns):
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_model(work / "hub", TABLES[name], config, seed=data.draw(st.integers(0, 99)))
        there = work / (
            "there.ckpt" if TABLES[name].layouts[layout].family == "mindspore" else "there"
        )
        ckptforge.convert(work / "hub", there, to=layout, from_="hub")
        # so that nothing but the tensors and the config tells
        for path in work.glob("*manifest.json"):
            path.unlink()
        (work / "there" / "ckptforge.manifest.json").unlink(missing_ok=True)
        ckptforge.convert(there, work / "back", to="hub", from_=layout, config=work / "hub")
        assert contents(work / "back") == contents(work / "hub")


@pytest.mark.parametrize("name", IN_MINDSPORE)
def test_layouts_are_told_without_being_named_or_asked_for(name, tmp_path):
    """By names and shapes alone, or, where contents differ that names don't tell, by an error that
    says so."""
    table = TABLES[name]
    write_model(tmp_path / "hub", table, {**table.example, "num_hidden_layers": 3})
    for layout in table.layouts.values():
        if layout.family == "mindspore" and not layout.by_name_only:
            ckptforge.to_ms(
                tmp_path / "hub",
                tmp_path / f"{layout.name}.safetensors",
                layout=layout.name,
                no_hash=True,
            )
            (tmp_path / f"{layout.name}.safetensors.manifest.json").unlink()
            try:
                ckptforge.to_torch(
                    tmp_path / f"{layout.name}.safetensors",
                    tmp_path / layout.name,
                    config=tmp_path / "hub",
                    model=name,
                )
            except LayoutError as error:
                assert f"fit layouts {layout.name}" in str(error) or f"and {layout.name}" in str(
                    error
                )
            else:
                assert contents(tmp_path / layout.name) == contents(tmp_path / "hub")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (table.name, layout.name)
        for table in TABLES.values()
        for layout in table.layouts.values()
        if layout.by_name_only
        and layout.family == "mindspore"
        and layout.patterns != table.layouts["mcore"].patterns
    ],
)
def test_layouts_that_are_told_by_name_only(name, layout, tmp_path):
    """Unless it or a manifest names one, the layout that it looks like is meant."""
    write_model(tmp_path / "hub", TABLES[name], TABLES[name].example)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout=layout)
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "recorded")
    (tmp_path / "x.ckpt.manifest.json").unlink()
    ckptforge.to_torch(
        tmp_path / "x.ckpt", tmp_path / "named", layout=layout, config=tmp_path / "hub"
    )
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "taken", config=tmp_path / "hub")
    assert (
        contents(tmp_path / "recorded")
        == contents(tmp_path / "named")
        == contents(tmp_path / "hub")
        != contents(tmp_path / "taken")
    )
    assert ckptforge.inspect(tmp_path / "x.ckpt", model=name).layout == "mcore"
    (tmp_path / "p.json").write_text(json.dumps({"model_parallel": 2}))
    with pytest.raises(ckptforge.CkptforgeError, match="shard"):
        ckptforge.to_ms(
            tmp_path / "hub", tmp_path / "ranks", layout=layout, parallel_config=tmp_path / "p.json"
        )


def per_group(q, k, v, groups):
    """MindFormers' `concat_qkv_weight_megatron`: for each kv group its query heads, its key head,
    its value head."""
    parts = [part.reshape(groups, -1, *part.shape[1:]) for part in (q, k, v)]
    return np.concatenate(parts, 1).reshape(-1, *q.shape[1:])


def by_turns(gate, up):
    """MindFormers' `concat_ffn_weight_megatron`: a row of the gate, a row of up, and so on."""
    return np.stack([gate, up], 1).reshape(-1, gate.shape[1])


def experts(hub, base, count, *names):
    """MindFormers' `concat_expert_weight`: [gateᵀ | upᵀ] (or downᵀ) of one expert below another."""
    return np.concatenate(
        [
            np.concatenate([hub[f"{base}.{e}.{name}_proj.weight"] for name in names]).T
            for e in range(count)
        ]
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3"])
def test_mcore_is_what_mindformers_converters_make(name, tmp_path):
    """The arithmetic of MindFormers r1.7.0 … master, `toolkit/weight_convert` and
    `models/*/utils.py`, written anew in numpy."""
    table = TABLES[name]
    config = table.example
    write_model(tmp_path / "hub", table, config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.safetensors", layout="mcore")
    hub, ms = raw_safetensors(tmp_path / "hub"), raw_safetensors(tmp_path / "ms.safetensors")
    expected = {
        "embedding.word_embeddings.weight": hub["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hub["model.norm.weight"],
        "output_layer.weight": hub["lm_head.weight"],
    }
    dense = config.get("first_k_dense_replace", 0 if name == "qwen3_moe" else 99)
    count = config.get("num_experts") or config.get("n_routed_experts")
    for layer in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        old, new = f"model.layers.{layer}", f"decoder.layers.{layer}"
        if layer >= config["num_hidden_layers"]:
            mtp = layer - config["num_hidden_layers"]
            new = f"mtp.layers.{mtp}.transformer_layer"
            for a, b in (
                ("enorm", "enorm"),
                ("hnorm", "hnorm"),
                ("eh_proj", "eh_proj"),
                ("shared_head.norm", "final_layernorm"),
            ):
                expected[f"mtp.layers.{mtp}.{b}.weight"] = hub[f"{old}.{a}.weight"]
        expected[f"{new}.input_layernorm.weight"] = hub[f"{old}.input_layernorm.weight"]
        expected[f"{new}.pre_mlp_layernorm.weight"] = hub[f"{old}.post_attention_layernorm.weight"]
        expected[f"{new}.self_attention.linear_proj.weight"] = hub[f"{old}.self_attn.o_proj.weight"]
        if name == "deepseek_v3":
            for a, b in (
                ("q_a_proj", "linear_q_down_proj"),
                ("q_a_layernorm", "q_layernorm"),
                ("q_b_proj", "linear_q_up_proj"),
                ("kv_a_proj_with_mqa", "linear_kv_down_proj"),
                ("kv_a_layernorm", "kv_layernorm"),
                ("kv_b_proj", "linear_kv_up_proj"),
            ):
                expected[f"{new}.self_attention.{b}.weight"] = hub[f"{old}.self_attn.{a}.weight"]
        else:
            for kind in ("weight", "bias") if name == "qwen2" else ("weight",):
                q, k, v = (hub[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv")
                expected[f"{new}.self_attention.linear_qkv.{kind}"] = per_group(
                    q, k, v, config["num_key_value_heads"]
                )
            for x in "qk" if name in ("qwen3", "qwen3_moe") else "":
                expected[f"{new}.self_attention.{x}_layernorm.weight"] = hub[
                    f"{old}.self_attn.{x}_norm.weight"
                ]
        if layer < dense:
            expected[f"{new}.mlp.linear_fc1.weight"] = by_turns(
                *(hub[f"{old}.mlp.{x}_proj.weight"] for x in ("gate", "up"))
            )
            expected[f"{new}.mlp.linear_fc2.weight"] = hub[f"{old}.mlp.down_proj.weight"]
            continue
        expected[f"{new}.mlp.router.weight"] = hub[f"{old}.mlp.gate.weight"]
        expected[f"{new}.mlp.experts.weight1"] = experts(
            hub, f"{old}.mlp.experts", count, "gate", "up"
        )
        expected[f"{new}.mlp.experts.weight2"] = experts(hub, f"{old}.mlp.experts", count, "down")
        if name == "deepseek_v3":
            shared = f"{old}.mlp.shared_experts"
            expected[f"{new}.mlp.router.expert_bias"] = hub[
                f"{old}.mlp.gate.e_score_correction_bias"
            ]
            expected[f"{new}.mlp.shared_experts.linear_fc1.weight"] = by_turns(
                *(hub[f"{shared}.{x}_proj.weight"] for x in ("gate", "up"))
            )
            expected[f"{new}.mlp.shared_experts.linear_fc2.weight"] = hub[
                f"{shared}.down_proj.weight"
            ]
    assert sorted(ms) == sorted(expected)
    for tensor, numbers in expected.items():
        assert ms[tensor].shape == numbers.shape and (ms[tensor] == numbers).all(), tensor


def test_experts_whose_shape_is_not_the_order_of_their_numbers(tmp_path):
    """MindFormers r1.6.0, FFNGroupedGEMM.construct: weight1 (H, E·2M) and weight2 (E·M, H) are
    reshaped to (E, H, 2M) and (E, M, H); SwiGlu takes the first half of linear_fc1's rows as the
    gate."""
    config = TABLES["deepseek_v3"].example
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.safetensors", layout="mcore-r1.6")
    hub, ms = raw_safetensors(tmp_path / "hub"), raw_safetensors(tmp_path / "ms.safetensors")
    count, hidden, width = (
        config["n_routed_experts"],
        config["hidden_size"],
        config["moe_intermediate_size"],
    )
    for old, new in (
        ("model.layers.1", "decoder.layers.1"),
        ("model.layers.3", "mtp.layers.0.transformer_layer"),
    ):
        weight1, weight2 = (ms[f"{new}.mlp.experts.weight{i}"] for i in "12")
        assert weight1.shape == (hidden, count * 2 * width) and weight2.shape == (
            count * width,
            hidden,
        )
        for expert in range(count):
            gate, up, down = (
                hub[f"{old}.mlp.experts.{expert}.{x}_proj.weight"] for x in ("gate", "up", "down")
            )
            assert (
                weight1.reshape(count, hidden, 2 * width)[expert] == np.concatenate([gate, up]).T
            ).all()
            assert (weight2.reshape(count, width, hidden)[expert] == down.T).all()
        gate, up = (hub[f"{old}.mlp.shared_experts.{x}_proj.weight"] for x in ("gate", "up"))
        assert (
            ms[f"{new}.mlp.shared_experts.linear_fc1.weight"] == np.concatenate([gate, up])
        ).all()
    with pytest.raises(ckptforge.CkptforgeError, match="shard"):
        (tmp_path / "p.json").write_text(json.dumps({"model_parallel": 2}))
        ckptforge.to_ms(
            tmp_path / "hub",
            tmp_path / "ranks",
            layout="mcore-r1.6",
            parallel_config=tmp_path / "p.json",
        )


@pytest.mark.parametrize(
    ("devices", "tensor_map"),
    [([2, 2], [0, -1]), ([2, 2], [-1, 1]), ([2, 2], [0, 1]), ([4], [0, -1]), ([4], [-1, 0])],
    ids=str,
)
def test_ranks_that_cut_a_shape_across_the_order_of_its_numbers(devices, tensor_map, tmp_path):
    table = TABLES["deepseek_v3"]
    config = {
        **table.example,
        "hidden_size": 8,
        "n_routed_experts": 6,
        "moe_intermediate_size": 2,
        "num_hidden_layers": 2,
    }
    write_model(tmp_path / "hub", table, config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.ckpt", layout="mcore-r1.6")
    whole = contents(tmp_path / "ms.ckpt")
    item = {
        "dev_matrix": devices,
        "opt_weight_shard_size": 0,
        "opt_weight_shard_step": 0,
        "field": 0,
    }
    items = {
        name: {
            **item,
            "tensor_map": tensor_map if name.endswith("weight1") else [-1] * len(shape),
            "tensor_shape": shape,
        }
        for name, (_, shape, _) in whole.items()
    }
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "rank_0.json").write_text(
        json.dumps({"current_stage": 0, "parallel_layout_item": items})
    )
    ckptforge.split(tmp_path / "ms.ckpt", tmp_path / "split", strategy_dir=tmp_path / "strategy")
    ckptforge.to_ms(
        tmp_path / "hub",
        tmp_path / "ranks",
        layout="mcore-r1.6",
        strategy_dir=tmp_path / "strategy",
    )
    for rank in range(4):
        assert contents(tmp_path / "split" / f"rank_{rank}") == contents(
            tmp_path / "ranks" / f"rank_{rank}"
        )
    ckptforge.to_torch(
        tmp_path / "ranks",
        tmp_path / "back",
        strategy_dir=tmp_path / "strategy",
        config=tmp_path / "hub",
    )
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")


def test_a_tile_with_a_hole_is_an_error(tmp_path, monkeypatch):
    """What no table of ours leads to: tiles of a width that the axes run across."""
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], TABLES["deepseek_v3"].example)
    monkeypatch.setattr(
        "ckptforge.run.tasks.best_form", lambda total, *_: (total // 64, 1, total // 64)
    )
    with pytest.raises(PlanError, match="aren't filled; this is a defect"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.safetensors", layout="mcore-r1.6")


def test_legacy_rope_rows_are_those_of_mindformers(tmp_path):
    """`_mla_pt_to_ms` of research/deepseek3/convert_weight.py: of each rotated pair the first ones,
    then the second ones."""
    config = TABLES["deepseek_v3"].example
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.safetensors", layout="legacy")
    hub, ms = raw_safetensors(tmp_path / "hub"), raw_safetensors(tmp_path / "ms.safetensors")
    heads, nope, rope = (
        config["num_attention_heads"],
        config["qk_nope_head_dim"],
        config["qk_rope_head_dim"],
    )
    q = hub["model.layers.1.self_attn.q_b_proj.weight"].reshape(heads, nope + rope, -1)
    turned = (
        q[:, nope:].reshape(heads, rope // 2, 2, -1).transpose(0, 2, 1, 3).reshape(heads * rope, -1)
    )
    assert (ms["model.layers.1.attention.l2q_pe_proj.weight"] == turned).all()
    assert (
        ms["model.layers.1.attention.l2q_nope_proj.weight"] == q[:, :nope].reshape(heads * nope, -1)
    ).all()


# name → table, sizes as `sizes_from` says them, what they make up: parameters, tensors of the hub;
# the billions of parameters that `billions_from` says, where one was read that does
PUBLISHED = json.loads((FIXTURES / "published.json").read_text())


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_published_counts(model, tmp_path):
    published = PUBLISHED[model]
    (tmp_path / "config.json").write_text(json.dumps(published["config"]))
    counts = check_table(published["table"], config=tmp_path).counts
    assert {count.parameters for count in counts} == {published["parameters"]}
    assert (
        next(count for count in counts if count.layout == "hub").tensors == published["hub_tensors"]
    )
    assert published["sizes_from"]


@pytest.mark.parametrize("model", [name for name, one in PUBLISHED.items() if "billions" in one])
def test_counts_are_those_that_their_makers_name(model, tmp_path):
    published = PUBLISHED[model]
    config = dict(published["config"])
    if "without the MTP layer" in published["billions_from"]:
        config.pop("num_nextn_predict_layers", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = check_table(published["table"], config=tmp_path).counts[0].parameters
    exact = isinstance(published["billions"], float)  # others are rounded as names are
    assert found == pytest.approx(published["billions"] * 1e9, rel=0.002 if exact else 0.03)


def test_the_mtp_layer_is_counted_where_config_has_one(tmp_path):
    published = PUBLISHED["DeepSeek-V3"]
    (tmp_path / "config.json").write_text(
        json.dumps({**published["config"], "num_nextn_predict_layers": 1})
    )
    (count,) = (
        count
        for count in check_table("deepseek_v3", config=tmp_path / "config.json").counts
        if count.layout == "hub"
    )
    assert (
        count.parameters - published["parameters"] == 11_610_068_224
        and count.tensors == 45_395 + 786
    )


NAMES = r"mixtral|mistral(?!-inference)|qwen|llama|deepseek|telechat|kimi|minimax|internlm"


def test_no_python_names_a_model():
    """But for the forward check, which knows how one computes, and a program whose files are
    read."""
    package = Path(ckptforge.__file__).parent
    named = [
        f"{path.relative_to(package)}:{number}"
        for path in package.rglob("*.py")
        if "forward" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(NAMES, line, re.IGNORECASE)
    ]
    assert named == []


def test_a_checkpoint_without_its_mtp_layer(tmp_path):
    """As transformers saves it: config.json still says that there is one."""
    config = {**TABLES["deepseek_v3"].example, "num_nextn_predict_layers": 0}
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], config)
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps({**config, "num_nextn_predict_layers": 1})
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.ckpt", layout="mcore")
    ckptforge.to_torch(tmp_path / "ms.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    part = raw_safetensors(tmp_path / "hub")
    extra = {
        name.replace("layers.2.", "layers.3."): numbers
        for name, numbers in part.items()
        if name.startswith("model.layers.2.input")
    }
    tensors = {
        name: ("BF16", list(numbers.shape), numbers.tobytes())
        for name, numbers in (part | extra).items()
    }
    shutil.copytree(tmp_path / "hub", tmp_path / "broken")
    write_safetensors(tmp_path / "broken" / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(
        LayoutError,
        match=r"needs 41 tensors that aren't there:\n  "
        r"model.layers.3.post_attention_layernorm.weight",
    ):
        ckptforge.to_ms(tmp_path / "broken", tmp_path / "x.ckpt", layout="mcore")


@pytest.mark.parametrize("block", [(128, 128), (16, 24), (7, 5), (1, 1)])
def test_block_scaled_weights_are_read_as_what_they_stand_for(tmp_path, block):
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], TABLES["deepseek_v3"].example)
    _, meant = eight_bits(tmp_path / "hub", block)
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "bf16", to="hub")
    assert contents(tmp_path / "bf16") == meant
    assert any(
        f"stored with a scale for each block of {block[0]} × {block[1]}" in note
        for note in result.notes
    )
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    for layout in ("mcore", "legacy", "mcore-r1.6"):
        for memory in ("128MiB", "1MiB"):
            ckptforge.to_ms(
                tmp_path / "hub",
                tmp_path / f"{layout}.ckpt",
                layout=layout,
                memory=memory,
                overwrite=True,
            )
            ckptforge.to_torch(tmp_path / f"{layout}.ckpt", tmp_path / "back", overwrite=True)
            assert contents(tmp_path / "back") == meant
        assert ckptforge.compare(tmp_path / "hub", tmp_path / f"{layout}.ckpt").equal
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    wide = ckptforge.convert(tmp_path / "hub", tmp_path / "fp32", to="hub", dtype="fp32")
    assert {dtype for dtype, _, _ in contents(tmp_path / "fp32").values()} == {
        "float32"
    } and not any(count.rounded for count in wide.audit.counts.values())
    assert any(
        count.rounded
        for (_, source, target), count in result.audit.counts.items()
        if (source, target) == ("float32", "bfloat16")
    )


@pytest.mark.parametrize("name", IN_MINDSPORE)
def test_block_scaled_weights_of_every_model(tmp_path, name):
    write_model(tmp_path / "hub", TABLES[name], TABLES[name].example)
    _, meant = eight_bits(tmp_path / "hub", (16, 24))
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.safetensors")
    ckptforge.to_torch(tmp_path / "x.safetensors", tmp_path / "back")
    assert contents(tmp_path / "back") == meant


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda stored, name: stored.update({f"{name}_scale_inv": ("F32", [3, 1], bytes(12))}),
            r"scales should be floats of shape \[\d, \d\], but",
        ),
        (
            lambda stored, name: stored.update({f"{name}_scale_inv": ("I32", [6, 3], bytes(72))}),
            "scales should be floats",
        ),
        (
            lambda stored, name: stored.update({name: ("BF16", [96, 64], bytes(96 * 64 * 2))}),
            "expected float8_e4m3fn or float8_e5m2, as",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path, change, message):
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], TABLES["deepseek_v3"].example)
    stored, _ = eight_bits(tmp_path / "hub", (16, 24))
    change(stored, "model.layers.0.mlp.gate_proj.weight")
    write_safetensors(tmp_path / "hub" / "model.safetensors", stored, {"format": "pt"})
    with pytest.raises(
        FormatError,
        match=r"model.safetensors: "
        r"'model.layers.0.mlp.gate_proj.weight' is .*" + message,
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")


def test_a_weight_whose_scales_are_missing_is_refused(tmp_path):
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], TABLES["deepseek_v3"].example)
    stored, _ = eight_bits(tmp_path / "hub", (16, 24))
    del stored["model.layers.1.self_attn.o_proj.weight_scale_inv"]
    write_safetensors(tmp_path / "hub" / "model.safetensors", stored, {"format": "pt"})
    with pytest.raises(
        FormatError,
        match=r"o_proj.weight' is float8_e4m3fn, but there is no "
        r"'.*scale_inv'.*\(1 such weight\)",
    ):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    stored["model.layers.1.self_attn.o_proj.weight_scale_inv"] = (
        "F32",
        [4, 2],
        np.full(8, 1e36, "f4").tobytes(),
    )
    write_safetensors(tmp_path / "hub" / "model.safetensors", stored, {"format": "pt"})
    with pytest.raises(
        FormatError,
        match="o_proj.weight_scale_inv holds scales that aren't "
        "finite, or make numbers that aren't",
    ):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")


@pytest.mark.parametrize("cut", [True, False])
def test_scaled_weights_that_are_cut_into_ranks_are_refused(tmp_path, cut):
    write_model(tmp_path / "hub", TABLES["qwen3"], TABLES["qwen3"].example)
    stored, _ = eight_bits(tmp_path / "hub", (16, 24))
    item = {"dev_matrix": [2], "opt_weight_shard_size": 0, "opt_weight_shard_step": 0, "field": 0}
    items = {
        name: {
            **item,
            "tensor_map": [0 if cut else -1, *[-1] * (len(shape) - 1)],
            "tensor_shape": [shape[0] * (2 if cut else 1), *shape[1:]],
        }
        for name, (_, shape, _) in stored.items()
    }
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "rank_0.json").write_text(
        json.dumps({"current_stage": 0, "parallel_layout_item": items})
    )
    for rank in range(2):
        (tmp_path / "ranks" / f"rank_{rank}").mkdir(parents=True)
        shutil.copy(
            tmp_path / "hub" / "model.safetensors",
            tmp_path / "ranks" / f"rank_{rank}" / "x.safetensors",
        )
    call = {"to": "hub", "src_strategy_dir": tmp_path / "s", "config": tmp_path / "hub"}
    if cut:
        with pytest.raises(FormatError, match=r"scales of its blocks and cut into ranks.*merge"):
            ckptforge.convert(tmp_path / "ranks", tmp_path / "out", **call)
        return
    ckptforge.convert(tmp_path / "ranks", tmp_path / "out", **call)
    ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_config_that_says_eight_bits_is_not_kept_for_wider_weights(tmp_path):
    """As where a trained checkpoint goes back with the config.json of the published model."""
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore", no_hash=True)
    (tmp_path / "x.ckpt.manifest.json").unlink()
    config = {
        **table.example,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back", config=tmp_path / "config.json")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == table.example
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")


def test_scaled_weights_are_compared(tmp_path):
    write_model(tmp_path / "hub", TABLES["qwen3"], TABLES["qwen3"].example)
    stored, _ = eight_bits(tmp_path / "hub", (16, 24))
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")
    assert (
        ckptforge.compare(tmp_path / "hub", tmp_path / "x.ckpt").equal
        and ckptforge.compare(tmp_path / "hub", tmp_path / "hub").equal
    )
    with pytest.raises(UsageError, match="undone in A only: name it first"):
        ckptforge.compare(tmp_path / "x.ckpt", tmp_path / "hub")
    shutil.copytree(tmp_path / "hub", tmp_path / "other")
    name = "model.layers.0.mlp.gate_proj.weight_scale_inv"
    kind, shape, data = stored[name]
    stored[name] = (kind, shape, b"\0\0\0\x38" + data[4:])
    write_safetensors(tmp_path / "other" / "model.safetensors", stored, {"format": "pt"})
    for found in (
        ckptforge.compare(tmp_path / "other", tmp_path / "x.ckpt"),
        ckptforge.compare(tmp_path / "other", tmp_path / "hub"),
    ):
        assert len(found.differences) == 1


def test_scales_are_part_of_the_memory(tmp_path):
    write_model(
        tmp_path / "hub",
        TABLES["qwen3"],
        {**TABLES["qwen3"].example, "hidden_size": 512, "intermediate_size": 1024},
    )
    _, meant = eight_bits(tmp_path / "hub", (1, 1))
    with pytest.raises(UsageError, match="memory of 1048576 bytes is too little"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", memory="1MiB")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", memory="16MiB")
    assert contents(tmp_path / "x") == meant
    write_model(tmp_path / "far", TABLES["qwen3"], TABLES["qwen3"].example)
    _, meant = eight_bits(tmp_path / "far", (128, 2**31 - 1))
    ckptforge.convert(tmp_path / "far", tmp_path / "y", to="hub")
    assert contents(tmp_path / "y") == meant


def test_scales_without_the_size_of_a_block_or_without_a_weight(tmp_path):
    write_model(tmp_path / "hub", TABLES["deepseek_v3"], TABLES["deepseek_v3"].example)
    stored, _ = eight_bits(tmp_path / "hub", (16, 24))
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    for broken in (
        {},
        {"weight_block_size": [16]},
        {"weight_block_size": [16, 0]},
        {"weight_block_size": [True, 24]},
        7,
    ):
        (tmp_path / "hub" / "config.json").write_text(
            json.dumps({**config, "quantization_config": broken})
        )
        with pytest.raises(
            ConfigError,
            match=r"config.json: .* but "
            r"quantization_config.weight_block_size isn't two "
            r"positive integers",
        ):
            ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    stored["model.layers.0.mlp.other.weight_scale_inv"] = ("F32", [1, 1], bytes(4))
    write_safetensors(tmp_path / "hub" / "model.safetensors", stored, {"format": "pt"})
    with pytest.raises(
        UnmappedTensorsError,
        match=r"parts of quantised weights .* belong to no quantised "
        r"weight.*\n.*other.weight_scale_inv",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")


def test_a_length_of_zero_is_none_only_where_it_counts_names(tmp_path):
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, {**table.example, "first_k_dense_replace": 0})
    assert ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore").tensors > 20
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps({**table.example, "first_k_dense_replace": 0, "kv_lora_rank": 0})
    )
    with pytest.raises(ConfigError, match="kv_lora_rank is 0, expected a positive integer"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", layout="mcore")


SPREAD = [
    (table.name, layout.name)
    for table in TABLES.values()
    for layout in table.layouts.values()
    if layout.sharding is not None
]
JOBS = [
    {"data_parallel": 2, "model_parallel": 2},
    {
        "data_parallel": 2,
        "model_parallel": 2,
        "expert_parallel": 2,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_threshold": 0,
    },
    {
        "pipeline_stage": 2,
        "data_parallel": 2,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_threshold": 0,
    },
]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (t.name, x.name)
        for t in TABLES.values()
        for x in t.layouts.values()
        if x.sharding is not None and x.family == "mindspore"
    ],
)
def test_splits_by_a_parallel_configuration_merge_again(name, layout, job, tmp_path):
    table = TABLES[name]
    has_experts = any(
        cut.dimension == "ep"
        for row in (table.layouts[layout].sharding or {}).values()
        for cut in row.cuts
    )
    if "expert_parallel" in job and not has_experts:
        pytest.skip("a model without experts")
    config = {**table.example, "num_hidden_layers": 4}
    write_model(tmp_path / "hub", table, config)
    (tmp_path / "job.json").write_text(json.dumps(job))
    options = {"layout": layout, "no_hash": True}
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "whole.safetensors", **options)
    ckptforge.to_ms(
        tmp_path / "hub", tmp_path / "ranks", parallel_config=tmp_path / "job.json", **options
    )
    ckptforge.strategy(
        tmp_path / "strategy",
        parallel_config=tmp_path / "job.json",
        like=tmp_path / "hub",
        layout=layout,
    )
    ckptforge.merge(
        tmp_path / "ranks", tmp_path / "merged.safetensors", strategy_dir=tmp_path / "strategy"
    )
    assert contents(tmp_path / "merged.safetensors") == contents(tmp_path / "whole.safetensors")


TRANSFORMERS = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, biases, tied": (
        "LlamaForCausalLM",
        {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralForCausalLM", {"model_type": "mistral"}),
    "internlm3": ("LlamaForCausalLM", {"model_type": "internlm3"}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "seed_oss": (
        "SeedOssForCausalLM",
        {"model_type": "seed_oss", "attention_bias": True, "head_dim": 16, "pad_token_id": 3},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_hidden_layers": 3, "num_local_experts": 12}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {}),
    "glm4_moe": ("Glm4MoeForCausalLM", {"num_nextn_predict_layers": 0}),
    "glm4_moe, Air": (
        "Glm4MoeForCausalLM",
        {"num_nextn_predict_layers": 0, "use_qk_norm": False},
    ),
    "minimax_m2": ("MiniMaxM2ForCausalLM", {}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {}),
    "gpt_oss": ("GptOssForCausalLM", {}),
    "deepseek_v32": ("DeepseekV32ForCausalLM", {"num_nextn_predict_layers": 0}),
    "glm_moe_dsa": (
        "GlmMoeDsaForCausalLM",
        {
            "model_type": "glm_moe_dsa",
            "num_nextn_predict_layers": 0,
            "indexer_types": ["full", "shared", "full"],
        },
    ),
    "glm_moe_dsa, layers listed": (
        "GlmMoeDsaForCausalLM",
        {
            "model_type": "glm_moe_dsa",
            "num_nextn_predict_layers": 0,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ),
    "qwen3_next": ("Qwen3NextForCausalLM", {"num_nextn_predict_layers": 0}),
    "qwen3_next, by layer_types": (
        "Qwen3NextForCausalLM",
        {
            "num_nextn_predict_layers": 0,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
        },
    ),
    "deepseek_v4": ("DeepseekV4ForCausalLM", {"num_nextn_predict_layers": 0}),
    "deepseek_v4, by layer_types": (
        "DeepseekV4ForCausalLM",
        {
            "num_nextn_predict_layers": 0,
            "compress_ratios": None,
            "num_hidden_layers": 3,
            "layer_types": [
                "compressed_sparse_attention",
                "sliding_attention",
                "heavily_compressed_attention",
            ],
        },
    ),
    "deepseek_v2, Lite": ("DeepseekV2ForCausalLM", {"q_lora_rank": None, "topk_method": "greedy"}),
    "qwen2_moe, dense layers": (
        "Qwen2MoeForCausalLM",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "qwen3_moe, dense layers": (
        "Qwen3MoeForCausalLM",
        {"num_hidden_layers": 3, "mlp_only_layers": [1]},
    ),
    "qwen3_next, dense layers": (
        "Qwen3NextForCausalLM",
        {"num_nextn_predict_layers": 0, "num_hidden_layers": 4, "mlp_only_layers": [0, 3]},
    ),
    "deepseek_v3, as Moonlight": (
        "DeepseekV3ForCausalLM",
        {"q_lora_rank": None, "num_nextn_predict_layers": 0},
    ),
}
BY_TYPE = {model_type: table for table in TABLES.values() for model_type in table.model_types}


@pytest.mark.parametrize("case", list(TRANSFORMERS))
def test_models_of_transformers_compute_the_same_after_there_and_back(case, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, changes = TRANSFORMERS[case]
    table = BY_TYPE[case.split(",")[0]]
    config = {**table.example, **changes, "architectures": [kind], "initializer_range": 0.1}
    made = transformers_config(**config)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(made).to(torch.bfloat16)
    # norms, biases and buffers, too, which begin as ones and zeros
    for parameter in model.state_dict().values():
        parameter.copy_(torch.randn_like(parameter, dtype=torch.float32) * 0.1)
    model.save_pretrained(tmp_path / "hub")
    in_memory = ckptforge.open(tmp_path / "hub").as_layout(
        "fused" if "fused" in table.layouts else "hub"
    )
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    assert {name: tensor.shape for name, tensor in in_memory.items()} == {
        name: tuple(numbers.shape)
        for name, numbers in model.state_dict().items()
        if name not in tied
    }
    tokens = torch.arange(24).reshape(2, 12) % config["vocab_size"]

    def logits(directory):
        loaded, info = getattr(transformers, kind).from_pretrained(
            directory, dtype=torch.bfloat16, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            return loaded.eval()(tokens).logits

    expected = logits(tmp_path / "hub")
    for layout in table.names_of("mindspore") or [name for name in table.layouts if name != "hub"]:
        there = tmp_path / (f"{layout}.ckpt" if table.names_of("mindspore") else f"{layout}-there")
        ckptforge.convert(tmp_path / "hub", there, to=layout)
        ckptforge.convert(there, tmp_path / layout, to="hub", from_=layout)
        assert torch.equal(logits(tmp_path / layout), expected)


@pytest.mark.parametrize(
    "kind",
    sorted(
        {
            kind
            for case, (kind, _) in TRANSFORMERS.items()
            if BY_TYPE[case.split(",")[0]].name in IN_MINDSPORE
            and kind != "DeepseekV4ForCausalLM"  # whose compressors need heads of some sizes
        }
    ),
)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_models_of_transformers_of_any_size(kind, data):
    """Heads, kv heads, experts, layers, tied or not: bit-identical there and back, and the same
    logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, changes = next(
        (case.split(",")[0], changes)
        for case, (other, changes) in TRANSFORMERS.items()
        if other == kind
    )
    table = BY_TYPE[name]
    config = data.draw(configs(table.name)) | {
        "vocab_size": 32,
        "initializer_range": 0.1,
        "architectures": [kind],
    }
    config |= {
        "model_type": changes.get("model_type", config["model_type"]),
        "head_dim": 2 * data.draw(st.integers(1, 3)),
    }
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if key in config:
            config |= {"num_experts_per_tok": min(2, config[key]), "n_group": 1, "topk_group": 1}
    if name in ("deepseek_v2", "deepseek_v3"):
        config |= {
            "num_nextn_predict_layers": 0,
            "head_dim": config["qk_rope_head_dim"],
            "tie_word_embeddings": False,
        }
        config |= {
            "num_key_value_heads": config["num_attention_heads"],
            "n_routed_experts": config["n_routed_experts"] + 1,
        }
    # classes that take it from the hidden size, or of another meaning
    if name in ("qwen2", "deepseek_v3"):
        config["hidden_size"] = config["num_attention_heads"] * config["head_dim"]
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        # what torch's grouped multiplication needs
        if key in config and name in (
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "deepseek_v2",
            "deepseek_v3",
        ):
            config[key] = 8 * data.draw(st.integers(1, 3))
    if name == "deepseek_v2":  # whose heads must divide it
        config["hidden_size"] = 8 * config["num_attention_heads"]
    config.pop("attention_bias" if name == "mistral" else "", None)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    made = transformers_config(**config)
    model = getattr(transformers, kind)(made).to(torch.bfloat16).eval()
    tokens = torch.arange(12)[None] % 32
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        work = Path(directory)
        model.save_pretrained(work / "hub")
        expected = (
            getattr(transformers, kind)
            .from_pretrained(work / "hub", dtype=torch.bfloat16)
            .eval()(tokens)
            .logits
        )
        layout = data.draw(
            st.sampled_from(
                [layout.name for layout in table.layouts.values() if layout.family == "mindspore"]
            )
        )
        ckptforge.to_ms(work / "hub", work / "x.ckpt", layout=layout)
        ckptforge.to_torch(work / "x.ckpt", work / "back", layout=layout)
        assert contents(work / "back") == contents(work / "hub")
        loaded = (
            getattr(transformers, kind).from_pretrained(work / "back", dtype=torch.bfloat16).eval()
        )
        assert torch.equal(loaded(tokens).logits, expected)


def test_projections_are_taken_apart_as_mindformers_research_deepseek2_does(tmp_path):
    """`mla_weight_split` of its convert_weight.py (r1.5.0), and the names before (r1.3, r1.4)."""
    config = TABLES["deepseek_v2"].example
    write_model(tmp_path / "hub", TABLES["deepseek_v2"], config)
    hub, made = raw_safetensors(tmp_path / "hub"), {}
    for layout in ("legacy", "legacy-gmm", "legacy-r1.4"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / f"{layout}.safetensors", layout=layout)
        made[layout] = raw_safetensors(tmp_path / f"{layout}.safetensors")
    ms, old, new = made["legacy"], "model.layers.1.self_attn", "model.layers.1.attention"
    heads, nope, rope = (
        config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim")
    )
    q = hub[f"{old}.q_b_proj.weight"].reshape(heads, nope + rope, -1)
    pe = q[:, nope:].reshape(heads, rope // 2, 2, -1).transpose(0, 2, 1, 3)
    assert (ms[f"{new}.l2q_nope_proj.weight"] == q[:, :nope].reshape(heads * nope, -1)).all()
    assert (ms[f"{new}.l2q_pe_proj.weight"] == pe.reshape(heads * rope, -1)).all()
    kv, rank = hub[f"{old}.kv_a_proj_with_mqa.weight"], config["kv_lora_rank"]
    turned = kv[rank:].reshape(rope // 2, 2, -1).transpose(1, 0, 2).reshape(rope, -1)
    assert (ms[f"{new}.kv2l_k_pe.weight"] == turned).all()
    assert (ms[f"{new}.kv2l_latent_kv.weight"] == kv[:rank]).all()
    for own, theirs in (("l2q_proj", "q_b_proj"), ("kv2l", "kv_a_proj_with_mqa")):
        assert (made["legacy-r1.4"][f"{new}.{own}.weight"] == hub[f"{old}.{theirs}.weight"]).all()
    name = "model.layers.1.feed_forward.routed_experts.ffn.w1.weight"
    each = [
        hub[f"model.layers.1.mlp.experts.{e}.gate_proj.weight"]
        for e in range(config["n_routed_experts"])
    ]
    assert (ms[name] == np.stack(each)).all()
    assert (made["legacy-gmm"][name] == np.stack(each).transpose(0, 2, 1)).all()


def test_tables_are_listed_shown_and_have_a_schema():
    found = {one.name: one for one in list_tables()}
    assert found["llama"].model_types[:2] == ["llama", "mistral"] and found["qwen3_moe"].layouts[
        "mindspore"
    ] == [
        "mcore",
        "pynative",
        "mcore-contiguous-qkv",
    ]
    rows = {row.name: row for row in describe("qwen3_moe", layout="mcore").rows}
    row = rows["decoder.layers.{m}.mlp.experts.weight1"]
    assert (row.axes, row.operation, row.cut) == (
        "(e H) [w1: I + w3: I]",
        "stack e, transpose, concatenate",
        "axis 0 by ep",
    )
    assert describe("mixtral", layout="dense").rows[0].operation == "as it is"
    assert '"forbid"' not in table_schema() and json.loads(table_schema())["$defs"]


@pytest.fixture
def with_copies(tmp_path):
    """A tiny DeepSeek-V3 as published ones are: each MTP layer holds the embedding and the head
    once more."""
    config = {**TABLES["deepseek_v3"].example, "num_nextn_predict_layers": 2}
    write_model(tmp_path / "plain", TABLES["deepseek_v3"], config)
    tensors = {
        name: ("BF16", list(n.shape), n.tobytes())
        for name, n in raw_safetensors(tmp_path / "plain").items()
    }
    tensors = {
        name: held
        for name, held in tensors.items()
        if not re.search(r"layers\.\d+\.(embed_tokens|shared_head.head)", name)
    }
    write_safetensors(
        tmp_path / "plain" / "model.safetensors", dict(sorted(tensors.items())), {"format": "pt"}
    )
    for layer in (config["num_hidden_layers"], config["num_hidden_layers"] + 1):
        tensors[f"model.layers.{layer}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
        tensors[f"model.layers.{layer}.shared_head.head.weight"] = tensors["lm_head.weight"]
    (tmp_path / "hub").mkdir()
    shutil.copy(tmp_path / "plain" / "config.json", tmp_path / "hub")
    write_safetensors(
        tmp_path / "hub" / "model.safetensors", dict(sorted(tensors.items())), {"format": "pt"}
    )
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "layout",
    [
        x
        for t, x in CASES
        if t == "deepseek_v3" and TABLES[t].layouts[x].family != "megatron"  # its ranks hold none
    ],
)
def test_copies_are_compared_on_the_way_in_and_written_on_the_way_out(
    tmp_path, with_copies, layout
):
    there = tmp_path / ("there" if layout == "fused" else "there.ckpt")
    result = ckptforge.convert(with_copies, there, to=layout)
    assert len(result.left_out["copies of other tensors"]) == 4
    ckptforge.convert(there, tmp_path / "back", to="hub", from_=layout)
    assert contents(tmp_path / "back") == contents(with_copies)
    for path in tmp_path.glob("*manifest.json"):
        path.unlink()
    (there / "ckptforge.manifest.json" if there.is_dir() else there.with_name("none")).unlink(
        missing_ok=True
    )
    ckptforge.convert(there, tmp_path / "again", to="hub", from_=layout, config=with_copies)
    assert contents(tmp_path / "again") == contents(with_copies)
    assert ckptforge.compare(with_copies, there, layout_b=layout, config=with_copies).equal


def test_a_directory_without_copies_comes_back_without(tmp_path, with_copies):
    plain = with_copies.parent / "plain"
    ckptforge.to_ms(plain, tmp_path / "x.ckpt", layout="mcore")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(plain)


def test_what_should_be_a_copy_and_is_not(tmp_path, with_copies):
    path = with_copies / "model.safetensors"
    tensors = {
        name: ("BF16", list(n.shape), n.tobytes()) for name, n in raw_safetensors(path).items()
    }
    (copy,) = [name for name in tensors if name.endswith("head.weight") and ".4." in name]
    dtype, shape, data = tensors[copy]
    write_safetensors(
        path, {**tensors, copy: (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))}, {"format": "pt"}
    )
    with pytest.raises(
        FormatError,
        match=r"4.shared_head.head.weight should be a copy of "
        r"lm_head.weight",
    ):
        ckptforge.to_ms(with_copies, tmp_path / "x.ckpt", layout="mcore")
    assert not (tmp_path / "x.ckpt").exists()
    result = ckptforge.to_ms(with_copies, tmp_path / "x.ckpt", layout="mcore", allow_unmapped=True)
    assert len(result.left_out["copies of other tensors, not compared"]) == 4
    found = ckptforge.compare(with_copies, tmp_path / "x.ckpt")
    assert not found.equal and copy in found.only_in_a[0]
    write_safetensors(
        path,
        {**tensors, copy: (dtype, [shape[0], shape[1] - 1], data[: -2 * shape[0]])},
        {"format": "pt"},
    )
    with pytest.raises(LayoutError, match="of the same kind"):
        ckptforge.to_ms(with_copies, tmp_path / "y.ckpt", layout="mcore")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('[copies.none]\nnorm = "x.{l}"\n', "no layout of that name"),
        ('[copies.hub]\nwq = "x.{l}"\n', "isn't a tensor that the layout stores by itself"),
        ('[copies.hub]\nwhat = "x.{l}"\n', "isn't a tensor that the layout stores by itself"),
        ('[copies.hub]\nnorm = "x.{q}"\n', "'q' must be an axis"),
        ('[copies.hub]\nnorm = "x.{H}"\n', "'H' must be an axis"),
        ('[copies.hub]\nnorm = "lm_head.weight"\n', "can produce the same name"),
        ('[copies.hub]\nnorm = "x.{l"\n', "stray"),
    ],
)
def test_bad_copies(tmp_path, rows, message):
    text = (Path(__file__).parents[1] / "mappings" / "llama.toml").read_text()
    (tmp_path / "t.toml").write_text(text.replace("[ignored]", rows + "\n[ignored]"))
    with pytest.raises(TableError, match=message):
        load_table(tmp_path / "t.toml")


def test_layouts_that_differ_only_in_what_a_model_lacks_are_one(tmp_path):
    """Without any layer of experts, one by one and stacked are the same."""
    config = {**TABLES["deepseek_v3"].example, "num_nextn_predict_layers": 0}
    write_model(
        tmp_path / "hub",
        TABLES["deepseek_v3"],
        {**config, "first_k_dense_replace": config["num_hidden_layers"]},
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")


def test_experts_beside_a_shared_one_are_what_mindformers_converter_makes(tmp_path):
    """`convert_moe_weight.py` of MindFormers' research/qwen2 (r1.3.0 … r1.5.0), written anew: names
    replaced, experts stacked, with use_gmm as their transposes, q, k and v by group."""
    table = TABLES["qwen2_moe"]
    config = table.example
    write_model(tmp_path / "hub", table, config)
    hub = raw_safetensors(tmp_path / "hub")
    made = {}
    for layout in ("dense", "gmm", "gmm-qkv-r1.4"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / f"{layout}.safetensors", layout=layout)
        made[layout] = raw_safetensors(tmp_path / f"{layout}.safetensors")
    new, old = "model.layers.1.feed_forward", "model.layers.1.mlp"
    for own, theirs in (
        ("routed_experts.router.dense", "gate"),
        ("shared_experts.w1", "shared_expert.gate_proj"),
        ("shared_experts.w2", "shared_expert.down_proj"),
        ("shared_experts.w3", "shared_expert.up_proj"),
        ("shared_experts_gate", "shared_expert_gate"),
    ):
        assert (made["dense"][f"{new}.{own}.weight"] == hub[f"{old}.{theirs}.weight"]).all()
    for own, theirs in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        each = [
            hub[f"{old}.experts.{e}.{theirs}_proj.weight"] for e in range(config["num_experts"])
        ]
        name = f"{new}.routed_experts.ffn.{own}.weight"
        assert (made["dense"][name] == np.stack(each)).all()
        assert (made["gmm"][name] == np.stack(each).transpose(0, 2, 1)).all()
    groups = config["num_key_value_heads"]
    for kind in ("weight", "bias"):
        q, k, v = (hub[f"model.layers.1.self_attn.{x}_proj.{kind}"] for x in "qkv")
        fused = made["gmm-qkv-r1.4"][f"model.layers.1.attention.w_qkv.{kind}"]
        assert (fused == per_group(q, k, v, groups)).all()
