"""The messages about wrong tables that docs/mappings.md explains are those that are printed."""

import json
import re
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from ckptforge.errors import CkptforgeError, TableError
from ckptforge.tables.parsing import parse_table
from ckptforge.tables.row_text import parse_pattern
from ckptforge.verbs.tables import check_table

PAGE = (Path(__file__).parents[1] / "docs" / "mappings.md").read_text()
EXAMPLE = next(
    text for text in re.findall(r"```toml\n(.*?)```", PAGE, re.S) if text.startswith('name = "toy"')
)
ROWS = re.findall(r"^\| (`.*?`) \| .* \|$", PAGE[PAGE.index("| the message |") :], re.M)
PHRASES = [phrase for row in ROWS for phrase in re.findall("`([^`]*)`", row)]
UP, BOTH = 'up   = "layers.{l}.up.weight : I H"', "H [gate: I + up: I]"
AXES = EXAMPLE[EXAMPLE.index('H = "') : EXAMPLE.index(UP) + len(UP)]
# Phrase → what is written instead of what, in the example of the page or after its layouts.
BROKEN = {
    "axis 'H' of tensor 'up' is lost": (UP, 'up = "layers.{l}.up.weight : I"'),
    "tensor 'up' has no axis 'Q'": (UP, 'up = "layers.{l}.up.weight : I H Q"'),
    "an axis of tensor 'up' stands twice": (UP, 'up = "layers.{l}.up.weight : I H H"'),
    "no row stores tensor 'norm'": ('norm = "norm.weight : H"\n', ""),
    "tensor 'up' is stored by row …": (UP, UP + '\nx = "x.{l} : [up: I + gate: I] H"'),
    "redefines 'up' but not 'gate'": (
        "[ignored]",
        '[layout.c]\nextends = "ms"\nup = "u.{l} : I H"\n[ignored]',
    ),
    "rows … can produce the same name": (UP, 'up = "layers.{l}.gate.weight : I H"'),
    "two numbers touch": (UP, 'up = "layers{l}0.up : I H"'),
    "concatenates 'head', which [optional] says may be absent": (
        "[ignored]",
        '[layout.c]\nextends = "hub"\nx = "x : [head: H + norm: H]"\n[ignored]',
    ),
    "adds the length of 'k', which isn't in [axes]": ("layers.{l}.up", "layers.{l+k}.up"),
    "adds a length, but 'o' counts only some of another axis": (
        AXES,
        'o = "l where l % 2 == 1"\n' + AXES.replace("{l}.up", "{l+o}.up"),
    ),
    "isn't an axis above it whose length config.json says": ('H = "', 'o = "q but l"\nH = "'),
    "isn't an axis above it that is 'l where …'": ('H = "', 'o = "l but l"\nH = "'),
    "can't differ between the indexes of 'l'": ('H = "hidden_size"', 'H = "1 per l"'),
    "must be the first axis of [pipeline] layers": (
        'H = "hidden_size"',
        'H = "hidden_size per l"',
    ),
    "isn't a rule for 'l'": ('H = "', 'o = "l where q % 2 == 1"\nH = "'),
    "layers must begin with the axis that counts all layers": (
        "[ignored]",
        '[pipeline]\nlayers = ["l+H"]\n[ignored]',
    ),
    "[defaults.toy]: is missing": ("[ignored]", '[rope]\ndim = "hidden_size"\n[ignored]'),
    "isn't in model_type": ("[ignored]", "[defaults.tyo]\na = 1\n[ignored]"),
    "has no rope_theta, which [rope] needs": (
        "[ignored]",
        '[defaults.toy]\na = 1\n[rope]\ndim = "hidden_size"\n[ignored]',
    ),
    "[window]: needs [pipeline]": (
        "[ignored]",
        '[defaults.toy]\na = 1\n[window]\ntoy = {size = "a"}\n[ignored]',
    ),
    "constants: … isn't keys of config.json": ('"eps"', '"eps or -1"'),
    "keep_dtype: … stores … in one": ("[axes]", 'keep_dtype = ["up"]\n[axes]'),
    "isn't of the form 'name.* : *'": ('norm = "H"', 'norm = "H *"'),
    "has the axis 'I', so it is in layers": (
        "[ignored]",
        '[tower.vision]\nlayers = "I"\nbeside = ["up"]\n[ignored]',
    ),
    "isn't the slowest of its axis": (
        "[ignored]",
        '[shard.c]\nup = {cut = "H:mp"}\n[layout.c]\nextends = "hub"\nfamily = "mindspore"\n'
        'up = "u.{l} : (I H)"\n[ignored]',
    ),
    "are spread in different ways": ("[ignored]", '[shard.ms]\nup = {cut = "I:mp"}\n[ignored]'),
    "doesn't have the same axes before and after 'as'": (BOTH, BOTH + " as H"),
    "has another shape than the order of its numbers": (
        BOTH + '"',
        f'{BOTH} as (H [gate: I + up: I])"\n[shard.ms]\nup = {{cut = "I:mp"}}',
    ),
    "sharding must be 'not known', without [shard.ms]": (
        "[layout.ms]",
        '[shard.ms]\nnorm = {}\n[layout.ms]\nsharding = "not known"',
    ),
    "must have the axis 'l'": ("[ignored]", '[pipeline]\nlayers = "l"\n[ignored]'),
    "has the key 'gat'; there are …": ("[ignored]", "[lora]\ngat = 1\n[ignored]"),
    "has no family": ('family = "huggingface"\n', ""),
    "extends itself": ('extends = "hub"', 'extends = "ms"'),
    "which isn't a layout": ('extends = "hub"', 'extends = "hbu"'),
    "names no key of config.json": ('H = "hidden_size"', 'H = "hidden_size or 1"'),
    "isn't keys and numbers": ('H = "hidden_size"', 'H = "hidden_size or"'),
    "isn't a key of config.json, 'not' and a key": ('"tie_word_embeddings"', '"not a key"'),
    "is 0, expected a positive integer": ("", ""),
}


def test_the_example_of_the_page_is_a_table():
    table = parse_table(EXAMPLE.encode(), "toy.toml")
    assert table.name == "toy" and [*table.layouts] == ["hub", "ms"]


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_rows_that_the_page_shows_are_read(text):
    for layout in tomllib.loads(text).get("layout", {}).values():
        for name, row in layout.items():
            if " : " in row and not row.endswith("*"):
                assert parse_pattern(row, name).axes


def test_what_can_not_stand_in_a_row_is_told():
    with pytest.raises(
        ValueError, match=r"unexpected '1': name an axis of that length in \[axes\]"
    ):
        parse_pattern("conv.weight : c 1", "conv")
    with pytest.raises(ValueError, match="d/2 2, can't stand within"):
        parse_pattern("x : [a: d/2 2 + b: d]", "x")


def test_every_message_of_the_page_is_here():
    assert len(PHRASES) > 30 and set(PHRASES) == set(BROKEN)


@pytest.mark.parametrize("phrase", PHRASES)
def test_messages_are_those_of_the_page(tmp_path, phrase):
    old, new = BROKEN[phrase]
    assert old in EXAMPLE
    (tmp_path / "toy.toml").write_text(EXAMPLE.replace(old, new, 1))
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 1, "hidden_size": 0}))
    message = ".*".join(map(re.escape, phrase.split("…")))
    with pytest.raises(CkptforgeError if old == "" else TableError, match=message):
        check_table(tmp_path / "toy.toml", config=tmp_path / "config.json")
