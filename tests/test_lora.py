"""LoRA adapters: merged while converting, and between PEFT's directories and MindFormers' names."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.cli.findings import inspection_text
from ckptforge.errors import (
    ConfigError,
    FormatError,
    InputNotFoundError,
    LayoutError,
    PlanError,
    UnmappedTensorsError,
    UsageError,
)
from ckptforge.planning.lower import Assemblies
from ckptforge.publish.journal import fingerprint
from ckptforge.run.spans import Spans, windows
from ckptforge.tables.parsing import load_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import eight_bits, raw_safetensors, transformers_config, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
PREFIX = "base_model.model."
MINDSPORE = [
    (name, layout.name)
    for name, table in TABLES.items()
    for layout in table.layouts.values()
    if layout.family == "mindspore" and "hub" in table.lora.weights
]
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name → a tiny model's directory."""
    root = tmp_path_factory.mktemp("models")
    for name, table in TABLES.items():
        write_model(root / name, table, table.example)
    return {name: root / name for name in TABLES}


def weights_of(name, hub, kinds=None):
    """The matrices of a model that a table says may have an adapter, without experts; `kinds` are
    the ends of their names."""
    shapes = {}
    for adapted in TABLES[name].lora.weights["hub"]:
        if adapted.turned:
            continue
        parts = re.split(r"\{[a-z+]+\}", adapted.weight.template)
        pattern = re.compile(r"\d+".join(map(re.escape, parts)))
        for weight, numbers in hub.items():
            layer = re.search(r"layers\.(\d+)\.", weight)
            if (
                pattern.fullmatch(weight)
                and ".experts." not in weight
                and not (name == "deepseek_v3" and layer and layer[1] == "3")
            ):
                shapes[weight] = numbers.shape
    return {
        weight: shape
        for weight, shape in shapes.items()
        if kinds is None or weight.endswith(tuple(kinds))
    }


def write_adapter(path, shapes, rank=4, alpha=8, seed=0, integers=True, dtype=np.float32, **config):
    """An adapter as PEFT writes it, by hand; returns weight → scale · B·A. Of integers every sum is
    exact."""
    random = np.random.default_rng(seed)
    tensors, products = {}, {}
    for weight, (out, columns) in shapes.items():
        r = rank(weight) if callable(rank) else rank
        if integers:
            a, b = (
                random.integers(-3, 4, (r, columns)).astype(dtype),
                random.integers(-3, 4, (out, r)).astype(dtype),
            )
        else:
            a, b = (
                random.standard_normal((r, columns)).astype(dtype),
                random.standard_normal((out, r)).astype(dtype),
            )
        module = PREFIX + weight.removesuffix(".weight")
        factors = {"lora_A.weight": a, "lora_B.weight": b}
        if "embed" in weight:  # stored as the factors of its transpose
            factors = {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
        for which, factor in factors.items():
            kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[factor.dtype.name]
            tensors[f"{module}.{which}"] = (kind, list(factor.shape), factor.tobytes())
        products[weight] = (b.astype(np.float32) @ a.astype(np.float32)) * np.float32(alpha / r)
    path.mkdir()
    said = {
        "peft_type": "LORA",
        "r": 4 if callable(rank) else rank,
        "lora_alpha": alpha,
        "bias": "none",
    }
    said["target_modules"] = sorted({weight.split(".")[-2] for weight in shapes})
    (path / "adapter_config.json").write_text(json.dumps({**said, **config}))
    write_safetensors(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    return products


def with_products(hub, products, dtype=BF16):
    """What merging must give: summed in float32, rounded once. The copies in MTP layers are those
    of the sums."""
    found = {}
    for name, bits in hub.items():
        numbers = bits.view(BF16).astype(np.float32)
        original = re.sub(
            r".*\.shared_head\.head\.",
            "lm_head.",
            re.sub(r"layers\.\d+\.embed_tokens", "embed_tokens", name),
        )
        found[name] = (
            (numbers + products[original] if original in products else numbers)
            .astype(dtype)
            .view(f"u{np.dtype(dtype).itemsize}")
        )
    return found


def assert_same(path, expected):
    found = raw_safetensors(path)
    assert set(found) == set(expected)
    for name, numbers in expected.items():
        assert np.array_equal(found[name], numbers), name


@pytest.mark.parametrize(("name", "layout"), MINDSPORE)
def test_merging_on_either_side_is_the_sum_rounded_once(tmp_path, models, name, layout):
    hub = raw_safetensors(models[name])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of(name, hub)))
    ckptforge.to_ms(models[name], tmp_path / "x.ckpt", layout=layout, merge_lora=tmp_path / "lora")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "x", layout=layout)
    assert_same(tmp_path / "x", expected)
    ckptforge.to_ms(models[name], tmp_path / "y.ckpt", layout=layout)
    ckptforge.to_torch(
        tmp_path / "y.ckpt", tmp_path / "y", layout=layout, merge_lora=tmp_path / "lora"
    )
    assert_same(tmp_path / "y", expected)


