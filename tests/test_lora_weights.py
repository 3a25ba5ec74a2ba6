"""Adapters of heads and embeddings, weights that an adapter holds whole, and the names that
circulate."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import ckptforge
from ckptforge.cli.findings import inspection_text
from ckptforge.errors import FormatError, LayoutError, PlanError, UnmappedTensorsError
from ckptforge.verbs.synthetic import write_model
from tests.helpers import raw_safetensors, transformers_config, write_safetensors
from tests.test_lora import (
    BF16,
    PREFIX,
    TABLES,
    assert_same,
    weights_of,
    with_products,
    write_adapter,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WEIGHTS = "adapter_model.safetensors"
LAYOUTS = [
    ("llama", "dense"),
    ("llama", "mcore"),
    ("mixtral", "gmm-v3"),
    ("qwen3_moe", "mcore"),
    ("deepseek_v3", "mcore"),
    ("deepseek_v3", "legacy"),
]
KINDS = {8: "F64", 4: "F32", 2: "BF16"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name → a tiny model's directory, whose embedding and head are two tensors."""
    root = tmp_path_factory.mktemp("models")
    for name, table in TABLES.items():
        write_model(root / name, table, {**table.example, "tie_word_embeddings": False})
    return {name: root / name for name in TABLES}


def renamed(path, out, change, **config):
    """An adapter with other names of tensors, or more of them."""
    shutil.copytree(path, out)
    found = {
        name: (KINDS[n.itemsize], list(n.shape), n.tobytes())
        for name, n in raw_safetensors(path / WEIGHTS).items()
    }
    write_safetensors(out / WEIGHTS, change(found))
    said = json.loads((path / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**said, **config}))


def shapes_of(hub, *names):
    return {name: hub[name].shape for name in names}


def stored(array):
    return "F32", list(array.shape), array.astype(np.float32).tobytes()


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_heads_and_embeddings_take_up_adapters_on_either_side(tmp_path, models, name, layout):
    hub = raw_safetensors(models[name])
    shapes = {**weights_of(name, hub, ["o_proj.weight"]), **shapes_of(hub, HEAD, EMBEDDING)}
    expected = with_products(hub, write_adapter(tmp_path / "lora", shapes))
    ckptforge.to_ms(models[name], tmp_path / "x.ckpt", layout=layout, merge_lora=tmp_path / "lora")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "x", layout=layout)
    assert_same(tmp_path / "x", expected)
    ckptforge.to_ms(models[name], tmp_path / "y.ckpt", layout=layout)
    ckptforge.to_torch(
        tmp_path / "y.ckpt", tmp_path / "y", layout=layout, merge_lora=tmp_path / "lora"
    )
    assert_same(tmp_path / "y", expected)


def test_an_embedding_larger_than_a_tile(tmp_path):
    config = {**TABLES["llama"].example, "vocab_size": 1700, "num_hidden_layers": 1}
    write_model(tmp_path / "hub", TABLES["llama"], config)
    hub = raw_safetensors(tmp_path / "hub")
    expected = with_products(
        hub, write_adapter(tmp_path / "lora", shapes_of(hub, HEAD, EMBEDDING), rank=5, alpha=20)
    )
    ckptforge.convert(
        tmp_path / "hub",
        tmp_path / "x",
        to="hub",
        merge_lora=tmp_path / "lora",
        memory="1MiB",
        workers=3,
    )
    assert_same(tmp_path / "x", expected)


@pytest.mark.parametrize(
    ("layout", "names"),
    [("dense", "lm_head.mindpet_delta_lora_{}"), ("mcore", "output_layer.lora_{}.weight")],
)
def test_an_adapter_of_a_head_has_mindformers_names_and_comes_back(tmp_path, models, layout, names):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", shapes_of(hub, HEAD))
    ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "l.safetensors", layout=layout, config=models["llama"]
    )
    found = raw_safetensors(tmp_path / "l.safetensors")
    assert set(found) == {
        names.format(*("ab"[i] if layout == "dense" else "AB"[i])) for i in (0, 1)
    }
    ckptforge.to_torch(tmp_path / "l.safetensors", tmp_path / "back", config=models["llama"])
    assert_same(tmp_path / "back", raw_safetensors(tmp_path / "lora"))
    said = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["target_modules"]) == (4, 8, ["lm_head"])
    assert ckptforge.inspect(tmp_path / "l.safetensors").layout == layout


