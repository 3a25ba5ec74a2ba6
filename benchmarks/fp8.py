"""Time and memory of FP8, written and read, beside cp of the bfloat16: `python -m benchmarks.fp8`.

Makes a synthetic DeepSeek-V3 of small layers as MindFormers' iteration in bfloat16, writes it in
FP8 of 128 × 128 blocks for Hugging Face, and that as an iteration in bfloat16, each in a process of
its own, in turns with `cp` and `sync` of the bfloat16. What is read is in the page cache.
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

_LAYER = 64 * 3 * 1024 * 512 * 2  # bytes of a layer's experts
_SIZES = {
    **DEEPSEEK_V3,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "vocab_size": 32000,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    hub, wide, codes, out = (work / name for name in ("hub", "iteration", "fp8", "out"))
    layers = 1 + max(1, round(gigabytes * 1e9 / _LAYER))
    make(hub, {**_SIZES, "num_hidden_layers": layers}, model="deepseek_v3")
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
