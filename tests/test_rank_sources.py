"""Rank directories as a source without strategy files: by the manifest that was written with them,
or by the parallel configuration of their job. Against MindSpore's own shards, and against what was
cut."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.checkpoints.manifest import read_manifest
from ckptforge.cli.app import cli
from ckptforge.errors import (
    CkptforgeError,
    ConfigError,
    FormatError,
    LayoutError,
    ModelUnknownError,
    PlanError,
    UsageError,
)
from ckptforge.parallel.cut import cut_json, cut_of, read_cut, recorded_cut
from ckptforge.parallel.strategy_files import make_strategy
from tests.helpers import HUB, MINDSPORE, contents, tiny_config, write_hub
from tests.test_partition import layouts
from tests.test_strategies import FIXTURE_NETWORK, FIXTURES, configuration, jobs

SHARDED, STRATEGIES, FULL = MINDSPORE / "sharded", MINDSPORE / "strategies", MINDSPORE / "full.ckpt"


@pytest.mark.parametrize("name", ["dp2mp2", "dp4mp2ep2_opt2", "mp8", "pp2mp2"])
def test_mindspores_shards_merge_by_their_parallel_configuration_as_by_their_strategy(
    tmp_path, name
):
    """Of the fixture no config.json is known: full shapes follow from the parts alone, the
    optimizer's state among them."""
    config = configuration(tmp_path / "c.json", **FIXTURES[name], shard=FIXTURE_NETWORK)
    ckptforge.merge(SHARDED / name, tmp_path / "by_strategy.ckpt", strategy_dir=STRATEGIES / name)
    ckptforge.merge(
        SHARDED / name, tmp_path / "by_config.ckpt", parallel_config=config, check_replicas=True
    )
    assert (tmp_path / "by_config.ckpt").read_bytes() == (
        tmp_path / "by_strategy.ckpt"
    ).read_bytes()
    assert contents(tmp_path / "by_config.ckpt") == contents(FULL)


def test_shards_without_redundancy_merge_by_their_parallel_configuration(tmp_path):
    config = configuration(tmp_path / "c.json", **FIXTURES["dp4mp2ep2"], shard=FIXTURE_NETWORK)
    ckptforge.merge(MINDSPORE / "dp4mp2ep2_dedup", tmp_path / "m.ckpt", parallel_config=config)
    ckptforge.merge(
        MINDSPORE / "dp4mp2ep2_dedup", tmp_path / "s.ckpt", strategy_dir=STRATEGIES / "dp4mp2ep2"
    )
    assert contents(tmp_path / "m.ckpt") == contents(tmp_path / "s.ckpt")


def test_another_configuration_than_that_of_mindspores_shards_gives_no_other_model(tmp_path):
    """Each of the fixtures read by the configuration of each other is refused; with stages that
    weren't, the model is the same."""
    named = ["dp2mp2", "dp4mp2ep2_opt2", "mp8", "pp2mp2"]
    more = {
        "dp8": {"dp": 8},
        "dp4": {"dp": 4},
        "dp4mp2": {"dp": 4, "mp": 2},
        "pp4": {"pp": 2, "dp": 2},
    }
    for name in named:
        for other, keys in {**{one: FIXTURES[one] for one in named}, **more}.items():
            config = configuration(tmp_path / "c.json", **keys, shard=FIXTURE_NETWORK)
            if other == name:
                continue
            if {name, other} == {"dp2mp2", "pp2mp2"}:
                ckptforge.merge(
                    SHARDED / name, tmp_path / "m.ckpt", parallel_config=config, overwrite=True
                )
                assert contents(tmp_path / "m.ckpt") == contents(FULL)
                continue
            with pytest.raises((FormatError, ConfigError, LayoutError)):
                ckptforge.merge(SHARDED / name, tmp_path / "x.ckpt", parallel_config=config)
    assert not (tmp_path / "x.ckpt").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(jobs())