def test_an_adapter_of_an_embedding_has_no_names_in_mindformers(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", shapes_of(hub, HEAD, EMBEDDING))
    for layout in ("dense", "mcore"):
        with pytest.raises(
            LayoutError, match="can't have an adapter:\n  .*lora_embedding_[AB]\nMerge it"
        ):
            ckptforge.to_ms(
                tmp_path / "lora", tmp_path / "l.ckpt", layout=layout, config=models["llama"]
            )
    ckptforge.convert(tmp_path / "lora", tmp_path / "x", to="hub", model="llama")
    assert_same(tmp_path / "x", raw_safetensors(tmp_path / "lora"))
    assert "a LoRA adapter of 2 weights, rank 4, scale 2." in inspection_text(
        ckptforge.inspect(tmp_path / "lora"), False
    )


def test_factors_of_an_embedding_that_do_not_fit(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "tall", {EMBEDDING: (264, 64)})
    with pytest.raises(LayoutError, match="is it an adapter of this model"):
        ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "tall")
    write_adapter(tmp_path / "lora", shapes_of(hub, EMBEDDING))

    def turned(tensors):
        return {
            n: (kind, shape[::-1], data) if n.endswith("_A") else (kind, shape, data)
            for n, (kind, shape, data) in tensors.items()
        }

    renamed(tmp_path / "lora", tmp_path / "turned", turned)
    with pytest.raises(FormatError, match=r"expected \(r, vocabulary\) and \(hidden, r\)"):
        ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "turned")


def tied(tmp_path, with_head):
    write_model(
        tmp_path / "hub",
        TABLES["llama"],
        {**TABLES["llama"].example, "tie_word_embeddings": not with_head},
    )
    path = tmp_path / "hub" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    return tmp_path / "hub"


@pytest.mark.parametrize("with_head", [False, True])
def test_a_model_whose_head_is_its_embedding_takes_no_adapter_of_one(tmp_path, with_head):
    hub = tied(tmp_path, with_head)
    weights = raw_safetensors(hub)
    for i, name in enumerate((HEAD, EMBEDDING)):
        write_adapter(
            tmp_path / f"lora{i}",
            {name: (256, 64), **weights_of("llama", weights, ["q_proj.weight"])},
        )
        with pytest.raises(LayoutError, match="both are one tensor.*tie_word_embeddings"):
            ckptforge.to_ms(
                hub, tmp_path / "x.ckpt", layout="dense", merge_lora=tmp_path / f"lora{i}"
            )
    products = write_adapter(tmp_path / "lora", weights_of("llama", weights, ["q_proj.weight"]))
    numbers = stored(np.ones((256, 64)))
    renamed(
        tmp_path / "lora",
        tmp_path / "whole",
        lambda t: {**t, f"{PREFIX}{EMBEDDING}": numbers},
        modules_to_save=["embed_tokens"],
    )
    with pytest.raises(LayoutError, match="both are one tensor.*tie_word_embeddings"):
        ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout="dense", merge_lora=tmp_path / "whole")
    ckptforge.convert(hub, tmp_path / "x", to="hub", merge_lora=tmp_path / "lora")
    assert_same(tmp_path / "x", with_products(weights, products))


def test_weights_that_are_whole_take_the_place_of_the_models(tmp_path, models):
    """modules_to_save, with a norm and a bias, in a MindSpore checkpoint too."""
    hub = raw_safetensors(models["qwen2"])
    products = write_adapter(
        tmp_path / "lora", weights_of("qwen2", hub, ["q_proj.weight", "down_proj.weight"])
    )
    norm, bias = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias"
    trained = {
        name: np.full(hub[name].shape, i / 2, np.float32)
        for i, name in enumerate((HEAD, norm, bias))
    }
    more = {
        PREFIX + name.replace(".bias", ".base_layer.bias"): stored(numbers)
        for name, numbers in trained.items()
    }
    renamed(
        tmp_path / "lora",
        tmp_path / "more",
        lambda t: {**t, **more},
        modules_to_save=["lm_head", "input_layernorm"],
        bias="lora_only",
    )
    expected = with_products(hub, products)
    expected |= {name: numbers.astype(BF16).view("u2") for name, numbers in trained.items()}
    ckptforge.to_ms(models["qwen2"], tmp_path / "b.ckpt", layout="dense")
    for source, out in ((models["qwen2"], "x"), (tmp_path / "b.ckpt", "y")):
        result = ckptforge.convert(
            source, tmp_path / out, to="hub", merge_lora=tmp_path / "more", dtype="bf16"
        )
        assert_same(tmp_path / out, expected)
        assert any(
            "3 weights whole, as training left them: lm_head.weight" in note
            for note in result.notes
        )
    ckptforge.convert(models["qwen2"], tmp_path / "z", to="hub", merge_lora=tmp_path / "more")
    assert np.array_equal(raw_safetensors(tmp_path / "z")[HEAD].view(np.float32), trained[HEAD])
    assert "it holds 3 weights whole" in inspection_text(
        ckptforge.inspect(tmp_path / "more"), False
    )
    ckptforge.to_ms(models["qwen2"], tmp_path / "f.ckpt", layout="mcore")
    with pytest.raises(LayoutError, match="has no tensor of its own with the same order"):
        ckptforge.to_torch(tmp_path / "f.ckpt", tmp_path / "w", merge_lora=tmp_path / "more")
    with pytest.raises(PlanError, match="weights that were trained whole"):
        ckptforge.to_ms(tmp_path / "more", tmp_path / "l.ckpt", layout="dense", model="qwen2")


