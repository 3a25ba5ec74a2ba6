"""Mapping tables: the language, the arithmetic, and every reason for which a table is refused."""

import contextlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptforge.errors import ConfigError, InputNotFoundError, TableError, UsageError
from ckptforge.tables import table_schema
from ckptforge.tables.axes import in_parts, shared_runs
from ckptforge.tables.model_config import Expression
from ckptforge.tables.parsing import load_table, parse_table
from ckptforge.tables.row_text import parse_pattern
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.skeletons import skeleton_of

GOOD = """
name = "toy"
model_type = ["toy"]
[axes]
l = "layers"
H = "hidden"
I = "inner"
[tensors]
up = "l I H"
gate = "l I H"
norm = "H"
[layout.a]
family = "huggingface"
up = "layers.{l}.up : I H"
gate = "layers.{l}.gate : I H"
norm = "norm : H"
[layout.b]
extends = "a"
family = "mindspore"
both = "layers.{l}.both : [up: I + gate: I] H"
"""


def test_a_good_table_loads_and_inherits():
    table = parse_table(GOOD.encode(), "toy.toml")
    assert [pattern.template for pattern in table.layout("b").patterns] == [
        "layers.{l}.both",
        "norm",
    ]
    assert table.layout("b").holding("gate").tensors == ("up", "gate")
    with pytest.raises(UsageError, match="layout 'c' is unknown for toy; it has a, b"):
        table.layout("c")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'up = "layers.{l}.up : I H"',
            'up = "layers.{l}.up : I"',
            r"\[layout.a\] up: axis 'H' of "
            r"tensor 'up' is lost",
        ),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up : I H H"', "stands twice"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.up : I H"', "axis 'l' of tensor 'up' is lost"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.gate : I H"', "can produce the same name"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.{I}.up : I H"', "stands twice"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.{l}.up : I H"', "one axis twice"),
        ('up = "layers.{l}.up : I H"', 'up = "layers{l}0.up : I H"', "two numbers touch"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l.up : I H"', "stray"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up I H"', "isn't of the form"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up : (I H"', "isn’t closed"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up : () I H"', "holds nothing"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up : I ? H"', r"unexpected '\?'"),
        ('up = "layers.{l}.up : I H"', 'up = "layers.{l}.up : I Q H"', "has no axis 'Q'"),
        (
            'up = "layers.{l}.up : I H"',
            'up = "layers.{l}.up : I H as H"',
            "doesn't have the same axes before and after 'as'",
        ),
        (
            'up = "layers.{l}.up : I H"',
            'up = "layers.{l}.up : I H as (H I) as H I"',
            "more than one 'as'",
        ),
        (
            'extends = "a"',
            'extends = "a"\nsharding = "none"',
            r"\[layout.b\] sharding is 'none', expected 'not known'",
        ),
        (
            "[layout.b]",
            '[shard.b]\nnorm = {}\n[layout.b]\nsharding = "not known"',
            r"sharding must "
            r"be 'not known', without \[shard.b\]",
        ),
        (
            "[up: I + gate: I] H",
            '[up: I + gate: I] H as (H [up: I + gate: I])"\n[shard.b]\nup.cut="I:mp',
            "another shape than the order",
        ),
        ("[up: I + gate: I] H", "[up: I] H", "needs two parts"),
        ("[up: I + gate: I] H", "[up: I + up: I] H", "with itself"),
        ("[up: I + gate: I] H", "[up: I + gate: I H]", "axis 'H' of tensor 'up' is lost"),
        ("[up: I + gate: I] H", "[up: I + other: I] H", r"'other' isn't in \[tensors\]"),
        ("[up: I + gate: I] H", "[up: I + gate: I] [up: H + gate: H]", "2 concatenations"),
        ('norm = "norm : H"\n[layout.b]', "[layout.b]", "no row stores tensor 'norm'"),
        ('extends = "a"', 'extends = "z"', "extends 'z', which isn't a layout"),
        ('extends = "a"', 'extends = "b"', "extends itself"),
        (
            'family = "mindspore"',
            'family = "jax"',
            r"\[layout.b\] family is 'jax', expected huggingface, mindspore, consolidated or",
        ),
        ('[tensors]\nup = "l I H"', '[tensors]\nup = "l I X"', r"axis 'X' isn't in \[axes\]"),
        ('[tensors]\nup = "l I H"', '[tensors]\nup = "l I I"', "an axis stands twice"),
        ('H = "hidden"', 'H = "hidden +"', "isn't keys and numbers"),
        ('H = "hidden"', 'H = "hidden or 1"', "names no key"),
        ('model_type = ["toy"]', 'model_type = ["toy"]\nextra = 1', "extra"),
        ('model_type = ["toy"]', "model_type = 3", "model_type"),
        ("[layout.b]", "[optional]\nup = 'a b'\n[layout.b]", r"\[optional\] up"),
        (
            "[layout.b]",
            "[optional]\nup = 'tied'\n[layout.b]",
            r"\[layout.b\]: concatenates "
            r"'up'.*may be absent",
        ),
        (
            'model_type = ["toy"]',
            'model_type = ["toy"]\nconstants = ["eps or -1"]',
            "constants: 'eps or -1' isn't keys",
        ),
        ("name =", "name", "isn't valid TOML"),
        (
            'gate = "layers.{l}.gate : I H"',
            'gate = "layers.{l}.gate : I H"\ndup = "x.{l} : [up: I + gate: I] H"',
            "stored by row",
        ),
    ],
)
def test_bad_tables_are_refused_with_row_and_reason(old, new, message):
    assert old in GOOD
    with pytest.raises(TableError, match=message):
        parse_table(GOOD.replace(old, new, 1).encode(), "toy.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[tensors]",
            "[tensor]",
            "toy.toml: has the key 'tensor'; there are name, model_type, .*, example. "
            r"Did you mean 'tensors'\?$",
        ),
        ('name = "toy"', "", "toy.toml: has no name: the table's name.$"),
        (
            'name = "toy"',
            'name = "-"',
            "toy.toml: name is '-', expected letters, digits, .* first.",
        ),
        ('["toy"]', "[]", r"model_type is \[\], expected at least 1 entry"),
        ('["toy"]', "['toy', 3]", r"model_type\[1\] is 3, expected text.$"),
        ('H = "hidden"', "H = 4096", r"toy.toml: \[axes\] H is 4096, expected text.$"),
        (
            'up = "layers.{l}.up : I H"',
            "up = ['layers.{l}.up', 'I H']",
            r"\[layout.a\] up is \['layers.{l}.up', 'I H'\], expected text",
        ),
        (
            'extends = "a"',
            'extends = "a"\ntold = "by name onyl"',
            r"\[layout.b\] told is 'by name onyl', expected 'by name only', .* Did you mean",
        ),
        (
            'extends = "a"',
            'extend = "a"',
            r"\[layout.b\] extend: 'a' isn't of the form .*. Did you mean 'extends'\?$",
        ),
        ('extends = "a"', 'extends = "A"', "extends 'A', which .*. Did you mean 'a'"),
        (
            "[layout.b]",
            "[shard.aa]\nup = {}\n[layout.b]",
            "no layout of that name; the table has a, b. Did you mean 'a'",
        ),
        (
            "[layout.b]",
            "[shard.a]\nup = {cut='I:mp', optimiser=true}\n[layout.b]",
            r"\[shard.a\] up has the key 'optimiser'; there are cut, whole_if, optimizer, fsdp, "
            "dtype. Did you mean 'optimizer'",
        ),
        (
            "[layout.b]",
            "[shard.b]\nup = {cut='l:mp'}\n[layout.b]",
            r"\[shard.b\] up for layout b: axis 'l' stands in the name",
        ),
        (
            "[layout.b]",
            "[pipeline]\nlayer = 'l'\n[layout.b]",
            r"\[pipeline\] has the key 'layer'; .*. Did you mean 'layers'",
        ),
        (
            "[layout.b]",
            "[pipeline]\n[layout.b]",
            r"\[pipeline\] has no layers: the axes that count",
        ),
        (
            "[layout.b]",
            "[pipeline]\nlayers = 1\n[layout.b]",
            r"\[pipeline\] layers is 1, expected text, or a list of texts",
        ),
        ("[layout.b]", "[ignored]\njax = []\n[layout.b]", r"\[ignored\] has the key 'jax'"),
        (
            "[layout.b]",
            "[layout]\nc = 3\n[layout.b]",
            r"\[layout.c\] is 3, expected keys and values",
        ),
        ('norm = "H"', 'norm = "H"\nnrom = "H"', r"no row stores tensor 'nrom'"),
        (
            'norm = "norm : H"',
            'nrom = "norm : H"',
            r"'nrom' isn't in \[tensors\], which has up, gate, "
            "norm. Did you mean 'norm'",
        ),
        (
            'H = "hidden"\nI = "inner"',
            "H = 1\nI = 2",
            r"2 places are wrong:\n  \[axes\] H is 1, expected text.\n  \[axes\] I is 2",
        ),
    ],
)
def test_messages_name_the_place_what_was_expected_what_was_found_and_the_nearest(
    old, new, message
):
    assert old in GOOD
    with pytest.raises(TableError, match=message):
        parse_table(GOOD.replace(old, new, 1).encode(), "toy.toml")


