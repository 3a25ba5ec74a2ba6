"""Weights whose codes are packed into bytes and words: read as what they stand for, by the
definition and by the programs that write them."""

import importlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.checkpoints.files import read_file
from ckptforge.dtypes import BY_NAME, FLOAT4, UINT4
from ckptforge.errors import FormatError, QuantisedError
from ckptforge.examine.window import read_value
from ckptforge.quantisation.fp4 import StackedMxfp4
from ckptforge.quantisation.words import PackQuantized
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.steps.grid import Grid
from ckptforge.steps.grouped import Grouped
from ckptforge.steps.scaled import Scaled
from ckptforge.steps.told import Told
from ckptforge.testing.steps import StepCase, StepTests
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Term, Value
from tests.helpers import contents, write_safetensors
from tests.test_interfaces import stored
from tests.test_models import TABLES, write_model
from tests.test_quantisation import description, quantise

BF16 = ml_dtypes.bfloat16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
GROUP = 32


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis as int32, the first in the low bits."""
    each = 32 // bits
    split = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, each)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return (split << shifts).sum(-1, dtype=np.uint32).view(np.int32)


def gptq(rng, shape, bits=4, plus=1, shuffled=False, group=GROUP):
    outputs, inputs = shape
    groups = inputs // group if group > 0 else 1
    codes = rng.integers(0, 1 << bits, (inputs, outputs))
    zeros = rng.integers(0, 1 << bits, (groups, outputs))
    scales = rng.uniform(1e-3, 3e-3, (groups, outputs)).astype(np.float16)
    index = np.arange(inputs) // (group if group > 0 else inputs)
    if shuffled:
        index = rng.permutation(index)
    values = (codes - zeros[index]) * scales[index].astype(np.float64)
    packed = words(codes.T, bits).T
    ones = words(np.full((1, 32 // bits), plus), bits)
    return {
        "qweight": ("I32", np.ascontiguousarray(packed)),
        "qzeros": ("I32", words(zeros, bits) - ones),  # of words, as GPTQModel subtracts
        "scales": ("F16", scales),
        "g_idx": ("I32", index.astype(np.int32)),
    }, values.T


def awq(rng, shape, group=GROUP):
    outputs, inputs = shape
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    groups = inputs // group if group > 0 else 1
    codes, zeros = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs))
    scales = rng.uniform(1e-3, 3e-3, (groups, outputs)).astype(np.float16)
    index = np.arange(inputs) // (group if group > 0 else inputs)
    values = (codes - zeros[index]) * scales[index].astype(np.float64)

    def packed(numbers):
        return words(numbers.reshape(len(numbers), -1, 8)[:, :, order].reshape(len(numbers), -1), 4)

    return {
        "qweight": ("I32", packed(codes)),
        "qzeros": ("I32", packed(zeros)),
        "scales": ("F16", scales),
    }, values.T


def pack_quantized(rng, shape, bits=4, shifted=False, group=GROUP, shuffled=False):
    outputs, inputs = shape
    groups = inputs // group if group else 1
    half = 1 << bits - 1
    codes = rng.integers(-half, half, shape)
    scales = rng.uniform(1e-3, 3e-3, (outputs, groups)).astype(BF16)
    zeros = rng.integers(-half, half, (outputs, groups)) if shifted else np.zeros((outputs, groups))
    index = np.arange(inputs) // (group or inputs)
    if shuffled:
        index = rng.permutation(index)
    values = (codes - zeros[:, index]) * scales[:, index].astype(np.float64)
    found = {
        "weight_packed": ("I32", words(codes + half, bits)),
        "weight_scale": ("BF16", scales),
        "weight_shape": ("I64", np.array(shape, np.int64)),
    }
    if shifted:
        padded = np.pad((zeros + half).T, ((0, 0), (0, -outputs % (32 // bits))))
        found["weight_zero_point"] = ("I32", np.ascontiguousarray(words(padded, bits).T))
    if shuffled:
        found["weight_g_idx"] = ("I32", index.astype(np.int32))
    return found, values


def pack_quantized_whole(rng, shape, bits=4, shifted=False):
    """With one scale, and one zero point, for all of a tensor."""
    half = 1 << bits - 1
    codes = rng.integers(-half, half, shape)
    scale, zero = rng.uniform(1e-3, 3e-3, 1).astype(BF16), rng.integers(-half, half, 1, np.int8)
    found = {
        "weight_packed": ("I32", words(codes + half, bits)),
        "weight_scale": ("BF16", scale),
        "weight_shape": ("I64", np.array(shape, np.int64)),
    }
    if shifted:
        found["weight_zero_point"] = ("I8", zero)
    return found, (codes - (zero.astype(int) if shifted else 0)) * scale.astype(np.float64)


def halves(codes: np.ndarray) -> np.ndarray:
    pairs = codes.astype(np.uint8)
    return pairs[..., 0::2] | pairs[..., 1::2] << 4


def nvfp4(rng, shape, names=("weight_packed", "weight_scale", "weight_global_scale")):
    outputs, inputs = shape
    codes = rng.integers(0, 16, shape)
    scales = rng.integers(1, 0x7E, (outputs, inputs // 16), np.uint8).view(ml_dtypes.float8_e4m3fn)
    divides = names[2] == "weight_global_scale"
    outer = np.float32(rng.uniform(1e3, 2e3) if divides else rng.uniform(1e-4, 1e-3))
    wide = scales.astype(np.float32)
    scaled = wide / outer if divides else wide * outer
    values = E2M1[codes] * scaled.repeat(16, 1)
    weight, scale, last = names
    return {
        weight: ("U8", halves(codes)),
        scale: ("F8_E4M3", scales),
        last: ("F32", outer.reshape((1,) if divides else ())),
        "input_scale": ("F32", np.ones((), np.float32)),
    }, values


def fp4(rng, shape, codes_name="weight", dtype="I8", scale="weight_scale_inv", kind="F8_E8M0"):
    outputs, inputs = shape
    codes = rng.integers(0, 16, shape)
    exponents = rng.integers(110, 125, (outputs, inputs // 32), np.uint8)
    values = E2M1[codes] * np.exp2(exponents.astype(np.float64) - 127).repeat(32, 1)
    return {codes_name: (dtype, halves(codes)), scale: (kind, exponents)}, values


def bitsandbytes(rng, shape):
    codes = rng.integers(-127, 128, shape, np.int8)
    scales = rng.uniform(0.1, 0.3, shape[0]).astype(np.float32)
    values = codes.astype(np.float32) * scales[:, None] * np.float32(7.874015718698502e-3)
    return {
        "weight": ("I8", codes),
        "SCB": ("F32", scales),
        "weight_format": ("U8", np.zeros((), np.uint8)),
    }, values


def static(rng, shape, as_bits=False):
    codes = rng.integers(-128, 128, shape, np.int8)
    product = rng.uniform(1e-6, 3e-6, shape[0]).astype(np.float32)
    of_inputs = np.array([0.0123], np.float32)
    values = codes.astype(np.float32) * (product / of_inputs)[:, None]
    held = product.view(np.uint32).astype(np.int64) if as_bits else product
    return {
        "weight": ("I8", codes),
        "deq_scale": ("I64" if as_bits else "F32", held),
        "input_scale": ("F32", of_inputs),
        "input_offset": ("F32", np.zeros(1, np.float32)),
        "quant_bias": ("I32", np.zeros(shape[0], np.int32)),
    }, values


def mixed(rng, shape):
    """Scales of static and of dynamic activations, as ModelSlim's W8A8_MIX has them."""
    tensors, _ = static(rng, shape)
    scales = rng.uniform(1e-3, 3e-3, (shape[0], 1)).astype(np.float32)
    offsets = rng.integers(-9, 9, (shape[0], 1)).astype(np.float32)
    tensors |= {"weight_scale": ("F32", scales), "weight_offset": ("F32", offsets)}
    return tensors, (tensors["weight"][1] - offsets) * scales


