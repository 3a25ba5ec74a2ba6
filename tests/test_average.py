"""Averages against numpy by hand: whatever the formats, layouts, splits, workers and memory."""

from __future__ import annotations

import json
import math
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import (
    CastOverflowError,
    InputNotFoundError,
    LayoutError,
    MissingTensorsError,
    UsageError,
)
from ckptforge.steps.counters import chances, normals
from ckptforge.surgery.schedules import schedule_weights
from ckptforge.surgery.slerp import slerp_weights
from ckptforge.surgery.weights import at_depth
from tests.helpers import MINDSPORE, contents, rounded, tiny_config, write_safetensors

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
EMBEDDING = "model.embed_tokens.weight"


def numpy_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def arrays_of(path):
    return {
        name: np.frombuffer(data, numpy_of(dtype)).reshape(shape)
        for name, (dtype, shape, data) in contents(path).items()
    }


def write_model(directory, seed, dtype="bfloat16", **changes):
    """A tiny Mixtral of normally distributed weights."""
    from ckptforge.tables.shipped import shipped_tables
    from ckptforge.verbs.synthetic import write_model as write

    table = next(table for table in shipped_tables() if table.name == "mixtral")
    write(directory, table, tiny_config(**changes), dtype=dtype, seed=seed)
    return directory


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    return [write_model(root / name, seed) for seed, name in enumerate("abc")]


def expected(paths, weights, dtype, base=None, scale=1.0):
    """Sums of float64 in the order of the terms, rounded once."""
    found = [arrays_of(path) for path in paths]
    if base is not None:
        weights = [scale * weight for weight in weights]
        found, weights = [arrays_of(base), *found], [1 - sum(weights), *weights]
    made = {}
    for name, first in found[0].items():
        total = None
        for arrays, weight in zip(found, weights, strict=True):
            part = arrays[name].astype("f8") * weight
            total = part if total is None else total + part
        made[name] = rounded(total, numpy_of(dtype) if dtype else first.dtype)
    return made


def half_a_unit(numbers):
    """Of the last place of float32, and what the order of sums of float64 may change."""
    return np.spacing(np.abs(numbers).astype("f4")) * 0.5000001 + 1e-14


