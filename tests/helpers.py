"""Reading and making checkpoints for tests without the code under test, where that is what is
tested."""

from __future__ import annotations

import copy
import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.storage.files import read_range
from ckptforge.storage.local import DISK
from ckptforge.storage.store import Room
from ckptforge.tables.shipped import shipped_tables
from ckptforge.testing.stores import FailingStore

FIXTURES = Path(__file__).parent / "fixtures"
HUB = FIXTURES / "peer" / "hf_hub"
MINDSPORE = FIXTURES / "mindspore"
Tensor = tuple[str, tuple[int, ...], bytes]


def transformers_config(*model_type: str, **config: Any) -> Any:
    """transformers' configuration of a copy of these keys, as it writes into what it is given."""
    from transformers import AutoConfig

    return AutoConfig.for_model(*model_type, **copy.deepcopy(config))


def vision_language_config(name: str) -> dict[str, Any]:
    """The keys of a tiny model with a vision tower, its language model that of the table's
    example."""
    table = next(table for table in shipped_tables() if table.name == name)
    kept = ("architectures", "model_type", "torch_dtype", "tie_word_embeddings")
    text = {key: value for key, value in table.example.items() if key not in kept}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text |= {"rope_parameters": rope, "head_dim": 16, "num_attention_heads": 4}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 16}
    vision |= {"deepstack_visual_indexes": [0], "fullatt_block_indexes": [1]}
    return {"text_config": text, "vision_config": vision}


def contents(path: Path) -> dict[str, Tensor]:
    """name → (dtype, shape, bytes), read by ckptforge."""
    found: dict[str, Tensor] = {}
    for name, value in open_checkpoint(path).values.items():
        buffer = bytearray(value.nbytes)
        read_range(value.origin, 0, memoryview(buffer))
        found[name] = (value.dtype.name, value.shape, bytes(buffer))
    return found


def raw_safetensors(path: Path) -> dict[str, np.ndarray]:
    """name → array of unsigned integers, read by hand from a file or a directory: independent of
    ckptforge."""
    found = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, spec in header.items():
            begin, end = (8 + length + offset for offset in spec["data_offsets"])
            size = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4}[spec["dtype"]]
            found[name] = np.frombuffer(data[begin:end], f"u{size}").reshape(spec["shape"])
    return found


def write_safetensors(
    path: Path,
    tensors: dict[str, tuple[str, list[int], bytes]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a file by hand, right or wrong as the caller wants it."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
    raw = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(raw)) + raw + b"".join(data for _, _, data in tensors.values())
    )


