"""Time and memory of FP8, written and read, beside cp of the bfloat16: `python -m benchmarks.fp8`.

Makes a layer of DeepSeek-V3 with random weights, its matrices of their full size and as many
experts as make the gigabytes, as MindFormers' iteration in bfloat16. Writes it in FP8 of 128 × 128
blocks for Hugging Face, and that as an iteration in bfloat16, each in a process of its own, in
turns with `cp` and `sync` of the bfloat16. What is read is in the page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside_cp import main, row
from benchmarks.measurement import Measurement, measure
from benchmarks.model import DEEPSEEK_V3, bytes_of, files_of, make
from benchmarks.workspace import FORGE

_ATTENTION = 187 * 10**6 * 2  # bytes of a layer's attention, about
_EXPERT = 3 * DEEPSEEK_V3["hidden_size"] * DEEPSEEK_V3["moe_intermediate_size"] * 2
_SIZES = {  # one layer of DeepSeek-V3, with fewer experts and words
    **DEEPSEEK_V3,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 1,
    "vocab_size": 1024,
}


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    hub, wide, codes, out = (work / name for name in ("hub", "iteration", "fp8", "out"))
    experts = max(1, round((gigabytes * 1e9 - _ATTENTION) / _EXPERT) - 1)  # and a shared one
    make(hub, {**_SIZES, "n_routed_experts": experts}, model="deepseek_v3")
    iteration = ["--format", "mindformers", "--dtype", "bf16", "--quiet"]
    coded = ["--config", str(hub), "--quantise", "fp8-block128", "--quiet"]
    subprocess.run([*FORGE, "to-ms", str(hub), str(wide), *iteration], check=True)
    subprocess.run([*FORGE, "to-torch", str(wide), str(codes), *coded], check=True)
    commands = {
        "bf16 to FP8": (wide, [*FORGE, "to-torch", str(wide), str(out), *coded]),
        "FP8 to bf16": (codes, [*FORGE, "to-ms", str(codes), str(out), *iteration]),
    }
    for title, (source, command) in commands.items():
        runs: list[Measurement] = []
        copies: list[Measurement] = []
        copy = ["sh", "-c", f"cp -r {wide} {work / 'copy'} && sync -f {work / 'copy'}"]
        for _ in range(repeats):
            for found, line, read in ((copies, copy, wide), (runs, command, source)):
                for old in (work / "copy", out):
                    shutil.rmtree(old, ignore_errors=True)
                os.sync()
                found.append(measure(line, files_of(read), bytes_of(wide) + 10**9))
        shutil.rmtree(work / "copy", ignore_errors=True)
        yield row(title, bytes_of(wide), runs, copies)


if __name__ == "__main__":
    main(__doc__, rows, 1.5)