def same(path, arrays):
    found = arrays_of(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def test_a_weighted_sum_is_that_of_numpy_in_float64(tmp_path, three):
    result = ckptforge.average(tmp_path / "out", three, weights=[0.5, 0.3, 0.2])
    same(tmp_path / "out", expected(three, [0.5, 0.3, 0.2], None))
    assert not result.notes and result.facts["source_tensors"] == 3 * result.tensors
    ckptforge.average(tmp_path / "third", three, dtype="fp32")
    same(tmp_path / "third", expected(three, [1 / 3] * 3, "float32"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mixtral"
    assert ckptforge.check(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "ckptforge.manifest.json").read_text())["surgery"]
    assert [one["weights"]["default"] for one in kept["average"]["inputs"]] == [[0.5], [0.3], [0.2]]


def test_models_are_averaged_in_python(tmp_path, three):
    a, b, c = map(ckptforge.open, three)
    made = a.average(b.as_layout("gmm"), c, weights=[0.5, 0.3, 0.2])
    made.save(tmp_path / "out")
    same(tmp_path / "out", expected(three, [0.5, 0.3, 0.2], None))
    assert made.config == a.config and a.average(b).layout == "hub"
    with pytest.raises(UsageError, match="expected 2 finite numbers"):
        a.average(b, weights=[1.0])


def test_formats_layouts_and_splits_may_differ(tmp_path, three):
    a, b, c = three
    config = tmp_path / "p.yaml"
    config.write_text("parallel_config: {model_parallel: 2, expert_parallel: 1}\n")
    ckptforge.to_ms(b, tmp_path / "ranks", dtype="fp32", parallel_config=config)
    ckptforge.to_ms(c, tmp_path / "c.safetensors", layout="gmm-v3")
    sources = [a, tmp_path / "ranks", tmp_path / "c.safetensors"]
    ckptforge.average(tmp_path / "out", sources, weights="0.2,0.5,0.3", dtype="fp32")
    wanted = expected(three, [0.2, 0.5, 0.3], "float32")
    same(tmp_path / "out", wanted)
    again = [sources[1], sources[0], sources[2]]
    options = {"weights": [0.5, 0.2, 0.3], "to": "hub"}
    ckptforge.average(tmp_path / "hub", again, **options)
    found = arrays_of(tmp_path / "hub")  # the first is float32, and so is the average
    turned = expected([b, a, c], [0.5, 0.2, 0.3], "float32")
    assert all(found[name].tobytes() == array.tobytes() for name, array in turned.items())
    ckptforge.average(
        tmp_path / "r4", sources, weights="0.2,0.5,0.3", dtype="fp32", to="gmm",
        dst_parallel_config=config,
    )  # fmt: skip
    ckptforge.to_ms(tmp_path / "out", tmp_path / "gmm.ckpt", layout="gmm")
    assert ckptforge.compare(tmp_path / "r4", tmp_path / "gmm.ckpt")


@settings(max_examples=10, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(list(CODES)), min_size=1, max_size=4),
    dtype=st.sampled_from(["keep", "fp32", "bf16", "fp16", "fp64"]),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_model_is_averaged_by_names_in_float64_and_rounded_once(
    tmp_path_factory, dtypes, dtype, shape, seed, data
):
    """With any number of workers and any memory."""
    root = tmp_path_factory.mktemp("any")
    random = np.random.default_rng(seed)
    arrays, paths = [], []
    for i, name in enumerate(dtypes):
        arrays.append(random.normal(size=shape).astype(numpy_of(name)))
        paths.append(root / f"{i}.safetensors")
        tensors = {"t": (CODES[name], list(shape), arrays[-1].tobytes())}
        write_safetensors(paths[-1], tensors)
    weights = [data.draw(st.floats(-2, 2)) for _ in dtypes]
    assume(any(weights))
    for i, (workers, memory) in enumerate(((1, "1MiB"), (8, "8MiB"), (2, "64MiB"))):
        out = root / f"out{i}.safetensors"
        ckptforge.average(out, paths, weights=weights, dtype=dtype, workers=workers, memory=memory)
    made = [contents(root / f"out{i}.safetensors")["t"] for i in range(3)]
    assert made[0] == made[1] == made[2]
    found = arrays_of(root / "out0.safetensors")["t"]
    parts = [array.astype("f8") * weight for array, weight in zip(arrays, weights, strict=True)]
    assert found.tobytes() == rounded(sum(parts[1:], parts[0]), found.dtype).tobytes()


def test_task_arithmetic_adds_scaled_differences_to_the_base(tmp_path, three):
    base, a, b = three
    ckptforge.average(tmp_path / "out", [a, b], base=base, scale=0.7, dtype="fp32")
    same(tmp_path / "out", expected([a, b], [1.0, 1.0], "float32", base, 0.7))


def test_weights_follow_kinds_and_layers(tmp_path, three):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[[input]]\nweight = { default = 0.5, 'w?' = '0.2 → 0.8', router = 0, l = 0.25 }\n"
        f"[[input]]\npath = {str(three[1])!r}\nweight = '1 -> 0.5'\n"
    )
    ckptforge.average(tmp_path / "out", [three[0]], recipe=recipe, dtype="fp32")
    a, b = (arrays_of(path) for path in three[:2])
    for name, array in arrays_of(tmp_path / "out").items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        mine = 0.5 if layer is None else 0.25
        if "gate" in name:
            mine = 0
        elif name.split(".")[-2] in ("w1", "w2", "w3", "q_proj", "k_proj", "v_proj", "o_proj"):
            mine = 0.2 if layer == 0 else 0.8
        other = 1.0 if layer in (None, 0) else 0.5
        total = a[name].astype("f8") * mine + b[name].astype("f8") * other
        assert (array == total.astype("f4")).all(), name


def test_kinds_that_lie_in_one_tensor_need_one_weight(tmp_path, three):
    ckptforge.convert(three[0], tmp_path / "fused", to="fused")
    recipe = tmp_path / "r.toml"
    recipe.write_text("[[input]]\nweight = { w1 = 0.5 }\n[[input]]\n")
    with pytest.raises(UsageError, match=r"gate_up_proj holds w1, w3, which have different"):
        ckptforge.average(tmp_path / "out", [tmp_path / "fused", three[1]], recipe=recipe)


def test_curves_are_straight_between_their_points():
    assert [at_depth((0.0, 1.0, 0.5), depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == [
        0.0, 0.5, 1.0, 0.75, 0.5,
    ]  # fmt: skip
    assert at_depth((0.2, 0.8), None) == 0.2


def test_the_arc_between_two_is_numpys_and_independent_of_layout_and_workers(tmp_path, three):
    a, b = three[:2]
    ckptforge.to_ms(a, tmp_path / "a.ckpt", layout="gmm")
    options = {"method": "slerp", "weights": [0.6, 0.4], "dtype": "fp32"}
    ckptforge.average(tmp_path / "one", [a, b], workers=1, memory="1MiB", **options)
    ckptforge.average(tmp_path / "two", [tmp_path / "a.ckpt", b], workers=8, to="hub", **options)
    one, two = (arrays_of(tmp_path / name) for name in ("one", "two"))
    left, right = arrays_of(a), arrays_of(b)
    for name, array in one.items():
        x, y = (arrays[name].astype("f8") for arrays in (left, right))
        cosine = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
        angle = np.arccos(cosine)
        made = (np.sin(0.6 * angle) * x + np.sin(0.4 * angle) * y) / np.sin(angle)
        assert (np.abs(array - made) <= half_a_unit(made)).all(), name
        assert two[name].tobytes() == array.tobytes(), name


def test_parallel_and_empty_vectors_are_averaged_straight():
    assert slerp_weights(0.25, (4.0, 1.0, 2.0)) == (0.75, 0.25)
    assert slerp_weights(0.25, (0.0, 1.0, 0.0)) == (0.75, 0.25)
    one, other = slerp_weights(0.5, (1.0, 1.0, 0.0))
    assert one == pytest.approx(math.sqrt(0.5)) == other


def test_dare_keeps_the_density_of_each_difference_whatever_the_layout(tmp_path, three):
    base, a, b = three
    options = {"method": "dare", "base": base, "density": 0.3, "seed": 7, "dtype": "fp32"}
    ckptforge.average(tmp_path / "one", [a, b], workers=1, memory="1MiB", **options)
    ckptforge.to_ms(a, tmp_path / "a.ckpt", layout="gmm")
    ckptforge.average(tmp_path / "two", [tmp_path / "a.ckpt", b], to="hub", **options)
    ckptforge.average(tmp_path / "three", [a, b], **{**options, "seed": 8})
    one, two, other = (arrays_of(tmp_path / name) for name in ("one", "two", "three"))
    kept, differing = [], False
    for name, array in one.items():
        x, y, z = (arrays_of(path)[name].astype("f8") for path in (base, a, b))
        masks = [
            np.abs(array - (made := x + p * (y - x) / 0.3 + q * (z - x) / 0.3)) <= half_a_unit(made)
            for p in (0, 1)
            for q in (0, 1)
        ]
        assert np.logical_or.reduce(masks).all(), name
        kept.append((masks[2] | masks[3]).ravel())
        assert two[name].tobytes() == array.tobytes(), name
        differing |= other[name].tobytes() != array.tobytes()
    assert np.concatenate(kept).mean() == pytest.approx(0.3, abs=0.02) and differing


def test_counters_give_numbers_that_are_spread_as_they_should_be():
    places = np.arange(200_000)
    found = chances(places, (1, 2))
    assert found.min() >= 0 and found.max() < 1 and abs(found.mean() - 0.5) < 0.005
    assert np.histogram(found, 16)[0].std() < 400
    assert abs(np.corrcoef(found, chances(places, (1, 3)))[0, 1]) < 0.01
    drawn = normals(places, (5,))
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert (normals(places[7:9], (5,)) == drawn[7:9]).all()


def test_schedules():
    assert schedule_weights("uniform", 4) == (0.25,) * 4
    assert schedule_weights("ema:0.5", 3) == (0.25, 0.25, 0.5)
    assert schedule_weights("ema:0", 2) == (0.0, 1.0)
    found = schedule_weights("minus-sqrt", 4)
    assert found == pytest.approx([0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.75) - math.sqrt(0.5),
                                   1 - math.sqrt(0.75)])  # fmt: skip
    for name in ("uniform", "ema:0.9", "minus-sqrt"):
        assert all(sum(schedule_weights(name, n)) == pytest.approx(1) for n in range(1, 9))
    with pytest.raises(UsageError, match="Did you mean 'minus-sqrt'"):
        schedule_weights("minus_sqrt", 2)
    with pytest.raises(UsageError, match="a decay from 0 to below 1"):
        schedule_weights("ema:1", 2)


def test_the_last_checkpoints_of_a_run(tmp_path, three):
    run = tmp_path / "run"
    for step, source in zip((500, 1000, 2000), three, strict=True):
        shutil.copytree(source, run / f"checkpoint-{step}")
    ckptforge.average(tmp_path / "out", [run], last=2, schedule="ema:0.75", dtype="fp32")
    same(tmp_path / "out", expected(three[1:], [0.75, 0.25], "float32"))
    steps = tmp_path / "steps"
    steps.mkdir()
    for step, source in zip((20, 100, 30), (three[0], three[2], three[1]), strict=True):
        ckptforge.to_ms(source, steps / f"mixtral-1_{step}.ckpt")
    ckptforge.average(tmp_path / "hub", [steps], last=3, to="hub", config=three[0], dtype="fp32")
    same(tmp_path / "hub", expected(three, [1 / 3] * 3, "float32"))
    with pytest.raises(
        InputNotFoundError, match=r"needs 4 checkpoints; these are there:\n  step 20"
    ):
        ckptforge.average(tmp_path / "no", [steps], last=4)


def test_optimizer_state_is_left_out_and_counters_are_the_last_ones(tmp_path):
    full = MINDSPORE / "full.ckpt"
    result = ckptforge.average(tmp_path / "out.ckpt", [full, full])
    before, after = contents(full), contents(tmp_path / "out.ckpt")
    gone = before.keys() - after.keys()
    assert gone and all(name.startswith(("adam_", "accu_")) for name in gone)
    assert all(after[name] == before[name] for name in after)
    counters = [name for name in after if name in ("global_step", "step_num", "epoch_num")]
    assert counters and any("counters are those of the last" in note for note in result.notes)


def refused(error, message, tmp_path, *sources, **options):
    with pytest.raises(error, match=message):
        ckptforge.average(tmp_path / "no", list(sources), **options)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_averaged_is_refused(tmp_path, three):
    a, b, _ = three
    wide = write_model(tmp_path / "wide", 1, intermediate_size=12)
    long = write_model(tmp_path / "long", 1, num_hidden_layers=3)
    refused(LayoutError, r"w1\.weight is \[10, 12\] in .*, but \[12, 12\] in", tmp_path, a, wide)
    refused(MissingTensorsError, "aren't the same model: 16 tensors of the first",
            tmp_path, a, long)  # fmt: skip
    refused(UsageError, "expected 2 finite numbers, one for each", tmp_path, a, b, weights=[1.0])
    refused(UsageError, "expected 2 finite numbers", tmp_path, a, b, weights="1,nan")
    refused(UsageError, "expected numbers, such as", tmp_path, a, b, weights="1,x")
    refused(UsageError, "nothing is averaged", tmp_path)
    refused(UsageError, "give two, and no base", tmp_path, a, b, a, method="slerp")
    refused(UsageError, "name it with base", tmp_path, a, b, method="dare")
    refused(UsageError, "name it with base", tmp_path, a, b, scale=0.5)
    refused(CastOverflowError, "would become infinite", tmp_path, a, b, weights=[1.7e308] * 2)
    refused(UsageError, "density is of method='dare', not of linear", tmp_path, a, b, density=0.5)
    refused(UsageError, "takes the last checkpoints of one run", tmp_path, a, b, last=2)
    refused(UsageError, "say how many with last", tmp_path, a, b, schedule="uniform")
    refused(UsageError, "expected a number above 0", tmp_path, a, method="dare", base=b, density=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methd = 'slerp'", "has the key 'methd'.*Did you mean 'method'"),
        ("method = 'slrp'", "method is 'slrp', expected linear, slerp or dare.*'slerp'"),
        ("[[input]]\nwieght = 1", "input, no. 1 has the key 'wieght'.*Did you mean 'weight'"),
        ("[[input]]\nweight = 'x'\n[[input]]", "input, no. 1 is 'x', expected a finite number"),
        ("[[input]]", "leaves 1 path of its inputs to the call, which names 2"),
        ("x =", "isn't valid TOML"),
    ],
)
def test_a_recipe_says_which_row_is_wrong(tmp_path, three, text, message):
    (tmp_path / "r.toml").write_text(text)
    refused(UsageError, message, tmp_path, *three[:2], recipe=tmp_path / "r.toml")


def test_sums_that_are_not_finite_are_refused_as_casts_are(tmp_path):
    big = np.array([3e38, 1.0, 0.0, -3e38], "f4")
    tensors = {"t": ("F32", [4], big.tobytes())}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    twice = [tmp_path / "x.safetensors"] * 2
    out = tmp_path / "out.safetensors"
    with pytest.raises(CastOverflowError, match="t: 2 of 2"):
        ckptforge.average(out, twice, weights=[1, 1])
    assert not out.exists()
    result = ckptforge.average(out, twice, weights=[1, 1], allow_overflow=True)
    assert result.audit.overflowed == 2
    assert (arrays_of(out)["t"] == np.array([np.inf, 2, 0, -np.inf], "f4")).all()
    assert "the weights add up to 2" in result.notes[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weights": [0, 0]}, "such as .*are 0 for every input, which would make zeros"),
        ({"weights": [0.3, 0.3], "method": "slerp"}, "add up to 0.6: .*by their shares"),
        ({"recipe": "{default = 1, 'router' = 0}"}, "gate.weight.* are 0 for every input"),
    ],
)
def test_weights_that_make_zeros_or_are_no_shares_are_refused(tmp_path, three, more, message):
    if "recipe" in more:
        rows = f"[[input]]\nweight = {more['recipe']}\n" * 2
        (tmp_path / "r.toml").write_text(rows)
        more = {"recipe": tmp_path / "r.toml"}
    with pytest.raises(UsageError, match=message):
        ckptforge.average(tmp_path / "o", three[:2], **more)
    assert not (tmp_path / "o").exists()


