"""MindFormers' iteration directories: what MindFormers wrote is read, and what is written is read
back, by us and by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ckptforge
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import ConfigError, FormatError, InputNotFoundError, PlanError, UsageError
from ckptforge.formats.layout import TensorSpec
from ckptforge.mindformers import describing
from ckptforge.mindformers.metadata import read_metadata
from ckptforge.mindformers.versions import VERSIONS
from tests.helpers import MINDSPORE, contents, raw_safetensors
from tests.iterations import MINDFORMERS, RUNS, assembled, by_layout, iteration_of
from tests.test_partition import any_job, layouts

QWEN = MINDFORMERS / "qwen3_dp2tp2_adamw" / "checkpoint"
JOBS = {
    1: {"dp": 1},
    2: {"dp": 2, "enable_parallel_optimizer": "true", "parallel_optimizer_threshold": 0},
    3: {"dp": 3},
    4: {"dp": 2, "mp": 2},
    6: {"dp": 3, "mp": 2},
}


def full(run):
    """name → bits, as MindFormers was given them."""
    with np.load(MINDFORMERS / run / "full.npz") as found:
        return {name: found[name].view(f"u{found[name].itemsize}") for name in found.files}


def same(found, expected):
    assert sorted(found) == sorted(expected)
    different = [
        name
        for name, array in expected.items()
        if found[name].shape != array.shape or found[name].tobytes() != array.tobytes()
    ]
    assert different == []


def written(path, **keys):
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


@pytest.mark.parametrize("run", RUNS)
def test_what_mindformers_wrote_is_read_bit_for_bit(tmp_path, run):
    root = MINDFORMERS / run / "checkpoint"
    with ckptforge.open(root) as model:
        same({name: np.asarray(tensor[...]) for name, tensor in model.items()}, full(run))
    ckptforge.merge(root, tmp_path / "whole.safetensors", check_replicas=True)
    same(raw_safetensors(tmp_path / "whole.safetensors"), full(run))
    ckptforge.merge(iteration_of(root), tmp_path / "again.safetensors")
    same(raw_safetensors(tmp_path / "again.safetensors"), full(run))


@pytest.mark.parametrize("ranks", JOBS)
@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_resharded_and_read_by_hand(tmp_path, run, ranks):
    expert = {2: 2, 4: 4, 6: 3}.get(ranks, 1) if "moe" in run else 1
    if expert == 3:
        expert = 2  # of four experts
    config = written(tmp_path / "job.yaml", **JOBS[ranks], ep=expert)
    for redundant, version in ((True, "2.1"), (False, "1.8")):
        result = ckptforge.reshard(
            MINDFORMERS / run / "checkpoint",
            tmp_path / "new",
            dst_parallel_config=config,
            format="mindformers",
            mindformers=version,
            remove_redundancy=not redundant,
            overwrite=True,
        )
        assert result.facts["ranks"] == ranks
        same(assembled(tmp_path / "new"), full(run))
    ckptforge.reshard(tmp_path / "new", tmp_path / "old", dst_parallel_config=config)
    ckptforge.merge(tmp_path / "old", tmp_path / "whole.safetensors", parallel_config=config)
    same(raw_safetensors(tmp_path / "whole.safetensors"), full(run))


def test_stages_hold_their_own_tensors(tmp_path):
    config = written(tmp_path / "job.yaml", dp=2, mp=2, pp=2)
    for run in ("qwen3_pp2tp2_adamw", "deepseek3_dp2_muon_noredundancy"):
        root = MINDFORMERS / run / "checkpoint"
        for remove in (False, True):
            ckptforge.split(
                root,
                tmp_path / "new",
                parallel_config=config,
                format="mindformers",
                remove_redundancy=remove,
                overwrite=True,
            )
            same(assembled(tmp_path / "new"), full(run))
    metadata = json.loads((iteration_of(tmp_path / "new") / "metadata.json").read_text())
    layouts = {k: v["layout"] for k, v in metadata["state_dict_metadata"].items()}
    assert layouts["embedding.word_embeddings.weight"]["rank_list"] == [0, 1, 2, 3]
    assert layouts["output_layer.weight"]["rank_list"] == [4, 5, 6, 7]
    # counters of a layer lie with its weights
    assert layouts["decoder.layers.1.mlp.router.expert_load"]["rank_list"] == [4, 5, 6, 7]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_strategy_makes_an_iteration_that_is_read_back(tmp_path_factory, data):
    tmp = tmp_path_factory.mktemp("any")
    tensors = contents(MINDSPORE / "full.ckpt")
    if (job := any_job(data, tmp / "s", tensors)) is None:
        return
    ckptforge.split(
        MINDSPORE / "full.ckpt",
        tmp / "new",
        strategy_dir=job,
        format="mindformers",
        remove_redundancy=data.draw(st.booleans()),
        mindformers=data.draw(st.sampled_from(["1.7", "1.9", "2.0", "2.1"])),
        prefix=data.draw(st.sampled_from(["checkpoint_", "", "my-opt-net"])),
    )
    found = assembled(tmp / "new")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: content for name, (_, _, content) in tensors.items()
    }
    ckptforge.merge(tmp / "new", tmp / "merged.ckpt", check_replicas=True)
    assert contents(tmp / "merged.ckpt") == tensors
    other = any_job(data, tmp / "t", tensors)
    if other is not None:
        ckptforge.reshard(tmp / "new", tmp / "ranks", dst_strategy_dir=other)
        ckptforge.reshard(
            tmp / "ranks",
            tmp / "newer",
            src_strategy_dir=other,
            dst_strategy_dir=job,
            format="mindformers",
        )
        same(assembled(tmp / "newer"), found)
    shutil.rmtree(tmp)


def test_one_rank_writes_no_metadata(tmp_path):
    ckptforge.merge(QWEN, tmp_path / "new", format="mindformers", iteration=12)
    names = sorted(str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*.*"))
    assert names == [
        "ckptforge.manifest.json",
        "iteration_00000012/checkpoint-model-0000000-0000001.safetensors",
        "iteration_00000012/checkpoint-opt-0000000-0000001.safetensors",
        "iteration_00000012/common.json",
        "latest_checkpointed_iteration.txt",
    ]
    assert (tmp_path / "new" / "latest_checkpointed_iteration.txt").read_text() == "12"
    common = json.loads((tmp_path / "new" / "iteration_00000012" / "common.json").read_text())
    assert common == json.loads((iteration_of(QWEN) / "common.json").read_text())
    same(assembled(tmp_path / "new"), full("qwen3_dp2tp2_adamw"))


@pytest.mark.parametrize(
    ("version", "keys", "group"), [("1.7", 5, False), ("1.9", 6, True), ("2.1.0", 7, True)]
)
def test_each_version_gets_what_it_reads(tmp_path, version, keys, group):
    config = written(tmp_path / "job.yaml", mp=2)
    ckptforge.split(
        QWEN, tmp_path / "n", parallel_config=config, format="mindformers", mindformers=version
    )
    directory = iteration_of(tmp_path / "n")
    assert len(json.loads((directory / "common.json").read_text())) == keys
    text = (directory / "metadata.json").read_text()
    assert ("rank_group" in text) == group
    assert ("\n" in text) == (version != "2.1.0")


def test_an_iteration_is_chosen(tmp_path):
    root = tmp_path / "run"
    shutil.copytree(QWEN, root)
    shutil.copytree(root / "iteration_00000007", root / "iteration_00000009")
    with ckptforge.open(root) as model:
        assert "iteration_00000009 is newer" in model.notes[0]
    with ckptforge.open(root, step=9) as model:
        assert "may be unfinished" in model.notes[0]
    with pytest.raises(InputNotFoundError, match="the step asked for is 8, which isn't there.*\n"):
        ckptforge.open(root, step=8)
    (root / "latest_checkpointed_iteration.txt").write_text("11")
    with pytest.raises(InputNotFoundError, match="names iteration 11, which isn't there"):
        ckptforge.open(root)
    (root / "latest_checkpointed_iteration.txt").write_text("release")
    with pytest.raises(FormatError, match="holds 'release', expected the number"):
        ckptforge.open(root)
    (root / "latest_checkpointed_iteration.txt").unlink()
    with ckptforge.open(root) as model:
        assert "the highest iteration is taken, iteration_00000009" in model.notes[0]
    with pytest.raises(InputNotFoundError, match="is one iteration, where there is no step"):
        ckptforge.open(root / "iteration_00000007", step=8)


def test_what_an_interrupted_save_left_is_said(tmp_path):
    root = tmp_path / "run"
    shutil.copytree(QWEN, root)
    (root / "iteration_00000007" / "tmpab12cd").write_text("half")
    with ckptforge.open(root) as model:
        assert "tmpab12cd: is left of an interrupted save" in model.notes[0]


def test_only_the_weights_may_have_been_copied(tmp_path):
    root = tmp_path / "run"
    shutil.copytree(QWEN, root)
    files = sorted(root.glob("*/checkpoint-opt-*"))
    files[0].unlink()
    with pytest.raises(InputNotFoundError, match=r"1 file of 4 missing:\n.*opt-0000000-0000004"):
        ckptforge.open(root)
    for file in files[1:]:
        file.unlink()
    with ckptforge.open(root) as model:
        assert (
            "the 4 files of the optimizer that metadata.json names aren't there" in model.notes[0]
        )
        assert not any(name.startswith("adam_m.") for name in model)


def damage(change):
    def spoil(directory: Path):
        path = directory / "metadata.json"
        content = json.loads(path.read_text())
        change(content, content["state_dict_metadata"], content["storage_data"])
        path.write_text(json.dumps(content))

    return spoil


NAME = "output_layer.weight"
FIRST, SECOND = f"('{NAME}', (0,))", f"('{NAME}', (1,))"


def swapped(content, tensors, storage):
    storage[FIRST], storage[SECOND] = storage[SECOND], storage[FIRST]


def with_strange(directory, rank, array):
    path = directory / f"checkpoint-model-000000{rank}-0000004.safetensors"
    save_file({**load_file(path), "strange": array}, path)


def resaved(directory, tensor, change):
    path = directory / "checkpoint-model-0000001-0000004.safetensors"
    tensors = load_file(path)
    tensors[tensor] = change(tensors[tensor])
    save_file(tensors, path)


DAMAGES = {
    "a dtype": (
        damage(lambda c, t, s: t[NAME]["properties"].update(dtype="BFloat16")),
        "is float32, but bfloat16 by metadata.json",
    ),
    "no dtype": (
        damage(lambda c, t, s: t[NAME]["properties"].update(dtype="Float33")),
        "has the dtype 'Float33', which is none",
    ),
    "a shape": (
        damage(
            lambda c, t, s: (
                t[NAME].update(global_shape=[64, 8]),
                [chunk.update(local_shape=[32, 8]) for chunk in t[NAME]["chunk"]],
            )
        ),
        r"is of shape \[16, 8\], but metadata.json says \[64, 8\], cut into slices of \[32, 8\]",
    ),
    "a chunk": (
        damage(lambda c, t, s: t[NAME]["chunk"][0].update(local_shape=[8, 8])),
        r"has a chunk of \[8, 8\], but is cut into \[2, 1\] parts of \[16, 8\]",
    ),
    "uneven": (
        damage(lambda c, t, s: t[NAME].update(global_shape=[33, 8])),
        r"\[33, 8\] is cut into \[2, 1\] parts, which doesn't divide: uneven",
    ),
    "a rank": (damage(swapped), r"is \[0:16, 0:8\] by its number, but rank 1.*\[16:32, 0:8\]"),
    "a missing slice": (
        damage(lambda c, t, s: s.pop(SECOND)),
        "is cut into 2 slices, but has 1 slices in storage_data: 1 missing, such as number 1",
    ),
    "a missing chunk": (
        damage(lambda c, t, s: t[NAME]["chunk"].pop()),
        "has 1 chunks: 1 missing, such as number 1",
    ),
    "one slice too many": (
        damage(lambda c, t, s: s.update({f"('{NAME}', (2,))": s[FIRST]})),
        "is cut into 2 slices, but has 3 slices in storage_data",
    ),
    "a key": (
        damage(lambda c, t, s: s.update({"__import__('os').abort()": s.pop(FIRST)})),
        r"holds the key .*abort.*, expected a name and the number of a slice",
    ),
    "a file's name": (
        damage(lambda c, t, s: s[FIRST][0].update(file_name="../x.safetensors")),
        "isn't the name of a file",
    ),
    "another file": (
        damage(lambda c, t, s: s[FIRST][0].update(file_name="y-model-0000000-0000001.safetensors")),
        r"files that metadata.json names are missing:\n.*y-model",
    ),
    "a strange tensor": (
        damage(lambda c, t, s: t.pop(NAME)),
        "of 'output_layer.weight' lies, which state_dict_metadata doesn't describe",
    ),
    "a matrix": (
        damage(lambda c, t, s: t[NAME]["layout"].update(device_matrix=[2, 2, 2])),
        "of 8 devices, but a rank_list of 4",
    ),
    "a rank far outside the job": (
        damage(lambda c, t, s: t[NAME]["layout"].update(rank_list=[0, 1, 2, 9])),
        r"'output_layer.weight' has a rank_list with rank 9, which isn't of the job.*are 0-3",
    ),
    "a rank beside the job": (
        damage(lambda c, t, s: t[NAME]["layout"].update(rank_list=[0, 1, 2, 4])),
        r"'output_layer.weight' has a rank_list with rank 4, which isn't of the job.*are 0-3",
    ),
    "a slice of a rank outside the job": (
        damage(lambda c, t, s: s[FIRST][0].update(storage_rank=12)),
        r"'output_layer.weight' has a storage_rank with rank 12, which isn't of the job",
    ),
    "a map": (
        damage(lambda c, t, s: t[NAME]["layout"].update(tensor_map=[-1, 0])),
        r"has axis_fragmentations \[2, 1\], but its layout .* makes \[1, 2\]",
    ),
    "interleaved": (
        damage(lambda c, t, s: t[NAME]["layout"].update(interleaved_parallel=True)),
        "has an interleaved layout",
    ),
    "cuts without a layout": (
        damage(lambda c, t, s: t[NAME].update(layout=None)),
        r"has no layout, but axis_fragmentations \[2, 1\]",
    ),
    "not metadata": (
        lambda directory: (directory / "metadata.json").write_text('{"a": 1}'),
        "isn't the metadata of a MindFormers checkpoint",
    ),
    "no metadata": (
        lambda directory: (directory / "metadata.json").unlink(),
        "holds 4 files of shards, but no metadata.json",
    ),
    "a missing file": (
        lambda d: (d / "checkpoint-model-0000002-0000004.safetensors").unlink(),
        r"1 file of 4 missing:\n.*model-0000002-0000004",
    ),
    "two checkpoints": (
        lambda d: shutil.copy(
            d / "checkpoint-model-0000000-0000004.safetensors",
            d / "checkpoint-model-0000000-0000001.safetensors",
        ),
        "which are of two checkpoints",
    ),
    "no model": (
        lambda d: [path.unlink() for path in d.glob("*-model-*")],
        "the optimizer's state, but no file of the model",
    ),
    "another shape in a file": (
        lambda d: resaved(d, NAME, lambda array: array[:4]),
        r"is of shape \[4, 8\], but metadata.json says \[32, 8\].* it is neither",
    ),
    "a common tensor that differs": (
        lambda d: [with_strange(d, rank, np.float32([rank])) for rank in range(2)],
        "'strange' isn't described by metadata.json, so every rank must hold the same",
    ),
    "a common number": (
        lambda d: (d / "common.json").write_text('{"step_num": "seven"}'),
        "step_num is 'seven', expected a number or null",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_iteration_is_refused(tmp_path, what):
    change, message = DAMAGES[what]
    shutil.copytree(QWEN, tmp_path / "run")
    change(tmp_path / "run" / "iteration_00000007")
    with pytest.raises((FormatError, InputNotFoundError), match=f"(?s){message}") as error:
        ckptforge.merge(tmp_path / "run", tmp_path / "out.ckpt")
    assert str(tmp_path / "run" / "iteration_00000007") in str(error.value)
    assert not (tmp_path / "out.ckpt").exists()


def test_replicas_are_compared_where_that_is_asked(tmp_path):
    shutil.copytree(QWEN, tmp_path / "run")
    path = tmp_path / "run/iteration_00000007/checkpoint-model-0000003-0000004.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ckptforge.merge(tmp_path / "run", tmp_path / "out.ckpt")
    with pytest.raises(FormatError, match="differs from its replica in"):
        ckptforge.merge(tmp_path / "run", tmp_path / "b.ckpt", check_replicas=True)


def test_unknown_numbers_of_a_run_are_said(tmp_path):
    shutil.copytree(QWEN, tmp_path / "run")
    path = tmp_path / "run/iteration_00000007/common.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "moon": 1, "data_plan_state": 2}))
    with ckptforge.open(tmp_path / "run") as model:
        assert [note for note in model.notes if "'moon'" in note]
        assert not [note for note in model.notes if "data_plan_state" in note]


def test_an_iteration_says_itself_how_it_is_cut(tmp_path):
    config = written(tmp_path / "job.yaml", mp=2)
    with pytest.raises(UsageError, match="says itself how it is cut; omit parallel_config="):
        ckptforge.merge(QWEN, tmp_path / "o.ckpt", parallel_config=config)


def test_options_of_iterations_without_one(tmp_path):
    with pytest.raises(UsageError, match="iteration is of format='mindformers'"):
        ckptforge.merge(QWEN, tmp_path / "o", iteration=3)
    with pytest.raises(UsageError, match="remove_redundancy=True is for ranks that hold the same"):
        ckptforge.merge(QWEN, tmp_path / "o", format="mindformers", remove_redundancy=True)
    with pytest.raises(UsageError, match="expected a version that writes such checkpoints: 1.7"):
        ckptforge.merge(QWEN, tmp_path / "o", format="mindformers", mindformers="1.6")
    with pytest.raises(UsageError, match="expected the number of a training step, from 0 to 9"):
        ckptforge.merge(QWEN, tmp_path / "o", format="mindformers", iteration=-1)
    assert not (tmp_path / "o").exists()


PYNATIVE = """
parallelism:
  data_parallel_shard: 2
  tensor_parallel: 2
  sequence_parallel: true
  expert_parallel: EP
  pipeline_parallel: PP
