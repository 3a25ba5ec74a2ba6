"""Files and config.json that contradict each other, or other models' parts: said, and never passed
over as the same model."""

import json

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import ModelUnknownError, UnmappedTensorsError, UsageError
from tests.helpers import contents, write_safetensors
from tests.test_models import TABLES, write_model

LLAMA = TABLES["llama"]
HEADS = [
    "lm_head.bias",
    "head.weight",
    "critic.weight",
    "regression_layer.weight",
    "embed_out.weight",
    "score.weight",
]


@pytest.fixture
def put(tmp_path):
    """Writes a model of Llama's names with other tensors and another config.json beside its own."""
    write_model(tmp_path / "base", LLAMA, LLAMA.example)
    stored = {
        name: ("BF16", list(shape), data)
        for name, (_, shape, data) in contents(tmp_path / "base").items()
    }

    def make(name, tensors=None, without=(), **changes):
        directory = tmp_path / name
        directory.mkdir()
        held = {
            key: value for key, value in (stored | (tensors or {})).items() if key not in without
        }
        write_safetensors(directory / "model.safetensors", held, {"format": "pt"})
        config = {
            key: value for key, value in {**LLAMA.example, **changes}.items() if value is not None
        }
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    make.stored = stored
    return make


def zeros(*shape: int):
    return ("BF16", list(shape), bytes(2 * int(np.prod(shape))))


def test_configs_of_unknown_models_are_not_passed_over(put):
    one = put("one", model_type="ministral")
    other = put("other", model_type="ministral", rope_theta=1e6, rms_norm_eps=1e-2)
    found = ckptforge.compare(one, other)
    assert any(
        "config.json differs in 'rms_norm_eps', 'rope_theta'" in note for note in found.notes
    )
    assert not any("config.json differs" in note for note in ckptforge.compare(one, one).notes)
    found = ckptforge.compare(put("llama"), put("qwen3", model_type="qwen3"))
    assert not found.equal and found.constants == {"model_type": ("llama", "qwen3")}


def test_windows_of_mistral_are_those_of_its_layer_types(put):
    changes = {"model_type": "mistral", "sliding_window": 8, "attention_bias": None}
    kinds = ["full_attention", "sliding_attention"]
    a, b = put("a", layer_types=kinds, **changes), put("b", layer_types=kinds[::-1], **changes)
    both, none = (
        put("both", layer_types=["sliding_attention"] * 2, **changes),
        put("none", **changes),
    )
    assert (
        "layer_types" in ckptforge.compare(a, b).constants
        and "layer_types" in ckptforge.compare(a, none).constants
    )
    assert ckptforge.compare(both, none).equal and ckptforge.compare(a, a).equal


def test_a_given_config_does_not_stand_for_one_that_is_known(put, tmp_path):
    ckptforge.to_ms(put("one"), tmp_path / "x.ckpt")
    other = put("other", rope_theta=2e4)
    for options in ({}, {"config": other}):
        assert ckptforge.compare(tmp_path / "x.ckpt", other, **options).constants == {
            "rope_theta": (LLAMA.example["rope_theta"], 2e4)
        }


def test_a_head_that_is_the_embedding_once_more_is_no_difference(put):
    embedding = put.stored["model.embed_tokens.weight"]
    without = put("without", without=["lm_head.weight"], tie_word_embeddings=True)
    same = put("same", {"lm_head.weight": embedding}, tie_word_embeddings=True)
    another = put("another", tie_word_embeddings=True)
    for a, b in ((without, same), (same, without)):
        found = ckptforge.compare(a, b)
        assert found.equal and any(
            "lm_head.weight, which config.json ties" in note for note in found.notes
        )
    assert not ckptforge.compare(without, another).equal


def test_parts_of_another_model_are_named_with_its_table(put, tmp_path):
    norms = {
        f"model.layers.{i}.self_attn.{x}_norm.weight": zeros(8) for i in range(2) for x in "qk"
    }
    with pytest.raises(UnmappedTensorsError, match="The mapping qwen3 knows all names") as caught:
        ckptforge.to_ms(put("norms", norms), tmp_path / "x.ckpt")
    assert "allow_unmapped" not in str(caught.value)
    with pytest.raises(UnmappedTensorsError, match=r"up_proj\.bias lies in a layer"):
        ckptforge.to_ms(
            put("bias", {"model.layers.0.mlp.up_proj.bias": zeros(128)}), tmp_path / "x.ckpt"
        )


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("tied", [False, True])
def test_no_head_is_left_out_unnamed(put, tmp_path, name, tied):
    without = ["lm_head.weight"] if tied else []
    hub = put("hub", {name: zeros(64)}, without, tie_word_embeddings=tied)
    for allowed in (False, True):
        with pytest.raises(UnmappedTensorsError, match=name):
            ckptforge.to_ms(hub, tmp_path / "x.ckpt", allow_unmapped=allowed)
    assert ckptforge.to_ms(hub, tmp_path / "x.ckpt", drop=[name]).left_out == {
        "not known to the mapping": [name]
    }


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "deepseek_v3", "mixtral"])
def test_a_model_type_of_another_model_is_named(put, tmp_path, model_type):
    with pytest.raises(
        ModelUnknownError,
        match=rf"has model_type '{model_type}', but the tensors "
        r"are those of llama",
    ):
        ckptforge.to_ms(put("hub", model_type=model_type), tmp_path / "x.ckpt")


