"""Models whose layers differ in the length of an axis, as pruned ones do in their experts: what
config.json says of that, and every table and layout there and back."""

import json

import pytest

import ckptforge
from ckptforge.errors import CkptforgeError, ConfigError, LayoutError, TableError, UsageError
from ckptforge.tables.layer_counts import table_for
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from ckptforge.verbs.tables import check_table
from tests.helpers import contents, raw_safetensors, write_safetensors

TABLES = {table.name: table for table in shipped_tables() if "e" in table.axes}
QUICK = {("qwen3_moe", "fused"), ("qwen3_moe", "mcore"), ("deepseek_v3", "mcore")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for table in TABLES.values()
    for layout in table.layouts
    if (case := (table.name, layout)) and layout != "hub"
]
TOY = """
name = "toy"
model_type = ["toy"]
[axes]
l = "num_layers"
e = "experts or num_experts per l"
H = "hidden"
I = "inner"
[tensors]
norm = "l H"
router = "l e H"
w1 = "l e I H"
w3 = "l e I H"
[layout.hub]
family = "huggingface"
norm = "layers.{l}.norm.weight : H"
router = "layers.{l}.gate.weight : e H"
w1 = "layers.{l}.experts.{e}.w1.weight : I H"
w3 = "layers.{l}.experts.{e}.w3.weight : I H"
[layout.ms]
extends = "hub"
family = "mindspore"
w1_w3 = "layers.{l}.experts.w13 : e H [w1: I + w3: I]"
[layout.stacked]
extends = "ms"
w1_w3 = "experts.w13 : l e H [w1: I + w3: I]"
[pipeline]
layers = "l"
[example]
architectures = ["ToyForCausalLM"]
model_type = "toy"
num_layers = 4
experts = 6
hidden = 4
inner = 2
torch_dtype = "bfloat16"
"""


def toy(text=TOY):
    return parse_table(text.encode(), "toy.toml")


def pruned(table, lengths=None):
    """The example of a table with fewer experts in its last layers."""
    config = json.loads(json.dumps(dict(table.example)))
    own = config.get("text_config", config)
    key = table.axes["e"].choices[0]
    last = own[table.axes["l"].choices[0]] - 1
    own["per_layer_config"] = {str(last): {key: own[key] - 3}, **(lengths or {})}
    return config


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_table_and_layout_there_and_back(name, layout, tmp_path):
    hub, config = tmp_path / "hub", pruned(TABLES[name])
    write_model(hub, TABLES[name], config)
    there = tmp_path / (
        "there.ckpt" if TABLES[name].layouts[layout].family == "mindspore" else "there"
    )
    ckptforge.convert(hub, there, to=layout)
    back = tmp_path / "back"
    ckptforge.convert(there, back, to="hub", from_=layout, config=hub)
    assert contents(back) == contents(hub)


def test_what_a_layer_stores_is_its_experts_in_order(tmp_path):
    write_model(tmp_path / "hub", toy(), {**toy().example, "experts": [6, 2, 6, 3]})
    (tmp_path / "toy.toml").write_text(TOY)
    out = tmp_path / "x.safetensors"
    ckptforge.convert(tmp_path / "hub", out, to="ms", mapping=tmp_path / "toy.toml")
    stored, made = raw_safetensors(tmp_path / "hub"), raw_safetensors(out)
    for layer, experts in enumerate([6, 2, 6, 3]):
        both = made[f"layers.{layer}.experts.w13"]
        assert both.shape == (experts, 4, 4)
        for e in range(experts):
            for at, part in ((0, "w1"), (2, "w3")):
                expert = stored[f"layers.{layer}.experts.{e}.{part}.weight"]
                assert (both[e, :, at : at + 2] == expert.T).all()


@pytest.mark.parametrize(
    "said",
    [
        {"per_layer_config": {"1": {"experts": 2}, "3": {"experts": 3}}},
        {"per_layer_config": {"1": {"num_experts": 2}, "3": {"num_experts": 3, "other": 1}}},
        {"experts": [6, 2, 6, 3]},
        {"experts": None, "num_experts": [6, 2, 6, 3]},
        {
            "experts": 5,
            "per_layer_config": {str(i): {"experts": n} for i, n in enumerate([6, 2, 6, 3])},
        },
    ],
    ids=str,
)
def test_config_says_it_by_layer_or_by_a_list(said, tmp_path):
    config = {**toy().example, **said}
    write_model(tmp_path / "hub", toy(), config)
    (tmp_path / "toy.toml").write_text(TOY)
    names = raw_safetensors(tmp_path / "hub")
    found = [sum(f"layers.{i}.experts" in n and "w1" in n for n in names) for i in range(4)]
    assert found == [6, 2, 6, 3]
    counts = check_table(tmp_path / "toy.toml", config=tmp_path / "hub").counts
    assert [(one.layout, one.tensors) for one in counts] == [("hub", 42), ("ms", 12)]
    assert counts[0].parameters == 4 * 4 + 17 * 4 + 17 * 2 * 8


