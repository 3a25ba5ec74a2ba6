"""`extract` and `stats`: what numpy finds in the same bytes, whatever the layout, the split, the
workers and the memory."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import UsageError
from tests.helpers import HUB, MINDSPORE, contents, tiny_config, write_hub, write_safetensors

ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
W1 = "model.layers.1.feed_forward.ffn.w1.weight"


def array_of(path, name):
    dtype, shape, data = contents(path)[name]
    return np.frombuffer(data, getattr(ml_dtypes, dtype, dtype)).reshape(shape)


def test_a_tensor_is_what_numpy_loads(tmp_path):
    out = tmp_path / "x.npy"
    result = ckptforge.extract(HUB, ROUTER, out)
    raw = np.load(out)
    expected = array_of(HUB, ROUTER)
    assert raw.dtype == "V2" and (raw.view(ml_dtypes.bfloat16) == expected).all()
    assert "numpy has no bfloat16" in result.notes[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]
    ckptforge.extract(HUB, ROUTER, out, dtype="fp32", overwrite=True)
    loaded = np.load(out)
    assert loaded.dtype == np.float32 and (loaded == expected.astype("f4")).all()


def test_a_tensor_of_another_layout_and_of_ranks(tmp_path):
    ckptforge.extract(HUB, W1, tmp_path / "a.npy", layout="gmm", dtype="fp32")
    experts = [
        array_of(HUB, f"model.layers.1.block_sparse_moe.experts.{i}.w1.weight") for i in range(8)
    ]
    stacked = np.stack(experts).transpose(0, 2, 1).astype("f4")
    assert (np.load(tmp_path / "a.npy") == stacked).all()
    ranks, strategy = MINDSPORE / "sharded" / "mp8", MINDSPORE / "strategies" / "mp8"
    merged = tmp_path / "merged.ckpt"
    ckptforge.merge(ranks, merged, strategy_dir=strategy)
    name = next(name for name, (_, shape, _) in contents(merged).items() if len(shape) == 2)
    ckptforge.extract(ranks, name, tmp_path / "b.npy", strategy_dir=strategy, dtype="fp32")
    assert (np.load(tmp_path / "b.npy") == array_of(merged, name).astype("f4")).all()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("0:4,:", np.s_[0:4, :]),
        ("-1", np.s_[-1]),
        ("...,::2", np.s_[..., ::2]),
        ("1:7:3, 5", np.s_[1:7:3, 5]),
        ("3:3", np.s_[3:3]),
    ],
)
def test_a_part_is_what_the_index_gives_in_numpy(tmp_path, index, expected):
    ckptforge.extract(HUB, ROUTER, tmp_path / "x.npy", index=index, dtype="fp32")
    found = np.load(tmp_path / "x.npy")
    whole = array_of(HUB, ROUTER).astype("f4")
    assert found.shape == whole[expected].shape and (found == whole[expected]).all()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"name": "lm_head"}, "no tensor has the name 'lm_head'. Did you mean 'lm_head.weight'"),
        ({"out": "x.npz"}, r"one that ends in \.npy, such as x\.npy"),
        ({"index": "a"}, "index='a': expected numbers, slices and ..., such as 0:4,:"),
        ({"index": "0,0,0"}, "has 2 axes, too few for the index"),
        ({"index": "9"}, "index 9 is outside axis 0"),
        ({"index": "::-1"}, "a step must go up"),
        ({"layout": "gmn"}, "Did you mean 'gmm'"),
    ],
)
def test_what_cannot_be_extracted_is_refused(tmp_path, monkeypatch, given_, message):
    monkeypatch.chdir(tmp_path)
    arguments = {"name": ROUTER, "out": "x.npy", **given_}
    with pytest.raises(UsageError, match=message):
        ckptforge.extract(HUB, **arguments)
    assert not list(tmp_path.iterdir())


def expected_figures(array):
    wide = array.astype(np.float64).ravel()
    finite = wide[np.isfinite(wide)]
    return {
        "count": wide.size,
        "nan": int(np.isnan(wide).sum()),
        "infinite": int(np.isinf(wide).sum()),
        "zeros": int((finite == 0).sum()),
        "min": finite.min() if finite.size else math.nan,
        "max": finite.max() if finite.size else math.nan,
        "mean": math.fsum(finite) / finite.size if finite.size else math.nan,
        "std": finite.std() if finite.size else math.nan,
    }


def check(figures, array):
    for key, value in expected_figures(array).items():
        found = getattr(figures, key)
        if key in ("mean", "std"):
            scale = np.abs(array.astype(np.float64)[np.isfinite(array.astype("f8"))])
            near = 1e-13 * (scale.max() if scale.size else 1)
            assert found == pytest.approx(value, rel=1e-9, abs=near, nan_ok=True), key
        else:
            assert found == value or (math.isnan(found) and math.isnan(value)), key


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 700), st.integers(1, 500)),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    seed=st.integers(0, 2**32 - 1),
    shift=st.sampled_from([0.0, 100.0]),
    wild=st.booleans(),
)
def test_figures_are_those_of_numpy_with_any_number_of_workers(
    tmp_path_factory, shape, dtype, seed, shift, wild
):
    directory = tmp_path_factory.mktemp("stats")
    random = np.random.default_rng(seed)
    array = random.normal(shift, 1, shape).astype(getattr(ml_dtypes, dtype, dtype))
    if wild and array.size:
        flat = array.reshape(-1)
        flat[random.integers(0, array.size, 5)] = 0
        flat[random.integers(0, array.size, 5)] = -0.0
        flat[random.integers(0, array.size, 5)] = -1e-40  # which float32 holds as a subnormal
        flat[random.integers(0, array.size, 5)] = 5e-324  # and float64
        flat[random.integers(0, array.size)] = np.nan
        flat[random.integers(0, array.size)] = -np.inf
    code = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    write_safetensors(directory / "x.safetensors", {"t": (code, list(shape), array.tobytes())})
    found = [
        ckptforge.stats(directory / "x.safetensors", workers=workers, memory=memory)
        for workers, memory in ((1, "1MiB"), (3, "64MiB"))
    ]
    check(found[0].tensors["t"].figures, array)
    assert repr(found[0].tensors) == repr(found[1].tensors)
    assert found[0].histograms == found[1].histograms
    check_histogram(found[0].histograms["t"], array)


def check_histogram(found, array):
    wide = array.astype(np.float64).ravel()
    wide = wide[np.isfinite(wide) & (wide != 0)]
    exponents = np.maximum(np.frexp(wide)[1] - 1, -1023)
    expected = {}
    for exponent, negative in zip(exponents.tolist(), (wide < 0).tolist(), strict=True):
        expected.setdefault(exponent, [0, 0])[0 if negative else 1] += 1
    counted = {one.exponent: [one.negative, one.positive] for one in found}
    assert counted == expected and list(counted) == sorted(counted)


def test_kinds_are_those_of_the_table_and_bring_all_of_their_tensors_together(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(), seed=3)
    found = ckptforge.stats(tmp_path / "hub")
    experts = [
        array_of(tmp_path / "hub", name)
        for name in contents(tmp_path / "hub")
        if name.endswith("w1.weight")
    ]
    assert found.kinds["w1"].tensors == len(experts) == 6
    check(found.kinds["w1"], np.concatenate([one.ravel() for one in experts]))
    check_histogram(found.histograms["w1"], np.concatenate([one.ravel() for one in experts]))
    assert found.model == "mixtral" and found.layout == "hub" and not found.skipped


def test_figures_of_a_layout_are_those_of_the_model(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")
    hub, gmm = ckptforge.stats(HUB, layout="gmm"), ckptforge.stats(tmp_path / "x.ckpt")
    assert repr(hub.tensors) == repr(gmm.tensors)
