"""What else of config.json than sizes changes what a model computes: found where transformers'
logits change, and only there."""

import copy
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import TableError
from ckptforge.tables.constants import Used, differing_constants
from ckptforge.tables.model_config import Expression
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.rope import Rope, nearly_equal, rope_parameters, rotation
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.sizes import AxisSizes
from ckptforge.verbs.synthetic import write_model
from tests.helpers import transformers_config

TABLES = {model_type: table for table in shipped_tables() for model_type in table.model_types}
# of the text that logits are made of: longer than every window and every original length below
LENGTH = 48

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 4 for i in range(8)],
    "original_max_position_embeddings": 16,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
QWEN2_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
DEEPSEEK = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {
        **YARN,
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
}
MODELS = {
    "llama": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "attention_bias": True,
    },
    "llama3": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
    },
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "longrope": {"model_type": "llama", "rope_scaling": LONGROPE},
    "yarn without length": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "mixtral": {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_theta": 1e4,
        "sliding_window": None,
    },
    "qwen2": {"model_type": "qwen2", **SLIDING},
    "qwen2 unused window": {"model_type": "qwen2", **SLIDING, "use_sliding_window": False},
    "qwen2_moe": {"model_type": "qwen2_moe", **SLIDING, "max_window_layers": 3, **QWEN2_MOE},
    "qwen2_moe unused window": {
        "model_type": "qwen2_moe",
        **SLIDING,
        "use_sliding_window": False,
        **QWEN2_MOE,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, **SLIDING},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        **SLIDING,
    },
    "deepseek": {"model_type": "deepseek_v3", **DEEPSEEK},
    "glm4": {"model_type": "glm4", "head_dim": 16, "attention_bias": True, "pad_token_id": 3},
    "minimax_m2": {
        "model_type": "minimax_m2",
        "head_dim": 16,
        "rotary_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
CONFIGS = {name: {**SIZES, **changes} for name, changes in MODELS.items()}
DROP = "absent"


def inner(**changes):
    """An edit of keys in rope_scaling."""
    return {"rope_scaling": changes}


# (model, edit, keys that are named)
CHANGING = [
    ("glm4", {"partial_rotary_factor": 0.25}, ["rope_scaling.partial_rotary_factor"]),
    ("minimax_m2", {"rotary_dim": DROP}, ["rope_scaling.partial_rotary_factor"]),
    ("llama", {"rope_theta": 20000.0}, ["rope_theta"]),
    ("llama", {"rms_norm_eps": 1e-3}, ["rms_norm_eps"]),
    ("llama", {"rms_norm_eps": DROP}, ["rms_norm_eps"]),  # LlamaConfig's 1e-6
    ("llama", {"hidden_act": "gelu"}, ["hidden_act"]),
    ("llama", {"attention_bias": False}, ["attention_bias"]),
    ("llama", {"is_causal": False}, ["is_causal"]),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        ["rope_scaling.factor", "rope_scaling.rope_type"],
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        ["rope_scaling.factor", "rope_scaling.rope_type"],
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
        ["rope_scaling.partial_rotary_factor", "rope_scaling.rope_type"],
    ),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_theta"]),
    ("llama3", inner(factor=4.0), ["rope_scaling.factor"]),
    ("llama3", inner(low_freq_factor=2.0), ["rope_scaling.low_freq_factor"]),
    ("llama3", inner(high_freq_factor=2.0), ["rope_scaling.high_freq_factor"]),
    (
        "llama3",
        inner(original_max_position_embeddings=24),
        ["rope_scaling.original_max_position_embeddings"],
    ),
    ("linear", inner(factor=3.0), ["rope_scaling.factor"]),
    ("dynamic", inner(factor=3.0), ["rope_scaling.factor"]),
    ("dynamic", {"max_position_embeddings": 24}, ["max_position_embeddings"]),
    ("longrope", inner(long_factor=[3.0] * 8), ["rope_scaling.long_factor"]),
    ("longrope", inner(attention_factor=1.5), ["rope_scaling.attention_factor"]),
    ("longrope", {"max_position_embeddings": 64}, ["max_position_embeddings"]),
    ("yarn without length", {"max_position_embeddings": 64}, ["max_position_embeddings"]),
    ("yarn", inner(factor=2.0), ["rope_scaling.factor"]),
    ("yarn", inner(beta_fast=4), ["rope_scaling.beta_fast"]),
    ("yarn", inner(beta_slow=8), ["rope_scaling.beta_slow"]),
    ("yarn", inner(truncate=False), ["rope_scaling.truncate"]),
    ("yarn", inner(attention_factor=1.0), ["rope_scaling.attention_factor"]),
    (
        "yarn",
        inner(original_max_position_embeddings=1024),
        ["rope_scaling.original_max_position_embeddings"],
    ),
    # Beside the parameters it counts more than among them.
    (
        "yarn",
        {"original_max_position_embeddings": 1024},
        ["rope_scaling.original_max_position_embeddings"],
    ),
    ("mistral", {"sliding_window": 4}, ["sliding_window"]),
    ("mistral", {"sliding_window": None}, ["sliding_window"]),
    ("mistral", {"sliding_window": DROP}, ["sliding_window"]),  # MistralConfig's 4096
    ("mixtral", {"num_experts_per_tok": 1}, ["num_experts_per_tok"]),
    ("mixtral", {"sliding_window": 8}, ["sliding_window"]),
    ("mixtral", {"rope_theta": DROP}, ["rope_theta"]),  # MixtralConfig's 1e6
    ("qwen2", {"use_sliding_window": False}, ["use_sliding_window"]),
    ("qwen2", {"use_sliding_window": DROP}, ["use_sliding_window"]),
    ("qwen2", {"sliding_window": 4}, ["sliding_window"]),
    ("qwen2", {"max_window_layers": 2}, ["max_window_layers"]),
    (
        "qwen2",
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        ["layer_types"],
    ),
    ("qwen2_moe", {"max_window_layers": 1}, ["max_window_layers"]),
    ("qwen2_moe", {"use_sliding_window": False}, ["use_sliding_window"]),
    ("gpt_oss", {"layer_types": ["full_attention"] * 3}, ["layer_types"]),
    ("gpt_oss", {"sliding_window": 4}, ["sliding_window"]),
    ("qwen3", {"max_window_layers": DROP}, ["max_window_layers"]),  # Qwen3Config's 28
    ("qwen3", {"rms_norm_eps": 1e-3}, ["rms_norm_eps"]),
    ("qwen3_moe", {"norm_topk_prob": DROP}, ["norm_topk_prob"]),  # Qwen3MoeConfig's false
    ("qwen3_moe", {"num_experts_per_tok": 1}, ["num_experts_per_tok"]),
    ("qwen3_moe", {"sliding_window": 4}, ["sliding_window"]),
    ("deepseek", {"rope_interleave": False}, ["rope_interleave"]),
    ("deepseek", {"rope_interleave": None}, ["rope_interleave"]),
    ("deepseek", {"n_group": 2}, ["n_group"]),
    ("deepseek", {"topk_group": 4}, ["topk_group"]),
    ("deepseek", {"routed_scaling_factor": 1.0}, ["routed_scaling_factor"]),
    ("deepseek", {"norm_topk_prob": False}, ["norm_topk_prob"]),
    ("deepseek", inner(mscale=1.0), ["rope_scaling.mscale"]),
    ("deepseek", inner(mscale_all_dim=DROP), ["rope_scaling.mscale_all_dim"]),
    ("deepseek", inner(beta_fast=2), ["rope_scaling.beta_fast"]),
]

