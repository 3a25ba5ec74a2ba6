"""The forward check of each model that it knows: every layout, what config.json may say, and the
defects of `test_verify`."""

import functools

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import ConfigError, VerifyError
from ckptforge.forward import hub_model
from ckptforge.forward.known import known_tables, refuse_unknown, unknown_parts
from ckptforge.forward.routing import Router
from ckptforge.tables.constants import Used
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import contents, write_safetensors
from tests.test_verify import changed, heavy  # noqa: F401

TABLES = {table.name: table for table in shipped_tables()}
KNOWN = known_tables()
IDS = [int(one) for one in np.random.default_rng(0).integers(0, 64, 24)]

# Square matrices, so that a transposed one is read, and heads of another width than hidden/heads.
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 64,
    "torch_dtype": "float32",
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "num_nextn_predict_layers": 0,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 6}
OWN = {"qwen3": {"head_dim": 8}, "qwen3_moe": EXPERTS, "deepseek_v3": LATENT}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}


def model(path, table, **changes):
    """A model of numbers large enough that every defect shows, norms about one."""
    config = {**table.example, **SMALL, **OWN.get(table.name, {}), **changes}
    write_model(path, table, config, dtype="float32")
    random = np.random.default_rng(1)
    tensors = {}
    copies = ("model.layers.3.embed_tokens", "model.layers.3.shared_head.head")
    for name, (_, shape, _) in contents(path).items():
        if name.startswith(copies):
            continue
        values = random.normal(0, 0.2, shape) + (1 if "norm" in name else 0)
        tensors[name] = ("F32", list(shape), values.astype("f4").tobytes())
    write_safetensors(path / "model.safetensors", tensors, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def hubs(heavy, tmp_path_factory):  # noqa: F811
    """A model of each table."""
    made = tmp_path_factory.mktemp("hubs")
    return {name: model(made / name, TABLES[name]) for name in KNOWN}


def test_it_knows_tables_with_a_layout_of_mindspore():
    assert set(KNOWN) <= {table.name for table in TABLES.values() if table.names_of("mindspore")}


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in KNOWN for layout in TABLES[name].names_of("mindspore")],
)
def test_every_layout_passes(hubs, tmp_path, name, layout):
    ckptforge.to_ms(hubs[name], tmp_path / "x.ckpt", layout=layout)
    found = ckptforge.verify(hubs[name], tmp_path / "x.ckpt", layout=layout, tokens=IDS)
    assert found.passed and found.layout == layout and len(found.layers) == 3, found.layers
    assert max(layer.worst for layer in found.layers) < 5e-6 and found.end.relative_l2 < 5e-6


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 6}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
        ("llama", {"model_type": "mistral", "sliding_window": 5, "head_dim": 4}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        ),
        ("qwen2", {"rope_scaling": {**YARN, "mscale": None, "mscale_all_dim": None}}),
        ("llama", {"model_type": "internlm3", "head_dim": 4}),
        ("qwen2", {"model_type": "seed_oss", "attention_out_bias": False, "head_dim": 4}),
        ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 3}),
        ("mixtral", {"model_type": None, "num_local_experts": 7}),
        ("deepseek_v3", {"rope_scaling": YARN, "rope_interleave": False}),
        (
            "deepseek_v3",
            {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-3},
        ),
        (
            "deepseek_v3",
            {"model_type": "kimi_k2", "norm_topk_prob": False, "num_nextn_predict_layers": 1},
        ),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("deepseek_v3", {"q_lora_rank": None}),
        ("deepseek_v3", {"q_lora_rank": None, "rope_scaling": YARN, "rope_interleave": False}),
    ],
)
def test_what_config_json_says_is_computed(heavy, tmp_path, name, changes):  # noqa: F811
    hub = model(tmp_path / "hub", TABLES[name], **changes)
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", model=name)
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", tokens=IDS)
    assert found.passed and found.end.relative_l2 < 1e-5, (found.layers, found.end)
    assert bool(found.notes) == ("num_nextn_predict_layers" in changes)


def matrix(tensors, *parts):
    """The name of the last tensor of layer 1 that has one of the parts."""
    return [n for n in tensors if ".layers.1." in n and any(part in n for part in parts)][-1]


def exchange(tensors, one, other):
    tensors[one], tensors[other] = tensors[other].copy(), tensors[one].copy()


def wk_and_wv(tensors):
    if any("kv_b_proj" in name for name in tensors):  # in one matrix, by turns of 8 rows
        name = matrix(tensors, "kv_b_proj")
        tensors[name] = tensors[name].reshape(4, 2, 8, -1)[:, ::-1].reshape(64, -1).copy()
    else:
        exchange(tensors, matrix(tensors, "k_proj.weight"), matrix(tensors, "v_proj.weight"))


def w1_and_w3(tensors):
    gate = matrix(tensors, "gate_proj", ".w1.")
    up = gate.replace("gate_proj", "up_proj").replace(".w1.", ".w3.")
    exchange(tensors, gate, up)


def two_experts(tensors):
    for name in [name for name in tensors if ".layers.1." in name and ".experts.0." in name]:
        exchange(tensors, name, name.replace(".experts.0.", ".experts.3."))


def transposed(tensors):
    name = matrix(tensors, "mlp.down_proj", "experts.2.down_proj", "experts.2.w2")
    tensors[name] = tensors[name].T.copy()


def one_element(tensors):
    name = matrix(tensors, "o_proj.weight")
    tensors[name].reshape(-1)[np.abs(tensors[name]).argmax()] *= 1.1


def layer(tensors):
    for name in [name for name in tensors if ".layers.2." in name]:
        tensors[name] = tensors[name.replace(".layers.2.", ".layers.1.")]


