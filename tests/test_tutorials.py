"""The README and the tutorials: their commands run, print what is shown, and are the same in
Chinese."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.page_commands import Step, matches, run_steps, steps_of

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
CHINESE = {README: ROOT / "README.zh.md"} | {
    page: ROOT / "docs" / "zh" / "tutorials" / page.name for page in TUTORIALS
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.M)
translated = pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_prints_what_it_shows(page, tmp_path):
    steps = steps_of(page.read_text())
    assert len(steps) > 12
    run_steps(steps, tmp_path)


def test_the_tour_of_the_readme_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    (lines,) = [block for _, block in BLOCK.findall(text) if block.startswith("ckptforge demo")]
    steps = steps_of(text)
    assert [step.command for step in steps] == lines.splitlines()[2:]
    run_steps([Step(line, "") for line in lines.splitlines()[:2]] + steps, tmp_path)
    (code,) = [block for language, block in BLOCK.findall(text) if language == "python"]
    monkeypatch.chdir(tmp_path / "tour")
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == "the same"


def test_an_output_must_be_what_is_shown_of_it():
    assert matches("a\nwrote x in 0.02 s\nb\nc\n", "a\nwrote x in 1.7 s\n…\nc\n")
    assert not matches("a\nb\n", "a\n")
    assert not matches("a\nb\n", "b\n")
    assert not matches("a\nb\nc\n", "a\n…\nd\n")


@translated
def test_a_page_has_the_same_code_in_chinese(page):
    english, chinese = (BLOCK.findall(one.read_text()) for one in (page, CHINESE[page]))
    assert len(english) == len(chinese) > 5
    for (language, code), (other_language, other) in zip(english, chinese, strict=True):
        assert language == other_language
        if "│" in code:  # a drawing
            assert len(code.splitlines()) == len(other.splitlines())
        else:
            assert _without_comments(code) == _without_comments(other)


@translated
def test_a_page_has_the_same_sections_in_chinese(page):
    english, chinese = _sections(page), _sections(CHINESE[page])
    assert [section[0] for section in english] == [section[0] for section in chinese]
    for (title, text), (_, other) in zip(english, chinese, strict=True):
        for what in (_links, _names, _rows):
            one, two = what(page, text), what(CHINESE[page], other)
            assert one == two, (title, one - two, two - one)


def _without_comments(code: str) -> str:
    return re.sub(r" +# .*$", "", code, flags=re.M)


def _sections(page: Path) -> list[tuple[str, str]]:
    """(the marks of a heading, what stands below it) for each, without code."""
    parts = re.split(r"^(#+) .*\n", BLOCK.sub("", page.read_text()), flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _links(page: Path, text: str) -> Counter[str]:
    """What is linked, a page of either language as one."""
    found = [target.split("#")[0] for target in re.findall(r"\]\(([^)]*)\)", text)]
    paths = [os.path.relpath(page.parent / one, ROOT) for one in found if "://" not in one]
    assert all((ROOT / path).exists() for path in paths), paths
    return Counter(path.replace(".zh.md", ".md").replace("docs/zh/", "docs/") for path in paths)


def _names(_: Path, text: str) -> Counter[str]:
    """What is set as code: options, files, layouts."""
    return Counter(re.findall(r"`([^`]+)`", text))


def _rows(_: Path, text: str) -> Counter[int]:
    """How many rows of how many columns the tables have."""
    return Counter(row.count(" |") for row in re.findall(r"^\|.*\|$", text, re.M))