def test_a_sum_with_scaled_weights_is_rounded_once(tmp_path, models):
    shutil.copytree(models["deepseek_v3"], tmp_path / "hub")
    eight_bits(tmp_path / "hub", (16, 24))
    ckptforge.convert(tmp_path / "hub", tmp_path / "wide", to="hub", dtype="fp32")
    wide = {
        name: bits.view(np.float32 if bits.itemsize == 4 else BF16)
        for name, bits in raw_safetensors(tmp_path / "wide").items()
    }
    dense = {
        name: numbers.shape
        for name, numbers in wide.items()
        if re.match(r"model\.layers\.0\..*proj.*weight", name)
    }
    products = write_adapter(tmp_path / "lora", dense)
    assert len(products) > 5
    ckptforge.to_ms(
        tmp_path / "hub",
        tmp_path / "x.ckpt",
        layout="mcore",
        merge_lora=tmp_path / "lora",
        dtype="bf16",
    )
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "x")
    summed = {
        name: numbers + products[name] if name in products else numbers
        for name, numbers in wide.items()
    }
    assert_same(
        tmp_path / "x", {name: numbers.astype(BF16).view("u2") for name, numbers in summed.items()}
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_of_the_hub_take_up_adapters(tmp_path, models, name):
    hub = raw_safetensors(models[name])
    experts = {
        w: numbers.shape for w, numbers in hub.items() if ".experts." in w and "layers.3." not in w
    }
    expected = with_products(hub, write_adapter(tmp_path / "lora", experts))
    layout = "gmm" if name == "mixtral" else "mcore"
    ckptforge.to_ms(models[name], tmp_path / "x.ckpt", layout=layout, merge_lora=tmp_path / "lora")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "x", layout=layout)
    assert_same(tmp_path / "x", expected)
    with pytest.raises(LayoutError, match="has no matrix that can take up"):
        ckptforge.to_torch(
            tmp_path / "x.ckpt", tmp_path / "y", layout=layout, merge_lora=tmp_path / "lora"
        )
    with pytest.raises(LayoutError, match="can't have an adapter"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout=layout, config=models[name])


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "bf16", "fp64"])
def test_the_sum_is_cast_to_any_dtype(tmp_path, models, dtype):
    hub = raw_safetensors(models["llama"])
    products = write_adapter(tmp_path / "lora", weights_of("llama", hub), dtype=np.float16)
    ckptforge.convert(
        models["llama"], tmp_path / "x", to="hub", dtype=dtype, merge_lora=tmp_path / "lora"
    )
    numpy_dtype = {"fp16": np.float16, "fp32": np.float32, "bf16": BF16, "fp64": np.float64}[dtype]
    assert_same(tmp_path / "x", with_products(hub, products, numpy_dtype))


def test_weights_of_float64_are_summed_in_float64(tmp_path, models):
    ckptforge.convert(models["llama"], tmp_path / "wide", to="hub", dtype="fp64")
    hub = raw_safetensors(tmp_path / "wide")
    products = write_adapter(tmp_path / "lora", weights_of("llama", hub))
    ckptforge.convert(tmp_path / "wide", tmp_path / "x", to="hub", merge_lora=tmp_path / "lora")
    sums = {
        name: (bits.view(np.float64) + products.get(name, 0)).view("u8")
        for name, bits in hub.items()
    }
    assert_same(tmp_path / "x", sums)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("llama", "dense"), ("llama", "mcore"), ("mixtral", "gmm-v3"), ("deepseek_v3", "legacy")],
)
def test_the_result_does_not_depend_on_how_the_work_is_cut(tmp_path, models, name, layout):
    shapes = weights_of(name, raw_safetensors(models[name]))
    write_adapter(tmp_path / "lora", shapes, rank=7, integers=False)
    seen = set()
    for workers, memory in ((1, "1MiB"), (2, "2MiB"), (3, "16MB"), (8, "128MB")):
        ckptforge.to_ms(
            models[name],
            tmp_path / "x.ckpt",
            layout=layout,
            merge_lora=tmp_path / "lora",
            workers=workers,
            memory=memory,
            overwrite=True,
        )
        seen.add(hashlib.sha256((tmp_path / "x.ckpt").read_bytes()).hexdigest())
    assert len(seen) == 1


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_matrices_larger_than_a_strip_cut_anyhow(tmp_path_factory, data):
    """Rows and columns that are no multiples of the tiles that products are made in, in strips and
    windows of any size."""
    out, columns, rank = (
        data.draw(st.integers(1, 700)),
        data.draw(st.integers(1, 1500)),
        data.draw(st.integers(1, 9)),
    )
    path = tmp_path_factory.mktemp("m")
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    table = path / "t.toml"
    table.write_text("""
name = "toy"
model_type = ["toy"]
[axes]
O = "o"
I = "i"
[tensors]
w = "O I"
[layout.hub]
family = "huggingface"
w = "w.weight : O I"
[layout.turned]
family = "mindspore"
w = "w : I O"
[lora]
modules = ["w"]
[lora.names]
hub = ["base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"]
""")
    model = path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "toy", "o": out, "i": columns}))
    weight = random.integers(-100, 100, (out, columns)).astype(np.float32)
    write_safetensors(
        model / "model.safetensors",
        {"w.weight": ("F32", [out, columns], weight.tobytes())},
        {"format": "pt"},
    )
    products = write_adapter(path / "lora", {"w.weight": (out, columns)}, rank=rank, alpha=2 * rank)
    options = {
        "mapping": table,
        "merge_lora": path / "lora",
        "memory": "1MiB",
        "workers": data.draw(st.integers(1, 3)),
    }
    for layout, turn in (("hub", False), ("turned", True)):
        ckptforge.convert(
            model,
            path / layout,
            to=layout,
            format=None if layout == "hub" else "safetensors",
            **options,
        )
        (found,) = raw_safetensors(path / layout / ("rank_0" if turn else "")).values()
        assert np.array_equal(
            found.view(np.float32),
            (weight + products["w.weight"]).T if turn else weight + products["w.weight"],
        )


