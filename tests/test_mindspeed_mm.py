"""MindSpeed-MM's checkpoints: against files of its converters, there and back for any job, and what
is refused."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import (
    ConfigError,
    FormatError,
    InputNotFoundError,
    LayoutError,
    MissingTensorsError,
    UsageError,
)
from tests.helpers import FIXTURES, contents, raw_safetensors, write_safetensors
from tests.test_megatron import numbers

MM = FIXTURES / "mindspeed_mm"
HUB, MOE, RUN = MM / "qwen2_5_vl", MM / "qwen3_vl_moe", MM / "qwen3_vl_moe_dcp"
TENSOR, STAGES = "tensor_model_parallel_size", "pipeline_model_parallel_size"
EXPERT = "expert_model_parallel_size"
LANGUAGE, VISION = "llm_pp_layers", "vit_pp_layers"
CASES = {
    "tp2_pp2": {TENSOR: 2, STAGES: 2, LANGUAGE: [[1, 3]], VISION: [[3, 0]]},
    "pp2_vpp2": {STAGES: 2, LANGUAGE: [[1, 1], [1, 1]], VISION: [[2, 1], [0, 0]]},
}


def write(directory, tensors, config=HUB / "config.json"):
    directory.mkdir()
    shutil.copy(config, directory / "config.json")
    stored = {name: ("BF16", [*x.shape], x.tobytes()) for name, x in tensors.items()}
    write_safetensors(directory / "model.safetensors", stored)
    return directory


def to_ranks(hub, out, job):
    (out.parent / "job.json").write_text(json.dumps(job))
    how = {"to": "mindspeed-mm", "dst_parallel_config": out.parent / "job.json"}
    return ckptforge.convert(hub, out, format="megatron", **how)


@pytest.mark.parametrize("name", CASES)
def test_files_of_its_converter_are_read_and_written(name, tmp_path):
    theirs = MM / name
    assert ckptforge.inspect(theirs, config=HUB).layout == "mindspeed-mm"
    result = ckptforge.to_torch(theirs, tmp_path / "hub", config=HUB)
    assert contents(tmp_path / "hub") == contents(HUB) and result.left_out == {}
    to_ranks(HUB, tmp_path / "back", CASES[name])
    found, wanted = numbers(tmp_path / "back" / "iter_0000001"), numbers(theirs / "release")
    assert found == wanted
    assert ckptforge.compare(HUB, tmp_path / "back", config=HUB).equal


LISTS = st.tuples(st.integers(1, 3), st.integers(1, 2))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_job_comes_back(data):
    stages, parts = data.draw(LISTS)

    def spread(count):
        places = data.draw(st.lists(st.integers(0, stages * parts - 1), min_size=count))
        own = [sorted(places[:count]).count(i) for i in range(stages * parts)]
        return [own[i * stages : (i + 1) * stages] for i in range(parts)]

    job = {TENSOR: data.draw(st.sampled_from([1, 2])), STAGES: stages}
    job |= {LANGUAGE: spread(4), VISION: spread(3)}
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "ranks"
        to_ranks(HUB, out, job)
        ckptforge.convert(out, Path(work) / "hub", to="nested", config=HUB)
        assert ckptforge.compare(HUB, Path(work) / "hub").equal


def test_the_tower_lies_on_the_first_stage_unless_it_is_said(tmp_path):
    to_ranks(HUB, tmp_path / "out", {STAGES: 2})
    first, last = (
        {name.partition(".")[2].partition(".")[0] for name in held}
        for held in numbers(tmp_path / "out").values()
    )
    assert first == {"image_encoder", "text_decoder"} and last == {"text_decoder"}


def test_a_tied_head_is_a_copy_on_the_last_stage(tmp_path):
    tensors = raw_safetensors(HUB / "model.safetensors")
    tensors.pop("lm_head.weight")
    config = json.loads((HUB / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    hub = write(tmp_path / "hub", tensors, tmp_path / "config.json")
    for stages in (1, 2):
        to_ranks(hub, tmp_path / str(stages), {STAGES: stages})
        held = list(numbers(tmp_path / str(stages)).values())[-1]
        assert ("model.text_decoder.output_layer.weight" in held) == (stages == 2)
        assert ckptforge.compare(hub, tmp_path / str(stages), config=hub).equal


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({STAGES: 2, LANGUAGE: [[4]]}, "llm_pp_layers has 1 number, 4, expected 2"),
        ({STAGES: 2, LANGUAGE: [[1, 2]]}, "lengths 1, 2: choose other degrees, or give llm_pp"),
        ({STAGES: 2, VISION: [1, 1]}, "3 layers can't be divided into 2 parts of lengths 1, 1"),
        ({STAGES: 2, VISION: [[1, 1], [1, 0]]}, "give vit_pp_layers that fit"),
        ({LANGUAGE: [4], "num_layer_list": "4"}, "has num_layer_list and llm_pp_layers"),
        ({LANGUAGE: [4], "noop_layers": "1"}, "llm_pp_layers says where each layer is"),
        ({LANGUAGE: 4}, "llm_pp_layers is 4, expected a number of layers for each stage"),
        ({LANGUAGE: [[-4]]}, "llm_pp_layers"),
        ({TENSOR: 4}, "can't be cut into 4 parts"),
    ],
)
def test_jobs_that_cannot_be_are_refused(job, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        to_ranks(HUB, tmp_path / "out", job)
    assert not (tmp_path / "out").exists()


def test_a_list_for_a_tower_that_there_is_none_of_is_refused(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({VISION: [2]}))
    how = {"to": "mindspeed", "dst_parallel_config": tmp_path / "job.json"}
    with pytest.raises(ConfigError, match="vit_pp_layers is for a model with a vision tower"):
        ckptforge.convert(FIXTURES / "mindspeed" / "llama", tmp_path / "out", **how)


def test_files_that_are_missing_are_said(tmp_path):
    shutil.copytree(MM / "tp2_pp2", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "release" / "mp_rank_01_000")
    with pytest.raises(FormatError, match="the names of directories say tensor parallel 2, 2 st"):
        ckptforge.to_torch(tmp_path / "run", tmp_path / "out", config=HUB)


def test_ranks_written_of_different_sizes_are_those_of_their_manifest(tmp_path):
    """What config.json says in lists and objects is in the arguments, too."""
    hub = tmp_path / "hub"
    shutil.copytree(FIXTURES / "mindspeed" / "llama", hub)
    config = json.loads((hub / "config.json").read_text())
    config.pop("rope_theta", None)
    linear = {"rope_type": "linear", "rope_theta": 10000.0}
    config["rope_parameters"] = {**linear, "factor": 2.0}
    (hub / "config.json").write_text(json.dumps(config))
    (tmp_path / "job.json").write_text(json.dumps({TENSOR: 2, STAGES: 2}))
    how = {"to": "mindspeed", "dst_parallel_config": tmp_path / "job.json"}
    ckptforge.convert(hub, tmp_path / "run", **how)
    assert ckptforge.compare(hub, tmp_path / "run").equal
    ckptforge.to_torch(tmp_path / "run", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    (tmp_path / "run" / "ckptforge.manifest.json").unlink()
    assert ckptforge.compare(hub, tmp_path / "run").equal
    other = {**config, "rope_parameters": {**linear, "factor": 4.0}}
    (hub / "config.json").write_text(json.dumps(other))
    assert not ckptforge.compare(hub, tmp_path / "run").equal
    assert ckptforge.compare(hub, tmp_path / "run", config=hub).equal


@pytest.mark.parametrize(
    "job", [{EXPERT: 2}, {EXPERT: 2, STAGES: 2}, {STAGES: 2}, {TENSOR: 2, EXPERT: 2, STAGES: 2}]
)
def test_files_without_arguments_tell_by_their_names_how_they_are_cut(job, tmp_path):
    torch = pytest.importorskip("torch")
    hub = FIXTURES / "mindspeed" / "qwen3_moe"
    (tmp_path / "job.json").write_text(json.dumps(job))
    how = {"to": "mindspeed-sequential", "dst_parallel_config": tmp_path / "job.json"}
    ckptforge.convert(hub, tmp_path / "run", **how)
    (tmp_path / "run" / "ckptforge.manifest.json").unlink()
    for path in (tmp_path / "run").rglob("*.pt"):
        held = torch.load(path, weights_only=False)
        assert held.pop("args")
        torch.save(held, path)
    ckptforge.to_torch(tmp_path / "run", tmp_path / "out", config=hub)
    assert contents(tmp_path / "out") == contents(hub)


def test_a_tower_is_there_as_a_whole_or_not_at_all(tmp_path):
    tensors = raw_safetensors(HUB / "model.safetensors")
    alone = {name: x for name, x in tensors.items() if not name.startswith("visual.")}
    hub = write(tmp_path / "alone", alone)
    ckptforge.to_ms(hub, tmp_path / "ms.ckpt")
    ckptforge.to_torch(tmp_path / "ms.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(hub)
    to_ranks(hub, tmp_path / "ranks", {TENSOR: 2, STAGES: 2})
    assert ckptforge.compare(hub, tmp_path / "ranks", config=hub).equal
    lost = {name: x for name, x in tensors.items() if "visual.blocks.1." not in name}
    with pytest.raises(MissingTensorsError, match=r"\n  visual\.blocks\.1\.norm1\.weight"):
        ckptforge.to_ms(write(tmp_path / "lost", lost), tmp_path / "x.ckpt")


def test_what_no_row_of_the_tower_has_passes_through_or_is_refused(tmp_path):
    tensors = raw_safetensors(HUB / "model.safetensors")
    more = {**tensors, "visual.more.weight": np.zeros(4, np.uint16)}
    hub = write(tmp_path / "hub", more)
    ckptforge.to_ms(hub, tmp_path / "ms.ckpt")
    assert "visual.more.weight" in contents(tmp_path / "ms.ckpt")
    with pytest.raises(LayoutError, match=r"no place for 1 tensor of a tower.*\n.*visual\.more"):
        to_ranks(hub, tmp_path / "ranks", {})


def test_edits_keep_the_tower_or_are_refused(tmp_path):
    model = ckptforge.open(HUB)
    with pytest.raises(UsageError, match=r"where visual\..* has axis H \(hidden_size\) isn't kn"):
        model.take(H=range(8))
    model.take(l=[0, 2]).save(tmp_path / "out")
    kept = contents(tmp_path / "out")
    assert {n for n in kept if "visual" in n} == {n for n in contents(HUB) if "visual" in n}


def test_a_tower_can_be_dropped_whole_and_its_layers_cannot_be_taken(tmp_path):
    ckptforge.edit(HUB, tmp_path / "out", drop=["visual.*"])
    assert not any("visual" in name for name in contents(tmp_path / "out"))
    ckptforge.to_ms(tmp_path / "out", tmp_path / "x.ckpt")
    for axis in ("b", "vision_config.depth"):
        with pytest.raises(UsageError, match="axis b is 2, but vision_config.depth would be 3"):
            ckptforge.edit(HUB, tmp_path / "two", take=[f"{axis}=0,1"])
    with pytest.raises(UsageError, match="vision_config.depth is 3, and nothing of them is left"):
        ckptforge.edit(HUB, tmp_path / "none", drop=["visual.blocks.*"])


def test_ranks_of_mindformers_have_the_tower_whole_on_the_first_stage(tmp_path):
    job = {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2}
    job |= {"enable_parallel_optimizer": True, "parallel_optimizer_threshold": 0}
    (tmp_path / "p.json").write_text(json.dumps(job))
    how = {"parallel_config": tmp_path / "p.json"}
    ckptforge.to_ms(HUB, tmp_path / "ranks", **how)
    held = [contents(path) for path in sorted((tmp_path / "ranks").glob("rank_*"))]
    tower = {name: x for name, x in contents(HUB).items() if name.startswith("visual.")}
    for own in held[:4]:
        assert {name: x for name, x in own.items() if name.startswith("visual.")} == tower
    assert len(held) == 8
    assert not any(name.startswith("visual.") for own in held[4:] for name in own)
    ckptforge.to_torch(tmp_path / "ranks", tmp_path / "back", **how)
    assert contents(tmp_path / "back") == contents(HUB)


@pytest.mark.parametrize("which", ["", "release"])
def test_runs_with_fsdp2_are_read(which, tmp_path):
    ckptforge.to_torch(RUN / which, tmp_path / "out", config=MOE)
    assert contents(tmp_path / "out") == contents(MOE)
    assert ckptforge.inspect(RUN / which, config=MOE).layout == "fsdp"


def test_iterations_of_fsdp2_are_chosen_by_their_number(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(RUN / "release", run / "iter_0000005")
    shutil.copytree(RUN / "release", run / "iter_0000010")
    result = ckptforge.convert(run, tmp_path / "out", to="hub", config=MOE)
    assert any("the highest iteration is taken" in note for note in result.notes)
    assert ckptforge.inspect(run, step=5, config=MOE).tensors
    with pytest.raises(InputNotFoundError, match="the step asked for is 7"):
        ckptforge.inspect(run, step=7)


def test_chunks_of_others_stay_what_they_are_whatever_their_directory_is_called(tmp_path):
    ckptforge.convert(MOE, tmp_path / "release", to="hub", format="dcp")
    assert ckptforge.compare(MOE, tmp_path / "release").equal


def test_the_optimizer_of_a_run_with_fsdp2_is_left_out_and_said(tmp_path):
    pytest.importorskip("torch")
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    from safetensors.torch import load_file

    tensors = load_file(MOE / "model.safetensors")
    held = {
        "model": {f"model.{name}": x for name, x in tensors.items()},
        "optimizer": {"state": {name: {"exp_avg": x.float()} for name, x in tensors.items()}},
        "checkpoint_version": 3.0,
        "iteration": 5,
    }
    where = tmp_path / "run" / "iter_0000005"
    checkpoint.save(held, checkpoint_id=where, no_dist=True)
    result = ckptforge.convert(tmp_path / "run", tmp_path / "out", to="hub", config=MOE)
    assert contents(tmp_path / "out") == contents(MOE)
    assert len(result.left_out["optimizer state and the state of the training run"]) == len(tensors)
