"""The demo: a tiny model, converted both ways, and checked by a library that isn't ours."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ckptforge.cli.findings import comparison_text, verification_text
from ckptforge.errors import OutputError, VerifyError
from ckptforge.publish.output_name import refuse_name
from ckptforge.publish.refusals import as_output_error
from ckptforge.run.audit import Audit
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Table
from ckptforge.verbs import compare as comparing
from ckptforge.verbs import convert as verbs
from ckptforge.verbs import reshard as resharding
from ckptforge.verbs import strategy as strategies
from ckptforge.verbs.call import Call
from ckptforge.verbs.synthetic import write_model
from ckptforge.wording import counted, install_hint, size

MARK = "ckptforge-demo"
JOB = {"data_parallel": 4, "model_parallel": 2, "expert_parallel": 4}
Say = Callable[[str], object]


def run_demo(directory: Path | None, overwrite: bool, say: Say) -> dict[str, Any]:
    """Runs the demo in `directory`, which is kept, or in a temporary one; `say` takes the lines to
    print.

    Raises `OutputError` when the directory holds something else.
    """
    if directory is None:
        say(
            "Everything here happens in a temporary directory: nothing is kept. `ckptforge demo "
            "DIR` keeps it.\n"
        )
        with tempfile.TemporaryDirectory(prefix="ckptforge-demo-") as temporary:
            found = _run(Path(temporary) / "demo", say)
        say("next: `ckptforge demo DIR` keeps these files.")
    else:
        refuse_name(directory, directory=True)
        _make_room(directory, overwrite)
        say(f"Everything is kept in {directory}. To run a command there again, add --overwrite.\n")
        found = _run(directory, say)
        say(f"next: `cd {directory} && ckptforge inspect hub` shows what a checkpoint holds.")
    say("For your own models, see `ckptforge to-ms --help` and the README.")
    return {"directory": None if directory is None else str(directory), **found}


def _make_room(directory: Path, overwrite: bool) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not (overwrite and (directory / MARK).is_file()):
            raise OutputError(
                f"{directory}: exists already; choose another place, or give --overwrite if it is "
                "an earlier demo."
            )
        import shutil

        shutil.rmtree(directory)


def _run(directory: Path, say: Say) -> dict[str, Any]:
    """Runs the commands that it shows, in the directory, as they would run there."""
    table = next(table for table in shipped_tables() if table.demo)
    with as_output_error(directory, "can't be written"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARK).touch()
    with as_output_error(directory, "can't be written"), _inside(directory):
        demo = _Demo(table, say)
        demo.convert()
        demo.shard()
        checks = demo.checks()
    for what, right in checks.items():
        say(f"{'ok' if right else 'FAILED'}: {what}")
    if demo.skipped:
        say(f"skipped: {demo.skipped}")
    say("")
    if not all(checks.values()):
        raise OutputError(f"{directory}: the demo's own checks failed; please report this.")
    return {"commands": demo.commands, "checks": checks, "skipped": demo.skipped}


class _Demo:
    """The commands of the demo in the current directory, shown as they are run."""

    def __init__(self, table: Table, say: Say) -> None:
        self.say, self.commands, self.skipped = say, list[str](), ""
        self.hub, self.ranks_equal = Path("hub"), False
        write_model(self.hub, table, table.example, shard_bytes=500_000)
        shards = list(self.hub.glob("*.safetensors"))
        weights = sum(path.stat().st_size for path in shards)
        say(
            f"hub: a tiny {table.name} of random weights, {size(weights)} in "
            f"{counted(len(shards), 'shard')}"
        )
        Path("job.json").write_text(json.dumps(JOB) + "\n")
        say(f"job.json: {json.dumps(JOB)}\n")

    def run(self, name: str, verb: Callable[..., Any], *arguments: str, **options: Any) -> Any:
        """Shows a command and runs it."""
        call = Call(name, verb, arguments, options)
        self.commands.append(call.command)
        self.say(f"$ {call.command}")
        return call.run()

    def convert(self) -> None:
        """One layout to another, and back."""
        result = self.run("to-ms", verbs.to_ms, "hub", "dense.ckpt")
        self.say(
            f"  {result.facts['source_tensors']} tensors become {result.tensors}, "
            f"{size(result.bytes)}: experts are stacked"
        )
        half = {"to": "gmm", "dtype": "fp16"}
        result = self.run("convert", verbs.convert, "dense.ckpt", "gmm.ckpt", **half)
        self.say(f"  {_casts(result.audit)}")
        self.run("to-ms", verbs.to_ms, "hub", "gmm_direct.ckpt", layout="gmm", dtype="fp16")
        self.run("to-torch", verbs.to_torch, "dense.ckpt", "back")

    def shard(self) -> None:
        """Ranks, by a parallel configuration, and one file again."""
        result = self.run("to-ms", verbs.to_ms, "hub", "ranks", parallel_config="job.json")
        ranks = len({path.parent for path in result.files if path.parent.name.startswith("rank_")})
        self.say(
            f"  {counted(ranks, 'rank')}, {counted(result.tensors, 'tensor')}, "
            f"{size(result.bytes)} in all"
        )
        job = {"parallel_config": "job.json", "like": "hub"}
        self.run("strategy", strategies.strategy, "strategy", **job)
        self.run("merge", resharding.merge, "ranks", "merged.ckpt", strategy_dir="strategy")
        proof = self.run("compare", comparing.compare, "hub", "ranks", strategy_dir_b="strategy")
        self.say(f"  {comparison_text(proof).splitlines()[-1]}")
        self.ranks_equal = proof.equal

    def checks(self) -> dict[str, bool]:
        """What must hold of the files, and does it."""
        merged, dense, gmm, direct = (
            Path(f"{name}.ckpt").read_bytes() for name in ("merged", "dense", "gmm", "gmm_direct")
        )
        back = Path("back")
        found = {
            "hub and the ranks hold the same numbers": self.ranks_equal,
            "hub → ranks → merged is byte for byte hub → dense": merged == dense,
            "hub → dense → gmm is byte for byte hub → gmm": gmm == direct,
            "hub → dense → hub gives every file back byte for byte": all(
                path.read_bytes() == (back / path.name).read_bytes() for path in self.hub.iterdir()
            ),
            "the safetensors library reads every tensor that came back": _names(self.hub)
            == _names(back),
        }
        if (verified := self.verify()) is not None:
            what = "MindSpore computes from gmm_bf16.ckpt what transformers computes from hub"
            found[what] = verified
        self.say("")
        return found

    def verify(self) -> bool | None:
        """Whether the forward check passes; None where what it needs isn't installed."""
        needed = ("mindspore", "torch", "transformers")
        if lacking := [name for name in needed if find_spec(name) is None]:
            *first, last = lacking
            names = f"{', '.join(first)} and {last} aren't" if first else f"{last} isn't"
            hint = install_hint("torch", "mindspore")
            self.skipped = f"ckptforge verify: {names} installed ({hint})"
            return None
        from ckptforge.forward.device import import_mindspore
        from ckptforge.verbs.verify import verify

        try:
            import_mindspore()
        except VerifyError as error:
            self.skipped = f"ckptforge verify: {error}"
            return None
        self.run("to-ms", verbs.to_ms, "hub", "gmm_bf16.ckpt", layout="gmm", overwrite=True)
        found = self.run("verify", verify, "hub", "gmm_bf16.ckpt")
        self.say(f"  {verification_text(found).splitlines()[-1]}")
        return bool(found.passed)


def _casts(audit: Audit) -> str:
    """What the casts of a run did, in one line."""
    counts = audit.counts.values()
    values, rounded, lost, over = (
        sum(getattr(count, what) for count in counts)
        for what in ("values", "rounded", "underflowed", "overflowed")
    )
    what = f"{rounded:,} rounded, {lost:,} underflowed to 0, {over:,} overflowed"
    return f"{values:,} values cast: {what}"


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Runs what is in it in a directory."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def _names(directory: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found.update({name: list(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 (no mapping)
    return found