@given(
    st.integers(1, 9),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), max_size=2),
    st.integers(1, 30),
)
def test_windows_are_the_elements_that_were_read(columns, start, outer, length):
    spans = Spans(tuple(outer), length, ())
    expected = [start + offset + i for offset in spans.starts() for i in range(length)]
    found = [None] * len(expected)
    for at, row, count, c0, c1 in windows(start, spans, columns):
        assert 0 <= c0 < c1 <= columns
        for i in range(count * (c1 - c0)):
            assert found[at + i] is None
            found[at + i] = (row + i // (c1 - c0)) * columns + c0 + i % (c1 - c0)
    assert found == expected


@pytest.mark.parametrize(("name", "layout"), MINDSPORE)
def test_an_adapter_in_another_layout_is_the_same_product(tmp_path, models, name, layout):
    hub = raw_safetensors(models[name])
    products = write_adapter(tmp_path / "lora", weights_of(name, hub))
    expected = with_products(hub, products)
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout=layout, config=models[name])
    ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "back", config=models[name])
    there, here = (
        {adapted.weight.tensors for adapted in TABLES[name].lora.weights[side]}
        for side in (layout, "hub")
    )
    fused = any(len(tensors) > 1 for tensors in there - here)
    for adapter in (tmp_path / "l.ckpt", tmp_path / "back"):
        ckptforge.convert(
            models[name], tmp_path / f"m-{adapter.stem}", to="hub", merge_lora=adapter
        )
        assert_same(tmp_path / f"m-{adapter.stem}", expected)
    if not fused:
        before = raw_safetensors(tmp_path / "lora")
        after = raw_safetensors(tmp_path / "back")
        if layout.startswith("dense") or layout.startswith("gmm"):
            assert_same(tmp_path / "back", before)
            assert (tmp_path / "back" / "adapter_config.json").read_bytes() == (
                tmp_path / "lora" / "adapter_config.json"
            ).read_bytes()
        assert set(after) == set(before)


@pytest.mark.parametrize(
    "kinds",
    [["q_proj.weight", "v_proj.weight"], ["k_proj.weight"], ["up_proj.weight", "o_proj.weight"]],
)
def test_weights_of_which_only_some_have_an_adapter(tmp_path, models, kinds):
    """What is fused gets rows of zeros for the others, and smaller adapters ranks of zeros."""
    hub = raw_safetensors(models["llama"])
    shapes = {
        w: s
        for w, s in weights_of("llama", hub, kinds).items()
        if not (w.startswith("model.layers.1") and "v_proj" in w)
    }
    expected = with_products(hub, write_adapter(tmp_path / "lora", shapes))
    result = ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "l.safetensors", layout="mcore", config=models["llama"]
    )
    rank, alpha = result.facts["lora_rank"], result.facts["lora_alpha"]
    assert alpha / rank == 2
    found = raw_safetensors(tmp_path / "l.safetensors")
    assert (
        {f.shape[0] for n, f in found.items() if "lora_A" in n}
        == {f.shape[1] for n, f in found.items() if "lora_B" in n}
        == {rank}
    )
    ckptforge.convert(
        models["llama"], tmp_path / "m", to="hub", merge_lora=tmp_path / "l.safetensors"
    )
    assert_same(tmp_path / "m", expected)


def test_equal_first_factors_share_their_rank(tmp_path, models):
    """An adapter that comes from a fused one has one A three times, and goes back as it was."""
    hub = raw_safetensors(models["llama"])
    write_adapter(
        tmp_path / "lora",
        weights_of("llama", hub, ["q_proj.weight", "k_proj.weight", "v_proj.weight"]),
    )
    ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "a.safetensors", layout="mcore", config=models["llama"]
    )
    ckptforge.to_torch(tmp_path / "a.safetensors", tmp_path / "back", config=models["llama"])
    ckptforge.to_ms(
        tmp_path / "back", tmp_path / "b.safetensors", layout="mcore", config=models["llama"]
    )
    assert_same(tmp_path / "b.safetensors", raw_safetensors(tmp_path / "a.safetensors"))


