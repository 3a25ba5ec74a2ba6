"""Padded vocabularies, heads that config.json ties, and dtypes that config.json says wrongly."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import ConfigError, LayoutError
from tests.helpers import contents, write_safetensors
from tests.test_models import TABLES, write_model

LAYOUTS = [
    (name, layout.name)
    for name, table in TABLES.items()
    for layout in table.layouts.values()
    if layout.family == "mindspore" and not table.integers  # a router with a row for each token
]


def padded(directory, more: int, seed: int = 0):
    """Adds rows to the embedding and the head of a model; returns its config.json."""
    config = json.loads((directory / "config.json").read_text())
    # copies have the same
    rows = {kind: np.random.default_rng(seed).bytes(1 << 16) for kind in ("embed", "head")}
    tensors = {}
    for name, (_, shape, data) in contents(directory).items():
        if shape and shape[0] == config["vocab_size"] and ("embed" in name or "head" in name):
            data, shape = (
                data + rows["embed" if "embed" in name else "head"][: more * shape[1] * 2],
                (shape[0] + more, *shape[1:]),
            )
        tensors[name] = ("BF16", list(shape), data)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    (directory / "config.json").write_text(
        json.dumps({**config, "vocab_size": config["vocab_size"] + more})
    )
    return config


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_padding_is_named_and_cut_off_in_every_layout(tmp_path, name, layout):
    write_model(tmp_path / "hub", TABLES[name], TABLES[name].example)
    shutil.copytree(tmp_path / "hub", tmp_path / "padded")
    config = padded(tmp_path / "padded", 5)
    ckptforge.to_ms(tmp_path / "padded", tmp_path / "x.ckpt", layout=layout, no_hash=True)
    with pytest.raises(
        LayoutError,
        match=rf"5 more than vocab_size {config['vocab_size']}.*pad "
        r"the vocabulary.*trim_vocab=True",
    ):
        ckptforge.to_torch(
            tmp_path / "x.ckpt", tmp_path / "y", layout=layout, config=tmp_path / "hub"
        )
    result = ckptforge.to_torch(
        tmp_path / "x.ckpt", tmp_path / "y", layout=layout, config=tmp_path / "hub", trim_vocab=True
    )
    assert contents(tmp_path / "y") == contents(tmp_path / "hub")
    assert any("5 rows of padding cut off" in note for note in result.notes)
    again = ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "z", layout=layout, trim_vocab=True)
    assert contents(tmp_path / "z") == contents(tmp_path / "padded") and any(
        "nothing is cut off" in note for note in again.notes
    )


@settings(max_examples=20)
@given(st.integers(1, 40), st.sampled_from([2, 4]), st.integers(0, 1 << 20))
def test_padding_in_ranks_is_cut_off(tmp_path_factory, more, ways, seed):
    """Jobs pad a vocabulary so that it divides; what is cut off may be parts of some ranks and all
    of others'."""
    tmp_path = tmp_path_factory.mktemp("ranks")
    table = TABLES["llama"]
    write_model(
        tmp_path / "hub",
        table,
        {**table.example, "num_key_value_heads": 4, "num_attention_heads": 8},
    )
    shutil.copytree(tmp_path / "hub", tmp_path / "padded")
    more += -(table.example["vocab_size"] + more) % ways
    config = padded(tmp_path / "padded", more, seed)
    parallel = {"model_parallel": ways, "vocab_emb_dp": False}
    (tmp_path / "job.json").write_text(json.dumps(parallel))
    ckptforge.to_ms(
        tmp_path / "padded",
        tmp_path / "ranks",
        layout="dense",
        parallel_config=tmp_path / "job.json",
    )
    ckptforge.strategy(
        tmp_path / "s",
        parallel_config=tmp_path / "job.json",
        like=tmp_path / "padded",
        layout="dense",
    )
    ckptforge.to_torch(
        tmp_path / "ranks",
        tmp_path / "y",
        strategy_dir=tmp_path / "s",
        config=tmp_path / "hub",
        trim_vocab=True,
    )
    assert contents(tmp_path / "y") == contents(tmp_path / "hub")
    assert (
        json.loads((tmp_path / "y" / "config.json").read_text())["vocab_size"]
        == config["vocab_size"]
    )