def compressed(form, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": weights}},
    }


GROUPS = {"num_bits": 4, "strategy": "group", "group_size": GROUP}
MODEL_OPT = ("weight", "weight_scale", "weight_scale_2")
WAYS = {
    "gptq": (lambda r, s: gptq(r, s), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq shuffled": (
        lambda r, s: gptq(r, s, shuffled=True),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    ),
    "gptq v2, 8 bits": (
        lambda r, s: gptq(r, s, bits=8, plus=0),
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "gptq v2 under its other key": (
        lambda r, s: gptq(r, s, plus=0),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "format": "GPTQ_V2"},
    ),
    "gptq, whole rows": (
        lambda r, s: gptq(r, s, group=-1),
        {"quant_method": "gptq", "bits": 4, "group_size": -1},
    ),
    "awq": (lambda r, s: awq(r, s), {"quant_method": "awq", "bits": 4, "group_size": GROUP}),
    "gptq, layers left out by rules": (
        lambda r, s: gptq(r, s),
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "dynamic": {"-:.*lm_head.*": {}, "lm_head": {}, "+:.*up.*": {"sym": False}},
        },
    ),
    "gptq of 4 and 8 bits": (
        lambda r, s: gptq(r, s, *((4, 1), (8, 1))[int(r.integers(2))]),
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "dynamic": {"+:.*up_proj": {"bits": 8}},
        },
    ),
    "gptq with groups of two sizes": (
        lambda r, s: gptq(r, s, group=int(r.choice([16, GROUP]))),
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "dynamic": {".*up_proj": {"group_size": 16}},
        },
    ),
    "awq without zero points of its own": (
        lambda r, s: awq(r, s),
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": False},
    ),
    "awq, whole rows": (
        lambda r, s: awq(r, s, group=-1),
        {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM"},
    ),
    "pack-quantized": (
        lambda r, s: pack_quantized(r, s),
        compressed("pack-quantized", **GROUPS),
    ),
    "pack-quantized, shifted": (
        lambda r, s: pack_quantized(r, s, shifted=True),
        compressed("pack-quantized", **GROUPS, symmetric=False),
    ),
    "pack-quantized, 8 bits, rows": (
        lambda r, s: pack_quantized(r, s, bits=8, group=None),
        compressed("pack-quantized", num_bits=8, strategy="channel"),
    ),
    "pack-quantized, one scale": (
        lambda r, s: pack_quantized_whole(r, s),
        compressed("pack-quantized", num_bits=4, strategy="tensor"),
    ),
    "pack-quantized, one scale and zero point": (
        lambda r, s: pack_quantized_whole(r, s, 8, True),
        compressed("pack-quantized", num_bits=8, strategy="tensor", symmetric=False),
    ),
    "pack-quantized, shuffled": (
        lambda r, s: pack_quantized(r, s, shuffled=True),
        compressed("pack-quantized", **GROUPS, actorder="group"),
    ),
    "pack-quantized, shuffled and shifted": (
        lambda r, s: pack_quantized(r, s, 8, True, shuffled=True),
        compressed(
            "pack-quantized", **{**GROUPS, "num_bits": 8}, symmetric=False, actorder="group"
        ),
    ),
    "pack-quantized of 4 and 8 bits": (
        lambda r, s: pack_quantized(r, s, bits=int(r.choice([4, 8]))),
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {"weights": GROUPS},
                "group_1": {"weights": {**GROUPS, "num_bits": 8}},
            },
        },
    ),
    "pack-quantized with groups and rows": (
        lambda r, s: pack_quantized(r, s, group=[16, GROUP, None][int(r.integers(3))]),
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {
                "group_0": {"format": "pack-quantized", "weights": GROUPS},
                "group_1": {
                    "format": "pack-quantized",
                    "weights": {"num_bits": 4, "strategy": "channel"},
                },
                "group_2": {"weights": {**GROUPS, "group_size": 16}},
            },
        },
    ),
    "pack-quantized, said within": (
        lambda r, s: pack_quantized(r, s),
        {
            "quant_method": "compressed-tensors",
            "quantization_config": compressed("pack-quantized", **GROUPS),
        },
    ),
    "nvfp4-pack-quantized": (
        lambda r, s: nvfp4(r, s),
        compressed("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
    ),
    "mxfp4-pack-quantized": (
        lambda r, s: fp4(r, s, "weight_packed", "U8", "weight_scale", "U8"),
        compressed("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32),
    ),
    "NVFP4 of ModelOpt": (
        lambda r, s: nvfp4(r, s, MODEL_OPT),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ),
    "experts in fp4": (
        lambda r, s: fp4(r, s),
        {"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"},
    ),
    "bitsandbytes by its flag": (bitsandbytes, {"load_in_8bit": True}),
    "bitsandbytes": (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "static": (static, None),
    "static, as bits": (lambda r, s: static(r, s, as_bits=True), None),
    "mixed": (mixed, None),
    "MXFP4 of ModelSlim": (lambda r, s: fp4(r, s, "weight", "U8", "weight_scale", "U8"), None),
}
OF_MODEL_SLIM = {"mixed": "W8A8_MIX", "MXFP4 of ModelSlim": "W4A4_MXFP4"}  # else W8A8


def packed_model(directory: Path, way: str, seed: int = 0):
    """A model packed in one way; the bfloat16 bytes meant, by name."""
    make, method = WAYS[way]
    write_model(directory, TABLES["llama"], {**TABLES["llama"].example, **SIZES})
    rng = np.random.default_rng(seed)

    def change(name, shape):
        tensors, values = make(rng, shape)
        module = name.removesuffix("weight")
        found = {
            module + n: (kind, list(array.shape), array.tobytes())
            for n, (kind, array) in tensors.items()
        }
        return found, values.astype(np.float32)

    meant = quantise(directory, change, method)
    if method is None:
        names = [name for name in meant if "proj" in name]
        kind = OF_MODEL_SLIM.get(way, "W8A8")
        text = description(dict.fromkeys(names, kind), model_quant_type=kind)
        (directory / "quant_model_description.json").write_text(text)
    return meant


@pytest.mark.parametrize("way", list(WAYS))
def test_packed_weights_are_what_they_stand_for(tmp_path, way):
    meant = packed_model(tmp_path / "hub", way)
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")
    assert contents(tmp_path / "plain") == meant
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert any("computed in float32" in note for note in result.notes)
    assert ckptforge.compare(tmp_path / "hub", tmp_path / "plain").equal
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore", memory="1MiB")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == meant


@pytest.mark.parametrize(
    ("way", "file", "keys"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": GROUP, "desc_act": False}),
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": GROUP, "version": "GEMM"}),
    ],
)
def test_what_earlier_programs_said_in_a_file_of_its_own_is_read(tmp_path, way, file, keys):
    meant = packed_model(tmp_path / "hub", way)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hub" / file).write_text(json.dumps(keys))
    ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")
    assert contents(tmp_path / "plain") == meant
    assert not (tmp_path / "plain" / file).exists()


def test_codes_that_several_ways_of_packing_fit_are_refused(tmp_path):
    packed_model(tmp_path / "hub", "pack-quantized, 8 bits, rows")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = {"weights": {"num_bits": 4, "strategy": "channel"}}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantisedError, match=r"may be 4 bits in rows or 8 bits in rows: its sca"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")


@pytest.mark.parametrize("way", ["gptq", "awq", "pack-quantized", "nvfp4-pack-quantized"])
def test_a_weight_that_is_there_in_codes_and_by_itself_is_refused(tmp_path, way):
    packed_model(tmp_path / "hub", way)
    name = "model.layers.0.mlp.up_proj.weight"
    write_safetensors(tmp_path / "hub" / "more.safetensors", {name: ("BF16", [2, 2], bytes(8))})
    index = {"weight_map": {name: "more.safetensors"}}
    held = read_file(tmp_path / "hub" / "model.safetensors").tensors
    index["weight_map"] |= dict.fromkeys(held, "model.safetensors")
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"which is there by itself, too: bfloat16 \[2, 2\]"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")


@pytest.mark.parametrize("way", ["gptq", "awq", "pack-quantized", "nvfp4-pack-quantized"])
def test_any_part_of_packed_weights_can_be_read(tmp_path, way):
    meant = packed_model(tmp_path / "hub", way)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = np.frombuffer(meant[name][2], BF16).reshape(meant[name][1])

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(*(st.tuples(*3 * [st.integers(0, n)]) for n in whole.shape))
    def check(rows, columns):
        index = tuple(slice(min(a, b), max(a, b), step % 5 + 1) for a, b, step in (rows, columns))
        assert (model[name][index].view(np.uint16) == whole[index].view(np.uint16)).all()

    with ckptforge.open(tmp_path / "hub") as model:
        check()


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([1 << 20, 4096]),
)
def test_numbers_of_half_a_byte_arrive_in_any_order(tmp_path_factory, shape, chance, memory):
    """A tensor whose axes are turned, and cut at any element."""
    codes = np.random.default_rng(chance.randint(0, 99)).integers(0, 16, shape, np.uint8)
    flat = np.append(codes.reshape(-1), [0] * (codes.size % 2))
    directory = tmp_path_factory.mktemp("n")
    held = stored(directory, w=halves(flat).view(np.int8))["w"]
    view = replace(held, dtype=UINT4, shape=tuple(shape))
    order = chance.sample(range(len(shape)), len(shape))
    box = [sorted(chance.sample(range(n + 1), 2)) for n in shape]
    turned = codes[tuple(slice(*side) for side in box)].transpose(order)
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    transfer = Transfer(
        turned.shape,
        sum(lo * stride for (lo, _), stride in zip(box, strides, strict=True)),
        tuple(strides[i] for i in order),
        0,
        tuple(int(np.prod(turned.shape[i + 1 :])) for i in range(len(shape))),
    )
    ones = stored(tmp_path_factory.mktemp("s"), s=np.ones((1,), np.float32))["s"]
    step = Scaled(scale=Grid(stored=ones), block=tuple(shape))
    fragment = Fragment(view, transfer.ordered(), (step,))
    term = Term(fragments=(fragment,))
    value = Value(dtype=fragment.dtype, shape=turned.shape, terms=(term,), kind="n")
    found = read_value("n", value, Worker(OpenFiles(), Budget(1, memory)))
    assert (found == turned).all()


@pytest.mark.parametrize(
    ("way", "change", "error", "message"),
    [
        ("gptq", {"bits": 3}, QuantisedError, "[Bb]its 3 aren't read"),
        ("gptq", {"checkpoint_format": "marlin"}, QuantisedError, "only gptq and gptq_v2 are"),
        ("gptq", {"dynamic": {"x": {"bits": 3}}}, QuantisedError, "in other ways.*'x' has"),
        ("gptq", {"dynamic": {"x": {"pack_dtype": "int8"}}}, QuantisedError, "in other ways"),
        ("gptq", {"dynamic": {"x": 3}}, QuantisedError, "in other ways"),
        ("gptq", {"dynamic": ["x"]}, QuantisedError, "in other ways"),
        ("gptq", {"format": "marlin"}, QuantisedError, "only gptq and gptq_v2 are"),
        ("gptq", {"rotation": "hadamard"}, QuantisedError, "[Rr]otation 'hadamard' isn't read"),
        ("gptq", {"pack_dtype": "int16"}, QuantisedError, "only int32 is"),
        ("awq", {"checkpoint_format": "gemv"}, QuantisedError, "only gemm is"),
        ("awq", {"backend": "llm-awq"}, QuantisedError, "[Bb]ackend 'llm-awq' isn't read"),
        ("gptq", {"group_size": 64}, FormatError, r"scales.*expected.*\[2, 64\]"),
        ("awq", {"version": "gemv"}, QuantisedError, "only gemm is"),
        ("awq", {"group_size": "x"}, QuantisedError, "isn't a number of elements"),
        ("bitsandbytes", {"load_in_4bit": True}, QuantisedError, "in 8 bits only"),
        ("experts in fp4", {"expert_dtype": "int3"}, QuantisedError, "[Ee]xperts in 'int3'"),
    ],
)
def test_what_is_packed_otherwise_is_refused(tmp_path, way, change, error, message):
    packed_model(tmp_path / "hub", way)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    assert not (tmp_path / "x").exists()


def without(directory: Path, ending: str, **other: tuple[str, np.ndarray]) -> None:
    """Takes tensors with this ending away, or replaces them."""
    kinds = {
        "bfloat16": "BF16", "float16": "F16", "int32": "I32", "int64": "I64", "uint8": "U8",
        "float8_e4m3fn": "F8_E4M3", "float32": "F32", "int8": "I8",
    }  # fmt: skip
    kept = {
        name: (kinds[dtype], list(shape), data)
        for name, (dtype, shape, data) in contents(directory).items()
    }
    for name in [name for name in kept if name.endswith(ending)]:
        kept.pop(name)
        if ending in other:
            dtype, array = other[ending]
            kept[name] = (dtype, list(array.shape), array.tobytes())
    write_safetensors(directory / "model.safetensors", kept, {"format": "pt"})


@pytest.mark.parametrize(
    ("way", "ending"),
    [
        ("gptq", "qzeros"),
        ("gptq shuffled", "g_idx"),
        ("awq", "scales"),
        ("pack-quantized", "weight_shape"),
        ("pack-quantized, shifted", "weight_zero_point"),
        ("nvfp4-pack-quantized", "weight_global_scale"),
        ("pack-quantized", "weight_scale"),
        ("pack-quantized, shuffled", "weight_g_idx"),
        ("pack-quantized, one scale and zero point", "weight_zero_point"),
    ],
)
def test_parts_of_packed_weights_that_are_missing_are_named(tmp_path, way, ending):
    packed_model(tmp_path / "hub", way)
    without(tmp_path / "hub", ending)
    with pytest.raises(FormatError, match=rf"there is no '.*{ending}'"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")


def test_groups_and_shapes_that_cannot_be_are_refused(tmp_path):
    packed_model(tmp_path / "gptq", "gptq shuffled")
    beyond = np.array([7] * 64, np.int32)
    without(tmp_path / "gptq", "q_proj.g_idx", **{"q_proj.g_idx": ("I32", beyond)})
    with pytest.raises(FormatError, match="g_idx.*names groups from 7 to 7, but there are 2"):
        ckptforge.convert(tmp_path / "gptq", tmp_path / "x", to="hub")
    packed_model(tmp_path / "ct", "pack-quantized")
    shape = np.array([64, 63], np.int64)
    without(tmp_path / "ct", "q_proj.weight_shape", **{"q_proj.weight_shape": ("I64", shape)})
    with pytest.raises(FormatError, match=r"weight_shape.*says \[64, 63\]"):
        ckptforge.convert(tmp_path / "ct", tmp_path / "x", to="hub")


def test_what_a_description_says_otherwise_is_refused(tmp_path):
    packed_model(tmp_path / "hub", "static, as bits")
    more = np.full(64, 1 << 40, np.int64)
    without(tmp_path / "hub", "q_proj.deq_scale", **{"q_proj.deq_scale": ("I64", more)})
    with pytest.raises(FormatError, match="more than the bits of a float32"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")
    packed_model(tmp_path / "mixed", "mixed")
    place = tmp_path / "mixed" / "quant_model_description.json"
    said = json.loads(place.read_text())
    for change, message in (
        ({"metadata": {"quarot": {"max_tp_size": 4}}}, r"more than the weights \('quarot'\)"),
        ({"model.layers.0.mlp.up_proj.weight": "FLOAT"}, "neither codes nor scales"),
        ({"model.layers.0.mlp.up_proj.weight": "W4A4_MXFP4"}, "weight_scale.*expected uint8"),
    ):
        place.write_text(json.dumps(said | change))
        with pytest.raises((FormatError, QuantisedError), match=message):
            ckptforge.convert(tmp_path / "mixed", tmp_path / "x", to="hub")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("way", ["pack-quantized", "nvfp4-pack-quantized", "experts in fp4"])
def test_many_scales_are_held_in_parts(tmp_path, monkeypatch, way):
    meant = packed_model(tmp_path / "hub", way)
    monkeypatch.setattr("ckptforge.quantisation.parts._MOST", 7)
    with ckptforge.open(tmp_path / "hub") as model:
        value = model.as_model.values["model.layers.0.mlp.down_proj.weight"]
        fragments = list(value.fragments)
        assert len(fragments) > 10
        assert max(f.steps[-1].scale.stored.elements for f in fragments) <= 7
    ckptforge.convert(tmp_path / "hub", tmp_path / "plain", to="hub")
    assert contents(tmp_path / "plain") == meant
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="mcore")
    assert ckptforge.compare(tmp_path / "plain", tmp_path / "x.ckpt").equal


def test_weights_without_numbers_are_refused(tmp_path):
    packed_model(tmp_path / "hub", "gptq, whole rows")
    none = np.zeros((0, 64), np.int32)
    without(tmp_path / "hub", "q_proj.qweight", **{"q_proj.qweight": ("I32", none)})
    with pytest.raises(FormatError, match=r"qweight' is int32 \[0, 64\], expected some numbers"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", to="hub")


def test_zero_points_of_rows_that_fill_no_word_are_read(tmp_path):
    outputs, inputs = 36, 64
    tensors, values = pack_quantized(np.random.default_rng(3), (40, inputs), shifted=True)
    tensors["weight_shape"] = ("I64", np.array([outputs, inputs], np.int64))
    for name in ("weight_packed", "weight_scale"):
        dtype, array = tensors[name]
        tensors[name] = (dtype, array[:outputs])
    file = tmp_path / "model.safetensors"
    entries = {
        f"x.{name}": (dtype, list(array.shape), np.ascontiguousarray(array).tobytes())
        for name, (dtype, array) in tensors.items()
    }
    write_safetensors(file, entries, {"format": "pt"})
    held = {name: value.origin for name, value in ckptforge.open(file).as_model.values.items()}
    (packed,) = PackQuantized(kinds=((4, GROUP),), shifted=True).weights(held)
    value = replace(packed.value, dtype=BY_NAME["float32"])
    found = read_value("x", value, Worker(OpenFiles(), Budget(1, 1 << 20)))
    assert (found == values[:outputs].astype(np.float32)).all()


def test_compressed_tensors_unpacks_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    compressors = importlib.import_module("compressed_tensors.compressors")
    schemes = importlib.import_module("compressed_tensors.quantization")
    formats = importlib.import_module("compressed_tensors.config").CompressionFormat
    mixed = ("pack-quantized of 4 and 8 bits", "pack-quantized with groups and rows")
    within = "pack-quantized, said within"
    others = [way for way in WAYS if "pack-quantized" in way and way not in (*mixed, within)]
    for way in [way for way in others if "shuffled" not in way]:  # which it no longer reads
        config = WAYS[way][1]
        kind, weights = config["format"], dict(config["config_groups"]["group_0"]["weights"])
        weights["type"] = "int" if kind == "pack-quantized" else "float"
        if kind == "mxfp4-pack-quantized":
            weights["scale_dtype"] = torch.uint8
        scheme = schemes.QuantizationScheme(
            targets=["Linear"], weights=schemes.QuantizationArgs(**weights)
        )
        rng = np.random.default_rng(4)
        tensors, values = WAYS[way][0](rng, (48, 64))
        state = {name: as_torch(torch, array) for name, (_, array) in tensors.items()}
        compressor = compressors.BaseCompressor.load_from_registry(formats(kind).value)
        found = compressor.decompress(state, scheme)["weight"].to(torch.bfloat16)
        meant = values.astype(np.float32).astype(BF16).view(np.int16)
        assert (found.view(torch.int16).numpy() == meant).all(), way


def as_torch(torch, array):
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    return torch.from_numpy(np.array(array))


def test_experts_of_gpt_oss_are_unpacked_as_transformers_does(tmp_path):
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (3, 10, 2, 16), np.uint8)
    exponents = rng.integers(100, 140, (3, 10, 2), np.uint8)
    held = stored(tmp_path, x_blocks=blocks.view(np.int8), x_scales=exponents.view(np.int8))
    tensors = {name: replace(one, dtype=BY_NAME["uint8"]) for name, one in held.items()}
    (packed,) = StackedMxfp4().weights(tensors)
    assert (packed.name, packed.value.shape) == ("x", (3, 64, 10))
    assert max(s.memory(f.stored) for f in packed.value.fragments for s in f.steps) < 1 << 18
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(3, 10, 2, 32)
    values = E2M1[nibbles] * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    meant = values.reshape(3, 10, 64).transpose(0, 2, 1).astype(BF16)
    value = replace(packed.value, dtype=BY_NAME["bfloat16"])
    for memory in (1 << 20, 1 << 12):
        found = read_value("x", value, Worker(OpenFiles(), Budget(1, memory, 1 << 20)))
        assert (found.view(np.uint16) == meant.view(np.uint16)).all()
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    theirs = mxfp4.convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(exponents))
    assert (theirs.view(torch.int16).numpy() == meant.view(np.int16)).all()


def test_transformers_unpacks_experts_in_fp4_the_same():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    fp8 = importlib.import_module("transformers.integrations.finegrained_fp8")
    if not hasattr(fp8.Fp8Dequantize, "_unpack_fp4"):
        pytest.skip("this transformers reads none")
    tensors, values = fp4(np.random.default_rng(1), (48, 64))
    codes = torch.from_numpy(tensors["weight"][1].view(np.int8).copy())
    scales = torch.from_numpy(tensors["weight_scale_inv"][1].copy()).view(torch.float8_e8m0fnu)
    found = fp8.Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    meant = values.astype(np.float32).astype(BF16).view(np.int16)
    assert (found.view(torch.int16).numpy() == meant).all()


class TestGrouped(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        rng = np.random.default_rng(0)
        tensors, values = gptq(rng, (24, 64), shuffled=True)
        codes, zeros = tensors["qweight"][1], tensors["qzeros"][1]
        scales, index = tensors["scales"][1].astype(np.float32), tensors["g_idx"][1]
        held = stored(
            tmp_path,
            w=codes.view(np.int8),
            zeros=zeros.view(np.int8),
            scales=scales,
            groups=index.view(np.float32),
        )
        view = replace(held["w"], dtype=UINT4, shape=(8, 24, 8))
        offset = Grid(stored=replace(held["zeros"], dtype=UINT4, shape=(2, 24)), plus=1)
        scaled = Scaled(scale=Grid(stored=held["scales"]), offset=offset, block=(4, 1, 8))
        groups = replace(held["groups"], dtype=BY_NAME["int32"])
        step = Grouped(scaled=scaled, groups=groups)
        expected = values.T.reshape(8, 8, 24).transpose(0, 2, 1).astype(np.float32)
        return StepCase(
            step=step,
            stored=view,
            expected=np.ascontiguousarray(expected),
            others=[
                replace(step, groups=held["zeros"]),
                replace(step, scaled=replace(scaled, offset=None)),
            ],
        )


class TestGroupedRows(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        tensors, values = pack_quantized(np.random.default_rng(0), (24, 64), 8, shuffled=True)
        held = stored(
            tmp_path,
            w=tensors["weight_packed"][1].view(np.int8),
            scales=tensors["weight_scale"][1].astype(np.float32),
            groups=tensors["weight_g_idx"][1].view(np.float32),
        )
        scaled = Scaled(scale=Grid(stored=held["scales"]), block=(1, GROUP), shift=128.0)
        step = Grouped(scaled=scaled, groups=replace(held["groups"], dtype=BY_NAME["int32"]))
        return StepCase(
            step=step,
            stored=replace(held["w"], dtype=BY_NAME["uint8"], shape=(24, 64)),
            expected=values.astype(np.float32),
            others=[replace(step, scaled=replace(scaled, shift=0.0))],
        )


class TestPackedFloats(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        tensors, values = nvfp4(np.random.default_rng(0), (24, 64), MODEL_OPT)
        held = stored(
            tmp_path,
            w=tensors["weight"][1].view(np.int8),
            scale=tensors["weight_scale"][1],
            outer=tensors["weight_scale_2"][1],
        )
        grid = Grid(stored=held["scale"], outer=held["outer"])
        step = Scaled(scale=grid, block=(1, 16))
        return StepCase(
            step=step,
            stored=replace(held["w"], dtype=FLOAT4, shape=(24, 64)),
            expected=values,
            others=[
                replace(step, scale=replace(grid, divides=True)),
                replace(step, scale=replace(grid, outer=None)),
                replace(step, scale=replace(grid, axes=(0, 1))),
            ],
        )


class TestTold(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        held = stored(tmp_path, w=np.ones((3, 4), np.float32), shape=np.array([3, 4], np.int8))
        step = Told(stored=held["shape"], numbers=(3, 4))
        return StepCase(
            step=step,
            stored=held["w"],
            expected=np.ones((3, 4), np.float32),
            others=[replace(step, numbers=(3, 5)), replace(step, stored=held["w"])],
        )


def test_routed_experts_in_int4_beside_bfloat16_as_kimi_k2_thinking_has_them(tmp_path):
    """Read by the table of its model_type, to MindFormers' network and back."""
    table = TABLES["deepseek_v3"]
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
    write_model(tmp_path / "hub", table, {**table.example, **sizes, "model_type": "kimi_k2"})
    held, rng = contents(tmp_path / "hub"), np.random.default_rng(0)
    stored_, meant = {}, {}
    for name, (_, shape, data) in held.items():
        stored_[name], meant[name] = ("BF16", list(shape), data), data
        if ".mlp.experts." in name:
            del stored_[name]
            tensors, values = pack_quantized(rng, shape)
            module = name.removesuffix("weight")
            for part, (kind, array) in tensors.items():
                stored_[module + part] = kind, list(array.shape), array.tobytes()
            meant[name] = values.astype(np.float32).astype(BF16).tobytes()
    assert len(stored_) > len(held)
    write_safetensors(tmp_path / "hub" / "model.safetensors", stored_, {"format": "pt"})
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    weights = {
        **{"actorder": None, "block_structure": None, "dynamic": False, "group_size": GROUP},
        **{"num_bits": 4, "observer": "minmax", "strategy": "group", "symmetric": True},
        "type": "int",
    }
    told = compressed("pack-quantized", **weights)
    told |= {"ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]}
    config["quantization_config"] = {**told, "quantization_status": "compressed"}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    ckptforge.convert(tmp_path / "hub", tmp_path / "x.ckpt", to="mcore")
    ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "back", to="hub")
    assert {name: data for name, (_, _, data) in contents(tmp_path / "back").items()} == meant
    said = json.loads((tmp_path / "back" / "config.json").read_text())
    assert said["model_type"] == "kimi_k2" and "quantization_config" not in said
