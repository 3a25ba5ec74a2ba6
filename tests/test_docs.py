"""The pages in docs: tables that hang together, links that lead somewhere, and commands that there
are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.parallel.config_schema import ParallelKeys

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES]
DROP_INS = ("convert-weight", "transform-ckpt")


def _name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


def _anchors(page):
    """What GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=_name)
def test_links_lead_to_pages_and_headings_that_there_are(page):
    text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]*)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not anchor or anchor in _anchors(other), target


@pytest.mark.parametrize("page", LINKED, ids=_name)
def test_modules_and_names_in_the_text_exist(page):
    """`run/run.py:run` names a function of a module of the package."""
    for path, name in re.findall(r"`((?:\w+/)+\w+\.py)(?::(\w+))?`", page.read_text()):
        package = Path(ckptforge.__file__).parent
        tops = package, package.parent, ROOT
        found = next(top / path for top in tops if (top / path).exists())
        assert not name or re.search(rf"^ *(?:def |class )?{name}\b", found.read_text(), re.M), name


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_row_of_a_table_has_a_cell_for_each_title(page):
    for table in re.findall(r"((?:^\|.*\|\n)+)", page.read_text(), re.M):
        rows = [
            re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "code", row)) for row in table.splitlines()
        ]
        assert {len(row) for row in rows} == {len(rows[0])}, rows[0]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_on_the_pages_exist_and_are_spelled_with_dashes(page):
    text = page.read_text()
    for words in re.findall(r"^(?:\$ )?ckptforge ([^\n#]*)|`ckptforge ([^`]*)`", text, re.M):
        name, *rest = "".join(words).split()
        if name.startswith("-") or name in ("COMMAND", "…"):
            continue
        command: click.Command = cli.commands[name]
        if isinstance(command, click.Group) and rest:
            command = command.commands[rest[0]]
        parameters = command.get_params(click.Context(command))
        known = {option for parameter in parameters for option in parameter.opts}
        given = re.findall(r"--[a-z][a-z_-]*", " ".join(rest))
        if name in DROP_INS:  # MindFormers' own flags, as its guides spell them
            given = [option.replace("_", "-") for option in given]
        assert set(given) <= known, (page.name, words, set(given) - known)


def test_the_keys_of_a_parallel_configuration_are_described_with_their_defaults():
    text = next(page for page in PAGES if page.stem == "strategies").read_text()
    rows = re.findall(r"^\| (`[a-z].*?) \|(.*?)\|.*\|$", text[text.index("| key |") :], re.M)
    described = {}
    for names, defaults in rows:
        keys = re.findall(r"`(\w+)`", re.sub(r"\(.*\)", "", names))
        values = [json.loads(value) if value else None for value in defaults.strip().split(", ")]
        described.update(zip(keys, values * len(keys) if len(values) == 1 else values, strict=True))
    assert described == {
        key: field.default
        for key, field in ParallelKeys.model_fields.items()
        if key not in ("context_parallel", "parallel_mode", "shard")
    }
    for key in ("context_parallel", "shard"):
        assert f"`{key}`" in text


def test_the_processor_time_of_a_benchmark_is_not_its_memory():
    """The columns of every table of runs hold what their titles say."""
    text = next(page for page in PAGES if page.stem == "benchmarks").read_text()
    for table in re.findall(r"((?:^\|.*\|\n)+)", text, re.M):
        titles, _, *rows = [
            [cell.strip() for cell in line.strip("|\n ").split(" | ")]
            for line in table.splitlines()
        ]
        shapes = {
            "peak MB": r"\d+",
            "user + system s": r"[\d.]+ \+ [\d.]+",
            "wall s": r"[\d.]+",
            "wrote GB": r"[\d.]+",
        }
        for title, shape in shapes.items():
            if title in titles:
                assert all(re.fullmatch(shape, row[titles.index(title)]) for row in rows), (
                    titles,
                    title,
                )