"""


@pytest.mark.parametrize(
    ("run", "ep"), [("qwen3_pp2tp2_adamw", 1), ("qwen3moe_dp2tp2ep2_zero_noredundancy", 2)]
)
def test_the_pynative_trainer_shards_its_parameters(tmp_path, run, ep):
    config = tmp_path / "job.yaml"
    config.write_text(PYNATIVE.replace("EP", str(ep)).replace("PP", "2"))
    root = MINDFORMERS / run / "checkpoint"
    ckptforge.split(root, tmp_path / "n", parallel_config=config, format="mindformers")
    same(assembled(tmp_path / "n"), full(run))
    metadata = json.loads((iteration_of(tmp_path / "n") / "metadata.json").read_text())
    cuts = {
        name: tensor["axis_fragmentations"]
        for name, tensor in metadata["state_dict_metadata"].items()
    }
    assert cuts["embedding.word_embeddings.weight"] == [4, 1]  # by tensor parallelism, then sharded
    assert cuts["decoder.layers.0.self_attention.linear_proj.weight"] == [2, 2]
    assert cuts["decoder.layers.0.input_layernorm.weight"] == [2]
    if ep > 1:  # four experts as rows: two groups, each sharded over two devices
        assert cuts["decoder.layers.0.mlp.experts.weight1"] == [4, 1]
        assert cuts["decoder.layers.0.mlp.router.fi_accu"] == [1]


PYNATIVE_MISTAKES = {
    "parallelism: {tensor_parallel: 2}": "data_parallel_shard is -1 or isn't there",
    "parallelism: {data_parallel_shard: 2, expert_parallel: 3}": "expert_parallel 3",
    "parallelism: {data_parallel_shard: 4, dense_fsdp_shard_size: 3}": "dense_fsdp_shard_size 3",
    "parallelism: {data_parallel_shard: 2, pipeline_parallel: 2, "
    "pipeline_parallel_layers_per_stage: ['0', '0-1']}": "expected each of 2 layers, from 0 to 1",
    "parallelism: {data_parallel_shard: 2, pipeline_parallel: 2, "
    "pipeline_parallel_interleave_num: 2}": "leave 2 over 2 stages × 2 interleaved; say in "
    "pipeline_parallel_layers_per_stage",
    "parallelism: {data_parallel_shard: two}": "parallelism.data_parallel_shard is 'two'",
    "parallelism: {data_parallel_shard: 2, tensor_paralel: 2}": "tensor_paralel",
}


@pytest.mark.parametrize("text", PYNATIVE_MISTAKES)
def test_a_mistaken_pynative_configuration_is_refused(tmp_path, text):
    config = tmp_path / "job.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=PYNATIVE_MISTAKES[text]) as error:
        ckptforge.split(QWEN, tmp_path / "n", parallel_config=config, format="mindformers")
    assert str(config) in str(error.value)
    assert not (tmp_path / "n").exists()


def test_a_pynative_configuration_is_of_iterations_only(tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("parallelism: {data_parallel_shard: 2}")
    with pytest.raises(UsageError, match="loads iteration directories: give format='mindformers'"):
        ckptforge.split(QWEN, tmp_path / "n", parallel_config=config)


def test_masters_take_the_place_of_rounded_weights(tmp_path):
    run = "qwen3_pynative_fsdp2tp2_bf16"
    root, bits = MINDFORMERS / run / "checkpoint", full(run)
    config = json.loads((MINDFORMERS / run / "expected.json").read_text())["model_config"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    for masters in (False, True):
        ckptforge.to_torch(
            root,
            tmp_path / "hub",
            config=tmp_path / "config.json",
            overwrite=True,
            from_main_params=masters,
        )
        found = raw_safetensors(tmp_path / "hub")["lm_head.weight"]
        name = "main_param.output_layer.weight" if masters else "output_layer.weight"
        assert found.tobytes() == bits[name].tobytes()
    with pytest.raises(UsageError, match="holds no main_param"):
        ckptforge.to_torch(QWEN, tmp_path / "h", allow_no_config=True, from_main_params=True)


def test_which_rank_holds_what_is_said():
    found = ckptforge.inspect(QWEN)
    assert (found.model, found.layout) == ("qwen3", "mcore")
    assert found.notes[0].startswith("iteration 7, epoch_num 1, step_num 7, global_step 7")
    parts = {part.tensor: part for part in found.parts}
    assert parts["output_layer.weight"].boxes == {
        0: [[0, 16], [0, 8]],
        1: [[16, 32], [0, 8]],
        2: [[0, 16], [0, 8]],
        3: [[16, 32], [0, 8]],
    }
    assert found.state == 40
    pipeline = ckptforge.inspect(MINDFORMERS / "qwen3_pp2tp2_adamw" / "checkpoint")
    parts = {part.tensor: part for part in pipeline.parts}
    assert list(parts["embedding.word_embeddings.weight"].boxes) == [0, 1]
    assert list(parts["output_layer.weight"].boxes) == [2, 3]


def test_counters_of_older_checkpoints_become_numbers_of_the_run(tmp_path):
    tensors = {
        "embedding.word_embeddings.weight": np.zeros((4, 2), np.float32),
        "epoch_num": np.array([3], np.int32),
        "global_step": np.array([70], np.int64),
        "loss_scale": np.array(2.5, np.float32),
    }
    save_file(tensors, tmp_path / "old.safetensors")
    ckptforge.open(tmp_path / "old.safetensors").save(
        tmp_path / "new", format="mindformers", iteration=70
    )
    common = json.loads((tmp_path / "new" / "iteration_00000070" / "common.json").read_text())
    assert (common["epoch_num"], common["global_step"], common["loss_scale"]) == (3, 70, 2.5)


def test_state_of_an_unknown_optimizer_is_known_by_its_file(tmp_path):
    shutil.copytree(MINDFORMERS / "qwen3_1rank_adamw" / "checkpoint", tmp_path / "run")
    (path,) = tmp_path.glob("run/*/*-opt-*")
    tensors = {name.replace("adam_m.", "odd_m."): one for name, one in load_file(path).items()}
    save_file(tensors, path)
    assert ckptforge.inspect(tmp_path / "run").layout == "mcore"
    ckptforge.merge(tmp_path / "run", tmp_path / "w.safetensors", weights_only=True)
    assert not [n for n in raw_safetensors(tmp_path / "w.safetensors") if "_m." in n]
    ckptforge.merge(tmp_path / "run", tmp_path / "new", format="mindformers")
    (path,) = tmp_path.glob("new/*/*-opt-*")
    assert load_file(path).keys() == tensors.keys()


def lora_run(root):
    """A checkpoint of adapters alone, as the PyNative trainer writes it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for module, (rows, columns) in {
            "self_attention.linear_proj": (8, 16),
            "mlp.linear_fc2": (8, 12),
            "self_attention.linear_qkv": (32, 8),
        }.items():
            name = f"decoder.layers.{layer}.{module}"
            tensors[f"{name}.lora_a"] = rng.standard_normal((4, columns), np.float32)
            tensors[f"{name}.lora_b"] = rng.standard_normal((rows, 4), np.float32)
    directory = root / "iteration_00000005"
    directory.mkdir(parents=True)
    save_file(tensors, directory / "checkpoint-model-0000000-0000001.safetensors")
    state = {f"adam_m.{name}": one for name, one in tensors.items()}
    save_file(state, directory / "checkpoint-opt-0000000-0000001.safetensors")
    (root / "latest_checkpointed_iteration.txt").write_text("5")
    manifest = {
        "format": "mindformers_pynative_lora_adapter_v1",
        "base_load_path": "/base",
        "base_fingerprint": None,
        "lora_config": {"target_modules": ".*linear.*", "lora_rank": 4, "lora_alpha": 16},
        "global_step": 5,
        "consumed_samples": 40,
    }
    for place in (root, directory):
        (place / "mindformers_adapter_config.json").write_text(json.dumps(manifest))
    return tensors