def test_ranks_go_back_by_manifest_and_by_configuration(tmp_path_factory, job):
    """HF → ranks → HF without strategy files is the identity; from the parts alone it is too, or is
    refused."""
    config, model, layout = job
    work = tmp_path_factory.mktemp("job")
    write_hub(work / "hub", tiny_config(**model))
    file = configuration(work / "c.json", **config)
    ckptforge.to_ms(work / "hub", work / "ranks", layout=layout, parallel_config=file, workers=1)
    ranks = config["dp"] * config["mp"] * config["pp"]
    if ranks > 1:
        ckptforge.to_torch(work / "ranks", work / "back", workers=1)
        assert contents(work / "hub") == contents(work / "back")
    (work / "ranks/ckptforge.manifest.json").unlink()
    expected = contents(work / "hub")
    for given_config, out in ((work / "hub", "a"), (None, "b")):
        try:
            ckptforge.to_torch(
                work / "ranks",
                work / out,
                parallel_config=file,
                layout=layout,
                config=given_config,
                allow_no_config=True,
                model="mixtral",
                workers=1,
            )
        except CkptforgeError as error:
            # with the model's config.json nothing is left open
            assert given_config is None, str(error)
            assert re.search("config.json", str(error))
        else:
            assert contents(work / out) == expected
    shutil.rmtree(work)


def test_every_command_reads_ranks_by_their_manifest(tmp_path):
    config = configuration(tmp_path / "c.json", dp=2, mp=2, ep=2, pp=2)
    other = configuration(tmp_path / "d.json", mp=2)
    ranks = tmp_path / "ranks"
    written = ckptforge.to_ms(HUB, ranks, parallel_config=config)
    assert (written.facts["ranks"], written.facts["stages"]) == (8, 2)
    ckptforge.to_ms(HUB, tmp_path / "dense.ckpt")
    ckptforge.merge(ranks, tmp_path / "merged.ckpt", check_replicas=True)
    assert contents(tmp_path / "merged.ckpt") == contents(tmp_path / "dense.ckpt")
    ckptforge.to_torch(ranks, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in HUB.iterdir()} == {
        path.name: path.read_bytes()
        for path in (tmp_path / "back").iterdir()
        if path.name != "ckptforge.manifest.json"
    }
    ckptforge.reshard(ranks, tmp_path / "two", dst_parallel_config=other)
    assert (
        ckptforge.compare(tmp_path / "two", ranks).equal
        and ckptforge.compare(HUB, tmp_path / "two").equal
    )
    ckptforge.convert(tmp_path / "two", tmp_path / "gmm.ckpt", to="gmm", config=HUB)
    assert ckptforge.compare(HUB, tmp_path / "gmm.ckpt", layout_b="gmm").equal
    found = ckptforge.inspect(ranks)
    assert (found.model, found.layout, found.tensors) == ("mixtral", "dense", 23)
    embedding, *_, head = found.parts
    assert embedding.boxes.keys() == {0, 1, 2, 3} and head.boxes.keys() == {4, 5, 6, 7}
    ckptforge.strategy(tmp_path / "s", parallel_config=config, like=ranks)
    again = ckptforge.inspect(ranks, strategy_dir=tmp_path / "s")
    assert (again.parts, again.axes) == (found.parts, found.axes)


