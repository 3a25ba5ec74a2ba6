"""What is edited loads in transformers, and computes what it should."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import ckptforge
from ckptforge.verbs.synthetic import write_model
from tests.test_edit import CONFIGS, TABLES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOKENS = torch.tensor([[1, 5, 9, 200, 31, 7, 64, 2]])
MOE = ("mixtral", "qwen3_moe", "deepseek_v3")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, table in TABLES.items():
        write_model(root / name, table, CONFIGS[name], dtype="float32", seed=7)
    return root


def loaded(directory):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def assert_near(found, expected, tolerance=1e-6):
    gap = (found - expected).abs().max() / expected.abs().max()
    assert gap <= tolerance, float(gap)


@contextmanager
def without_experts(model, removed):
    """The routers never choose some experts."""
    gates = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.endswith(".gate.weight")
    }
    assert gates
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer[removed] = -torch.inf
    linear = torch.nn.functional.linear

    def masked(hidden, weight, bias=None):
        found = linear(hidden, weight, bias)
        if id(weight) in gates:
            found = found.clone()
            found[..., removed] = -torch.inf
        return found

    torch.nn.functional.linear = masked
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


@pytest.mark.parametrize("name", MOE)
def test_taking_experts_is_masking_the_others_out_of_the_router(models, tmp_path, name):
    kept = [0, 3, 4, 7]
    ckptforge.edit(models / name, tmp_path / "out", take=["e=0,3,4,7"])
    found = logits(loaded(tmp_path / "out"))
    whole = loaded(models / name)
    before = logits(whole)
    with without_experts(whole, [e for e in range(8) if e not in kept]):
        expected = logits(whole)
    assert (before - expected).abs().max() > 1e-4  # they did something
    assert_near(found, expected)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("mixtral", [1, 0, 1]), ("qwen3_moe", [1]), ("deepseek_v3", [0, 2, 1, 2]), ("llama", [1, 0])],
)
def test_taking_layers_is_computing_with_those(models, tmp_path, name, layers):
    check_layers(models / name, tmp_path / "out", layers)


@pytest.mark.parametrize("layers", [[0, 1], [3, 1], [2, 3, 3, 0]])
def test_layers_without_experts_stay_so_where_they_are_taken(tmp_path, layers):
    sizes = {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
    config = {**CONFIGS["qwen3_moe"], **sizes}
    write_model(tmp_path / "hub", TABLES["qwen3_moe"], config, dtype="float32", seed=7)
    check_layers(tmp_path / "hub", tmp_path / "out", layers)


def check_layers(hub, out, layers):
    ckptforge.edit(hub, out, take=[f"l={','.join(map(str, layers))}"])
    found = logits(loaded(out))
    whole = loaded(hub)
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[layer] for layer in layers])
    whole.config.num_hidden_layers = len(layers)
    assert_near(found, logits(whole))


@pytest.mark.parametrize(
    ("dense", "to", "options"),
    [
        ("llama", "mixtral", {"experts": 4, "active": 2}),
        ("qwen3", "qwen3_moe", {"experts": 8, "active": 3}),
        ("qwen3", "qwen3_moe", {"experts": 4, "active": 4, "pieces": 4}),
    ],
)
def test_a_dense_model_with_repeated_experts_computes_the_same(
    models, tmp_path, dense, to, options
):
    ckptforge.open(models / dense).expand(to, **options).save(tmp_path / "out")
    made = loaded(tmp_path / "out")
    assert made.config.model_type == to
    assert_near(logits(made), logits(loaded(models / dense)))


def test_a_padded_vocabulary_and_a_tied_head_load(models, tmp_path):
    ckptforge.edit(models / "qwen3", tmp_path / "out", pad=["V=multiple:1000"], fill="mean")
    found, expected = logits(loaded(tmp_path / "out")), logits(loaded(models / "qwen3"))
    assert found.shape[-1] == 1000
    assert_near(found[..., : expected.shape[-1]], expected)


def test_taking_heads_is_computing_without_the_others(models, tmp_path):
    ckptforge.edit(models / "deepseek_v3", tmp_path / "out", take=["h=2,0"])
    whole = loaded(models / "deepseek_v3")
    with torch.no_grad():
        for layer in whole.model.layers:
            heads = layer.self_attn.o_proj.weight.unflatten(
                1, (whole.config.num_attention_heads, -1)
            )
            heads[:, [1, 3]] = 0
    assert_near(logits(loaded(tmp_path / "out")), logits(whole))


def test_fewer_heads_and_a_narrower_network_load(models, tmp_path):
    ckptforge.edit(models / "mixtral", tmp_path / "out", take=["g=1", "I=0-63", "V=0-249"])
    assert torch.isfinite(logits(loaded(tmp_path / "out"))).all()


def test_an_average_loads_and_lies_between(models, tmp_path):
    ckptforge.average(tmp_path / "out", [models / "llama", models / "llama"])
    assert_near(logits(loaded(tmp_path / "out")), logits(loaded(models / "llama")))
