"""MindFormers' own code saves and loads checkpoints, as tests run it: it loads what it saved, and
here is what its loaders demand. Nothing of ckptforge is used; how it gets along with MindFormers is
in test_iterations_by_mindformers.py. Needs mindspore, and MindFormers' wheels from the index."""

import ast
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mindformers_oracle.fixtures import MindFormersError
from tests.mindformers_oracle.jobs import Job, bits, full_tensor
from tests.mindformers_oracle.networks import Parallel

ONE = Parallel()
JOBS = {
    "one rank": ONE,
    "one rank, PyNative": Parallel(pynative=True),
    "tp2 dp2": Parallel(tp=2, dp=2),
    "pp2 tp2": Parallel(pp=2, tp=2),
    "ep4": Parallel(dp=2, tp=2, ep=4, dtype="BFloat16"),
    "ZeRO": Parallel(dp=2, tp=2, ep=2, shard=-1),
    "ZeRO by 2 of 4": Parallel(dp=4, tp=2, ep=2, shard=2),
    "cp2 ZeRO": Parallel(dp=1, cp=2, tp=2, shard=-1),
    "fsdp2 tp2": Parallel(dp=2, tp=2, pynative=True, dtype="BFloat16"),
    "fsdp4 ep2": Parallel(dp=4, ep=2, pynative=True),
    "pp2 fsdp2": Parallel(pp=2, dp=2, pynative=True),
}
EARLIER = ["1.8.0", "1.9.0", "2.0.0"]
ITERATION = "iteration_00000007"


