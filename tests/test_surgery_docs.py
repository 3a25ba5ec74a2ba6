"""The recipes of docs/surgery.md and the files in examples do what they say, on tiny models."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.errors import UsageError
from ckptforge.surgery.edits import EDITS
from ckptforge.surgery.recipes import read_average_recipe, read_edit_recipe, schema
from ckptforge.verbs.synthetic import write_model
from tests.helpers import contents
from tests.test_edit import TABLES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "surgery.md").read_text()
RECIPES = sorted((ROOT / "examples").glob("*.toml"))
COMMANDS = re.findall(r"^\$ ckptforge (.*)$", PAGE, re.M)
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A directory with everything that the page names."""
    root = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "examples", root / "examples")
    models = {
        "Mixtral-8x7B-v0.1": ("mixtral", {}),
        "DeepSeek-V3": ("deepseek_v3", {"num_hidden_layers": 14, "first_k_dense_replace": 3}),
        "Llama-2-7b": ("llama", {**SMALL, "num_hidden_layers": 32}),
        "Qwen3-8B": ("qwen3", {}),
        **dict.fromkeys(("a", "b", "c", "math", "code", "base"), ("llama", SMALL)),
    }
    for seed, (name, (table, changes)) in enumerate(models.items()):
        config = {**TABLES[table].example, **changes}
        write_model(root / name, TABLES[table], config, seed=seed)
    (root / "kept.json").write_text(json.dumps([[0, 1, 2, 5], [7, 3, 2, 0]]))
    (root / "job.yaml").write_text("{data_parallel: 2, model_parallel: 2, expert_parallel: 2}")
    for step in range(1, 7):
        seeded = root / f"seeded{step}"
        write_model(seeded, TABLES["qwen3"], TABLES["qwen3"].example, seed=100 + step)
        arguments = {"format": "mindformers", "iteration": step, "layout": "mcore"}
        ckptforge.to_ms(seeded, root / f"run{step}", **arguments)
    iterations = root / "output" / "checkpoint"
    iterations.mkdir(parents=True)
    for step in range(1, 7):
        (found,) = (root / f"run{step}").glob("iteration_*")
        shutil.copytree(found, iterations / found.name)
    (iterations / "latest_checkpointed_iteration.txt").write_text("6")
    return root


def test_every_command_of_the_page_runs_as_it_stands(desk, monkeypatch):
    monkeypatch.chdir(desk)
    assert len(COMMANDS) > 12
    for line in COMMANDS:
        done = CliRunner().invoke(cli, shlex.split(line))
        assert done.exit_code == 0, (line, done.output, done.exception)
    pruned = contents(desk / "pruned")
    assert pruned["model.layers.0.block_sparse_moe.gate.weight"][:2] == ("float32", (4, 64))
    assert json.loads((desk / "solar" / "config.json").read_text())["num_hidden_layers"] == 48
    assert contents(desk / "solar") == contents(desk / "solar-too")
    assert contents(desk / "trimmed") == contents(desk / "Qwen3-8B")
    debug = ckptforge.inspect(desk / "debug")
    assert (debug.layout == "mcore" and debug.ranks) or debug.tensors
    upcycled = json.loads((desk / "upcycled" / "config.json").read_text())
    assert upcycled["model_type"] == "qwen3_moe" and upcycled["num_experts"] == 8


def test_the_last_iterations_are_averaged_from_their_shards(desk, tmp_path):
    last = [desk / f"seeded{step}" for step in range(4, 7)]
    ckptforge.average(tmp_path / "direct", last)
    ckptforge.average(
        tmp_path / "run", [desk / "output" / "checkpoint"], last=3, to="hub", config=last[0]
    )
    assert contents(tmp_path / "run") == contents(tmp_path / "direct")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_on_the_page_as_it_is_and_valid(path):
    shown = re.search(rf"```toml\n# examples/{path.name}\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None and shown[1].strip() in path.read_text()
    text = path.read_text()
    read = read_average_recipe if "[[input]]" in text else read_edit_recipe
    assert read(path)


def test_the_edit_of_the_page_works(desk, tmp_path):
    (code,) = re.findall(r"```python\n(from msgspec.*?)```", PAGE, re.DOTALL)
    found: dict = {}
    exec(code, found)
    (tmp_path / "r.toml").write_text('[[edit]]\nnegate = ["lm_head.weight"]\n')
    with EDITS.registered(found["Negate"]()):
        ckptforge.edit(desk / "a", tmp_path / "out", recipe=tmp_path / "r.toml")
    before, after = ckptforge.open(desk / "a"), ckptforge.open(tmp_path / "out")
    assert (after["lm_head.weight"][...] == -before["lm_head.weight"][...]).all()


def test_recipes_have_schemas():
    edit = schema("edit")["$defs"]["EditRow"]["properties"]
    assert edit["take"]["description"] and set(edit) > {"take", "pad", "merge", "expand", "fill"}
    assert "method" in schema("average")["properties"]
    with pytest.raises(UsageError, match="has no recipes"):
        schema("merge")
