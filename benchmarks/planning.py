"""Time and memory of planning models of real size, from headers alone: `python -m
benchmarks.planning`.

Makes Mixtral 8x7B and 8x22B and DeepSeek-V3 as sparse files (real headers, no weights), and runs
`--dry-run` on them, each in a process of its own: to one file, to the ranks of jobs with optimizer
parallel, one part of such a job, and between Hugging Face's files, in bfloat16 and in FP8, and
MindFormers' iterations. The run with the least processor time is shown, which is what others that
compute meanwhile change least.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ckptforge
from benchmarks.measurement import measure, peak, processor, show, succeeded
from benchmarks.model import DEEPSEEK_V3, MIXTRAL_8X7B
from benchmarks.workspace import FORGE
from ckptforge.planning.plan import Plan
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model

MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "Mixtral 8x7B": ("mixtral", MIXTRAL_8X7B),
    "Mixtral 8x22B": (
        "mixtral",
        {
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "num_hidden_layers": 56,
        },
    ),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK_V3),
}


DEEPSEEK, LARGE_MIXTRAL = "DeepSeek-V3", "Mixtral 8x22B"
FEW = {"data_parallel": 64, "model_parallel": 8, "expert_parallel": 8, "pipeline_stage": 2}
MANY = {"data_parallel": 256, "model_parallel": 4, "expert_parallel": 8, "pipeline_stage": 16}


class Case(NamedTuple):
    """What is planned, in words, by which command, and in how many seconds and MB it should be."""

    model: str
    to: str
    command: list[str]
    seconds: float | None = None
    megabytes: int | None = None


class Inputs:
    """The models, made when one is wanted."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def hub(self, model: str) -> Path:
        name, sizes = MODELS[model]
        path = self.work / model.replace(" ", "-")
        if not path.exists():
            table = next(table for table in shipped_tables() if table.name == name)
            write_model(path, table, {**table.example, **sizes}, shard_bytes=5 * 10**9, sparse=True)
        return path

    def iteration(self, model: str) -> Path:
        """A model as MindFormers holds it."""
        path = self.work / "iteration"
        if not path.exists():
            write_sparse(ckptforge.plan("to_ms", self.hub(model), path, format="mindformers"))
        return path

    def fp8(self, model: str) -> Path:
        """The same on the Hugging Face side, in FP8 with scales."""
        path, hub = self.work / "fp8", self.hub(model)
        if not path.exists():
            keys = {"config": hub, "quantise": ["fp8-block128"]}
            write_sparse(ckptforge.plan("to_torch", self.iteration(model), path, **keys))
        return path

    def job(self, model: str, degrees: dict[str, int]) -> list[str]:
        """The option that names the parallel configuration of a job."""
        layers, stages = MODELS[model][1]["num_hidden_layers"], degrees["pipeline_stage"]
        offset = [0] * (stages - 1) + [layers % stages]
        path = self.work / f"job-{layers}-{stages}.json"
        keys = {**degrees, "enable_parallel_optimizer": True, "offset": offset}
        path.write_text(json.dumps(keys))
        return ["--parallel_config", str(path)]


def write_sparse(plan: Plan) -> None:
    """The files of a plan with all but their tensors."""
    for file in plan.files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with file.path.open("wb") as opened:
            for offset, literal in file.literals:
                opened.seek(offset)
                opened.write(literal)
            opened.truncate(file.size)
    for name, content in plan.small_files.items():
        (plan.output / name).parent.mkdir(parents=True, exist_ok=True)
        (plan.output / name).write_bytes(content)


def cases(work: Path) -> Iterator[Case]:
    inputs, out = Inputs(work), str(work / "out")
    for model in MODELS:
        convert = ["to-ms", str(inputs.hub(model)), out]
        few, many = (inputs.job(model, degrees) for degrees in (FEW, MANY))
        own = model == DEEPSEEK
        yield Case(model, "one file", convert, 1.5 if own else None)
        seconds = {DEEPSEEK: 4.0, LARGE_MIXTRAL: 1.0}.get(model)
        yield Case(model, "1,024 ranks", convert + few, seconds, 200 if own else None)
        if own:
            part = [*convert, *few, "--part", "1/1024"]
            yield Case(model, "1,024 ranks, part 1/1024", part, 2.0, 150)
            yield Case(model, "16,384 ranks", convert + many, 30.0, 1000)
    hub, iteration, fp8 = inputs.hub(DEEPSEEK), inputs.iteration(DEEPSEEK), inputs.fp8(DEEPSEEK)
    back = ["to-torch", str(iteration), out, "--config", str(hub)]
    for name, to, command in (
        ("bf16", "an iteration", ["to-ms", str(hub), out, "--format", "mindformers"]),
        ("FP8", "an iteration", ["to-ms", str(fp8), out, "--format", "mindformers"]),
        ("an iteration", "bf16", back),
        ("an iteration", "FP8", [*back, "--quantise", "fp8-block128"]),
    ):
        yield Case(f"{DEEPSEEK}, {name}", to, command, 5.0)


def row(case: Case, repeats: int) -> list[str]:
    command = [*FORGE, *case.command, "--dry-run", "--quiet"]
    runs = [measure(command) for _ in range(repeats)]
    if not (done := succeeded(runs)):
        return [case.model, case.to, f"failed: {runs[0].failure[:200]}", "", "", "", ""]
    best, most = min(done, key=processor), peak(done) / 1e6
    aims = [
        "" if case.seconds is None else f"{case.seconds:g} s",
        "" if case.megabytes is None else f"{case.megabytes} MB",
    ]
    return [
        case.model,
        case.to,
        f"{processor(best):.2f}",
        f"{best.user:.2f} + {best.system:.2f}",
        f"{best.wall:.2f}",
        f"{most:.0f}",
        ", ".join(filter(None, aims)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    titles = ["model", "to", "least processor s", "user + system", "wall s", "peak MB", "aim"]
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        show(titles, (row(case, repeats) for case in cases(Path(work))))


if __name__ == "__main__":
    main()