def test_scales_of_modules(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    shapes = weights_of("llama", hub, ["q_proj.weight", "o_proj.weight"])
    products = write_adapter(
        tmp_path / "lora",
        shapes,
        rank=lambda weight: 8 if "o_proj" in weight else 4,
        rank_pattern={"self_attn.o_proj": 8},
        alpha_pattern={"o_proj": 32, "^model.layers.0.self_attn.q_proj": 16},
    )
    for weight in products:
        products[weight] *= 4 if "o_proj" in weight else 2 if "layers.0" in weight else 1
    ckptforge.convert(models["llama"], tmp_path / "m", to="hub", merge_lora=tmp_path / "lora")
    assert_same(tmp_path / "m", with_products(hub, products))
    with pytest.raises(PlanError, match="different scales"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", model="llama")


def test_rslora_and_ranks_that_differ(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    products = write_adapter(
        tmp_path / "lora", weights_of("llama", hub), rank=16, alpha=8, use_rslora=True
    )
    expected = with_products(hub, {weight: product * 4 for weight, product in products.items()})
    result = ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", model="llama")
    assert (result.facts["lora_rank"], result.facts["lora_alpha"]) == (16, 32)
    for adapter in ("lora", "l.ckpt"):
        ckptforge.convert(
            models["llama"],
            tmp_path / f"m-{Path(adapter).stem}",
            to="hub",
            merge_lora=tmp_path / adapter,
        )
        assert_same(tmp_path / f"m-{Path(adapter).stem}", expected)


def test_a_checkpoint_of_a_lora_job_holds_weights_and_adapter(tmp_path, models):
    """MindFormers saves both together, and nothing there tells lora_alpha."""
    hub = raw_safetensors(models["llama"])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of("llama", hub)))
    ckptforge.to_ms(models["llama"], tmp_path / "w.safetensors", layout="dense")
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.safetensors", layout="dense", model="llama")
    both = {
        **raw_safetensors(tmp_path / "w.safetensors"),
        **raw_safetensors(tmp_path / "l.safetensors"),
    }
    job = tmp_path / "job.safetensors"
    kinds = {2: "BF16", 4: "F32"}
    tensors = {
        name: (kinds[n.dtype.itemsize], list(n.shape), n.tobytes()) for name, n in both.items()
    }
    tensors["adam_m.model.layers.0.attention.wq.mindpet_delta_lora_a"] = tensors[
        "model.layers.0.attention.wq.mindpet_delta_lora_a"
    ]
    write_safetensors(job, tensors, {"format": "ms"})
    config = {"config": models["llama"]}
    with pytest.raises(UnmappedTensorsError, match="merge_lora"):
        ckptforge.to_torch(job, tmp_path / "x", layout="dense", **config)
    ckptforge.to_torch(job, tmp_path / "without", layout="dense", allow_unmapped=True, **config)
    assert_same(tmp_path / "without", hub)
    with pytest.raises(UsageError, match="lora_alpha"):
        ckptforge.to_torch(job, tmp_path / "x", layout="dense", merge_lora=job, **config)
    ckptforge.to_torch(
        job, tmp_path / "merged", layout="dense", merge_lora=job, lora_alpha=8, **config
    )
    assert_same(tmp_path / "merged", expected)
    with pytest.raises(UsageError, match="lora_alpha"):
        ckptforge.to_torch(job, tmp_path / "x", adapter=True, **config)
    result = ckptforge.to_torch(job, tmp_path / "adapter", adapter=True, lora_alpha=8, **config)
    assert (
        len(result.left_out["not of the adapter"]) == len(hub)
        and len(result.left_out["optimizer state and counters"]) == 1
    )
    assert_same(tmp_path / "adapter", raw_safetensors(tmp_path / "lora"))
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["peft_type"]) == (4, 8, "LORA")
    assert set(said["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    }


@pytest.mark.parametrize("layout", ["dense", "mcore"])
def test_merging_into_ranks_and_out_of_ranks(tmp_path, models, layout):
    hub = raw_safetensors(models["llama"])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of("llama", hub)))
    (tmp_path / "p.json").write_text(
        json.dumps({"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2})
    )
    strategy = tmp_path / "strategy"
    ckptforge.strategy(
        strategy, parallel_config=tmp_path / "p.json", like=models["llama"], layout=layout
    )
    to = {"strategy_dir": strategy, "layout": layout}
    ckptforge.to_ms(models["llama"], tmp_path / "plain", **to)
    ckptforge.to_torch(
        tmp_path / "plain",
        tmp_path / "x",
        **to,
        merge_lora=tmp_path / "lora",
        config=models["llama"],
    )
    assert_same(tmp_path / "x", expected)
    ckptforge.to_ms(models["llama"], tmp_path / "merged", **to, merge_lora=tmp_path / "lora")
    ckptforge.to_torch(tmp_path / "merged", tmp_path / "y", **to, config=models["llama"])
    assert_same(tmp_path / "y", expected)


def test_factors_are_part_of_the_memory(tmp_path, models):
    shapes = weights_of("llama", raw_safetensors(models["llama"]), ["q_proj.weight"])
    expected = with_products(
        raw_safetensors(models["llama"]),
        write_adapter(tmp_path / "lora", shapes, rank=500, alpha=500),
    )
    call = {"to": "hub", "merge_lora": tmp_path / "lora", "workers": 4}
    with pytest.raises(
        UsageError, match="memory of 2097152 bytes is too little: the scales and factors"
    ):
        ckptforge.convert(models["llama"], tmp_path / "x", **call, memory="2MiB")
    ckptforge.convert(models["llama"], tmp_path / "x", **call, memory="8MiB")
    assert_same(tmp_path / "x", expected)


def test_the_recorded_layout_of_an_adapter_counts_not_that_of_the_base(tmp_path, models):
    """Two orders of rows under one name."""
    hub = raw_safetensors(models["llama"])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of("llama", hub)))
    ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "l.ckpt", layout="dense-qkv-r1.3", config=models["llama"]
    )
    ckptforge.to_ms(models["llama"], tmp_path / "b.ckpt", layout="dense-qkv-r1.4")
    ckptforge.to_torch(
        tmp_path / "b.ckpt", tmp_path / "x", layout="dense-qkv-r1.4", merge_lora=tmp_path / "l.ckpt"
    )
    assert_same(tmp_path / "x", expected)
    for path in ("l.ckpt.manifest.json", "b.ckpt.manifest.json"):
        (tmp_path / path).unlink()
    with pytest.raises(LayoutError, match="Convert it first, with `ckptforge.to_torch"):
        ckptforge.to_ms(
            models["llama"], tmp_path / "y.ckpt", merge_lora=tmp_path / "l.ckpt", lora_alpha=24
        )


