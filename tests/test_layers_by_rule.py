"""Axes that count only some layers: by a rule on their numbers, by config.json, by names."""

import json
import re

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import CkptforgeError, ConfigError, LayoutError, TableError
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.sizes import lengths_of
from ckptforge.verbs.synthetic import write_model
from ckptforge.verbs.tables import check_table
from tests.helpers import contents, raw_safetensors

TOY = """
name = "toy"
model_type = ["toy"]
[axes]
l = "num_hidden_layers"
a = "l where layer_types is full or l % every == every - 1"
n = "l but a"
H = "hidden_size"
I = "inner"
V = "vocab_size"
[tensors]
embedding = "V H"
norm = "l H"
wq = "a H I"
wk = "a H I"
conv = "n I"
[layout.hub]
family = "huggingface"
embedding = "model.embed_tokens.weight : V H"
norm = "model.layers.{l}.norm.weight : H"
wq = "model.layers.{a}.attn.q.weight : H I"
wk = "model.layers.{a}.attn.k.weight : H I"
conv = "model.layers.{n}.linear.conv.weight : I"
[layout.ms]
extends = "hub"
family = "mindspore"
norm = "decoder.layers.{l}.norm.weight : H"
qk = "decoder.layers.{a}.attn.qk.weight : [wq: I + wk: I] H"
conv = "decoder.convs : n I"
[shard.hub]
wq = { cut = "I:mp" }
[pipeline]
layers = ["l", "a", "n"]
first = ["embedding"]
[example]
architectures = ["ToyForCausalLM"]
model_type = "toy"
num_hidden_layers = 8
every = 4
hidden_size = 4
inner = 6
vocab_size = 8
torch_dtype = "float32"
"""
FULL = ["full" if layer in (0, 5) else "linear" for layer in range(8)]


def toy(text=TOY):
    return parse_table(text.encode(), "toy.toml")


def written(tmp_path, **config):
    (tmp_path / "toy.toml").write_text(TOY)
    write_model(tmp_path / "hub", toy(), {**toy().example, **config})
    return tmp_path / "hub", tmp_path / "toy.toml"


@pytest.mark.parametrize(
    ("rule", "config", "expected"),
    [
        ("l where l % 2 == 0", {}, [0, 2, 4, 6]),
        ("l where l % every == every - 1", {}, [3, 7]),
        ("l where layer_types is full", {"layer_types": FULL}, [0, 5]),
        ("l where layer_types is not full", {"layer_types": FULL}, [1, 2, 3, 4, 6, 7]),
        ("l where ratios is 4 128", {"ratios": [0, 4, 128, 4, 0, 0, 0, 0]}, [1, 2, 3]),
        ("l where l in listed", {"listed": [6, 1]}, [1, 6]),
        ("l where l not in listed and l >= every", {"listed": [6, 1]}, [4, 5, 7]),
        ("l where l < every - 1", {}, [0, 1, 2]),
        ("l where layer_types is full or l % every == 0", {}, [0, 4]),
    ],
)
def test_a_rule_says_which_layers(rule, config, expected):
    table = toy(TOY.replace("l where layer_types is full or l % every == every - 1", rule))
    lengths = lengths_of(table, {**table.example, **config}, "config.json")
    assert list(lengths.numbers["a"]) == expected and lengths["a"] == len(expected)
    assert sorted([*lengths.numbers["n"], *expected]) == list(range(8))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_types": FULL[1:]}, "layer_types is a list of 7, expected a list of 8 values"),
        ({"layer_types": "full"}, "layer_types is 'full', expected a list of 8 values"),
        ({"every": 0}, "every - 1 is -1, which is no count|every is 0"),
        ({"num_hidden_layers": 70000}, "is 70000, over 65536"),
    ],
)
def test_lists_of_another_length_and_numbers_that_cannot_be_are_refused(tmp_path, config, message):
    hub, table = written(tmp_path)
    own = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**own, **config}))
    with pytest.raises(ConfigError, match=message):
        check_table(table, config=hub)
    with pytest.raises(CkptforgeError, match=message):
        ckptforge.convert(hub, tmp_path / "out.ckpt", to="ms", mapping=table)


@pytest.mark.parametrize("config", [{}, {"layer_types": FULL}, {"every": 1}, {"every": 9}], ids=str)
def test_there_and_back_with_the_numbers_of_the_layers_in_names(tmp_path, config):
    hub, table = written(tmp_path, **config)
    ckptforge.convert(hub, tmp_path / "ms.safetensors", to="ms", mapping=table)
    stored, made = raw_safetensors(hub), raw_safetensors(tmp_path / "ms.safetensors")
    full = [int(re.search("[0-9]+", name)[0]) for name in stored if "attn.q" in name]
    for layer in full:
        q, k = (stored[f"model.layers.{layer}.attn.{x}.weight"] for x in "qk")
        assert (made[f"decoder.layers.{layer}.attn.qk.weight"] == np.concatenate([q.T, k.T])).all()
    others = [n for n in range(8) if n not in full]
    if others:
        convs = [stored[f"model.layers.{n}.linear.conv.weight"] for n in others]
        assert (made["decoder.convs"] == np.stack(convs)).all()
    assert ("decoder.convs" in made) == bool(others)
    (tmp_path / "ms.safetensors.manifest.json").unlink()
    back = tmp_path / "back"
    ckptforge.convert(tmp_path / "ms.safetensors", back, to="hub", mapping=table, config=hub)
    assert contents(back) == contents(hub)


def test_names_tell_where_no_config_does_and_no_layer_may_lack(tmp_path):
    hub, table = written(tmp_path, layer_types=FULL)
    there = tmp_path / "x.safetensors"
    ckptforge.convert(hub, there, to="ms", mapping=table)
    (tmp_path / "x.safetensors.manifest.json").unlink()
    assert ckptforge.open(hub, mapping=table).source.binding.sizes.numbers["a"] == (0, 5)
    (hub / "config.json").unlink()
    assert ckptforge.open(hub, mapping=table).source.binding.sizes.numbers == {
        "a": (0, 5),
        "n": (1, 2, 3, 4, 6, 7),
    }
    lost = ckptforge.open(hub, mapping=table).drop("model.layers.5.attn.*")
    with pytest.raises(LayoutError, match=r"needs .*\n.*model\.layers\.5\.linear\.conv\.weight"):
        lost.as_layout("ms")


def test_names_do_not_tell_where_a_layer_could_lack_unnoticed(tmp_path):
    hub, table = written(tmp_path)
    table.write_text(TOY.replace('n = "l but a"', 'n = "l where l < every"'))
    (hub / "config.json").unlink()
    with pytest.raises(LayoutError, match=r"axis a counts is said by config\.json alone \(l where"):
        ckptforge.convert(hub, tmp_path / "out.ckpt", to="ms", mapping=table)


def test_a_layer_of_another_kind_than_config_says_is_named(tmp_path):
    hub, table = written(tmp_path)
    own = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**own, "layer_types": FULL}))
    with pytest.raises(LayoutError, match="isn't model.layers.{.}.*whose numbers, by axis ., are"):
        ckptforge.convert(hub, tmp_path / "out.ckpt", to="ms", mapping=table)


def test_layers_are_taken_with_their_kinds(tmp_path):
    hub, table = written(tmp_path, layer_types=FULL)
    model = ckptforge.open(hub, mapping=table).take(l=[5, 0, 6])
    assert model.config["layer_types"] == ["full", "full", "linear"]
    model.save(tmp_path / "out")
    made, stored = raw_safetensors(tmp_path / "out"), raw_safetensors(hub)
    for new, old in enumerate([5, 0, 6]):
        part = "linear.conv" if new == 2 else "attn.q"
        name = "model.layers.{}." + part + ".weight"
        assert (made[name.format(new)] == stored[name.format(old)]).all()
    assert len(made) == 1 + 3 + 2 * 2 + 1


def test_layers_that_the_rule_would_number_otherwise_are_refused(tmp_path):
    hub, table = written(tmp_path)
    kept = ckptforge.open(hub, mapping=table).take(l=[0, 1, 2, 3])
    kept.save(tmp_path / "kept")
    with pytest.raises(CkptforgeError, match="axis a is 0, but l where .* would be 3"):
        ckptforge.open(hub, mapping=table).take(l=[3, 4, 5, 6]).save(tmp_path / "out")