@pytest.mark.parametrize("said", [None, {}, {"2": {"experts": 6, "inner": 2}}], ids=str)
def test_a_model_whose_layers_are_alike_has_the_table_as_it_is(said):
    table = toy()
    config = {**table.example, "per_layer_config": said}
    assert table_for(table, config, "config.json") is table


def test_all_layers_may_have_another_length_than_the_model_says(tmp_path):
    said = {str(i): {"experts": 2} for i in range(4)}
    write_model(tmp_path / "hub", toy(), {**toy().example, "per_layer_config": said})
    assert sum("w1" in name for name in raw_safetensors(tmp_path / "hub")) == 8


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"experts": [6, 2, 6]}, "experts is a list of 3, expected a number, or a list of 4"),
        ({"experts": [6, 2, 6, "x"]}, "layer 3: experts is 'x', expected a positive integer"),
        ({"per_layer_config": [1]}, r"per_layer_config is \[1\], expected an object"),
        ({"per_layer_config": {"4": {"experts": 1}}}, "per_layer_config has '4'.*one of 4 layers"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config has 'x'"),
        ({"per_layer_config": {"1": 3}}, "per_layer_config has '1': 3"),
        ({"per_layer_config": {"1": {}, "01": {}}}, "per_layer_config has layer 1 twice"),
        ({"per_layer_config": {"1": {"experts": {}}}}, "layer 1: experts is {}, expected a pos"),
        ({"experts": None, "per_layer_config": {"1": {"experts": 2}}}, "for some layers only"),
        ({"num_layers": None, "experts": [6, 2]}, "doesn't say num_layers"),
    ],
    ids=str,
)
def test_what_config_cannot_say_is_refused(said, message, tmp_path):
    write_model(tmp_path / "hub", toy(), toy().example)
    (tmp_path / "toy.toml").write_text(TOY)
    config = {key: v for key, v in {**toy().example, **said}.items() if v is not None}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        ckptforge.convert(
            tmp_path / "hub", tmp_path / "x.ckpt", to="ms", mapping=tmp_path / "toy.toml"
        )


def test_experts_that_lack_are_lost_unless_config_says_so(tmp_path):
    write_model(tmp_path / "hub", toy(), {**toy().example, "experts": [6, 2, 6, 3]})
    (tmp_path / "toy.toml").write_text(TOY)
    keys = {"to": "ms", "mapping": tmp_path / "toy.toml"}
    for said, message in (
        ({}, r"needs 14 tensors|has e = |of the same kind"),
        ({"experts": [6, 3, 6, 3]}, r"layers\.1\.experts\.2\.w1\.weight"),
        ({"experts": [6, 2, 6, 2]}, "layers.3.experts.2.w. *.*e@2 = 2, but there should be only 2"),
    ):
        config = {**toy().example, **said}
        (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
        with pytest.raises(LayoutError, match=message):
            ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", **keys)


def test_a_layout_that_stacks_the_layers_says_why_it_cannot_hold_them(tmp_path):
    write_model(tmp_path / "hub", toy(), {**toy().example, "experts": [6, 2, 6, 3]})
    write_model(tmp_path / "even", toy(), toy().example)
    (tmp_path / "toy.toml").write_text(TOY)
    keys = {"to": "stacked", "mapping": tmp_path / "toy.toml"}
    ckptforge.convert(tmp_path / "even", tmp_path / "even.ckpt", **keys)
    reason = (
        "stacked can't hold this model: it stores all layers in one tensor, and experts or "
        r"num_experts differs .* are hub, ms\."
    )
    with pytest.raises(UsageError, match=reason):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", **keys)
    assert not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('e = "experts per x"', "'x' isn't an axis above it whose length config.json says"),
        ('e = "experts per e"', "'e' isn't an axis above it whose length config.json says"),
        ('e = "experts or 0 per l"', "'experts or 0' can't differ between the indexes of 'l'"),
        ('e = "8 per l"', "'8' can't differ between the indexes of 'l'"),
        ('k = "first"\ne = "experts per k"', r"'k' must be the first axis of \[pipeline\] layers"),
        ('e = "experts per"', "isn't keys and numbers"),
    ],
)
def test_rows_that_break_a_rule_are_refused(row, message):
    with pytest.raises(TableError, match=r"toy.toml: \[axes\] e: .*" + message):
        toy(TOY.replace('e = "experts or num_experts per l"', row))