def test_adapters_of_related_layouts_fit(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of("llama", hub)))
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="dense", model="llama")
    ckptforge.to_ms(models["llama"], tmp_path / "b.ckpt", layout="dense-qkv-r1.4")
    ckptforge.to_torch(tmp_path / "b.ckpt", tmp_path / "x", merge_lora=tmp_path / "l.ckpt")
    assert_same(tmp_path / "x", expected)


def test_a_fused_adapter_of_another_model_is_refused(tmp_path, models):
    config = {**TABLES["llama"].example, "num_key_value_heads": 4}
    write_model(tmp_path / "other", TABLES["llama"], config)
    write_adapter(
        tmp_path / "lora",
        weights_of(
            "llama",
            raw_safetensors(tmp_path / "other"),
            ["q_proj.weight", "k_proj.weight", "v_proj.weight"],
        ),
    )
    ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "l.ckpt", layout="mcore", config=tmp_path / "other"
    )
    with pytest.raises(LayoutError, match="is it an adapter of this model"):
        ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "l.ckpt")


def test_rows_without_an_adapter_keep_their_zeros_signs(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    path = tmp_path / "hub" / "model.safetensors"
    tensors = {
        n: ("BF16", list(w.shape), bytes(w.nbytes) if "norm" in n else b"\0\x80" * w.size)
        for n, w in raw_safetensors(path).items()
    }
    write_safetensors(path, tensors, {"format": "pt"})
    hub = raw_safetensors(path)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "b.ckpt", layout="mcore")
    products = write_adapter(tmp_path / "lora", weights_of("llama", hub, ["k_proj.weight"]))
    ckptforge.to_torch(tmp_path / "b.ckpt", tmp_path / "x", merge_lora=tmp_path / "lora")
    found = raw_safetensors(tmp_path / "x")
    assert all(np.array_equal(found[name], hub[name]) for name in hub if name not in products)


def test_alpha_that_is_no_number(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="dense", model="llama")
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="expected a number"):
            ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "x", lora_alpha=alpha)


def test_a_given_alpha_overrides_what_the_adapter_says(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    products = write_adapter(tmp_path / "lora", weights_of("llama", hub))
    expected = with_products(hub, {weight: product * 2 for weight, product in products.items()})
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="dense", model="llama")
    for adapter in ("lora", "l.ckpt"):
        result = ckptforge.convert(
            models["llama"],
            tmp_path / f"x-{Path(adapter).stem}",
            to="hub",
            merge_lora=tmp_path / adapter,
            lora_alpha=16,
        )
        assert_same(tmp_path / f"x-{Path(adapter).stem}", expected)
        assert any("lora_alpha=16 overrides the lora_alpha 8 of" in note for note in result.notes)
    assert not any(
        "lora_alpha=" in n
        for n in ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "same", lora_alpha=8).notes
    )
    ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "back", lora_alpha=16)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["lora_alpha"] == 16
    result = ckptforge.to_ms(
        tmp_path / "lora", tmp_path / "m.ckpt", layout="dense", model="llama", lora_alpha=16
    )
    assert result.facts["lora_alpha"] == 16
    ckptforge.convert(models["llama"], tmp_path / "y", to="hub", merge_lora=tmp_path / "m.ckpt")
    assert_same(tmp_path / "y", expected)


def test_an_alpha_of_zero_does_nothing_and_says_so(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", weights_of("llama", hub), alpha=0)
    for options in ({}, {"lora_alpha": 0}):
        result = ckptforge.convert(
            models["llama"],
            tmp_path / f"x{len(options)}",
            to="hub",
            merge_lora=tmp_path / "lora",
            **options,
        )
        assert_same(tmp_path / f"x{len(options)}", hub)
        assert any(
            "lora_alpha is 0, so that the adapter does nothing" in note for note in result.notes
        )
        assert any("merged into 0 weights" in note for note in result.notes)
    assert "does nothing" in inspection_text(ckptforge.inspect(tmp_path / "lora"), False)
    result = ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="dense", model="llama")
    assert result.facts["lora_alpha"] == 0 and any("does nothing" in note for note in result.notes)