def tensors(job: Job) -> dict[str, np.ndarray]:
    return {name: bits(full_tensor(name, of)) for name, of in job.parameters.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


def like(parallel: Parallel, source: Parallel) -> Job:
    """A job of other sizes with the tensors of `source`."""
    return replace(parallel, pynative=source.pynative, dtype=source.dtype).job()


def after(name: str) -> Parallel:
    names = list(JOBS)
    return JOBS[names[(names.index(name) + 2) % len(names)]]


@pytest.mark.parametrize("remove_redundancy", [False, True], ids=["replicas", "no replicas"])
@pytest.mark.parametrize("source", JOBS)
def test_mindformers_loads_what_it_saved_into_one_rank_and_into_another_job(
    source, remove_redundancy, mindformers, tmp_path
):
    saved = JOBS[source].job()
    mindformers.save(tmp_path, saved, remove_redundancy=remove_redundancy)
    for target in (ONE, after(source)):
        assert_same(mindformers.load(tmp_path, like(target, JOBS[source])), tensors(saved))
    if saved.ranks > 1:
        assert_same(put_together(tmp_path / ITERATION), tensors(saved))


def put_together(iteration: Path) -> dict[str, np.ndarray]:
    """The whole tensors, by what the format is said to be: slice number K lies at the K-th place,
    in row-major order, of a grid of `axis_fragmentations`."""
    files = {path.name: slices(path) for path in iteration.glob("*.safetensors")}
    metadata = json.loads((iteration / "metadata.json").read_text())
    stored = {ast.literal_eval(key): of for key, of in metadata["storage_data"].items()}
    whole = {}
    for name, described in metadata["state_dict_metadata"].items():
        cuts = described["axis_fragmentations"]
        for chunk in described["chunk"]:
            (number,) = chunk["global_offset"]
            place = np.unravel_index(number, cuts) if cuts else ()
            window = tuple(
                slice(at * size, (at + 1) * size)
                for at, size in zip(place, chunk["local_shape"], strict=True)
            )
            for storage in stored[name, (number,)]:
                part = files[storage["file_name"]][name]
                array = whole.setdefault(name, np.zeros(described["global_shape"], part.dtype))
                array[window] = part
    return whole


def slices(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    sizes = {"F32": 4, "BF16": 2, "I32": 4, "I64": 8}
    found = {}
    for name, of in header.items():
        begin, end = (8 + length + at for at in of["data_offsets"])
        found[name] = np.frombuffer(data[begin:end], f"u{sizes[of['dtype']]}").reshape(of["shape"])
    return found


def test_mindformers_sees_a_byte_that_differs_and_says_what_is_not_there(mindformers, tmp_path):
    job = ONE.job()
    mindformers.save(tmp_path, job)
    file = tmp_path / ITERATION / "checkpoint-model-0000000-0000001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    more = replace(
        job, parameters=job.parameters | {"other": job.parameters["output_layer.weight"]}
    )
    loaded = mindformers.load(tmp_path, more)
    expected = tensors(job)
    assert loaded.keys() == expected.keys()
    assert sum(not np.array_equal(loaded[name], expected[name]) for name in expected) == 1


# What a loader demands, which a writer must therefore give it


@pytest.mark.parametrize("version", EARLIER)
def test_earlier_releases_load_what_2_1_saves_in_graph_mode(
    version, mindformers, mindformers_release, tmp_path
):
    parallel = Parallel(dp=2, tp=2, ep=2, shard=-1)
    mindformers.save(tmp_path, parallel.job(), remove_redundancy=True)
    earlier = mindformers_release(version)
    for target in (ONE, Parallel(pp=2, tp=2)):
        assert_same(earlier.load(tmp_path, like(target, parallel)), tensors(parallel.job()))


@pytest.mark.parametrize("version", [*EARLIER, "2.1.0"])
def test_tensors_that_one_device_holds_are_loaded_by_every_release(
    version, mindformers, mindformers_release, tmp_path
):
    mindformers.save(tmp_path, ONE.job())
    whole_files(tmp_path / ITERATION)
    for target in (ONE, Parallel(dp=2, tp=2)):
        loaded = mindformers_release(version).load(tmp_path, target.job())
        assert_same(loaded, tensors(ONE.job()))


def whole_files(iteration: Path) -> None:
    """Adds the metadata.json of whole tensors on rank 0, which MindFormers itself never writes."""
    described, stored = {}, {}
    for path in iteration.glob("*.safetensors"):
        for name, array in slices(path).items():
            shape = list(array.shape)
            described[name] = {
                "properties": {"dtype": ONE.job().parameters[name].dtype},
                "global_shape": shape,
                "axis_fragmentations": [1] * len(shape),
                "layout": {
                    "device_matrix": [1],
                    "tensor_map": [-1] * len(shape),
                    "interleaved_parallel": False,
                    "alias_name": ["a"],
                    "rank_list": [0],
                },
                "chunk": [{"global_offset": [0], "local_shape": shape}],
            }
            stored[str((name, (0,)))] = [
                {"file_name": path.name, "storage_rank": 0, "rank_group": [0]}
            ]
    metadata = {"state_dict_metadata": described, "storage_data": stored}
    (iteration / "metadata.json").write_text(json.dumps(metadata))


def edit_metadata(iteration: Path, change: Callable[[Any], None]) -> None:
    path = iteration / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def in_other_order(metadata):
    for described in metadata["state_dict_metadata"].values():
        described["layout"] = dict(sorted(described["layout"].items()))


def without_the_first_holder(metadata):
    for storages in metadata["storage_data"].values():
        del storages[:-1]
        storages[0]["rank_group"] = [storages[0]["storage_rank"]]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (in_other_order, "device_matrix length should be equal to alias_name length"),
        (without_the_first_holder, "Cannot find storage file"),
    ],
)
def test_the_loader_wants_a_layouts_keys_in_order_and_the_first_rank_that_has_a_slice(
    change, error, mindformers, tmp_path
):
    job = Parallel(dp=2, tp=2).job()
    mindformers.save(tmp_path, job)
    edit_metadata(tmp_path / ITERATION, change)
    with pytest.raises(MindFormersError, match=error):
        mindformers.load(tmp_path, job)


def test_the_loader_mixes_up_slices_of_a_tensor_that_are_stored_under_one_rank(
    mindformers, tmp_path
):
    """So each slice of a tensor is to be stored under a rank of its own."""

    def on_rank_0(metadata):
        for storages in metadata["storage_data"].values():
            storages[:] = [storages[0] | {"storage_rank": 0}]

    job = Parallel(dp=2, tp=2).job()
    mindformers.save(tmp_path, job)
    edit_metadata(tmp_path / ITERATION, on_rank_0)
    loaded, saved = mindformers.load(tmp_path, job), tensors(job)
    for name in ("decoder.layers.0.input_layernorm.weight", "output_layer.weight"):
        assert np.array_equal(loaded[name], saved[name]) == ("layernorm" in name)
