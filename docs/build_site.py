"""Builds the site of the documentation: `python docs/build_site.py`, with the extra [docs].

It puts together build/pages (what is in docs, the README and its kin, references made of the
program itself), has Zensical make site/ of it, and fails for links that lead nowhere.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click

import ckptforge
from ckptforge.cli.app import cli

ROOT = Path(__file__).parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "site"
TOP = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")


def gather(pages: Path) -> None:
    """Puts all pages in a directory, with links as they must be there."""
    shutil.rmtree(pages, ignore_errors=True)
    places = {ROOT / name: place for name, place in TOP.items()}
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.suffix in (".md", ".svg", ".png"):
            places[path] = path.relative_to(ROOT / "docs").as_posix()
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            places[path] = path.relative_to(ROOT).as_posix()
    for path, place in places.items():
        (pages / place).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = _moved(path.read_text(encoding="utf-8"), path, place, places)
            (pages / place).write_text(text, encoding="utf-8")
        else:
            shutil.copy(path, pages / place)
    (pages / "reference").mkdir()
    (pages / "reference" / "commands.md").write_text(commands(), encoding="utf-8")
    (pages / "reference" / "python.md").write_text(functions(), encoding="utf-8")


def _moved(text: str, path: Path, place: str, places: dict[Path, str]) -> str:
    """A page with its links as they must be at another place."""

    def moved(found: re.Match[str]) -> str:
        linked = Path(os.path.normpath(path.parent / found[0]))
        target = places.get(linked, places.get(linked / "README.md"))
        return found[0] if target is None else os.path.relpath(target, os.path.dirname(place))

    return _LINK.sub(moved, text)


def commands() -> str:
    """The reference of all commands, of their declarations."""
    parts = ["# Commands\n\nMade of the program's own records of options.\n"]
    for path, command in commands_of(cli, ["ckptforge"]):
        context = click.Context(command, info_name=" ".join(path))
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## {' '.join(path[1:])}\n\n{command.help or ''}\n")
        parts.append(f"```\n{' '.join(path)} {usage}\n```\n")
        options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
        rows = [_row(one, context) for one in options if not one.hidden and one.name != "help"]
        if rows:
            parts.append("\n".join(["| option | |", "|---|---|", *rows]) + "\n")
        if examples := getattr(command, "examples", ""):
            parts.append(f"```\n{inspect.cleandoc(examples)}\n```\n")
    return re.sub("^\x08\n", "", "\n".join(parts), flags=re.M)


def commands_of(group: click.Group, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    """All commands of a group, with the words that call them."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands_of(command, [*path, name])
        else:
            yield [*path, name], command


def _row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    name, meaning = (re.sub(r"([|<>*_])", r"\\\1", part) for part in record)
    return f"| {name} | {meaning} |"


def functions() -> str:
    """The reference of what `import ckptforge` gives, of its docstrings."""
    parts = ["# Functions\n\nMade of the docstrings. [Python](../python.md) is the introduction.\n"]
    for name in sorted(ckptforge.__all__):
        one = getattr(ckptforge, name)
        text = inspect.getdoc(one)
        if not callable(one) or not text:
            continue
        parts.append(f"## {name}\n")
        if inspect.isfunction(one):
            signature = ", ".join(map(str, inspect.signature(one).parameters))
            parts.append(f"```python\nckptforge.{name}({signature})\n```\n")
        parts.append(f"```text\n{text}\n```\n")
    return "\n".join(parts)


class Links(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets, self.anchors = list[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Notes one element."""
        found = dict(attributes)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        self.targets += [target for target in (found.get("href"), found.get("src")) if target]


def broken(site: Path) -> list[str]:
    """Links of a site to pages or headings that there aren't."""
    pages = {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    found = []
    for page, links in pages.items():
        for target in links.targets:
            if re.match(r"[a-z]+:|//", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            other = Path(os.path.normpath(page.parent / path)) if path else page
            other = other / "index.html" if other.is_dir() else other
            anchors = pages[other].anchors if other in pages else {anchor}
            if not other.is_file() or (anchor and anchor not in anchors):
                found.append(f"{page.relative_to(site)}: {target}")
    return found


def main() -> None:
    """Builds everything."""
    gather(PAGES)
    shutil.rmtree(SITE, ignore_errors=True)
    zensical = Path(sys.executable).with_name("zensical")
    subprocess.run([zensical, "build", "--strict", "-f", ROOT / "mkdocs.yml"], check=True, cwd=ROOT)
    if found := broken(SITE):
        sys.exit("\n".join(["links that lead nowhere:", *found]))


if __name__ == "__main__":
    main()