@pytest.mark.parametrize("table", shipped_tables(), ids=lambda table: table.name)
def test_shipped_tables_are_what_a_users_own_of_the_same_text_would_be(table):
    """They are decoded without being validated, as importing pydantic would take longer."""
    assert table == parse_table(table.text, table.source)


def test_the_schema_describes_every_section_and_key():
    schema = table_schema.table_schema()
    for name, part in {"the table": schema, **schema["$defs"]}.items():
        assert part["description"], name
        for key, found in part["properties"].items():
            assert found.get("description"), (name, key)
    assert schema["$defs"]["LayoutSection"]["additionalProperties"] == {"type": "string"}
    assert schema["additionalProperties"] is False


def test_every_section_and_key_of_a_table_is_on_the_page():
    text = (Path(__file__).parents[1] / "docs" / "mappings.md").read_text()
    schema = table_schema.table_schema()
    for part in (schema, *schema["$defs"].values()):
        for key in part["properties"]:
            assert re.search(rf"\b{key}\b", text), key


def test_a_layout_that_extends_one_of_unknown_sharding_has_none_either():
    extra = """
[shard.b]
norm = { optimizer = false }
[layout.c]
extends = "b"
sharding = "not known"
[layout.d]
extends = "c"
[layout.e]
extends = "c"
[shard.e]
up = { cut = "I:mp" }
gate = { cut = "I:mp" }
"""
    table = parse_table((GOOD + extra).encode(), "toy.toml")
    assert (
        table.layout("b").sharding is not None
        and table.layout("c").sharding is table.layout("d").sharding is None
    )
    assert set(table.layout("e").sharding) == {"up", "gate"}


