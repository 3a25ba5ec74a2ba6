"""Tensors that keep their dtype under a cast (`keep_dtype` in tables), and optimizer state whose
weight isn't written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ckptforge
from ckptforge.errors import TableError
from ckptforge.tables.parsing import load_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import MINDSPORE, contents, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
TABLE = TABLES["deepseek_v3"]
BF16 = np.dtype(ml_dtypes.bfloat16)
# What MindFormers' networks and transformers call it.
BIAS = re.compile(r".*(e_score_correction_bias|expert_bias|topk_bias)")
LAYOUTS = [layout.name for layout in TABLE.layouts.values() if layout.family != "megatron"]
STORED = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "hub"
    write_model(path, TABLE, TABLE.example, dtype="float32")
    return path


def rounded(data: bytes) -> bytes:
    return np.frombuffer(data, np.float32).astype(BF16).tobytes()


def biases(tensors):
    return {name: tensor for name, tensor in tensors.items() if BIAS.fullmatch(name)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_router_bias_stays_float32_in_every_layout(tmp_path, hub, layout):
    before = contents(hub)
    to_hub = TABLE.layouts[layout].family == "huggingface"
    out = tmp_path / ("x" if to_hub else "x.ckpt")
    result = ckptforge.convert(hub, out, to=layout, dtype="bf16")
    found = contents(out)
    assert sorted(data for _, _, data in biases(found).values()) == sorted(
        data for _, _, data in biases(before).values()
    )
    assert len(biases(found)) == 3 and {kind for kind, _, _ in biases(found).values()} == {
        "float32"
    }
    assert {kind for name, (kind, _, _) in found.items() if name not in biases(found)} == {
        "bfloat16"
    }
    (note,) = [
        note for note in result.notes if "dtype='bfloat16' left 3 tensors in float32" in note
    ]
    assert next(iter(biases(found))) in note
    assert ckptforge.compare(hub, out, after_cast="bf16", layout_b=layout).equal
    ckptforge.convert(out, tmp_path / "back", to="hub", from_=layout, dtype="bf16")
    whole = {
        n: t if BIAS.fullmatch(n) else ("bfloat16", t[1], rounded(t[2])) for n, t in before.items()
    }
    assert contents(tmp_path / "back") == whole
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_what_is_stored_in_bfloat16_is_only_widened(tmp_path):
    write_model(tmp_path / "hub", TABLE, TABLE.example)
    result = ckptforge.to_ms(tmp_path / "hub", tmp_path / "w.ckpt", layout="mcore", dtype="fp32")
    assert {kind for kind, _, _ in contents(tmp_path / "w.ckpt").values()} == {"float32"}
    result = ckptforge.to_ms(
        tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore", dtype="fp16", allow_overflow=True
    )
    assert {kind for kind, _, _ in biases(contents(tmp_path / "x.ckpt")).values()} == {"bfloat16"}
    assert any("left 3 tensors in bfloat16" in note for note in result.notes)
    result = ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", layout="mcore", dtype="bf16")
    assert not any("--dtype" in note for note in result.notes)


@pytest.mark.parametrize("layout", ["mcore", "pynative", "legacy"])
def test_merge_split_and_reshard_leave_it_too(tmp_path, hub, layout):
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout=layout)
    before = biases(contents(tmp_path / "x.ckpt"))
    for name, parallel in (("a", 2), ("b", 4)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"model_parallel": parallel, "expert_parallel": 2, "data_parallel": 2})
        )
        ckptforge.strategy(
            tmp_path / f"s{name}",
            parallel_config=tmp_path / f"{name}.json",
            like=hub,
            layout=layout,
        )
    ckptforge.split(tmp_path / "x.ckpt", tmp_path / "whole", strategy_dir=tmp_path / "sa")
    for number, (verb, source, options) in enumerate(
        [
            (ckptforge.split, tmp_path / "x.ckpt", {"strategy_dir": tmp_path / "sa"}),
            (
                ckptforge.reshard,
                tmp_path / "whole",
                {"src_strategy_dir": tmp_path / "sa", "dst_strategy_dir": tmp_path / "sb"},
            ),
            (ckptforge.merge, tmp_path / "whole", {"strategy_dir": tmp_path / "sa"}),
        ]
    ):
        result = verb(source, tmp_path / f"o{number}", dtype="bf16", **options)
        assert any("dtype='bfloat16' left 3 tensors in float32" in note for note in result.notes)
        kinds = {}
        for file in sorted((tmp_path / f"o{number}").rglob("*.ckpt")):
            for name, (kind, _, data) in contents(file).items():
                kinds.setdefault(bool(BIAS.fullmatch(name)), set()).add(kind)
                assert not BIAS.fullmatch(name) or (kind, data) == (
                    before[name][0],
                    before[name][2],
                )
        assert kinds == {True: {"float32"}, False: {"bfloat16"}}
    assert ckptforge.compare(
        tmp_path / "x.ckpt", next((tmp_path / "o2").rglob("*.ckpt")), after_cast="bf16"
    ).equal


def test_a_comparison_by_name_treats_it_alike(tmp_path):
    """Names of no model that a table has."""
    values = np.linspace(6.8, 7.06, 8, dtype=np.float32)
    tensors = {
        "model.layers.1.mlp.gate.e_score_correction_bias": values,
        "other.weight": values,
        "more.weight": values,
    }
    for file, bias in (("a", np.float32), ("b", np.float32), ("c", BF16)):
        kinds = {
            name: bias if "bias" in name else np.float32 if file == "a" else BF16
            for name in tensors
        }
        stored = {
            n: (STORED[np.dtype(kinds[n]).name], [8], v.astype(kinds[n]).tobytes())
            for n, v in tensors.items()
        }
        write_safetensors(tmp_path / f"{file}.safetensors", stored)
    assert ckptforge.compare(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", after_cast="bf16"
    ).equal
    found = ckptforge.compare(
        tmp_path / "a.safetensors", tmp_path / "c.safetensors", after_cast="bf16"
    )
    assert [difference.name for difference in found.differences] == [
        "model.layers.1.mlp.gate.e_score_correction_bias"
    ]


def test_a_users_table_says_what_keeps_its_dtype(tmp_path):
    text = (Path(__file__).parents[1] / "mappings" / "llama.toml").read_text()
    table = tmp_path / "t.toml"
    table.write_text(text.replace("[axes]", 'keep_dtype = ["norm", "ffn_norm"]\n[axes]', 1))
    write_model(tmp_path / "hub", load_table(table), TABLES["llama"].example, dtype="float32")
    ckptforge.to_ms(
        tmp_path / "hub", tmp_path / "x.ckpt", layout="dense", dtype="fp16", mapping=table
    )
    kinds = {
        name for name, (kind, _, _) in contents(tmp_path / "x.ckpt").items() if kind == "float32"
    }
    assert kinds == {
        "model.norm_out.weight",
        "model.layers.0.ffn_norm.weight",
        "model.layers.1.ffn_norm.weight",
    }
    table.write_text(text.replace("[axes]", 'keep_dtype = ["wq"]\n[axes]', 1))
    with pytest.raises(TableError, match=r"keep_dtype: layout .* stores wq, wk, wv in one"):
        load_table(table)
    table.write_text(text.replace("[axes]", 'keep_dtype = ["w9"]\n[axes]', 1))
    with pytest.raises(TableError, match=r"keep_dtype: 'w9' isn't in \[tensors\]"):
        load_table(table)


def trained(tmp_path):
    """MindSpore's full checkpoint with optimizer state of weights that aren't in it, or that no
    table knows."""
    tensors = {
        n: (STORED[kind], list(shape), data)
        for n, (kind, shape, data) in contents(MINDSPORE / "full.ckpt").items()
    }
    extra = ("F32", [4], bytes(16))
    more = {
        "model.extra": extra,
        "adam_m.model.extra": extra,
        "adam_m.model.gone.weight": extra,
        "adam_v.model.gone.weight": extra,
    }
    write_safetensors(tmp_path / "t.safetensors", {**tensors, **more}, {"format": "ms"})
    return tmp_path / "t.safetensors", set(tensors), set(more)


def test_optimizer_state_without_its_weight_is_left_out_and_named(tmp_path):
    source, known, _ = trained(tmp_path)
    result = ckptforge.convert(
        source, tmp_path / "x.safetensors", to="dense", model="mixtral", allow_unmapped=True
    )
    assert result.left_out == {
        "not known to the mapping": ["model.extra"],
        "optimizer state of tensors that are left out": ["adam_m.model.extra"],
        "optimizer state of weights that aren't there": [
            "adam_m.model.gone.weight",
            "adam_v.model.gone.weight",
        ],
    }
    assert set(contents(tmp_path / "x.safetensors")) == known


def test_without_a_table_all_state_is_kept(tmp_path):
    source, known, more = trained(tmp_path)
    ckptforge.split(source, tmp_path / "ranks", strategy_dir=MINDSPORE / "strategies" / "dp2mp2")
    assert set(contents(tmp_path / "ranks" / "rank_0" / "checkpoint_0.ckpt")) == known | more