def test_every_command_takes_a_parallel_configuration_for_its_source(tmp_path):
    config = configuration(
        tmp_path / "c.json",
        dp=4,
        mp=2,
        ep=2,
        enable_parallel_optimizer=True,
        parallel_optimizer_threshold=0,
    )
    other = configuration(tmp_path / "d.json", mp=2)
    ranks = tmp_path / "ranks"
    ckptforge.to_ms(HUB, ranks, parallel_config=config)
    (ranks / "ckptforge.manifest.json").unlink()
    from_parts = {"config": HUB}
    ckptforge.to_ms(HUB, tmp_path / "dense.ckpt")
    ckptforge.merge(ranks, tmp_path / "merged.ckpt", parallel_config=config, **from_parts)
    assert contents(tmp_path / "merged.ckpt") == contents(tmp_path / "dense.ckpt")
    ckptforge.to_torch(ranks, tmp_path / "back", parallel_config=config, **from_parts)
    assert contents(tmp_path / "back") == contents(HUB)
    ckptforge.convert(
        ranks, tmp_path / "gmm.ckpt", to="gmm", src_parallel_config=config, **from_parts
    )
    ckptforge.reshard(
        ranks, tmp_path / "two", src_parallel_config=config, dst_parallel_config=other, **from_parts
    )
    for side in ("a", "b"):
        sides = (ranks, tmp_path / "two") if side == "a" else (tmp_path / "two", ranks)
        assert ckptforge.compare(*sides, config=HUB, **{f"parallel_config_{side}": config}).equal
    found = ckptforge.inspect(ranks, parallel_config=config, **from_parts)
    assert (found.model, found.tensors, len(found.parts[0].boxes)) == ("mixtral", 23, 8)
    for call in (
        lambda: ckptforge.merge(
            ranks, tmp_path / "x", parallel_config=config, strategy_dir=STRATEGIES / "mp8"
        ),
        lambda: ckptforge.convert(
            ranks,
            tmp_path / "x",
            to="gmm",
            src_parallel_config=config,
            src_strategy_dir=STRATEGIES / "mp8",
        ),
        lambda: ckptforge.compare(
            ranks, HUB, parallel_config_a=config, strategy_dir_a=STRATEGIES / "mp8"
        ),
    ):
        with pytest.raises(UsageError, match="both say how"):
            call()


def test_replicas_arent_taken_for_parts(tmp_path):
    """Ranks that all hold the whole model, read as if they were cut: the shapes would be those of a
    larger one."""
    write_hub(tmp_path / "hub", tiny_config())
    config = {name: configuration(tmp_path / f"{name}.json", **{name: 2}) for name in ("dp", "mp")}
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ranks", parallel_config=config["dp"])
    (tmp_path / "ranks/ckptforge.manifest.json").unlink()
    with pytest.raises(
        FormatError, match="every rank holds the same of .*, which .*mp.json says is cut"
    ):
        ckptforge.merge(tmp_path / "ranks", tmp_path / "m.ckpt", parallel_config=config["mp"])
    ckptforge.merge(tmp_path / "ranks", tmp_path / "m.ckpt", parallel_config=config["dp"])


def test_what_the_parts_leave_open_is_asked_for(tmp_path):
    """7 rows of a vocabulary may be all of it or the half of 14; the head, which is always cut,
    would tell, but it is tied."""
    write_hub(tmp_path / "hub", tiny_config(tie_word_embeddings=True))
    config = configuration(tmp_path / "c.json", mp=2, vocab_emb_dp=False)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "ranks", parallel_config=config)
    (tmp_path / "ranks/ckptforge.manifest.json").unlink()
    with pytest.raises(
        ConfigError,
        match=r"embedding_weight: \[7, 12\] may be a part of \[14, "
        r"12\] or \[7, 12\]|\[7, 12\] or \[14, 12\]",
    ):
        ckptforge.merge(tmp_path / "ranks", tmp_path / "m.ckpt", parallel_config=config)
    ckptforge.merge(
        tmp_path / "ranks", tmp_path / "m.ckpt", parallel_config=config, config=tmp_path / "hub"
    )
    assert contents(tmp_path / "m.ckpt")["model.tok_embeddings.embedding_weight"][1] == (7, 12)


