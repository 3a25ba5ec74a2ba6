"""Where the command line prints to: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from typing import IO, Any

import click

SCHEMA = 1  # of every --json object: docs/json.md; raised when a field goes or changes its meaning


def print_json(
    content: Mapping[str, Any], result: str = "done", error: str | None = None, kind: str = "Failed"
) -> None:
    """One object on stdout: how it ended, in a word, and the error of a check that failed."""
    about = {"schema": SCHEMA, "ok": error is None, "result": result}
    failure = {} if error is None else {"error": {"type": kind, "message": error}}
    own = {key: value for key, value in content.items() if key != "ok"}
    click.echo(json_text({**about, **own, **failure}))


def json_text(content: Mapping[str, Any]) -> str:
    """JSON that every parser takes: floats that aren't finite are strings."""
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def print_result(text: str, failed: bool = False) -> None:
    """A result on stdout; its last line, the verdict, is red where a check failed."""
    if failed:
        *lines, verdict = text.split("\n")
        text = "\n".join([*lines, red(verdict)])
    click.echo(text, color=coloured(sys.stdout))


def print_error(text: str) -> None:
    """An error on stderr: its first line in red, what follows are lists and advice."""
    first, *more = text.split("\n")
    click.echo("\n".join([red(first), *more]), err=True, color=coloured(sys.stderr))


def red(text: str) -> str:
    """`text` in red; `click.echo` removes that again where there are no colours."""
    return click.style(text, fg="red")


def coloured(stream: IO[str]) -> bool:
    """Whether a stream gets colours: a terminal does, unless NO_COLOR or FORCE_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def this_command() -> str:
    """The command that is running, quoted for a shell, as the manifest keeps it."""
    return shlex.join(["ckptforge", *(word for word in sys.argv[1:] if word != "--resume")])
