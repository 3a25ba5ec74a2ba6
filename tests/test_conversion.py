"""Conversions: against MindFormers' own converter, against plain numpy, and round trips by the
hundred."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import (
    CastOverflowError,
    ConfigError,
    LayoutError,
    MissingTensorsError,
    PlanError,
    UsageError,
)
from ckptforge.tables.shipped import shipped_tables
from tests.helpers import (
    FIXTURES,
    HUB,
    MINDSPORE,
    contents,
    raw_safetensors,
    tiny_config,
    write_hub,
    write_safetensors,
)

PEER = FIXTURES / "peer"
LAYOUTS = {
    layout.name: layout.family
    for layout in next(
        table for table in shipped_tables() if table.name == "mixtral"
    ).layouts.values()
}
MINDSPORE_LAYOUTS = [name for name, family in LAYOUTS.items() if family == "mindspore"]


@pytest.mark.parametrize(
    ("layout", "dtype", "peer"),
    [
        ("dense", "bf16", "dense_bf16"),
        ("dense", "fp16", "dense_fp16"),
        ("dense", "fp32", "dense_fp32"),
        ("gmm", "fp16", "gmm_fp16"),
    ],
)
def test_to_ms_equals_the_peer(tmp_path, layout, dtype, peer):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout=layout, dtype=dtype)
    assert contents(tmp_path / "x.ckpt") == contents(PEER / f"peer_r1.3.0_{peer}.ckpt")


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_gmm_is_the_peers_dense_with_experts_transposed(tmp_path, dtype):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm", dtype=dtype)
    dense = contents(PEER / f"peer_r1.3.0_dense_{dtype}.ckpt")
    for name, (kind, shape, data) in contents(tmp_path / "x.ckpt").items():
        peer_kind, peer_shape, peer_data = dense[name]
        numbers = np.frombuffer(peer_data, f"u{4 if dtype == 'fp32' else 2}").reshape(peer_shape)
        if ".ffn.w" in name:
            numbers = numbers.transpose(0, 2, 1)
        assert (kind, shape, data) == (peer_kind, numbers.shape, numbers.tobytes())


@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_dense_to_gmm_is_byte_for_byte_the_direct_gmm(tmp_path, dtype):
    ckptforge.to_ms(HUB, tmp_path / "dense.ckpt", dtype=dtype)
    ckptforge.to_ms(HUB, tmp_path / "direct.ckpt", layout="gmm", dtype=dtype)
    ckptforge.convert(tmp_path / "dense.ckpt", tmp_path / "gmm.ckpt", to="gmm")
    assert (tmp_path / "gmm.ckpt").read_bytes() == (tmp_path / "direct.ckpt").read_bytes()


def test_fused_equals_what_transformers_holds(tmp_path):
    ckptforge.convert(HUB, tmp_path / "fused", to="fused")
    assert contents(tmp_path / "fused") == contents(PEER / "hf_tf5_fused")
    ckptforge.to_ms(PEER / "hf_tf5_fused", tmp_path / "x.ckpt")
    assert contents(tmp_path / "x.ckpt") == contents(PEER / "peer_r1.3.0_dense_bf16.ckpt")


def reference(hub, config, layout):
    """What `layout` must hold, from plain numpy: independent of the tables and of the engine."""
    E, d = (
        config["num_local_experts"],
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    )
    groups, rep = (
        config["num_key_value_heads"],
        config["num_attention_heads"] // config["num_key_value_heads"],
    )
    made = {
        "model.tok_embeddings.embedding_weight": hub["model.embed_tokens.weight"],
        "model.norm_out.weight": hub["model.norm.weight"],
    }
    if "lm_head.weight" in hub:
        made["lm_head.weight"] = hub["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}", f"model.layers.{layer}"
        made[f"{new}.attention_norm.weight"] = hub[f"{old}.input_layernorm.weight"]
        made[f"{new}.ffn_norm.weight"] = hub[f"{old}.post_attention_layernorm.weight"]
        q, k, v, o = (hub[f"{old}.self_attn.{name}_proj.weight"] for name in "qkvo")
        made[f"{new}.attention.wo.weight"] = o
        if "r1.3" in layout:
            made[f"{new}.attention.w_qkv.weight"] = np.concatenate([q, k, v])
        elif "r1.4" in layout:
            parts = [
                np.concatenate(
                    [
                        q[g * rep * d : (g + 1) * rep * d],
                        k[g * d : (g + 1) * d],
                        v[g * d : (g + 1) * d],
                    ]
                )
                for g in range(groups)
            ]
            made[f"{new}.attention.w_qkv.weight"] = np.concatenate(parts)
        else:
            made |= {
                f"{new}.attention.wq.weight": q,
                f"{new}.attention.wk.weight": k,
                f"{new}.attention.wv.weight": v,
            }
        # per kv group as in r1.4, under other names; experts below one another
        if layout == "mcore":
            made[f"{new}.attention.w_qkv.weight"] = np.concatenate(
                [x.reshape(groups, -1, q.shape[1]) for x in (q, k, v)], axis=1
            ).reshape(-1, q.shape[1])
            for name in ("wq", "wk", "wv"):
                del made[f"{new}.attention.{name}.weight"]
        w1, w2, w3 = (
            np.stack([hub[f"{old}.block_sparse_moe.experts.{e}.w{n}.weight"] for e in range(E)])
            for n in (1, 2, 3)
        )
        router = hub[f"{old}.block_sparse_moe.gate.weight"]
        if layout == "gmm-v3":
            made[f"{new}.feed_forward.ffn.w1"] = np.concatenate(
                [w1.transpose(0, 2, 1), w3.transpose(0, 2, 1)], axis=2
            )
            made[f"{new}.feed_forward.ffn.w2"] = w2.transpose(0, 2, 1)
            made[f"{new}.feed_forward.router_dense.weight"] = router
            continue
        made[f"{new}.feed_forward.router.dense.weight"] = router
        if layout == "mcore":
            both = np.concatenate([w1, w3], axis=1).transpose(0, 2, 1)
            made[f"{new}.feed_forward.w1"] = both.reshape(-1, both.shape[2])
            made[f"{new}.feed_forward.w2"] = w2.transpose(0, 2, 1).reshape(-1, w2.shape[1])
            continue
        for n, weight in ((1, w1), (2, w2), (3, w3)):
            made[f"{new}.feed_forward.ffn.w{n}.weight"] = (
                weight.transpose(0, 2, 1) if layout.startswith("gmm") else weight
            )
    return (
        {mcore_name(name): numbers for name, numbers in made.items()} if layout == "mcore" else made
    )


def mcore_name(name):
    """What a tensor of the legacy network is called in an mcore network."""
    for old, new in (
        ("model.tok_embeddings.embedding_weight", "embedding.word_embeddings.weight"),
        ("model.norm_out.", "decoder.final_layernorm."),
        ("lm_head.", "output_layer."),
        ("model.layers.", "decoder.layers."),
        ("attention_norm.", "input_layernorm."),
        ("ffn_norm.", "pre_mlp_layernorm."),
        ("attention.w_qkv.", "self_attention.linear_qkv."),
        ("attention.wo.", "self_attention.linear_proj."),
        ("feed_forward.router.dense.", "mlp.router."),
        ("feed_forward.w", "mlp.experts.weight"),
    ):
        name = name.replace(old, new)
    return name


@st.composite
def configs(draw):
    groups = draw(st.integers(1, 3))
    return tiny_config(
        num_key_value_heads=groups,
        num_attention_heads=groups * draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 5)),
        hidden_size=draw(st.integers(1, 13)),
        intermediate_size=draw(st.integers(1, 13)),
        num_local_experts=draw(st.one_of(st.integers(1, 12), st.just(64))),
        num_hidden_layers=draw(st.integers(1, 12)),
        vocab_size=draw(st.integers(1, 9)),
        tie_word_embeddings=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), st.sampled_from(["BF16", "F16", "F32", "F64"]), st.data())
def test_every_layout_against_numpy_and_back(tmp_path_factory, config, dtype, data):
    tmp = tmp_path_factory.mktemp("layouts")
    write_hub(
        tmp / "hub",
        config,
        dtype,
        data.draw(st.integers(0, 99)),
        files=data.draw(st.sampled_from([1, 3])),
    )
    hub = raw_safetensors(tmp / "hub")
    layout = data.draw(st.sampled_from(MINDSPORE_LAYOUTS))
    other = data.draw(st.sampled_from(MINDSPORE_LAYOUTS))
    ending = data.draw(st.sampled_from(["ckpt", "safetensors"]))
    run = {
        "workers": data.draw(st.integers(1, 3)),
        "memory": data.draw(st.sampled_from([None, 1 << 20])),
    }
    ckptforge.to_ms(tmp / "hub", tmp / f"a.{ending}", layout=layout, **run)
    expected = reference(hub, config, layout)
    found = contents(tmp / f"a.{ending}")
    assert set(found) == set(expected)
    for name, (_, shape, content) in found.items():
        assert shape == expected[name].shape and content == expected[name].tobytes(), name
    ckptforge.convert(tmp / f"a.{ending}", tmp / "b.ckpt", to=other, **run)
    assert {n: t[1:] for n, t in contents(tmp / "b.ckpt").items()} == {
        name: (array.shape, array.tobytes())
        for name, array in reference(hub, config, other).items()
    }
    ckptforge.to_torch(tmp / "b.ckpt", tmp / "back", **run)
    for path in (tmp / "hub").iterdir():
        if path.suffix == ".json":
            same = json.loads(path.read_bytes()) == json.loads(
                (tmp / "back" / path.name).read_bytes()
            )
            assert same or dtype != "BF16"  # config.json's dtype is put right where it was wrong
    assert contents(tmp / "back") == contents(tmp / "hub")
    shutil.rmtree(tmp)


def test_a_round_trip_gives_every_file_back_byte_for_byte(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.json").write_text('{"ü": 1}', encoding="utf-8")
    (tmp_path / "hub" / "tokenizer.model").write_bytes(bytes(range(256)))
    (tmp_path / "hub" / "generation_config.json").write_text("{}")
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"not carried along")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms")
    assert (tmp_path / "ms" / "rank_0" / "checkpoint_0.ckpt").is_file()
    ckptforge.convert(tmp_path / "ms", tmp_path / "gmm.safetensors", to="gmm")
    ckptforge.to_torch(tmp_path / "gmm.safetensors", tmp_path / "back")
    names = {path.name for path in (tmp_path / "hub").iterdir()} - {"pytorch_model.bin"}
    assert names | {"ckptforge.manifest.json"} == {
        path.name for path in (tmp_path / "back").iterdir()
    }
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hub" / name).read_bytes()


def test_shards_of_a_given_size(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf", max_shard_size="200KB")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 895616 and len(set(index["weight_map"].values())) == 5
    assert all(path.stat().st_size < 210_000 for path in (tmp_path / "hf").glob("*.safetensors"))
    assert contents(tmp_path / "hf") == contents(HUB)


def test_a_cast_changes_the_dtype_in_config_json(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", dtype="fp16")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config == {**json.loads((HUB / "config.json").read_text()), "dtype": "float16"}


def test_optimizer_state_follows_its_weights(tmp_path):
    ckptforge.convert(MINDSPORE / "full.ckpt", tmp_path / "gmm.ckpt", to="gmm", from_="dense")
    assert contents(tmp_path / "gmm.ckpt") == contents(MINDSPORE / "full_gmm.ckpt")
    ckptforge.convert(tmp_path / "gmm.ckpt", tmp_path / "dense.ckpt", to="dense")
    assert contents(tmp_path / "dense.ckpt") == contents(MINDSPORE / "full.ckpt")
    result = ckptforge.convert(
        MINDSPORE / "full.ckpt", tmp_path / "weights.ckpt", to="dense", weights_only=True
    )
    assert result.tensors == 23 and len(result.left_out["optimizer state and counters"]) == 50


@pytest.mark.parametrize("layout", MINDSPORE_LAYOUTS)
def test_optimizer_state_goes_through_every_layout_and_back(tmp_path, layout):
    config = tiny_config(
        hidden_size=32, intermediate_size=48, head_dim=8, num_local_experts=4, vocab_size=80
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    ckptforge.convert(
        MINDSPORE / "full.ckpt", tmp_path / "a.ckpt", to=layout, config=tmp_path / "config.json"
    )
    ckptforge.convert(tmp_path / "a.ckpt", tmp_path / "b.ckpt", to="dense")
    assert contents(tmp_path / "b.ckpt") == contents(MINDSPORE / "full.ckpt")


def test_mixed_dtypes_stay_mixed(tmp_path):
    """Norms and router in float32, the rest in bfloat16, as MindSpore's network holds them."""
    config = tiny_config(
        hidden_size=32, intermediate_size=48, head_dim=8, num_local_experts=4, vocab_size=80
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = ckptforge.to_torch(
        MINDSPORE / "full.ckpt", tmp_path / "hf", config=tmp_path / "config.json"
    )
    assert len(result.left_out["optimizer state and counters"]) == 50
    ckptforge.to_ms(tmp_path / "hf", tmp_path / "x.ckpt")
    full, back = contents(MINDSPORE / "full.ckpt"), contents(tmp_path / "x.ckpt")
    assert len(back) == 23 and all(full[name] == back[name] for name in back)
    assert {dtype for dtype, _, _ in back.values()} == {"float32", "bfloat16"}


def test_state_keeps_its_dtype_in_a_cast(tmp_path):
    ckptforge.convert(MINDSPORE / "full.ckpt", tmp_path / "x.ckpt", to="gmm", dtype="fp16")
    dtypes = {name: dtype for name, (dtype, _, _) in contents(tmp_path / "x.ckpt").items()}
    before = {name: dtype for name, (dtype, _, _) in contents(MINDSPORE / "full.ckpt").items()}
    weights = [name for name in dtypes if not name.startswith("adam_") and "." in name]
    assert len(weights) == 23 and {dtypes[name] for name in weights} == {"float16"}
    assert all(dtypes[name] == before[name] for name in dtypes if name not in weights)


def test_config_is_needed_only_where_it_matters(tmp_path):
    hub = tmp_path / "hub"
    write_hub(hub, tiny_config())
    (hub / "config.json").rename(tmp_path / "kept.json")
    # whole q, k and v: heads don't matter
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout="dense-qkv-r1.3")
    with pytest.raises(
        ConfigError,
        match=r"its axes g, r, d are "
        r"needed.*num_key_value_heads.*config",
    ):
        ckptforge.to_ms(hub, tmp_path / "y.ckpt", layout="dense-qkv-r1.4")
    assert set(ckptforge.inspect(hub).axes) == {"l", "e", "V", "H", "I"}
    with pytest.raises(ConfigError, match=r"num_key_value_heads.*config"):
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back", layout="dense-qkv-r1.3")
    ckptforge.to_torch(
        tmp_path / "x.ckpt",
        tmp_path / "back",
        layout="dense-qkv-r1.3",
        config=tmp_path / "kept.json",
    )
    assert contents(tmp_path / "back") == contents(hub)