def test_layouts_that_would_be_cut_in_different_ways_are_asked_for(tmp_path):
    """Parts (e, 8, 8) are of (e, 16, 8) as dense and of (e, 8, 16) as gmm."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "head_dim": 4, "num_key_value_heads": 2}
    write_hub(tmp_path / "hub", tiny_config(**sizes))
    config = configuration(tmp_path / "c.json", mp=2)
    for layout in ("dense", "gmm"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / layout, parallel_config=config, layout=layout)
        (tmp_path / layout / "ckptforge.manifest.json").unlink()
        with pytest.raises(
            LayoutError,
            match="dense and gmm, which .* cuts in different ways. Name the right one with layout",
        ):
            ckptforge.merge(
                tmp_path / layout,
                tmp_path / "m.ckpt",
                parallel_config=config,
                config=tmp_path / "hub",
            )
        ckptforge.merge(
            tmp_path / layout,
            tmp_path / f"{layout}.ckpt",
            parallel_config=config,
            config=tmp_path / "hub",
            layout=layout,
        )
        assert ckptforge.compare(
            tmp_path / "hub", tmp_path / f"{layout}.ckpt", layout_b=layout
        ).equal


def test_a_model_that_no_mapping_knows_needs_a_strategy(tmp_path):
    shutil.copytree(SHARDED / "dp2mp2", tmp_path / "ranks")
    for path in (tmp_path / "ranks").rglob("*.ckpt"):
        path.write_bytes(re.sub(rb"layers", rb"layerz", path.read_bytes()))
    config = configuration(tmp_path / "c.json", dp=2, mp=2)
    with pytest.raises(ModelUnknownError, match="strategy files with strategy_dir"):
        ckptforge.merge(tmp_path / "ranks", tmp_path / "m.ckpt", parallel_config=config)


def touched(ranks):
    os.utime(ranks / "rank_2/checkpoint_2.ckpt", ns=(1, 1))


def grown(ranks):
    file = ranks / "rank_1/checkpoint_1.ckpt"
    time = file.stat().st_mtime_ns
    shutil.copy(FULL, file)
    os.utime(file, ns=(time, time))


def swapped(ranks):
    (ranks / "rank_0").rename(ranks / "x")
    (ranks / "rank_1").rename(ranks / "rank_0")
    (ranks / "x").rename(ranks / "rank_1")


def trained_on(ranks):
    for rank in range(4):
        shutil.copy2(
            ranks / f"rank_{rank}/checkpoint_{rank}.ckpt", ranks / f"rank_{rank}/job-1_20.ckpt"
        )
        (ranks / f"rank_{rank}/checkpoint_{rank}.ckpt").rename(ranks / f"rank_{rank}/job-1_10.ckpt")


def half(ranks):
    for rank in (2, 3):
        shutil.rmtree(ranks / f"rank_{rank}")


def without(ranks):
    (ranks / "ckptforge.manifest.json").unlink()


def older(ranks):
    path = ranks / "ckptforge.manifest.json"
    content = json.loads(path.read_text())
    del content["cut"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (touched, "rank_2/checkpoint_2.ckpt was changed, or copied without its time"),
        (grown, "rank_1/checkpoint_1.ckpt has [0-9]+ bytes, [0-9]+ were written"),
        (swapped, "rank_0/checkpoint_1.ckpt isn't among the 4 files that its manifest names"),
        (trained_on, "rank_0/job-1_20.ckpt isn't among the 4 files"),
        (half, "which its manifest names, isn't among the 2 files there"),
        (without, "there is no ckptforge manifest"),
        (older, "its manifest doesn't say how they are cut"),
    ],
)
def test_a_manifest_is_only_trusted_for_what_was_written(tmp_path, change, reason):
    ranks = tmp_path / "ranks"
    ckptforge.to_ms(HUB, ranks, parallel_config=configuration(tmp_path / "c.json", dp=2, mp=2))
    ckptforge.merge(ranks, tmp_path / "before.ckpt")
    change(ranks)
    with pytest.raises(FormatError) as caught:
        ckptforge.merge(ranks, tmp_path / "m.ckpt")
    assert re.search(reason, str(caught.value)) and not (tmp_path / "m.ckpt").exists()
    found = ckptforge.inspect(ranks)
    assert re.search(reason, found.layout_reason) and found.parts == []
    assert found.model == ("mixtral" if change in (touched, swapped, half, older) else None)


@st.composite
def strategies(draw):
    """Stages of one job: tensors of some kinds, most cut like their kind and some otherwise, some
    not at all."""
    layout = draw(layouts())
    alike = [draw(layouts()) for _ in range(2)]
    choices = [None, layout, *(other for other in alike if other.devices == layout.devices)]
    stages, held = {}, []
    for stage in range(draw(st.integers(1, 4))):
        names = draw(
            st.lists(
                st.sampled_from([f"l.{i}.{kind}" for i in range(5) for kind in ("a", "b.1", "c#")]),
                unique=True,
            )
        )
        stages[stage] = {
            name: found for name in names if (found := draw(st.sampled_from(choices))) is not None
        }
        held.append(names)
    if not any(stages.values()):
        stages[0] = {"x": layout}
        held[0].append("x")
    return stages, held


@given(strategies())
def test_cuts_are_read_back_as_they_were(job):
    stages, held = job
    strategy = make_strategy(MINDSPORE, stages)
    content = json.loads(json.dumps(cut_json(cut_of(strategy, held))))
    assert read_cut(content).strategy(MINDSPORE, held).stages == strategy.stages


def test_the_cut_of_many_ranks_takes_no_more_than_that_of_few(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(num_hidden_layers=8))
    sizes = []
    for name, keys in (("few", {"dp": 2, "pp": 2}), ("many", {"dp": 128, "pp": 8})):
        config = configuration(tmp_path / "c.json", **keys)
        ckptforge.to_ms(
            tmp_path / "hub", tmp_path / name, parallel_config=config, no_hash=True, workers=1
        )
        manifest = read_manifest(tmp_path / name / "ckptforge.manifest.json")
        assert recorded_cut(manifest).ranks == keys["dp"] * keys["pp"] == len(manifest.files)
        sizes.append(len(json.dumps(manifest.cut)))
        assert manifest.path.stat().st_size < 40_000 + 150 * len(manifest.files)
    assert sizes[1] < 1.1 * sizes[0] < 4000
    ckptforge.merge(tmp_path / "many", tmp_path / "merged.ckpt")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "dense.ckpt")
    assert contents(tmp_path / "merged.ckpt") == contents(tmp_path / "dense.ckpt")


def test_every_rank_is_checked_against_the_manifest(tmp_path):
    """Ranks of a stage are recorded like its first, with hashes of their own."""
    ranks = tmp_path / "ranks"
    ckptforge.to_ms(
        HUB,
        ranks,
        parallel_config=configuration(tmp_path / "c.json", dp=2, mp=2, ep=2),
        format="safetensors",
    )
    found = ckptforge.check(ranks)
    assert found.equal and (found.files, found.tensors) == (4, 92)
    outputs = json.loads((ranks / "ckptforge.manifest.json").read_text())["outputs"]
    assert [output.get("like") for output in outputs] == [None] + [
        "rank_0/checkpoint_0.safetensors"
    ] * 3
    for rank in (0, 3):
        file = ranks / f"rank_{rank}/checkpoint_{rank}.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [
            str(file) in problem and "has other bytes" in problem
            for problem in ckptforge.check(ranks).problems
        ] == [True]
        file.write_bytes(content)
    path = ranks / "ckptforge.manifest.json"
    for wrong in ({"like": "x"}, {"hashes": "a"}, {"hashes": 3}, {"like": ["x"]}):
        path.write_text(
            json.dumps(
                {**json.loads(path.read_text()), "outputs": [outputs[0], {**outputs[1], **wrong}]}
            )
        )
        with pytest.raises(FormatError, match="isn't a ckptforge manifest"):
            ckptforge.check(ranks)


WRONG_CUTS = [
    {"stages": 0},
    {"stages": 10**6},
    {"devices": -1},
    {"devices": 10**9},
    {"devices": 8},
    {"rows": None},
    {"rows": [{"kind": "a"}]},
    {"rows": [{"kind": "a", "names": ["b"], "stages": [[0, 0]]}]},
    {"rows": [{"stages": [[0, 0]]}]},
    {"rows": [{"kind": "a", "stages": [[0, 7]]}]},
    {"rows": [{"kind": "a", "stages": [[1, 0]]}]},
    {"rows": [{"kind": 3, "stages": [[0, 0]]}]},
    {
        "rows": [
            {
                "kind": "a",
                "stages": [[0, 0]],
                "layout": {"device_matrix": [2, 2], "tensor_map": [[5]]},
            }
        ]
    },
    {
        "rows": [
            {"kind": "a", "stages": [[0, 0]], "layout": {"device_matrix": [2], "tensor_map": [[0]]}}
        ]
    },
    {
        "rows": [
            {"kind": "a", "stages": [[0, 0]], "layout": {"device_matrix": [0], "tensor_map": []}}
        ]
    },
    {
        "rows": [
            {
                "kind": "a",
                "stages": [[0, 0]],
                "layout": {"device_matrix": [4], "tensor_map": [[0]], "optimizer_shards": 3},
            }
        ]
    },
    {"rows": []},
    {"more": 1},
]


@pytest.mark.parametrize("change", WRONG_CUTS, ids=str)
def test_a_wrong_cut_is_one_error(tmp_path, change):
    ranks = tmp_path / "ranks"
    ckptforge.to_ms(HUB, ranks, parallel_config=configuration(tmp_path / "c.json", dp=2, mp=2))
    path = ranks / "ckptforge.manifest.json"
    content = json.loads(path.read_text())
    content["cut"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=re.escape(str(path))):
        ckptforge.merge(ranks, tmp_path / "m.ckpt")


def test_the_choice_of_a_step_is_one_note(tmp_path):
    for rank in range(4):
        source = SHARDED / f"dp2mp2/rank_{rank}/ckpt_{rank}.ckpt"
        (tmp_path / f"ranks/rank_{rank}").mkdir(parents=True)
        for step in (1, 2):
            shutil.copy(source, tmp_path / f"ranks/rank_{rank}/job-1_{step}.ckpt")
    result = ckptforge.merge(
        tmp_path / "ranks", tmp_path / "m.ckpt", strategy_dir=STRATEGIES / "dp2mp2"
    )
    (note,) = result.notes
    assert (
        "in 4 ranks the last of several checkpoints is taken, such as rank_0/job-1_2.ckpt" in note
    )


def test_a_cast_counts_a_value_once_however_many_ranks_hold_it(tmp_path):
    """Also where an interrupted run is gone on with."""
    whole = ckptforge.to_ms(HUB, tmp_path / "dense.ckpt", dtype="fp16").audit.counts
    config = configuration(tmp_path / "c.json", dp=4, mp=2, ep=2)
    ranks = ckptforge.to_ms(
        HUB, tmp_path / "ranks", dtype="fp16", parallel_config=config
    ).audit.counts
    assert ranks == whole
    stopped = []

    def stop(done, total):
        stopped.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(
            HUB, tmp_path / "again", dtype="fp16", parallel_config=config, progress=stop
        )
    resumed = ckptforge.to_ms(
        HUB, tmp_path / "again", dtype="fp16", parallel_config=config, resume=True
    )
    assert resumed.audit.counts == whole


def test_what_isnt_in_ranks_or_of_mindspore_is_said(tmp_path):
    config = configuration(tmp_path / "c.json", mp=2)
    with pytest.raises(UsageError, match="is a model of Hugging Face.*ckptforge.to_ms"):
        ckptforge.split(HUB, tmp_path / "o", parallel_config=config)
    with pytest.raises(UsageError, match="is a model of Hugging Face.*ckptforge.to_ms"):
        ckptforge.split(HUB, tmp_path / "o", strategy_dir=STRATEGIES / "mp8")
    with pytest.raises(UsageError, match="is cut into ranks already.*ckptforge.reshard"):
        ckptforge.split(SHARDED / "mp8", tmp_path / "o", parallel_config=config)
    with pytest.raises(
        FormatError, match="strategy_dir_b, or its parallel configuration with parallel_config_b"
    ):
        ckptforge.compare(HUB, SHARDED / "mp8")
    with pytest.raises(
        FormatError,
        match="src_strategy_dir, or its parallel configuration with src_parallel_config",
    ):
        ckptforge.reshard(SHARDED / "mp8", tmp_path / "o", dst_parallel_config=config)
    assert not (tmp_path / "o").exists()


def test_a_strategy_of_none_of_the_tensors_is_refused(tmp_path):
    """In another layout's names every rank would hold the whole model."""
    ckptforge.to_ms(HUB, tmp_path / "mcore.ckpt", layout="mcore")
    with pytest.raises(PlanError, match="covers none of the [0-9]+ tensors"):
        ckptforge.split(tmp_path / "mcore.ckpt", tmp_path / "o", strategy_dir=STRATEGIES / "mp8")


