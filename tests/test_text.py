"""What the program prints: counts, tables, colours."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptforge
from ckptforge.cli.findings import check_text, inspection_text
from ckptforge.cli.table import facts, shortened, table
from ckptforge.cli.verify_report import rows
from ckptforge.forward.checks import LayerCheck
from ckptforge.verbs.check import Check
from ckptforge.verbs.inspection import FileLine, PartLine
from ckptforge.verbs.verify import Verification
from ckptforge.wording import counted, install_hint
from tests.helpers import HUB


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (1, ("tensor",), "1 tensor"),
        (2, ("tensor",), "2 tensors"),
        (0, ("file",), "0 files"),
        (1024, ("rank",), "1,024 ranks"),
        (3, ("rank directory",), "3 rank directories"),
        (1, ("axis",), "1 axis"),
        (2, ("axis",), "2 axes"),
        (2, ("box",), "2 boxes"),
        (1, ("tensor", "are"), "1 tensor is"),
        (2, ("tensor", "are"), "2 tensors are"),
        (1, ("tensor that", "aren't"), "1 tensor that isn't"),
        (7, ("parameter of x.ckpt", "aren't"), "7 parameters of x.ckpt aren't"),
        (1, ("key", "differ"), "1 key differs"),
    ],
)
def test_one_is_singular_and_all_else_plural(count, words, text):
    assert counted(count, *words) == text


def test_hints_name_the_clone_and_no_project_of_an_index():
    assert (
        install_hint("torch", "mindspore")
        == "pip install '.[torch,mindspore]' in a clone of ckptforge"
    )


STRATEGY = [
    ["tensor", "stages", "shape", "device matrix", "tensor map", "optimizer", "part of a rank"],
    [
        "model.layers.0.feed_forward.router.dense.weight (+1 alike)",
        "0-1",
        "[8, 64]",
        "[8]",
        "[-1, -1]",
        "-",
        "[8, 64]",
    ],
    ["lm_head.weight", "1", "[256, 64]", "[8]", "[-1, -1]", "all replicas", "[256, 64]"],
]


def test_a_table_is_whole_in_a_pipe_and_in_terminals_that_are_wide_enough(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = table(STRATEGY)
    assert [len(line.split("  ")) > 6 for line in whole.splitlines()] == [True] * 3 and max(
        map(len, whole.splitlines())
    ) > 120
    assert table(STRATEGY, width=200) == whole
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, table(STRATEGY).splitlines())) <= 80


def test_a_name_that_is_too_long_stands_on_a_line_of_its_own():
    made = table([["name", "n"], ["a.name.of.a.tensor", "1"], ["b", "22"]], right=(1,), width=12)
    assert made == "name       n\na.name…ensor\n           1\nb         22"
    lines = table(STRATEGY, width=90).splitlines()
    assert (
        lines[1] == STRATEGY[1][0]
        and lines[2].startswith(" " * 10)
        and " ".join(lines[2].split()) == "0-1 [8, 64] [8] [-1, -1] - [8, 64]"
    )


def test_a_last_column_of_words_goes_on_in_its_column():
    rows = [["table", "layouts"], ["one", "dense gmm gmm-v3 dense-qkv-r1.3"], ["two", "mcore"]]
    assert (
        table(rows, width=31)
        == "table  layouts\none    dense gmm gmm-v3\n       dense-qkv-r1.3\ntwo    mcore"
    )
    assert (
        facts([("axes", "l=2, e=8, V=256, H=64, I=128")], width=30)
        == "axes  l=2, e=8, V=256, H=64,\n      I=128"
    )


def test_rows_become_blocks_where_columns_have_no_room():
    assert table(STRATEGY, width=44).splitlines()[:4] == [
        "model.layers.0.feed_fo…nse.weight (+1 alike)",
        "    stages: 0-1; shape: [8, 64];",
        "    device matrix: [8];",
        "    tensor map: [-1, -1]; optimizer: -;",
    ]


words = st.lists(st.text("abc.0123456789", min_size=1, max_size=30), max_size=6).map(" ".join)


@given(st.data(), st.integers(30, 130))
def test_no_line_is_wider_than_the_terminal_and_no_number_is_lost(data, width):
    columns = data.draw(st.integers(1, 7))
    rows = data.draw(
        st.lists(st.lists(words, min_size=columns, max_size=columns), min_size=2, max_size=5)
    )
    right = data.draw(st.sets(st.integers(1, max(1, columns - 1))))
    made = table(rows, tuple(right), width)
    assert all(len(line) <= width for line in made.splitlines())
    for row in rows[1:]:
        for word in " ".join(row[1:]).split():
            assert "…" in made or word in made


@given(st.text(max_size=60), st.integers(3, 40))
def test_names_are_shortened_in_the_middle(text, width):
    short = shortened(text, width)
    assert len(short) == min(len(text), width)
    if len(text) > width:
        assert short.count("…") == text[: short.index("…")].count("…") + short[
            short.index("…") :
        ].count("…")
        head, tail = short[: (width - 1) - (width - 1) // 2], short[len(short) - (width - 1) // 2 :]
        assert text.startswith(head) and text.endswith(tail)


def test_control_characters_of_names_do_not_reach_the_terminal():
    assert "\x1b" not in table([["tensor"], ["evil\x1b[2J"]], width=80) and "\\x1b" in table(
        [["tensor"], ["evil\x1b[2J"]], width=80
    )


def test_results_count_in_the_right_number():
    found = Check(path="x", manifest="m", files=1, tensors=1, bytes=4, problems=["x: is missing."])
    assert check_text(found).splitlines()[0] == "x against m: 1 file, 1 tensor, 4 B" and check_text(
        found
    ).endswith("different: 1 problem")


def test_no_message_names_a_project_that_is_on_no_index():
    package = Path(ckptforge.__file__).parent
    assert not [
        path
        for path in package.rglob("*.py")
        if re.search(r"pip install '?ckptforge", path.read_text())
    ]


def test_the_table_of_layers_fits_a_terminal():
    layer = LayerCheck(
        layer=0,
        worst=1e-6,
        router=1e-6,
        gate=2e-5,
        flips_within=0,
        flips_beyond=0,
        least_margin=0.1,
        reached=[33] * 8,
    )
    found = Verification("hf", "ms", "gmm", "CPU", "fp32", 3, [layer], None, [], [], [])
    made = table(rows(found), width=80).splitlines()
    assert (
        made[0].split()[:4] == ["layer", "worst", "router", "tolerance"]
        and max(map(len, made)) <= 80
    )


def test_what_a_large_job_holds_is_said_on_a_screen_or_two():
    def part(name, boxes):
        shape, dtype = [1024, 8], "float32"
        return PartLine(tensor=name, count=1, numbers=[], shape=shape, dtype=dtype, boxes=boxes)

    cut = part("cut", {rank: [[rank, rank + 1], [0, 8]] for rank in range(1024)})
    halves = {rank: [[512 * (rank % 2), 512 * (rank % 2 + 1)], [0, 8]] for rank in range(1024)}
    files = [FileLine(file=f"checkpoint_{i}.ckpt", bytes=8, tensors=1) for i in range(1024)]
    found = replace(ckptforge.inspect(HUB), files=files, parts=[cut, part("halves", halves)])
    lines = inspection_text(found, False).splitlines()
    assert len(lines) < 60
    assert [line.strip() for line in lines if "… and" in line] == [
        "… and 992 more",
        "… and 1,016 more",
    ]
    assert "[0:512, 0:8]      0-1022 by 2 (512 in all)" in lines[-2]
    assert "[512:1024, 0:8]   1-1023 by 2 (512 in all)" in lines[-1]
    every = inspection_text(found, True)
    assert "… and" not in every and "checkpoint_1023.ckpt" in every and "[1023:1024, 0:8]" in every


def test_more_of_a_row_has_no_empty_line_above_it():
    rows = [["tensor", "part", "other"], ["a" * 30, "x" * 12, "b"], ["", "y" * 12, "c"]]
    assert table(rows, width=20).splitlines() == [
        "aaaaaaaaaa…aaaaaaaaa",
        "    part:",
        "    xxxxxxxxxxxx;",
        "    other: b",
        "    part:",
        "    yyyyyyyyyyyy;",
        "    other: c",
    ]