def test_to_torch_says_which_file_is_missing_and_how_to_give_it(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt.manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"config.json is missing.*with config"):
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back", config=HUB)
    assert contents(tmp_path / "back") == contents(HUB)


def test_h_equal_to_i_is_asked_for_not_guessed(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(intermediate_size=12))
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="gmm")
    (tmp_path / "bare.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes())  # without its manifest
    with pytest.raises(LayoutError, match="fit layouts dense and gmm alike.*from_"):
        ckptforge.convert(tmp_path / "bare.ckpt", tmp_path / "y.ckpt", to="dense")
    with pytest.raises(LayoutError, match="layout"):
        ckptforge.to_torch(tmp_path / "bare.ckpt", tmp_path / "back", config=tmp_path / "hub")
    ckptforge.to_torch(
        tmp_path / "bare.ckpt", tmp_path / "back", config=tmp_path / "hub", layout="gmm"
    )
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "by_manifest")  # the manifest says gmm
    assert contents(tmp_path / "by_manifest") == contents(tmp_path / "hub")


@pytest.mark.parametrize(("given", "fits"), [("dense", "gmm"), ("gmm", "dense")])
def test_the_wrong_layout_is_refused_and_the_right_one_named(tmp_path, given, fits):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout=fits)
    with pytest.raises(LayoutError, match=f"not layout {given}.*The tensors fit layout {fits}"):
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf", layout=given)
    assert not (tmp_path / "hf").exists()