def test_steps_of_a_job_belong_together(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    kinds = {2: "BF16", 4: "F32"}
    ckptforge.to_ms(models["llama"], tmp_path / "w.safetensors", layout="dense")
    (tmp_path / "job").mkdir()
    expected = {}
    for step in (100, 200):
        expected[step] = with_products(
            hub, write_adapter(tmp_path / f"lora{step}", weights_of("llama", hub), seed=step)
        )
        ckptforge.to_ms(
            tmp_path / f"lora{step}",
            tmp_path / "l.safetensors",
            layout="dense",
            model="llama",
            overwrite=True,
        )
        both = {
            **raw_safetensors(tmp_path / "w.safetensors"),
            **raw_safetensors(tmp_path / "l.safetensors"),
        }
        tensors = {
            name: (kinds[n.dtype.itemsize], list(n.shape), n.tobytes()) for name, n in both.items()
        }
        write_safetensors(
            tmp_path / "job" / f"llama-1_{step}.safetensors", tensors, {"format": "ms"}
        )
    options = {
        "layout": "dense",
        "merge_lora": tmp_path / "job",
        "lora_alpha": 8,
        "config": models["llama"],
    }
    ckptforge.to_torch(tmp_path / "job", tmp_path / "x", step=100, **options)
    assert_same(tmp_path / "x", expected[100])
    result = ckptforge.to_torch(tmp_path / "job", tmp_path / "y", **options)
    assert_same(tmp_path / "y", expected[200])
    assert any("200" in note for note in result.notes)


def test_a_model_beside_its_adapter(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    expected = with_products(hub, write_adapter(tmp_path / "lora", weights_of("llama", hub)))
    for path in models["llama"].iterdir():
        (tmp_path / "lora" / path.name).write_bytes(path.read_bytes())
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "model.ckpt")
    ckptforge.to_torch(tmp_path / "model.ckpt", tmp_path / "x")
    assert_same(tmp_path / "x", hub)
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "merged.ckpt", merge_lora=tmp_path / "lora")
    ckptforge.to_torch(tmp_path / "merged.ckpt", tmp_path / "y")
    assert_same(tmp_path / "y", expected)
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "adapter.ckpt", adapter=True, model="llama")
    assert ckptforge.inspect(tmp_path / "adapter.ckpt").layout == "dense"
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "again.ckpt")


def test_links_and_what_is_no_file(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "lora").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "links")
    (tmp_path / "links" / "adapter_config.json").unlink()
    (tmp_path / "links" / "adapter_config.json").symlink_to("nowhere")
    with pytest.raises(InputNotFoundError, match="adapter_config.json"):
        ckptforge.convert(models["llama"], tmp_path / "y", to="hub", merge_lora=tmp_path / "links")


def test_compare_tells_adapters_of_other_scales(tmp_path, models):
    shapes = weights_of("llama", raw_safetensors(models["llama"]))
    write_adapter(tmp_path / "a", shapes)
    write_adapter(tmp_path / "b", shapes, alpha=16)
    write_adapter(tmp_path / "c", shapes)
    assert ckptforge.compare(tmp_path / "a", tmp_path / "c").equal
    found = ckptforge.compare(tmp_path / "a", tmp_path / "b")
    assert not found.equal and found.constants == {"lora_alpha": (8, 16)}


def test_layouts_of_the_wrong_side(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", model="llama")
    with pytest.raises(UsageError, match="is a layout of huggingface"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "x", layout="hub", model="llama")
    with pytest.raises(UsageError, match="is a layout of mindspore"):
        ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "x", hf_layout="dense")
    with pytest.raises(UsageError, match="'nonsense' is unknown"):
        ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "x", layout="nonsense")
    with pytest.raises(LayoutError, match="isn't of layout mcore"):
        ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "x", layout="mcore")


