"""`verify` of two Hugging Face directories: losses are transformers' own, whatever the shapes."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.errors import InputNotFoundError, UsageError
from ckptforge.forward.weights import Weights
from ckptforge.pages import html_page
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import transformers_config, vision_language_config
from tests.test_json import check
from tests.test_verify import changed, model

TABLES = {table.name: table for table in shipped_tables()}
IDS = [int(one) for one in np.random.default_rng(0).integers(0, 64, 12)]


@pytest.fixture(scope="module")
def torch():
    """torch, where transformers is there, too."""
    found = pytest.importorskip("torch")
    found.set_num_threads(1)
    pytest.importorskip("transformers")
    return found


@pytest.fixture
def hub(torch, tmp_path):
    return model(tmp_path / "hub")


def loss_of(torch, directory, ids):
    """As transformers computes it, the model loaded as a whole."""
    import transformers

    kind = json.loads((directory / "config.json").read_text())["architectures"][0]
    whole = getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return float(whole(torch.tensor([ids]), labels=torch.tensor([ids])).loss)


def test_what_transformers_does_not_compute_is_refused(torch, tmp_path):
    table = TABLES["telechat2"]
    write_model(tmp_path / "a", table, table.example, dtype="float32")
    with pytest.raises(ckptforge.VerifyError, match="has no language model for model_type"):
        ckptforge.verify(tmp_path / "a", tmp_path / "a", tokens=IDS)


WITH_TOWERS = ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {*WITH_TOWERS, "telechat2"}))
def test_the_losses_of_every_model_are_those_of_transformers(torch, tmp_path, name):
    for seed, made in enumerate(("a", "b")):
        config = {**TABLES[name].example, "torch_dtype": "float32", "num_nextn_predict_layers": 0}
        write_model(tmp_path / made, TABLES[name], config, dtype="float32", seed=seed)
    found = ckptforge.verify(tmp_path / "a", tmp_path / "b", tokens=IDS)
    expected = [loss_of(torch, tmp_path / made, IDS) for made in ("a", "b")]
    assert np.allclose(found.losses, expected, rtol=1e-5) and found.models == [name, name]
    assert found and found.logits.relative_l2 > 0.1 and len(found.layers) >= 2


@pytest.mark.parametrize("name", WITH_TOWERS)
def test_of_models_with_towers_the_language_model_is_computed(torch, tmp_path, name):
    import transformers

    for seed, made in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = transformers_config(name, **vision_language_config(name))
        kind = getattr(transformers, TABLES[name].example["architectures"][0])
        kind(config).save_pretrained(tmp_path / made)
    found = ckptforge.verify(tmp_path / "a", tmp_path / "b", tokens=IDS, generate=2)
    expected = [loss_of(torch, tmp_path / made, IDS) for made in ("a", "b")]
    assert np.allclose(found.losses, expected, rtol=1e-5) and len(found.layers) == 2
    assert found and found.logits.relative_l2 > 0.1


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_model_whose_first_layers_route_by_tokens_goes_on_from_them(torch, tmp_path, compute):
    """Its states have an axis more between layers, of copies."""
    from transformers import AutoModelForCausalLM

    table = TABLES["deepseek_v4"]
    write_model(tmp_path / "a", table, {**table.example, "num_nextn_predict_layers": 0})
    options = {"tokens": IDS, "generate": 3, "compute": compute}
    found = ckptforge.verify(tmp_path / "a", tmp_path / "a", **options)
    assert [one.relative_l2 for one in found.layers] == [0] * 5 and found.logits.relative_l2 == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    made = whole.generate(torch.tensor([IDS]), max_new_tokens=3, do_sample=False, use_cache=False)
    assert compute == "bf16" or found.generated[0] == made[0, len(IDS) :].tolist()


def test_experts_are_read_one_at_a_time(torch, tmp_path, monkeypatch):
    """And convolutions, which have three axes, too, whole."""
    write_model(tmp_path / "a", TABLES["qwen3_next"], TABLES["qwen3_next"].example)
    read, stored = set(), Weights.stored

    def spy(self, name, value, row=None):
        kind = next((kind for kind in (".experts.", ".conv1d.") if kind in name), None)
        read.add((kind, row is None))
        return stored(self, name, value, row)

    monkeypatch.setattr(Weights, "stored", spy)
    ckptforge.verify(tmp_path / "a", tmp_path / "a", tokens=IDS)
    assert read == {(".experts.", False), (".conv1d.", True), (None, True)}


def test_a_model_and_itself_are_the_same(hub):
    found = ckptforge.verify(hub, hub, tokens=IDS, generate=2)
    assert found.losses[0] == found.losses[1] and found.logits.relative_l2 == 0
    assert (found.logits.top1, found.logits.kl) == (1, 0)
    assert found.generated[0] == found.generated[1] and len(found.generated[0]) == 2
    assert [one.relative_l2 for one in found.layers] == [0, 0, 0] and not found.notes


@pytest.mark.parametrize(
    ("edit", "layers", "note"),
    [
        ({"take": ["e=0,1,3"]}, 3, ""),
        ({"take": ["l=0,2"]}, 0, "layers aren't compared"),
        ({"pad": ["V=80"]}, 3, "logits are compared over the first 64"),
    ],
)
def test_before_and_after_an_edit(torch, hub, tmp_path, edit, layers, note):
    ckptforge.edit(hub, tmp_path / "edited", **edit)
    found = ckptforge.verify(hub, tmp_path / "edited", tokens=IDS)
    assert len(found.layers) == layers and note in " ".join(found.notes)
    assert np.isclose(found.losses[1], loss_of(torch, tmp_path / "edited", IDS), rtol=1e-5)
    assert (found.losses[0] != found.losses[1]) and found.logits.vocab == 64


def test_an_average_lies_between(torch, hub, tmp_path):
    other = changed(hub, tmp_path / "other", lambda tensors: tensors["lm_head.weight"].__imul__(3))
    ckptforge.average(tmp_path / "mean", [hub, other])
    near, far = (
        ckptforge.verify(hub, path, tokens=IDS).logits.relative_l2
        for path in (tmp_path / "mean", other)
    )
    assert np.isclose(near, 1.0, rtol=1e-5) and np.isclose(far, 2.0, rtol=1e-5)


@pytest.fixture
def spoken(hub):
    """The same with a tokenizer of 64 words, of which one stands for all others."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[UNK]", "the", "a", "of", "to", "and", "boat"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]").save_pretrained(hub)
    return hub