def test_layouts_of_the_wrong_side_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="layout='hub' is no layout of MindSpore"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="hub")
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="hf_layout='gmm' is no layout of Hugging Face"):
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf", hf_layout="gmm")
    with pytest.raises(
        UsageError, match="layout 'gmn' is unknown for mixtral; it has hub, fused, dense"
    ):
        ckptforge.to_ms(HUB, tmp_path / "y.ckpt", layout="gmn")


def test_overflow_is_refused_unless_allowed(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(), "BF16")  # random bits: values up to 3e38
    with pytest.raises(
        CastOverflowError,
        match=r"(?s)w1: \d+ of .*bfloat16 → "
        r"float16.*allow_overflow=True",
    ) as error:
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", dtype="fp16")
    assert re.search(
        r"\d+ finite values would become infinite", str(error.value).replace("\n", " ")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]
    result = ckptforge.to_ms(
        tmp_path / "hub", tmp_path / "x.ckpt", dtype="fp16", allow_overflow=True
    )
    assert result.audit.overflowed > 0
    hub = raw_safetensors(tmp_path / "hub")["model.embed_tokens.weight"].reshape(-1)
    finite = (hub & 0x7F80) != 0x7F80
    big = finite & ((hub & 0x7FFF).astype(np.uint32) << 16).view(np.float32).__ge__(65520)
    (count,) = [
        count for (group, _, _), count in result.audit.counts.items() if group == "embedding"
    ]
    assert (count.values, count.overflowed) == (hub.size, int(big.sum()))


