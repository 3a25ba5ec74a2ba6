"""One job whose units go to the workers of an executor."""

import os
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

import ckptforge
from ckptforge.errors import OutputError, UsageError
from ckptforge.machines import dask_cluster
from ckptforge.run.blocks import Block
from tests.helpers import HUB
from tests.test_machines import OPTIONS, same_outputs

RANKS = {"data_parallel": 2, "model_parallel": 2, "expert_parallel": 2, "pipeline_stage": 2}


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Where one process has done some jobs, and name → (verb, input, options)."""
    work = tmp_path_factory.mktemp("jobs")
    parallel = work / "parallel.yaml"
    parallel.write_text("\n".join(f"{key}: {n}" for key, n in RANKS.items()))
    made = {
        "whole": (ckptforge.to_ms, HUB, OPTIONS),
        "ranks": (ckptforge.to_ms, HUB, {"parallel_config": parallel}),
        "back": (ckptforge.to_torch, work / "ranks", {"parallel_config": parallel}),
        "iteration": (ckptforge.to_ms, HUB, {"format": "mindformers", "layout": "dense"}),
    }
    for name, (verb, source, options) in made.items():
        verb(source, work / name, **options)
    return work, made


@pytest.mark.parametrize("name", ["whole", "ranks", "back", "iteration"])
def test_processes_make_what_one_process_makes(tmp_path, jobs, processes, name):
    work, made = jobs
    verb, source, options = made[name]
    told = []
    result = verb(
        source, tmp_path / name, executor=processes, progress=lambda *at: told.append(at), **options
    )
    assert same_outputs(work / name, tmp_path / name) and os.listdir(tmp_path) == [name]
    assert told[-1] == (told[-1][1],) * 2 and told == sorted(told)
    assert result.notes == verb(source, tmp_path / "again", **options).notes


class Killing(Executor):
    """Hands calls on to processes, of which it kills one with the call of this number."""

    def __init__(self, pool, number):
        self.pool, self.left = pool, number

    def submit(self, call, /, *args, **kwargs):
        future = self.pool.submit(call, *args, **kwargs)
        self.left -= 1
        if not self.left:
            os.kill(next(iter(self.pool._processes)), signal.SIGKILL)
        return future


@pytest.mark.parametrize("number", [1, 3])
def test_what_a_broken_pool_leaves_is_done_here(tmp_path, jobs, number):
    work, made = jobs
    verb, source, options = made["ranks"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = verb(source, tmp_path / "out", executor=Killing(pool, number), **options)
    assert "the executor broke" in result.notes[-1]
    assert same_outputs(work / "ranks", tmp_path / "out")


class Failing(Executor):
    """Of each call so many tries fail, as where a worker is lost."""

    def __init__(self, error, times):
        self.error, self.times, self.seen = error, times, {}

    def submit(self, call, /, *args, **kwargs):
        future = Future()
        file = call.work.plan.files[0]
        key = file.path, *file.places
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] <= self.times:
            future.set_exception(self.error)
        else:
            future.set_result(call())
        return future


def test_units_that_are_lost_are_done_again_but_not_for_ever(tmp_path, jobs):
    work, made = jobs
    verb, source, options = made["ranks"]
    result = verb(source, tmp_path / "a", executor=Failing(ConnectionError("gone"), 2), **options)
    assert "were lost with a worker and done again" in result.notes[-1]
    assert same_outputs(work / "ranks", tmp_path / "a")
    with pytest.raises(OutputError, match="failed 3 times, at last with ConnectionError: gone"):
        verb(source, tmp_path / "b", executor=Failing(ConnectionError("gone"), 3), **options)
    with pytest.raises(OutputError, match="disk is full"):
        verb(source, tmp_path / "b", executor=Failing(OutputError("disk is full"), 1), **options)
    assert not (tmp_path / "b").exists()


def test_what_was_finished_is_resumed_by_another_executor(tmp_path, jobs, processes):
    work, made = jobs
    verb, source, options = made["ranks"]

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > total / 2:
            raise Stopped

    with ThreadPoolExecutor(2) as threads, pytest.raises(Stopped):
        verb(source, tmp_path / "out", executor=threads, progress=stop, **options)
    told = []
    verb(
        source,
        tmp_path / "out",
        executor=processes,
        resume=True,
        progress=lambda done, total: told.append(done / total),
        **options,
    )
    assert same_outputs(work / "ranks", tmp_path / "out") and told[-1] == 1


def test_contradictions_are_refused(tmp_path, processes):
    out = tmp_path / "out"
    for more, message in (
        ({"part": "1/2"}, "executor spreads one run"),
        ({"no_hash": True}, "needs hashes"),
        ({"dask": "local:1"}, "dask says who works, too"),
    ):
        with pytest.raises(UsageError, match=message):
            ckptforge.to_ms(HUB, out, executor=processes, **more)
    with pytest.raises(UsageError, match="expected an executor"):
        ckptforge.to_ms(HUB, out, executor=4)
    for wrong in ("local:0", "here", "http://x"):
        with pytest.raises(UsageError, match=r"expected the address of a scheduler"):
            ckptforge.to_ms(HUB, out, dask=wrong)
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_dask_makes_what_one_process_makes_when_a_worker_is_killed(tmp_path, jobs):
    distributed = pytest.importorskip("distributed")
    work, made = jobs
    verb, source, options = made["ranks"]
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        pids = [worker.process.pid for worker in cluster.workers.values()]

        def kill(done, total):
            if pids and done:
                os.kill(pids.pop(), signal.SIGKILL)
                pids.clear()

        verb(source, tmp_path / "a", dask=cluster.scheduler_address, progress=kill, **options)
    assert same_outputs(work / "ranks", tmp_path / "a")
    verb(source, tmp_path / "b", dask="local:2", **options)
    assert same_outputs(work / "ranks", tmp_path / "b")
    with pytest.raises(OutputError, match="no scheduler of dask answers"):
        verb(source, tmp_path / "c", dask="tcp://127.0.0.1:9", **options)
    assert not (tmp_path / "c").exists()


def test_a_worker_that_sees_other_files_is_refused(tmp_path, monkeypatch):
    class Elsewhere(Executor):
        def submit(self, call, /, *args, **kwargs):
            future = Future()
            try:
                monkeypatch.chdir(tmp_path)
                future.set_result(call())
            except OutputError as error:
                future.set_exception(error)
            return future

    monkeypatch.chdir(HUB.parent)
    with pytest.raises(OutputError, match="give absolute paths"):
        ckptforge.to_ms(HUB.name, tmp_path / "out", executor=Elsewhere(), **OPTIONS)


def test_a_unit_hashes_what_passes_and_reads_nothing_again(tmp_path, monkeypatch):
    read = []
    block_do = Block.do

    def do(self, worker):
        read.append(self.entry)
        return block_do(self, worker)

    monkeypatch.setattr(Block, "do", do)
    with ThreadPoolExecutor(1) as threads:
        ckptforge.edit(HUB, tmp_path / "out", set_dtype=["router=fp32"], executor=threads)
    assert {entry.name for entry in read} == {""}  # the headers
    ckptforge.edit(HUB, tmp_path / "one", set_dtype=["router=fp32"])
    assert same_outputs(tmp_path / "one", tmp_path / "out")


class Workers:
    """A client of dask whose workers are asked here; at the first time one is gone."""

    def __init__(self, lost):
        self.lost = lost

    def wait_for_workers(self, count, timeout):
        """They are there."""

    def run(self, asked, *values, on_error):
        answers = {"tcp://a": asked(*values), "tcp://b": asked(*values)}
        if self.lost:
            self.lost -= 1
            answers["tcp://b"] = OSError("Stream is closed")
        return answers


def test_workers_are_asked_again_when_one_is_lost_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster.time, "sleep", lambda seconds: None)
    dask_cluster._check_workers(Workers(1), "local:2", tmp_path)
    with pytest.raises(OutputError, match="tcp://b: OSError: Stream is closed"):
        dask_cluster._check_workers(Workers(99), "local:2", tmp_path)


def test_processes_of_dask_that_do_not_start_are_said(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def started(**options):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "LocalCluster", started)
    with pytest.raises(OutputError, match="can't be started: Nanny failed to start"):
        ckptforge.to_ms(HUB, tmp_path / "out", dask="local:3")
    assert not os.listdir(tmp_path)
