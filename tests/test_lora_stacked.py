"""Adapters of parameters that stack experts, as peft's `target_parameters` makes them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import ckptforge
from ckptforge.adapters.factors import Scales
from ckptforge.adapters.stacked import unstacked
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import ConfigError, FormatError, LayoutError
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import adapted_by_peft, raw_safetensors, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
RANK, ALPHA = 3, 6
BASE = "base_model.model.model.layers.{}.mlp.experts"


def stacked_adapter(path, config, layers, seed=0, **said):
    """Both parameters of some layers adapted, by integers, so that every sum is exact."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    ranks = RANK * (config.get("num_experts") or config["n_routed_experts"])
    sides = {"": (hidden, inner), ".base_layer": (2 * inner, hidden)}  # down_proj is the outer one
    made = {}
    for layer in layers:
        for nested, (rows, columns) in sides.items():
            for name, shape in (("A", (ranks, columns)), ("B", (rows, ranks))):
                numbers = rng.integers(-2, 3, shape).astype(np.float32)
                made[f"{BASE.format(layer)}{nested}.lora_{name}.weight"] = numbers
    path.mkdir()
    write_safetensors(
        path / "adapter_model.safetensors",
        {name: ("F32", [*x.shape], x.tobytes()) for name, x in made.items()},
    )
    targets = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_parameters": targets}
    (path / "adapter_config.json").write_text(json.dumps({**content, **said}))
    return made


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "glm4_moe", "qwen3_next"])
def test_each_expert_gets_the_product_of_its_own_rows_and_columns(tmp_path, name):
    """peft 0.21, `get_delta_weight`: einsum("o r e, e r i -> e o i")."""
    table = TABLES[name]
    config = {**table.example, "torch_dtype": "float32", "num_nextn_predict_layers": 0}
    write_model(tmp_path / "hub", table, config, dtype="float32")
    experts = config.get("num_experts") or config["n_routed_experts"]
    layer = config["num_hidden_layers"] - 1
    made = stacked_adapter(tmp_path / "lora", config, [layer])
    ckptforge.convert(tmp_path / "hub", tmp_path / "out", to="hub", merge_lora=tmp_path / "lora")
    before, after = (
        {n: x.view(np.float32) for n, x in raw_safetensors(tmp_path / side).items()}
        for side in ("hub", "out")
    )
    deltas = {}
    for nested in ("", ".base_layer"):
        a, b = (made[f"{BASE.format(layer)}{nested}.lora_{x}.weight"] for x in "AB")
        a, b = a.reshape(experts, RANK, -1), b.reshape(len(b), RANK, experts)
        deltas[nested] = np.einsum("ore,eri->eoi", b, a) * (ALPHA / RANK)
    inner = config["moe_intermediate_size"]
    changed = set()
    for expert in range(experts):
        gate_up = deltas[".base_layer"][expert]
        parts = {"gate": gate_up[:inner], "up": gate_up[inner:], "down": deltas[""][expert]}
        for kind, delta in parts.items():
            full = f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"
            assert (after[full] == before[full] + delta).all(), full
            changed.add(full)
    for full, numbers in before.items():
        assert full in changed or (after[full] == numbers).all()


