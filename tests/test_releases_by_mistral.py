"""What is written for mistral-inference, through mistral-inference: it loads every tensor, and
computes what transformers computes. pip downloads its wheel and what of others it imports; of
xformers, which needs a GPU, one function of torch stands in."""

import json
import subprocess
import sys
import zipfile

import pytest

import ckptforge
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import wheel_of

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")
WHEELS = ("mistral_inference==1.6.0", "simple_parsing==0.1.9", "docstring_parser==0.18.0")
TABLES = {table.name: table for table in shipped_tables()}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
PROGRAM = """
import json, sys, types
import torch

site, release, hub = sys.argv[1:]
sys.path.insert(0, site)
names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
for name in names:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []


def attention(q, k, v, attn_bias=None):
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return found.transpose(1, 2)


sys.modules[names[2]].memory_efficient_attention = attention
for name in ("AttentionBias", "BlockDiagonalCausalMask", "BlockDiagonalMask",
             "BlockDiagonalCausalWithOffsetPaddedKeysMask"):
    setattr(sys.modules[names[3]], name, type(name, (), {
        "from_seqlens": classmethod(lambda cls, *_, **__: cls())}))

from mistral_inference.transformer import Transformer
from transformers import AutoModelForCausalLM

ids = torch.arange(3, 20)
with torch.no_grad():
    own = Transformer.from_folder(release, max_batch_size=1, device="cpu", dtype=torch.float32)
    hub = AutoModelForCausalLM.from_pretrained(hub, dtype=torch.float32).eval()
    found, wanted = own(ids, [len(ids)]).float(), hub(ids[None]).logits[0]
print(json.dumps([(found - wanted).abs().max().item(), wanted.abs().max().item()]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory with mistral-inference and what it imports."""
    made = tmp_path_factory.mktemp("mistral")
    for requirement in WHEELS:
        directory = made / requirement
        directory.mkdir()
        if isinstance(found := wheel_of(requirement, directory), str):
            pytest.skip(found)
        with zipfile.ZipFile(found) as wheel:
            wheel.extractall(made / "site")
    return made / "site"


@pytest.mark.parametrize(("name", "changes"), [("llama", MISTRAL), ("mixtral", {})])
def test_mistral_inference_computes_the_same(name, changes, site, tmp_path):
    table = TABLES[name]
    write_model(tmp_path / "hub", table, {**table.example, **changes, "torch_dtype": "float32"})
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "release", to="mistral")
    paths = (site, tmp_path / "release", tmp_path / "hub")
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    difference, largest = json.loads(done.stdout.strip().splitlines()[-1])
    assert difference < 1e-6 < 1e-2 < largest