def test_a_text_becomes_tokens_by_the_tokenizer_of_a(spoken, tmp_path):
    found = ckptforge.verify(spoken, spoken, text="the boat of a king")
    assert (found.prompt, found.tokens) == ("text", 5) and not found.notes
    given = ckptforge.verify(spoken, spoken, tokens=[1, 6, 3, 2, 0])
    assert given.prompt == "ids" and given.losses == found.losses
    (tmp_path / "text.txt").write_text("the boat of a king")
    assert ckptforge.verify(spoken, spoken, text=f"@{tmp_path / 'text.txt'}").losses == found.losses
    assert ckptforge.verify(spoken, spoken, tokens=1).losses is None
    own = ckptforge.verify(spoken, spoken)
    assert own.prompt == "text" and own.tokens > 100 and "of ckptforge's own" in own.notes[0]
    shutil.copytree(spoken, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace("king", "queen") + " ")
    said = ckptforge.verify(spoken, tmp_path / "other", text="a").notes
    assert said == ["B has another tokenizer.json than A, by which the text became tokens."]


def test_without_a_tokenizer_the_tokens_are_random_and_it_says_so(hub):
    found = ckptforge.verify(hub, hub)
    assert found.prompt == "random" and "as A has no tokenizer" in found.notes[0]


def test_what_only_mindspore_has_is_refused(hub, tmp_path):
    for wrong in ({"device": "ascend"}, {"layers": [1]}, {"layout": "gmm"}, {"tokens": [64]}):
        with pytest.raises(UsageError):
            ckptforge.verify(hub, hub, **wrong)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    for text in (f"@{tmp_path / 'bad.txt'}", f"@{tmp_path / 'none'}", "no tokenizer"):
        with pytest.raises((UsageError, InputNotFoundError)):
            ckptforge.verify(hub, hub, text=text)


def test_numbers_that_are_not_finite_fail(hub, tmp_path):
    def broken(tensors):
        tensors["lm_head.weight"][0, 0] = np.nan

    bad = changed(hub, tmp_path / "bad", broken)
    found = ckptforge.verify(hub, bad, tokens=IDS)
    assert not found and found.logits.relative_l2 == np.inf

    def broken_layer(tensors):
        name = next(
            name for name in tensors if ".layers.1." in name and name.endswith("o_proj.weight")
        )
        tensors[name][0, 0] = np.nan

    worse = ckptforge.verify(hub, changed(hub, tmp_path / "worse", broken_layer), tokens=IDS)
    page = html_page(worse.to_json())
    assert page.count('class="dot failed"') == 2 and page.count('class="dot"') == 1


def test_the_command_the_object_and_the_page(hub, tmp_path):
    words = ["--tokens", ",".join(map(str, IDS)), "--html", str(tmp_path / "x.html")]
    done = CliRunner().invoke(cli, ["verify", str(hub), str(hub), *words])
    assert done.exit_code == 0 and done.stdout.endswith("computed: the losses are the same\n")
    page = (tmp_path / "x.html").read_text()
    assert page.count("<circle") == 3 and "perplexity" in page and "computed: the losses" in page
    found = ckptforge.verify(hub, hub, tokens=IDS, generate=1)
    content = {**found.to_json(), "schema": 1, "result": "passed"}
    check("verify of two Hugging Face directories", json.loads(json.dumps(content)))
    assert "A continues" in html_page(found.to_json())
