"""Pages of results: whole, small, without anything from elsewhere, safe whatever names are."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ckptforge import inspect, stats
from ckptforge.cli.app import cli
from ckptforge.pages import html_page
from ckptforge.pages.kinds import kinds_of_parts, name_of
from ckptforge.pages.shards import panels
from ckptforge.pages.statistics import outliers
from ckptforge.pages.treemap import Tile, squarified
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.skeletons import numbers_of
from ckptforge.verbs.synthetic import write_model
from ckptforge.wording import runs_of
from tests.helpers import HUB, MINDSPORE, write_safetensors
from tests.test_constants import DEEPSEEK

HOSTILE = "a.0.</script><img src=x onerror=alert(1)>\"'&`${1}--><svg onload=alert(1)>\u2028"
VOID = {"meta", "input", "wbr", "rect", "line", "circle"}


class Reader(HTMLParser):
    """Fails for elements that aren't closed, and keeps what there is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_startendtag(self, name, given):
        self.handle_starttag(name, given, closed=True)

    def handle_starttag(self, name, given, closed=False):
        self.tags.append(name)
        self.attributes += given
        names = [key for key, _ in given]
        assert len(names) == len(set(names)), given
        if not closed and name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts.append(text)


def read(text):
    """What is in a page, which keeps the rules that all keep."""
    found = Reader(text)
    assert text.startswith('<!doctype html>\n<html lang="en">') and len(text) < 2_000_000
    assert {"main", "header", "h1", "title"} <= set(found.tags)
    assert not {"img", "link", "iframe", "object", "base"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on") and name != "src", (name, value)
        assert name != "href" or value.startswith("#")
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in found.attributes:
        assert name != "aria-labelledby" or value in ids
    pictures = text.count("<svg")
    assert text.count('role="img"') == pictures, "each picture is said in words"
    assert text.count("<table") == text.count("<caption")
    *contents, script = found.scripts
    assert "strict" in script
    return found, [json.loads(one) for one in contents]


def page_of(tmp_path, *words, code=0):
    path = tmp_path / "page.html"
    done = CliRunner().invoke(cli, [*map(str, words), "--html", str(path), "--overwrite"])
    assert done.exit_code == code, (done.output, done.exception)
    return path.read_text()


SHARDED, STRATEGIES = MINDSPORE / "sharded", MINDSPORE / "strategies"


def test_a_page_of_ranks_says_who_holds_what(tmp_path):
    path, strategy = SHARDED / "pp2mp2", STRATEGIES / "pp2mp2"
    text = page_of(tmp_path, "inspect", path, "--strategy-dir", strategy)
    found = inspect(path, strategy_dir=strategy)
    page, maps = read(text)
    assert text == html_page(found.to_json())
    keys = {value for name, value in page.attributes if name == "data-key"}
    assert {re.sub(r"\d+", "#", name) for name in found.entries} <= keys
    for part in found.parts:
        for rank, box in part.boxes.items():
            said = f"[{', '.join(f'{lo}:{hi}' for lo, hi in box)}], shape"
            tips = [
                row["before"] + row["tips"][row["of"][column]] + row["after"]
                for one in maps
                for column, ranks in enumerate(one["ranks"]["columns"])
                if any(rank - start in ranks for start in one["ranks"]["starts"])
                for row in one["rows"]
            ]
            name = name_of(part.tensor, part.numbers)
            assert any(said in tip and tip.startswith(name) for tip in tips)


def test_a_plan_shows_both_sides_and_writes_nothing_but_its_page(tmp_path):
    text = page_of(
        tmp_path,
        *("reshard", SHARDED / "pp2mp2", tmp_path / "out", "--dry-run"),
        *("--src-strategy-dir", STRATEGIES / "pp2mp2", "--dst-strategy-dir", STRATEGIES / "mp8"),
    )
    _, maps = read(text)
    assert "What is read, by rank" in text and "What is written, by rank" in text and maps
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_of_differences_names_what_differs_and_why(tmp_path):
    ckpt = tmp_path / "x.ckpt"
    page_of(tmp_path, "to-ms", HUB, ckpt, "--dtype", "fp16")
    read(page_of(tmp_path, "compare", ckpt))
    text = page_of(tmp_path, "compare", HUB, ckpt, code=1)
    read(text)
    assert "Likely causes" in text and "Difference by layer and kind" in text
    assert '<p class="verdict failed">different: ' in text


def test_it_is_said_that_a_page_was_written_beside_the_result(tmp_path):
    page, one, other = (tmp_path / name for name in ("page.html", "1.safetensors", "2.safetensors"))
    write_safetensors(one, {"a": ("F32", [4], bytes(16))})
    write_safetensors(other, {"a": ("F32", [4], bytes(range(16)))})
    commands = (
        (["inspect", HUB], 0),
        (["stats", HUB], 0),
        (["compare", HUB, HUB], 0),
        (["compare", one, other], 1),
        (["to-ms", HUB, tmp_path / "x.ckpt", "--dry-run"], 0),
        (["to-ms", HUB, tmp_path / "x.ckpt"], 0),
    )
    for words, code in commands:
        words = [*map(str, words), "--html", str(page)]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == code, done.output
        kilobytes = f"{page.stat().st_size / 1000:.3g} kB"
        assert done.stderr == f"wrote {page}: a page of {kilobytes}\n", words
        assert done.stdout and "page of" not in done.stdout
        for silent in ("--json", "--quiet"):
            done = CliRunner().invoke(cli, [*words, silent, "--overwrite"])
            assert done.exit_code == code and done.stderr == ""
        page.unlink()


def test_a_page_replaces_nothing_but_a_page(tmp_path):
    model, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    write_safetensors(model, {"a": ("F32", [4], bytes(16))})
    before = model.read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(before)
    for page in (other, tmp_path):
        words = ["inspect", model, "--html", page, "--overwrite"]
        done = CliRunner().invoke(cli, [*map(str, words)])
        assert done.exit_code == 1 and "isn't a page, and is kept" in str(done.exception)
    assert other.read_bytes() == before
    words = ["edit", model, out, "--set-dtype", "*=fp16", "--html", out]
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert done.exit_code == 1 and "can't be the page and something else" in str(done.exception)
    assert not out.exists()
    page = tmp_path / "page.html"
    page.touch()
    page_of(tmp_path, "inspect", model)
    page_of(tmp_path, "stats", model)


def test_a_page_whose_directory_does_not_exist_is_refused_before_the_work(tmp_path):
    out, page = tmp_path / "x.ckpt", tmp_path / "none" / "page.html"
    done = CliRunner().invoke(cli, ["to-ms", str(HUB), str(out), "--html", str(page)])
    assert done.exit_code == 1 and "none doesn't exist" in str(done.exception)
    assert not out.exists()


def test_an_existing_page_stays(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    for words in (
        ["inspect", HUB],
        ["stats", HUB],
        ["compare", HUB, HUB],
        ["verify", HUB, HUB],
        ["to-ms", HUB, tmp_path / "x.ckpt"],
    ):
        done = CliRunner().invoke(cli, [*map(str, words), "--html", str(page)])
        assert done.exit_code == 1 and "exists already" in str(done.exception), words
    assert page.read_text() == "mine" and not (tmp_path / "x.ckpt").exists()


def test_nothing_in_a_name_reaches_the_browser_as_markup(tmp_path):
    numbers = bytes(16)
    for name, dtype in (("a", "F32"), ("b", "BF16")):
        tensor = (dtype, [4 if name == "a" else 8], numbers)
        write_safetensors(tmp_path / f"{name}.safetensors", {HOSTILE: tensor})
    ms = [inspect(tmp_path / f"{name}.safetensors").to_json() for name in "ab"]
    box = {
        "tensor": HOSTILE,
        "count": 1,
        "numbers": numbers_of([HOSTILE]),
        "shape": [4],
        "dtype": HOSTILE,
    }
    ms[0] |= {"parts": [{**box, "boxes": {0: [[0, 2]], 1: [[2, 4]]}}], "notes": [HOSTILE]}
    compared = page_of(
        tmp_path, "compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", code=1
    )
    for text in (
        *map(html_page, ms),
        compared,
        html_page(stats(tmp_path / "a.safetensors").to_json()),
        page_of(
            tmp_path,
            *("edit", tmp_path / "a.safetensors", tmp_path / "c.ckpt", "--dry-run"),
            *("--set-dtype", "*=fp16"),
        ),
    ):
        found, _ = read(text)
        assert "<img" not in text and "<svg onload" not in text
        assert "onerror=alert(1)" in text and text.count("<script") == len(found.scripts)


def test_the_largest_jobs_have_small_pages(tmp_path):
    (table,) = (one for one in shipped_tables() if one.name == "deepseek_v3")
    heads = {"num_attention_heads": 128, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    large = {"hidden_size": 7168, "n_routed_experts": 256, "vocab_size": 131072, "v_head_dim": 128}
    config = {**DEEPSEEK, **heads, **large, "model_type": table.name, "num_hidden_layers": 8}
    config |= {"intermediate_size": 18432, "moe_intermediate_size": 2048}
    write_model(tmp_path / "hub", table, config, sparse=True)
    job = {"data_parallel": 256, "expert_parallel": 256, "pipeline_stage": 4}
    (tmp_path / "job.json").write_text(json.dumps({**job, "enable_parallel_optimizer": True}))
    text = page_of(
        tmp_path,
        *("to-ms", tmp_path / "hub", tmp_path / "out", "--dry-run"),
        *("--parallel-config", tmp_path / "job.json"),
    )
    _, maps = read(text)
    ranks = sum(
        len(one["ranks"]["starts"]) * len(own) for one in maps for own in one["ranks"]["columns"]
    )
    assert ranks == 1024


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60))
def test_areas_are_in_proportion_and_fill_the_whole(sizes):
    sizes.sort(reverse=True)
    tiles = squarified(sizes, Tile(0, 0, 240, 100))
    for count, tile in zip(sizes, tiles, strict=True):
        assert tile.width * tile.height == pytest.approx(24000 * count / sum(sizes), rel=1e-6)
        assert tile.x >= -1e-6 and tile.y >= -1e-6
        assert tile.x + tile.width <= 240 + 1e-4 and tile.y + tile.height <= 100 + 1e-4


@given(st.sets(st.integers(0, 300), max_size=4).map(sorted))
def test_runs_of_few_numbers_say_each_of_them(numbers):
    said = []
    for word in filter(None, runs_of(numbers).split(", ")):
        run, _, step = word.partition(" by ")
        first, _, last = run.partition("-")
        said += range(int(first), int(last or first) + 1, int(step or 1))
    assert said == numbers


@given(
    st.lists(
        st.dictionaries(st.integers(0, 15), st.integers(0, 3), min_size=1), min_size=1, max_size=6
    )
)
def test_a_map_loses_no_rank_and_no_box(held):
    parts = [
        {
            "tensor": f"layers.{i}.w",
            "count": 1,
            "numbers": [[str(i)]],
            "shape": [8],
            "dtype": "float32",
            "boxes": {rank: [[2 * n, 2 * n + 2]] for rank, n in boxes.items()},
        }
        for i, boxes in enumerate(held)
    ]
    found = [
        (start + rank, row.boxes[row.of[column]])
        for panel in panels(parts)
        for start in panel.starts
        for column, ranks in enumerate(panel.columns)
        for rank in ranks
        for row in panel.rows
    ]
    expected = [(rank, ((2 * n, 2 * n + 2),)) for boxes in held for rank, n in boxes.items()]
    assert sorted(found) == sorted(expected)


def part_of(names, boxes):
    """A line of `parts` for tensors that ranks hold."""
    about = {"tensor": names[0], "count": len(names), "numbers": numbers_of(names)}
    return {**about, "shape": [8], "dtype": "float32", "boxes": boxes}


def test_a_map_says_of_which_layers_tensors_are():
    first, last = ([f"layers.{i}.w" for i in own] for own in (range(3), range(3, 6)))
    parts = [part_of(first, {0: [[0, 8]]}), part_of(last, {1: [[0, 8]]})]
    (alike,) = panels(parts)
    assert [row.name for row in alike.rows] == ["layers.{0-5}.w"]
    apart = panels([parts[0], part_of(last[1:], {1: [[0, 8]]})])
    assert [panel.rows[0].name for panel in apart] == ["layers.{0-2}.w", "layers.{4-5}.w"]
    tied = part_of(["head"], {0: [[0, 8]]})
    one, head = kinds_of_parts([*parts, tied, {**tied, "boxes": {1: [[0, 8]]}}])
    assert (one.name, one.count, one.key) == ("layers.{0-5}.w", 6, "layers.#.w")
    assert (head.name, head.count) == ("head", 1)


def test_numbers_that_are_no_indices_are_named_as_they_are_written():
    names = [f"shard.00{i}" for i in range(3)] + ["shard." + "9" * 5000]
    assert name_of(names[0], numbers_of(names)) == "shard.{000 … " + "9" * 5000 + "}"


def test_the_page_of_a_strategy_does_not_call_the_model_written(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"data_parallel": 2, "model_parallel": 2}))
    words = ["strategy", tmp_path / "out", "--parallel-config", tmp_path / "job.json"]
    text = page_of(tmp_path, *words, "--like", HUB)
    read(text)
    assert "1 strategy file, " in text and "What ranks hold" in text
    assert "What is written" not in text


