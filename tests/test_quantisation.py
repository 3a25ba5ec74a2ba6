"""Quantised weights: read as what they stand for, or refused with the name of the method; never
written as if they were the weights."""

import json
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import FormatError, QuantisedError, UnmappedTensorsError, UsageError
from tests.helpers import contents, write_safetensors
from tests.test_models import TABLES, write_model

BF16 = ml_dtypes.bfloat16
SCALES = {  # safetensors' name → numpy's, and its bytes from float32 powers of two or any
    "F32": np.float32,
    "F64": np.float64,
    "BF16": BF16,
    "F16": np.float16,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
CODES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "I8": np.int8}


def spread(grid: np.ndarray, shape: tuple[int, ...], block: tuple[int, ...]) -> np.ndarray:
    """A number for each element, by the definition."""
    index = np.indices(shape)
    return grid[tuple(i // b for i, b in zip(index, block, strict=True))]


def quantise(
    directory, change, method: dict[str, Any] | None, pattern=r"(proj|_proj_with_mqa)\.weight$"
):
    """Replaces the matrices of a model by what `change` (name, shape) gives: tensors to be stored
    and the float32 or float64 values meant; returns the bfloat16 bytes meant by name."""
    config = json.loads((directory / "config.json").read_text())
    stored, meant = {}, {}
    for name, (dtype, shape, data) in contents(directory).items():
        if re.search(pattern, name) and "eh_proj" not in name:
            more, values = change(name, shape)
            stored |= more
            meant[name] = ("bfloat16", shape, values.astype(BF16).tobytes())
        else:
            stored[name], meant[name] = ("BF16", list(shape), data), (dtype, shape, data)
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    config.pop("quantization_config", None)
    if method is not None:
        config["quantization_config"] = method
    (directory / "config.json").write_text(json.dumps(config))
    return meant


def codes_of(rng, kind: str, shape) -> np.ndarray:
    codes = rng.integers(0, 256, shape, np.uint8).view(CODES[kind])
    if kind != "I8":
        codes[~np.isfinite(codes.astype(np.float32))] = 0
    return codes


def scales_of(rng, kind: str, shape) -> np.ndarray:
    if kind == "F8_E8M0":
        return rng.integers(118, 125, shape, np.uint8).view(SCALES[kind])
    # few bits, so that products are exact in the reference, which rounds them twice
    if kind == "F64":
        return rng.integers(1, 64, shape) / 2.0**16
    return rng.uniform(1e-3, 3e-3, shape).astype(SCALES[kind])


@st.composite
def schemes(draw):
    """(what config.json says, the block of a shape, the stored shape of its scales, the ending of
    their name, dtypes)."""
    kind = draw(st.sampled_from(["scalar", "one", "row", "row1", "column", "block", "group"]))
    codes = draw(st.sampled_from(["F8_E4M3", "F8_E5M2", "I8"]))
    scale = draw(st.sampled_from(list(SCALES)))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    group = draw(st.sampled_from([1, 2, 4, 8]))
    return kind, codes, scale, size, group, draw(st.integers(0, 1 << 30)), draw(st.booleans())


def the_block(kind, shape, size, group):
    rows, columns = shape
    blocks = {
        "row": (1, columns),
        "row1": (1, columns),
        "column": (rows, 1),
        "block": size,
        "group": (1, group),
    }
    return blocks.get(kind, (rows, columns))


def the_method(kind, codes, size, group):
    if codes == "I8" or kind == "group":
        weights = {
            "num_bits": 8,
            "strategy": kind,
            **({"group_size": group} if kind == "group" else {}),
        }
        if kind == "block":
            weights["block_structure"] = list(size)
        return {
            "quant_method": "compressed-tensors",
            "format": "naive-quantized",
            "config_groups": {"group_0": {"weights": weights}},
        }
    return {"quant_method": "fp8", "weight_block_size": list(size) if kind == "block" else None}


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate))
@given(schemes(), st.sampled_from(["llama", "deepseek_v3"]))
def test_every_scale_is_applied_as_defined(tmp_path_factory, scheme, model):
    kind, codes, scale, size, group, seed, shifted = scheme
    tmp_path = tmp_path_factory.mktemp("q")
    rng = np.random.default_rng(seed)
    write_model(tmp_path / "hub", TABLES[model], TABLES[model].example)
    shifted = shifted and codes == "I8"
    ending = (
        "_scale_inv" if the_method(kind, codes, size, group)["quant_method"] == "fp8" else "_scale"
    )

    def change(name, shape):
        block = the_block(kind, shape, size, group)
        grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
        numbers, scales = codes_of(rng, codes, shape), scales_of(rng, scale, grid)
        wide = np.float64 if scale == "F64" else np.float32
        values = numbers.astype(wide)
        held = {"scalar": [], "one": [1], "row1": [shape[0]]}.get(kind, list(grid))
        stored = {
            name: (codes, list(shape), numbers.tobytes()),
            name + ending: (scale, held, scales.tobytes()),
        }
        if shifted:
            offsets = rng.integers(-20, 20, grid).astype(np.int8)
            stored[name + "_zero_point"] = ("I8", held, offsets.tobytes())
            values = values - spread(offsets, shape, block).astype(wide)
        return stored, values * spread(scales, shape, block).astype(wide)

    meant = quantise(tmp_path / "hub", change, the_method(kind, codes, size, group))
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")
    assert contents(tmp_path / "plain") == meant
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert any("value" in note and "× scale" in note for note in result.notes)
    layout = "dense" if model == "llama" else "mcore"
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout=layout, memory="1MiB")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == meant
    assert ckptforge.compare(tmp_path / "hub", tmp_path / "x.ckpt").equal


