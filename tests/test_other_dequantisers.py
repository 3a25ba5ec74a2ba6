"""Packed weights read as other programs compute them, on random words and at the edges: GPTQModel,
AutoAWQ, NVIDIA ModelOpt and bitsandbytes. What they compute is written down here anew, in torch and
in their order, from gptqmodel/nn_modules/qlinear (`dequantize_weight`) and gptqmodel/utils/model.py
(`convert_gptq_v1_to_v2_format_module`), awq/utils/packing_utils.py
(`dequantize_gemm`), modelopt/torch/quantization/qtensor/nvfp4_tensor.py (`dequantize`) and
bitsandbytes/functional.py (`int8_vectorwise_dequant`); the last is run too, where it is installed.
"""

import json

import ml_dtypes
import numpy as np
import pytest

import ckptforge
from tests.helpers import contents, write_safetensors
from tests.test_models import TABLES, write_model

torch = pytest.importorskip("torch")

NAME = "model.layers.0.self_attn.q_proj."
OUTPUTS, INPUTS, GROUP = 64, 96, 32
KINDS = {
    np.dtype(np.int32): "I32",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}


def read(directory, tensors, method, dtype):
    """What ckptforge reads of one packed weight of a model in this dtype, as its bits."""
    table = TABLES["llama"]
    sizes = {"hidden_size": INPUTS, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {**table.example, **sizes, "head_dim": 16, "num_hidden_layers": 1}
    write_model(directory, table, config)
    stored = {n: ("BF16", list(s), data) for n, (_, s, data) in contents(directory).items()}
    stored.pop(f"{NAME}weight")
    for name, array in tensors.items():
        whole = np.ascontiguousarray(array)
        stored[NAME + name] = KINDS[array.dtype], list(array.shape), whole.tobytes()
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    said = {**config, "torch_dtype": dtype, "quantization_config": method}
    (directory / "config.json").write_text(json.dumps(said))
    with ckptforge.open(directory) as model:
        return model[f"{NAME}weight"][...].view(np.uint16)


def bits(tensor):
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


def some_scales(rng, shape):
    """Scales of float16: usual ones, 0, the smallest, subnormal and largest ones, negative."""
    scales = rng.uniform(1e-4, 1e-1, shape).astype(np.float16)
    edges = np.array([0, 6e-8, 6e-5, 2000, -0.01, 1], np.float16)
    scales.flat[: edges.size] = edges
    return scales


def shifted(words, width, dim):
    """The numbers of `width` bits in 32-bit words, the first lowest, along a new axis."""
    shifts = torch.arange(0, 32, width, dtype=torch.int32)
    apart = shifts.view([-1 if axis == dim else 1 for axis in range(3)])
    return torch.bitwise_and(torch.bitwise_right_shift(words.unsqueeze(dim), apart), 2**width - 1)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["in order", "by importance"])