def not_a_number(tensors):
    tensors[matrix(tensors, "o_proj.weight")][0, 0] = np.nan


DEFECTS = {
    "w1 and w3": w1_and_w3,
    "two experts": two_experts,
    "transposed": transposed,
    "wk and wv": wk_and_wv,
    "norms": lambda tensors: exchange(
        tensors, matrix(tensors, "input_layernorm"), matrix(tensors, "post_attention_layernorm")
    ),
    "one element": one_element,
    "layer": layer,
    "lm_head": lambda tensors: tensors["lm_head.weight"].__imul__(1.01),
    "not a number": not_a_number,
}
ROUTED = [name for name in KNOWN if "router" in TABLES[name].tensors]


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        (name, one)
        for name in KNOWN
        for one in DEFECTS
        if name != "mixtral"  # in `test_verify`
        if name in ROUTED or one != "two experts"
    ],
)
def test_defects_of_every_model_are_caught(hubs, tmp_path, name, defect):
    ckptforge.to_ms(changed(hubs[name], tmp_path / "bad", DEFECTS[defect]), tmp_path / "x.ckpt")
    found = ckptforge.verify(hubs[name], tmp_path / "x.ckpt", tokens=IDS)
    assert not found.passed, (found.layers, found.end)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen2", "self_attn.q_proj.bias"),
        ("qwen3", "self_attn.k_norm.weight"),
        ("deepseek_v3", "mlp.gate.e_score_correction_bias"),
        ("deepseek_v3", "mlp.shared_experts.up_proj.weight"),
        ("deepseek_v3", "self_attn.kv_a_layernorm.weight"),
    ],
)
def test_what_only_some_models_have_is_checked(hubs, tmp_path, name, part):
    def turned(tensors):
        tensors[f"model.layers.1.{part}"] = np.roll(tensors[f"model.layers.1.{part}"], 1, 0)

    ckptforge.to_ms(changed(hubs[name], tmp_path / "bad", turned), tmp_path / "x.ckpt")
    found = ckptforge.verify(hubs[name], tmp_path / "x.ckpt", tokens=IDS)
    assert [one.passed for one in found.layers] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("deepseek_v3", {"routed_scaling_factor": 1.0}),
        ("deepseek_v3", {"rope_interleave": False}),
    ],
)
def test_a_config_that_computes_something_else_is_caught(hubs, tmp_path, name, config):
    bad = changed(hubs[name], tmp_path / "bad", lambda _: None, **config)
    ckptforge.to_ms(bad, tmp_path / "x.ckpt")
    assert not ckptforge.verify(hubs[name], tmp_path / "x.ckpt", tokens=IDS).passed


def test_a_model_that_it_does_not_know_is_refused_by_name_with_those_that_it_knows():
    for name, part in (("glm4", "post_attention_norm"), ("qwen2_moe", "shared_gate")):
        table = TABLES[name]
        used = Used(table.constants.of(table.example), table.example, 2)
        assert part in unknown_parts(table, used.constants)
        with pytest.raises(ConfigError, match=f"x: is a model of the table {name}, .* {part}") as e:
            refuse_unknown(used, table, "x")
        assert all(known in str(e.value) for known in KNOWN)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "hidden_act", "gelu"),
        ("llama", "mlp_bias", True),
        ("deepseek_v3", "topk_method", "greedy"),
    ],
)
def test_what_it_does_not_compute_is_refused_by_the_key(name, key, value):
    config = {**TABLES[name].example, key: value}
    used = Used(TABLES[name].constants.of(config), config, 2)
    with pytest.raises(ConfigError, match=f"x: {key} is .*; the forward check computes only"):
        refuse_unknown(used, TABLES[name], "x")


def test_a_model_that_transformers_does_not_have_is_refused_by_name(heavy, tmp_path):  # noqa: F811
    hub = model(tmp_path / "hub", TABLES["llama"], model_type="telechat3", architectures=None)
    ckptforge.to_ms(hub, tmp_path / "x.ckpt")
    with pytest.raises(VerifyError, match="no language model for model_type 'telechat3'"):
        ckptforge.verify(hub, tmp_path / "x.ckpt", tokens=IDS)


def test_a_model_that_transformers_makes_otherwise_is_refused(heavy, tmp_path, monkeypatch):  # noqa: F811
    """As if another version's class had longer heads by default."""
    hub = model(tmp_path / "hub", TABLES["qwen2"], model_type="seed_oss")
    ckptforge.to_ms(hub, tmp_path / "x.ckpt")
    longer = functools.partial(transformers_class("SeedOssConfig"), head_dim=64)
    kind = transformers_class("AutoModelForCausalLM")
    monkeypatch.setattr(hub_model, "_classes", lambda *_: (longer, kind))
    with pytest.raises(VerifyError, match=r"q_proj.weight is \[512, 16\], but .* of \[256, 16\]"):
        ckptforge.verify(hub, tmp_path / "x.ckpt", tokens=IDS)


def transformers_class(name):
    import transformers

    return getattr(transformers, name)


def test_groups_are_taken_by_their_two_best_experts():
    router = Router(6, 2, True, True, 3, 1, 1.0)
    ranked = np.array([[0.9, 0.0, 0.5, 0.5, 0.1, 0.2], [0.1, 0.2, 0.9, 0.0, 0.8, 0.7]], "f4")
    assert router.chosen(ranked).tolist() == [[2, 3], [4, 5]]
    assert np.allclose(router.margins(ranked), [(1.0 - 0.9) / 2, (1.5 - 0.9) / 2])
