"""Weights written as codes with scales: what they are by the definition, what other programs make
of them, and how far they are from what they were."""

import importlib
import json
import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import CkptforgeError, OutputError, QuantisedError, UsageError
from ckptforge.quantisation.scale_blocks import scale_block
from ckptforge.steps.encoded import CODES, Encoded
from ckptforge.steps.encoder import scales_of
from ckptforge.steps.rounding import round_magnitudes, with_signs
from ckptforge.transfers import Transfer
from ckptforge.values import Extent, Fragment, Stored, Term, Value
from tests.helpers import contents, write_safetensors
from tests.test_models import TABLES, write_model
from tests.test_quantisation import spread

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
KINDS = list(CODES)
DOWN = "model.layers.1.mlp.down_proj.weight"


def llama(directory: Path, change=None, **sizes) -> dict[str, np.ndarray]:
    """A model of bfloat16; its weights as float32."""
    write_model(directory, TABLES["llama"], {**TABLES["llama"].example, **SIZES, **sizes})
    rng, held = np.random.default_rng(0), {}
    for name, (_, shape, _) in contents(directory).items():
        numbers = rng.normal(0, 0.02, shape).astype(BF16)
        numbers[..., : shape[-1] // 2] *= BF16(0.05)
        held[name] = numbers
    if change is not None:
        change(held)
    tensors = {n: ("BF16", list(a.shape), a.tobytes()) for n, a in held.items()}
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    return {name: numbers.astype(np.float32) for name, numbers in held.items()}


def arrays(directory: Path) -> dict[str, np.ndarray]:
    kinds = {"float8_e4m3fn": FP8, "bfloat16": BF16}
    return {
        name: np.frombuffer(data, kinds.get(dtype, dtype)).reshape(shape)
        for name, (dtype, shape, data) in contents(directory).items()
    }


def blocks(numbers: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The largest magnitude of each block, by the definition."""
    rows, columns = numbers.shape
    return np.array(
        [
            [
                np.abs(numbers[i : i + block[0], j : j + block[1]]).max()
                for j in range(0, columns, block[1])
            ]
            for i in range(0, rows, block[0])
        ],
        np.float32,
    )


def meant(kind: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes as numbers, scales, what both stand for), by the definition."""
    columns = numbers.shape[1]
    block = {"fp8-block128": (128, 128), "w8a8-dynamic": (1, columns)}.get(kind, (1, 32))
    largest = blocks(numbers, block)
    top = {"w8a8-dynamic": 127, "mxfp4": 6}.get(kind, 448)
    if kind.startswith("mx"):
        power = 2 if kind == "mxfp4" else 8
        scales = np.exp2(np.floor(np.log2(largest)) - power).astype(np.float32)
    else:
        scales = largest / np.float32(top)
    wide = spread(scales, numbers.shape, block)
    scaled = np.clip(numbers / wide, -top, top)
    dtype = {"mxfp4": ml_dtypes.float4_e2m1fn}.get(kind, FP8)
    codes = np.rint(scaled) if kind == "w8a8-dynamic" else scaled.astype(dtype).astype(np.float32)
    return codes, scales, codes * wide


def stored_numbers(kind: str, held: dict[str, np.ndarray], name: str):
    """(codes as numbers, scales) of a weight as they are in a file."""
    if kind == "mxfp4":
        raw = held[f"{name}_packed"]
        halves = np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1).astype(np.uint8)
        codes = halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    else:
        codes = held[name].astype(np.float32)
    scales = held[f"{name}_scale_inv" if kind == "fp8-block128" else f"{name}_scale"]
    return codes, np.exp2(scales.astype(np.float32) - 127) if kind.startswith("mx") else scales


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["1MiB", "128MiB"])
def test_codes_and_scales_are_those_of_the_definition(tmp_path, kind, memory):
    weights = llama(tmp_path / "hub")
    workers = 1 if memory == "1MiB" else 2
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "x", to="hub", quantise=[kind], memory=memory, workers=workers
    )
    held = arrays(tmp_path / "x")
    errors: dict[str, list[tuple[float, float]]] = {}
    for name, numbers in weights.items():
        if "proj" not in name:
            assert (held[name].astype(np.float32) == numbers).all()
            continue
        codes, scales, values = meant(kind, numbers)
        found = stored_numbers(kind, held, name)
        assert (found[0] == codes).all() and (found[1] == scales).all(), name
        if kind == "w8a8-dynamic":
            assert held[f"{name}_offset"].shape == (len(numbers), 1)
            assert not held[f"{name}_offset"].any()
        key = name.split(".")[-2]
        wide = values.astype(np.float64)
        errors.setdefault(key, []).append(
            (((wide - numbers) ** 2).sum(), (numbers.astype(np.float64) ** 2).sum())
        )
    down = [count for (group, *_), count in result.audit.counts.items() if group == "w2"]
    error, square = map(sum, zip(*errors["down_proj"], strict=True))
    assert math.isclose(down[0].relative_error, math.sqrt(error / square), rel_tol=1e-5)
    assert 0 < down[0].relative_error < down[0].worst_block < 0.3
    assert down[0].values == sum(one.size for name, one in weights.items() if "down" in name)
    row = next(one for one in result.to_json()["casts"] if one["group"] == "w2")
    assert row["relative_error"] == down[0].relative_error


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_as_what_it_stands_for(tmp_path, kind):
    weights = llama(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=[kind])
    ckptforge.convert(tmp_path / "x", tmp_path / "back", to="hub")
    back = arrays(tmp_path / "back")
    assert back.keys() == weights.keys()
    for name, numbers in weights.items():
        values = meant(kind, numbers)[2] if "proj" in name else numbers
        assert (back[name] == values.astype(np.float32).astype(BF16)).all(), name
    found = ckptforge.compare(tmp_path / "hub", tmp_path / "x", dequantise=True)
    assert not found and {one.kind for one in found.quantisation} >= {"w1", "w2"}
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "y", to="hub", quantise=[kind])
    audited = {group: count for (group, *_), count in result.audit.counts.items()}
    for one in found.quantisation:
        assert math.isclose(one.relative_error, audited[one.kind].relative_error, rel_tol=1e-5)
        assert math.isclose(one.worst_block, audited[one.kind].worst_block, rel_tol=1e-5)
        assert one.worst_tensor in weights and one.tensors == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_holds_weights_and_not_their_codes(tmp_path, kind):
    names = llama(tmp_path / "hub").keys()
    ckptforge.convert(tmp_path / "hub", tmp_path / "q", to="hub", quantise=[kind])
    model = ckptforge.open(tmp_path / "q")
    assert model.keys() == names
    model.save(tmp_path / "saved")
    ckptforge.average(tmp_path / "mean", [tmp_path / "q", tmp_path / "q"])
    assert ckptforge.inspect(tmp_path / "mean").layout == "hub"
    assert ckptforge.compare(tmp_path / "mean", tmp_path / "saved").equal


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_blocks_of_fp8_come_back_as_the_same_codes(tmp_path, dtype):
    llama(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "one", to="hub", quantise=["fp8-block128"])
    ckptforge.convert(tmp_path / "one", tmp_path / "plain", to="hub", dtype=dtype)
    ckptforge.convert(tmp_path / "plain", tmp_path / "two", to="hub", quantise=["fp8-block128"])
    one, two = arrays(tmp_path / "one"), arrays(tmp_path / "two")
    codes = [name for name, array in one.items() if array.dtype == FP8]
    assert len(codes) == 14
    for name in codes:
        assert (one[name].view(np.uint8) == two[name].view(np.uint8)).all(), name
        ulps = 2.0**-8 if dtype == "bf16" else 2.0**-22
        assert np.allclose(one[f"{name}_scale_inv"], two[f"{name}_scale_inv"], rtol=ulps, atol=0)
    # from one to the other in one pass
    ckptforge.convert(tmp_path / "one", tmp_path / "three", to="hub", quantise=["fp8-block128"])
    three = arrays(tmp_path / "three")
    assert all((one[name].view(np.uint8) == three[name].view(np.uint8)).all() for name in codes)