def test_a_part_that_no_rank_holds_is_named_as_an_index_is_written(tmp_path):
    with pytest.raises(
        FormatError,
        match=r"differs from its replica|no rank holds part \[0:\d+, \d+:\d+\]|\[\d+:\d+(, "
        r"\d+:\d+)*\] of",
    ):
        shutil.copytree(MINDSPORE / "dp4mp2ep2_dedup", tmp_path / "ranks")
        shutil.copy(
            tmp_path / "ranks/rank_7/c_7.safetensors", tmp_path / "ranks/rank_0/c_0.safetensors"
        )
        ckptforge.merge(
            tmp_path / "ranks", tmp_path / "m.ckpt", strategy_dir=STRATEGIES / "dp4mp2ep2"
        )


def test_the_commands_name_their_options_and_say_what_was_written(tmp_path):
    config = configuration(tmp_path / "c.json", dp=2, mp=2, ep=2, pp=2)
    ranks, run = tmp_path / "ranks", CliRunner()

    def ckpt(*words):
        return run.invoke(cli, [str(word) for word in words])

    assert (
        f"wrote {ranks}: 8 ranks in 2 stages, 92 tensors, "
        in ckpt("to-ms", HUB, ranks, "--parallel-config", config).output
    )
    written = json.loads(ckpt("merge", ranks, tmp_path / "m.ckpt", "--json").output)
    assert written["ok"] and written["tensors"] == 23 and "ranks" not in written
    (ranks / "ckptforge.manifest.json").unlink()
    command = [sys.executable, "-m", "ckptforge", "compare", str(HUB), str(ranks), "--json"]
    refused = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)["error"][
        "message"
    ]
    assert "--strategy-dir-b, or its parallel configuration with --parallel-config-b" in refused
    for words in (
        ("merge", ranks, tmp_path / "m2.ckpt", "--parallel-config", config),
        ("to-torch", ranks, tmp_path / "t", "--parallel-config", config, "--config", HUB),
        ("convert", ranks, tmp_path / "g.ckpt", "--to", "gmm", "--src-parallel-config", config),
        (
            "reshard",
            ranks,
            tmp_path / "r",
            "--src-parallel-config",
            config,
            "--dst-parallel-config",
            config,
        ),
        ("inspect", ranks, "--parallel-config", config),
        ("compare", HUB, ranks, "--parallel-config-b", config),
        ("compare", ranks, HUB, "--parallel-config-a", config),
    ):
        result = ckpt(*words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "m.ckpt").read_bytes() == (tmp_path / "m2.ckpt").read_bytes()
