"""A page of every kind of answer on models of real size: Mixtral 8x7B and DeepSeek-V3 on 1,024
ranks.

What needs headers alone has them at full size, in files that are holes. What reads numbers
(`compare`, `stats`, `verify`) has all layers, made narrow.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from benchmarks.model import DEEPSEEK_V3, MIXTRAL_8X7B
from ckptforge.cli.app import cli
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.convert import _to_ms
from ckptforge.verbs.options import ToMs
from ckptforge.verbs.synthetic import write_model

TABLES = {table.name: table for table in shipped_tables()}
MIXTRAL_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
JOB = {"enable_parallel_optimizer": True}
MIXTRAL_JOB = {**JOB, "data_parallel": 64, "model_parallel": 8, "expert_parallel": 8}
MIXTRAL_JOB |= {"pipeline_stage": 2}
DEEPSEEK_JOB = {**JOB, "data_parallel": 128, "model_parallel": 2, "expert_parallel": 64}
DEEPSEEK_JOB |= {"pipeline_stage": 4, "offset": [0, 0, 0, 1]}
DEEPSEEK_NARROW = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 8,
    "n_routed_experts": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}


class Answers:
    """Pages about one model in a directory, made when they are asked for by name."""

    def __init__(
        self,
        work: Path,
        table: str,
        sizes: Mapping[str, Any],
        narrow: Mapping[str, Any],
        job: Mapping[str, Any],
    ) -> None:
        self.work, self.table = work, TABLES[table]
        self.config = {**self.table.example, **sizes}
        self.narrow_config = {**self.config, **narrow}
        work.mkdir()
        self.job = self._json("job", job)
        self.small_job = self._json("small", {"data_parallel": 4, "model_parallel": 2})
        self.other_job = self._json("other", {**job, "data_parallel": job["data_parallel"] // 2})

    @property
    def layout(self) -> str:
        """The layout that MindSpore trains in."""
        return self.table.names_of("mindspore")[0]

    def page(self, name: str) -> Path:
        """The page of this name, one of `NAMES`."""
        path = self.work / f"{name}.html"
        if not path.exists():
            words, code = NAMES[name](self)
            done = CliRunner().invoke(cli, [*map(str, words), "--html", str(path)])
            assert done.exit_code == code, (name, done.output, done.exception)
        return path

    @cached_property
    def hub(self) -> Path:
        """The model's Hugging Face directory, of holes."""
        path = self.work / "hub"
        write_model(path, self.table, self.config, shard_bytes=5 * 10**9, sparse=True)
        return path

    @cached_property
    def ranks(self) -> Path:
        """The files of 1,024 ranks, of holes: what `to-ms` would write, without the numbers."""
        path = self.work / "ranks"
        done = _to_ms(ToMs(self.hub, path, parallel_config=self.job, format="safetensors"))
        for file in done.plan.files:
            file.path.parent.mkdir(parents=True)
            with file.path.open("wb") as out:
                for at, literal in file.literals:
                    out.seek(at)
                    out.write(literal)
                out.truncate(file.size)
        return path

    @cached_property
    def strategy(self) -> Path:
        """The strategy files of these ranks."""
        path = self.work / "strategy"
        words = ["strategy", path, "--parallel-config", self.job, "--like", self.hub]
        done = CliRunner().invoke(cli, [*map(str, words)])
        assert done.exit_code == 0, done.output
        return path

    @cached_property
    def narrow(self) -> Path:
        """A narrow model with all layers."""
        path = self.work / "narrow"
        write_model(path, self.table, self.narrow_config, dtype="float32")
        return path

    @cached_property
    def mindspore(self) -> Path:
        """The narrow model for MindSpore."""
        path = self.work / "narrow.ckpt"
        done = CliRunner().invoke(cli, ["to-ms", str(self.narrow), str(path)])
        assert done.exit_code == 0, done.output
        return path

    @cached_property
    def changed(self) -> Path:
        """The narrow model with noise that grows from layer to layer, a matrix upside down, one
        twice as large, and a NaN."""
        path = self.work / "changed"
        shutil.copytree(self.narrow, path)
        for file in sorted(path.glob("*.safetensors")):
            _change(file)
        return path

    def _json(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.work / f"{name}.json"
        path.write_text(json.dumps(content))
        return path


def answers(work: Path) -> dict[str, Answers]:
    """Those about both models."""
    mixtral = Answers(work / "Mixtral-8x7B", "mixtral", MIXTRAL_8X7B, MIXTRAL_NARROW, MIXTRAL_JOB)
    deepseek = Answers(
        work / "DeepSeek-V3", "deepseek_v3", DEEPSEEK_V3, DEEPSEEK_NARROW, DEEPSEEK_JOB
    )
    return {"mixtral": mixtral, "deepseek": deepseek}


def _change(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    numbers = np.frombuffer(raw, np.float32, offset=8 + size)
    random = np.random.default_rng(3)
    for name, one in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        low, high = (at // 4 for at in one["data_offsets"])
        own = numbers[low:high]
        layer = int(name.split(".")[2]) if ".layers." in name else None
        if layer is not None and layer % 4 == 3 and "norm" not in name:
            own += random.normal(0, 1e-5 * 10 ** (layer / 12), own.size).astype(np.float32)
        if layer == 9 and name.endswith(("q_proj.weight", "q_a_proj.weight")):
            own *= 2
        if layer == 5 and name.endswith("o_proj.weight"):
            own[7] = np.nan
        if layer == 2 and name.endswith("k_proj.weight"):
            own[:] = own[::-1].copy()
    file.write_bytes(raw)


def _dry(*words: object) -> tuple[list[object], int]:
    return [*words, "--dry-run"], 0


NAMES: dict[str, Callable[[Answers], tuple[list[object], int]]] = {
    "inspect": lambda a: (["inspect", a.hub], 0),
    "inspect-ranks": lambda a: (["inspect", a.ranks, "--strategy-dir", a.strategy], 0),
    "strategy": lambda a: (
        ["strategy", a.work / "more", "--parallel-config", a.job, "--like", a.hub],
        0,
    ),
    "to-ms": lambda a: _dry("to-ms", a.hub, a.work / "out", "--parallel-config", a.job),
    "to-torch": lambda a: _dry(
        *("to-torch", a.ranks, a.work / "out", "--strategy-dir", a.strategy, "--config", a.hub)
    ),
    "convert": lambda a: _dry("convert", a.hub, a.work / "out", "--to", a.layout),
    "merge": lambda a: _dry("merge", a.ranks, a.work / "x.ckpt", "--strategy-dir", a.strategy),
    "split": lambda a: _dry("split", a.mindspore, a.work / "out", "--parallel-config", a.small_job),
    "reshard": lambda a: _dry(
        *("reshard", a.ranks, a.work / "out", "--src-strategy-dir", a.strategy),
        *("--dst-parallel-config", a.other_job),
    ),
    "edit": lambda a: _dry("edit", a.hub, a.work / "out", "--take", "l=0-11"),
    "average": lambda a: _dry("average", a.work / "out", a.hub, a.hub),
    "stats": lambda a: (["stats", a.changed], 0),
    "compare": lambda a: (["compare", a.narrow, a.changed], 1),
    "compare-manifest": lambda a: (["compare", a.mindspore], 0),
    "verify": lambda a: (["verify", a.narrow, a.mindspore, "--tokens", "64"], 0),
    "verify-two": lambda a: (["verify", a.narrow, a.changed, "--tokens", "16"], 1),
}
