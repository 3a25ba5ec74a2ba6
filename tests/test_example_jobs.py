"""The jobs of examples, in shell and in Python, the configurations for 2, 8 and 16 cards and the
notebook, on a tiny model."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

import ckptforge
from ckptforge.cli import demo
from tests.helpers import HUB, contents

EXAMPLES = Path(__file__).parents[1] / "examples"
JOBS = sorted(path.stem for path in (EXAMPLES / "jobs").glob("*.sh"))
CARDS = sorted((EXAMPLES / "parallel").glob("*.yaml"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A directory with a model, and the ranks of a job with their strategy."""
    root = tmp_path_factory.mktemp("jobs")
    with mock.patch.object(demo, "find_spec", lambda _: None):  # verify has tests of its own
        demo.run_demo(root / "small", False, lambda _: None)
    return root


def words_of(job, root, out):
    small, eight = root / "small", EXAMPLES / "parallel" / "cards_8.yaml"
    return {
        "to_mindformers": [small / "hub", out, eight, "gmm-v3"],
        "to_hugging_face": [small / "ranks", small / "strategy", out, small / "hub", "fp16"],
        "reshard_and_prune": [
            *(small / "ranks", small / "strategy", out),
            *(EXAMPLES / "parallel" / "cards_2.yaml", small / "hub", "0,2,5,7"),
        ],
    }[job]


def run_shell(job, root, out):
    own = root / "bin" / "ckptforge"
    if not own.exists():
        own.parent.mkdir()
        own.write_text(f'#!/bin/sh\nexec {sys.executable} -m ckptforge "$@"\n')
        own.chmod(0o755)
    paths = {"PATH": f"{own.parent}:{os.environ['PATH']}", "PYTHONPATH": str(EXAMPLES.parent)}
    words = ["bash", EXAMPLES / "jobs" / f"{job}.sh", *words_of(job, root, out)]
    done = subprocess.run(words, env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same: every tensor" in done.stdout


def run_python(job, root, out):
    path = EXAMPLES / "jobs" / f"{job}.py"
    words = [str(path), *map(str, words_of(job, root, out))]
    with mock.patch.object(sys, "argv", words), redirect_stdout(StringIO()):
        runpy.run_path(str(path), run_name="__main__")


def files_of(directory):
    return {
        path.relative_to(directory): path
        for path in directory.rglob("*")
        if path.suffix in (".ckpt", ".safetensors")
    }


def test_every_job_is_there_in_both():
    assert sorted(path.stem for path in (EXAMPLES / "jobs").glob("*.py")) == JOBS


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_job_makes_the_same_in_shell_and_in_python(desk, job):
    one, two = desk / f"{job} in shell", desk / f"{job} in python"
    for out in (one, two):
        out.parent.mkdir(exist_ok=True)
    run_shell(job, desk, one)
    run_python(job, desk, two)
    made, other = files_of(one), files_of(two)
    assert made and made.keys() == other.keys()
    for name, path in made.items():
        assert contents(path) == contents(other[name]), name


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_configuration_is_for_as_many_cards_as_its_name_says(path, tmp_path):
    cards = int(path.stem.removeprefix("cards_"))
    ckptforge.to_ms(HUB, tmp_path / "out", parallel_config=path)
    assert len(list((tmp_path / "out").glob("rank_*"))) == cards
    assert ckptforge.compare(HUB, tmp_path / "out")
    text = (EXAMPLES / "README.md").read_text()
    assert f"[{cards}](parallel/{path.name})" in text


def test_the_notebook_prints_what_it_shows(desk, tmp_path, monkeypatch):
    """By `exec`, as a kernel needs what isn't installed everywhere."""
    shutil.copytree(desk / "small", tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        shown = "".join(line for output in cell["outputs"] for line in output["text"])
        printed = StringIO()
        with redirect_stdout(printed):
            exec("".join(cell["source"]), names)
        assert printed.getvalue() == shown


def test_a_kernel_runs_the_notebook(desk, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    shutil.copytree(desk / "small", tmp_path / "small")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not re.search("Traceback", nbformat.writes(notebook))