@pytest.mark.parametrize("kind", ["expert", "block", "scalar", "bytes", "bytes, said"])
def test_stacked_experts_have_scales_of_their_own(tmp_path, kind):
    """Fused experts of transformers 5: three axes, blocks of the last two."""
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "fused", to="fused")
    rng = np.random.default_rng(3)
    size = (16, 24)
    kind, _, said = kind.partition(", ")

    def change(name, shape):
        block = {"expert": (1, *shape[1:]), "scalar": shape}.get(kind, (1, *size))
        grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
        numbers = codes_of(rng, "F8_E4M3", shape)
        scales = scales_of(rng, "F8_E8M0" if kind == "bytes" else "F32", grid)
        held = [] if kind == "scalar" else list(grid)
        dtype = "U8" if kind == "bytes" else "F32"
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale_inv": (dtype, held, scales.tobytes()),
        }
        return stored, numbers.astype(np.float32) * spread(scales, shape, block).astype(np.float32)

    method = {
        "quant_method": "fp8",
        "weight_block_size": list(size) if kind in ("block", "bytes") else None,
    }
    if said:
        method["scale_fmt"] = "ue8m0"
    meant = quantise(tmp_path / "fused", change, method, r"experts\.(gate_up|down)_proj$")
    ckptforge.convert(tmp_path / "fused", tmp_path / "plain", to="fused", memory="1MiB")
    assert contents(tmp_path / "plain") == meant


def description(types: dict[str, str], **more: Any) -> str:
    return json.dumps(
        {
            "model_quant_type": "W8A8_DYNAMIC",
            "version": "1.0.0",
            "group_size": 0,
            **types,
            "metadata": {},
            "optional": {},
            **more,
        }
    )


