"""The demo: a tiny model made on the spot, converted both ways and checked by a library that isn't ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ckptforge.cli.text import comparison_text, result_text, size, verification_text
from ckptforge.comparing import compare
from ckptforge.engine.output_name import refuse_name
from ckptforge.errors import OutputError, VerifyError
from ckptforge.mapping.table import shipped_tables
from ckptforge.resharding import merge
from ckptforge.result import Result
from ckptforge.strategies import strategy
from ckptforge.synthetic import write_model
from ckptforge.verbs import convert, to_ms, to_torch

MARK = "ckptforge-demo"


def run_demo(directory: Path | None, overwrite: bool, say: Callable[[str], object]) -> dict[str, Any]:
    """Runs the demo in `directory`, or in a temporary one; `say` takes the lines to print.

    Raises `OutputError` when the directory holds something else.
    """
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="ckptforge-demo-") as temporary:
            return _run(Path(temporary) / "demo", say)
    refuse_name(directory, directory=True)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not (overwrite and (directory / MARK).is_file()):
            raise OutputError(f"{directory}: exists already; choose another place, or give --overwrite if it is an earlier demo.")
        import shutil

        shutil.rmtree(directory)
    return _run(directory, say)


def _run(directory: Path, say: Callable[[str], object]) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARK).touch()
    hub, dense, gmm, direct, back = (directory / name for name in ("hub", "dense.ckpt", "gmm.ckpt", "gmm_direct.ckpt", "back"))
    table = next(table for table in shipped_tables() if table.demo)
    write_model(hub, table, table.example, shard_bytes=500_000)
    weights = sum(path.stat().st_size for path in hub.glob("*.safetensors"))
    say(f"made a tiny {table.name} of random weights in {hub}: {size(weights)} in {len(list(hub.glob('*.safetensors')))} shards\n")

    def show(command: str, result: Result) -> None:
        say(f"$ ckptforge {command}\n{result_text(result)}\n")

    show("to-ms hub dense.ckpt", to_ms(hub, dense))
    show("convert dense.ckpt gmm.ckpt --to gmm --dtype fp16", convert(dense, gmm, to="gmm", dtype="fp16"))
    show("to-ms hub gmm_direct.ckpt --layout gmm --dtype fp16", to_ms(hub, direct, layout="gmm", dtype="fp16"))
    show("to-torch dense.ckpt back", to_torch(dense, back))
    job = directory / "job.json"
    job.write_text(json.dumps({"data_parallel": 4, "model_parallel": 2, "expert_parallel": 4}) + "\n")
    ranks, strategies, merged = (directory / name for name in ("ranks", "strategy", "merged.ckpt"))
    show("to-ms hub ranks --parallel_config job.json", to_ms(hub, ranks, parallel_config=job))
    say("$ ckptforge strategy strategy --parallel_config job.json --like hub")
    say(result_text(strategy(strategies, parallel_config=job, like=hub)) + "\n")
    show("merge ranks merged.ckpt --strategy_dir strategy", merge(ranks, merged, strategy_dir=strategies))
    proof = compare(hub, ranks, strategy_dir_b=strategies)
    say(f"$ ckptforge compare hub ranks --strategy_dir_b strategy\n{comparison_text(proof)}\n")
    checks = {
        "hub and the 8 ranks hold the same numbers": proof.equal,
        "hub → 8 ranks → merged is byte for byte hub → dense": merged.read_bytes() == dense.read_bytes(),
        "hub → dense → gmm is byte for byte hub → gmm": gmm.read_bytes() == direct.read_bytes(),
        "hub → dense → hub gives every file back byte for byte": all(
            path.read_bytes() == (back / path.name).read_bytes() for path in hub.iterdir()
        ),
        "the safetensors library reads every tensor that came back": _names(hub) == _names(back),
    }
    verified = _verified(hub, gmm_bf16 := directory / "gmm_bf16.ckpt", say)
    if verified is not None:
        checks[f"MindSpore computes from {gmm_bf16.name} what transformers computes from hub"] = verified
    for what, right in checks.items():
        say(f"{'ok' if right else 'FAILED'}: {what}")
    if not all(checks.values()):
        raise OutputError(f"{directory}: the demo's own checks failed; please report this.")
    return {"ok": True, "directory": str(directory), "checks": checks}


def _verified(hub: Path, out: Path, say: Callable[[str], object]) -> bool | None:
    """Whether the forward check passes; None where what it needs isn't installed, which is said."""
    lacking = [name for name in ("mindspore", "torch", "transformers") if find_spec(name) is None]
    if lacking:
        say(f"skipped: ckptforge verify, as {', '.join(lacking)} isn't installed (pip install 'ckptforge[mindspore,torch]')\n")
        return None
    from ckptforge.forward.device import import_mindspore
    from ckptforge.forward.verification import verify

    try:
        import_mindspore()
    except VerifyError as error:
        say(f"skipped: ckptforge verify: {error}\n")
        return None
    to_ms(hub, out, layout="gmm")
    found = verify(hub, out)
    say(f"$ ckptforge verify hub {out.name}\n{verification_text(found)}\n")
    return found.passed


def _names(directory: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found.update({name: list(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 (no mapping)
    return found
