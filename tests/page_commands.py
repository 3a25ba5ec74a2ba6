"""Runs the commands of a page, and compares what they print with what the page shows.

A block of ```console holds commands, each after `$ `, with what it prints below it:

- A here-document goes on to its end. `…` alone on a line stands for any lines.
- A command below which nothing is shown may print anything, but must succeed.
- One whose output starts with `ckptforge: ` must fail, with that message.
- Times (`in 0.02 s`) and empty lines at the end may differ.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from ckptforge.cli import demo, entry

_OPEN = re.compile(r"<<'?(\w+)'?$")
_SHELL = 'ckptforge() { "$PYTHON" -m ckptforge "$@"; }; python() { "$PYTHON" "$@"; }; '


class Step(NamedTuple):
    """A command, and what the page shows of its output."""

    command: str
    shown: str


def steps_of(page: str) -> list[Step]:
    """The commands of a page's console blocks in their order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.M):
        lines = iter(block.splitlines())
        for line in lines:
            if line.startswith("$ "):
                command = line[2:]
                if opened := _OPEN.search(command):
                    for more in lines:
                        command += f"\n{more}"
                        if more == opened[1]:
                            break
                found.append([command, ""])
            else:
                found[-1][1] += f"{line}\n"
    return [Step(*one) for one in found]


def run_steps(steps: list[Step], directory: Path) -> None:
    """Runs commands in a directory, `cd` included. Raises `AssertionError` for one that prints
    something else than is shown, or that fails or succeeds against it."""
    for command, shown in steps:
        words = words_of(command)
        if words[:1] == ["cd"]:
            directory = directory / words[1]
            continue
        if words[:1] == ["ckptforge"]:
            code, printed = in_this_process(words[1:], directory)
        else:
            code, printed = _in_a_shell(command, directory)
        fails = shown.startswith("ckptforge: ")
        assert (code != 0) == fails, (command, code, printed)
        assert not shown or matches(printed, shown), f"$ {command}\n{printed}"


def words_of(command: str) -> list[str]:
    """The words of a command, none of one that only a shell understands."""
    return [] if re.search(r"[|<;&]|>>", command) else shlex.split(command, comments=True)


def matches(printed: str, shown: str) -> bool:
    """Whether an output is what is shown of it."""
    parts = re.split(r"^…\n", _comparable(shown), flags=re.M)
    pattern = "(?:.*\n)*?".join(map(re.escape, parts))
    return re.fullmatch(pattern, _comparable(printed)) is not None


def _comparable(text: str) -> str:
    return re.sub(r" in [\d.]+ (ms|s)\b", " in _ s", text.rstrip("\n") + "\n")


def in_this_process(words: list[str], directory: Path) -> tuple[int, str]:
    """(exit code, output) of a command of ours, without a second for each start."""
    into = words[-1] if words[-2:-1] == [">"] else None
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(directory)
    try:
        with (
            mock.patch.dict(os.environ, _wide(), clear=True),
            mock.patch.object(sys, "argv", ["ckptforge", *(words[:-2] if into else words)]),
            mock.patch.object(entry.signal, "signal", lambda *_: None),
            mock.patch.object(demo, "find_spec", lambda _: None),  # verify has tests of its own
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                entry.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        if into:
            Path(into).write_text(out.getvalue(), encoding="utf-8")
    finally:
        os.chdir(before)
    return code, err.getvalue() + ("" if into else out.getvalue())


def _wide() -> dict[str, str]:
    """The environment without the width of a terminal, which xdist says to its workers."""
    return {name: text for name, text in os.environ.items() if name != "COLUMNS"}


def _in_a_shell(command: str, directory: Path) -> tuple[int, str]:
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        ["bash", "-c", _SHELL + command],
        cwd=directory,
        env={**_wide(), "PYTHON": sys.executable, "LC_ALL": "C.UTF-8", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout
