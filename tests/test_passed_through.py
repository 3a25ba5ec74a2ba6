"""Rows that pass through unchanged: a vision tower beside a language model that is converted."""

import json
import re

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import TableError, UnmappedTensorsError, UsageError
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import (
    contents,
    raw_safetensors,
    transformers_config,
    vision_language_config,
)
from tests.helpers import write_safetensors as write_bytes

TABLES = {table.name: table for table in shipped_tables()}
TOY = """
name = "toy"
model_type = ["toy"]
[axes]
l = "layers"
H = "hidden"
[tensors]
up = "l H"
tower = "H *"
[layout.hub]
family = "huggingface"
up = "model.layers.{l}.up : H"
tower = "visual.*.weight : *"
[layout.ms]
family = "mindspore"
up = "ups : l H"
tower = "vision.*.gamma : *"
"""
TOWER = {
    "visual.patch.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "visual.blocks.0.norm.weight": np.arange(5, dtype=np.float32),
}
UPS = {f"model.layers.{i}.up": np.full(4, i, dtype=np.float32) for i in range(2)}
CONFIG = {
    "architectures": ["ToyForCausalLM"],
    "model_type": "toy",
    "vision_config": {"model_type": "tower", "hidden_size": 3},
    "text_config": {"model_type": "toy_text", "hidden_size": 4, "layers": 2, "hidden": 4},
}


def write_safetensors(path, tensors):
    write_bytes(path, {n: ("F32", [*x.shape], x.tobytes()) for n, x in tensors.items()})


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "toy.toml").write_text(TOY)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path / "hub/model.safetensors", {**UPS, **TOWER})
    return tmp_path / "hub"


def converted(source, target, layout, **more):
    return ckptforge.convert(source, target, to=layout, mapping=source.parent / "toy.toml", **more)


def test_what_passes_through_keeps_its_numbers_and_what_the_star_stands_for(hub, tmp_path):
    converted(hub, tmp_path / "ms.safetensors", "ms")
    made = raw_safetensors(tmp_path / "ms.safetensors")
    assert sorted(made) == ["ups", "vision.blocks.0.norm.gamma", "vision.patch.gamma"]
    assert made["vision.patch.gamma"].tobytes() == TOWER["visual.patch.weight"].tobytes()
    converted(tmp_path / "ms.safetensors", tmp_path / "back", "hub")
    assert contents(tmp_path / "back") == contents(hub)
    assert json.loads((tmp_path / "back/config.json").read_text()) == CONFIG


def test_a_cast_and_a_comparison_take_it_along(hub, tmp_path):
    converted(hub, tmp_path / "ms.safetensors", "ms", dtype="fp16")
    half = raw_safetensors(tmp_path / "ms.safetensors")["vision.patch.gamma"].view(np.float16)
    assert (half == TOWER["visual.patch.weight"]).all()
    table = tmp_path / "toy.toml"
    same = ckptforge.compare(hub, tmp_path / "ms.safetensors", mapping=table, after_cast="fp16")
    assert same.equal
    other = {**UPS, **TOWER, "visual.patch.weight": TOWER["visual.patch.weight"] + 1}
    write_safetensors(hub / "model.safetensors", other)
    assert not ckptforge.compare(
        hub, tmp_path / "ms.safetensors", mapping=table, after_cast="fp16"
    ).equal


def test_edits_of_axes_that_it_may_have_are_refused_and_others_keep_it(hub, tmp_path):
    model = ckptforge.open(hub, mapping=tmp_path / "toy.toml")
    with pytest.raises(UsageError, match=r"where visual\..* has axis H \(hidden\) isn't known"):
        model.take(H=[0, 1])
    text = TOY + '[pipeline]\nlayers = "l"\n'
    (tmp_path / "toy.toml").write_text(text)
    taken = ckptforge.open(hub, mapping=tmp_path / "toy.toml").take(l=[1])
    taken.save(tmp_path / "out")
    made = raw_safetensors(tmp_path / "out")
    assert sorted(made) == sorted(["model.layers.0.up", *TOWER])
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["text_config"]["layers"] == 1 and said["vision_config"] == CONFIG["vision_config"]
    assert "layers" not in said and said["model_type"] == "toy"