def test_optimizer_state_does_not_stay_with_sums(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    ckptforge.to_ms(models["llama"], tmp_path / "w.safetensors", layout="dense")
    weights = raw_safetensors(tmp_path / "w.safetensors")
    tensors = {
        p + n: ("BF16", list(w.shape), w.tobytes())
        for n, w in weights.items()
        for p in ("", "adam_m.")
    }
    write_safetensors(tmp_path / "trained.safetensors", tensors, {"format": "ms"})
    result = ckptforge.convert(
        tmp_path / "trained.safetensors",
        tmp_path / "x.ckpt",
        to="mcore",
        from_="dense",
        merge_lora=tmp_path / "lora",
        config=models["llama"],
    )
    assert len(result.left_out["optimizer state and counters"]) == len(weights)


def test_a_run_that_merges_is_resumed_only_with_the_same_adapter(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    write_adapter(tmp_path / "lora", weights_of("llama", hub))
    call = {"merge_lora": tmp_path / "lora", "dtype": "fp32"}
    ckptforge.to_ms(models["llama"], tmp_path / "whole.ckpt", **call)

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    for change in (None, "alpha", "factor"):
        with pytest.raises(KeyboardInterrupt):
            ckptforge.to_ms(
                models["llama"],
                tmp_path / "x.ckpt",
                **call,
                progress=stop,
                overwrite=True,
                workers=1,
            )
        changed = dict(call)
        if change == "alpha":
            config = tmp_path / "lora" / "adapter_config.json"
            config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
        elif change == "factor":
            weights = tmp_path / "lora" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        if change is None:
            ckptforge.to_ms(models["llama"], tmp_path / "x.ckpt", **changed, resume=True)
            assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()
            (tmp_path / "x.ckpt").unlink()
            (tmp_path / "x.ckpt.manifest.json").unlink()
        else:
            with pytest.raises(ckptforge.CkptforgeError, match="can't be resumed"):
                ckptforge.to_ms(models["llama"], tmp_path / "x.ckpt", **changed, resume=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "only LORA is understood"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, None),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        (
            {"modules_to_save": ["lm_head"]},
            "names 'lm_head' in modules_to_save, but "
            "adapter_model.safetensors holds no weight of it",
        ),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head', expected a list"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"what_comes_next": True}, "'what_comes_next' is True"),
        # found by fuzzing
        ({"x" * 5000: True}, r"adapter_config.json: 'x{50,99}\.\.\.x{50,99}' is True"),
        (
            {
                "what_comes_next": False,
                "peft_version": "0.21",
                "qalora_group_size": 16,
                "layers_pattern": "h",
            },
            None,
        ),
        ({"lora_alpha": 10**400}, "lora_alpha is"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
        ({"lora_alpha": 0}, None),
        ({"lora_alpha": 1e400}, "lora_alpha is inf|isn't valid JSON"),
        ({"r": 5}, "has rank 4, but .* says 5"),
        ({"r": "many"}, "r is 'many'"),
        ({"rank_pattern": []}, None),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+b": 3}}, None),
    ],
)
def test_adapters_that_are_not_plain_are_refused(tmp_path, models, config, message):
    write_adapter(
        tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])), **config
    )
    merge = {"to": "hub", "merge_lora": tmp_path / "lora"}
    if message is None:
        ckptforge.convert(models["llama"], tmp_path / "x", **merge)
        return
    with pytest.raises(FormatError, match=message):
        ckptforge.convert(models["llama"], tmp_path / "x", **merge)
    assert not (tmp_path / "x").exists()