def test_optimizer_state_of_a_padded_vocabulary_is_cut_with_it(tmp_path):
    table = TABLES["llama"]
    write_model(tmp_path / "hub", table, table.example)
    shutil.copytree(tmp_path / "hub", tmp_path / "padded")
    padded(tmp_path / "padded", 3)
    ckptforge.to_ms(tmp_path / "padded", tmp_path / "x.safetensors", layout="dense", no_hash=True)
    tensors = {
        name: ("BF16", list(shape), data)
        for name, (_, shape, data) in contents(tmp_path / "x.safetensors").items()
    }
    tensors |= {f"adam_m.{name}": value for name, value in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "ms"})
    options = {"config": tmp_path / "hub", "trim_vocab": True, "from_": "dense"}
    ckptforge.convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", to="mcore", **options)
    made = contents(tmp_path / "y.safetensors")
    for name, value in made.items():
        if name.startswith("adam_m."):
            assert value == made[name.removeprefix("adam_m.")]


def test_other_contradictions_are_not_called_padding(tmp_path):
    table = TABLES["llama"]
    write_model(tmp_path / "hub", table, table.example)
    padded(tmp_path / "hub", 5)
    (tmp_path / "config.json").write_text(json.dumps({**table.example, "intermediate_size": 24}))
    for options in ({}, {"trim_vocab": True}):
        with pytest.raises(LayoutError) as caught:
            ckptforge.to_ms(
                tmp_path / "hub", tmp_path / "x.ckpt", config=tmp_path / "config.json", **options
            )
        assert "pad the vocabulary" not in str(caught.value)
    (tmp_path / "config.json").write_text(
        json.dumps({**table.example, "vocab_size": table.example["vocab_size"] + 100})
    )
    with pytest.raises(LayoutError) as caught:
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", config=tmp_path / "config.json")
    assert "pad the vocabulary" not in str(caught.value)
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(ConfigError, match="trim_vocab=True needs vocab_size"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", model="llama", trim_vocab=True)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_config_json_ties_is_said_to_differ(tmp_path, same):
    table = TABLES["llama"]
    write_model(tmp_path / "untied", table, {**table.example, "tie_word_embeddings": False})
    if same:
        tensors = {
            name: ("BF16", list(shape), data)
            for name, (_, shape, data) in contents(tmp_path / "untied").items()
        }
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        write_safetensors(tmp_path / "untied" / "model.safetensors", tensors, {"format": "pt"})
    shutil.copytree(tmp_path / "untied", tmp_path / "tied")
    (tmp_path / "tied" / "config.json").write_text(
        json.dumps({**table.example, "tie_word_embeddings": True})
    )
    said = [
        ckptforge.to_ms(tmp_path / "tied", tmp_path / "x.ckpt").notes,
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "x").notes,
        ckptforge.convert(tmp_path / "tied", tmp_path / "y", to="hub").notes,
        ckptforge.inspect(tmp_path / "tied").notes,
        ckptforge.compare(tmp_path / "tied", tmp_path / "x.ckpt").notes,
    ]
    assert [
        any("config.json ties" in note and "differ" in note for note in notes) for notes in said
    ] == [not same] * 5
    dry = ckptforge.to_ms(tmp_path / "tied", tmp_path / "z.ckpt", dry_run=True)
    assert any("weren't compared" in note for note in dry.notes)
    assert contents(tmp_path / "x") == contents(tmp_path / "tied")
    assert not any(
        "ties" in note for note in ckptforge.to_ms(tmp_path / "untied", tmp_path / "u.ckpt").notes
    )
    for a, b, expected in (("tied", "untied", (True, False)), ("untied", "tied", (False, True))):
        found = ckptforge.compare(tmp_path / a, tmp_path / b)
        assert found.equal == same and found.constants == (
            {} if same else {"tie_word_embeddings": expected}
        )
    assert ckptforge.compare(tmp_path / "tied", tmp_path / "x.ckpt").equal


def test_a_dtype_that_config_json_says_wrongly_is_said(tmp_path):
    table = TABLES["llama"]
    for key in ("dtype", "torch_dtype"):
        directory = tmp_path / key
        write_model(directory, table, table.example)
        (directory / "config.json").write_text(json.dumps({**table.example, key: "float32"}))
        result = ckptforge.convert(directory, tmp_path / f"{key}-out", to="hub")
        assert any(
            f"config.json said {key} 'float32', but the weights are bfloat16" in note
            for note in result.notes
        )
        assert json.loads((tmp_path / f"{key}-out" / "config.json").read_text())[key] == "bfloat16"
    write_model(tmp_path / "right", table, {**table.example, "dtype": "bfloat16"})
    for dtype in ("keep", "fp32"):
        result = ckptforge.convert(
            tmp_path / "right", tmp_path / f"right-{dtype}", to="hub", dtype=dtype
        )
        assert not any("config.json said" in note for note in result.notes)
