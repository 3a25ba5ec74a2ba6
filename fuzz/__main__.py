"""`python -m fuzz TARGET|all --runs N`: every input of every reader must be read or refused by a
`CkptforgeError` that names its file, in under a second and without memory that grows. Inputs that
fail are kept in `fuzz-finds/`.

Each target runs in a process of its own. With `--coverage`, atheris (libFuzzer) chooses what to
mutate next; it must be installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fuzz import SHARES

FINDS = Path("fuzz-finds")


def main() -> int:
    """Runs what the command line says; 1 for finds."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=[*SHARES, "all"])
    parser.add_argument(
        "--runs", type=int, default=100_000, help="inputs; those of all targets together"
    )
    parser.add_argument("--seconds", type=float, help="at most so long for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--coverage", action="store_true", help="guided by coverage, with atheris")
    parser.add_argument("--input", type=Path, help="read this one file, to see a find again")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each target")
    options = parser.parse_args()
    if options.target == "all":
        return _all(options)
    if options.coverage:
        from fuzz.guided import run_guided

        # doesn't return
        run_guided(options.target, options.runs, options.seconds, options.seed, FINDS)
    from fuzz.run import Runner

    runner = Runner(options.target, options.seed, FINDS)
    if options.input is not None:
        runner.attempt(options.input.read_bytes(), options.input.name)
        report = runner.report
    else:
        report = runner.loop(options.runs, options.seconds)
    _show(report.to_json(), options.json)
    return 1 if report.failures else 0


def _all(options: argparse.Namespace) -> int:
    waiting = {
        name: -(-options.runs * share // sum(SHARES.values()))
        for name, share in reversed(SHARES.items())
    }
    running: list[subprocess.Popen[str]] = []
    reports: list[dict[str, Any]] = []
    failed = False
    print(HEADER)
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name, runs = waiting.popitem()
            command = [
                sys.executable,
                "-m",
                "fuzz",
                name,
                "--runs",
                str(runs),
                "--seed",
                str(options.seed),
                "--json",
            ]
            command += ["--seconds", str(options.seconds)] if options.seconds is not None else []
            command += ["--coverage"] if options.coverage else []
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        process = running.pop(0)
        out, _ = process.communicate()
        lines = [line for line in out.splitlines() if line.startswith("{")]
        failed |= process.returncode != 0 or not lines
        for line in lines:
            reports.append(json.loads(line))
            _show(reports[-1], False)
    total = {
        key: sum(report[key] for report in reports)
        for key in ("runs", "refused", "seconds", "grown", "blocks")
    }
    _show(
        {
            "target": "all",
            **total,
            "slowest": max(r["slowest"] for r in reports),
            "peak": max(r["peak"] for r in reports),
            "failures": [],
        },
        False,
    )
    return 1 if failed else 0


HEADER = (
    f"{'target':<16} {'inputs':>9} {'refused':>9} {'seconds':>8} {'slowest':>9} {'grown':>9} "
    f"{'blocks':>8} {'peak':>7}  failures"
)


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report), flush=True)
        return
    counts = f"{report['runs']:>9,} {report['refused']:>9,} {report['seconds']:>8.0f}"
    costs = (
        f"{report['slowest'] * 1000:>6.0f} ms {report['grown'] / 1e6:>6.1f} MB "
        f"{report['blocks']:>8,} {report['peak'] / 1e6:>4.0f} MB"
    )
    print(f"{report['target']:<16} {counts} {costs}  {len(report['failures'])}", flush=True)
    for failure in report["failures"][:20]:
        print(f"  {failure}")


if __name__ == "__main__":
    sys.exit(main())
