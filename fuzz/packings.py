"""Weights that are packed: config.json and the tensors of a model in each packing, read through to
their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import PlanError
from ckptforge.examine.window import read_value
from ckptforge.foreign.json import parse_object
from ckptforge.quantisation.undo import undo
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from fuzz import mutate
from fuzz.target import Target, safetensors_file

_SIZES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I64": 8}
_INT4 = {"num_bits": 4, "strategy": "group", "group_size": 32}
Tensors = dict[str, tuple[str, list[int]]]


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


_GPTQ: Tensors = {
    "a.qweight": ("I32", [8, 16]),
    "a.qzeros": ("I32", [2, 2]),
    "a.scales": ("F16", [2, 16]),
    "a.g_idx": ("I32", [64]),
}
_AWQ: Tensors = {
    "a.qweight": ("I32", [64, 2]),
    "a.qzeros": ("I32", [2, 2]),
    "a.scales": ("F16", [2, 16]),
}
_PACKED: Tensors = {
    "a.weight_packed": ("I32", [16, 8]),
    "a.weight_scale": ("BF16", [16, 2]),
    "a.weight_zero_point": ("I32", [2, 2]),
    "a.weight_shape": ("I64", [2]),
}
_BLOCKS: Tensors = {"a_blocks": ("U8", [2, 16, 2, 16]), "a_scales": ("U8", [2, 16, 2])}
_EXPERTS: Tensors = {
    "a.weight": ("I8", [16, 32]),
    "a.scale": ("F8_E8M0", [16, 2]),
    "b.weight": ("F8_E4M3", [16, 32]),
    "b.scale": ("F8_E8M0", [1, 1]),
}
_MXFP4: Tensors = {"a.weight_packed": ("U8", [16, 32]), "a.weight_scale": ("U8", [16, 2])}
_NVFP4: Tensors = {
    "a.weight": ("U8", [16, 32]),
    "a.weight_scale": ("F8_E4M3", [16, 4]),
    "a.weight_scale_2": ("F32", []),
    "a.input_scale": ("F32", []),
}
_BYTES: Tensors = {
    "a.weight": ("I8", [16, 64]),
    "a.SCB": ("F32", [16]),
    "a.weight_format": ("U8", []),
}
_INTEGERS = {
    "a.g_idx": [i // 32 for i in range(64)],
    "a.weight_shape": [16, 64],
    "a.weight_format": [0],
}
_KINDS: tuple[tuple[dict[str, Any], Tensors], ...] = (
    ({"quant_method": "gptq", "bits": 4, "group_size": 32}, _GPTQ),
    ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, _AWQ),
    (_compressed("pack-quantized", **_INT4, symmetric=False), _PACKED),
    ({"quant_method": "mxfp4", "modules_to_not_convert": []}, _BLOCKS),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"}, _EXPERTS),
    (_compressed("mxfp4-pack-quantized", **_INT4), _MXFP4),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, _NVFP4),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, _BYTES),
)


def packings(work: Path) -> Target:
    """The length of config.json in two bytes, that file, and one of safetensors."""
    (work / "model").mkdir()
    path, where = work / "model" / "model.safetensors", str(work / "model" / "config.json")

    def read(data: bytes) -> None:
        config, tensors = _parts(data)
        path.write_bytes(tensors)
        undone = undo(open_checkpoint(path), parse_object(config, where, constants=True), where)
        files = OpenFiles()
        worker = Worker(files, Budget(1, 1 << 20, 1 << 20))
        try:
            for name, value in undone.model.values.items():
                if value.elements < 1 << 16:
                    assert read_value(name, value, worker).shape == value.shape
        except PlanError as error:
            assert "defect" not in str(error), error
            raise
        finally:
            files.close()

    return Target("packings", [_seed(*kind) for kind in _KINDS], _mutated, read)


def _seed(method: dict[str, Any], tensors: Tensors) -> bytes:
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * _SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    random = Random(0)
    body = bytearray(random.randrange(48, 120) for _ in range(at))  # floats of any dtype are finite
    for name, numbers in _INTEGERS.items():
        if name in tensors:
            begin, size = header[name]["data_offsets"][0], _SIZES.get(tensors[name][0], 1)
            packed = b"".join(number.to_bytes(size, "little") for number in numbers)
            body[begin : begin + len(packed)] = packed
    config = json.dumps({"torch_dtype": "bfloat16", "quantization_config": method}).encode()
    return _joined(config, safetensors_file(header, bytes(body)))


def _parts(data: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(data[:2], "little")
    return data[2:end], data[end:]


def _joined(config: bytes, tensors: bytes) -> bytes:
    config = config[: (1 << 16) - 1]
    return len(config).to_bytes(2, "little") + config + tensors


_METHODS = mutate.mixed(mutate.json_tree, mutate.words("json"))


def _mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    config, tensors = _parts(data)
    apart = [_parts(other) for other in others]
    kind = random.randrange(3)
    if kind != 1:
        config = _METHODS(config, [one for one, _ in apart], random)
    if kind != 0:
        tensors = mutate.safetensors(tensors, [one for _, one in apart], random)
    return _joined(config, tensors)