def test_gptq(tmp_path, width, form, order):
    rng, each = np.random.default_rng(width), 32 // width
    index = np.arange(INPUTS) // GROUP
    if order != "in order":
        index = rng.permutation(index)
    tensors = {
        "qweight": rng.integers(-(1 << 31), 1 << 31, (INPUTS // each, OUTPUTS), dtype=np.int32),
        "qzeros": rng.integers(-(1 << 31), 1 << 31, (3, OUTPUTS // each), dtype=np.int32),
        "scales": some_scales(rng, (3, OUTPUTS)),
        "g_idx": index.astype(np.int32),
    }
    held = {name: torch.from_numpy(array) for name, array in tensors.items()}
    codes = shifted(held["qweight"], width, 1).reshape(-1, OUTPUTS)
    packed = held["qzeros"]
    if form == "gptq":  # stored less one: convert_gptq_v1_to_v2_format_module
        packed = packed + {4: 0x11111111, 8: 0x01010101}[width]
    zeros = shifted(packed, width, 2).reshape(3, OUTPUTS)
    rows = held["g_idx"].long()
    theirs = held["scales"][rows] * (codes - zeros[rows])
    method = {"quant_method": "gptq", "bits": width, "group_size": GROUP, "checkpoint_format": form}
    method["desc_act"] = order != "in order"
    assert (read(tmp_path / "hub", tensors, method, "float16") == bits(theirs.T)).all()


@pytest.mark.parametrize("group", [GROUP, -1])
def test_awq(tmp_path, group):
    rng, groups = np.random.default_rng(1), INPUTS // GROUP if group > 0 else 1
    tensors = {
        "qweight": rng.integers(-(1 << 31), 1 << 31, (INPUTS, OUTPUTS // 8), dtype=np.int32),
        "qzeros": rng.integers(-(1 << 31), 1 << 31, (groups, OUTPUTS // 8), dtype=np.int32),
        "scales": some_scales(rng, (groups, OUTPUTS)),
    }
    held = {name: torch.from_numpy(array) for name, array in tensors.items()}
    back = torch.arange(OUTPUTS).view(-1, 8)[:, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(-1)
    codes = shifted(held["qweight"], 4, 2).reshape(INPUTS, -1)[:, back].to(torch.int8)
    zeros = shifted(held["qzeros"], 4, 2).reshape(groups, -1)[:, back].to(torch.int8)
    times = INPUTS // groups
    theirs = (codes - zeros.repeat_interleave(times, 0)) * held["scales"].repeat_interleave(
        times, 0
    )
    method = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    assert (read(tmp_path / "hub", tensors, method, "float16") == bits(theirs.T)).all()


@pytest.mark.parametrize("outer", [1e-4, 3.7, 2.0**-100])
def test_nvfp4_of_modelopt(tmp_path, outer):
    rng = np.random.default_rng(2)
    scales = rng.integers(0, 0x7F, (OUTPUTS, INPUTS // 16), np.uint8)
    scales[0, :3] = 0, 1, 0x7E  # nothing, the smallest, the largest
    tensors = {
        "weight": rng.integers(0, 256, (OUTPUTS, INPUTS // 2), np.uint8),
        "weight_scale": scales.view(ml_dtypes.float8_e4m3fn),
        "weight_scale_2": np.array(outer, np.float32),
    }
    codes = torch.from_numpy(tensors["weight"])
    apart = torch.stack([codes & 15, codes >> 4], -1).reshape(OUTPUTS, -1, 16).long()
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    values[8] = 0  # theirs has one zero
    own = torch.from_numpy(scales).view(torch.float8_e4m3fn).float() * torch.tensor(outer)
    theirs = (values[apart] * own[..., None]).reshape(OUTPUTS, INPUTS).to(torch.bfloat16)
    method = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    found = read(tmp_path / "hub", tensors, method, "bfloat16")
    # -0, which we keep, is 0 there
    assert (
        np.where(found == 0x8000, 0, found) == np.where(bits(theirs) == 0x8000, 0, bits(theirs))
    ).all()


def test_bitsandbytes(tmp_path):
    rng = np.random.default_rng(3)
    scales = rng.uniform(1e-3, 4, OUTPUTS).astype(np.float32)
    scales[:5] = 0, 1e-40, 1e36, np.float32(2.0**-126), 127
    tensors = {
        "weight": rng.integers(-128, 128, (OUTPUTS, INPUTS), np.int8),
        "SCB": scales,
        "weight_format": np.zeros((), np.uint8),
    }
    codes, stats = torch.from_numpy(tensors["weight"]), torch.from_numpy(scales)
    theirs = codes * stats.view(-1, 1) * 7.874015718698502e-3
    method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found = read(tmp_path / "hub", tensors, method, "bfloat16")
    assert (found == bits(theirs.to(torch.bfloat16))).all()


def test_bitsandbytes_itself(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    rng = np.random.default_rng(4)
    tensors = {
        "weight": rng.integers(-128, 128, (OUTPUTS, INPUTS), np.int8),
        "SCB": rng.uniform(1e-3, 4, OUTPUTS).astype(np.float32),
        "weight_format": np.zeros((), np.uint8),
    }
    codes, stats = (torch.from_numpy(tensors[name]) for name in ("weight", "SCB"))
    theirs = functional.int8_vectorwise_dequant(codes, stats).to(torch.bfloat16)
    method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert (read(tmp_path / "hub", tensors, method, "bfloat16") == bits(theirs)).all()