def test_merged_into_a_mindspore_layout_it_is_what_merging_first_makes(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    stacked_adapter(tmp_path / "lora", table.example, [0, 1])
    lora = tmp_path / "lora"
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "one.safetensors", merge_lora=lora, dtype="fp32")
    ckptforge.convert(tmp_path / "hub", tmp_path / "m", to="hub", merge_lora=lora, dtype="fp32")
    ckptforge.to_ms(tmp_path / "m", tmp_path / "two.safetensors")
    one, two = (raw_safetensors(tmp_path / f"{x}.safetensors") for x in ("one", "two"))
    assert one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"r": 4}, "has rank 3, but .* says 4"),
        ({"rank_pattern": {"experts": 2}}, "rank_pattern beside target_parameters"),
        ({"alpha_pattern": {"experts": 2}}, "alpha_pattern beside target_parameters"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(tmp_path, said, message):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    stacked_adapter(tmp_path / "lora", table.example, [0], **said)
    with pytest.raises(FormatError, match=message):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", merge_lora=tmp_path / "lora")


def test_factors_of_another_model_and_a_conversion_are_refused(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, {**table.example, "moe_intermediate_size": 24})
    stacked_adapter(tmp_path / "lora", table.example, [0])
    with pytest.raises(FormatError, match="aren't factors of one stacked parameter"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", merge_lora=tmp_path / "lora")
    write_model(tmp_path / "own", table, table.example)
    with pytest.raises(LayoutError, match=r"(?s)in layout mcore .* can't have .*Merge it"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "x.ckpt", config=tmp_path / "own")
    with pytest.raises(ConfigError, match="how long H is nobody says: give the model's config"):
        ckptforge.convert(tmp_path / "lora", tmp_path / "x", to="hub")


def write_factors(path, shapes):
    """Factors of zeros, as values."""
    path.mkdir()
    stored = {n: ("F32", [*shape], bytes(4 * math.prod(shape))) for n, shape in shapes.items()}
    write_safetensors(path / "model.safetensors", stored)
    return open_checkpoint(path / "model.safetensors").values


def stacked_modules(table):
    """The modules in which layouts of Hugging Face stack experts, in a layer that has some; those
    of MTP layers have no adapters."""
    for layout in map(table.layout, table.names_of("huggingface")):
        for template in (pattern.template for pattern in layout.patterns):
            predicting = template.startswith("mtp.") or "{t+l}" in template
            if template.endswith("mlp.experts.down_proj") and not predicting:
                module = template.removesuffix(".down_proj")
                yield re.sub(r"{\w}", "1", re.sub(r"{\w+\+\w+}", "3", module))


def test_adapters_that_are_not_read_are_those_that_the_page_names(tmp_path):
    """Their experts have no matrices of their own; no such adapter is called wrong."""
    found = {True: set(), False: set()}
    for name, table in TABLES.items():
        lengths = Lengths(dict.fromkeys(table.axes, 2))
        for module in set(stacked_modules(table)):
            lora = f"base_model.model.{module}.lora_{{}}.weight"
            shapes = {lora.format("A"): (6, 5), lora.format("B"): (7, 6)}
            values = write_factors(tmp_path / f"{name}-{module}", shapes)
            with pytest.raises(FormatError) as caught:
                unstacked(tmp_path, values, table, lengths, Scales(None, 1.0))
            said = str(caught.value)
            own = "no matrix that may have an adapter of its own" in said
            assert ("aren't factors of one stacked parameter" in said) != own
            found[own].add(name)
    assert found[True] == {"gpt_oss", "deepseek_v4", "qwen3_vl_moe"}
    assert {"qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe"} <= found[False]
    page = (Path(__file__).parents[1] / "docs" / "lora.md").read_text()
    assert "gpt-oss, Qwen3-VL-MoE and DeepSeek-V4 have no such layout" in page


def test_a_base_that_stacks_experts_otherwise_is_to_be_converted_first(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    stacked_adapter(tmp_path / "lora", table.example, [0])
    base = tmp_path / "x.ckpt"
    ckptforge.to_ms(tmp_path / "hub", base, layout="mcore")
    with pytest.raises(LayoutError) as caught:
        ckptforge.convert(base, tmp_path / "out", to="hub", merge_lora=tmp_path / "lora")
    said = str(caught.value)
    assert f"convert('{base}', 'DIR', to='hub')`, and merge into DIR" in said
    lines = [line for line in said.splitlines() if ".lora_A" in line]
    assert len(lines) == len(set(lines)) == 3, said  # w1, w2 and w3, of however many experts


def test_converted_each_expert_has_an_adapter_of_its_own(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    made = stacked_adapter(tmp_path / "lora", table.example, [1])
    ckptforge.convert(tmp_path / "lora", tmp_path / "each", to="hub", config=tmp_path / "hub")
    said = json.loads((tmp_path / "each" / "adapter_config.json").read_text())
    assert "target_parameters" not in said and (said["r"], said["lora_alpha"]) == (RANK, ALPHA)
    assert said["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    held = raw_safetensors(tmp_path / "each" / "adapter_model.safetensors")
    inner, experts = table.example["moe_intermediate_size"], table.example["num_experts"]
    a, b = (made[f"{BASE.format(1)}.base_layer.lora_{x}.weight"] for x in "AB")
    for expert in range(experts):
        own = f"{BASE.format(1)}.{expert}.{{}}_proj.lora_{{}}.weight"
        for kind, rows in (("gate", b[:inner]), ("up", b[inner:])):
            first, second = (held[own.format(kind, x)].view(np.float32) for x in "AB")
            assert (first == a[expert * RANK : (expert + 1) * RANK]).all()
            assert (second == rows[:, expert::experts]).all()
    for adapter in ("lora", "each"):
        ckptforge.convert(
            tmp_path / "hub", tmp_path / f"by-{adapter}", to="hub", merge_lora=tmp_path / adapter
        )
    one, two = (raw_safetensors(tmp_path / f"by-{x}") for x in ("lora", "each"))
    assert one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)


def test_against_peft_itself(tmp_path):
    torch = pytest.importorskip("torch")
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    adapted_by_peft(torch, tmp_path, "Qwen3MoeForCausalLM", TABLES["qwen3_moe"].example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "out", to="hub", merge_lora=tmp_path / "lora")
    own, theirs, base = (
        {n: x.view(np.float32) for n, x in raw_safetensors(tmp_path / side).items()}
        for side in ("out", "peft", "hub")
    )
    assert own.keys() == theirs.keys()
    assert max(float(abs(own[n] - theirs[n]).max()) for n in own) < 1e-5
    assert any((own[n] != base[n]).any() for n in own if ".experts.3.up_proj" in n)
    ckptforge.convert(tmp_path / "lora", tmp_path / "each", to="hub", config=tmp_path / "hub")
    tokens = torch.arange(12)[None]
    logits = []
    for adapter in ("lora", "each"):
        plain = transformers.Qwen3MoeForCausalLM.from_pretrained(
            tmp_path / "hub", dtype=torch.float32
        )
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / adapter).eval()
        with torch.no_grad():
            logits.append(loaded(tokens).logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_nothing_that_was_converted_is_said_to_be_left_out(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    stacked_adapter(tmp_path / "lora", table.example, [0, 1])
    keys = {"to": "hub", "config": tmp_path / "hub"}
    result = ckptforge.convert(tmp_path / "lora", tmp_path / "each", **keys)
    assert not result.left_out


@pytest.mark.parametrize("along", [(), ("q_proj", "k_proj")])
def test_which_model_stacked_experts_are_of_config_json_tells(tmp_path, along):
    """Names of experts are those of several models, and no other is guessed."""
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    stacked_adapter(tmp_path / "lora", table.example, [0])
    path = tmp_path / "lora" / "adapter_model.safetensors"
    held = {n: ("F32", [*x.shape], x.tobytes()) for n, x in raw_safetensors(path).items()}
    hidden, heads = table.example["hidden_size"], table.example["num_attention_heads"]
    rows = {"q_proj": heads, "k_proj": table.example["num_key_value_heads"]}
    for module in along:
        lora = f"base_model.model.model.layers.0.self_attn.{module}.lora_{{}}.weight"
        out = rows[module] * table.example.get("head_dim", hidden // heads)
        held[lora.format("A")] = ("F32", [RANK, hidden], bytes(4 * RANK * hidden))
        held[lora.format("B")] = ("F32", [out, RANK], bytes(4 * RANK * out))
    write_safetensors(path, held)
    lacking = (
        r"is of stacked experts, and how long \w+ is nobody says: give the model's config.json"
    )
    with pytest.raises(ConfigError, match=lacking):
        ckptforge.convert(tmp_path / "lora", tmp_path / "each", to="hub")
    found = ckptforge.inspect(tmp_path / "lora")
    assert found.model is None and re.search(lacking, found.layout_reason)
    known = ckptforge.inspect(tmp_path / "lora", config=tmp_path / "hub")
    assert (known.model, known.layout) == ("qwen3_moe", "hub")
    weights = 3 * table.example["num_experts"] + len(along)
    assert known.notes == [f"a LoRA adapter of {weights} weights, rank {RANK}, scale 2."]