def edit_hub(directory, change, config=None):
    """A hub directory whose tensors `change` has altered: name → (dtype, shape, bytes)."""
    config = config or tiny_config()
    write_hub(directory, config)
    tensors = {
        name: ("BF16", list(array.shape), array.tobytes())
        for name, array in raw_safetensors(directory).items()
    }
    change(tensors)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})


EXPERT = "model.layers.1.block_sparse_moe.experts.1.w2.weight"


def test_a_missing_expert_is_named(tmp_path):
    edit_hub(tmp_path / "hub", lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(
        MissingTensorsError,
        match=r"needs 1 tensor that isn't there:\n  "
        rf"{re.escape(EXPERT)}",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_a_missing_last_expert_is_found_by_config(tmp_path):
    def drop(tensors):
        for name in [name for name in tensors if ".experts.2." in name]:
            del tensors[name]

    edit_hub(tmp_path / "hub", drop)
    with pytest.raises(MissingTensorsError, match="needs 6 tensors"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_one_expert_too_many_is_refused(tmp_path):
    def add(tensors):
        tensors[EXPERT.replace("experts.1", "experts.3")] = tensors[EXPERT]

    edit_hub(tmp_path / "hub", add)
    with pytest.raises(LayoutError, match="e = 3, but there should be only 3, by .*config.json"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_experts_of_different_shapes(tmp_path):
    edit_hub(
        tmp_path / "hub", lambda tensors: tensors.update({EXPERT: ("BF16", [10, 12], bytes(240))})
    )
    with pytest.raises(
        LayoutError,
        match=rf"{re.escape(EXPERT)} has shape \[10, 12\], but .* has "
        r"\[12, 10\]",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_experts_of_different_dtypes(tmp_path):
    edit_hub(
        tmp_path / "hub", lambda tensors: tensors.update({EXPERT: ("F16", [12, 10], bytes(240))})
    )
    with pytest.raises(PlanError, match=rf"{re.escape(EXPERT)} is float16.*dtype"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    result = ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", dtype="fp32")
    assert {dtype for dtype, _, _ in contents(tmp_path / "x.ckpt").values()} == {"float32"}
    assert {key[1] for key in result.audit.counts} == {"bfloat16", "float16"}


def test_shapes_that_contradict_the_config(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "head_dim": 4}))
    with pytest.raises(
        LayoutError,
        match=r"d is 4 by .*config.json \(head_dim.*k_proj.weight "
        r"should be 8, but its shape is \[10, 12\]",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_unmapped_tensors_are_listed_or_left_out_on_request(tmp_path):
    edit_hub(
        tmp_path / "hub", lambda tensors: tensors.update({"model.extra": ("F32", [1], bytes(4))})
    )
    with pytest.raises(
        ckptforge.CkptforgeError,
        match=r"1 tensor isn't known.*\n  model.extra in "
        r"model.safetensors\n.*allow_unmapped=True",
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    result = ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", allow_unmapped=True)
    assert result.left_out == {"not known to the mapping": ["model.extra"]}


def test_buffers_that_the_network_recomputes_are_left_out_and_said(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_hub(tmp_path / "hub", lambda tensors: tensors.update({name: ("F32", [1], bytes(4))}))
    assert ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt").left_out == {
        "recomputed by the network": [name]
    }


@pytest.mark.parametrize("says", [True, False, None])
def test_tied_embeddings(tmp_path, says):
    config = tiny_config(tie_word_embeddings=True)
    write_hub(tmp_path / "hub", config)
    config["tie_word_embeddings"] = says
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    if says:
        assert "lm_head.weight" not in contents_after(tmp_path)
        return
    with pytest.raises(MissingTensorsError, match=r"lm_head.weight"):
        contents_after(tmp_path)


def contents_after(tmp_path):
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    return contents(tmp_path / "x.ckpt")


def test_the_model_is_known_by_names_without_a_config(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    (tmp_path / "hub" / "config.json").unlink()
    assert ckptforge.inspect(tmp_path / "hub").model == "mixtral"
    write_safetensors(tmp_path / "other.safetensors", {"encoder.weight": ("F32", [1], bytes(4))})
    with pytest.raises(
        ckptforge.CkptforgeError,
        match=r"no mapping table fits.*\n  "
        r"encoder.weight\n.*mapping",
    ):
        ckptforge.convert(tmp_path / "other.safetensors", tmp_path / "x.ckpt", to="dense")


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "toy.toml").write_text(
        'name = "toy"\nmodel_type = ["toy"]\n[axes]\na = "a"\nb = "b"\n[tensors]\nw = "a b"\n'
        '[layout.x]\nfamily = "huggingface"\nw = "w : a b"\n[layout.y]\nfamily = "mindspore"\nw = '
        '"W : b a"\n'
    )
    numbers = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write_safetensors(
        tmp_path / "in.safetensors", {"w": ("BF16", [2, 3], numbers.tobytes())}, {"format": "pt"}
    )
    ckptforge.convert(
        tmp_path / "in.safetensors", tmp_path / "out.ckpt", to="y", mapping=tmp_path / "toy.toml"
    )
    assert contents(tmp_path / "out.ckpt") == {"W": ("bfloat16", (3, 2), numbers.T.tobytes())}


def test_plans_are_made_without_writing(tmp_path):
    plan = ckptforge.plan("to-ms", HUB, tmp_path / "x.ckpt", layout="gmm", dtype="fp16")
    assert plan.tensor_count == 23 and plan.tensor_bytes == 895616 and not list(tmp_path.iterdir())
    assert plan.casts() == {"bfloat16 → float16": 65}
    assert ckptforge.plan("convert", HUB, tmp_path / "f", to="fused").is_directory
    with pytest.raises(UsageError, match="no plan for 'merge-all'"):
        ckptforge.plan("merge-all", HUB, tmp_path)


def test_progress_counts_every_byte(tmp_path):
    seen = []
    result = ckptforge.to_ms(
        HUB,
        tmp_path / "x.ckpt",
        layout="gmm",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (895616, 895616) and [done for done, _ in seen] == sorted(
        done for done, _ in seen
    )
    assert result.tensors == 23 and result.bytes == (tmp_path / "x.ckpt").stat().st_size


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("layout", ["dense", "gmm", "gmm-v3", "dense-qkv-r1.4"])
def test_workers_and_memory_change_nothing(tmp_path, workers, layout):
    ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout=layout, dtype="fp16")
    ckptforge.to_ms(
        HUB, tmp_path / "b.ckpt", layout=layout, dtype="fp16", workers=workers, memory="1MiB"
    )
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


@pytest.mark.parametrize("dtype", ["keep", "fp32", "bf16"])
def test_tiles_smaller_than_a_matrix(tmp_path, dtype):
    """Transposes and grouped rows larger than a tile: reads over gaps, whose bytes must be neither
    cast nor counted."""
    config = tiny_config(
        hidden_size=300,
        intermediate_size=700,
        head_dim=30,
        num_local_experts=2,
        num_hidden_layers=1,
    )
    write_hub(tmp_path / "hub", config, "F16")
    hub = raw_safetensors(tmp_path / "hub")
    values = sum(array.size for array in hub.values())
    for layout in ("gmm-qkv-r1.4", "dense"):
        small = ckptforge.to_ms(
            tmp_path / "hub", tmp_path / f"{layout}.ckpt", layout=layout, dtype=dtype, memory="1MiB"
        )
        big = ckptforge.to_ms(
            tmp_path / "hub", tmp_path / f"{layout}_big.ckpt", layout=layout, dtype=dtype, workers=1
        )
        assert (tmp_path / f"{layout}.ckpt").read_bytes() == (
            tmp_path / f"{layout}_big.ckpt"
        ).read_bytes()
        assert small.audit == big.audit and sum(
            count.values for count in small.audit.counts.values()
        ) == (0 if dtype == "keep" else values)
    for memory in ("1MiB", "100MB"):
        back = ckptforge.convert(
            tmp_path / "gmm-qkv-r1.4.ckpt",
            tmp_path / "d.ckpt",
            to="dense",
            memory=memory,
            overwrite=True,
        )
        assert (tmp_path / "d.ckpt").read_bytes() == (
            tmp_path / "dense.ckpt"
        ).read_bytes() and not back.audit.counts
    if dtype == "keep":
        again = ckptforge.convert(
            tmp_path / "gmm-qkv-r1.4.ckpt",
            tmp_path / "w.ckpt",
            to="dense",
            dtype="fp32",
            memory="1MiB",
        )
        assert sum(count.values for count in again.audit.counts.values()) == values
        wide = {
            name: np.frombuffer(data, np.float32)
            for name, (_, _, data) in contents(tmp_path / "w.ckpt").items()
        }
        for name, array in reference(hub, config, "dense").items():
            assert np.array_equal(
                wide[name], array.reshape(-1).view(np.float16).astype(np.float32), equal_nan=True
            )


def test_a_manifests_layout_is_believed_only_for_the_very_file(tmp_path):
    """dense and gmm of a model with H = I have equal sizes: a replaced file must not be read as
    what it was."""
    write_hub(tmp_path / "hub", tiny_config(intermediate_size=12))
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", layout="gmm")
    (tmp_path / "x.ckpt").write_bytes((tmp_path / "y.ckpt").read_bytes())
    with pytest.raises(LayoutError, match="dense and gmm alike"):
        ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "z.ckpt", to="gmm-v3")


def test_without_a_config_no_tensor_is_taken_for_tied(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(tie_word_embeddings=True))
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(MissingTensorsError, match=r"lm_head.weight\n.*config.json"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


@pytest.mark.parametrize("index", ["#", "9" * 25, "9" * 5000, "999999999999", "20000000", "999999"])
def test_names_with_absurd_numbers_are_errors(tmp_path, index):
    def add(tensors):
        tensors[f"model.layers.{index}.input_layernorm.weight"] = ("BF16", [12], bytes(24))

    edit_hub(tmp_path / "hub", add)
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(ckptforge.CkptforgeError, match="known to the mapping|aren't there"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_a_config_with_an_absurd_number_of_experts(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps(tiny_config(num_local_experts=2**31 - 1))
    )
    with pytest.raises(ckptforge.CkptforgeError, match="aren't there"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_optimizer_state_in_part_is_named(tmp_path):
    ckptforge.convert(MINDSPORE / "full.ckpt", tmp_path / "x.safetensors", to="dense")
    tensors = {
        name: (dtype, shape, data)
        for name, (dtype, shape, data) in contents(tmp_path / "x.safetensors").items()
    }
    stored = {"bfloat16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}
    kept = {
        n: (stored[d], list(s), b)
        for n, (d, s, b) in tensors.items()
        if not (n.startswith("adam_m") and ".ffn.w3" in n)
    }
    write_safetensors(tmp_path / "y.safetensors", kept, {"format": "ms"})
    with pytest.raises(
        MissingTensorsError,
        match=r"adam_m.*ffn.w1 can't be made.*\n  "
        r"adam_m.*ffn.w3.weight",
    ):
        ckptforge.convert(tmp_path / "y.safetensors", tmp_path / "z.ckpt", to="gmm-v3")