def test_sizes_that_contradict_are_not_taken_for_another_model(tmp_path):
    table = TABLES["qwen2"]
    write_model(tmp_path / "hub", table, table.example)
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps({**table.example, "intermediate_size": 40})
    )
    with pytest.raises(ckptforge.LayoutError, match="intermediate_size"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


def test_biases_that_config_json_denies_are_said(put, tmp_path):
    sizes = {"q": 64, "k": 16, "v": 16, "o": 64}
    biases = {
        f"model.layers.{i}.self_attn.{x}_proj.bias": zeros(n)
        for i in range(2)
        for x, n in sizes.items()
    }
    result = ckptforge.to_ms(put("denied", biases, attention_bias=False), tmp_path / "x.ckpt")
    assert any("has attention_bias False, but 8 tensors" in note for note in result.notes)
    said = ckptforge.to_ms(put("said", biases, attention_bias=True), tmp_path / "y.ckpt")
    assert not any("attention_bias" in note for note in said.notes)


def test_factors_without_their_config_are_named(tmp_path):
    (tmp_path / "adapter").mkdir()
    factors = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": zeros(*s)
        for x, s in (("A", (2, 64)), ("B", (64, 2)))
    }
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", factors)
    with pytest.raises(UsageError, match=r"no adapter_config\.json"):
        ckptforge.to_ms(tmp_path / "adapter", tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("stored", "asked", "left"),
    [("BF16", "fp32", 0), ("BF16", "fp16", 1), ("F32", "bf16", 1), ("F16", "fp32", 0)],
)
def test_a_kept_dtype_is_widened_but_never_rounded(tmp_path, stored, asked, left):
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, table.example)
    tensors = {
        name: ("BF16", list(shape), data)
        for name, (_, shape, data) in contents(tmp_path / "hub").items()
    }
    for name, (_, shape, _data) in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = (
                stored,
                shape,
                np.zeros(shape, {"BF16": "u2", "F16": "f2", "F32": "f4"}[stored]).tobytes(),
            )
    write_safetensors(tmp_path / "hub" / "model.safetensors", tensors, {"format": "pt"})
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "x", to="hub", dtype=asked, allow_overflow=True
    )
    dtypes = {
        dtype
        for name, (dtype, _, _) in contents(tmp_path / "x").items()
        if name.endswith("e_score_correction_bias")
    }
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    assert dtypes == {names[stored] if left else "float32"}
    assert any("as the model's table says" in note for note in result.notes) == bool(left)


@pytest.mark.parametrize("layout", ["mcore", "legacy"])
def test_norms_of_which_one_switch_decides_are_all_there_or_none(tmp_path, layout):
    """MindFormers' qk_layernorm: the norms of queries and of keys, in every layer."""
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.safetensors", layout=layout)
    stored = {
        name: ({"bfloat16": "BF16", "float32": "F32"}[dtype], list(shape), data)
        for name, (dtype, shape, data) in contents(tmp_path / "x.safetensors").items()
    }

    def without(*words):
        kept = {n: t for n, t in stored.items() if not any(word in n for word in words)}
        assert len(kept) < len(stored)
        write_safetensors(tmp_path / "y.safetensors", kept, {"format": "ms"})
        return ckptforge.to_torch(
            tmp_path / "y.safetensors",
            tmp_path / "out",
            layout=layout,
            config=tmp_path / "hub",
            dry_run=True,
        )

    q, kv = ("q_layernorm", "kv_layernorm") if layout == "mcore" else ("lq_norm", "lkv_norm")
    of_a_layer = f"layers.0.self_attention.{q}", f"layers.0.attention.{q}"
    for lost in ((f".{q}",), (f".{kv}",), of_a_layer):
        with pytest.raises(ckptforge.MissingTensorsError, match="norm"):
            without(*lost)
    assert any("qk_layernorm: False" in note for note in without(f".{q}", f".{kv}").notes)


def test_an_empty_name_of_a_model_is_unknown_and_not_none(put, tmp_path):
    with pytest.raises(UsageError, match="model '' is unknown"):
        ckptforge.to_ms(put("hub"), tmp_path / "x.ckpt", model="")
