"""Adapters of stacked experts, merged into models that store them stacked."""

import json

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import FormatError, LayoutError
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import adapted_by_peft, contents, raw_safetensors, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
RANK, ALPHA = 3, 6
# module of the experts by layer, and whether what is stored has inputs before outputs
BASES = {
    ("gpt_oss", "hub"): ("model.layers.{}.mlp.experts", True),
    ("qwen3_vl_moe", "hub"): ("model.language_model.layers.{}.mlp.experts", True),
    ("qwen3_vl_moe", "fused"): ("model.language_model.layers.{}.mlp.experts", False),
    ("deepseek_v4", "fused"): ("model.layers.{}.mlp.experts", False),
    ("qwen3_moe", "fused"): ("model.layers.{}.mlp.experts", False),
    ("deepseek_v3", "fused"): ("model.layers.{}.mlp.experts", False),
}


def integers(rng, *shape):
    """So few and small that every sum is exact."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def write_adapter(path, module, sides, experts, **said):
    """Factors of both parameters, gate_up_proj inside down_proj, as peft wraps them. Returns what
    each adds, [experts, outputs, inputs]."""
    rng, made, added = np.random.default_rng(0), {}, {}
    for nested, leaf in (("", "down_proj"), (".base_layer", "gate_up_proj")):
        out, into = sides[leaf]
        a, b = integers(rng, experts * RANK, into), integers(rng, out, RANK * experts)
        for name, factor in (("A", a), ("B", b)):
            made[f"base_model.model.{module}{nested}.lora_{name}.weight"] = factor
        stacked = b.reshape(out, RANK, experts), a.reshape(experts, RANK, into)
        added[leaf] = np.einsum("ore,eri->eoi", *stacked) * (ALPHA / RANK)
    path.mkdir()
    write_safetensors(
        path / "adapter_model.safetensors",
        {name: ("F32", [*x.shape], x.tobytes()) for name, x in made.items()},
    )
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    targets = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({**content, **targets, **said}))
    return added


def floats(path):
    held = raw_safetensors(path)
    return {name: x.view(np.float32) for name, x in held.items() if x.dtype.itemsize == 4}


def write_base(path, name, layout):
    """A model of float32; the sides of each parameter, (outputs, inputs), and how many experts."""
    table = TABLES[name]
    config = {**table.example, "torch_dtype": "float32"}
    write_model(path, table, config, layout=layout, dtype="float32")
    module, inputs_first = BASES[name, layout]
    layer = max(i for i in range(9) if f"{module.format(i)}.down_proj" in floats(path))
    sides = {}
    for leaf in ("gate_up_proj", "down_proj"):
        stored = floats(path)[f"{module.format(layer)}.{leaf}"]
        experts, *shape = stored.shape
        sides[leaf] = tuple(shape[::-1] if inputs_first else shape)
    return module.format(layer), sides, experts


@pytest.mark.parametrize(("name", "layout"), sorted(BASES))
@pytest.mark.parametrize("room", [None, "1200KB"])
def test_each_expert_gets_the_product_of_its_own_rows_and_columns(tmp_path, name, layout, room):
    """peft 0.21, `get_delta_weight`: einsum("o r e, e r i -> e o i"), or "-> e i o"."""
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, name, layout)
    added = write_adapter(lora, module, sides, experts)
    memory = {} if room is None else {"memory": room, "workers": 1}
    ckptforge.convert(base, tmp_path / "out", to=layout, merge_lora=lora, **memory)
    before, after = floats(base), floats(tmp_path / "out")
    assert before.keys() == after.keys()
    for full, numbers in before.items():
        leaf = full.removeprefix(f"{module}.")
        delta = added.get(leaf, np.float32(0))
        if leaf in added and BASES[name, layout][1]:
            delta = delta.transpose(0, 2, 1)
        assert (after[full] == numbers + delta).all(), full
    changed = [full for full in before if (before[full] != after[full]).any()]
    assert sorted(changed) == [f"{module}.down_proj", f"{module}.gate_up_proj"]


def test_merged_into_another_layout_it_is_what_merging_first_makes(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, "qwen3_moe", "fused")
    write_adapter(lora, module, sides, experts)
    ckptforge.convert(base, tmp_path / "one", to="hub", merge_lora=lora)
    ckptforge.convert(base, tmp_path / "apart", to="hub")
    ckptforge.convert(tmp_path / "apart", tmp_path / "two", to="hub", merge_lora=lora)
    assert floats(tmp_path / "one").keys() == floats(tmp_path / "two").keys()
    other = floats(tmp_path / "two")
    assert all((x == other[name]).all() for name, x in floats(tmp_path / "one").items())


def test_experts_in_mxfp4_are_read_and_added_to(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, "gpt_oss", "hub")
    added = write_adapter(lora, module, sides, experts)
    ckptforge.convert(base, tmp_path / "codes", to="hub", quantise="experts=mxfp4")
    said = json.loads((tmp_path / "codes" / "config.json").read_text())
    assert said["quantization_config"]["quant_method"] == "mxfp4"
    keys = {"to": "hub", "dtype": "fp32"}
    ckptforge.convert(tmp_path / "codes", tmp_path / "plain", **keys)
    ckptforge.convert(tmp_path / "codes", tmp_path / "out", merge_lora=lora, **keys)
    before, after = floats(tmp_path / "plain"), floats(tmp_path / "out")
    for leaf, delta in added.items():
        full = f"{module}.{leaf}"
        assert (after[full] == before[full] + delta.transpose(0, 2, 1)).all()


def test_what_does_not_fit_is_refused(tmp_path):
    base = tmp_path / "base"
    module, sides, experts = write_base(base, "gpt_oss", "hub")
    layer = f"layers.{TABLES['gpt_oss'].example['num_hidden_layers'] - 1}."
    refused = {
        "rank": (FormatError, "has rank 3, but .* says 4", module, sides, {"r": 4}),
        "layer": (
            LayoutError,
            "fit no layout of gpt_oss",
            module.replace(layer, "layers.77."),
            sides,
            {},
        ),
        "shape": (
            FormatError,
            "aren't factors of one stacked parameter",
            module,
            {leaf: side[::-1] for leaf, side in sides.items()},
            {},
        ),
    }
    for name, (error, message, where, shapes, said) in refused.items():
        write_adapter(tmp_path / name, where, shapes, experts, **said)
        with pytest.raises(error, match=message):
            ckptforge.convert(base, tmp_path / "out", to="hub", merge_lora=tmp_path / name)
        assert not (tmp_path / "out").exists()
    lora = tmp_path / "lora"
    write_adapter(lora, module, sides, experts)
    with pytest.raises(FormatError, match=r"--merge-lora|merge_lora.*in layout hub"):
        ckptforge.convert(lora, tmp_path / "out", to="hub", config=base)


def square(path, name, layout, experts, said):
    """A model whose gate_up_proj is square, or down_proj of gpt-oss, with an adapter of that
    alone."""
    table = TABLES[name]
    inner = "intermediate_size" if name == "gpt_oss" else "moe_intermediate_size"
    side = table.example["hidden_size"]
    config = {**table.example, "torch_dtype": "float32", inner: side // (1 + (name != "gpt_oss"))}
    write_model(path / "base", table, config, layout=layout, dtype="float32")
    module = BASES[name, layout][0].format(config["num_hidden_layers"] - 1)
    leaf = "down_proj" if name == "gpt_oss" else "gate_up_proj"
    rng = np.random.default_rng(0)
    shapes = {"A": (RANK * experts, side), "B": (side, RANK * experts)}
    made = {
        f"base_model.model.{module}.lora_{n}.weight": integers(rng, *s) for n, s in shapes.items()
    }
    (path / "lora").mkdir()
    write_safetensors(
        path / "lora" / "adapter_model.safetensors",
        {n: ("F32", [*x.shape], x.tobytes()) for n, x in made.items()},
    )
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **said}
    content["target_parameters"] = [f"mlp.experts.{leaf}"]
    (path / "lora" / "adapter_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "layout", "version", "known"),
    [
        ("qwen3_moe", "fused", "0.21.2", True),
        ("qwen3_moe", "fused", "0.19.0", True),
        ("qwen3_moe", "fused", "0.18.1", False),
        ("qwen3_moe", "fused", None, False),
        ("qwen3_moe", "fused", "new", False),
        ("qwen3_moe", "hub", "0.18.1", False),
        ("gpt_oss", "hub", "0.18.1", True),
        ("gpt_oss", "hub", "0.21.2", False),  # transformers 4 or 5
        ("gpt_oss", "hub", None, False),
        ("qwen3_vl_moe", "fused", "0.21.2", False),
    ],
)
def test_square_parameters_alone_are_taken_only_where_the_version_tells(
    tmp_path, name, layout, version, known
):
    """peft 0.17 and 0.18 order factors by the axes of a parameter, later ones by what they are."""
    experts = TABLES[name].example.get("num_experts") or TABLES[name].example["num_local_experts"]
    square(
        tmp_path,
        name,
        "fused" if layout == "hub" and name != "gpt_oss" else layout,
        experts,
        {"peft_version": version} if version else {},
    )
    base, lora = tmp_path / "base", tmp_path / "lora"
    if layout == "hub" and name != "gpt_oss":
        ckptforge.convert(base, tmp_path / "apart", to="hub")
        base = tmp_path / "apart"
    keys = {"to": "hub", "merge_lora": lora}
    if known:
        assert ckptforge.convert(base, tmp_path / "out", **keys).tensors
        return
    with pytest.raises(FormatError, match=r"square parameter.*nothing in the adapter tells which"):
        ckptforge.convert(base, tmp_path / "out", **keys)


def test_factors_by_the_order_of_an_older_peft_are_refused_with_why(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, "qwen3_moe", "fused")
    write_adapter(lora, module, {leaf: side[::-1] for leaf, side in sides.items()}, experts)
    with pytest.raises(FormatError, match=r"aren't factors .* as peft before 0\.19 made factors"):
        ckptforge.convert(base, tmp_path / "out", to="hub", merge_lora=lora)


@pytest.mark.parametrize("layout", ["hub", "fused"])
def test_two_adapters_of_one_parameter_and_integers_are_refused(tmp_path, layout):
    base = tmp_path / "base"
    module, sides, experts = write_base(base, "qwen3_moe", "fused")
    if layout == "hub":
        ckptforge.convert(base, tmp_path / "apart", to="hub")
        base = tmp_path / "apart"
    twice = dict.fromkeys(sides, sides["down_proj"])
    write_adapter(tmp_path / "twice", module, twice, experts)
    write_adapter(tmp_path / "integers", module, sides, experts)
    file = tmp_path / "integers" / "adapter_model.safetensors"
    held = {n: ("I32", [*x.shape], x.tobytes()) for n, x in raw_safetensors(file).items()}
    write_safetensors(file, held)
    for name, message in (("twice", "are both of"), ("integers", "expected floating-point")):
        with pytest.raises(FormatError, match=message):
            ckptforge.convert(base, tmp_path / "out", to="hub", merge_lora=tmp_path / name)


def test_stacked_experts_in_fp8_are_to_be_undone_first(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, "qwen3_moe", "fused")
    write_adapter(lora, module, sides, experts)
    codes = tmp_path / "codes"
    ckptforge.convert(base, codes, to="fused", quantise="experts=fp8-block128")
    with pytest.raises(LayoutError, match="codes with their scales in one tensor.*undo them first"):
        ckptforge.convert(codes, tmp_path / "out", to="fused", merge_lora=lora)
    ckptforge.convert(codes, tmp_path / "undone", to="fused")
    assert ckptforge.convert(
        tmp_path / "undone", tmp_path / "out", to="fused", merge_lora=lora
    ).tensors


@pytest.mark.parametrize("layout", ["hub", "fused"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_factors_that_are_views_are_refused(tmp_path, layout, factor):
    torch = pytest.importorskip("torch")
    base, lora = tmp_path / "base", tmp_path / "lora"
    module, sides, experts = write_base(base, "qwen3_moe", "fused")
    if layout == "hub":
        ckptforge.convert(base, tmp_path / "apart", to="hub")
        base = tmp_path / "apart"
    write_adapter(lora, module, sides, experts)
    file = lora / "adapter_model.safetensors"
    tensors = {
        n: torch.from_numpy(x.view(np.float32).copy()) for n, x in raw_safetensors(file).items()
    }
    views = {n: x.t().contiguous().t() if f"lora_{factor}" in n else x for n, x in tensors.items()}
    torch.save(views, lora / "adapter_model.bin")
    file.unlink()
    with pytest.raises(FormatError, match=r"is a view of what is stored.*\.contiguous\(\)"):
        ckptforge.convert(base, tmp_path / "out", to="hub", merge_lora=lora)


def test_inspect_knows_whose_experts_they_are(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    write_adapter(lora, *write_base(base, "gpt_oss", "hub"))
    found = ckptforge.inspect(lora, config=base)
    assert found.model == "gpt_oss" and found.layout == "hub"
    assert found.notes == [f"a LoRA adapter of 2 weights, rank {RANK}, scale {ALPHA // RANK}."]


def test_a_layer_without_experts_is_refused(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    _, sides, experts = write_base(base, "deepseek_v3", "fused")
    write_adapter(lora, "model.layers.0.mlp.experts", sides, experts)
    with pytest.raises(LayoutError, match="is it an adapter of this model|fit no layout"):
        ckptforge.convert(base, tmp_path / "out", to="fused", merge_lora=lora)


def test_an_alpha_of_nothing_changes_nothing(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    write_adapter(lora, *write_base(base, "gpt_oss", "hub"))
    keys = {"to": "hub", "merge_lora": lora, "lora_alpha": 0}
    result = ckptforge.convert(base, tmp_path / "out", **keys)
    assert any("lora_alpha is 0" in note for note in result.notes)
    ckptforge.convert(base, tmp_path / "plain", to="hub")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "kind"), [("gpt_oss", "GptOssForCausalLM"), ("qwen3_moe", "Qwen3MoeForCausalLM")]
)
def test_against_peft_itself(tmp_path, name, kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    adapted_by_peft(torch, tmp_path, kind, TABLES[name].example)
    base = "hub" if name == "gpt_oss" else "fused"
    if base == "fused":
        ckptforge.convert(tmp_path / "hub", tmp_path / "fused", to="fused")
    lora = tmp_path / "lora"
    ckptforge.convert(tmp_path / base, tmp_path / "out", to="hub", merge_lora=lora)
    own, theirs, before = (floats(tmp_path / side) for side in ("out", "peft", "hub"))
    assert own.keys() == theirs.keys()
    assert max(float(abs(own[n] - theirs[n]).max()) for n in own) < 1e-5
    assert any((own[n] != before[n]).any() for n in own if "experts" in n and "down_proj" in n)
