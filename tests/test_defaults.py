"""What is written where nobody says how: the model's own first layout, and a sentence that says
so."""

import json

import pytest

import ckptforge
from ckptforge.errors import UsageError
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import HUB, contents

TABLES = {table.name: table for table in shipped_tables()}
USUAL = {
    "mixtral": "dense",
    "llama": "dense",
    "qwen2": "dense",
    "qwen3": "mcore",
    "qwen3_moe": "mcore",
    "deepseek_v3": "mcore",
}


@pytest.mark.parametrize("name", USUAL)
def test_to_ms_takes_the_first_mindspore_layout_of_the_table_and_says_so(tmp_path, name):
    write_model(tmp_path / "hub", TABLES[name], TABLES[name].example)
    result = ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    assert result.facts["to"] == USUAL[name]
    assert (
        f"layout {USUAL[name]}, the first of {name}'s MindSpore layouts; layout picks another."
        in result.notes
    )
    named = ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", layout=USUAL[name])
    assert not any("layout picks" in note for note in named.notes)
    assert contents(tmp_path / "x.ckpt") == contents(tmp_path / "y.ckpt")
    assert (
        ckptforge.plan("to-ms", tmp_path / "hub", tmp_path / "z.ckpt", layout=None).facts["to"]
        == USUAL[name]
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3"])
def test_a_strategy_like_a_hub_directory_is_of_the_same_layout(tmp_path, name):
    write_model(tmp_path / "hub", TABLES[name], TABLES[name].example)
    (tmp_path / "job.json").write_text(json.dumps({"model_parallel": 2}))
    result = ckptforge.strategy(
        tmp_path / "s", parallel_config=tmp_path / "job.json", like=tmp_path / "hub"
    )
    assert result.facts["from"] == USUAL[name] and any(
        "layout picks another" in note for note in result.notes
    )
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    like = ckptforge.strategy(
        tmp_path / "t", parallel_config=tmp_path / "job.json", like=tmp_path / "x.ckpt"
    )
    assert like.facts["cuts"] == result.facts["cuts"] and not any(
        "layout picks" in note for note in like.notes
    )


def test_a_table_with_one_mindspore_layout_or_none():
    with pytest.raises(UsageError, match="no layout of family mindspore; it has hub"):
        parse_table("\n".join(_toy(["hub"])).encode(), "toy.toml").mindspore_layout(None)
    one = parse_table("\n".join(_toy(["hub", "ms"])).encode(), "toy.toml")
    assert one.mindspore_layout(None)[1] == ("layout ms, the only MindSpore layout of toy.",)


def _toy(layouts):
    yield from ('name = "toy"', 'model_type = ["toy"]', "[axes]", 'a = "a"', "[tensors]", 't = "a"')
    for layout in layouts:
        yield from (
            f"[layout.{layout}]",
            f'family = "{"huggingface" if layout == "hub" else "mindspore"}"',
            f't = "{layout}.t : a"',
        )


def test_an_unknown_layout_lists_what_there_is(tmp_path):
    with pytest.raises(
        UsageError, match="'gm' is unknown for mixtral; it has hub, fused, dense, gmm"
    ):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gm")
