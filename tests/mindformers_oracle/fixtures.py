"""MindFormers for tests: its wheel, and the process that it runs in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import wheel_of
from tests.mindformers_oracle.jobs import Job

VERSION = "2.1.0"


class MindFormers:
    """MindFormers' own save_checkpoint and load_checkpoint."""

    def __init__(self, wheel: Path, directory: Path) -> None:
        self._directory = directory
        self._log = open(directory / "log", "w")  # noqa: SIM115
        self._loads = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mindformers_oracle.process", str(wheel)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def save(
        self,
        root: Path,
        job: Job,
        *,
        remove_redundancy: bool = False,
        iteration: int = 7,
        prefix: str | None = "checkpoint",
    ) -> None:
        """Writes `root` as a training of this job would: each tensor is `full_tensor`, cut."""
        self._ask(
            do="save",
            job=job.as_json(),
            root=str(root),
            remove_redundancy=remove_redundancy,
            iteration=iteration,
            prefix=prefix,
        )

    def load(self, path: Path, job: Job) -> dict[str, np.ndarray]:
        """The bits of all whole tensors that MindFormers loads into this job, put together of all
        ranks' parts. What it leaves as it was on one rank at least isn't there."""
        self._loads += 1
        out = self._directory / f"load{self._loads}"
        out.mkdir()
        parts = self._ask(do="load", job=job.as_json(), path=str(path), out=str(out))
        files = [np.load(out / f"{rank}.npz") for rank in range(job.ranks)]
        whole = {}
        for name, parameter in job.parameters.items():
            owners = parameter.owners(job.ranks)
            if not all(name in parts[rank] for rank in owners):
                continue
            array = whole[name] = np.zeros(parameter.shape, files[owners[0]][name].dtype)
            seen = np.zeros(parameter.shape, bool)
            for rank in owners:
                area = tuple(slice(*bounds) for bounds in parts[rank][name])
                own = files[rank][name]
                assert (~seen[area] | (array[area] == own)).all(), f"{name}: replicas differ"
                array[area], seen[area] = own, True
            assert seen.all(), f"{name}: no rank has all of it"
        return whole

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "MindFormers died"}')
        if "error" in answer:
            tail = (self._directory / "log").read_text().splitlines()[-40:]
            raise MindFormersError(answer["error"], "\n".join(tail))
        return answer["result"]


class MindFormersError(Exception):
    """What MindFormers raised, and the end of its log."""


@pytest.fixture(scope="session")
def mindformers_release(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], MindFormers]]:
    """Gives MindFormers of a version. Skips where it can't be run, and says why."""
    started: dict[str, MindFormers | str] = {}

    def start(version: str) -> MindFormers:
        if version not in started:
            directory = tmp_path_factory.mktemp("mindformers")
            wheel = find_wheel(version, directory)
            started[version] = wheel if isinstance(wheel, str) else MindFormers(wheel, directory)
        found = started[version]
        if isinstance(found, str):
            pytest.skip(found)
        return found

    yield start
    for one in started.values():
        if isinstance(one, MindFormers):
            one.close()


@pytest.fixture(scope="session")
def mindformers(mindformers_release: Callable[[str], MindFormers]) -> MindFormers:
    return mindformers_release(VERSION)


def find_wheel(version: str, directory: Path) -> Path | str:
    """The wheel without what it requires, MindSpore for an Ascend and much that only other parts of
    it import; or why there is none."""
    if importlib.util.find_spec("mindspore") is None:
        return "MindFormers needs mindspore, which isn't installed"
    return wheel_of(f"mindformers=={version}", directory)