@pytest.mark.parametrize(
    "kind", ["W8A8_DYNAMIC", "W8A16", "W4A4_DYNAMIC", "WFP8AFP8_DYNAMIC", "W8A8_MXFP8"]
)
def test_weights_of_modelslim_are_shifted_and_scaled(tmp_path, kind):
    table = TABLES["qwen3"]
    write_model(tmp_path / "hub", table, {**table.example, "hidden_size": 64})
    rng = np.random.default_rng(5)
    types = {}

    def change(name, shape):
        types[name] = types[name + "_scale"] = kind
        if "MX" in kind:
            numbers, grid, block = (
                codes_of(rng, "F8_E4M3", shape),
                (shape[0], -(-shape[1] // 32)),
                (1, 32),
            )
            scales = rng.integers(118, 125, grid, np.uint8)
            stored = {
                name: ("F8_E4M3", list(shape), numbers.tobytes()),
                name + "_scale": ("U8", list(grid), scales.tobytes()),
            }
            return stored, numbers.astype(np.float32) * spread(
                np.exp2(scales.astype(np.float32) - 127), shape, block
            )
        codes = "F8_E4M3" if "FP8" in kind else "I8"
        numbers = codes_of(rng, codes, shape)
        scales = rng.uniform(1e-3, 3e-3, (shape[0], 1)).astype(np.float32)
        offsets = (
            rng.integers(-3, 4, (shape[0], 1)) if codes == "I8" else np.zeros((shape[0], 1))
        ).astype(np.float32)
        stored = {name: (codes, list(shape), numbers.tobytes())}
        stored |= {
            name + end: ("F32", [shape[0], 1], a.tobytes())
            for end, a in (("_scale", scales), ("_offset", offsets))
        }
        return stored, (numbers.astype(np.float32) - offsets) * scales

    meant = quantise(tmp_path / "hub", change, None)
    types |= {name: "FLOAT" for name in meant if name not in types}
    (tmp_path / "hub" / "quant_model_description.json").write_text(description(types))
    (tmp_path / "hub" / "model.safetensors").rename(
        tmp_path / "hub" / "quant_model_weights.safetensors"
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == meant
    assert not (tmp_path / "back" / "quant_model_description.json").exists()
    weight = next(iter(types))
    for changed, message in (
        (description({**types, weight: "W8A8S"}), "its type is 'W8A8S'"),
        (
            description(types, optional={"quarot": {}}),
            r"[Ii]t needs more than the weights "
            r"\('quarot'\)",
        ),
    ):
        (tmp_path / "hub" / "quant_model_description.json").write_text(changed)
        with pytest.raises(QuantisedError, match=message):
            ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", layout="mcore")


OF_ACTIVATIONS = ("input_scale", "k_scale", "output_scale", "v_cache_scale", "prob_scale")
OF_ACTIVATIONS += ("fa_q.scale", "fa_k.offset")  # ModelSlim's, of attention


def test_scales_of_activations_are_left_out_and_said(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(0)

    def change(name, shape):
        numbers, module = codes_of(rng, "F8_E4M3", shape), name.removesuffix(".weight")
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", [], np.float32(0.5).tobytes()),
        }
        stored |= {f"{module}.{one}": ("F32", [], bytes(4)) for one in OF_ACTIVATIONS}
        return stored, numbers.astype(np.float32) * np.float32(0.5)

    meant = quantise(tmp_path / "hub", change, {"quant_method": "modelopt", "quant_algo": "FP8"})
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert contents(tmp_path / "x") == meant
    (reason,) = result.left_out
    names = result.left_out[reason]
    assert "scales of activations" in reason and len(names) == len(OF_ACTIVATIONS) * 14


UNREAD = [
    (
        {"quant_method": "gptq", "bits": 3},
        {".qweight": "I32", ".qzeros": "I32", ".scales": "F16", ".g_idx": "I32"},
        "gptq",
    ),
    (
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {".qweight": "I32", ".qzeros": "I32", ".scales": "F16"},
        "awq",
    ),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {".weight": "U8", ".weight.absmax": "F32"},
        "bitsandbytes",
    ),
    ({"quant_method": "hqq"}, {".W_q": "U8", ".meta": "F16"}, "hqq"),
    ({"quant_method": "torchao"}, {".weight": "I8"}, "torchao"),
    (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {".weight_packed": "I32", ".weight_scale": "F16"},
        "pack-quantized",
    ),
    (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        {".weight_packed": "U8"},
        "nvfp4-pack-quantized",
    ),
    (
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        {".weight": "U8", ".weight_scale": "F8_E4M3"},
        "W4A8_AWQ",
    ),
    (None, {".qweight": "I32", ".qzeros": "I32", ".scales": "F16"}, "GPTQ or AWQ"),
    (
        None,
        {".weight": "U8", ".weight.absmax": "F32", ".weight.quant_state.bitsandbytes__nf4": "U8"},
        "bitsandbytes",
    ),
]


@pytest.mark.parametrize(("method", "tensors", "named"), UNREAD)
@pytest.mark.parametrize("allow", [False, True])
def test_other_methods_are_refused_by_name(tmp_path, method, tensors, named, allow):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    width = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "F32": 4, "I32": 4}

    def change(name, shape):
        module = name.removesuffix(".weight")
        return {
            f"{module}{end}": (dtype, [4, 2], bytes(8 * width[dtype]))
            for end, dtype in tensors.items()
        }, np.zeros(shape)

    quantise(tmp_path / "hub", change, method)
    with pytest.raises(QuantisedError, match=rf"the weights are quantised.*{named}") as caught:
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", allow_unmapped=allow)
    assert "unmapped" not in str(caught.value) and "Get the files" not in str(caught.value)
    assert not (tmp_path / "x.ckpt").exists()
    assert named.split()[0] in (ckptforge.inspect(tmp_path / "hub").layout_reason or "")
    assert ckptforge.compare(tmp_path / "hub", tmp_path / "hub").equal  # by name


@pytest.mark.parametrize("dtype", ["I8", "U8", "I32", "BOOL"])
@pytest.mark.parametrize("asked", ["keep", "bf16"])
def test_integers_and_bools_are_never_weights(tmp_path, dtype, asked):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    size = 4 if dtype == "I32" else 1

    def change(name, shape):
        return {name: (dtype, list(shape), bytes(int(np.prod(shape)) * size))}, np.zeros(shape)

    quantise(tmp_path / "hub", change, None)
    for run in (
        lambda: ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", dtype=asked),
        lambda: ckptforge.to_ms(
            tmp_path / "hub", tmp_path / "x.safetensors", dtype=asked, allow_unmapped=True
        ),
    ):
        with pytest.raises(QuantisedError, match="expected floating-point numbers"):
            run()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_without_scales_are_cast_and_only_cast(tmp_path, dtype):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(1)

    def change(name, shape):
        numbers = codes_of(rng, dtype, shape)
        return {name: (dtype, list(shape), numbers.tobytes())}, numbers.astype(np.float32)

    meant = quantise(tmp_path / "hub", change, None)
    with pytest.raises(QuantisedError, match=r"without scales \(14 such weights\).*dtype='bf16'"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", dtype="bf16")
    assert (
        contents(tmp_path / "x") == meant
        and result.audit.counts["w1", CODES[dtype].__name__, "bfloat16"].values
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", dtype="bf16")
    assert ckptforge.compare(tmp_path / "hub", tmp_path / "x.ckpt", after_cast="bf16").equal


def test_an_infinity_times_zero_is_counted(tmp_path, recwarn):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    infinity = np.array(np.inf, ml_dtypes.float8_e5m2).view(np.uint8)

    def change(name, shape):
        numbers = np.zeros(shape, np.uint8)
        numbers.flat[:3] = infinity
        values = numbers.view(ml_dtypes.float8_e5m2).astype(np.float32)
        stored = {
            name: ("F8_E5M2", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", [], bytes(4)),
        }
        with np.errstate(invalid="ignore"):
            return stored, values * np.float32(0)

    quantise(tmp_path / "hub", change, {"quant_method": "modelopt", "quant_algo": "FP8"})
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert sum(count.undefined for count in result.audit.counts.values()) == 3 * 14
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]
    manifest = json.loads((tmp_path / "x" / "ckptforge.manifest.json").read_text())
    assert sum(row.get("undefined", 0) for row in manifest["casts"]) == 3 * 14


def test_parts_of_quantised_weights_are_not_dropped_unnamed(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    tensors = {
        name: ("BF16", list(shape), data)
        for name, (_, shape, data) in contents(tmp_path / "hub").items()
    }
    tensors["model.layers.0.self_attn.k_scale"] = ("F32", [], bytes(4))
    write_safetensors(tmp_path / "hub" / "model.safetensors", tensors, {"format": "pt"})
    for allowed in (False, True):
        with pytest.raises(
            UnmappedTensorsError,
            match=r"parts of quantised "
            r"weights.*\n.*k_scale.*\n.*drop",
        ) as caught:
            ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", allow_unmapped=allowed)
        assert "unmapped" not in str(caught.value)
    with pytest.raises(UsageError, match=r"drop='\*.nothing'"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", drop=["*.nothing"])
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", drop=["*.k_scale"])
    assert result.left_out == {"not known to the mapping": ["model.layers.0.self_attn.k_scale"]}


def test_merging_casts_no_codes(tmp_path):
    """A verb without a mapping keeps eight bits as they are, and refuses to cast them where scales
    stand beside them."""
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(1)

    def change(name, shape):
        numbers = codes_of(rng, "F8_E4M3", shape)
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", [], np.float32(0.5).tobytes()),
        }
        return stored, numbers.astype(np.float32)

    quantise(tmp_path / "hub", change, {"quant_method": "modelopt", "quant_algo": "FP8"})
    item = {"dev_matrix": [1], "opt_weight_shard_size": 0, "opt_weight_shard_step": 0, "field": 0}
    held = contents(tmp_path / "hub")
    items = {
        name: {**item, "tensor_map": [-1] * len(shape), "tensor_shape": list(shape)}
        for name, (_, shape, _) in held.items()
    }
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "rank_0.json").write_text(
        json.dumps({"current_stage": 0, "parallel_layout_item": items})
    )
    source = tmp_path / "hub" / "model.safetensors"
    ckptforge.split(source, tmp_path / "ranks", strategy_dir=tmp_path / "s", format="safetensors")
    assert contents(tmp_path / "ranks") == held
    with pytest.raises(QuantisedError, match="a cast would take codes for weights"):
        ckptforge.split(
            source,
            tmp_path / "cast",
            strategy_dir=tmp_path / "s",
            format="safetensors",
            dtype="bf16",
        )


def test_codes_of_another_dtype_than_the_method_has_are_refused(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)

    def change(name, shape):
        return {
            name: ("I8", list(shape), bytes(int(np.prod(shape)))),
            f"{name}_scale_inv": ("F32", [1, 1], bytes(4)),
        }, np.zeros(shape)

    quantise(tmp_path / "hub", change, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.raises(FormatError, match="is int8.*expected float8_e4m3fn or float8_e5m2"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")


@pytest.mark.parametrize("value", [["naive-quantized"], {}, "x" * 5000, 7, None])
def test_what_config_json_says_may_be_anything(tmp_path, value):
    """Found by fuzzing: a list where a name should stand, and names of any length."""
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)

    def change(name, shape):
        stored = {
            name: ("F8_E4M3", list(shape), bytes(int(np.prod(shape)))),
            f"{name}_scale": ("F32", [], bytes(4)),
        }
        return stored, np.zeros(shape)

    for method in (
        {"quant_method": value},
        {"quant_method": "compressed-tensors", "format": value, "config_groups": {"g": value}},
    ):
        quantise(tmp_path / "hub", change, method)
        try:
            ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", dry_run=True)
        except ckptforge.CkptforgeError as error:
            assert len(str(error)) < 2000


def test_blocks_that_config_json_leaves_out_have_the_default_size(tmp_path):
    """FineGrainedFP8Config's [128, 128]; null is no block."""
    table = TABLES["llama"]
    rng = np.random.default_rng(2)

    def change(name, shape):
        grid = tuple(-(-n // 128) for n in shape)
        numbers, scales = codes_of(rng, "F8_E4M3", shape), scales_of(rng, "F32", grid)
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale_inv": ("F32", list(grid), scales.tobytes()),
        }
        return stored, numbers.astype(np.float32) * spread(scales, shape, (128, 128))

    write_model(tmp_path / "hub", table, {**table.example, "intermediate_size": 300})
    meant = quantise(tmp_path / "hub", change, {"quant_method": "fp8"})
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert contents(tmp_path / "x") == meant
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = None
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ckptforge.CkptforgeError, match="weight_block_size isn't two positive integers"
    ):
        ckptforge.convert(tmp_path / "hub", tmp_path / "y", to="hub")


@pytest.mark.parametrize(
    "method",
    [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8", "weight_block_size": [128, 128]}],
)
def test_a_method_that_was_not_used_is_said(tmp_path, method):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    (tmp_path / "hub" / "config.json").write_text(
        json.dumps({**TABLES["llama"].example, "quantization_config": method})
    )
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert any(
        f"says {method['quant_method']}, but no weight is quantised" in note
        for note in result.notes
    )
    assert "quantization_config" not in json.loads((tmp_path / "x" / "config.json").read_text())
    assert contents(tmp_path / "x") == contents(tmp_path / "hub")


def test_descriptions_may_have_the_type_in_their_name(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(4)
    types = {}

    def change(name, shape):
        types[name] = "W8A16"
        numbers, scales = codes_of(rng, "I8", shape), scales_of(rng, "F32", (shape[0], 1))
        stored = {
            name: ("I8", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", [shape[0], 1], scales.tobytes()),
        }
        return stored, numbers.astype(np.float32) * scales

    meant = quantise(tmp_path / "hub", change, None)
    (tmp_path / "hub" / "quant_model_description_w8a16.json").write_text(description(types))
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert (
        contents(tmp_path / "x") == meant
        and not (tmp_path / "x" / "quant_model_description_w8a16.json").exists()
    )


def test_one_model_may_have_blocks_and_channels(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(6)

    def change(name, shape):
        block = (16, 16) if ".mlp." in name else (1, shape[1])
        grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
        numbers, scales = codes_of(rng, "F8_E4M3", shape), scales_of(rng, "F32", grid)
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", list(grid), scales.tobytes()),
        }
        return stored, numbers.astype(np.float32) * spread(scales, shape, block)

    groups = {
        "g0": {"weights": {"strategy": "block", "block_structure": [16, 16]}},
        "g1": {"weights": {"strategy": "channel"}},
    }
    meant = quantise(
        tmp_path / "hub",
        change,
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": groups,
        },
    )
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert contents(tmp_path / "x") == meant


@pytest.mark.parametrize("axes", [1, 2])
def test_stacked_experts_may_have_a_scale_each_or_one_for_each_row(tmp_path, axes):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "fused", to="fused")
    rng = np.random.default_rng(8)

    def change(name, shape):
        numbers, scales = codes_of(rng, "F8_E4M3", shape), scales_of(rng, "F32", shape[:axes])
        stored = {
            name: ("F8_E4M3", list(shape), numbers.tobytes()),
            f"{name}_scale": ("F32", list(shape[:axes]), scales.tobytes()),
        }
        return stored, numbers.astype(np.float32) * scales.reshape(
            *shape[:axes], *(1,) * (3 - axes)
        )

    meant = quantise(
        tmp_path / "fused", change, {"quant_method": "fbgemm_fp8"}, r"experts\.(gate_up|down)_proj$"
    )
    ckptforge.convert(tmp_path / "fused", tmp_path / "plain", to="fused")
    assert contents(tmp_path / "plain") == meant


@pytest.mark.parametrize("kind", ["block", "expert"])
def test_many_scales_of_stacked_experts_are_held_in_parts(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("ckptforge.quantisation.parts._MOST", 3)
    test_stacked_experts_have_scales_of_their_own(tmp_path, kind)


@pytest.mark.parametrize("fault", [None, "missing", "unsigned"])
def test_integers_of_four_bits_may_have_a_byte_each_and_zero_points(tmp_path, fault):
    """As compressed-tensors writes them in `int-quantized`; its config.json tells zero points."""
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    rng = np.random.default_rng(0)

    def change(name, shape):
        codes, zeros = (rng.integers(-8, 8, s, np.int8) for s in (shape, (shape[0], 1)))
        scales = rng.uniform(1e-3, 3e-3, (shape[0], 1)).astype(BF16)
        found = {
            name: ("I8", list(shape), codes.tobytes()),
            f"{name}_scale": ("BF16", [shape[0], 1], scales.tobytes()),
            f"{name}_zero_point": ("I8", [shape[0], 1], zeros.tobytes()),
        }
        if fault == "missing":
            del found[f"{name}_zero_point"]
        elif fault == "unsigned":
            found[f"{name}_zero_point"] = ("U8", [shape[0], 1], zeros.tobytes())
        return found, (codes.astype(np.float32) - zeros) * scales.astype(np.float32)

    weights = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}
    method = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    meant = quantise(tmp_path / "hub", change, method)
    if fault is None:
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
        assert contents(tmp_path / "x") == meant
        return
    message = {
        "missing": "there is no '.*weight_zero_point', which .* says it has",
        "unsigned": "should be floats or signed integers, .*_zero_point' in .* is uint8",
    }
    with pytest.raises(FormatError, match=message[fault]):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")


def test_codes_that_are_not_read_are_not_computed_with(tmp_path):
    """Nothing but their weights may be averaged, cast or padded; what moves them may."""
    table = TABLES["llama"]
    for name in ("a", "b"):
        write_model(tmp_path / name, table, table.example)

        def change(name, shape):
            grid = [-(-n // 32) for n in shape]
            codes = np.zeros(shape, CODES["F8_E4M3"])
            return {
                name: ("F8_E4M3", list(shape), codes.tobytes()),
                f"{name}_scale_inv": ("F32", grid, np.ones(grid, np.float32).tobytes()),
            }, codes.astype(np.float32)

        quantise(tmp_path / name, change, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    message = "would take their codes for weights.*with blocks of 16 × 16"
    out = tmp_path / "out"
    with pytest.raises(QuantisedError, match=f"an average {message}"):
        ckptforge.average(out, [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(QuantisedError, match=message):
        ckptforge.edit(tmp_path / "a", out, set_dtype=["*=fp32"])
    one, name = tmp_path / "one.npy", "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(QuantisedError, match=f"dtype {message}"):
        ckptforge.extract(tmp_path / "a", name, one, dtype="fp32")
    assert not one.exists()
    with ckptforge.open(tmp_path / "a") as model:
        with pytest.raises(QuantisedError, match=f"a cast {message}"):
            model.cast("fp32")
        with pytest.raises(QuantisedError, match=f"an average {message}"):
            model.average(model)
    assert not out.exists()
    ckptforge.edit(tmp_path / "a", out, rename=["model.norm.weight=model.last.weight"])
    assert contents(out)["model.last.weight"] == contents(tmp_path / "a")["model.norm.weight"]