YARN_IN_5 = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "beta_fast": 32,
}
KEEPING = [
    ("glm4", {"partial_rotary_factor": 0.5}),
    ("minimax_m2", {"rotary_dim": DROP, "partial_rotary_factor": 0.5}),
    ("llama", {"use_cache": False, "pretraining_tp": 2}),
    ("llama", {"attention_dropout": 0.5}),
    ("llama", {"initializer_range": 0.5}),
    ("llama", {"torch_dtype": "float16", "transformers_version": "4.30.0"}),
    ("llama", {"dtype": "float32"}),
    ("llama", {"pad_token_id": 3, "bos_token_id": 5, "eos_token_id": [6, 7]}),
    ("llama", {"max_position_embeddings": 4096}),
    ("llama", {"sliding_window": 8, "use_sliding_window": True}),
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 1.0}}),
    ("llama", {"rope_scaling": None, "mlp_bias": False}),
    (
        "llama",
        {"rope_theta": DROP, "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0, "beta_fast": 3}},
    ),
    ("llama3", {"max_position_embeddings": 4096}),
    (
        "llama3",
        {
            "rope_scaling": DROP,
            "rope_theta": 3.0,
            "rope_parameters": {**LLAMA3, "rope_theta": 500000},
        },
    ),
    ("linear", inner(original_max_position_embeddings=4, low_freq_factor=9.0)),
    ("longrope", inner(attention_factor=(1 + np.log(2) / np.log(16)) ** 0.5)),
    ("yarn", {"max_window_layers": 0, "max_position_embeddings": 64}),
    ("yarn", {"rope_scaling": DROP, "rope_parameters": YARN_IN_5}),
    ("yarn", inner(beta_slow=1, truncate=True, attention_factor=None, finetuned=True)),
    ("yarn", inner(mscale=2.0)),
    ("yarn without length", inner(original_max_position_embeddings=32)),
    ("mistral", {"max_window_layers": 2}),
    (
        "mixtral",
        {
            "sliding_window": DROP,
            "router_jitter_noise": 0.5,
            "router_aux_loss_coef": 3.0,
            "output_router_logits": False,
        },
    ),
    ("qwen2_moe unused window", {"max_window_layers": 99}),
    ("qwen2_moe", {"max_window_layers": 28}),
    ("qwen2_moe", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("gpt_oss", {"layer_types": DROP}),
    ("qwen2 unused window", {"sliding_window": None}),
    ("qwen2 unused window", {"sliding_window": 2, "max_window_layers": 0}),
    ("qwen2 unused window", {"layer_types": ["full_attention"] * 3}),
    (
        "qwen2",
        {"layer_types": ["full_attention"] + ["sliding_attention"] * 2, "max_window_layers": 3},
    ),
    ("qwen3", {"attention_bias": False}),
    ("qwen3_moe", {"max_window_layers": 3, "mlp_only_layers": None, "decoder_sparse_step": 1}),
    (
        "deepseek",
        {"rope_interleave": True, "num_mtp_layers": 0, "aux_loss_alpha": 3.0, "seq_aux": False},
    ),
    (
        "deepseek",
        {
            "attention_bias": False,
            "ep_size": 8,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
    ),
]


def edited(config, edit):
    config = copy.deepcopy(config)
    for key, value in edit.items():
        if (
            key == "rope_scaling"
            and isinstance(value, dict)
            and "type" not in value
            and "rope_type" not in value
        ):
            config[key] = edited(config[key], value)
        elif value == DROP:
            del config[key]
        else:
            config[key] = value
    return config


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        write_model(root / name, TABLES[config["model_type"]], config, dtype="float32")
    return root


def beside(weights, directory, config):
    """The same weights with another config.json."""
    directory.mkdir()
    os.link(weights / "model.safetensors", directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def found(models, tmp_path, name, config):
    mine, theirs = models / name, beside(models / name, tmp_path / "edited", config)
    one, back = ckptforge.compare(mine, theirs), ckptforge.compare(theirs, mine)
    assert one.constants == {key: pair[::-1] for key, pair in back.constants.items()}
    assert one.equal == (not one.constants) and not one.differences
    return one.constants


@pytest.mark.parametrize(("name", "edit", "keys"), CHANGING, ids=str)
def test_an_edit_that_changes_the_logits_is_found_by_its_key(models, tmp_path, name, edit, keys):
    assert sorted(found(models, tmp_path, name, edited(CONFIGS[name], edit))) == keys


@pytest.mark.parametrize(("name", "edit"), KEEPING, ids=str)
def test_an_edit_that_does_not_change_the_logits_is_not_reported(models, tmp_path, name, edit):
    assert found(models, tmp_path, name, edited(CONFIGS[name], edit)) == {}


@pytest.fixture(scope="module")
def logits(models):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    before = {}

    def compute(config, weights):
        made = transformers_config(**config)
        made._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
        assert not model.load_state_dict(weights, strict=False).missing_keys
        with torch.no_grad():
            return model.eval()(torch.arange(LENGTH)[None] * 7 % config["vocab_size"]).logits

    def change(name, edit):
        """The largest difference between the logits of a model and those of its edited config."""
        if name not in before:
            weights = transformers.AutoModelForCausalLM.from_pretrained(
                models / name, dtype=torch.float32
            ).state_dict()
            before[name] = (weights, compute(CONFIGS[name], weights))
        weights, expected = before[name]
        return float((compute(edited(CONFIGS[name], edit), weights) - expected).abs().max())

    return change


@pytest.mark.parametrize(("name", "edit"), [case[:2] for case in CHANGING], ids=str)
def test_those_edits_change_the_logits_of_transformers(logits, name, edit):
    assert logits(name, edit) > 1e-6


@pytest.mark.parametrize(("name", "edit"), KEEPING, ids=str)
def test_those_edits_do_not_change_the_logits_of_transformers(logits, name, edit):
    assert logits(name, edit) < 1e-7


@pytest.mark.parametrize("model_type", TABLES)
def test_a_head_is_as_long_as_transformers_takes_it(model_type):
    """Where config.json leaves head_dim out, and where it is null."""
    transformers = pytest.importorskip("transformers")
    from huggingface_hub.errors import StrictDataclassError

    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("transformers has no class for it")
    table, kind = TABLES[model_type], transformers.CONFIG_MAPPING[model_type]
    kind = kind.sub_configs.get("text_config", kind) if kind.sub_configs else kind
    if "d" not in table.axes:
        pytest.skip("latent attention has other lengths")
    heads = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
    for config in (heads, {**heads, "head_dim": None}, {**heads, "head_dim": 20}):
        try:
            made = kind(**config)
        except StrictDataclassError:  # null is nothing that transformers reads
            assert config["head_dim"] is None
            continue
        # as their attention asks for it
        expected = getattr(made, "head_dim", None) or 96 // 3
        sizes = AxisSizes()
        sizes.learn_config(table, {"model_type": model_type, **config}, "config.json")
        assert sizes.get("d") == expected, config


@pytest.mark.parametrize("model_type", TABLES)
def test_the_defaults_of_the_tables_are_those_of_transformers(model_type):
    """Every field of the configuration class is either compared, or a size, or known to change no
    logits."""
    transformers = pytest.importorskip("transformers")
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("transformers has no class for it")
    table, made = TABLES[model_type], transformers.CONFIG_MAPPING[model_type]()
    constants = table.constants.of({"model_type": model_type})
    if constants is None:
        pytest.skip("its constants are compared as they stand")
    defaults = dict(constants.defaults)
    assert table.constants.defaults_from.startswith("transformers ")
    assert defaults.pop("rope_theta") == made.rope_parameters["rope_theta"] == made.default_theta
    # every gpt-oss says yarn
    assert made.rope_parameters["rope_type"] == ("yarn" if model_type == "gpt_oss" else "default")
    partial = made.rope_parameters.get("partial_rotary_factor")
    # MiniMaxM2Config has no default, and reads it
    assert defaults.pop("partial_rotary_factor", None) == (
        1.0 if model_type == "minimax_m2" else partial
    )
    # of any PreTrainedConfig
    assert not defaults.pop("per_layer_config") and not made.is_heterogeneous
    # as masking_utils asks for it
    assert defaults.pop("is_causal") is getattr(made, "is_causal", True)
    if model_type == "deepseek_v3":
        for key in ("scoring_func", "topk_method"):
            assert defaults.pop(key) and not hasattr(made, key)
    fields = set(type(made).__dataclass_fields__) - set(
        transformers.PreTrainedConfig.__dataclass_fields__
    )
    for key in {*defaults, *(constants.window.keys if constants.window else ())} & fields:
        default, written = type(made).__dataclass_fields__[key].default, defaults.get(key)
        assert written == (type(written)() if default is None else default), key
    assert set(defaults) <= fields
    # Kv heads of latent attention are its heads, and every layer of the other has experts.
    unread = {
        "deepseek_v2": {"num_key_value_heads", "head_dim"},
        "deepseek_v3": {"num_key_value_heads"},
        "deepseek_v32": {"num_key_value_heads", "head_dim", "layer_types", "mlp_layer_types"},
        "glm_moe_dsa": {"num_key_value_heads", "head_dim", "layer_types", "mlp_layer_types"},
        "qwen2_moe": {"intermediate_size"},
        "qwen3_moe": {"intermediate_size"},
        "qwen3_next": {"intermediate_size"},
    }.get(model_type, set())
    sizes = set(
        re.findall(r"[a-z_]{3,}", " ".join(expression.text for expression in table.axes.values()))
    )
    read = {
        *defaults,
        *sizes,
        "rope_parameters",
        "tie_word_embeddings",
        *(constants.window.keys if constants.window else ()),
    }
    assert fields - read - CHANGING_NO_LOGITS - unread == set()


CHANGING_NO_LOGITS = {
    "attention_dropout",  # while training
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "residual_dropout",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "use_cache",
}

NUMBERS = st.floats(1.0, 64.0, allow_nan=False) | st.integers(1, 64)
ROPES = {
    "default": {},
    "linear": {"factor": NUMBERS},
    "proportional": {"factor": NUMBERS, "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0])},
    "dynamic": {"factor": NUMBERS},
    "yarn": {
        "factor": NUMBERS,
        "original_max_position_embeddings": st.integers(2, 65536),
        "beta_fast": NUMBERS,
        "beta_slow": NUMBERS,
        "attention_factor": st.floats(0.1, 3.0),
        "mscale": NUMBERS,
        "mscale_all_dim": NUMBERS,
        "truncate": st.booleans(),
    },
    "longrope": {
        "factor": NUMBERS,
        "short_factor": st.lists(NUMBERS, min_size=4, max_size=4),
        "long_factor": st.lists(NUMBERS, min_size=4, max_size=4),
        "attention_factor": st.floats(0.1, 3.0),
        "original_max_position_embeddings": st.integers(2, 65536),
    },
    "llama3": {
        "factor": NUMBERS,
        "low_freq_factor": st.floats(0.5, 2.0),
        "high_freq_factor": st.floats(3.0, 9.0),
        "original_max_position_embeddings": st.integers(2, 65536),
    },
}
NEEDED = {"factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor"}
ROPE = Rope(dim=Expression("head_dim"), scales_softmax=False, types={"llama3": "banded"})


@st.composite
def ropes(draw):
    """config.json of a rope, spelled as transformers 4 or 5 does, with some keys left out."""
    kind = draw(st.sampled_from(list(ROPES)))
    keys = {
        key: draw(values)
        for key, values in ROPES[kind].items()
        if key in NEEDED or draw(st.booleans())
    }
    if kind == "longrope" and draw(st.booleans()):
        del keys["factor"]
    config = {
        "head_dim": 8,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": draw(st.integers(2, 65536)),
    }
    theta = draw(st.sampled_from([None, 5000.0, 1e6, 500000]))
    if draw(st.booleans()):
        keys["type" if draw(st.booleans()) else "rope_type"] = kind
        return config | {"rope_scaling": keys} | ({} if theta is None else {"rope_theta": theta})
    return config | {
        "rope_parameters": {"rope_type": kind, **keys}
        | ({} if theta is None else {"rope_theta": theta})
    }


@settings(max_examples=500, deadline=None)
@given(ropes(), st.integers(1, 1 << 17))
def test_a_rotation_is_that_of_transformers(config, length):
    """The inverse frequencies and the factor of the attention, for a text of any length."""
    transformers = pytest.importorskip("transformers")
    rotary = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made = transformers.LlamaConfig(**copy.deepcopy(config))
    kind = made.rope_parameters["rope_type"]
    init = (
        ROPE_INIT_FUNCTIONS[kind] if kind != "default" else rotary.compute_default_rope_parameters
    )
    expected, attention = init(made, seq_len=length)
    ((_, parameters),) = rope_parameters(
        config, {"rope_theta": 10000.0, "max_position_embeddings": 2048}, ROPE
    ).items()
    found = rotation(parameters, 8, ROPE)
    if found[0] == "dynamic":
        _, theta, factor, longest, dim, softmax = found
        grown = theta * (factor * max(length, longest) / longest - (factor - 1)) ** (
            dim / (dim - 2)
        )
        frequencies, scale = grown ** -(np.arange(0, dim, 2) / dim), 1.0
    elif found[0] == "longrope":
        _, short, long, original, scale, softmax = found
        frequencies = long if length > original else short
    else:
        frequencies, scale, softmax = found
    assert softmax == 1.0 and scale == pytest.approx(attention, rel=1e-12)
    assert np.allclose(frequencies, expected.double().numpy(), rtol=2e-5, atol=0)


@settings(max_examples=300, deadline=None)
@given(ropes(), st.data())
def test_two_spellings_of_one_rope_compute_the_same(config, data):
    defaults = {"rope_theta": 10000.0, "max_position_embeddings": 2048}
    given = config.get("rope_scaling") or config["rope_parameters"]
    theta = config.get("rope_theta", given.get("rope_theta", 10000.0))
    kind = given.get("rope_type") or given.get("type")
    keys = {
        key: value for key, value in given.items() if key not in ("type", "rope_type", "rope_theta")
    }
    sizes = {key: value for key, value in config.items() if not key.startswith("rope")}
    new = sizes | {"rope_parameters": {**keys, "rope_type": kind, "rope_theta": theta}}
    old = sizes | {"rope_scaling": {**keys, "type": kind}, "rope_theta": theta}
    nested = sizes | {
        "rope_parameters": {
            "full_attention": new["rope_parameters"],
            "sliding_attention": {**keys, "rope_type": kind},
        }
    }
    spellings = [
        new,
        old,
        nested | {"rope_theta": theta},
        nested | {"rope_theta": theta, "layer_types": ["full_attention"] * 2},
    ]
    expected = rotation(rope_parameters(config, defaults, ROPE)[""], 8, ROPE)
    for spelling in spellings:
        for parameters in rope_parameters(spelling, defaults, ROPE).values():
            assert nearly_equal(rotation(parameters, 8, ROPE), expected)


def differences(mine, theirs, layers=3):
    used = []
    for config in (mine, theirs):
        table = TABLES.get(config.get("model_type"), TABLES["llama"])
        used.append(
            Used(
                constants=table.constants.of(config),
                config=config,
                layers=layers,
            )
        )
    return differing_constants(*used)


def test_ropes_of_each_layer_type_are_compared_one_by_one():
    full, sliding = (
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
    )
    config = {
        **CONFIGS["qwen3"],
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }
    assert differences(config, copy.deepcopy(config)) == {}
    other = {
        **config,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e5},
            "sliding_attention": {**sliding, "factor": 4.0},
        },
    }
    assert differences(config, other) == {
        "rope_scaling.full_attention.rope_theta": (1e6, 1e5),
        "rope_scaling.sliding_attention.factor": (8.0, 4.0),
    }
    flat = {**CONFIGS["qwen3"], "rope_theta": 1e6}
    assert set(differences(config, flat)) == {
        "rope_scaling.sliding_attention.rope_type",
        "rope_scaling.sliding_attention.rope_theta",
        "rope_scaling.sliding_attention.factor",
    }
    same = {
        **flat,
        "rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default"}},
    }
    assert differences(same, flat) == {}