def test_half_an_inherited_concatenation_is_refused():
    extra = '[layout.c]\nextends = "b"\nup = "layers.{l}.u : I H"\n'
    with pytest.raises(TableError, match="redefines 'up' but not 'gate'"):
        parse_table((GOOD + extra).encode(), "toy.toml")


def test_a_missing_table_file_says_so(tmp_path):
    with pytest.raises(InputNotFoundError, match="none.toml"):
        load_table(tmp_path / "none.toml")


@pytest.mark.parametrize("table", shipped_tables(), ids=lambda table: table.name)
def test_shipped_layouts_place_every_element_once(table):
    """In every layout, the grids of the logical tensors in one stored tensor tile it: no gap, no
    overlap."""
    size = {axis: 2 + i % 3 for i, axis in enumerate(table.axes)}
    turns = (p.turns.items() for one in table.layouts.values() for p in one.patterns)
    for axis, parts in {pair for of_pattern in turns for pair in of_pattern}:
        size |= {axis: 3 * parts, **dict(zip(in_parts(axis), (parts, 3), strict=True))}
    for layout in table.layouts.values():
        for pattern in layout.patterns:
            shape = pattern.shape(lambda _, axis: size[axis])
            seen = np.zeros(math.prod(shape), int)
            for tensor in pattern.tensors:
                axes = [axis for axis in table.tensors[tensor] if axis not in pattern.name_axes]
                for axis in pattern.turns:
                    axes[axes.index(axis) : axes.index(axis) + 1] = in_parts(axis)
                grid = pattern.place(tensor, axes, lambda _, axis: size[axis])
                index = np.indices([size[axis] for axis in axes]).reshape(len(axes), -1)
                np.add.at(seen, grid.offset + np.asarray(grid.strides, int) @ index, 1)
            assert (seen == 1).all(), (layout.name, pattern.template)