def rounded(code, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the bytes of codes, the numbers that they stand for)."""
    near, *work = (np.empty(numbers.shape, np.float32) for _ in range(3))
    codes, spare = (np.empty(numbers.shape, np.uint8) for _ in range(2))
    round_magnitudes(code, np.abs(numbers), near, tuple(work), codes)
    with_signs(code, codes, np.signbit(numbers), spare)
    return codes, np.copysign(near, numbers)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 0xFFFF), min_size=64, max_size=64),
)
def test_any_finite_numbers_have_codes(kind, bits):
    """Zeros, the smallest and the largest: codes are finite, and no larger than the largest."""
    numbers = np.array(bits, np.uint16).view(BF16).astype(np.float32).reshape(2, 32)
    numbers[~np.isfinite(numbers)] = 0
    code = CODES[kind]
    scales = scales_of(code, np.abs(numbers).max(axis=1, keepdims=True))
    assert np.isfinite(scales).all() and (scales > 0).all()
    raw, codes = rounded(code, numbers / scales)
    kinds = {"mxfp4": ml_dtypes.float4_e2m1fn, "w8a8-dynamic": np.int8}
    assert (raw.view(kinds.get(kind, FP8)).astype(np.float32) == codes).all()
    assert np.isfinite(codes).all() and np.abs(codes).max() <= code.largest
    values = codes.astype(np.float64) * scales
    # 5.1 becomes 6, and the smallest numbers are rounded by as much as they are
    most = np.abs(numbers).max(axis=1, keepdims=True) * 1.25 + scales / 2
    assert (np.abs(values) <= most).all()


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["mxfp4", "mxfp8"]),
    st.lists(st.integers(0, 0xFFFFFFFF), min_size=20, max_size=20),
    st.integers(0, 2),
)
def test_codes_are_the_nearest(kind, bits, nudge):
    """Any float32, and those about the middles between codes, as ml_dtypes rounds them."""
    code, dtype = CODES[kind], {"mxfp4": ml_dtypes.float4_e2m1fn}.get(kind, FP8)
    upper = np.arange(0, 1 << 32, 1 << 16, dtype=np.uint32) + np.uint32(nudge)
    numbers = np.append(np.array(bits, np.uint32), upper).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    expected = np.clip(numbers, -code.largest, code.largest).astype(dtype).view(np.uint8)
    assert (rounded(code, numbers)[0] == expected).all()


def test_config_and_description_say_it(tmp_path):
    llama(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "fp8", to="hub", quantise=["fp8-block128"])
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    told = config["quantization_config"]
    assert told["quant_method"] == "fp8" and told["weight_block_size"] == [128, 128]
    assert told["activation_scheme"] == "dynamic" and told["fmt"] == "e4m3"
    assert told["modules_to_not_convert"] == ["model.embed_tokens", "lm_head"]
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    out = tmp_path / "w8a8"
    ckptforge.convert(
        tmp_path / "hub", out, to="hub", quantise=["w8a8-dynamic"], max_shard_size="400KB"
    )
    description = json.loads((out / "quant_model_description.json").read_text())
    held = arrays(out)
    assert description["model_quant_type"] == "W8A8_DYNAMIC"
    assert {name for name in description if "." in name} == held.keys()
    for name in held:
        assert description[name] == ("W8A8_DYNAMIC" if "proj" in name else "FLOAT")
    names = sorted(path.name for path in out.glob("*.safetensors*"))
    assert names[-1] == "quant_model_weights.safetensors.index.json" and len(names) > 2
    assert names[0].startswith("quant_model_weights-00001-of-0000")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert ckptforge.inspect(out).layout == "hub"


def test_descriptions_name_a_head_that_is_the_embedding(tmp_path):
    """Programs on Ascend ask for its type before they tie it."""
    table = TABLES["llama"]
    write_model(tmp_path / "hub", table, {**table.example, "tie_word_embeddings": True})
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["w8a8-dynamic"])
    description = json.loads((tmp_path / "x" / "quant_model_description.json").read_text())
    assert description["lm_head.weight"] == "FLOAT"
    assert "lm_head.weight" not in contents(tmp_path / "x")
    assert ckptforge.convert(tmp_path / "x", tmp_path / "back", to="hub").tensors


def test_only_what_is_named_is_written_as_codes(tmp_path):
    llama(tmp_path / "hub")
    ckptforge.convert(
        tmp_path / "hub", tmp_path / "x", to="hub",
        quantise=["w2=fp8-block128", "lm_*=fp8-block128"],
    )  # fmt: skip
    codes = {n for n, a in arrays(tmp_path / "x").items() if a.dtype == FP8}
    assert codes == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)} | {"lm_head.weight"}
    told = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.mlp.up_proj" in told["modules_to_not_convert"]


@pytest.mark.parametrize("model", ["mixtral", "deepseek_v3", "qwen3_moe"])
def test_routers_heads_and_norms_are_kept(tmp_path, model):
    table = TABLES[model]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["fp8-block128"])
    held = arrays(tmp_path / "x")
    codes = {name for name, array in held.items() if array.dtype == FP8}
    kept = ("norm", "gate.weight", "embed", "lm_head", "eh_proj", "bias", "head.weight")
    assert codes and not [name for name in codes if any(word in name for word in kept)]
    experts = [n for n in held if ".experts." in n and n.endswith(".weight")]
    assert experts and set(experts) <= codes
    assert ckptforge.convert(tmp_path / "x", tmp_path / "back", to="hub").tensors


def kept_modules(directory: Path) -> list[str]:
    told = json.loads((directory / "config.json").read_text())["quantization_config"]
    return told.get("modules_to_not_convert", told.get("ignore"))


def test_experts_that_are_kept_are_one_module(tmp_path):
    """That is how transformers 5 has them: it takes a name for all modules below it."""
    table, of_layer = TABLES["mixtral"], "model.layers.1.block_sparse_moe"
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    write_model(tmp_path / "hub", table, {**table.example, **sizes})
    keys = {"to": "hub", "overwrite": True}

    def written(*words):
        result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", quantise=words, **keys)
        told = [note for note in result.notes if "some matrices of the experts" in note]
        return kept_modules(tmp_path / "x"), told

    modules, notes = written("*.self_attn.*_proj.weight=fp8-block128")
    assert f"{of_layer}.experts" in modules and not notes
    assert not any(".experts." in module for module in modules)
    modules, notes = written("w1=fp8-block128")
    assert f"{of_layer}.experts" not in modules and f"{of_layer}.experts.0.w2" in modules
    assert f"in 2 modules, such as '{of_layer[:13]}0{of_layer[14:]}.experts'" in notes[0]
    modules, _ = written("*.self_attn.*_proj.weight=mxfp8")  # these are matched by name
    assert {f"{of_layer}.experts", f"{of_layer}.experts.0.w2"} <= set(modules)
    modules, notes = written("fp8-block128")
    assert not any("experts" in module for module in modules) and not notes


def test_experts_without_adapters_are_written_too(tmp_path):
    table = TABLES["deepseek_v4"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["fp8-block128"])
    held = contents(tmp_path / "x")
    experts = [n for n in held if ".experts." in n and n.startswith("layers.") and "_inv" not in n]
    assert experts and {held[name][0] for name in experts} == {"float8_e4m3fn"}
    gpt_oss(tmp_path / "oss")
    result = ckptforge.convert(
        tmp_path / "oss", tmp_path / "o", to="hub", quantise=["fp8-block128"]
    )
    (note,) = [note for note in result.notes if "4 stacks of experts" in note]
    assert "quantise='experts=fp8-block128'" in note
    assert "model.layers.0.mlp.experts" in kept_modules(tmp_path / "o")


def codes_of(directory: Path) -> set[str]:
    """What is written as FP8, without the numbers of layers and experts."""
    held = contents(directory).items()
    return {
        re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
        for name, (kind, *_) in held
        if kind == "float8_e4m3fn"
    }


def test_all_projections_of_layers_are_written(tmp_path):
    """Also those of a linear attention and of the layer that predicts a further token."""
    table = TABLES["qwen3_next"]
    write_model(tmp_path / "hub", table, table.example)
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise="fp8-block128")
    linear = {f"model.layers.#.linear_attn.{one}.weight" for one in ("in_proj_qkvz", "out_proj")}
    more = {f"mtp.layers.#.{one}.weight" for one in ("self_attn.q_proj", "mlp.experts.#.up_proj")}
    codes = codes_of(tmp_path / "x")
    assert linear | more <= codes
    kept = ("conv1d", "in_proj_ba", "gate.weight", "mtp.fc", "embed", "lm_head", "norm")
    assert not [name for name in codes if any(word in name for word in kept)]
    note = next(note for note in result.notes if "other tensors" in note)
    assert "stay as they are (embedding, lin_wb+lin_wa, conv_q+conv_k+conv_v, router, " in note


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("deepseek_v32", ["model.layers.#.self_attn.indexer.wq_b.weight"]),
        ("deepseek_v4", ["mtp.#.attn.wq_a.weight", "mtp.#.ffn.experts.#.w1.weight"]),
    ],
)
def test_what_is_called_alike_in_other_layers_is_written(tmp_path, model, expected):
    table = TABLES[model]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise="fp8-block128")
    codes = codes_of(tmp_path / "x")
    assert set(expected) <= codes and not [name for name in codes if ".gate.w" in name]


def test_the_dtype_of_the_model_is_that_before(tmp_path):
    """What stays may be float32 in a model of bfloat16."""
    weights = llama(tmp_path / "hub")
    tensors = {
        name: ("BF16", list(one.shape), one.astype(BF16).tobytes())
        if "proj" in name
        else ("F32", list(one.shape), one.tobytes())
        for name, one in weights.items()
    }
    write_safetensors(tmp_path / "hub" / "model.safetensors", tensors, {"format": "pt"})
    for verb, keys in ((ckptforge.convert, {"to": "hub"}), (ckptforge.edit, {})):
        out = tmp_path / verb.__name__
        result = verb(tmp_path / "hub", out, quantise="fp8-block128", **keys)
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
        assert not [note for note in result.notes if "said" in note]


def test_a_glob_passes_over_what_can_not_be_codes(tmp_path):
    table = TABLES["qwen3"]
    write_model(tmp_path / "hub", table, table.example)
    words = ["*.self_attn.*=fp8-block128"]
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=words)
    assert codes_of(tmp_path / "x") == {
        f"model.layers.#.self_attn.{one}_proj.weight" for one in "qkvo"
    }
    (note,) = [note for note in result.notes if "that a glob has" in note]
    assert "'model.layers.0.self_attn.k_norm.weight', can't be codes" in note


def test_what_is_planned_says_codes_and_not_their_scales(tmp_path):
    llama(tmp_path / "hub")
    for kind, code in (("mxfp8", "float8_e4m3fn"), ("mxfp4", "float4_e2m1")):
        result = ckptforge.convert(
            tmp_path / "hub", tmp_path / "x", to="hub", quantise=kind, dry_run=True
        )
        assert list(result.to_json()["planned_casts"]) == [f"bfloat16 → {code}"]


def test_blocks_that_are_cut_off_are_told(tmp_path):
    llama(tmp_path / "hub", hidden_size=256, intermediate_size=320)
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "x", to="hub", quantise=["fp8-block128"]
    )
    (note,) = [note for note in result.notes if "within a block" in note]
    assert note.startswith("6 weights end within a block, such as 'model.layers.0.mlp.down_proj")


def test_stacked_experts_are_written_in_blocks(tmp_path):
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "hub", table, table.example)
    keys = {"quantise": ["fp8-block128"]}
    told = [
        [note for note in result.notes if "hold the experts of a layer" in note]
        for result in (
            ckptforge.convert(tmp_path / "hub", tmp_path / "f", to="fused", **keys),
            ckptforge.convert(tmp_path / "hub", tmp_path / "h", to="hub", **keys),
        )
    ]
    assert "takes these codes for the weights" in told[0][0] and not told[1]
    ckptforge.convert(tmp_path / "f", tmp_path / "f_back", to="hub")
    held = arrays(tmp_path / "f")
    (name, *_) = [name for name in held if name.endswith("experts.gate_up_proj")]
    assert held[name].dtype == FP8 and held[name].ndim == 3
    experts, rows, columns = held[name].shape
    grid = (experts, -(-rows // 128), -(-columns // 128))
    assert held[f"{name}_scale_inv"].shape == grid
    found = ckptforge.compare(tmp_path / "hub", tmp_path / "f", dequantise=True)
    assert all(one.relative_error < 0.05 for one in found.quantisation)
    with pytest.raises(QuantisedError, match="layout hub holds each expert by itself"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "y", to="fused", quantise=["mxfp8"])


def test_to_torch_and_edit_quantise_too(tmp_path):
    llama(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["mxfp8"])
    expected = contents(tmp_path / "x")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ms.ckpt", layout="dense")
    ckptforge.to_torch(tmp_path / "ms.ckpt", tmp_path / "t", quantise=["mxfp8"])
    assert contents(tmp_path / "t") == expected
    ckptforge.edit(tmp_path / "hub", tmp_path / "e", quantise=["mxfp8"])
    assert contents(tmp_path / "e") == expected
    ckptforge.edit(tmp_path / "ms.ckpt", tmp_path / "l", take=["l=1"], to="hub", quantise=["mxfp8"])
    cut = contents(tmp_path / "l")
    assert cut["model.layers.0.mlp.down_proj.weight"] == expected[DOWN]


def test_an_interrupted_run_goes_on(tmp_path):
    llama(tmp_path / "hub")
    options = {"to": "hub", "quantise": ["fp8-block128"]}
    ckptforge.convert(tmp_path / "hub", tmp_path / "whole", **options)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", **options, progress=stop)
    with pytest.raises(CkptforgeError):
        ckptforge.convert(
            tmp_path / "hub", tmp_path / "x", to="hub", quantise=["mxfp8"], resume=True
        )
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", **options, resume=True)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    count = next(one for (group, *_), one in result.audit.counts.items() if group == "w2")
    assert count.values == 2 * 192 * 320 and count.relative_error
    for part in ("1/2", "2/2"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "p", **options, part=part)
    if not (tmp_path / "p" / "config.json").exists():
        ckptforge.finish(tmp_path / "p")
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "hub", "quantise": ["fp8"]}, "expected fp8-block128, mxfp4.*mean 'fp8-block128'"),
        ({"to": "hub", "quantise": ["w1=int4"]}, "expected fp8-block128"),
        ({"to": "hub", "quantise": ["=mxfp8"]}, "'=mxfp8': expected fp8-block128"),
        ({"to": "hub", "quantise": ["mxfp4", "w1=mxfp8"]}, "mxfp4 and mxfp8 in one model"),
        ({"to": "hub", "quantise": ["w9=mxfp8"]}, "has no such tensor"),
        ({"to": "mcore", "quantise": ["mxfp8"]}, "holds no codes with scales"),
        ({"to": "hub", "quantise": ["*norm*=mxfp8"]}, "5 such tensors.*none of floats with two"),
        ({"to": "hub", "quantise": ["mxfp8"], "format": "unified"}, "Hugging Face's, whole"),
    ],
)
def test_what_can_not_be_written_is_refused(tmp_path, arguments, message):
    llama(tmp_path / "hub")
    with pytest.raises(UsageError, match=message):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_other_formats_hold_no_codes(tmp_path):
    with pytest.raises(UsageError, match="Hugging Face's, whole"):  # before anything is read
        ckptforge.to_torch(tmp_path / "no", tmp_path / "x", quantise=["mxfp8"], format="dcp")


def test_a_file_holds_no_config_and_so_no_codes(tmp_path):
    llama(tmp_path / "hub")
    for out in ("x.ckpt", "x.safetensors"):
        with pytest.raises((UsageError, OutputError), match="directory"):
            ckptforge.convert(tmp_path / "hub", tmp_path / out, to="hub", quantise=["mxfp8"])
        with pytest.raises(UsageError, match="holds no codes"):  # which a directory wouldn't mend
            ckptforge.convert(tmp_path / "hub", tmp_path / out, to="mcore", quantise=["mxfp8"])


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_numbers_without_codes_are_refused_by_name(tmp_path, odd):
    def change(held):
        held[DOWN][5, 7] = odd

    llama(tmp_path / "hub", change)
    with pytest.raises(QuantisedError, match="layers.1.mlp.down_proj.weight.*no code for NaN"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["fp8-block128"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("largest", "written"), [(3.35e38, True), (3.376e38, False)])
def test_numbers_whose_scales_readers_refuse_are_refused(tmp_path, largest, written):
    def change(held):
        held[DOWN][5, 7] = largest

    llama(tmp_path / "hub", change)
    if written:
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["w8a8-dynamic"])
        ckptforge.convert(tmp_path / "x", tmp_path / "y", to="hub")
        return
    with pytest.raises(QuantisedError, match="down_proj.weight.*holds the magnitude 3.376e"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["w8a8-dynamic"])
    assert not (tmp_path / "x").exists()


def test_rows_that_are_no_whole_groups_are_refused(tmp_path):
    table = TABLES["llama"]
    write_model(tmp_path / "hub", table, {**table.example, **SIZES, "intermediate_size": 90})
    with pytest.raises(QuantisedError, match="rows of a multiple of 32.*WHAT=mxfp4"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["mxfp4"])


def test_encodings_differ_in_their_identity():
    made = Encoded(code=CODES["mxfp8"], part="codes", shape=(4, 32), source=BY_NAME["float32"])
    others = [
        replace(made, part="scales"),
        replace(made, code=CODES["mxfp4"]),
        replace(made, shape=(8, 32)),
    ]
    assert len({one.identity() for one in (made, *others)}) == 4


def test_transformers_reads_blocks_of_fp8_as_we_do(tmp_path):
    torch = pytest.importorskip("torch")
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weights = llama(tmp_path / "hub", hidden_size=256, intermediate_size=384)
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["fp8-block128"])
    held, read = arrays(tmp_path / "x"), 0
    for name, numbers in weights.items():
        if "proj" not in name or numbers.shape[0] % 128:  # it splits evenly
            continue
        scales = held[f"{name}_scale_inv"]
        codes = torch.from_numpy(held[name].view(np.uint8).copy()).view(torch.float8_e4m3fn)
        found = fp8.Fp8Dequantize(None)._dequantize_one(
            codes, torch.from_numpy(scales.copy()), torch.float32
        )
        assert (found.numpy() == meant("fp8-block128", numbers)[2]).all()
        read += 1
    assert read == 14


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8"])
def test_compressed_tensors_reads_exponents_as_we_do(tmp_path, kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    compressors = importlib.import_module("compressed_tensors.compressors")
    schemes = importlib.import_module("compressed_tensors.quantization")
    weights = llama(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=[kind])
    told = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    config = schemes.QuantizationConfig.model_validate(told)
    (scheme,) = config.config_groups.values()
    compressor = compressors.BaseCompressor.load_from_registry(told["format"])
    held = arrays(tmp_path / "x")
    module = DOWN.removesuffix("weight")
    state = {}
    for name, array in held.items():
        if name.startswith(module):
            raw = torch.from_numpy(array.view(np.uint8).copy())
            fp8 = array.dtype == FP8
            state[name.removeprefix(module)] = raw.view(torch.float8_e4m3fn) if fp8 else raw
    found = compressor.decompress(state, scheme)["weight"].to(torch.float32).numpy()
    assert (found == meant(kind, weights[DOWN])[2]).all()


def gpt_oss(directory: Path, **changed) -> None:
    """Its experts with a group of zeros, one of tiny numbers and one of large ones."""
    write_model(directory, TABLES["gpt_oss"], {**TABLES["gpt_oss"].example, **changed})
    held = contents(directory)
    for name, (dtype, shape, data) in held.items():
        numbers = np.frombuffer(data, BF16).reshape(shape).copy()
        if name.endswith("gate_up_proj"):
            numbers[0, :32, 0] = 0
            numbers[0, :32, 1] *= BF16(2.0**-118)
            numbers[1, 32:, 2] *= BF16(2.0**120)
            numbers[2, ::2, 3] = BF16(-0.0)
        held[name] = (dtype, shape, numbers.tobytes())
    tensors = {n: ("BF16", list(shape), data) for n, (_, shape, data) in held.items()}
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})


def test_experts_of_gpt_oss_are_written_as_it_publishes_them(tmp_path):
    gpt_oss(tmp_path / "hub")
    keys = {"to": "hub", "quantise": ["experts=mxfp4"]}
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", **keys)
    assert {group for (group, *_) in result.audit.counts} == {"w1+w3", "w2"}
    plain, made = contents(tmp_path / "hub"), contents(tmp_path / "x")
    told = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "mxfp4"
    assert {"lm_head", "model.layers.0.mlp.router"} <= set(told["modules_to_not_convert"])
    assert not any("experts" in module for module in told["modules_to_not_convert"])
    stacks = [name for name in plain if re.search("experts.(gate_up|down)_proj$", name)]
    assert len(stacks) == 4 and not set(stacks) & set(made)
    for name in plain.keys() - set(stacks):
        assert made[name] == plain[name]
    for name in stacks:
        numbers = np.frombuffer(plain[name][2], BF16).reshape(plain[name][1])
        rows = numbers.astype(np.float32).transpose(0, 2, 1)
        groups = rows.reshape(*rows.shape[:2], -1, 32)
        largest = np.abs(groups).max(-1)
        with np.errstate(divide="ignore"):
            exponents = np.where(largest > 0, np.floor(np.log2(largest)) - 2, 0).clip(-126, 127)
        (dtype, shape, scales), (_, blocks, codes) = made[f"{name}_scales"], made[f"{name}_blocks"]
        assert (dtype, shape, blocks) == ("uint8", groups.shape[:3], (*groups.shape[:3], 16))
        found = np.frombuffer(scales, np.uint8).reshape(shape).astype(np.int64) - 127
        assert (found == exponents).all()
        scaled = (groups / np.exp2(exponents)[..., None]).clip(-6, 6).astype(np.float32)
        near = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        assert (near[..., ::2] | near[..., 1::2] << 4).tobytes() == codes


def test_experts_of_gpt_oss_and_back_have_the_same_codes(tmp_path):
    gpt_oss(tmp_path / "hub", hidden_size=96, num_attention_heads=12, head_dim=8)
    keys = {"to": "hub", "quantise": ["experts=mxfp4"]}
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", **keys)
    ckptforge.convert(tmp_path / "x", tmp_path / "plain", to="hub", dtype="bf16")
    ckptforge.convert(tmp_path / "plain", tmp_path / "again", **keys)
    codes, again = contents(tmp_path / "x"), contents(tmp_path / "again")
    assert codes == again
    small = ckptforge.convert(tmp_path / "hub", tmp_path / "small", **keys, memory="24M", workers=1)
    assert contents(tmp_path / "small") == codes and small.tensors == len(codes)


def test_the_worst_block_of_experts_of_gpt_oss_is_of_inputs_that_share_a_scale(tmp_path):
    """Its stacks are [experts, inputs, outputs], their codes [experts, outputs, inputs]."""
    gpt_oss(tmp_path / "hub", hidden_size=96, num_attention_heads=12, head_dim=8)
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "x", to="hub", quantise=["experts=mxfp4"]
    )
    audited = {group: count for (group, *_), count in result.audit.counts.items()}
    ckptforge.convert(tmp_path / "x", tmp_path / "plain", to="hub", dtype="fp32")
    plain, made = contents(tmp_path / "hub"), contents(tmp_path / "plain")
    found = ckptforge.compare(tmp_path / "hub", tmp_path / "x", dequantise=True).quantisation
    assert {one.kind for one in found} == {"w1+w3", "w2"}
    for one in found:
        assert math.isclose(one.worst_block, audited[one.kind].worst_block, rel_tol=1e-5)
        (_, shape, data), (_, _, other) = plain[one.worst_tensor], made[one.worst_tensor]
        numbers = np.frombuffer(data, BF16).reshape(shape).astype(np.float64)
        gaps = np.frombuffer(other, np.float32).reshape(shape) - numbers
        errors, sums = (
            np.square(one).reshape(shape[0], -1, 32, shape[2]).sum(axis=2)
            for one in (gaps, numbers)
        )
        ratios = np.divide(errors, sums, out=np.zeros_like(errors), where=sums > 0)
        assert math.isclose(one.worst_block, math.sqrt(ratios.max()), rel_tol=1e-5)


def test_blocks_lie_in_a_value_as_its_fragments_do():
    """Cut between blocks, turned, of several axes; not cut within one."""
    dtype = BY_NAME["int8"]
    extents = (Extent(0, 0, 48),)
    stored = Stored(path=Path("x"), name="w", dtype=dtype, shape=(8, 6), extents=extents)

    def cut(at):
        both = (Transfer((n, 6), 6 * i, (6, 1), 6 * i, (6, 1)) for i, n in ((0, at), (at, 8 - at)))
        terms = (Term(fragments=tuple(Fragment(stored, one) for one in both)),)
        return Value(dtype=dtype, shape=(8, 6), terms=terms, kind="w")

    assert scale_block(cut(4), (2, 3)) == (2, 3) and scale_block(cut(3), (2, 3)) is None
    assert scale_block(cut(3), (1, 6)) == (1, 6)
    turned = Fragment(stored, Transfer((6, 8), 0, (1, 6), 0, (8, 1)))
    value = Value(dtype=dtype, shape=(6, 8), terms=(Term(fragments=(turned,)),), kind="w")
    assert scale_block(value, (2, 3)) == (3, 2) and scale_block(value, (8, 1)) == (1, 8)
    assert scale_block(value, (1, 6)) == (6, 1) and scale_block(value, (100, 100)) == (6, 8)


@pytest.mark.slow
def test_transformers_loads_the_experts_of_gpt_oss_as_they_are_read_here(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gpt_oss(tmp_path / "hub")
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["experts=mxfp4"])
    ckptforge.convert(tmp_path / "x", tmp_path / "plain", to="hub", dtype="bf16")
    loaded = transformers.GptOssForCausalLM.from_pretrained(
        tmp_path / "x",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        dtype=torch.bfloat16,
    ).state_dict()
    for name, (_, shape, data) in contents(tmp_path / "plain").items():
        assert tuple(loaded[name].shape) == shape
        assert loaded[name].contiguous().view(torch.int16).numpy().tobytes() == data


def test_what_cannot_be_written_as_stacked_codes_is_refused(tmp_path):
    gpt_oss(tmp_path / "hub", intermediate_size=48)
    for words, message in (
        (["experts=mxfp4"], r"down_proj'? is .*expected floats, and a multiple of 32 of inputs"),
        (["w1=mxfp4", "wq=mxfp4"], "stacked experts, such as .* give .*experts=mxfp4"),
        (["experts=mxfp8"], "expected floats of 2 axes"),
    ):
        with pytest.raises(QuantisedError, match=message):
            ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=words)
    llama(tmp_path / "dense")
    with pytest.raises(UsageError, match=r"'experts'.*no such tensor\.$"):
        ckptforge.convert(tmp_path / "dense", tmp_path / "x", to="hub", quantise=["experts=mxfp4"])
    assert not (tmp_path / "x").exists()


def test_experts_alone_are_written_whatever_they_are_called(tmp_path):
    table = TABLES["deepseek_v3"]
    sizes = {"moe_intermediate_size": 32, "hidden_size": 64}
    write_model(tmp_path / "hub", table, {**table.example, **sizes})
    ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub", quantise=["experts=mxfp4"])
    own = [name for name in contents(tmp_path / "x") if name.endswith("weight_packed")]
    every = [n for n in contents(tmp_path / "hub") if re.search(r"mlp\.experts\.\d+\.", n)]
    assert sorted(own) == sorted(f"{name}_packed" for name in every) != []