def test_model_types_of_one_table_are_compared_as_each_computes():
    mistral, llama = ({**SIZES, "model_type": name} for name in ("mistral", "llama"))
    assert differences({**mistral, "sliding_window": None, "attention_bias": True}, llama) == {}
    assert differences(mistral, llama) == {"sliding_window": (4096, None)}
    assert differences({**mistral, "sliding_window": None}, {**llama, "mlp_bias": True}) == {
        "mlp_bias": (False, True)
    }


def test_a_config_without_model_type_is_of_its_architecture_or_of_the_first_type():
    untyped = {**SIZES, "rms_norm_eps": 1e-6}
    as_mistral = {**untyped, "architectures": ["MistralForCausalLM"]}
    assert differences({**untyped, "model_type": "mistral"}, as_mistral) == {}
    assert differences({**untyped, "model_type": "llama"}, untyped) == {}
    assert set(differences(untyped, as_mistral)) == {"sliding_window"}


def test_null_is_false_and_a_window_that_is_off_has_no_length():
    config = CONFIGS["deepseek"]
    assert (
        differences({**config, "norm_topk_prob": None}, {**config, "norm_topk_prob": False}) == {}
    )
    off = {
        **CONFIGS["qwen2"],
        "use_sliding_window": False,
        "layer_types": ["sliding_attention"] * 3,
    }
    assert differences(off, {**off, "sliding_window": 4}) == {}