def test_the_page_of_an_edit_says_what_kinds_were_and_become(tmp_path):
    words = ["edit", HUB, tmp_path / "out", "--take", "l=0", "--dry-run"]
    text = page_of(tmp_path, *words)
    read(text)
    section = text[text.index("Kinds that change") :]
    before, after = re.findall(r'data-t="(?:before|after)">([^<]*)<', section)[:2]
    assert re.fullmatch(r"\d+ × \[[\d, ]+\] bfloat16", before) and before != after


def test_tensors_unlike_their_kind_stand_out():
    one = {"kind": "w", "count": 4, "nan": 0, "infinite": 0, "min": -1.0, "max": 1.0, "std": 0.1}
    tensors = {f"w.{i}": one for i in range(9)}
    tensors |= {"w.9": {**one, "std": 3.0}, "w.10": {**one, "nan": 2}}
    assert [name for name, _ in outliers(tensors)] == ["w.10", "w.9"]
    assert not outliers({f"w.{i}": one for i in range(9)})


def test_what_is_not_finite_comes_first_among_differences(tmp_path):
    names = [f"layers.{i}.w" for i in range(3)]
    numbers = [np.ones(8, np.float32) for _ in names]
    write_safetensors(
        tmp_path / "a.safetensors",
        {n: ("F32", [8], x.tobytes()) for n, x in zip(names, numbers, strict=True)},
    )
    numbers[1] *= 100
    numbers[2][3] = np.nan
    write_safetensors(
        tmp_path / "b.safetensors",
        {n: ("F32", [8], x.tobytes()) for n, x in zip(names, numbers, strict=True)},
    )
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    _, (heat,) = read(page_of(tmp_path, "compare", *paths, code=1))
    (row,) = heat["rows"]
    said = [row["before"] + tip + row["after"] for tip in row["tips"]]
    assert [n if n < 0 else said[n].rpartition(": ")[2] for n in row["of"]][1:] == [
        "99",
        "1 not finite",
    ]


def test_a_histogram_has_a_column_for_each_power_of_two_and_sign(tmp_path):
    values = np.array([0, 0, 0.5, 0.75, 1.5, -3], np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"w": ("F32", [6], values.tobytes())})
    _, (found,) = read(page_of(tmp_path, "stats", tmp_path / "a.safetensors"))
    (row,) = found["rows"]
    tips = [row["before"] + tip + row["after"] for tip in row["tips"]]
    held = {
        column: tips[n].split()[1]
        for column, n in zip(found["columns"], row["of"], strict=True)
        if n >= 0
    }
    assert held == {
        "-4 to -2": "1",
        "zero, and between -0.5 and 0.5": "2",
        "0.5 to 1": "2",
        "1 to 2": "1",
    }


def test_the_room_is_shipped_whole():
    room = Path(__file__).parents[1] / "ckptforge" / "pages"
    if room.is_dir():
        assert {path.name for path in room.iterdir()} >= {"style.css", "page.js"}
