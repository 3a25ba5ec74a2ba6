"""How long the commands take that do little: `python -m benchmarks.startup`.

`ckptforge --help`, and `ckptforge inspect` of a Hugging Face directory of a thousand tensors, whose
weights are a hole in a file; beside Python alone and Python with numpy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measurement import cells, measure, show
from benchmarks.model import MIXTRAL_8X7B, files_of, make
from benchmarks.workspace import FORGE
from ckptforge.checkpoints.opening import open_checkpoint

LAYERS = 33


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        hub = Path(work) / "hub"
        make(hub, {**MIXTRAL_8X7B, "num_hidden_layers": LAYERS}, sparse=True, shard_bytes=5 * 10**9)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
            "ckptforge --help": [*FORGE, "--help"],
            f"ckptforge inspect, {len(open_checkpoint(hub).values):,} tensors in "
            f"{len(files_of(hub)) - 2} files": [
                *FORGE,
                "inspect",
                str(hub),
            ],
        }
        for command in commands.values():
            measure(command)  # so that its files are in the page cache, and its bytecode is there
        taken = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                taken[name].append(measure(command))
    show(
        ["command", "wall s", "min–max", "user + system s", "peak MB"],
        ([name, *cells(runs)] for name, runs in taken.items()),
    )


if __name__ == "__main__":
    main()
