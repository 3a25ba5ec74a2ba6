"""Time and memory of surgery beside cp, and beside mergekit where it is installed: `python -m
benchmarks.surgery`.

Makes synthetic Mixtrals; each command runs in a process of its own, in turns with `cp` of what it
has written. What is read is in the page cache. ckptforge syncs what it writes, cp doesn't.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.beside_cp import main, row
from benchmarks.measurement import Measurement, measure
from benchmarks.model import bytes_of, files_of, make, sizes_of
from benchmarks.workspace import FORGE

_LINEAR = (
    "merge_method: linear\nmodels:\n{models}dtype: bfloat16\nparameters: {{normalize: false}}\n"
)
_SLERP = (
    "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {b}\n"
    "parameters: {{t: 0.4}}\ndtype: bfloat16\n"
)


def commands(work: Path, layers: int) -> Iterator[tuple[str, list[Path], list[str]]]:
    """(name, what it reads, its command line)."""
    models = [work / name for name in "abc"]
    a, b, c = map(str, models)
    out = str(work / "out")
    half = f"l=0-{max(0, layers // 2 - 1)}"
    edits = {
        "edit, half of l": ["--take", half],
        "edit, half of e": ["--take", "e=0,2,4,6"],
        "edit, V to a multiple of 1,024": ["--pad", "V=multiple:1024", "--fill", "mean"],
    }
    for name, words in edits.items():
        yield name, models[:1], [*FORGE, "edit", a, out, *words, "--quiet"]
    weights = ["--weights", "0.5,0.3,0.2"]
    yield "average of 3", models, [*FORGE, "average", out, a, b, c, *weights, "--quiet"]
    slerp = ["--method", "slerp", "--weights", "0.6,0.4"]
    yield "slerp", models[:2], [*FORGE, "average", out, a, b, *slerp, "--quiet"]
    if find_spec("mergekit") is None:
        return
    listed = "".join(
        f"  - model: {model}\n    parameters: {{weight: {weight}}}\n"
        for model, weight in zip(models, (0.5, 0.3, 0.2), strict=True)
    )
    for name, text, read in (
        ("mergekit, linear of 3", _LINEAR.format(models=listed), models),
        ("mergekit, slerp", _SLERP.format(a=a, b=b), models[:2]),
    ):
        recipe = work / f"{name.split()[1]}.yaml"
        recipe.write_text(text)
        call = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(recipe), out]
        yield name, read, [*call, "--no-copy-tokenizer", "--quiet"]


def rows(work: Path, gigabytes: float, repeats: int) -> Iterator[list[str]]:
    """A row of the table for each command."""
    sizes = sizes_of(gigabytes, False)
    for name in "abc":
        make(work / name, sizes)
    out, copy = work / "out", work / "copy"
    for name, read, line in commands(work, sizes["num_hidden_layers"]):
        runs: list[Measurement] = []
        copies: list[Measurement] = []
        for _ in range(repeats):
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            runs.append(measure(line, files_of(*read)))
            if out.is_dir():
                os.sync()
                copies.append(measure(["cp", "-r", str(out), str(copy)], files_of(out)))
                shutil.rmtree(copy)
        yield row(name, bytes_of(out) if out.is_dir() else None, runs, copies)


if __name__ == "__main__":
    main(__doc__, rows, 1.5)
