"""What is added to README.md of an output: once, below what stands there, and nothing of the
machine."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.verbs.model_card import entry, with_entry
from ckptforge.verbs.options import Average, Edit, ToTorch
from ckptforge.version import __version__
from tests.helpers import HUB
from tests.test_cli import ckpt

CARD = "---\nlicense: apache-2.0\ntags: [moe]\n---\n\n# A model\n"
BEGIN, END = "<!-- ckptforge: begin -->", "<!-- ckptforge: end -->"


@pytest.fixture
def hub(tmp_path):
    shutil.copytree(HUB, tmp_path / "private" / "hub")
    (tmp_path / "private/hub/README.md").write_text(CARD)
    return tmp_path / "private" / "hub"


def card(directory):
    return (directory / "README.md").read_text()


def test_to_torch_says_what_it_made(hub, tmp_path):
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout="gmm")
    out = tmp_path / "out"
    ckptforge.to_torch(tmp_path / "x.ckpt", out, dtype="fp16", workers=1, config=hub)
    assert card(out).startswith(CARD) and "private" not in card(out)
    assert card(out)[len(CARD) :] == (
        f"\n{BEGIN}\n## Conversion with ckptforge\n\n"
        f"Made from `x.ckpt` by ckptforge {__version__}:\n\n"
        "    ckptforge to-torch x.ckpt out --config hub --dtype fp16\n\n"
        f"{END}\n"
    )
    manifest = json.loads((out / "ckptforge.manifest.json").read_text())
    assert "README.md" in manifest["small_files"] and ckptforge.check(out)


def test_the_same_call_adds_nothing_and_another_one_its_own(hub, tmp_path):
    edited = [tmp_path / name for name in ("a/edited", "b/edited", "c/edited")]
    ckptforge.edit(hub, edited[0], take=["e=0,1"])
    once = card(edited[0])
    shutil.copy(edited[0] / "README.md", hub / "README.md")
    ckptforge.edit(hub, edited[1], take=["e=0,1"])
    assert card(edited[1]) == once
    ckptforge.edit(hub, edited[2], take=["e=0,2"])
    assert card(edited[2]).count("Made from") == 2 and card(edited[2]).count(BEGIN) == 1
    assert card(edited[2]).startswith(once[: once.index(END)])


def test_the_edits_and_the_files_behind_them_stand_in_the_card(hub, tmp_path):
    chosen = tmp_path / "private" / "experts.json"
    chosen.write_text("[1, 0]")
    words = ("--take", f"e=@{chosen}", "--set-dtype", "norm=fp32", "--memory", "64MB")
    assert ckpt("edit", hub, tmp_path / "out", *words).returncode == 0
    assert "    ckptforge edit hub out --take e=@experts.json --set-dtype norm=fp32\n" in card(
        tmp_path / "out"
    )


def test_averages_name_what_went_into_them(hub, tmp_path):
    shutil.copytree(hub, tmp_path / "other")
    made = ckptforge.average(tmp_path / "out", [str(hub), tmp_path / "other"], weights="0.5,0.5")
    text = card(tmp_path / "out")
    assert made and "Made from `hub`, `other` by" in text
    assert "    ckptforge average out hub other --weights 0.5,0.5\n" in text


def test_nothing_is_added_where_nobody_wants_it_or_there_is_no_card(hub, tmp_path):
    ckptforge.edit(hub, tmp_path / "a", take=["e=0,1"], no_card=True)
    assert card(tmp_path / "a") == CARD
    (hub / "README.md").write_bytes(b"\xff\xfe#\x00")
    found = ckptforge.edit(hub, tmp_path / "b", take=["e=0,1"])
    assert (tmp_path / "b/README.md").read_bytes() == b"\xff\xfe#\x00"
    assert any("README.md isn't UTF-8" in note for note in found.notes)
    (hub / "README.md").unlink()
    ckptforge.edit(hub, tmp_path / "c", take=["e=0,1"])
    assert not (tmp_path / "c/README.md").exists()


def test_a_dry_run_and_a_resumed_run_see_the_same_card(hub, tmp_path):
    ckptforge.to_ms(hub, tmp_path / "x.ckpt")
    plan = ckptforge.plan("to-torch", tmp_path / "x.ckpt", tmp_path / "out")
    again = ckptforge.plan("to-torch", tmp_path / "x.ckpt", tmp_path / "out", workers=1)
    assert plan.small_files["README.md"] == again.small_files["README.md"] != CARD.encode()


def test_names_and_addresses_are_written_as_one_line_of_text():
    made = entry("to-torch", ToTorch("s3://bucket/a b", "o\n```\n"))
    assert made.splitlines()[2:] == ["    ckptforge to-torch 's3://bucket/a b' 'o?```?'"]
    made = entry("edit", Edit("/x/`a`", "o", edits=[("tie", ""), ("take", "l=0-3")]))
    assert "Made from `a` by" in made and made.endswith("'`a`' o --tie --take l=0-3")
    assert "Made from `mix.toml` by" in entry("average", Average("o", recipe="/home/me/mix.toml"))


@settings(max_examples=200, deadline=None)
@given(st.text("a#-\r\n", max_size=30), st.sampled_from(["", BEGIN, END, BEGIN + END, END + BEGIN]))
def test_a_card_keeps_what_stood_in_it_and_gets_an_entry_once(text, marks):
    text += marks
    made = with_entry(text, "Made\n\n    x")
    assert made.count("Made") == 1 and with_entry(made, "Made\n\n    x") == made
    assert made.replace("\r", "").count(BEGIN) >= 1
    if BEGIN + END not in text:
        assert made.startswith(text)