def test_an_opened_model_refuses_weights_of_0_too(three):
    first, second = (ckptforge.open(path) for path in three[:2])
    with first, second, pytest.raises(UsageError, match="which would make zeros"):
        first.average(second, weights=[0, 0])


def test_a_note_says_what_is_no_average(tmp_path, three):
    def noted(**more):
        return ckptforge.average(tmp_path / "o", three[:2], dry_run=True, **more).notes[0]

    assert "add up to 0: what is written is a difference" in noted(weights=[1, -1])
    assert "add up to 0.6: the sums are that many times" in noted(weights=[0.4, 0.2])
    assert "all weights are the base's" in noted(base=three[2], scale=0.0)
    (tmp_path / "r.toml").write_text(
        "[[input]]\nweight = {default = 0.5, router = 2}\n[[input]]\nweight = 0.5"
    )
    assert re.search("of 2 tensors, such as .*, add up to 2.5", noted(recipe=tmp_path / "r.toml"))


def test_an_average_that_was_interrupted_is_resumed(tmp_path, three):
    class Enough(Exception):
        pass

    def stop(done, total):
        if done > total / 2:
            raise Enough

    with pytest.raises(Enough):
        ckptforge.average(tmp_path / "out", three, progress=stop, workers=1)
    ckptforge.average(tmp_path / "out", three, resume=True)
    same(tmp_path / "out", expected(three, [1 / 3] * 3, None))