BAD = {
    'n = "l but H"': "'H' isn't an axis above it that is 'l where …'",
    'n = "x but a"': "'x' isn't an axis above it whose length config.json says",
    'n = "l where l % 2"': r"'l % 2' isn't a rule for 'l': 'KEY', .* or 'l not in KEY'",
    'n = "l where H % 2 == 0"': "'H % 2 == 0' isn't a rule for 'l'",
    'n = "l where k is x or l % 2 == 0"': "'l % 2 == 0' names no key of config.json",
    'n = "a where k is x"': "'a' isn't an axis above it whose length config.json says",
}


@pytest.mark.parametrize("row", BAD)
def test_rules_that_cannot_be_are_refused(row):
    with pytest.raises(TableError, match=r"toy.toml: \[axes\] n: " + BAD[row]):
        toy(TOY.replace('n = "l but a"', row))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{a}.attn.q", "{a+l}.attn.q", "adds a length, but 'a' counts only some of another axis"),
        ('layers = ["l", "a", "n"]', 'layers = ["a", "l", "n"]', "must begin with the axis that"),
        ("{n}.linear.conv", "{l}.norm", r"axis 'n' of tensor 'conv' is lost"),
    ],
)
def test_rows_that_use_them_wrongly_are_refused(old, new, message):
    with pytest.raises(TableError, match=message):
        toy(TOY.replace(old, new, 1))


def test_two_kinds_of_layers_may_share_a_name_but_not_a_layer(tmp_path):
    shared = TOY.replace(
        'conv = "model.layers.{n}.linear.conv.weight : I"',
        'conv = "model.layers.{n}.attn.q.weight : I"',
    )
    table = toy(shared)
    (tmp_path / "toy.toml").write_text(shared)
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(
        tmp_path / "hub", tmp_path / "ms.ckpt", to="ms", mapping=tmp_path / "toy.toml"
    )
    ckptforge.convert(
        tmp_path / "ms.ckpt", tmp_path / "back", to="hub", mapping=tmp_path / "toy.toml"
    )
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    both = shared.replace('n = "l but a"', 'n = "l where l >= every"')
    (tmp_path / "toy.toml").write_text(both)
    with pytest.raises(ConfigError, match="7 is counted by axis n and by axis a"):
        ckptforge.convert(
            tmp_path / "hub", tmp_path / "out.ckpt", to="ms", mapping=tmp_path / "toy.toml"
        )


def test_stages_know_a_layer_by_its_number(tmp_path):
    hub, table = written(tmp_path, layer_types=FULL)
    whole = '\n[layout.whole]\nextends = "hub"\nfamily = "mindspore"\n[shard.whole]\nwq = {}\n'
    table.write_text(TOY + whole)
    config = tmp_path / "parallel.json"
    config.write_text(json.dumps({"pipeline_stage": 2}))
    ranks = tmp_path / "ranks"
    ckptforge.convert(hub, ranks, to="whole", mapping=table, dst_parallel_config=config)
    first, second = (set(contents(path)) for path in sorted(ranks.glob("rank_*")))
    assert {name for name in first if "attn.q" in name} == {"model.layers.0.attn.q.weight"}
    assert {name for name in second if "attn.q" in name} == {"model.layers.5.attn.q.weight"}


@pytest.mark.parametrize(("value", "full"), [(3, 8), (True, 8), (0, 0), (None, 0)])
def test_a_key_alone_is_a_rule_for_all_layers_or_for_none(tmp_path, value, full):
    """Also of a checkpoint whose config.json isn't there, by its names."""
    text = TOY.replace("layer_types is full or l % every == every - 1", "switch")
    (tmp_path / "toy.toml").write_text(text)
    config = {**toy(text).example, "switch": value}
    write_model(tmp_path / "hub", toy(text), config)
    names = raw_safetensors(tmp_path / "hub")
    assert sum("attn.q" in name for name in names) == full
    table = {"mapping": tmp_path / "toy.toml"}
    (tmp_path / "hub" / "config.json").unlink()
    ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", to="ms", **table)
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back", allow_no_config=True, **table)
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
