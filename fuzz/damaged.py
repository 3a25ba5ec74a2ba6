"""`python -m fuzz.damaged`: every damaged file that the tests have, given to the command line in a
process of its own: one error each, exit code 1. Prints how many, the slowest and the largest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import test_hostile
from tests.helpers import HUB, MINDSPORE


def cases(work: Path) -> Iterator[tuple[str, list[str]]]:
    """(what, arguments of the command line)."""
    ranks, out = str(MINDSPORE / "sharded" / "mp8"), str(work / "out.ckpt")
    for path in test_hostile.BAD_FILES:
        strategy = path.name.startswith("strategy")
        yield (
            path.name,
            ["merge", ranks, out, "--strategy_dir", str(path)]
            if strategy
            else ["to-torch", str(path), str(work / "out")],
        )
    count = 0

    def fresh() -> Path:
        nonlocal count
        count += 1
        directory = work / str(count)
        directory.mkdir()
        return directory

    for kind, (content, _) in test_hostile.BAD_SAFETENSORS.items():
        path = fresh() / "x.safetensors"
        path.write_bytes(content)
        yield f"safetensors: {kind}", ["inspect", str(path)]
    for kind, (content, _) in test_hostile.BAD_CKPT.items():
        path = fresh() / "x.ckpt"
        path.write_bytes(content)
        yield f"ckpt: {kind}", ["inspect", str(path)]
    for kind, (content, _) in test_hostile.BAD_STRATEGY.items():
        path = fresh() / "s.ckpt"
        path.write_bytes(content)
        yield f"strategy: {kind}", ["merge", ranks, out, "--strategy_dir", str(path)]
    for mark, name, ending in (
        (test_hostile.test_bad_json_strategies, "--strategy_dir", "s.json"),
        (test_hostile.test_bad_parallel_configs, "--parallel_config", "p.yaml"),
        (test_hostile.test_bad_tables, "--mapping", "t.toml"),
    ):
        for content, message in mark.pytestmark[0].args[1]:
            path = fresh() / ending
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            command = (
                ["merge", ranks, out]
                if name == "--strategy_dir"
                else ["to-ms", str(HUB), str(work / "out")]
            )
            yield f"{name}: {message}", [*command, name, str(path)]
    for kind, (content, _) in test_hostile.BAD_JSON.items():
        for reader in test_hostile.JSON_READERS:
            directory = fresh()
            name, _ = reader(directory, content)  # type: ignore[no-untyped-call]
            yield (
                f"{reader.__name__}: {kind}",
                {
                    "as_index": ["inspect", str(directory)],
                    "as_unified_map": ["inspect", str(directory)],
                    "as_config": ["to-ms", str(directory), out],
                    "as_given_config": ["to-ms", str(HUB), out, "--config", str(directory / name)],
                    "as_manifest": ["to-torch", str(directory / "x.ckpt"), str(work / "out")],
                    "as_checked_manifest": ["compare", str(directory / "x.ckpt")],
                    "as_strategy": ["merge", ranks, out, "--strategy_dir", str(directory / name)],
                }[reader.__name__],
            )


def main() -> int:
    """Runs all of them; 1 if one isn't one error."""
    work = Path(tempfile.mkdtemp(prefix="ckptforge-damaged-"))
    found: list[tuple[float, float, str]] = []
    wrong = 0
    for what, arguments in cases(work):
        with tempfile.TemporaryFile() as errors:
            began = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "ckptforge", *arguments], stdout=errors, stderr=errors
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            found.append((time.monotonic() - began, usage.ru_maxrss / 1024, what))
            errors.seek(0)
            text = errors.read().decode()
        if (
            process.returncode != 1
            or not text.startswith("ckptforge: ")
            or "Traceback" in text
            or len(text) > 4000
        ):
            wrong += 1
            print(f"{what}: exit code {process.returncode}: {text[:500]}")
    seconds, megabytes = max(found), max(found, key=lambda item: item[1])
    print(f"{len(found)} damaged files, {wrong} not refused by one error")
    print(
        f"slowest {seconds[0]:.2f} s ({seconds[2]}), median "
        f"{sorted(found)[len(found) // 2][0]:.2f} s; process and imports included"
    )
    print(f"largest {megabytes[1]:.0f} MB resident ({megabytes[2]})")
    shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
