"""Losing power at any moment: `python -m tests.crash.power_loss 10000` does it so many times.

Each time a command runs on a file system in memory (`ckptforge.testing.power_loss`) and the power
goes at a random call; sometimes again while the command is resumed. When it is back, the output
must be whole or not there (where one is replaced: the old one whole, or the new one), and the
command given again must end with the bytes of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ckptforge
from ckptforge.errors import OutputError
from ckptforge.publish.tree import lies_at, names_in
from ckptforge.storage.mounts import mounted
from ckptforge.storage.store import Kind
from ckptforge.testing.memory import Memory
from ckptforge.testing.power_loss import Durable, PowerLoss
from ckptforge.testing.store_tests import get, put
from ckptforge.testing.stores import CHANGES, Call, FailingStore, fail
from tests.helpers import tiny_config, write_hub

PLACE = Path("/power")
_SIZES = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 96}
_CUT = {"data_parallel": 1, "model_parallel": 2, "pipeline_stage": 1, "expert_parallel": 1}
_NEVER = 1 << 60

Files = Mapping[str, bytes]  # by their paths below a directory


@dataclass(frozen=True)
class Job:
    """A command that makes `output`; `old` is what makes the output that it replaces, in a
    directory with a file of the user's. `missing` are calls that the file system doesn't have."""

    run: Callable[..., object]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    old: Callable[[], object] | None = None
    missing: frozenset[str] = frozenset()

    @property
    def out(self) -> Path:
        return PLACE / self.output

    def __call__(self, **more: Any) -> None:
        self.run(self.out, **self.options, overwrite=self.old is not None, **more)


def jobs(work: Path) -> dict[str, Job]:
    """What is run, with inputs that are made in `work`."""
    hub, full, ranks, cut = (work / name for name in ("hub", "full.ckpt", "ranks", "cut.json"))
    write_hub(hub, tiny_config(**_SIZES), files=2)
    cut.write_text(json.dumps({"parallel_config": _CUT}))
    ckptforge.to_ms(hub, full)
    ckptforge.split(full, ranks, parallel_config=cut)

    def to_ms(out: Path, **options: Any) -> None:
        ckptforge.to_ms(hub, out, **options)

    def to_torch(out: Path, **options: Any) -> None:
        ckptforge.to_torch(full, out, **options)

    def merge(out: Path, **options: Any) -> None:
        ckptforge.merge(ranks, out, **options)

    def split(out: Path, **options: Any) -> None:
        ckptforge.split(full, out, parallel_config=cut, **options)

    gmm = {"layout": "gmm", "dtype": "fp32"}

    def strategy(out: Path, **options: Any) -> None:
        ckptforge.strategy(out, parallel_config=cut, like=full, **options)

    shards = {"max_shard_size": "20KB"}
    no_exchange = frozenset({"exchange"})
    return {
        "to-ms": Job(to_ms, "x.ckpt", gmm),
        "to-ms without links": Job(to_ms, "x.ckpt", gmm, missing=frozenset({"link"})),
        "to-torch": Job(to_torch, "new/hf", shards),
        "merge": Job(merge, "a/b/m.ckpt"),
        "split": Job(split, "ranks"),
        "strategy": Job(strategy, "s"),
        "replace a file": Job(to_ms, "x.ckpt", gmm, lambda: to_ms(PLACE / "x.ckpt")),
        "replace a directory": Job(to_ms, "o", gmm, lambda: to_ms(PLACE / "o")),
        "replace without exchange": Job(
            to_ms, "o", gmm, lambda: to_ms(PLACE / "o"), no_exchange | {"link"}
        ),
        "replace ranks": Job(split, "o", {}, lambda: to_ms(PLACE / "o")),
        "replace a model": Job(to_torch, "o", shards, lambda: to_torch(PLACE / "o")),
    }


class Rig:
    """A job with what it has to do with: the file system before it, and what it makes."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.before = Memory(PLACE)
        put(self.before, PLACE / "other.txt", b"mine")
        if job.old is not None:
            with mounted(PLACE, self.before):
                job.old()
            if lies_at(self.before, job.out, Kind.DIRECTORY):
                put(self.before, job.out / "notes.txt", b"mine")
        self.old = contents(self.before)
        memory, self.placed = self.copy(), 0
        with mounted(PLACE, FailingStore(memory, self.fault(_NEVER))):
            job(workers=1)
        self.total = self.calls
        self.new = contents(memory)

    def copy(self) -> Memory:
        return Durable(self.before).cut(random.Random(0))

    def fault(self, stop: int) -> Callable[[Call], None]:
        """The power goes before the `stop`-th change."""
        self.calls = 0

        def fault(call: Call) -> None:
            self.calls += call.name in CHANGES
            if call.name == "sync" and call.path.name != "journal" and not self.placed:
                self.placed = self.calls
            if self.calls >= stop:
                raise PowerLoss
            if call.name in self.job.missing:
                raise OSError(95, "Operation not supported")

        return fault

    def run(self, memory: Memory, stop: int, chance: random.Random, **options: Any) -> Memory:
        """Runs the job until its `stop`-th change, and what is there after that; whether it came to
        its end is known by `ended`."""
        durable = Durable(memory)
        self.ended = False
        with mounted(PLACE, FailingStore(memory, self.fault(stop))), suppress(PowerLoss):
            self.job(workers=chance.choice((1, 2)), **options)
            self.ended = True
        return durable.cut(chance)

    def interrupt(self, memory: Memory, stop: int) -> None:
        """Runs the job until it is interrupted at its `stop`-th change; what it does then, it
        does."""
        interrupt = fail(stop, KeyboardInterrupt(), CHANGES)
        with mounted(PLACE, FailingStore(memory, interrupt)), suppress(KeyboardInterrupt):
            self.job(workers=1)

    def judge(self, memory: Memory) -> str:
        """What is there, in a word. Raises `AssertionError` for what must not be."""
        found = contents(memory)
        others = {name for name in found if name.startswith(".") or "/." in name}
        seen = {name: found[name] for name in found if name not in others}
        manifest = f"{self.job.output}.manifest.json"
        for word, whole in (("new", self.new), ("old", self.old)):
            if seen == whole:
                return word if word == "new" or self.job.old is not None else "nothing"
            if manifest in whole and seen == {n: whole[n] for n in whole if n != manifest}:
                return f"{word} without its manifest"
        away = {n: self.old[n] for n in self.old if not n.startswith(f"{self.job.output}/")}
        kept = {n.partition("/old/")[2]: found[n] for n in others if "/old/" in n}
        mine = {n.partition("/")[2]: c for n, c in self.old.items() if n not in away}
        if "exchange" in self.job.missing and seen == away and kept == mine:
            return "old, moved away"
        raise AssertionError(difference(seen, self.new if self.ended else self.old))