def test_adapters_of_the_pynative_trainer_go_to_peft_and_back(tmp_path):
    tensors = lora_run(tmp_path / "run")
    expected = MINDFORMERS / "qwen3_1rank_adamw" / "expected.json"
    config = {**json.loads(expected.read_text())["model_config"], "model_type": "qwen3"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    about = {"config": tmp_path / "config.json", "model": "qwen3"}
    ckptforge.to_torch(tmp_path / "run", tmp_path / "peft", **about)
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (4, 16)
    ckptforge.to_ms(
        tmp_path / "peft", tmp_path / "new", format="mindformers", layout="pynative", **about
    )
    with ckptforge.open(tmp_path / "new") as model:
        assert model.keys() == tensors.keys()
        assert all(np.array_equal(model[name][...], one) for name, one in tensors.items())
    for place in (tmp_path / "new", tmp_path / "new" / "iteration_00000000"):
        manifest = json.loads((place / "mindformers_adapter_config.json").read_text())
        assert manifest["lora_config"]["lora_alpha"] == 16
        assert manifest["lora_config"]["lora_rank"] == 4


def test_an_adapter_is_merged_into_an_iteration(tmp_path):
    tensors = lora_run(tmp_path / "run")
    base, name = MINDFORMERS / "qwen3_1rank_adamw" / "checkpoint", "decoder.layers.1.mlp.linear_fc2"
    ckptforge.convert(base, tmp_path / "new", to="mcore", merge_lora=tmp_path / "run")
    with ckptforge.open(base) as a, ckptforge.open(tmp_path / "new") as b:
        product = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] * np.float32(4)
        found, weight = b[f"{name}.weight"][...], a[f"{name}.weight"][...]
        assert np.allclose(found, weight + product, rtol=1e-6, atol=1e-6)
        assert not np.allclose(found, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "v2"}, "format is 'v2', expected 'mindformers_pynative_lora_adapter_v1'"),
        ({"lora_config": None}, "lora_config is None, expected keys and values"),
        ({"lora_config": {"lora_rank": "4"}}, "lora_config.lora_rank is '4', expected an integer"),
    ],
)
def test_a_mistaken_description_of_an_adapter_is_refused(tmp_path, change, message):
    lora_run(tmp_path / "run")
    for path in tmp_path.rglob("mindformers_adapter_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=message):
        ckptforge.to_torch(tmp_path / "run", tmp_path / "peft", model="qwen3")


@settings(max_examples=400, deadline=None)
@given(layouts(), st.data())
def test_metadata_says_of_any_mesh_who_holds_what(tmp_path_factory, layout, data):
    shape = layout.shape_of_whole(tuple(data.draw(st.integers(1, 2)) for _ in layout.tensor_map))
    spec = TensorSpec("a 'name', with\\nall", BY_NAME["float32"], shape)
    try:
        folded = describing.folded(spec, layout)
    except PlanError:
        return  # no axis can be split so
    first = data.draw(st.integers(0, 3)) * layout.devices
    boxes = {first + device: layout.box(shape, device) for device in range(layout.devices)}
    cut = describing.CutTensor(spec=spec, layout=folded, ranks=tuple(boxes), boxes=boxes)
    version = data.draw(st.sampled_from(list(VERSIONS.values())))
    files = {spec.name: {rank: f"model-{rank}.safetensors" for rank in boxes}}
    path = tmp_path_factory.getbasetemp() / "metadata.json"
    path.write_bytes(describing.metadata_json([cut], files, version))
    (found,) = read_metadata(path).values()
    assert found.shape == shape and math.prod(found.cuts) == len(set(boxes.values()))
    assert {rank: found.box_of(rank) for rank in boxes} == boxes
    for number, holders in found.slices.items():
        assert {cut.number(boxes[holder.storage_rank]) for holder in holders} == {number}
    tensor = json.loads(path.read_text())["state_dict_metadata"][spec.name]
    for rank, box in boxes.items():
        assert by_layout(tensor, rank - first) == tuple(slice(*side) for side in box)


CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek3": "DeepseekV3ForCausalLM",
}


