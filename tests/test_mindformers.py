"""Our output against what MindFormers' own converters make of the same model, for those who have
its sources:

    MINDFORMERS=<a checkout of mindspore-lab/mindformers> pytest tests/test_mindformers.py

In float32, as they keep some tensors in that whatever dtype is asked for. The scripts run as they
are, each in a process of its own, with stand-ins for the few names that they import from the
package, which can't be imported without an Ascend. Last run with master 167a50dec.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckptforge
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import contents, eight_bits

SOURCES = os.environ.get("MINDFORMERS")
pytestmark = pytest.mark.skipif(
    SOURCES is None, reason="MINDFORMERS isn't set to a checkout of its sources"
)
TABLES = {table.name: table for table in shipped_tables()}

# What the scripts use of the package. Their arithmetic for concatenated weights is read from the
# sources.
STAND_IN = """
import importlib.util, logging, sys, types
from pathlib import Path
sources, script = Path(sys.argv[1]), sys.argv[2]
class Anything:
    def __getattr__(self, name): return Anything()
    def __call__(self, *args, **kwargs): return lambda wrapped: wrapped
def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
some = {name: Anything() for name in ("MindFormerConfig", "MindFormerRegister", "MindFormerModuleType")}
module("mindformers", **some)
module("mindformers.tools", logger=logging.getLogger(), **some)
module("mindformers.tools.logger", logger=logging.getLogger())
module("mindformers.tools.utils", set_safe_mode_for_file_or_dir=lambda *_: None, str2bool=lambda text: text.lower() == "true")
module("mindformers.utils")
load("mindformers.utils.convert_utils", sources / "mindformers/utils/convert_utils.py")
converter = load("converter", sources / script)
import mindspore as ms, torch
"""  # noqa: E501


def run(script: str, code: str, **names: object) -> None:
    text = (
        STAND_IN + "\n".join(f"{name} = {value!r}" for name, value in names.items()) + "\n" + code
    )
    done = subprocess.run(
        [sys.executable, "-c", text, SOURCES, script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def merged(directory: Path) -> dict:
    return {
        name: tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in contents(file).items()
    }


def keys(config: dict) -> dict:
    """The flags of the toolkit's scripts."""
    names = {
        "num_layers": "num_hidden_layers",
        "num_routed_experts": "n_routed_experts" if "n_routed_experts" in config else "num_experts",
        "ffn_hidden_size": "intermediate_size",
        "moe_ffn_hidden_size": "moe_intermediate_size",
        "num_query_groups": "num_key_value_heads",
        "kv_channels": "head_dim",
        "n_head": "num_attention_heads",
    }
    same = (
        "hidden_size num_attention_heads first_k_dense_replace num_nextn_predict_layers "
        "qk_nope_head_dim qk_rope_head_dim v_head_dim"
    )
    return {
        **{new: config.get(old) for new, old in names.items()},
        **{name: config.get(name) for name in same.split()},
        "max_worker": 2,
    }


def both_in_mcore(work: Path, config: dict, dtype: str) -> tuple[dict, dict]:
    """What we and what they make of the hub directory in `work`."""
    (work / "theirs").mkdir()
    run(
        "toolkit/weight_convert/deepseekv3/convert_deepseekv3_hf_weight.py",
        f"converter.convert_hf_to_ms(hub, out, {{**config, 'dtype': ms.{dtype}}})",
        hub=str(work / "hub"),
        out=str(work / "theirs"),
        config=keys(config),
    )
    ckptforge.to_ms(work / "hub", work / "ours.safetensors", layout="mcore")
    return contents(work / "ours.safetensors"), merged(work / "theirs")


def test_deepseek_to_mcore(tmp_path):
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, table.example, dtype="float32")
    ours, theirs = both_in_mcore(tmp_path, table.example, "float32")
    assert ours == theirs


def test_deepseek_in_eight_bits(tmp_path):
    table = TABLES["deepseek_v3"]
    config = {**table.example, "hidden_size": 320, "intermediate_size": 200}
    write_model(tmp_path / "hub", table, config)
    eight_bits(tmp_path / "hub", (128, 128))
    ours, theirs = both_in_mcore(tmp_path, config, "bfloat16")
    assert sorted(ours) == sorted(theirs)
    # theirs is float32
    assert [
        name for name in ours if ours[name] != theirs[name] and not name.endswith("expert_bias")
    ] == []


@pytest.mark.parametrize(
    ("name", "folder"),
    [("deepseek_v3", "deepseekv3"), ("qwen3", "qwen3"), ("qwen3_moe", "qwen3_moe")],
)
def test_mcore_to_hub(name, folder, tmp_path):
    table = TABLES[name]
    config = {**table.example, "tie_word_embeddings": False}
    write_model(tmp_path / "hub", table, config, dtype="float32")
    (tmp_path / "back").mkdir()
    ckptforge.to_ms(
        tmp_path / "hub", tmp_path / "ms" / "x.safetensors", layout="mcore", no_hash=True
    )
    for manifest in (tmp_path / "ms").glob("*.json"):
        manifest.unlink()
    run(
        f"toolkit/weight_convert/{folder}/reverse_mcore_{folder}_weight_to_hf.py",
        "converter.convert_ms_to_pt(ms_directory, out, {**config, 'dtype': torch.float32})",
        ms_directory=str(tmp_path / "ms"),
        out=str(tmp_path / "back"),
        config=keys(config),
    )
    assert merged(tmp_path / "back") == contents(tmp_path / "hub")


@pytest.mark.parametrize(("layout", "grouped"), [("legacy", True), ("legacy-bmm", False)])
def test_deepseek_to_legacy(layout, grouped, tmp_path):
    table = TABLES["deepseek_v3"]
    write_model(tmp_path / "hub", table, table.example, dtype="float32")
    run(
        "research/deepseek3/convert_weight.py",
        "converter.convert_pt_to_ms(hub, out, {**config, 'dtype': ms.float32})",
        hub=str(tmp_path / "hub"),
        out=str(tmp_path / "theirs"),
        config={**keys(table.example), "use_grouped_gemm": grouped, "save_format": "safetensors"},
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ours.safetensors", layout=layout)
    assert contents(tmp_path / "ours.safetensors") == merged(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("llama", "mindformers/models/llama/convert_weight.py"),
        ("qwen2", "research/qwen2_5/convert_weight.py"),
    ],
)
def test_legacy_and_concatenated(name, script, tmp_path):
    table = TABLES[name]
    config = {**table.example, "tie_word_embeddings": False, "torch_dtype": "float32"}
    write_model(tmp_path / "hub", table, config, dtype="float32")
    flags = {"num_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
    run(
        script,
        "converter.convert_pt_to_ms(hub, out + '/dense.ckpt', ms.float32)\n"
        "found = converter.convert_qkv_concat_weight(ms.load_checkpoint(out + '/dense.ckpt'), "
        "types.SimpleNamespace(model_config=config))\n"
        "ms.save_checkpoint([{'name': name, 'data': ms.Tensor(p.asnumpy())} for name, p in "
        "found.items()], out + '/concat.ckpt')",
        hub=str(tmp_path / "hub"),
        out=str(tmp_path),
        config={**config, **{new: config[old] for new, old in flags.items()}},
    )
    for layout, theirs in (("dense", "dense.ckpt"), ("dense-qkv-r1.4", "concat.ckpt")):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / f"ours-{layout}.ckpt", layout=layout)
        assert contents(tmp_path / f"ours-{layout}.ckpt") == contents(tmp_path / theirs), layout