def contents(memory: Memory) -> dict[str, bytes]:
    """Every file below the place, by its path; manifests without times, which must be those that
    the files have."""
    found = {name: get(memory, PLACE / name) for name in names_in(memory, PLACE)}
    for name, content in found.items():
        if name.endswith("manifest.json") and (".ckptforge/" not in name or "/old/" in name):
            directory = (PLACE / name).parent
            for output in json.loads(content)["outputs"]:
                if lies_at(memory, path := directory / output["file"]):
                    status = memory.status(path)
                    written = output["size"], output["mtime_ns"]
                    assert written == (status.size, status.mtime_ns), (
                        f"{path} isn't what {name} says"
                    )
            found[name] = re.sub(rb'"mtime_ns": \d+', b"", content)
    return found


def difference(found: Files, expected: Files) -> str:
    """What differs, by name."""
    names = sorted(found.keys() | expected.keys())
    return ", ".join(
        f"{name}: {len(found[name]) if name in found else 'missing'}"
        f" instead of {len(expected[name]) if name in expected else 'nothing'}"
        for name in names
        if found.get(name) != expected.get(name)
    )


def lose_power(rig: Rig, chance: random.Random) -> str:
    """One time. Returns what was there when the power came back. Raises `AssertionError`."""
    memory = rig.copy()
    words = []
    if chance.random() < 0.2:
        rig.interrupt(memory, chance.randrange(1, rig.total))
        if rig.judge(memory) not in ("old", "nothing"):  # it came too late
            memory = rig.copy()
    for _ in range(chance.choice((1, 1, 2, 3))):
        # half of all where the output is put in its place
        stop = chance.randrange(chance.choice((1, rig.placed)), rig.total + 6)
        memory = rig.run(memory, stop, chance, resume=True)
        words.append(rig.judge(memory))
        assert not rig.ended or words[-1] == "new", f"it had ended, and then {words[-1]} was there"
        if rig.ended or words[-1] == "new":
            break
    if chance.random() < 0.2:
        memory = clean(rig, memory, chance, stop=chance.randrange(1, 20))
        words.append(rig.judge(memory))
        memory = clean(rig, memory, chance)
        words.append(rig.judge(memory))
    try:
        memory = rig.run(memory, _NEVER, chance, resume=True)
        assert rig.ended
    except OutputError as error:
        assert words[-1] == "new" and "exists already" in str(error), f"{words} {error}"
    assert rig.judge(memory) == "new"
    clean(rig, memory, chance)
    assert contents(memory) == rig.new, difference(contents(memory), rig.new)
    return words[0]


def clean(rig: Rig, memory: Memory, chance: random.Random, stop: int = _NEVER) -> Memory:
    """Runs `ckptforge.clean` until its `stop`-th change; returns what is there after that."""
    durable = Durable(memory)
    with mounted(PLACE, FailingStore(memory, rig.fault(stop))), suppress(PowerLoss):
        for directory in (PLACE, rig.job.out.parent):
            if lies_at(memory, directory):
                ckptforge.clean(directory)
    return durable.cut(chance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=int)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", default="", help="jobs whose name begins so")
    given = parser.parse_args()
    began, found, failed = time.monotonic(), Counter[str](), 0
    with tempfile.TemporaryDirectory() as work:
        rigs = {n: Rig(job) for n, job in jobs(Path(work)).items() if n.startswith(given.only)}
        for i in range(given.times):
            name = list(rigs)[i % len(rigs)]
            seed = f"{given.seed} {i} {name}"
            try:
                found[f"{name}: {lose_power(rigs[name], random.Random(seed))}"] += 1
            except Exception as error:
                failed += 1
                print(f"{seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    for line in sorted(found):
        print(f"{found[line]:6} {line}")
    print(f"{given.times} times in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
