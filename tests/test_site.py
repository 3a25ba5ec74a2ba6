"""The site of the documentation: all pages are in it, references name everything, links lead
somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest
import yaml

import ckptforge
from ckptforge.cli.app import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import build_site  # noqa: E402


class _Loader(yaml.SafeLoader):
    """For a file with names of Python's in it, which aren't looked at."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _listed(entry):
    if isinstance(entry, str):
        return [entry]
    return [
        page
        for one in (entry.values() if isinstance(entry, dict) else entry)
        for page in _listed(one)
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    found = tmp_path_factory.mktemp("site") / "pages"
    build_site.gather(found)
    return found


def test_every_page_is_in_the_navigation(pages):
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"]
    listed, there = _listed(nav), [path.relative_to(pages) for path in pages.rglob("*.md")]
    assert sorted(listed) == sorted(path.as_posix() for path in there)


def test_links_of_pages_lead_to_where_the_pages_are_now(pages):
    for page in pages.rglob("*.md"):
        text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.M)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def test_the_reference_has_every_command_and_option():
    text = build_site.commands()
    for path, command in build_site.commands_of(cli, []):
        part = text[text.index(f"## {' '.join(path)}\n") :]
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.name == "help" or parameter.opts[0] in part, (path, parameter.name)


def test_the_reference_has_every_function_and_exception():
    text = build_site.functions()
    for name in ckptforge.__all__:
        assert not callable(getattr(ckptforge, name)) or f"## {name}\n" in text, name


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="x">x</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="a/#x">1</a><a href="a/#y">2</a><a href="b/">3</a><a href="https://x.org/">4</a>'
    )
    assert build_site.broken(tmp_path) == ["index.html: a/#y", "index.html: b/"]


def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere():
    pytest.importorskip("zensical")
    build_site.main()
    assert len(list(build_site.SITE.rglob("index.html"))) > 40