def test_ranks_divide_the_experts_of_each_layer(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, pruned(table, {"0": {"num_experts": 6}}))
    jobs = tmp_path / "parallel.json"
    jobs.write_text(json.dumps({"model_parallel": 2, "expert_parallel": 2, "data_parallel": 2}))
    keys = {"layout": "mcore", "parallel_config": jobs}
    with pytest.raises(CkptforgeError, match=r"e@5.*5"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "no", **keys)
    write_model(tmp_path / "even", table, {**table.example, "num_experts": [6, 4]})
    ckptforge.to_ms(tmp_path / "even", tmp_path / "ranks", **keys)
    ckptforge.merge(tmp_path / "ranks", tmp_path / "one.ckpt")
    ckptforge.to_torch(tmp_path / "one.ckpt", tmp_path / "back", config=tmp_path / "even")
    assert contents(tmp_path / "back") == contents(tmp_path / "even")


def test_edits_take_such_layers_and_refuse_what_differs(tmp_path):
    table = TABLES["qwen3_moe"]
    example = {**table.example, "num_hidden_layers": 4}
    write_model(tmp_path / "hub", table, {**example, "per_layer_config": {"1": {"num_experts": 4}}})
    model = ckptforge.open(tmp_path / "hub")
    taken = model.take(l=[2, 1])
    assert taken.config["per_layer_config"] == {"1": {"num_experts": 4}}
    taken.save(tmp_path / "two")
    made, stored = raw_safetensors(tmp_path / "two"), raw_safetensors(tmp_path / "hub")
    for new, old in enumerate([2, 1]):
        own = [name for name in made if name.startswith(f"model.layers.{new}.")]
        assert own and all(
            (made[n] == stored[n.replace(f"layers.{new}.", f"layers.{old}.")]).all() for n in own
        )
    ckptforge.convert(tmp_path / "two", tmp_path / "two.ckpt", to="mcore")
    for axis in ("e", "num_experts"):
        with pytest.raises(UsageError, match=f"{axis} isn't the same in all layers of this model"):
            model.take(**{axis: [0, 1]})
    listed = {**example, "num_experts": [8, 8, 4, 8]}
    write_model(tmp_path / "listed", table, listed)
    assert ckptforge.open(tmp_path / "listed").take(l=[2, 3]).config["num_experts"] == [4, 8]


def test_codes_and_kinds_are_called_as_in_the_table(tmp_path):
    table = TABLES["mixtral"]
    write_model(tmp_path / "hub", table, pruned(table))
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "out", to="hub", quantise=["w2=fp8-block128"]
    )
    assert {group for (group, *_) in result.audit.counts} == {"w2"}
    codes = [n for n in contents(tmp_path / "out") if n.endswith("w2.weight_scale_inv")]
    assert len(codes) == sum(n.endswith("w2.weight") for n in contents(tmp_path / "hub"))


@pytest.mark.slow
def test_logits_of_a_model_of_transformers_with_such_layers(tmp_path):
    """transformers' classes have one number for all layers; here a layer's block is replaced."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    def built():
        config = Qwen3MoeConfig(**TABLES["qwen3_moe"].example)
        model = Qwen3MoeForCausalLM(config)
        fewer = Qwen3MoeConfig(**{**TABLES["qwen3_moe"].example, "num_experts": 5})
        model.model.layers[1].mlp = Qwen3MoeSparseMoeBlock(fewer)
        return model.eval()

    torch.manual_seed(0)
    model = built()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    (tmp_path / "fused").mkdir()
    write_safetensors(
        tmp_path / "fused" / "model.safetensors",
        {n: ("F32", list(t.shape), t.numpy().tobytes()) for n, t in model.state_dict().items()},
        {"format": "pt"},
    )
    said = {**TABLES["qwen3_moe"].example, "torch_dtype": "float32"}
    said["per_layer_config"] = {"1": {"num_experts": 5}}
    (tmp_path / "fused" / "config.json").write_text(json.dumps(said))
    ckptforge.convert(tmp_path / "fused", tmp_path / "x.ckpt", to="mcore")
    ckptforge.convert(
        tmp_path / "x.ckpt", tmp_path / "again", to="fused", config=tmp_path / "fused"
    )
    loaded, again = built(), raw_safetensors(tmp_path / "again")
    loaded.load_state_dict(
        {n: torch.from_numpy(a.view("f4").copy()) for n, a in again.items()}, strict=True
    )
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)