def test_whole_weights_that_do_not_fit_or_are_not_known(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", weights_of("llama", hub, ["q_proj.weight"]))

    def refused(error, message, name, array, **config):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        renamed(
            tmp_path / "lora",
            tmp_path / "bad",
            lambda t: {**t, PREFIX + name: stored(array)},
            **config,
        )
        with pytest.raises(error, match=message):
            ckptforge.convert(
                models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "bad"
            )

    refused(LayoutError, "resize_token_embeddings", EMBEDDING, np.ones((264, 64)))
    refused(
        UnmappedTensorsError,
        "score.weight",
        "score.weight",
        np.ones((2, 64)),
        modules_to_save=["score"],
    )
    refused(
        FormatError,
        "names 'score' in modules_to_save",
        HEAD,
        np.ones((256, 64)),
        modules_to_save=["lm_head", "score"],
    )


def test_weights_of_the_base_beside_the_factors_are_no_part_of_an_adapter(tmp_path, models):
    """peft stores them along where a head or an embedding has an adapter."""
    hub = raw_safetensors(models["llama"])
    products = write_adapter(tmp_path / "lora", shapes_of(hub, HEAD))
    name = f"{PREFIX}lm_head.base_layer.weight"
    along = ("BF16", list(hub[HEAD].shape), hub[HEAD].tobytes())
    renamed(tmp_path / "lora", tmp_path / "along", lambda t: {**t, name: along})
    ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "along")
    assert_same(tmp_path / "x", with_products(hub, products))
    result = ckptforge.to_ms(tmp_path / "along", tmp_path / "l.ckpt", layout="dense", model="llama")
    assert result.left_out == {"weights of the base model": [name]}


@pytest.mark.parametrize("form", ["named", "bare", "compiled", "saved"])
def test_names_that_circulate_are_read(tmp_path, models, form):
    hub = raw_safetensors(models["llama"])
    shapes = {**weights_of("llama", hub, ["q_proj.weight"]), **shapes_of(hub, EMBEDDING)}
    expected = with_products(hub, write_adapter(tmp_path / "lora", shapes))

    def change(name):
        if form == "bare":
            return name.removeprefix(PREFIX)
        if form == "compiled":
            return f"module._orig_mod.{name}".replace("self_attn", "_fsdp_wrapped_module.self_attn")
        return re.sub(
            r"(lora_[AB])", r"\1.mine", re.sub(r"(lora_embedding_[AB])", r"\1.mine", name)
        )

    def all_changed(tensors):
        found = {change(name): tensor for name, tensor in tensors.items()}
        return (
            {**found, f"{PREFIX}model.norm.modules_to_save.mine.weight": stored(np.ones(64))}
            if form == "saved"
            else found
        )

    renamed(tmp_path / "lora", tmp_path / "other", all_changed)
    result = ckptforge.convert(
        models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "other", dtype="bf16"
    )
    if form == "saved":
        expected["model.norm.weight"] = np.ones(64, BF16).view("u2")
    assert_same(tmp_path / "x", expected)
    assert any("names of tensors aren't as PEFT saves them" in note for note in result.notes)


def test_a_file_of_two_adapters_is_refused(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", weights_of("llama", hub, ["q_proj.weight"]))

    def both(tensors):
        return {
            name.replace(".weight", f".{which}.weight"): t
            for name, t in tensors.items()
            for which in ("one", "two")
        }

    renamed(tmp_path / "lora", tmp_path / "two", both)
    with pytest.raises(FormatError, match="several adapters, 'one' and 'two'"):
        ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "two")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": "all-linear", "layers_to_transform": None},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "v_proj"], "bias": "all"},
        {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only", "layers_to_transform": [1]},
    ],
)
def test_what_peft_merges(tmp_path, options):
    torch, peft, transformers = (
        pytest.importorskip(name) for name in ("torch", "peft", "transformers")
    )
    config = dict(
        TABLES["qwen2"].example, torch_dtype="float32", dtype="float32", tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers_config(**config))
    model.save_pretrained(tmp_path / "hub")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **options)
    )
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    wrapped.save_pretrained(tmp_path / "lora")
    ckptforge.convert(tmp_path / "hub", tmp_path / "m", to="hub", merge_lora=tmp_path / "lora")
    merged = {
        name: torch.from_numpy(bits.view(np.float32).copy())
        for name, bits in raw_safetensors(tmp_path / "m").items()
    }
    theirs = dict(wrapped.merge_and_unload().named_parameters())
    assert set(merged) == set(theirs)
    for name, other in theirs.items():
        assert torch.allclose(merged[name], other, rtol=1e-6, atol=1e-6), name
