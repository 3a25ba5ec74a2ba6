"""The mapping tables that come with ckptforge, and those that may be meant beside a user's."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from ckptforge.tables.parsing import load_table, make_table
from ckptforge.tables.table import Table
from ckptforge.tables.table_file import read_shipped_file


def shipped_tables(model: object = None, model_type: object = None) -> tuple[Table, ...]:
    """The tables that come with ckptforge, by name. Where one of them is named `model`, or is for
    the `model_type` of a config.json, only those that are: reading all takes longer than reading
    most checkpoints' indexes."""
    files = _shipped_files()
    chosen = [file for file in files if file[0] == f"{model}.toml"]
    if not chosen and model is None:
        typed = f'"{model_type}"' if isinstance(model_type, str) else None
        chosen = [file for file in files if typed is not None and typed in file[2]]
    return tuple(_shipped_table(name, content) for name, content, _ in chosen or files)


def candidate_tables(
    given: Path | None, model: object = None, model_type: object = None
) -> tuple[Table, ...]:
    """The table in a user's file, else the shipped ones that may be meant."""
    return shipped_tables(model, model_type) if given is None else (load_table(given),)


@cache
def _shipped_table(name: str, content: bytes) -> Table:
    return make_table(read_shipped_file(content), content, f"mappings/{name}")


@cache
def _shipped_files() -> tuple[tuple[str, bytes, str], ...]:
    """(file name, contents, the line with model_type) of each."""
    root = resources.files("ckptforge") / "mappings"
    if not root.is_dir():  # a source tree, where the tables stand beside the package
        root = Path(__file__).parents[2] / "mappings"
    tables = (file for file in root.iterdir() if file.name.endswith(".toml"))
    files = sorted(tables, key=lambda file: file.name)
    found = []
    for file in files:
        content = file.read_bytes()
        lines = (line for line in content.decode().split("\n") if line.startswith("model_type "))
        found.append((file.name, content, next(lines, "")))
    return tuple(found)