def rounded(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers of float64 in a dtype, rounded once, as ml_dtypes doesn't for bfloat16."""
    if np.dtype(dtype) != np.dtype(ml_dtypes.bfloat16):
        return numbers.astype(dtype)
    near = numbers.astype(np.float32).view(np.uint32)
    below = near >> 16 << 16
    low, high = (bits.view(np.float32).astype(np.float64) for bits in (below, below + 0x10000))
    up, down = np.abs(high - numbers), np.abs(numbers - low)
    odd = below >> 16 & 1 == 1
    made = np.where((up < down) | ((up == down) & odd), below + 0x10000, below)
    return (made >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def eight_bits(
    directory: Path, block: tuple[int, int], seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The matrices of a model's layers as eight-bit floats with a scale for each block, as DeepSeek
    publishes its weights; what they stand for, as dtype and bytes by name."""
    rng = np.random.default_rng(seed)
    config = json.loads((directory / "config.json").read_text())
    stored, meant = {}, {}
    for name, (dtype, shape, data) in contents(directory).items():
        of_layers = re.search(r"(proj|_proj_with_mqa)\.weight$", name) and "eh_proj" not in name
        if not of_layers or len(shape) != 2:
            kind = {"bfloat16": "BF16", "int64": "I64"}[dtype]
            stored[name], meant[name] = (kind, list(shape), data), (dtype, shape, data)
            continue
        codes = rng.integers(0, 256, shape, np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0  # NaN
        scales = rng.uniform(
            1e-4, 3e-3, [-(-n // step) for n, step in zip(shape, block, strict=True)]
        ).astype(np.float32)
        spread = np.kron(scales, np.ones(np.minimum(block, shape), np.float32))[
            : shape[0], : shape[1]
        ]
        values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread
        stored[name] = ("F8_E4M3", list(shape), codes.tobytes())
        stored[f"{name}_scale_inv"] = ("F32", list(scales.shape), scales.tobytes())
        meant[name] = ("bfloat16", shape, values.astype(ml_dtypes.bfloat16).tobytes())
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": list(block),
    }
    (directory / "config.json").write_text(json.dumps(config))
    return stored, meant


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A tiny Mixtral's config.json."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": 12,
        "intermediate_size": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 5,
        "num_hidden_layers": 2,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "vocab_size": 7,
        "tie_word_embeddings": False,
        **changes,
    }


def write_hub(
    directory: Path, config: dict[str, Any], dtype: str = "BF16", seed: int = 0, files: int = 1
) -> None:
    """Writes a Mixtral in the hub layout by hand: every bit pattern may occur, NaN payloads
    included."""
    random = np.random.default_rng(seed)
    size = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[dtype]
    H, I, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d = config.get("head_dim") or H // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [V, H], "model.norm.weight": [H]}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = [V, H]
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        shapes |= {
            f"{base}.input_layernorm.weight": [H],
            f"{base}.post_attention_layernorm.weight": [H],
        }
        shapes |= {
            f"{base}.self_attn.q_proj.weight": [q, H],
            f"{base}.self_attn.o_proj.weight": [H, q],
        }
        shapes |= {f"{base}.self_attn.{name}_proj.weight": [kv, H] for name in "kv"}
        shapes[f"{base}.block_sparse_moe.gate.weight"] = [config["num_local_experts"], H]
        for expert in range(config["num_local_experts"]):
            experts = f"{base}.block_sparse_moe.experts.{expert}"
            shapes |= {
                f"{experts}.w1.weight": [I, H],
                f"{experts}.w2.weight": [H, I],
                f"{experts}.w3.weight": [I, H],
            }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    names = sorted(shapes)
    tensors = {
        name: (dtype, shapes[name], random.bytes(int(np.prod(shapes[name])) * size))
        for name in names
    }
    if files == 1:
        write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
        return
    weight_map = {}
    for i in range(files):
        name = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = {tensor: tensors[tensor] for tensor in names[i::files]}
        write_safetensors(directory / name, part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def with_default_signals():
    """In a child before it starts: signals as in a terminal, also where the tests run under nohup
    or in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class WithRoom(FailingStore):
    """The disk, where some directories have other room than they have."""

    def __init__(self, rooms: dict[Path, Room]) -> None:
        super().__init__(DISK)
        self.rooms = rooms

    def room(self, directory: Path) -> Room:
        return self.rooms.get(directory) or super().room(directory)


def adapted_by_peft(torch, directory: Path, kind: str, config) -> None:
    """In hub, lora and peft of a directory: a model of transformers' class `kind`, an adapter of
    its queries and stacked experts with random factors, and the model that peft merges of both."""
    import peft
    import transformers

    torch.manual_seed(0)
    made = transformers_config(**{**config, "initializer_range": 0.1, "architectures": [kind]})
    of_kind = getattr(transformers, kind)
    of_kind(made).to(torch.float32).save_pretrained(directory / "hub")
    model = of_kind.from_pretrained(directory / "hub", dtype=torch.float32)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wanted = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=targets
    )
    adapted = peft.get_peft_model(model, wanted)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(directory / "lora")
    adapted.merge_and_unload().save_pretrained(directory / "peft")


def wheel_of(requirement: str, directory: Path) -> Path | str:
    """A wheel without what it requires, downloaded by pip; or why there is none."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, "--dest", directory, requirement], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip download failed"])[-1]
        return f"{requirement} can't be downloaded: {reason}"
    return next(directory.glob("*.whl"))
