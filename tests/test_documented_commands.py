"""Every command that the documentation and the examples show is one that the program takes, with
all its options and their values: also those that need a cluster, a service or days."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ckptforge.cli.app import cli

ROOT = Path(__file__).parents[1]
TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / ".github").rglob("*.yml"),
    *(ROOT / "docs").rglob("*.md"),
    *(path for path in (ROOT / "examples").rglob("*") if path.suffix in (".md", ".sh", ".ipynb")),
]
# of a synopsis, or of a command whose rest was said before
OPEN = re.compile(r"…|\.\.\.|\[-|\[[A-Z]+\]|\||\b(COMMAND|TOPIC)\b")
SHELL = re.compile(r"\s(?:\||>>?|<|&&|;)\s.*$|\s#\s.*$|\)$")


def commands_in(text: str) -> Iterator[str]:
    """The command lines in a page: in blocks, also of YAML, and set as code in sentences, where the
    name of a command alone is none."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^\s*```\w*\n(.*?)^\s*```", text, re.DOTALL | re.M)
    prose = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.M)
    for line in "".join(blocks).splitlines():
        if found := re.search(r"(?:^\s*(?:\$ |!)?|&& )(ckptforge\s.*)$", line):
            yield found[1]
        if found := re.search(r'--wrap "(ckptforge\s[^"]*)"', line):
            yield found[1]
        if found := re.search(r"command: \[(ckptforge, .*)\]", line):
            yield found[1].replace(",", "")
    for code in re.findall(r"`(ckptforge\s+[^`\s]+\s[^`]+)`", prose):
        yield " ".join(code.split())
    yield from re.findall(r"^ {4}(ckptforge \S.*?)(?: {2,}.*)?$", prose, re.M)  # topics


def shown(path: Path) -> list[str]:
    """The commands of a file."""
    text = path.read_text()
    if path.suffix in (".sh", ".yml"):
        text = f"```\n{text}\n```\n"
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        text = "\n".join(f"```\n{one}\n```" for one in code)
    return list(commands_in(text))


def words_of(command: str) -> list[str]:
    """What the program gets of a command line; a shell's variable is any word, but for a dtype."""
    command = re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", command)  # ${layout:+--layout "$layout"}
    return shlex.split(SHELL.sub("", command).replace("$dtype", "bf16"))[1:]


def parse(words: list[str]) -> None:
    """Has the program's own parser take words, and make of them what a command is called with,
    without calling it."""
    found: click.Command = cli
    context: click.Context | None = None
    while isinstance(found, click.Group):
        context = click.Context(found, context, found.name)
        _, found, words = found.resolve_command(context, list(words))
    with found.make_context(found.name, list(words), parent=context) as made:
        if (run := getattr(found, "run", None)) is not None:
            found.run = lambda *_: None
            try:
                made.invoke(found.callback, **made.params)
            finally:
                found.run = run


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_one_that_the_program_takes(path):
    for command in shown(path):
        if OPEN.search(SHELL.sub("", command)):
            continue
        try:
            parse(words_of(command))
        except click.exceptions.Exit as ended:
            assert ended.exit_code == 0, command
        except Exception as error:
            raise AssertionError(f"{command}\n{type(error).__name__}: {error}") from error


def test_nearly_all_of_them_are_parsed():
    every = [command for path in TEXTS for command in shown(path)]
    parsed = [command for command in every if not OPEN.search(SHELL.sub("", command))]
    assert len(every) > 250 and len(parsed) > 0.9 * len(every)


@pytest.mark.parametrize(
    "command",
    [
        "ckptforge to-ms hf_dir",
        "ckptforge to-ms hf_dir out --no-such-option",
        "ckptforge to-ms hf_dir out --format pickle",
        "ckptforge to-ms hf_dir out --workers many",
        "ckptforge compare a b c",
        "ckptforge mapping shw mixtral",
    ],
)
def test_a_command_that_the_program_does_not_take_is_found(command):
    (found,) = commands_in(f"Text.\n\n```\n$ {command}   # as it is\n```\n")
    with pytest.raises(Exception):  # noqa: B017
        parse(words_of(found))
