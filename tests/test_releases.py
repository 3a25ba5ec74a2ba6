"""Mistral's and Meta's releases, against the arithmetic of transformers' conversion scripts."""

import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ckptforge
from ckptforge.consolidated.params import config_of, params_of
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import ConfigError, FormatError, LayoutError, TableError, UsageError
from ckptforge.tables.axes import in_parts
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.row_text import parse_pattern
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import HUB, contents, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
LAYERS, DIM, HEADS, GROUPS, INNER, VOCAB, EXPERTS = 2, 32, 8, 4, 24, 40, 4
PARAMS = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": GROUPS}
SWITCHES = TABLES["llama"].layouts["meta"].switches
PARAMS |= {"head_dim": DIM // HEADS, "norm_eps": 1e-5, "vocab_size": VOCAB}


def permuted(weight, heads):
    """transformers 4.46 … 5, `permute_for_rope` of convert_mistral_weights_to_hf.py, which that of
    Llama and of Mixtral equals: from the order of interleaved rotary embeddings to that of
    halves."""
    rows, columns = weight.shape
    split = weight.reshape(heads, rows // heads // 2, 2, columns)
    return split.transpose(0, 2, 1, 3).reshape(rows, columns)


def release(generation, seed=0):
    """(the tensors of a release by name, those of the hub), of one generation of files."""
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

    own = {"tok_embeddings.weight": numbers(VOCAB, DIM)}
    hub = {"model.embed_tokens.weight": own["tok_embeddings.weight"]}
    for i in range(LAYERS):
        layer, there = f"layers.{i}", f"model.layers.{i}"
        for name, shape, other in (
            ("attention_norm.weight", (DIM,), "input_layernorm"),
            ("ffn_norm.weight", (DIM,), "post_attention_layernorm"),
            ("attention.wq.weight", (DIM, DIM), "self_attn.q_proj"),
            ("attention.wk.weight", (DIM // 2, DIM), "self_attn.k_proj"),
            ("attention.wv.weight", (DIM // 2, DIM), "self_attn.v_proj"),
            ("attention.wo.weight", (DIM, DIM), "self_attn.o_proj"),
        ):
            found = own[f"{layer}.{name}"] = numbers(*shape)
            if name[-9:] in ("wq.weight", "wk.weight"):
                found = permuted(found, HEADS if name[-8] == "q" else GROUPS)
            hub[f"{there}.{other}.weight"] = found
        shapes = {"w1": (INNER, DIM), "w2": (DIM, INNER), "w3": (INNER, DIM)}
        if generation == "dense":
            for w, other in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                found = own[f"{layer}.feed_forward.{w}.weight"] = numbers(*shapes[w])
                hub[f"{there}.mlp.{other}_proj.weight"] = found
            continue
        gate = "block_sparse_moe" if generation == "stacked" else "feed_forward"
        own[f"{layer}.{gate}.gate.weight"] = numbers(EXPERTS, DIM)
        hub[f"{there}.block_sparse_moe.gate.weight"] = own[f"{layer}.{gate}.gate.weight"]
        for w, shape in shapes.items():
            matrices = [numbers(*shape) for _ in range(EXPERTS)]
            for e, matrix in enumerate(matrices):
                hub[f"{there}.block_sparse_moe.experts.{e}.{w}.weight"] = matrix
                if generation == "single":
                    own[f"{layer}.feed_forward.experts.{e}.{w}.weight"] = matrix
            if generation == "stacked":  # convert_mixtral_weights_to_hf.py: w2 is transposed
                rows = [matrix.T if w == "w2" else matrix for matrix in matrices]
                own[f"{layer}.block_sparse_moe.{w}"] = np.concatenate(rows)
    for name, shape, other in (
        ("norm.weight", (DIM,), "model.norm"),
        ("output.weight", (VOCAB, DIM), "lm_head"),
    ):
        own[name] = hub[f"{other}.weight"] = numbers(*shape)
    return own, hub


def bits(tensors):
    return {
        name: ("bfloat16", one.shape, np.ascontiguousarray(one).tobytes())
        for name, one in tensors.items()
    }


def write_params(directory, **more):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps({**PARAMS, **more}))


def save_safetensors(path, tensors):
    write_safetensors(
        path, {n: ("BF16", list(s), data) for n, (_, s, data) in bits(tensors).items()}
    )


def save_torch(path, tensors):
    torch = pytest.importorskip("torch")
    own = {
        name: torch.from_numpy(np.ascontiguousarray(one).view(np.int16)).view(torch.bfloat16)
        for name, one in tensors.items()
    }
    torch.save(own, path)


MOE = {"moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2}, "hidden_dim": INNER}


@pytest.mark.parametrize(
    ("generation", "layout", "params"),
    [("dense", "mistral", {"hidden_dim": INNER}), ("single", "mistral", MOE)],
)
def test_safetensors_of_mistral_there_and_back(generation, layout, params, tmp_path):
    own, hub = release(generation)
    write_params(tmp_path / "in", **params)
    (tmp_path / "in" / "tekken.json").write_text("{}")
    save_safetensors(tmp_path / "in" / "consolidated.safetensors", own)
    ckptforge.convert(tmp_path / "in", tmp_path / "hub", to="hub")
    assert contents(tmp_path / "hub") == bits(hub)
    assert (tmp_path / "hub" / "tekken.json").read_text() == "{}"
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["model_type"] == ("mistral" if generation == "dense" else "mixtral")
    assert config["torch_dtype"] == "bfloat16" and config["intermediate_size"] == INNER
    ckptforge.convert(tmp_path / "hub", tmp_path / "back", to=layout)
    assert contents(tmp_path / "back") == bits(own)
    assert (tmp_path / "back" / "tekken.json").exists()
    (tmp_path / "in" / "params.json").unlink()  # config.json beside them does as well
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    ckptforge.to_ms(tmp_path / "in", tmp_path / "x.ckpt")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt")
    assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "y.ckpt").read_bytes()


def test_the_first_mixtral_in_eight_files(tmp_path):
    own, hub = release("stacked")
    write_params(tmp_path / "in", **MOE)
    names = list(own)
    for i in range(8):
        save_torch(tmp_path / "in" / f"consolidated.0{i}.pt", {n: own[n] for n in names[i::8]})
    ckptforge.convert(tmp_path / "in", tmp_path / "hub", to="hub")
    assert contents(tmp_path / "hub") == bits(hub)
    ckptforge.convert(tmp_path / "hub", tmp_path / "back", to="mistral-v0.1")
    assert contents(tmp_path / "back") == bits(own)
    import torch

    files = sorted((tmp_path / "back").glob("*.pt"))
    loaded = [torch.load(file, weights_only=True) for file in files]
    assert [file.name for file in files] == [f"consolidated.0{i}.pt" for i in range(8)]
    assert sorted(name for one in loaded for name in one) == sorted(own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "x"}, "params.json: dim is 'x', expected a positive integer"),
        ({"norm_eps": [1]}, r"params.json: norm_eps is \[1\], expected a number above 0"),
        ({"rope_theta": -1}, "params.json: rope_theta is -1, expected a number above 0"),
        ({"vocab_size": 1.5}, "params.json: vocab_size is 1.5, expected a positive integer"),
        ({"n_layers": True}, "params.json: n_layers is True, expected a positive integer"),
        (
            {"moe": {"num_experts": 8, "num_experts_per_tok": 9}},
            "num_experts_per_tok is 9, expected at most the 8 experts",
        ),
        ({"moe": {"num_experts": "x"}}, "moe.num_experts is 'x', expected a positive integer"),
    ],
)
def test_values_of_params_json_that_no_model_has_are_refused(tmp_path, changes, message):
    ckptforge.convert(HUB, tmp_path / "in", to="mistral")
    (tmp_path / "in" / "ckptforge.manifest.json").unlink()
    path = tmp_path / "in" / "params.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | changes))
    with pytest.raises(ConfigError, match=message):
        ckptforge.convert(tmp_path / "in", tmp_path / "out", to="hub")
    path.write_text(json.dumps(good | {"yarn": {"factor": 4}, "norm_eps": None}))
    notes = ckptforge.convert(tmp_path / "in", tmp_path / "out", to="hub", dry_run=True).notes
    assert any("has yarn, of which config.json says nothing" in note for note in notes)
    assert any("doesn't say max_position_embeddings and rms_norm_eps" in one for one in notes)


def test_a_table_says_which_layout_comes_in_eight_files(tmp_path):
    table = (Path(__file__).parents[1] / "mappings" / "mixtral.toml").read_text()
    table = table.replace('files = "eight"\n', "").replace(
        "[layout.mistral]\n", '[layout.mistral]\nfiles = "eight"\n'
    )
    (tmp_path / "own.toml").write_text(table)
    for layout, count in (("mistral", 8), ("mistral-v0.1", 1)):
        out = tmp_path / layout
        ckptforge.convert(HUB, out, to=layout, mapping=tmp_path / "own.toml")
        assert len(list(out.glob("consolidated*"))) == count


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("by_rows", [True, False], ids=["llama 3", "llama 2"])
def test_shards_of_meta(shards, by_rows, tmp_path):
    """convert_llama_weights_to_hf.py: what is concatenated along which axis."""
    own, hub = release("dense")
    write_params(tmp_path / "in", multiple_of=8, vocab_size=-1)
    columns = ("wo.weight", "w2.weight") + (() if by_rows else ("tok_embeddings.weight",))
    for i in range(shards):
        part = {
            name: one
            if one.ndim == 1
            else np.split(one, shards, axis=1 if name.endswith(columns) else 0)[i]
            for name, one in own.items()
        }
        part["rope.freqs"] = np.ones(2, ml_dtypes.bfloat16)
        save_torch(tmp_path / "in" / f"consolidated.0{i}.pth", part)
    result = ckptforge.convert(tmp_path / "in", tmp_path / "hub", to="hub")
    assert contents(tmp_path / "hub") == bits(hub)
    assert result.left_out == {"recomputed by the network": ["rope.freqs"]}
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["vocab_size"] == VOCAB
    ckptforge.convert(tmp_path / "hub", tmp_path / "back", to="meta")
    import torch

    loaded = torch.load(tmp_path / "back" / "consolidated.00.pth", weights_only=True)
    assert {n: one.view(torch.int16).numpy().tobytes() for n, one in loaded.items()} == {
        name: np.ascontiguousarray(one).tobytes() for name, one in own.items()
    }


def parts_of_meta(own, shards, by_rows):
    """convert_llama_weights_to_hf.py: what is concatenated along which axis."""
    columns = ("wo.weight", "w2.weight") + (() if by_rows else ("tok_embeddings.weight",))
    return [
        {
            name: one
            if one.ndim == 1
            else np.split(one, shards, axis=1 if name.endswith(columns) else 0)[i]
            for name, one in own.items()
        }
        for i in range(shards)
    ]


@pytest.mark.parametrize(("layout", "by_rows"), [("meta", True), ("meta-llama2", False)])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_release_of_meta_is_written_in_shards(layout, by_rows, shards, tmp_path):
    torch = pytest.importorskip("torch")
    own, hub = release("dense")
    shutil.copytree(dense_hub(tmp_path, own), tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "out", to=layout, shards=shards)
    files = sorted((tmp_path / "out").glob("*.pth"))
    assert [file.name for file in files] == [f"consolidated.0{i}.pth" for i in range(shards)]
    for file, part in zip(files, parts_of_meta(own, shards, by_rows), strict=True):
        found = torch.load(file, weights_only=True)
        assert {n: (tuple(one.shape), raw(one)) for n, one in found.items()} == {
            n: (one.shape, np.ascontiguousarray(one).tobytes()) for n, one in part.items()
        }
    opened = ckptforge.open(tmp_path / "out")
    assert opened.as_layout("hub")["lm_head.weight"][:].tobytes() == hub["lm_head.weight"].tobytes()
    (tmp_path / "out" / "ckptforge.manifest.json").unlink()
    ckptforge.convert(tmp_path / "out", tmp_path / "back", to="hub")
    assert contents(tmp_path / "back") == bits(hub)
    opened.as_layout(layout).save(tmp_path / "same", shards=shards)
    assert [file.read_bytes() for file in files] == [
        (tmp_path / "same" / file.name).read_bytes() for file in files
    ]


def dense_hub(tmp_path, own):
    """A directory of Hugging Face's of a release of Meta's."""
    write_params(tmp_path / "whole", multiple_of=8, vocab_size=-1)
    save_torch(tmp_path / "whole" / "consolidated.00.pth", own)
    return ckptforge.convert(tmp_path / "whole", tmp_path / "of_whole", to="hub").output


def raw(tensor):
    return tensor.view(pytest.importorskip("torch").int16).contiguous().numpy().tobytes()


def test_shards_that_cannot_be_are_refused(tmp_path):
    own, _ = release("dense")
    hub = dense_hub(tmp_path, own)
    with pytest.raises(ConfigError, match=r"shards=8: axis g of '.*wq.weight' is 4, which can't"):
        ckptforge.convert(hub, tmp_path / "out", to="meta", shards=8)
    for to in ("mistral", "hub", "dense", "megatron"):
        with pytest.raises(UsageError, match=f"shards=2 is for releases .* {to} isn't one"):
            ckptforge.convert(hub, tmp_path / "out", to=to, shards=2)
    with pytest.raises(UsageError, match="shards=2 is for releases .* hub isn't one"):
        ckptforge.open(hub).save(tmp_path / "out", shards=2)
    assert not (tmp_path / "out").exists()


def test_shards_whose_cut_no_mapping_knows_are_refused(tmp_path):
    """Else what only the first shard holds would stand for the whole."""
    own, _ = release("dense")
    write_params(tmp_path, multiple_of=8)
    more = {"vision_model.conv1.weight": own["output.weight"]}
    for i, part in enumerate(parts_of_meta(own, 2, True)):
        save_torch(tmp_path / f"consolidated.0{i}.pth", {**part, **more})
    with pytest.raises(FormatError, match="(?s)one of 2 shards of a model, and no .*vision_model"):
        ckptforge.open(tmp_path)
    for i, part in enumerate(parts_of_meta(own, 4, True)[:2]):
        save_torch(tmp_path / f"consolidated.0{i}.pth", part)
    with pytest.raises(LayoutError, match="an axis of .* should be"):  # two of four
        ckptforge.convert(tmp_path, tmp_path / "out", to="hub")


def test_shards_that_are_views_are_put_together(tmp_path):
    torch = pytest.importorskip("torch")
    own, hub = release("dense")
    write_params(tmp_path / "in", multiple_of=8, vocab_size=-1)
    whole = {n: torch.from_numpy(one.view(np.int16)).view(torch.bfloat16) for n, one in own.items()}
    for i in range(2):
        parts = {
            name: one
            if one.ndim == 1
            else one.chunk(2, 1 if name.endswith(("wo.weight", "w2.weight")) else 0)[i]
            for name, one in whole.items()
        }
        torch.save(parts, tmp_path / "in" / f"consolidated.0{i}.pth")
    ckptforge.convert(tmp_path / "in", tmp_path / "hub", to="hub")
    assert contents(tmp_path / "hub") == bits(hub)


def test_shards_of_unequal_parts_are_refused(tmp_path):
    own, _ = release("dense")
    write_params(tmp_path)
    save_torch(tmp_path / "consolidated.00.pth", own)
    save_torch(tmp_path / "consolidated.01.pth", {**own, "output.weight": own["output.weight"][1:]})
    with pytest.raises(FormatError, match=r"01.pth: 'output.weight' is bfloat16 \[39, 32\], but"):
        ckptforge.open(tmp_path)
    save_torch(tmp_path / "consolidated.01.pth", {"output.weight": own["output.weight"]})
    with pytest.raises(FormatError, match="'output.weight' lies in consolidated.00.pth, too"):
        ckptforge.open(tmp_path)


@given(
    st.fixed_dictionaries(
        {
            "hidden_size": st.integers(1, 64).map(lambda n: 8 * n),
            "num_hidden_layers": st.integers(1, 99),
            "num_attention_heads": st.sampled_from([1, 2, 4, 8]),
            "num_key_value_heads": st.sampled_from([1, 2, 4, 8]),
            "intermediate_size": st.integers(1, 4000),
            "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
            "rope_theta": st.sampled_from([1e4, 1e6]),
            "vocab_size": st.integers(1, 99),
        }
    ),
    st.booleans(),
)
@example(
    {
        "hidden_size": 272,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "intermediate_size": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "vocab_size": 1,
    },
    True,
)
def test_params_json_says_what_config_json_says(config, meta):
    params, _ = params_of(config, meta, SWITCHES)
    shapes = {"layers.0.feed_forward.w1.weight": (config["intermediate_size"], 1)}
    back, _ = config_of(params, shapes, BY_NAME["bfloat16"], "params.json", SWITCHES)
    assert {key: back[key] for key in config} == config
    if meta:  # llama/model.py, FeedForward
        inner = int(2 * (4 * config["hidden_size"]) / 3)
        inner = int(params.get("ffn_dim_multiplier", 1) * inner)
        of = params["multiple_of"]
        assert of * ((inner + of - 1) // of) == config["intermediate_size"]


def test_what_params_json_cannot_say_is_said():
    scaled = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5.0}, "hidden_size": 8}
    params, notes = params_of({**scaled, "tie_word_embeddings": True}, meta=False, switches={})
    assert params["rope_theta"] == 5.0 and "yarn" in notes[0] and "tied" in notes[1]
    llama3 = {**SWITCHES["use_scaled_rope"].config["rope_scaling"], "factor": 32.0}
    params, notes = params_of({"rope_scaling": llama3, "hidden_act": "gelu"}, True, SWITCHES)
    assert params["use_scaled_rope"] is True
    assert notes == (
        "params.json can't say factor 32.0 of scaled positions: use_scaled_rope means factor 8.0.",
        "params.json can't say hidden_act 'gelu'; a release computes silu.",
    )
    with pytest.raises(ConfigError, match=r"2 heads of 3: Meta's network takes"):
        params_of(
            {"hidden_size": 8, "num_attention_heads": 2, "head_dim": 3}, meta=True, switches={}
        )


@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 4), st.integers(1, 3))
def test_an_axis_of_which_parts_take_turns(lengths, parts, within):
    """`d/2 2` is numpy's reshape to (2, d/2) and the transpose of that."""
    size = dict(zip("grH", lengths, strict=True)) | {"d": parts * within}
    size |= dict(zip(in_parts("d"), (parts, within), strict=True))
    axes = ["g", "r", *in_parts("d"), "H"]
    turned = parse_pattern(f"q : (g r d/{parts} {parts}) H", "q")
    whole = math.prod(size[axis] for axis in "grdH")
    logical = np.arange(whole).reshape([size[axis] for axis in axes])
    stored = logical.transpose(0, 1, 3, 2, 4).reshape(-1)
    grid = turned.place("q", axes, lambda _, axis: size[axis])
    found = grid.offset + np.asarray(grid.strides) @ np.indices(logical.shape).reshape(5, -1)
    assert (stored[found] == logical.reshape(-1)).all()
    plain = parse_pattern("q : (g r d) H", "q").place("q", axes, lambda _, axis: size[axis])
    at = plain.offset + np.asarray(plain.strides) @ np.indices(logical.shape).reshape(5, -1)
    assert (at == np.arange(whole)).all()
    assert turned.shape(lambda _, axis: size[axis]) == (whole // size["H"], size["H"])
    assert turned.axes_text == f"(g r d/{parts} {parts}) H"


@pytest.mark.parametrize("row", ["(g d/2 3) H", "(g d/2) H", "(g d/0 0) H", "[q: d/2 2 + k: d] H"])
def test_turns_that_are_no_turns_are_refused(row):
    text = TABLES["llama"].text.decode()
    with pytest.raises(TableError, match=r"\[layout.mistral\] wk: "):
        parse_table(text.replace("(g d/2 2) H", row).encode(), "mine.toml")


def test_an_axis_that_cannot_be_cut_into_parts_is_said(tmp_path):
    config = {**TABLES["llama"].example, "head_dim": 5}
    write_model(tmp_path / "hub", TABLES["llama"], config)
    with pytest.raises(LayoutError, match="axis d of wq is 5, which can't be cut into 2 parts"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "out", to="mistral")


def test_edits_of_a_release(tmp_path):
    write_model(tmp_path / "hub", TABLES["mixtral"], TABLES["mixtral"].example)
    opened = ckptforge.open(tmp_path / "hub")
    opened.as_layout("mistral").take(e=[0, 2]).save(tmp_path / "taken")
    opened.take(e=[0, 2]).as_layout("mistral").save(tmp_path / "same")
    assert contents(tmp_path / "taken") == contents(tmp_path / "same")
    moe = json.loads((tmp_path / "taken" / "params.json").read_text())["moe"]
    assert moe == {"num_experts": 2, "num_experts_per_tok": 2}
