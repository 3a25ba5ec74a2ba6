"""MindFormers' own code and ours: it loads the iteration directories that we write, and we read
those that it writes. See tests/mindformers_oracle."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from tests.helpers import MINDSPORE, contents
from tests.iterations import MINDFORMERS, RUNS
from tests.mindformers_oracle.jobs import DTYPES, Job, Layout, Parameter, bits
from tests.mindformers_oracle.networks import Parallel
from tests.test_mindformers_checkpoint_oracle import EARLIER, JOBS, assert_same, tensors
from tests.test_partition import any_job

ZERO = "enable_parallel_optimizer: true, parallel_optimizer_threshold: 0"
CONFIGS = {
    "tp2 dp2": "{dp: 2, mp: 2, ep: %d}",
    "pp2": "{dp: 2, pp: 2, ep: %d}",
    "ZeRO": "{dp: 4, mp: 2, ep: %d, " + ZERO + "}",
    "ZeRO by 2": "{dp: 4, mp: 2, ep: %d, optimizer_weight_shard_size: 2, " + ZERO + "}",
    "PyNative": "parallelism: {data_parallel_shard: 2, tensor_parallel: 2, expert_parallel: %d}",
}


def saved(run: str) -> tuple[Job, dict[str, np.ndarray]]:
    """What a run's checkpoint holds, as a job of one rank, and the bits of its tensors."""
    described = json.loads((MINDFORMERS / run / "expected.json").read_text())["tensors"]
    parameters = {
        name: Parameter(
            dtype=of["dtype"], shape=tuple(of["shape"]), optimizer=of["kind"] == "optimizer"
        )
        for name, of in described.items()
    }
    with np.load(MINDFORMERS / run / "full.npz") as found:
        arrays = {name: found[name].view(f"u{found[name].itemsize}") for name in found.files}
    return Job(parameters=parameters, pynative="pynative" in run), arrays


def spread(job: Job) -> Job:
    """The job on four ranks, which cut the first axis and the last, where that goes."""
    parameters = {}
    for name, parameter in job.parameters.items():
        tensor_map = [-1] * len(parameter.shape)
        for axis, entry in ((-1, 0), (0, 1)):
            if parameter.shape and parameter.shape[axis] % 2 == 0:
                tensor_map[axis] = entry
        if not parameter.shape:
            parameters[name] = parameter
            continue
        layout = Layout(
            device_matrix=(2, 2),
            tensor_map=tuple(tensor_map),
            rank_list=(0, 1, 2, 3),
            alias_name=("fsdp", "tp"),
        )
        parameters[name] = replace(parameter, layout=layout)
    return replace(job, parameters=parameters, ranks=4)


def assert_loaded(loaded, job, expected):
    """All is as expected; of what is 0-d, graph mode loads nothing into several ranks."""
    left_out = {
        name
        for name, parameter in job.parameters.items()
        if not parameter.shape and job.ranks > 1 and not job.pynative
    }
    assert_same(loaded, {k: v for k, v in expected.items() if k not in left_out})


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("run", [run for run in RUNS if "1rank" not in run and "pp2" not in run])
def test_mindformers_loads_what_we_write_for_a_job(run, config, mindformers, tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIGS[config] % (2 if "moe" in run else 1))
    ckptforge.reshard(
        MINDFORMERS / run / "checkpoint",
        tmp_path / "new",
        dst_parallel_config=tmp_path / "job.yaml",
        format="mindformers",
        remove_redundancy="bf16" in run or config == "pp2",
    )
    job, expected = saved(run)
    for target in (job, spread(job)):
        assert_loaded(mindformers.load(tmp_path / "new", target), target, expected)


@pytest.mark.parametrize("version", [*EARLIER, "2.1.0"])
@pytest.mark.parametrize("config", [None, "ZeRO"], ids=["whole", "ZeRO"])
def test_each_release_loads_what_we_write_for_it(config, version, mindformers_release, tmp_path):
    run = "qwen3moe_dp2tp2ep2_zero_noredundancy"
    options = {"format": "mindformers", "mindformers": version}
    if config is None:
        ckptforge.merge(MINDFORMERS / run / "checkpoint", tmp_path / "new", **options)
    else:
        (tmp_path / "job.yaml").write_text(CONFIGS[config] % 2)
        options |= {"dst_parallel_config": tmp_path / "job.yaml", "remove_redundancy": True}
        ckptforge.reshard(MINDFORMERS / run / "checkpoint", tmp_path / "new", **options)
    job, expected = saved(run)
    for target in (job, spread(job)):
        loaded = mindformers_release(version).load(tmp_path / "new", target)
        assert_loaded(loaded, target, expected)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_mindformers_loads_what_we_write_for_any_strategy(mindformers, tmp_path_factory, data):
    tmp = tmp_path_factory.mktemp("any")
    whole = contents(MINDSPORE / "full.ckpt")
    if (strategies := any_job(data, tmp / "s", whole)) is None:
        return
    ckptforge.split(
        MINDSPORE / "full.ckpt",
        tmp / "new",
        strategy_dir=strategies,
        format="mindformers",
        remove_redundancy=data.draw(st.booleans()),
    )
    parameters = {
        name: Parameter(
            dtype=next(word for word in DTYPES if word.lower() == dtype),
            shape=shape,
            optimizer=name.startswith("adam_"),
        )
        for name, (dtype, shape, _) in whole.items()
    }
    expected = {
        name: bits(np.frombuffer(content, DTYPES[parameters[name].dtype]).reshape(shape))
        for name, (_, shape, content) in whole.items()
    }
    job = Job(parameters=parameters)
    for target in (job, spread(job)):
        assert_loaded(mindformers.load(tmp / "new", target), target, expected)
    shutil.rmtree(tmp)


@pytest.mark.parametrize("remove_redundancy", [False, True], ids=["replicas", "no replicas"])
@pytest.mark.parametrize("source", JOBS)
def test_we_read_what_mindformers_saves(source, remove_redundancy, mindformers, tmp_path):
    job = JOBS[source].job()
    mindformers.save(tmp_path, job, remove_redundancy=remove_redundancy)
    assert_same(read(tmp_path), tensors(job))


@pytest.mark.parametrize("version", EARLIER)
def test_we_read_what_earlier_releases_save(version, mindformers_release, tmp_path):
    job = Parallel(dp=2, tp=2, ep=2, shard=-1).job()
    for remove_redundancy in (False, True):
        root = tmp_path / str(remove_redundancy)
        mindformers_release(version).save(root, job, remove_redundancy=remove_redundancy)
        assert_same(read(root), tensors(job))


def read(root):
    with ckptforge.open(root) as model:
        return {name: bits(np.asarray(tensor[...])) for name, tensor in model.items()}
