"""Speed and memory of every command, as ratios to `cp` in the same run: `python -m benchmarks [--gigabytes 1.5 3]`.

Makes a synthetic Mixtral of each size in a temporary directory, runs every command in a process of its own, alternating with
`cp -r` of the same model, and prints medians. Page cache warm. `--real` gives the layers their real size (expert matrices
14336 × 4096). The outputs are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ckptforge.mapping.table import shipped_tables
from ckptforge.synthetic import write_model

SIZES = {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000}
REAL = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}


def measure(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, user + system seconds, peak resident MB) of a process; it must succeed."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def model_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def make(directory: Path, gigabytes: float, real: bool) -> None:
    table = next(table for table in shipped_tables() if table.name == "mixtral")
    config = {**table.example, **(REAL if real else SIZES)}
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layer = 2 * (3 * hidden * inner * config["num_local_experts"] + 2.5 * hidden * hidden)
    config["num_hidden_layers"] = max(1, round((gigabytes * 1e9 - 4 * hidden * config["vocab_size"]) / layer))
    write_model(directory, table, config)


def run(work: Path, gigabytes: float, real: bool, repeats: int) -> list[list[str]]:
    hub, out = work / "hub", work / "out"
    make(hub, gigabytes, real)
    forge = [sys.executable, "-m", "ckptforge"]
    dense = work / "dense.ckpt"
    measure([*forge, "to-ms", str(hub), str(dense), "--quiet"])
    ckpt = str(out / "x.ckpt")
    job = work / "job.json"
    job.write_text('{"model_parallel": 4, "data_parallel": 2, "expert_parallel": 2}')
    commands = {
        "cp": ["cp", "-r", str(hub), str(out)],
        "cp, sync": ["sh", "-c", f"cp -r {hub} {out} && sync {out}/*"],
        "to-ms": [*forge, "to-ms", str(hub), ckpt, "--quiet"],
        "to-ms --dtype fp16": [*forge, "to-ms", str(hub), ckpt, "--dtype", "fp16", "--quiet"],
        "to-ms --layout gmm": [*forge, "to-ms", str(hub), ckpt, "--layout", "gmm", "--quiet"],
        "to-ms --layout gmm --dtype fp16": [*forge, "to-ms", str(hub), ckpt, "--layout", "gmm", "--dtype", "fp16", "--quiet"],
        "to-ms --layout gmm --workers 8": [*forge, "to-ms", str(hub), ckpt, "--layout", "gmm", "--workers", "8", "--quiet"],
        "convert dense → gmm-v3": [*forge, "convert", str(dense), ckpt, "--to", "gmm-v3", "--quiet"],
        "to-torch from dense": [*forge, "to-torch", str(dense), str(out), "--quiet"],
        "to-ms --no-hash": [*forge, "to-ms", str(hub), ckpt, "--no-hash", "--quiet"],
        "to-ms --layout gmm --dtype fp16 --no-hash": [
            *forge,
            "to-ms",
            str(hub),
            ckpt,
            "--layout",
            "gmm",
            "--dtype",
            "fp16",
            "--no-hash",
            "--quiet",
        ],
        "to-ms --parallel_config, 8 ranks": [*forge, "to-ms", str(hub), str(out), "--parallel_config", str(job), "--quiet"],
        "compare hub with dense": [*forge, "compare", str(hub), str(dense), "--quiet"],
        "to-ms --dry-run": [*forge, "to-ms", str(hub), ckpt, "--dry-run", "--quiet"],
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            taken[name].append(measure(command))
    base, synced = (statistics.median(wall for wall, _, _ in taken[name]) for name in ("cp", "cp, sync"))
    rows = []
    for name, results in taken.items():
        wall, cpu, memory = (statistics.median(result[i] for result in results) for i in range(3))
        spread = f"{min(r[0] for r in results):.2f}–{max(r[0] for r in results):.2f}"
        cells = [
            f"{model_bytes(hub) / 1e9:.2f} GB",
            name,
            f"{wall:.2f}",
            spread,
            f"{wall / base:.2f}",
            f"{wall / synced:.2f}",
            f"{cpu:.2f}",
        ]
        rows.append([*cells, f"{memory:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--real", action="store_true", help="layers of real size (at least 2.9 GB each)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="where the temporary files go")
    args = parser.parse_args()
    titles = ["model", "command", "wall s", "min–max", "÷ cp", "÷ cp + sync", "cpu s", "peak MB"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for gigabytes in args.gigabytes:
        with tempfile.TemporaryDirectory(dir=args.directory, prefix="ckptforge-benchmark-") as work:
            for row in run(Path(work), gigabytes, args.real, args.repeats):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