def hub_config(run):
    """A config.json of transformers' for the model of a run."""
    described = json.loads((MINDFORMERS / run / "expected.json").read_text())["model_config"]
    kind = described.pop("model")
    kind = "qwen3_moe" if kind.startswith("qwen3") and "moe" in kind else kind
    if kind != "deepseek3":
        head = full(run)["decoder.layers.0.self_attention.q_layernorm.weight"].shape[0]
        described = {"head_dim": head, **described}
    model_type = "deepseek_v3" if kind == "deepseek3" else kind
    described.pop("seq_length", None)
    about = {"architectures": [CLASSES[kind]], "model_type": model_type}
    return {**described, **about, "tie_word_embeddings": False}


@pytest.mark.parametrize("run", RUNS)
def test_transformers_loads_a_run_and_it_goes_back(tmp_path, run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(hub_config(run)))
    root = MINDFORMERS / run / "checkpoint"
    ckptforge.to_torch(root, tmp_path / "hub", config=tmp_path / "config.json")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hub",
        output_loading_info=True,
        dtype="auto",
        experts_implementation="eager",  # torch groups matrices only of larger sizes
    )
    # MindFormers' network was trained without them, and a note says so
    missing = {name for name in info["missing_keys"] if "_a_layernorm" not in name}
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.isfinite(model(torch.arange(4)[None]).logits).all()
    with ckptforge.open(root) as source:
        layout = source.layout
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "back", layout=layout, format="mindformers")
    expected = json.loads((MINDFORMERS / run / "expected.json").read_text())["tensors"]
    counters = ("fi_accu", "expert_load")
    weights = {
        name: bits
        for name, bits in full(run).items()
        if expected[name]["kind"] == "model" and not name.endswith(counters)
    }
    same(assembled(tmp_path / "back"), weights)
