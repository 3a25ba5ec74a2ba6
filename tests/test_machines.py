"""One job carried out by several processes that share a directory."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import LeftError, OutputError, UsageError
from ckptforge.machines.hashed import HashedBlocks
from ckptforge.machines.share import Share, share_of
from ckptforge.machines.units import of_unit, parts_of, units_of
from ckptforge.run import blocks
from tests.helpers import HUB

ROOT = Path(__file__).parents[1]
OPTIONS = {"layout": "gmm", "dtype": "fp16"}


def same_outputs(a, b):
    """Whether two directories hold the same, but for the times in manifests."""

    def found(directory):
        return {
            str(path.relative_to(directory)): re.sub(
                rb'"mtime_ns": \d+|"command": .*', b"", path.read_bytes()
            )
            for path in directory.rglob("*")
            if path.is_file()
        }

    return found(a) == found(b)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    ckptforge.to_ms(HUB, out, **OPTIONS)
    return out


def run_part(out, part, **more):
    return ckptforge.to_ms(HUB, out, part=part, **OPTIONS, **more)


def command(out, part, *more):
    words = ["to-ms", HUB, out, "--layout", "gmm", "--dtype", "fp16", "--part", part, *more]
    return [sys.executable, "-m", "ckptforge", *map(str, words)]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_parts_in_any_order_make_what_one_process_makes(tmp_path, one, count):
    out = tmp_path / "out"
    for number in range(count, 0, -1):
        run_part(out, f"{number}/{count}")
        assert not out.exists()
    result = ckptforge.finish(out)
    assert same_outputs(one, out) and result.tensors == ckptforge.check(out).tensors
    assert ckptforge.check(out).equal and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("ranks", [False, True])
def test_parts_of_one_file_and_of_ranks(tmp_path, ranks):
    options = {}
    if ranks:
        config = tmp_path / "parallel.yaml"
        config.write_text("data_parallel: 2\nmodel_parallel: 2\npipeline_stage: 2\n")
        options["parallel_config"] = config
    made = []
    for name in ("single", "parts"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / ("ranks" if ranks else "model.safetensors")
        for part in ("1/3", "2/3", "3/3") if name == "parts" else (None,):
            ckptforge.to_ms(HUB, out, part=part, **options)
        if name == "parts":
            ckptforge.finish(out, check=True)
        made.append(tmp_path / name)
    assert same_outputs(*made)


def test_nothing_is_taken_from_a_part_that_is_alive(tmp_path, one):
    out, go_on, results = tmp_path / "out", threading.Event(), {}

    def run(number, **more):
        results[number] = run_part(out, f"{number}/2", steal=True, steal_after=1.0, **more)

    slow = threading.Thread(target=run, args=(1,), kwargs={"progress": lambda *_: go_on.wait(60)})
    quick = threading.Thread(target=run, args=(2,))
    slow.start()
    while not list(tmp_path.glob(".out.ckptforge/parts/1.beat")):
        time.sleep(0.05)
    quick.start()
    quick.join(4)  # four times as long as a part without a heartbeat is waited for
    assert quick.is_alive() and not results
    go_on.set()
    for thread in (slow, quick):
        thread.join()
    assert not any("taken over" in note for result in results.values() for note in result.notes)
    ckptforge.finish(out)
    assert same_outputs(one, out)


def test_a_part_needs_room_for_what_no_part_has_written(tmp_path, monkeypatch):
    from ckptforge.storage.local import Disk
    from ckptforge.storage.store import Room

    out, size = tmp_path / "out", ckptforge.plan("to_ms", HUB, tmp_path / "x", **OPTIONS).nbytes
    run_part(out, "1/2")
    free = size * 3 // 5 + (1 << 20)
    monkeypatch.setattr(Disk, "room", lambda *_: Room(free, False, True))
    run_part(out, "2/2")
    with pytest.raises(OutputError, match=f"only {free:,} are free"):
        run_part(tmp_path / "other", "1/2")
    assert os.listdir(tmp_path) == [".out.ckptforge"]


def test_a_part_is_not_done_twice(tmp_path, one):
    out = tmp_path / "out"
    assert run_part(out, "1/2").tensors > 0
    again = run_part(out, "1/2")
    assert again.tensors == 0 and "finished before" in again.notes[0]
    run_part(out, "2/2")
    ckptforge.finish(out)
    assert same_outputs(one, out)


def test_what_is_missing_is_named(tmp_path):
    out = tmp_path / "out"
    run_part(out, "1/3")
    with pytest.raises(OutputError, match=r"(?s)2 parts of 3 not finished.*2/3: hasn't.*3/3"):
        ckptforge.finish(out)
    assert not out.exists()
    with pytest.raises(OutputError, match="no parts of a run"):
        ckptforge.finish(tmp_path / "other")


def test_a_file_that_is_gone_is_named(tmp_path):
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        run_part(out, part)
    next((tmp_path / ".out.ckptforge" / "out").rglob("*.ckpt")).unlink()
    with pytest.raises(OutputError, match="a part has written this"):
        ckptforge.finish(out)


def test_finish_hashes_again_where_that_is_asked_for(tmp_path, one):
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        run_part(out, part)
    file = next((tmp_path / ".out.ckptforge" / "out").rglob("*.ckpt"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    found = ckptforge.finish(out, check=True)
    assert "1 tensor was made again" in " ".join(found.notes) and same_outputs(one, out)


def test_another_plan_or_number_of_parts_is_refused(tmp_path):
    out = tmp_path / "out"
    run_part(out, "1/2")
    with pytest.raises(LeftError, match="begun by another command"):
        ckptforge.to_ms(HUB, out, part="2/2", layout="gmm")
    with pytest.raises(LeftError, match="it has 2 parts, not 3"):
        run_part(out, "2/3")
    with pytest.raises(LeftError, match=r"parts of a run lie in .*ckptforge\.finish"):
        ckptforge.to_ms(HUB, out, **OPTIONS)
    assert ckptforge.clean(tmp_path).left and not os.listdir(tmp_path)


def test_an_output_that_exists_is_refused_and_replaced_where_that_is_asked_for(tmp_path, one):
    out = tmp_path / "out"
    ckptforge.to_ms(HUB, out)
    with pytest.raises(OutputError, match="exists already"):
        run_part(out, "1/1")
    run_part(out, "1/1", overwrite=True)
    ckptforge.finish(out)
    assert same_outputs(one, out)


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "1/0", "x/4", "-1/4", "1/4/2", ""])
def test_wrong_parts_are_wrong_usage(tmp_path, part):
    with pytest.raises(UsageError, match="part"):
        run_part(tmp_path / "out", part)
    run = subprocess.run(command(tmp_path / "out", part), capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and "--part" in run.stderr, run.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, Share(3, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            Share(3, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            Share(1, 2),
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
            Share(1, 8),
        ),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Share(2, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Share(2, 2)),
        ({"VC_TASK_INDEX": "3", "MA_NUM_HOSTS": "4"}, Share(4, 4)),
    ],
)
def test_auto_reads_the_variables_of_what_starts_processes(variables, share):
    assert share_of("auto", variables) == share


def test_a_kubernetes_job_needs_the_number_of_parts():
    assert share_of("auto/4", {"JOB_COMPLETION_INDEX": "3"}) == Share(4, 4)
    with pytest.raises(UsageError, match="doesn't say of how many"):
        share_of("auto", {"JOB_COMPLETION_INDEX": "3"})
    with pytest.raises(UsageError, match="none of the variables"):
        share_of("auto", {})
    with pytest.raises(UsageError, match="expected a number"):
        share_of("auto", {"RANK": "one", "WORLD_SIZE": "2"})


@given(st.integers(1, 40), st.integers(1, 400_000))
def test_units_are_all_of_a_plan_once(count, most):
    plan = _plan()
    for units in (units_of(plan, most), parts_of(plan, count)[0]):
        made = [(unit.file, i) for unit in units for i in range(unit.first, unit.last)]
        assert made == [
            (f, i) for f, file in enumerate(plan.files) for i in range(len(file.places))
        ]
        filled = [one for unit in units for one in of_unit(plan, unit).assemblies]
        assert filled == list(plan.assemblies)
        hashed = [
            key for unit in units for key in HashedBlocks(plan).of(of_unit(plan, unit).assemblies)
        ]
        assert sorted(hashed) == sorted(
            (i, block.at)
            for i, file in enumerate(plan.sources)
            for block in blocks.source_blocks(plan, file)
            if block.entry.name  # a header is hashed at the end
        )
    owners = parts_of(plan, count)[1]
    assert owners == sorted(owners) and set(owners) <= set(range(1, count + 1))


_PLANS = []


def _plan():
    if not _PLANS:
        _PLANS.append(ckptforge.plan("to-ms", HUB, "nowhere.ckpt"))
    return _PLANS[0]


# A part whose engine stops for good when it has begun its second unit, as a machine may.
HANGING = """
import sys, time
import ckptforge.machines.running as running
carry_out, begun = running.carry_out, []
def hanging(*args):
    begun.append(args)
    if len(begun) > 1:
        print("hanging", flush=True)
        time.sleep(1000)
    return carry_out(*args)