@given(
    st.permutations(["a", "b", "c", "d"]),
    st.lists(st.sampled_from(["[", "]", "(", ")", "+", ":", " ", " as "]), min_size=0, max_size=8),
)
def test_the_parser_only_raises_value_errors(names, marks):
    text = " ".join(
        f"{mark} {name}" for name, mark in zip(names, [*marks, "", "", "", ""], strict=False)
    )
    with contextlib.suppress(ValueError):
        parse_pattern(f"x : {text}", "t")


def test_runs_shared_by_two_patterns_are_what_stays_together():
    a = parse_pattern("q : (g r d) H", "q")
    b = parse_pattern("qkv : (g [q: r d + k: d]) H", "q")
    c = parse_pattern("qkv : [q: g r d + k: g d] H", "q")
    assert shared_runs(a, b, "q") == [("r", "d")]
    assert shared_runs(a, c, "q") == [("g", "r", "d")]
    assert shared_runs(a, a, "q") == [("g", "r", "d")]


def test_names_with_leading_zeros_are_not_matched():
    pattern = parse_pattern("layers.{l}.up : H", "up")
    assert pattern.match(skeleton_of("layers.7.up")[1]) == (7,)
    assert pattern.match(skeleton_of("layers.07.up")[1]) is None
    assert pattern.skeleton == skeleton_of("layers.123.up")[0]
    assert pattern.skeleton != skeleton_of("layers.#.up")[0]


def test_config_expressions():
    ask = Expression("head_dim or hidden / heads")
    assert ask.evaluate({"head_dim": 5}, "config.json") == 5
    assert ask.evaluate({"head_dim": None, "hidden": 12, "heads": 4}, "config.json") == 3
    assert ask.evaluate({"hidden": 12}, "config.json") is None
    assert Expression("a * 2").evaluate({"a": 3}, "config.json") == 6
    with pytest.raises(ConfigError, match="isn't whole"):
        ask.evaluate({"hidden": 13, "heads": 4}, "config.json")
    with pytest.raises(ConfigError, match="heads is 'four'"):
        ask.evaluate({"hidden": 13, "heads": "four"}, "config.json")


def test_tables_are_chosen_without_reading_them():
    every = shipped_tables()
    assert len(every) > 3
    for table in every:
        assert shipped_tables(table.name) == (table,) and shipped_tables("nothing") == every
        assert all(table in shipped_tables(None, model_type) for model_type in table.model_types)
        assert len(shipped_tables(None, table.model_types[0])) == sum(
            table.model_types[0] in other.model_types for other in every
        )
    assert (
        shipped_tables(None, "nothing")
        == shipped_tables(None, 7)
        == shipped_tables(None, "")
        == every
    )
