"""Speed and memory of every command, in one run beside cp and MindSpore: `python -m benchmarks
--help`.

Makes a synthetic Mixtral of each size in a temporary directory, runs every command in a process of
its own, in turns with cp of as many bytes as it writes, and prints medians. What is read is in the
page cache. Everything made is removed at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import Command, baselines, commands, mindspores
from benchmarks.machine import describe
from benchmarks.measurement import measure, show
from benchmarks.model import sizes_of
from benchmarks.plot import draw
from benchmarks.results import MINDSPORE_TITLES, SLOPE_TITLES, TITLES, Results, slopes
from benchmarks.workspace import Workspace


def main() -> None:
    args = _arguments()
    found: dict[str, Any] = {
        "machine": describe(Path(args.directory or tempfile.gettempdir())),
        "options": vars(args),
    }
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print(
        f"\nNothing below {measure(['true']).peak / 1e6:.0f} MB can be told apart. Bold: beyond "
        "what is in brackets, or above 200 MB.\n"
    )
    every: list[Results] = []
    found["results"] = _table(
        args, args.gigabytes, args.repeats, _beside_cp, TITLES, Results.rows, every
    )
    if len(every) > 1:
        print("What a GB more takes, from the smallest to the largest:\n")
        show(SLOPE_TITLES, slopes(every[0], every[-1]))
        print()
    sizes = [
        gigabytes
        for gigabytes in args.mindspore
        if gigabytes and importlib.util.find_spec("mindspore")
    ]
    found["mindspore"] = _table(
        args,
        sizes,
        args.mindspore_repeats,
        _beside_mindspore,
        MINDSPORE_TITLES,
        Results.mindspore_rows,
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    if args.svg:
        args.svg.write_text(draw(found["results"], found["mindspore"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes",
        type=float,
        nargs="*",
        default=[1.5, 3.0],
        help="sizes of the model in bfloat16",
    )
    parser.add_argument(
        "--repeats", type=int, nargs="+", default=[3], help="for all sizes, or for each"
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="layers of real size (expert matrices 14336 × 4096; 2.9 GB each)",
    )
    parser.add_argument(
        "--mindspore",
        type=float,
        nargs="*",
        default=[1.0],
        help="sizes to run MindSpore with, where it is installed; 0: none",
    )
    parser.add_argument("--mindspore-repeats", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--only",
        default="",
        metavar="REGEX",
        help="commands whose names in the table it is found in",
    )
    parser.add_argument("--workers", help="handed to every command")
    parser.add_argument("--memory", help="handed to every command")
    parser.add_argument("--io", help="handed to every command but compare")
    parser.add_argument(
        "--peaks",
        action="store_true",
        help="memory is all that matters: no cp, and nothing done before each run",
    )
    parser.add_argument(
        "--directory", help="where the temporary files go: about six times the size of the model"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every run, to be looked at later"
    )
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="a plot of time and memory against size"
    )
    return parser.parse_args()


def _table(
    args: argparse.Namespace,
    sizes: list[float],
    repeats: list[int],
    choose: Callable[[Workspace, argparse.Namespace], list[Command]],
    titles: Sequence[str],
    rows: Callable[[Results], Iterable[list[str]]],
    kept: list[Results] | None = None,
) -> list[dict[str, Any]]:
    """Runs what `choose` says for each size, prints a table, and returns all of it."""
    found: list[dict[str, Any]] = []

    def every() -> Iterator[list[str]]:
        for i, gigabytes in enumerate(sizes):
            with tempfile.TemporaryDirectory(
                dir=args.directory, prefix="ckptforge-benchmark-"
            ) as directory:
                work = Workspace(Path(directory), sizes_of(gigabytes, args.real))
                results = Results(work, choose(work, args), args.peaks)
                for _ in range(repeats[min(i, len(repeats) - 1)]):
                    results.round()
                yield from rows(results)
                found.extend(results.to_json())
                if kept is not None:
                    kept.append(results)

    if sizes:
        show(titles, every())
        print()
    return found


def _options(args: argparse.Namespace) -> list[str]:
    return [
        word
        for name in ("workers", "memory", "io")
        if (value := getattr(args, name))
        for word in (f"--{name}", value)
    ]


def _beside_cp(work: Workspace, args: argparse.Namespace) -> list[Command]:
    chosen = (
        command for command in commands(work, _options(args)) if re.search(args.only, command.name)
    )
    return [*([] if args.peaks else baselines(work)), *chosen]


def _beside_mindspore(work: Workspace, args: argparse.Namespace) -> list[Command]:
    """MindSpore's that are wanted, and ours that they are measured against."""
    every = list(mindspores(work, _options(args)))
    chosen = {
        command.name: command.beside
        for command in every
        if command.is_mindspore and re.search(args.only, command.name)
    }
    return [
        command for command in every if command.name in chosen or command.name in chosen.values()
    ]


if __name__ == "__main__":
    main()