running.carry_out = hanging
import ckptforge
ckptforge.to_ms(sys.argv[1], sys.argv[2], layout="gmm", dtype="fp16", part=sys.argv[3])
"""


def killed_part(out, part):
    words = [sys.executable, "-c", HANGING, str(HUB), str(out), part]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"hanging\n"
    with pytest.raises(OutputError, match="another process runs part"):
        run_part(out, part)
    with pytest.raises(OutputError, match="not finished"):
        ckptforge.finish(out)
    assert ckptforge.clean(out.parent).left[0].busy
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_part_that_is_killed_is_run_again(tmp_path, one):
    out = tmp_path / "out"
    killed_part(out, "2/3")
    for part in ("1/3", "3/3"):
        run_part(out, part)
    with pytest.raises(OutputError, match=r"2/3: 1 of \d+ units are finished"):
        ckptforge.finish(out)
    assert "1 unit was finished before." in run_part(out, "2/3").notes
    ckptforge.finish(out)
    assert same_outputs(one, out)


def test_others_take_over_what_a_killed_part_has_left(tmp_path, one):
    out = tmp_path / "out"
    killed_part(out, "2/3")
    began = time.monotonic()
    parts = [
        subprocess.Popen(command(out, part, "--steal", "--steal-after", "1", "--quiet"), cwd=ROOT)
        for part in ("1/3", "3/3")
    ]
    assert [part.wait(timeout=120) for part in parts] == [0, 0]
    assert time.monotonic() - began >= 1
    taken = list((tmp_path / ".out.ckptforge" / "parts").glob("unit-*"))
    assert taken and "taken over by other parts" in " ".join(run_part(out, "2/3").notes)
    run = [sys.executable, "-m", "ckptforge", "finish", str(out)]
    assert subprocess.run(run, cwd=ROOT, capture_output=True).returncode == 0
    assert same_outputs(one, out)


def test_a_dry_run_shows_the_units(tmp_path):
    result = run_part(tmp_path / "out", "2/4", dry_run=True)
    units = result.to_json()["units"]
    assert {unit["part"] for unit in units} == {1, 2, 3, 4}
    assert sum(unit["tensors"] for unit in units) == result.tensors
    assert not os.listdir(tmp_path)
