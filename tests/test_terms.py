"""Values of several terms: each is added in float64 with its weight, the sum is rounded once, and
how a run cuts its work changes nothing."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
from ckptforge.boxes import full_box, row_major_strides
from ckptforge.composing import part_of, terms_through
from ckptforge.dtypes import BY_NAME
from ckptforge.errors import PlanError
from ckptforge.examine.window import read_value
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.assembly import prove_filled
from ckptforge.planning.lower import in_memory
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.targets.single import FileTarget
from ckptforge.targets.target import plan_for
from ckptforge.transfers import Transfer
from ckptforge.values import Fragment, Term, Value
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.options import Save
from tests.helpers import HUB, contents, rounded, write_safetensors

CODES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def numpy_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def arrays_of(directory, dtypes, shape, seed):
    """Tensors t0, t1, … of these dtypes in a file, and their arrays."""
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=shape).astype(numpy_of(name)) for name in dtypes]
    tensors = {
        f"t{i}": (CODES[name], list(shape), array.tobytes())
        for i, (name, array) in enumerate(zip(dtypes, arrays, strict=True))
    }
    write_safetensors(directory / "x.safetensors", tensors)
    return arrays


def summed(arrays, weights, dtype):
    parts = [array.astype("f8") * weight for array, weight in zip(arrays, weights, strict=True)]
    return rounded(sum(parts[1:], parts[0]), dtype)


def average(opened, weights, dtype):
    values = list(opened._model.values.values())
    terms = tuple(
        Term(fragments=value.terms[0].fragments, weight=weight)
        for value, weight in zip(values, weights, strict=True)
    )
    return Value(dtype=BY_NAME[dtype], shape=values[0].shape, terms=terms, kind="t")


weights = st.sampled_from([1.0, 0.5, 0.3, -0.7, 1 / 3])


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(list(CODES)), min_size=2, max_size=4),
    dtype=st.sampled_from(list(CODES)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_terms_are_added_with_their_weights_and_rounded_once(
    tmp_path_factory, dtypes, dtype, shape, seed, data
):
    directory = tmp_path_factory.mktemp("terms")
    arrays = arrays_of(directory, dtypes, shape, seed)
    chosen = [data.draw(weights) for _ in dtypes]
    value = average(ckptforge.open(directory), chosen, dtype)
    expected = summed(arrays, chosen, numpy_of(dtype))
    for budget in (Budget(1, 1 << 20), Budget(1, 2048), Budget(1, 64)):
        files = OpenFiles()
        found = read_value("t", value, Worker(files, budget))
        files.close()
        assert found.tobytes() == expected.tobytes()


def saved(value, model, out, **running):
    chosen = format_by_ending(Path("x.safetensors"))
    target = FileTarget(out, chosen, {"format": "pt"})
    plan = plan_for("save", replace(model, values={"t": value}), target, {})
    return run_job(Job(plan), Save(out, **running))


def test_a_sum_is_the_same_with_any_number_of_workers_and_resumed(tmp_path):
    arrays = arrays_of(tmp_path, ["bfloat16", "float16", "float32"], (700, 900), 1)
    opened = ckptforge.open(tmp_path)
    value = average(opened, [0.5, 0.3, 0.2], "bfloat16")
    outputs = []
    for workers, memory in ((1, "1MiB"), (3, "3MiB"), (2, "64MiB")):
        out = tmp_path / f"{workers}.safetensors"
        result = saved(value, opened._model, out, workers=workers, memory=memory)
        outputs.append(contents(out)["t"][2])
        counts = result.audit.counts
        assert list(counts) == [("t", "float32", "bfloat16")]
        assert counts["t", "float32", "bfloat16"].values == 700 * 900
    expected = summed(arrays, [0.5, 0.3, 0.2], ml_dtypes.bfloat16)
    assert outputs == [expected.tobytes()] * 3


def test_a_sum_goes_through_layouts_and_parts_like_any_value():
    model = ckptforge.open(HUB)
    twice = {
        name: replace(value, terms=tuple(replace(term, weight=2.0) for term in value.terms))
        for name, value in model._model.values.items()
    }
    doubled = model._changed(replace(model._model, values=twice)).as_layout("gmm")
    plain = model.as_layout("gmm")
    for name, tensor in plain.items():
        expected = (tensor[...].astype("f4") * 2).astype(tensor.dtype)
        assert (doubled[name][...] == expected).all(), name
        part = tuple(slice(1, None, 2) for _ in tensor.shape)
        assert (doubled[name][part] == expected[part]).all(), name


def test_values_of_other_weights_are_put_together_with_zeros_between(tmp_path):
    arrays = arrays_of(tmp_path, ["float32", "float32", "float32"], (3, 4), 2)
    one, two, three = ckptforge.open(tmp_path)._model.values.values()
    mean = replace(
        one,
        terms=(
            Term(fragments=one.terms[0].fragments, weight=0.5),
            Term(fragments=two.terms[0].fragments, weight=0.5),
        ),
    )
    strides = row_major_strides((3, 4))
    parts = [(mean, Transfer((3, 4), 0, strides, 0, strides))]
    parts.append((three, Transfer((3, 4), 0, strides, 12, strides)))
    value = replace(one, shape=(6, 4), terms=tuple(terms_through(parts)))
    prove_filled(in_memory("t", value))
    files = OpenFiles()
    found = read_value("t", value, Worker(files, Budget(1, 1 << 20)))
    files.close()
    expected = np.concatenate([(arrays[0] * 0.5 + arrays[1] * 0.5).astype("f4"), arrays[2]])
    assert (found == expected).all()
    inner = part_of(value, ((2, 4), *full_box((4,))))
    assert sum(f.transfer.size for f in inner.fragments) == 3 * 4


def test_each_term_must_fill_all_of_it(tmp_path):
    arrays_of(tmp_path, ["float32", "float32"], (3, 4), 2)
    opened = ckptforge.open(tmp_path)
    value = average(opened, [0.5, 0.5], "float32")
    first, second = value.terms
    half = Fragment(second.fragments[0].stored, Transfer((6,), 0, (1,), 0, (1,)))
    broken = replace(value, terms=(first, replace(second, fragments=(half,))))
    with pytest.raises(PlanError, match="t: 6 of 12 elements are filled"):
        saved(broken, opened._model, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
