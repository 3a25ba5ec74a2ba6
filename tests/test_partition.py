"""Partitions: device layouts by arithmetic, strategy files against MindSpore's, merge, split and
reshard against its tools."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.boxes import full_box
from ckptforge.covering import uncovered
from ckptforge.errors import (
    CkptforgeError,
    FormatError,
    InputNotFoundError,
    OutputError,
    PlanError,
    UsageError,
)
from ckptforge.parallel.device_layout import DeviceLayout
from ckptforge.parallel.strategy_files import make_strategy, read_strategy, strategy_bytes
from tests.helpers import FIXTURES, HUB, MINDSPORE, contents, tiny_config, write_hub

STRATEGIES = MINDSPORE / "strategies"
SHARDED = MINDSPORE / "sharded"
CONFIGURATIONS = sorted(path.name for path in SHARDED.iterdir())


@st.composite
def layouts(draw):
    matrix = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    axes = draw(st.permutations(range(len(matrix))))
    rank = draw(st.integers(1, 3))
    tensor_map = [[] for _ in range(rank)]
    for axis in axes[: draw(st.integers(0, len(axes)))]:
        tensor_map[draw(st.integers(0, rank - 1))].append(axis)
    layout = DeviceLayout(matrix, tuple(map(tuple, tensor_map)))
    divisors = [n for n in range(1, layout.replicas + 1) if layout.replicas % n == 0]
    return replace(layout, optimizer_shards=draw(st.sampled_from([0, -1, *divisors])))


@settings(max_examples=300)
@given(layouts(), st.data())
def test_the_boxes_of_a_stage_cover_the_tensor_and_replicas_are_equal(layout, data):
    assert layout.problem() is None
    part = tuple(data.draw(st.integers(1, 3)) for _ in layout.tensor_map)
    full = layout.shape_of_whole(part)
    assert layout.shape_of_parts(full) == part
    boxes = [layout.box(full, device) for device in range(layout.devices)]
    assert uncovered(full_box(full), sorted(set(boxes))) is None
    copies = layout.replicas // layout.optimizer_parts
    assert all(boxes.count(box) == copies for box in set(boxes))


@given(layouts(), st.data())
def test_boxes_are_those_of_slicing_by_hand(layout, data):
    """Cut along the tensor map one device axis after the other, then by replica, with numpy
    alone."""
    full = layout.shape_of_whole(tuple(data.draw(st.integers(1, 2)) for _ in layout.tensor_map))
    numbers = np.arange(math.prod(full)).reshape(full)
    for device, coordinate in enumerate(np.ndindex(*layout.device_matrix)):
        part = numbers
        for dim, axes in enumerate(layout.tensor_map):
            for axis in axes:
                part = np.split(part, layout.device_matrix[-1 - axis], dim)[coordinate[-1 - axis]]
        used = {axis for axes in layout.tensor_map for axis in axes}
        free = [i for i in range(len(coordinate)) if len(coordinate) - 1 - i not in used]
        replica = 0
        for i in free:
            replica = replica * layout.device_matrix[i] + coordinate[i]
        part = np.split(part, layout.optimizer_parts, 0)[replica % layout.optimizer_parts]
        assert np.array_equal(
            numbers[tuple(slice(*side) for side in layout.box(full, device))], part
        )


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["a.weight", "b", "layers.0.c"]), layouts(), min_size=1),
    st.integers(0, 3),
)
def test_strategy_files_are_read_back(tmp_path_factory, stage, number):
    path = tmp_path_factory.mktemp("strategy")
    written = {
        name: replace(
            layout, optimizer_shards=layout.optimizer_shards if layout.optimizer_parts > 1 else 0
        )
        for name, layout in stage.items()
    }
    for i in range(number + 1):
        (path / f"stage_{i}.ckpt").write_bytes(strategy_bytes(i, stage))
    if len({layout.devices for layout in stage.values()}) > 1:
        with pytest.raises(FormatError, match="different numbers of devices"):
            read_strategy(path)
        return
    assert read_strategy(path).stages == (written,) * (number + 1)
    shutil.rmtree(path)


@pytest.mark.parametrize("name", ["mp8", "dp4mp2ep2", "dp4mp2ep2_opt2"])
def test_json_and_protobuf_say_the_same(name):
    binary, text = read_strategy(STRATEGIES / name), read_strategy(STRATEGIES / f"{name}_json")
    assert (
        {key: replace(layout, full_shape=None) for key, layout in text.stages[0].items()},
    ) == binary.stages
    again = strategy_bytes(0, text.stages[0], as_json=True)
    assert again == strategy_bytes(0, text.stages[0], as_json=True) and b"tensor_shape" in again


def test_merged_and_real_strategies():
    assert (
        read_strategy(STRATEGIES / "pp2mp2_merged.ckpt").stages
        == read_strategy(STRATEGIES / "pp2mp2").stages
    )
    real = read_strategy(FIXTURES / "peer" / "real_strategy_8_npus.ckpt")
    assert (real.ranks, len(real.stages), real.devices) == (8, 2, 4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_merge_and_split_equal_mindspores(tmp_path, name):
    result = ckptforge.merge(
        SHARDED / name, tmp_path / "full.ckpt", strategy_dir=STRATEGIES / name, check_replicas=True
    )
    assert result.tensors == 73 and contents(tmp_path / "full.ckpt") == contents(
        MINDSPORE / "full.ckpt"
    )
    # with stages MindSpore begins with the last one, the original had no stages
    if "pp" not in name:
        assert (tmp_path / "full.ckpt").read_bytes() == (MINDSPORE / "full.ckpt").read_bytes()
    ckptforge.split(
        MINDSPORE / "full.ckpt", tmp_path / "split", strategy_dir=STRATEGIES / name, prefix="ckpt_"
    )
    for path in sorted((SHARDED / name).rglob("*.ckpt")):
        assert (
            tmp_path / "split" / path.relative_to(SHARDED / name)
        ).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("source", CONFIGURATIONS)
@pytest.mark.parametrize("target", CONFIGURATIONS)
def test_every_pair_reshards(tmp_path, source, target):
    options = {
        "src_strategy_dir": STRATEGIES / source,
        "dst_strategy_dir": STRATEGIES / target,
        "prefix": "ckpt_",
    }
    ckptforge.reshard(SHARDED / source, tmp_path / "out", **options)
    for path in sorted((SHARDED / target).rglob("*.ckpt")):
        assert contents(tmp_path / "out" / path.relative_to(SHARDED / target)) == contents(path)


def test_devices_need_not_divide_each_other(tmp_path):
    """8 ranks → 6 → 4 → one, with strategies of our own."""
    shapes = {
        name: shape
        for name, (_, shape, _) in contents(MINDSPORE / "full.ckpt").items()
        if "." in name
    }
    rows = {3: "feed_forward.ffn", 2: "attention.w"}
    for devices, cut in ((6, 3), (4, 4)):
        stage = {}
        for name, shape in shapes.items():
            tensor_map = [()] * len(shape)
            fitting = [i for i, n in enumerate(shape) if n % cut == 0]
            if rows.get(len(shape), "-") in name and fitting:
                tensor_map[fitting[0]] = (0,)
            stage[name] = DeviceLayout(
                (devices // cut, cut) if devices > cut else (cut,), tuple(tensor_map)
            )
        assert any(any(layout.tensor_map) for layout in stage.values())
        (tmp_path / f"{devices}.ckpt").write_bytes(strategy_bytes(0, stage))
    ckptforge.reshard(
        SHARDED / "mp8",
        tmp_path / "six",
        src_strategy_dir=STRATEGIES / "mp8",
        dst_strategy_dir=tmp_path / "6.ckpt",
    )
    ckptforge.reshard(
        tmp_path / "six",
        tmp_path / "four",
        src_strategy_dir=tmp_path / "6.ckpt",
        dst_strategy_dir=tmp_path / "4.ckpt",
    )
    assert len(list((tmp_path / "six").glob("rank_*"))) == 6
    ckptforge.merge(
        tmp_path / "four",
        tmp_path / "full.ckpt",
        strategy_dir=tmp_path / "4.ckpt",
        check_replicas=True,
    )
    assert contents(tmp_path / "full.ckpt") == contents(MINDSPORE / "full.ckpt")


def test_redundancy_removed_ranks_are_merged(tmp_path):
    ckptforge.merge(
        MINDSPORE / "dp4mp2ep2_dedup", tmp_path / "full.ckpt", strategy_dir=STRATEGIES / "dp4mp2ep2"
    )
    full = contents(MINDSPORE / "full.ckpt")
    merged = contents(tmp_path / "full.ckpt")
    assert merged and all(merged[name] == full[name] for name in merged)


def any_job(data, directory, full):
    """Strategy files of a job that cuts these tensors anyhow; None where a stage has none."""
    devices = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    matrices = [
        m
        for m in ((devices,), (2, devices // 2), (devices // 2, 2), (2, 2, devices // 4))
        if math.prod(m) == devices and 0 not in m
    ]
    stages = data.draw(st.integers(1, 2))
    job = [{} for _ in range(stages)]
    for name, (_, shape, _) in full.items():
        matrix = data.draw(st.sampled_from(matrices))
        tensor_map = [()] * len(shape)
        for axis in range(len(matrix)):
            dim = data.draw(st.integers(0, len(shape)))
            if dim < len(shape):
                grown = [*tensor_map]
                grown[dim] = (*grown[dim], axis)
                if DeviceLayout(matrix, tuple(grown)).shape_of_parts(shape) is not None:
                    tensor_map = grown
        layout = DeviceLayout(matrix, tuple(tensor_map))
        sharded = replace(layout, optimizer_shards=-1)
        if shape and sharded.shape_of_parts(shape) is not None and data.draw(st.booleans()):
            layout = sharded
        for stage in data.draw(st.sampled_from([[0], [stages - 1], list(range(stages))])):
            job[stage][name] = layout
    if not all(job):
        return None
    directory.mkdir()
    for i, stage in enumerate(job):
        (directory / f"{i}.ckpt").write_bytes(strategy_bytes(i, stage))
    return directory


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_strategy_splits_and_merges_any_checkpoint(tmp_path_factory, data):
    tmp = tmp_path_factory.mktemp("any")
    full = contents(MINDSPORE / "full.ckpt")
    if (job := any_job(data, tmp / "s", full)) is None:
        return
    ending = data.draw(st.sampled_from(["ckpt", "safetensors"]))
    ckptforge.split(MINDSPORE / "full.ckpt", tmp / "ranks", strategy_dir=job, format=ending)
    ckptforge.merge(tmp / "ranks", tmp / "merged.ckpt", strategy_dir=job, check_replicas=True)
    assert contents(tmp / "merged.ckpt") == full
    shutil.rmtree(tmp)


@pytest.mark.parametrize("layout", ["dense", "gmm", "dense-qkv-r1.4", "gmm-v3"])
@pytest.mark.parametrize("dtype", ["keep", "fp32"])
def test_hugging_face_to_ranks_and_back(tmp_path, layout, dtype):
    """Layout change, cast and split in one pass; the shards are what a split of the whole
    checkpoint gives."""
    config = tiny_config(
        hidden_size=16, intermediate_size=24, num_local_experts=4, head_dim=4, vocab_size=8
    )
    write_hub(tmp_path / "hub", config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "whole.ckpt", layout=layout, dtype=dtype)
    stages: list[dict[str, DeviceLayout]] = [{}, {}]
    for name, (_, shape, _) in contents(tmp_path / "whole.ckpt").items():
        sharded = DeviceLayout(
            (2, 2), tuple((i % 2,) if i < 2 and n % 2 == 0 else () for i, n in enumerate(shape))
        )
        layout_of = sharded if len(shape) > 1 else DeviceLayout((2, 2), ((),) * len(shape), -1)
        stages[1 if "layers.1" in name or "lm_head" in name or "norm_out" in name else 0][name] = (
            layout_of
        )
    (tmp_path / "s").mkdir()
    for i, stage in enumerate(stages):
        (tmp_path / "s" / f"{i}.ckpt").write_bytes(strategy_bytes(i, stage))
    ckptforge.to_ms(
        tmp_path / "hub",
        tmp_path / "ranks",
        layout=layout,
        dtype=dtype,
        strategy_dir=tmp_path / "s",
        memory="1MiB",
    )
    ckptforge.split(tmp_path / "whole.ckpt", tmp_path / "split", strategy_dir=tmp_path / "s")
    for rank in range(8):
        assert contents(tmp_path / "ranks" / f"rank_{rank}") == contents(
            tmp_path / "split" / f"rank_{rank}"
        )
    back = "keep" if dtype == "keep" else "bf16"
    ckptforge.to_torch(
        tmp_path / "ranks", tmp_path / "back", strategy_dir=tmp_path / "s", dtype=back
    )
    if dtype == "keep":
        assert contents(tmp_path / "back") == contents(tmp_path / "hub")
    else:
        assert {name: t[1] for name, t in contents(tmp_path / "back").items()} == {
            n: t[1] for n, t in contents(tmp_path / "hub").items()
        }


def test_a_merge_casts_weights_and_only_those(tmp_path):
    result = ckptforge.merge(
        SHARDED / "mp8",
        tmp_path / "x.ckpt",
        strategy_dir=STRATEGIES / "mp8",
        dtype="fp16",
        weights_only=True,
    )
    assert result.tensors == 23 and {
        dtype for dtype, _, _ in contents(tmp_path / "x.ckpt").values()
    } == {"float16"}
    assert ("model.layers.#.attention.wq.weight", "bfloat16", "float16") in result.audit.counts


@pytest.mark.parametrize(
    ("shards", "strategy", "message"),
    [
        ("mp8", "mp4", "holds 8 ranks, but .* 4 \\(1 stage of 4 devices\\)"),
        ("mp8", "dp4mp2ep2", "contradict each other"),
        ("mp8", "mp8_gmm", "contradict each other"),
        ("dp4mp2ep2_opt2", "dp4mp2ep2", "contradict each other"),
        ("dp2mp2", "mp4", "contradict each other"),
        ("pp2mp2", "mp4", "no rank holds part"),
        ("mp8", "dp4mp2ep2_json", "the strategy says"),
    ],
)
def test_the_wrong_strategy_is_refused(tmp_path, shards, strategy, message):
    job, given = SHARDED / shards, {"strategy_dir": STRATEGIES / strategy}
    with pytest.raises(FormatError, match=f"{message}|differs from its replica"):
        ckptforge.merge(job, tmp_path / "x.ckpt", **given)
    with pytest.raises(FormatError, match=message):  # whatever replicas hold
        ckptforge.merge(job, tmp_path / "x.ckpt", allow_unequal_replicas=True, **given)
    assert not list(tmp_path.iterdir())


def damaged_jobs():
    def missing_rank(job):
        shutil.rmtree(job / "rank_3")

    def other_step(job):
        for rank in range(8):
            (job / f"rank_{rank}" / f"ckpt_{rank}.ckpt").rename(
                job / f"rank_{rank}" / f"m-1_{2 if rank == 5 else 1}.ckpt"
            )

    def other_shape(job):
        shutil.copy(SHARDED / "dp2mp2" / "rank_1" / "ckpt_1.ckpt", job / "rank_1" / "ckpt_1.ckpt")

    def other_dtype(job):
        source, target = job / "rank_2" / "ckpt_2.ckpt", job / "rank_2" / "new.ckpt"
        ckptforge.convert(MINDSPORE / "full.ckpt", target, to="dense", dtype="fp16")
        ckptforge.split(target, job / "tmp", strategy_dir=STRATEGIES / "mp8")
        shutil.copy(job / "tmp" / "rank_2" / "checkpoint_2.ckpt", source)
        target.unlink()
        shutil.rmtree(job / "tmp")

    def truncated(job):
        path = job / "rank_7" / "ckpt_7.ckpt"
        path.write_bytes(path.read_bytes()[:-1])

    return {
        missing_rank: "ranks are missing:\n  rank_3",
        other_step: "different steps: m-1_1.ckpt of rank 0, m-1_2.ckpt of rank 5",
        other_shape: "ckpt_1.ckpt: .* but bfloat16",
        other_dtype: "ckpt_2.ckpt: .* is float16 .*, but bfloat16",
        truncated: "ckpt_7.ckpt: .*truncated",
    }


@pytest.mark.parametrize(
    ("damage", "message"), damaged_jobs().items(), ids=lambda item: getattr(item, "__name__", "")
)
def test_damaged_jobs_are_refused(tmp_path, damage, message):
    shutil.copytree(SHARDED / "mp8", tmp_path / "job")
    damage(tmp_path / "job")
    with pytest.raises(CkptforgeError, match=message):
        ckptforge.merge(tmp_path / "job", tmp_path / "x.ckpt", strategy_dir=STRATEGIES / "mp8")
    assert not (tmp_path / "x.ckpt").exists()


def change_byte(path, tensor):
    from ckptforge.formats.mindspore_ckpt import read_index

    offset = read_index(path).tensors[tensor].extents[0].offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_replicas_and_common_tensors_that_differ(tmp_path):
    shutil.copytree(SHARDED / "mp8", tmp_path / "job")
    change_byte(tmp_path / "job" / "rank_5" / "ckpt_5.ckpt", "model.norm_out.weight")
    arguments = {"strategy_dir": STRATEGIES / "mp8"}
    taken = ckptforge.merge(
        tmp_path / "job", tmp_path / "lowest.ckpt", allow_unequal_replicas=True, **arguments
    )
    assert taken.tensors and ckptforge.inspect(tmp_path / "job", **arguments).tensors
    for more in ({}, {"check_replicas": True}):
        with pytest.raises(
            FormatError,
            match=r"rank_5/ckpt_5.ckpt: 'model.norm_out.weight' differs from its replica in .*"
            "different steps.*allow_unequal_replicas=True",
        ):
            ckptforge.merge(tmp_path / "job", tmp_path / "x.ckpt", **more, **arguments)
    with pytest.raises(UsageError, match="allow_unequal_replicas=True can't be given|refuses repl"):
        ckptforge.merge(
            tmp_path / "job",
            tmp_path / "x.ckpt",
            check_replicas=True,
            allow_unequal_replicas=True,
            **arguments,
        )
    change_byte(tmp_path / "job" / "rank_6" / "ckpt_6.ckpt", "global_step")
    with pytest.raises(
        FormatError,
        match=r"'global_step' isn't in the strategy .* every rank must "
        r"hold the same",
    ):
        ckptforge.merge(
            tmp_path / "job", tmp_path / "y.ckpt", allow_unequal_replicas=True, **arguments
        )


def test_a_strategy_that_does_not_fit_the_tensors(tmp_path):
    strategy = make_strategy(tmp_path, {0: {"lm_head.weight": DeviceLayout((3,), ((0,), ()))}})
    (tmp_path / "s.ckpt").write_bytes(strategy_bytes(0, strategy.stages[0]))
    with pytest.raises(
        PlanError,
        match=r"'lm_head.weight' has shape \[80, 32\], but .*device "
        r"matrix \[3\]",
    ):
        ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "out", strategy_dir=tmp_path / "s.ckpt")
    with pytest.raises(UsageError, match="needs a directory"):
        ckptforge.split(
            MINDSPORE / "full.ckpt", tmp_path / "out.ckpt", strategy_dir=tmp_path / "s.ckpt"
        )
    with pytest.raises(PlanError, match="isn't a strategy for this model"):
        ckptforge.to_ms(HUB, tmp_path / "out", strategy_dir=STRATEGIES / "mp8_json")


def bad_strategies():
    good = DeviceLayout((2, 2), ((0,), ()))
    return {
        "stages": ({1: {"a": good}}, "stage 0 is missing"),
        "devices": (
            {0: {"a": good, "b": DeviceLayout((2,), ((0,),))}},
            "different numbers of devices",
        ),
        "empty": ({0: {}}, "holds no parameter layouts"),
    }


@pytest.mark.parametrize("kind", bad_strategies())
def test_stages_that_do_not_belong_together(tmp_path, kind):
    stages, message = bad_strategies()[kind]
    for i, stage in stages.items():
        (tmp_path / f"{i}.ckpt").write_bytes(strategy_bytes(i, stage))
    with pytest.raises(FormatError, match=message):
        read_strategy(tmp_path)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (DeviceLayout((2,), ((1,),)), "names device axes"),
        (DeviceLayout((2,), ((0,), (0,))), "uses a device axis twice"),
        (DeviceLayout((2,), ((),), 3), "doesn't fit 2 replicas"),
        (DeviceLayout((0,), ((),)), "sizes below 1"),
    ],
)
def test_impossible_layouts(layout, message):
    assert message in layout.problem()


def test_an_impossible_layout_in_a_file_is_refused(tmp_path):
    (tmp_path / "s.ckpt").write_bytes(strategy_bytes(0, {"a": DeviceLayout((2,), ((0,), (0,)))}))
    with pytest.raises(FormatError, match=r"s.ckpt: parameter 'a': .*twice"):
        read_strategy(tmp_path / "s.ckpt")


def test_bad_strategy_files(tmp_path):
    for name, message in (
        ("strategy_garbage.ckpt", "wire type"),
        ("strategy_truncated.ckpt", "truncated"),
    ):
        with pytest.raises(FormatError, match=message):
            read_strategy(MINDSPORE / "bad" / name)
    shutil.copy(STRATEGIES / "mp8" / "rank_0.ckpt", tmp_path / "a.ckpt")
    shutil.copy(STRATEGIES / "mp4" / "rank_0.ckpt", tmp_path / "b.ckpt")
    with pytest.raises(FormatError, match="a.ckpt and b.ckpt disagree on stage 0"):
        read_strategy(tmp_path)
    shutil.copy(STRATEGIES / "mp8_json" / "rank_0.json", tmp_path / "c.json")
    with pytest.raises(FormatError, match="keep one kind"):
        read_strategy(tmp_path)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(InputNotFoundError, match="no s"):
            read_strategy(path)
    for text in (
        "{}",
        '{"parallel_layout_item": {"a": {"dev_matrix": [2], "tensor_map": ["x"]}}}',
        "[]",
        '{"parallel_layout_item": 3}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FormatError, match=r"bad.json"):
            read_strategy(tmp_path / "bad.json")


@pytest.mark.parametrize("key", ["field", "param_split_shape", "indices_offset"])
def test_a_manual_split_is_refused_by_name(tmp_path, key):
    item = (
        f'{{"dev_matrix": [2], "tensor_map": [0], "{key}": {"1" if key == "field" else "[[1]]"}}}'
    )
    (tmp_path / "s.json").write_text(f'{{"parallel_layout_item": {{"emb": {item}}}}}')
    with pytest.raises(FormatError, match=rf"'emb' has {key}.*can't honour"):
        read_strategy(tmp_path / "s.json")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["mp8/rank_0.ckpt", "pp2mp2/rank_2.ckpt", "mp8_json/rank_0.json"]), st.data()
)
def test_damaged_strategies_end_in_our_errors_only(tmp_path_factory, name, data):
    raw = bytearray((STRATEGIES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("s") / name.replace("/", "_")
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        read_strategy(path)
    except CkptforgeError as error:
        assert str(path) in str(error)


def test_parameters_that_the_input_lacks_are_said(tmp_path):
    full = MINDSPORE / "full.ckpt"
    ckptforge.convert(full, tmp_path / "w.ckpt", to="dense", weights_only=True)
    assert not ckptforge.split(
        tmp_path / "w.ckpt", tmp_path / "out", strategy_dir=STRATEGIES / "mp8"
    ).notes
    assert not ckptforge.split(full, tmp_path / "all", strategy_dir=STRATEGIES / "mp8").notes
    strategy = read_strategy(STRATEGIES / "mp8")
    more = dict(strategy.stages[0])
    more |= {
        "model.more.weight": more["lm_head.weight"],
        "adam_m.model.more.weight": more["lm_head.weight"],
    }
    (tmp_path / "more.ckpt").write_bytes(strategy_bytes(0, more))
    for name, count in ((full, 2), (tmp_path / "w.ckpt", 1)):
        notes = ckptforge.split(
            name, tmp_path / f"more{count}", strategy_dir=tmp_path / "more.ckpt"
        ).notes
        assert any(
            f"{count} parameter{'s' * (count > 1)} of" in note
            and "in the input" in note
            and "model.more" in note
            for note in notes
        )


def test_ranks_are_not_overwritten(tmp_path):
    ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "out", strategy_dir=STRATEGIES / "mp8")
    with pytest.raises(OutputError, match="exists already"):
        ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "out", strategy_dir=STRATEGIES / "mp8")
