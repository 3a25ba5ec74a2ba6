"""Merging 8 ranks beside MindSpore's `transform_checkpoints` on the same files: `python -m benchmarks.merge [--gigabytes 1]`.

MindSpore is measured where it is installed: its .ckpt path, and its safetensors path on the same shards as safetensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import ckptforge
from benchmarks.__main__ import make, measure
from ckptforge.formats.checkpoint import open_checkpoint
from ckptforge.partition.device_layout import DeviceLayout
from ckptforge.partition.strategy_file import strategy_bytes

RANKS = 8


def mp8_strategy(checkpoint: Path) -> bytes:
    """Every tensor cut in 8 along its last axis that can be, as tensor parallelism of 8 does."""
    stage = {}
    for name, entry in open_checkpoint(checkpoint).tensors.items():
        cut = next((i for i in reversed(range(len(entry.shape))) if entry.shape[i] % RANKS == 0 and len(entry.shape) > 1), None)
        stage[name] = DeviceLayout((RANKS,), tuple((0,) if i == cut else () for i in range(len(entry.shape))))
    return strategy_bytes(0, stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of bfloat16 weights")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as directory:
        work = Path(directory)
        make(work / "hub", args.gigabytes, real=False)
        ckptforge.to_ms(work / "hub", work / "full.ckpt")
        shutil.rmtree(work / "hub")
        strategy, out = work / "strategy.ckpt", work / "out"
        strategy.write_bytes(mp8_strategy(work / "full.ckpt"))
        for kind in ("ckpt", "safetensors"):
            ckptforge.split(work / "full.ckpt", work / kind, strategy_dir=strategy, format=kind)
        size = (work / "full.ckpt").stat().st_size
        call = "import mindspore as m; m.transform_checkpoints({src!r}, {out!r}, 'x', {strategy!r}, None, output_format={kind!r})"
        commands = {"cp": ["cp", str(work / "full.ckpt"), str(out)]}
        for kind in ("ckpt", "safetensors"):
            merge = [sys.executable, "-m", "ckptforge", "merge", str(work / kind), f"{out}/x.{kind}", "--strategy_dir", str(strategy)]
            commands[f"ckptforge merge, {kind}"] = [*merge, "--quiet"]
            if importlib.util.find_spec("mindspore"):
                code = call.format(src=str(work / kind), out=str(out), strategy=str(strategy), kind=kind)
                commands[f"transform_checkpoints, {kind}"] = [sys.executable, "-c", code]
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(args.repeats):
            for name, command in commands.items():
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                os.sync()
                taken[name].append(measure(command))
        print(f"| merge of 8 ranks, {size / 1e9:.2f} GB | wall s | min–max | ÷ cp | cpu s | peak MB |\n|---|---|---|---|---|---|")
        base = statistics.median(wall for wall, _, _ in taken["cp"])
        for name, runs in taken.items():
            wall, cpu, memory = (statistics.median(run[i] for run in runs) for i in range(3))
            spread = f"{min(run[0] for run in runs):.2f}–{max(run[0] for run in runs):.2f}"
            print(f"| {name} | {wall:.2f} | {spread} | {wall / base:.2f} | {cpu:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