def test_ranks_have_it_whole_on_the_first_stage(hub, tmp_path):
    text = TOY.replace('up = "ups : l H"', 'up = "ups.{l} : H"')
    shards = '[shard.ms]\nup = { cut = "H:mp" }\n[pipeline]\nlayers = "l"\n'
    (tmp_path / "toy.toml").write_text(text + shards)
    (tmp_path / "p.json").write_text(json.dumps({"model_parallel": 2, "pipeline_stage": 2}))
    converted(hub, tmp_path / "ranks", "ms", dst_parallel_config=tmp_path / "p.json")
    held = [set(contents(path)) for path in sorted((tmp_path / "ranks").glob("rank_*"))]
    assert [("vision.patch.gamma" in names) for names in held] == [True, True, False, False]
    converted(tmp_path / "ranks", tmp_path / "back", "hub")
    assert contents(tmp_path / "back") == contents(hub)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"visual.*.weight : *"', '"visual.x : *"', "isn't of the form 'name.* : *'"),
        ('"visual.*.weight : *"', '"visual.* : H"', "isn't of the form 'name.* : *'"),
        ('"visual.*.weight : *"', '"*.weight : *"', "must have something before the"),
        ('tower = "vision.*.gamma : *"\n', "", "no row stores tensor 'tower'"),
        ('tower = "H *"', 'tower = "H *"\nother = "*"', "no row stores tensor 'other'"),
        (
            'tower = "visual.*.weight : *"',
            'tower = "visual.*.weight : *"\nother = "visual.x.* : *"',
            "can have the names of",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused(old, new, message):
    text = TOY.replace(old, new, 1)
    if "can have" in message:
        text = text.replace('tower = "H *"', 'tower = "H *"\nother = "*"')
    with pytest.raises(TableError, match=re.escape(message)):
        parse_table(text.encode(), "toy.toml")


def test_what_no_row_passes_is_still_unmapped(hub, tmp_path):
    write_safetensors(
        hub / "model.safetensors", {**UPS, **TOWER, "audio.x.weight": np.zeros(2, np.float32)}
    )
    with pytest.raises(UnmappedTensorsError, match=r"audio\.x\.weight"):
        converted(hub, tmp_path / "ms.ckpt", "ms")


MODELS = ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]


@pytest.mark.parametrize("name", MODELS)
def test_vision_language_models_of_transformers_compute_the_same_after_there_and_back(
    name, tmp_path
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    table = TABLES[name]
    made = transformers_config(name, **vision_language_config(name))
    kind = getattr(transformers, table.example["architectures"][0])
    torch.manual_seed(0)
    model = kind(made).to(torch.bfloat16).eval()
    for parameter in model.state_dict().values():
        parameter.copy_(torch.randn_like(parameter, dtype=torch.float32) * 0.1)
    model.save_pretrained(tmp_path / "hub")
    memory = {n: tuple(numbers.shape) for n, numbers in model.state_dict().items()}
    own = {"qwen2_5_vl": "nested", "qwen3_vl": "hub", "qwen3_vl_moe": "fused"}[name]
    found = ckptforge.open(tmp_path / "hub").as_layout(own)
    assert {n: tensor.shape for n, tensor in found.items()} == memory
    assert any("visual" in n for n in memory)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    tokens = torch.arange(12)[None] % 32

    def logits(directory):
        loaded, info = kind.from_pretrained(
            directory, dtype=torch.bfloat16, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            return loaded.eval()(tokens).logits

    expected = logits(tmp_path / "hub")
    assert torch.equal(logits(tmp_path / "back"), expected)
    for layout in table.names_of("huggingface"):  # as published, too
        if layout == "fsdp":
            continue  # a trainer's own, which transformers doesn't read
        ckptforge.convert(tmp_path / "hub", tmp_path / f"as-{layout}", to=layout)
        assert torch.equal(logits(tmp_path / f"as-{layout}"), expected), layout


def test_a_language_model_without_its_tower_is_read_as_well(tmp_path):
    table = TABLES["qwen3_vl"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")
