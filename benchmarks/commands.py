"""The commands that are measured, and what each is measured against."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.model import bytes_of, files_of
from benchmarks.workspace import FORGE, Workspace

CALLS = Path(__file__).with_name("mindspore_calls.py")
MODEL, RANKS = "cp", "cp of 8 ranks"
# bytes of memory for each of the model's: what it was seen to take, or nearly
MINDSPORE_SHARES = {"ckpt": 8.0, "safetensors": 4.0}


@dataclass(frozen=True)
class Command:
    """A command line, the inputs it reads, and how its time is judged: as a multiple of that of
    `beside` with a sync, which is to be `reach` at most, or of the command that it is MindSpore's
    way of, at least; its processor time as a multiple of `beside`'s. `shares`: about how many
    times the bytes of its first input it writes, or takes as memory."""

    name: str
    line: Sequence[str]
    inputs: tuple[Path, ...]
    shares: float = 1.0
    beside: str = MODEL
    reach: float | None = None
    processor_reach: float | None = None

    @property
    def is_baseline(self) -> bool:
        return self.name == self.beside or self.name == synced(self.beside)

    @property
    def is_mindspore(self) -> bool:
        return str(CALLS) in self.line

    def read(self) -> list[Path]:
        return files_of(*self.inputs)

    def touched(self) -> int:
        """The memory it is given: as many bytes as it will write, and a GB."""
        return round(bytes_of(*self.inputs[:1]) * self.shares) + 10**9


def synced(baseline: str) -> str:
    return f"{baseline}, sync"


def baselines(work: Workspace) -> Iterator[Command]:
    """Plain cp of as many bytes as the commands write, and cp with a sync of the files it wrote."""
    copy = f"cp -r {work.hub} {work.out}"
    yield Command(MODEL, ["sh", "-c", copy], (work.hub,))
    yield Command(synced(MODEL), ["sh", "-c", f"{copy} && sync {work.out}/*"], (work.hub,))
    copy = (
        f"mkdir {work.out} && for r in 0 1 2 3 4 5 6 7; do cp -r {work.one_rank} "
        f"{work.out}/rank_$r; done"
    )
    yield Command(RANKS, ["sh", "-c", copy], (work.one_rank,), 8.0, RANKS)
    yield Command(
        synced(RANKS), ["sh", "-c", f"{copy} && sync {work.out}/*/*"], (work.one_rank,), 8.0, RANKS
    )


def commands(work: Workspace, options: Sequence[str]) -> Iterator[Command]:
    """Those of ckptforge, each with `options` added."""
    ckpt = str(work.out / "x.ckpt")

    def forge(*words: str) -> list[str]:
        return [*FORGE, *words, "--quiet", *options]

    to_ms = forge("to-ms", str(work.hub), ckpt)
    once = {
        "to-ms": Command("to-ms", to_ms, (work.hub,), reach=1.05, processor_reach=1.6),
        "to-ms fp16": Command(
            "to-ms fp16",
            [*to_ms, "--dtype", "fp16"],
            (work.hub,),
            reach=1.25,
            processor_reach=2.5,
        ),
        "to-ms gmm": Command("to-ms gmm", [*to_ms, "--layout", "gmm"], (work.hub,)),
        "to-ms gmm fp16": Command(
            "to-ms gmm fp16",
            [*to_ms, "--layout", "gmm", "--dtype", "fp16"],
            (work.hub,),
            reach=1.5,
            processor_reach=3.2,
        ),
        "to-torch": Command(
            "to-torch", forge("to-torch", str(work.dense), str(work.out)), (work.dense,), reach=1.05
        ),
    }
    yield from once.values()
    for name, command in once.items():
        yield Command(
            f"{name} --no-hash", [*command.line, "--no-hash"], command.inputs, reach=command.reach
        )
    yield Command(
        "convert gmm-v3", forge("convert", str(work.dense), ckpt, "--to", "gmm-v3"), (work.dense,)
    )
    yield from resharding(work, options, "ckpt")
    compare = [*FORGE, "compare", str(work.hub), str(work.dense), "--quiet"]
    yield Command("compare", [*compare, *_but_io(options)], (work.hub, work.dense), 0.0)


def _but_io(options: Sequence[str]) -> list[str]:
    """Options without --io and its word, for what writes nothing."""
    at = options.index("--io") if "--io" in options else len(options)
    return [*options[:at], *options[at + 2 :]]


def resharding(work: Workspace, options: Sequence[str], kind: str) -> Iterator[Command]:
    """merge 8 → 1, split 1 → 8, and from mp8 to two other jobs, in files of one format."""
    ranks, source = work.ranks[kind], work.strategy("mp8")
    end = "" if kind == "ckpt" else f" {kind}"
    whole = work.dense if kind == "ckpt" else work.whole[kind] / "rank_0" / f"x.{kind}"
    options = ["--format", kind, "--quiet", *options]
    merge = [
        *FORGE,
        "merge",
        str(ranks),
        str(work.out / f"x.{kind}"),
        "--strategy_dir",
        str(source),
        *options,
    ]
    yield Command(f"merge{end}", merge, (ranks, source), reach=1.15)
    split = [*FORGE, "split", str(whole), str(work.out), "--strategy_dir", str(source), *options]
    yield Command(
        f"split{end}",
        split,
        (work.dense if kind == "ckpt" else work.whole[kind], source),
        reach=1.15,
    )
    for job, shares, beside in (("mp4", 1.0, MODEL), ("dp4mp2ep2", 2.5, RANKS)):
        target = work.strategy(job)
        strategies = ["--src_strategy_dir", str(source), "--dst_strategy_dir", str(target)]
        line = [*FORGE, "reshard", str(ranks), str(work.out), *strategies, *options]
        yield Command(
            f"reshard mp8 → {job}{end}", line, (ranks, source, target), shares, beside, 1.2
        )


def mindspores(work: Workspace, options: Sequence[str]) -> Iterator[Command]:
    """MindSpore's ways to do the same, each after ours."""
    for kind, reach in (("ckpt", 12.0), ("safetensors", 4.0)):
        for ours in resharding(work, options, kind):
            yield ours
            what = ours.name.split()[0]
            source, target = (
                (None if what == "split" else work.strategy("mp8")),
                None if what == "merge" else ours.inputs[-1],
            )
            inputs = (work.whole[kind], *ours.inputs[1:]) if what == "split" else ours.inputs
            arguments = [
                str(inputs[0]),
                str(work.out),
                "x",
                *(str(_file(path)) if path else None for path in (source, target)),
            ]
            line = _call("transform_checkpoints", arguments, {"output_format": kind}, out=work.out)
            yield Command(
                f"MindSpore {ours.name}", line, inputs, MINDSPORE_SHARES[kind], ours.name, reach
            )
    ranks, strategy = work.ranks["safetensors"], work.strategy("mp8")
    unified = [
        *FORGE,
        "merge",
        str(ranks),
        str(work.out),
        "--strategy_dir",
        str(strategy),
        "--format",
        "unified",
        "--quiet",
        *options,
    ]
    yield Command("merge unified", unified, (ranks, strategy))
    line = _call(
        "unified_safetensors", [str(ranks), str(_file(strategy)), str(work.out)], {}, out=work.out
    )
    yield Command(
        "MindSpore unified_safetensors",
        line,
        (ranks, strategy),
        MINDSPORE_SHARES["safetensors"],
        "merge unified",
    )
    line = [
        *FORGE,
        "convert",
        str(work.dense),
        str(work.out / "x.ckpt"),
        "--to",
        "gmm-v3",
        "--quiet",
        *options,
    ]
    yield Command("convert gmm-v3", line, (work.dense,))
    line = _call("load_and_save", [str(work.dense), str(work.out / "x.ckpt")], {}, out=work.out)
    yield Command(
        "MindSpore load, save_checkpoint",
        line,
        (work.dense,),
        MINDSPORE_SHARES["safetensors"],
        "convert gmm-v3",
    )


def _file(strategy: Path) -> Path:
    """MindSpore wants the file, which for one stage has this name."""
    return strategy / "ckpt_strategy_rank_0.ckpt"


def _call(name: str, positional: list[str | None], words: dict[str, str], out: Path) -> list[str]:
    return [sys.executable, str(CALLS), name, json.dumps(positional), json.dumps(words), str(out)]
