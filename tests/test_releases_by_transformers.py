"""What is written for Mistral's and Meta's programs, through transformers' own conversion scripts:
the same bits as the model that it was made of. Its wheels have them up to 4.46; pip downloads that
one, whose scripts run with the transformers that is installed."""

import importlib.util
import json
import zipfile

import pytest

import ckptforge
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import contents, wheel_of

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")
VERSION = "4.46.3"
TABLES = {table.name: table for table in shipped_tables()}
LLAMA = {**TABLES["llama"].example, "hidden_size": 128, "num_attention_heads": 16}
LLAMA["num_key_value_heads"] = 8


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The module of a model's script, by the model's name."""
    directory = tmp_path_factory.mktemp("transformers")
    if isinstance(found := wheel_of(f"transformers=={VERSION}", directory), str):
        pytest.skip(found)
    with zipfile.ZipFile(found) as wheel:
        for name in wheel.namelist():
            if "/convert_" in name:
                wheel.extract(name, directory)

    def load(model):
        name = f"convert_{model}_weights_to_hf"
        path = directory / "transformers" / "models" / model / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(("layout", "version"), [("meta", "3"), ("meta-llama2", "2")])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_llama_in_shards(script, layout, version, shards, tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], LLAMA)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "release", to=layout, shards=shards)
    script("llama").write_model(
        str(tmp_path / "theirs"),
        str(tmp_path / "release"),
        llama_version=version,
        vocab_size=LLAMA["vocab_size"],
        num_shards=shards,
    )
    assert contents(tmp_path / "theirs") == contents(tmp_path / "hub")
    theirs, own = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "hub")
    )
    for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "rms_norm_eps"):
        assert theirs[key] == own[key]


def test_the_first_mixtral(script, tmp_path):
    table = TABLES["mixtral"]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "release", to="mistral-v0.1")
    taken = {}
    module = script("mixtral")

    class Network:
        """What of transformers' network the script uses: that of 5 has other names in memory."""

        def __init__(self, config):
            self.config = config
            config._name_or_path = ""

        def load_state_dict(self, state, **_):
            taken.update(state)

        def named_parameters(self):
            return ()

        def save_pretrained(self, path, **_):
            pass

    module.MixtralForCausalLM = Network
    module.write_model(str(tmp_path / "theirs"), str(tmp_path / "release"), "7B")
    ckptforge.convert(tmp_path / "release", tmp_path / "ours", to="hub")
    torch = pytest.importorskip("torch")
    found = {
        name: ("bfloat16", tuple(one.shape), one.contiguous().view(torch.int16).numpy().tobytes())
        for name, one in taken.items()
    }
    assert found == contents(tmp_path / "hub") == contents(tmp_path / "ours")
