"""The topics of `ckptforge help`: short pages of docs/topics, as a terminal shows them."""

from __future__ import annotations

import posixpath
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable

_ENDING = ".md"


def topics() -> list[str]:
    """The names of the topics, in order."""
    return sorted(file.name[: -len(_ENDING)] for file in _directory().iterdir())


def topic(name: str) -> str | None:
    """What is to be said on a topic, None where there is none of this name."""
    if name not in topics():
        return None
    return as_text((_directory() / f"{name}{_ENDING}").read_text(encoding="utf-8"))


def as_text(page: str) -> str:
    """A page without Markdown's marks: a link as what it leads to, seen from the repository's
    root."""

    def linked(found: re.Match[str]) -> str:
        target = found[2].partition("#")[0]
        return found[1] if "://" in target else posixpath.normpath(f"docs/topics/{target}")

    text = re.sub(r"\[([^\]]*)\]\(([^)\s]*)\)", linked, page)
    return re.sub(r"^#+ (.*)$", r"\1", text, flags=re.M).rstrip()


def _directory() -> Traversable | Path:
    installed = resources.files("ckptforge") / "topics"
    if installed.is_dir():
        return installed
    return Path(__file__).parents[2] / "docs" / "topics"  # a source tree