def test_a_rope_type_that_is_not_known_is_compared_key_by_key():
    config = {**CONFIGS["llama"], "rope_scaling": {"rope_type": "spiral", "turns": 3}}
    assert differences(config, copy.deepcopy(config)) == {}
    other = {**config, "rope_scaling": {"rope_type": "spiral", "turns": 4}}
    assert differences(config, other) == {"rope_scaling.turns": (3, 4)}
    assert "rope_scaling.rope_type" in differences(config, CONFIGS["llama"])


def test_a_longest_text_that_is_null_is_the_default_on_either_side():
    one = {**CONFIGS["llama"], "rope_scaling": {"beta_fast": {}}}
    other = {**CONFIGS["llama"], "max_position_embeddings": None}
    other["rope_scaling"] = {"attention_factor": {}}
    found = differences(one, other)["max_position_embeddings"]
    assert found == (one["max_position_embeddings"], 2048)
    assert differences(other, one)["max_position_embeddings"] == found[::-1]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = sorted(
    {key for config in CONFIGS.values() for key in config} | {"rope_parameters", "layer_types"}
)
ROPE_KEYS = sorted(
    {key for keys in ROPES.values() for key in keys} | {"rope_type", "type", "rope_theta"}
)
WILD = st.sampled_from(list(CONFIGS)).flatmap(
    lambda name: st.builds(
        lambda changes, rope: {
            **CONFIGS[name],
            **changes,
            "rope_scaling": {**(CONFIGS[name].get("rope_scaling") or {}), **rope},
        },
        st.dictionaries(
            st.sampled_from([key for key in KEYS if key != "model_type"]), JSON, max_size=3
        ),
        st.dictionaries(st.sampled_from(ROPE_KEYS), JSON, max_size=3),
    )
)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(WILD, WILD)
def test_whatever_stands_in_a_config_is_compared(mine, theirs):
    assert differences(mine, copy.deepcopy(mine)) == {}
    assert differences(mine, theirs) == {
        key: pair[::-1] for key, pair in differences(theirs, mine).items()
    }