def test_adapters_that_do_not_fit_are_refused(tmp_path, models):
    hub = raw_safetensors(models["llama"])
    shapes = weights_of("llama", hub)

    def refused(error, message, path, **options):
        with pytest.raises(error, match=message):
            ckptforge.convert(models["llama"], tmp_path / "x", to="hub", merge_lora=path, **options)

    write_adapter(
        tmp_path / "wide", {w: (out, columns + 8) for w, (out, columns) in shapes.items()}
    )
    refused(LayoutError, "has 64 columns|has 128 columns", tmp_path / "wide")
    write_adapter(
        tmp_path / "tall", {w: (out + 8, columns) for w, (out, columns) in shapes.items()}
    )
    refused(LayoutError, "is it an adapter of this model", tmp_path / "tall")
    write_adapter(tmp_path / "low", {w: (out - 8, columns) for w, (out, columns) in shapes.items()})
    refused(LayoutError, "is it an adapter of this model", tmp_path / "low")
    write_adapter(
        tmp_path / "deep", {w.replace("layers.1", "layers.7"): shape for w, shape in shapes.items()}
    )
    refused(LayoutError, "whose number is 7, but the model has only 2", tmp_path / "deep")
    write_adapter(tmp_path / "head", {**shapes, "score.weight": (256, 64)})
    refused(UnmappedTensorsError, "score", tmp_path / "head")
    refused(LayoutError, "holds no factors of an adapter", models["llama"])
    refused(InputNotFoundError, "No such file", tmp_path / "none")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(InputNotFoundError, r"no adapter_model\.safetensors", tmp_path / "bin")
    (tmp_path / "bin" / "adapter_model.bin").write_bytes(b"x")
    refused(FormatError, "adapter_model.bin", tmp_path / "bin")
    for name, tensors in {
        "half": {"lora_A": ("F32", [4, 64])},
        "ranks": {"lora_A": ("F32", [4, 64]), "lora_B": ("F32", [64, 5])},
        "flat": {"lora_A": ("F32", [256]), "lora_B": ("F32", [64, 4])},
        "whole": {"lora_A": ("I32", [4, 64]), "lora_B": ("I32", [64, 4])},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        module = PREFIX + "model.layers.0.self_attn.q_proj"
        data = {
            f"{module}.{k}.weight": (dtype, shape, bytes(4 * int(np.prod(shape))))
            for k, (dtype, shape) in tensors.items()
        }
        write_safetensors(tmp_path / name / "adapter_model.safetensors", data)
        refused(FormatError, "without the other factor|expected", tmp_path / name)
    write_adapter(tmp_path / "lora", shapes)
    with pytest.raises(UsageError, match="is an adapter itself"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "x.ckpt", merge_lora=tmp_path / "lora")
    with pytest.raises(UsageError, match="applies only to an adapter"):
        ckptforge.to_ms(models["llama"], tmp_path / "x.ckpt", lora_alpha=3)
    with pytest.raises(UsageError, match="use `ckptforge.to_ms`"):
        ckptforge.to_torch(tmp_path / "lora", tmp_path / "x")
    with pytest.raises(ConfigError, match="config"):
        ckptforge.to_ms(tmp_path / "lora", tmp_path / "x.ckpt", layout="mcore")
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.ckpt").exists()


def test_inspect_tells_an_adapter(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    text = inspection_text(ckptforge.inspect(tmp_path / "lora"), False)
    assert "a LoRA adapter of 15 weights, rank 4, scale 2." in text and re.search(
        "llama or .*qwen2 or .*qwen3", text
    )
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="mcore", config=models["llama"])
    assert ckptforge.inspect(tmp_path / "l.ckpt").layout == "mcore"
    (tmp_path / "l.ckpt.manifest.json").unlink()
    assert "its lora_alpha isn't recorded" in inspection_text(
        ckptforge.inspect(tmp_path / "l.ckpt"), False
    )


def tables_with(lora):
    text = (Path(__file__).parents[1] / "mappings" / "llama.toml").read_text()
    begin, end = text.index("[lora]"), text.index("[ignored]")
    return text[:begin] + lora + text[end:]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            '[lora]\nmodules = ["w9"]\n[lora.names]\nhub = ["{}.lora_a", "{}.lora_b"]\n',
            "'w9' isn't in",
        ),
        (
            '[lora]\nmodules = ["norm"]\n[lora.names]\nhub = ["{}.lora_a", "{}.lora_b"]\n',
            "isn't a matrix",
        ),
        ('[lora]\nmodules = ["wq"]\n[lora.names]\nhub = ["{}.lora_a"]\n', "names"),
        ('[lora]\nmodules = ["wq"]\n[lora.names]\nhub = ["lora_a", "{}.lora_b"]\n', "must hold"),
        ('[lora]\nmodules = ["wq"]\n[lora.names]\nhub = ["{}.lora_a", "{}.lora_a"]\n', "one name"),
        ('[lora]\nmodules = ["wq"]\n[lora.names]\nhub = ["{}.a", "{}.b"]\n', "must hold lora_"),
        (
            '[lora]\nmodules = ["wq"]\n[lora.names]\nnone = ["{}.lora_a", "{}.lora_b"]\n',
            "no layout of that name",
        ),
        (
            '[lora]\nmodules = ["wq"]\n[lora.names]\ndense = ["{}.lora_a", "{}.lora_b"]\n',
            "no layout of Hugging Face",
        ),
    ],
)
def test_bad_lora_sections(tmp_path, lora, message):
    (tmp_path / "t.toml").write_text(tables_with(lora))
    with pytest.raises(ckptforge.errors.TableError, match=message):
        load_table(tmp_path / "t.toml")


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_against_peft_itself(tmp_path, kind):
    """What peft saves is read, what peft merges is the same up to its own roundings, and what we
    write peft loads."""
    torch, peft, transformers = (
        pytest.importorskip(name) for name in ("torch", "peft", "transformers")
    )
    config = dict(TABLES[kind].example, torch_dtype="float32", dtype="float32")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers_config(**config)).eval()
    model.save_pretrained(tmp_path / "hub")
    targets = ["q_proj", "v_proj", "o_proj"] + ["gate_proj", "down_proj"] * (kind == "llama")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "lora")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        logits = wrapped(tokens).logits

    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout="mcore", config=tmp_path / "hub")
    ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "back", config=tmp_path / "hub")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hub", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        assert not torch.allclose(base(tokens).logits, logits, atol=1e-3)
        assert torch.allclose(
            peft.PeftModel.from_pretrained(base, tmp_path / "back")(tokens).logits,
            logits,
            atol=1e-5,
        )

    for adapter in ("lora", "l.ckpt"):
        ckptforge.to_ms(
            tmp_path / "hub",
            tmp_path / "x.ckpt",
            layout="mcore",
            merge_lora=tmp_path / adapter,
            overwrite=True,
        )
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "merged", overwrite=True)
        merged = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "merged", dtype=torch.float32
        ).eval()
        with torch.no_grad():
            assert torch.allclose(merged(tokens).logits, logits, atol=1e-5)
    theirs = wrapped.merge_and_unload()
    for (name, ours), (_, other) in zip(
        merged.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert torch.allclose(ours, other, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("layout", ["dense", "gmm"])
def test_files_of_peft_come_back_as_they_were(tmp_path, layout):
    pytest.importorskip("torch")
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    config = transformers_config(**TABLES["mixtral"].example)
    model = transformers.AutoModelForCausalLM.from_config(config)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    )
    wrapped.save_pretrained(tmp_path / "lora")
    ckptforge.to_ms(tmp_path / "lora", tmp_path / "l.ckpt", layout=layout, model="mixtral")
    ckptforge.to_torch(tmp_path / "l.ckpt", tmp_path / "back", no_card=True)
    for path in (tmp_path / "lora").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_resume_tells_factors_from_their_transposes(tmp_path, models):
    write_adapter(tmp_path / "lora", weights_of("llama", raw_safetensors(models["llama"])))
    plan = ckptforge.plan(
        "convert", models["llama"], tmp_path / "x", to="hub", merge_lora=tmp_path / "lora"
    )

    def turned(step):
        return replace(step, products=tuple(replace(one, turned=True) for one in step.products))

    def changed(fragment):
        return replace(fragment, steps=tuple(map(turned, fragment.steps)))

    made = plan.assemblies
    other = Assemblies({name: one.map(changed) for name, one in made.values.items()}, made.files)
    assert (
        fingerprint(plan)
        == fingerprint(replace(plan))
        != fingerprint(replace(plan, assemblies=other))
    )
