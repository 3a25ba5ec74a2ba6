"""The inputs of the commands that are measured, made when one is wanted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.measurement import measure
from benchmarks.model import make

FORGE = (sys.executable, "-m", "ckptforge")
# vocab_emb_dp is off, so that the parts of mp8 are together no more than the model.
JOBS = {
    "mp8": {"model_parallel": 8, "vocab_emb_dp": False},
    "mp4": {"model_parallel": 4, "vocab_emb_dp": False},
    "dp4mp2ep2": {
        "data_parallel": 4,
        "model_parallel": 2,
        "expert_parallel": 2,
        "vocab_emb_dp": False,
    },
}


class Workspace:
    """A directory with a model and what was made of it, as rank directories and strategies too."""

    def __init__(self, directory: Path, sizes: dict[str, int]) -> None:
        self.directory, self.sizes = directory, sizes
        self.hub, self.dense, self.out = (
            directory / "hub",
            directory / "dense.ckpt",
            directory / "out",
        )
        self.ranks = {kind: directory / f"ranks_{kind}" for kind in ("ckpt", "safetensors")}  # mp8
        # rank_0 alone
        self.whole = {kind: directory / f"whole_{kind}" for kind in ("ckpt", "safetensors")}
        self.one_rank = directory / "one_rank"  # of dp4mp2ep2
        self._failures: dict[Path, str] = {}

    def strategy(self, job: str) -> Path:
        return self.directory / f"strategy_{job}"

    def clear(self) -> None:
        """Removes what the last command wrote, and waits until the disk has all the rest."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()

    def provide(self, path: Path) -> str:
        """Makes an input unless it was made; returns why it can't be had, or nothing."""
        if path not in self._failures:
            try:
                self._failures[path] = self._made(path)
            except OSError as error:
                self._failures[path] = str(error)
        return self._failures[path]

    def _made(self, path: Path) -> str:
        if path == self.hub:
            make(path, self.sizes)
            return ""
        if path == self.dense:
            return self._forge([self.hub], "to-ms", str(self.hub), str(path))
        for kind in self.ranks:
            if path == self.ranks[kind]:
                return self._split("mp8", path, kind)
            if path == self.whole[kind] and kind == "ckpt":
                failure = self.provide(self.dense)
                if not failure:
                    (path / "rank_0").mkdir(parents=True)
                    os.link(self.dense, path / "rank_0" / "x.ckpt")
                return failure
            if path == self.whole[kind]:
                wanted = [self.ranks[kind], self.strategy("mp8")]
                target = path / "rank_0" / f"x.{kind}"
                return self._forge(
                    wanted, "merge", str(wanted[0]), str(target), "--strategy_dir", str(wanted[1])
                )
        if path == self.one_rank:
            failure = self._split("dp4mp2ep2", self.out, "ckpt")
            if not failure:
                shutil.move(self.out / "rank_0", path)
                self.clear()
            return failure
        job = next(job for job in JOBS if path == self.strategy(job))
        config = self.directory / f"{job}.json"
        config.write_text(json.dumps(JOBS[job]))
        return self._forge(
            [self.dense],
            "strategy",
            str(path),
            "--parallel_config",
            str(config),
            "--like",
            str(self.dense),
        )

    def _split(self, job: str, path: Path, kind: str) -> str:
        wanted = [self.dense, self.strategy(job)]
        return self._forge(
            wanted,
            "split",
            str(self.dense),
            str(path),
            "--strategy_dir",
            str(wanted[1]),
            "--format",
            kind,
        )

    def _forge(self, wanted: list[Path], *words: str) -> str:
        for path in wanted:
            if failure := self.provide(path):
                return failure
        return measure([*FORGE, *words, "--quiet"]).failure