TOY = """
name = "toy"
model_type = ["toy", "tiny"]
[axes]
l = "layers"
H = "hidden"
[tensors]
norm = "l H"
[layout.a]
family = "huggingface"
norm = "layers.{l}.norm : H"
[pipeline]
layers = "l"
[defaults.toy]
rope_theta = 1e4
max_position_embeddings = 64
[defaults.tiny]
rope_theta = 1e4
max_position_embeddings = 64
[rope]
dim = "hidden / heads"
[window]
tiny = { size = "window" }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[defaults.tiny]",
            "[defaults.other]",
            r"\[defaults\]: 'other' isn't in model_type, which has toy, tiny",
        ),
        ("tiny = {", "other = {", r"\[window\]: 'other' isn't in model_type"),
        (
            "[defaults.tiny]\nrope_theta = 1e4\nmax_position_embeddings = 64",
            "",
            r"\[defaults.tiny\]: is missing",
        ),
        (
            "max_position_embeddings = 64\n[rope]",
            "[rope]",
            r"\[defaults.tiny\]: has no "
            r"max_position_embeddings, which "
            r"\[rope\] needs",
        ),
        (
            'dim = "hidden / heads"',
            'dim = "hidden /"',
            r"\[rope\] dim: 'hidden /' isn't keys and "
            r"numbers",
        ),
        ('dim = "hidden / heads"', 'dim = "hidden / heads"\nbase = 3', "base"),
        ('size = "window"', 'length = "window"', r"length"),
        ('[pipeline]\nlayers = "l"', "", r"\[window\]: needs \[pipeline\]"),
    ],
)
def test_bad_defaults_are_refused_with_row_and_reason(old, new, message):
    constants = parse_table(TOY.encode(), "toy.toml").constants
    assert old in TOY and constants.by_model_type["tiny"].window.size == "window"
    with pytest.raises(TableError, match=message):
        parse_table(TOY.replace(old, new, 1).encode(), "toy.toml")


def test_heads_of_a_config_without_head_dim_are_those_of_the_class(tmp_path):
    """128 for Qwen3, whatever the hidden size is."""
    pytest.importorskip("transformers")
    said = {**SIZES, "model_type": "qwen3", "head_dim": 128}
    unsaid = {key: value for key, value in said.items() if key != "head_dim"}
    assert transformers_config(**unsaid).head_dim == 128
    write_model(tmp_path / "said", TABLES["qwen3"], said)
    beside(tmp_path / "said", tmp_path / "unsaid", unsaid)
    for one, other in (("said", "unsaid"), ("unsaid", "said")):
        found = ckptforge.compare(tmp_path / one, tmp_path / other)
        assert found.equal and found.through == "qwen3"
