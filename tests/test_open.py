"""Models opened from Python: what is read of them is what lies in the files, in any layout, split
and index."""

from __future__ import annotations

import doctest
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import ConfigError, LayoutError, UsageError
from tests.helpers import HUB, MINDSPORE, contents, raw_safetensors

EMBEDDING = "model.embed_tokens.weight"


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@pytest.fixture(scope="module")
def hub():
    with ckptforge.open(HUB) as model:
        yield model


def test_the_page_of_the_docs(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "models.md"
    failed, tried = doctest.testfile(
        str(page), module_relative=False, globs={"hub": HUB, "out": tmp_path}
    )
    assert (failed, tried > 10) == (0, True)


def test_a_model_holds_what_lies_in_its_files(hub):
    stored = raw_safetensors(HUB)
    assert list(hub) == list(ckptforge.inspect(HUB).entries) and len(hub) == len(stored)
    for name, tensor in hub.items():
        assert tensor.shape == stored[name].shape and (bits(tensor[...]) == stored[name]).all()
        assert (bits(np.asarray(tensor)) == stored[name]).all()
    assert hub.nbytes == sum(array.nbytes for array in stored.values())


@st.composite
def indices(draw, shape):
    items = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        if draw(st.booleans()):
            items.append(draw(st.integers(-length, length - 1)))
        else:
            bounds = st.none() | st.integers(-length - 2, length + 2)
            step = draw(st.sampled_from([None, 1, 2, 3, -1, -2, 7]))
            items.append(slice(draw(bounds), draw(bounds), step))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_index_reads_what_numpy_reads(hub, data):
    name = data.draw(st.sampled_from([EMBEDDING, "model.norm.weight"]))
    layout = data.draw(st.sampled_from(["hub", "gmm"]))
    model = hub.as_layout(layout)
    if layout == "gmm":
        name = data.draw(st.sampled_from(list(model)))
    whole = model[name][...]
    index = data.draw(indices(whole.shape))
    try:
        expected = whole[index]
    except IndexError:
        with pytest.raises(IndexError):
            model[name][index]
        return
    found = model[name][index]
    assert found.shape == expected.shape and (bits(found) == bits(expected)).all()


@pytest.mark.parametrize("index", [[0, 1], True, np.array([0]), None, 1.5])
def test_what_no_index_is_is_refused(hub, index):
    with pytest.raises(TypeError, match=r"is indexed by numbers, slices and \.\.\."):
        hub[EMBEDDING][index]
    with pytest.raises(IndexError):
        hub[EMBEDDING][0, 0, 0]
    with pytest.raises(IndexError, match="outside axis 0"):
        hub[EMBEDDING][256]


@pytest.mark.parametrize(("layout", "dtype"), [("dense", "fp16"), ("gmm", "bf16"), ("gmm", "fp32")])
def test_what_is_saved_is_what_the_command_writes(tmp_path, hub, layout, dtype):
    ckptforge.to_ms(HUB, tmp_path / "a.ckpt", layout=layout, dtype=dtype)
    hub.as_layout(layout).cast(dtype).save(tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    back = ckptforge.open(tmp_path / "b.ckpt").as_layout("hub")
    back.save(tmp_path / "back")
    ckptforge.to_torch(tmp_path / "a.ckpt", tmp_path / "torch")
    assert contents(tmp_path / "back") == contents(tmp_path / "torch")


def test_ranks_are_read_as_one_model_and_written_again(tmp_path):
    whole = ckptforge.open(MINDSPORE / "full.ckpt")
    config = tmp_path / "p.yaml"
    config.write_text(
        "parallel_config: {data_parallel: 1, model_parallel: 2, expert_parallel: 1}\n"
    )
    whole.save(tmp_path / "ranks", parallel_config=config)
    cut = ckptforge.open(tmp_path / "ranks")
    assert set(cut) == set(whole)
    for name, tensor in cut.items():
        assert (bits(tensor[...]) == bits(whole[name][...])).all(), name
        if tensor.shape:
            assert (bits(tensor[..., -1:]) == bits(whole[name][..., -1:])).all(), name
    cut.save(tmp_path / "merged.ckpt")
    assert contents(tmp_path / "merged.ckpt") == contents(MINDSPORE / "full.ckpt")


def test_names_are_changed_dropped_and_kept(tmp_path, hub):
    some = hub.keep("*norm*", EMBEDDING).rename({EMBEDDING: "embedding"})
    assert "embedding" in some and EMBEDDING not in some and len(some) == 6
    assert (bits(some["embedding"][...]) == bits(hub[EMBEDDING][...])).all()
    result = some.drop("*norm*").save(tmp_path / "x.safetensors")
    assert result.tensors == 1 and len(result.left_out["dropped"]) == 64
    assert (
        (tmp_path / "x.safetensors").read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt"')
    )
    with pytest.raises(UsageError, match="no tensor has the name 'nothing'"):
        hub.drop("nothing")
    with pytest.raises(UsageError, match="would both be 'a'"):
        hub.rename(lambda name: "a")
    with pytest.raises(KeyError, match="Did you mean 'model.embed_tokens.weight'"):
        hub["model.embed_tokens.weights"]


def test_a_model_that_no_table_knows_has_no_layout(tmp_path, hub):
    hub.rename(lambda name: f"x.{name}.y").save(tmp_path / "x.safetensors")
    model = ckptforge.open(tmp_path / "x.safetensors")
    assert (model.model, model.layout, model.config) == (None, None, {})
    with pytest.raises(LayoutError, match="no mapping knows these tensors"):
        model.as_layout("gmm")
    with pytest.raises(ConfigError, match="config.json is missing"):
        model.save(tmp_path / "out")
    assert model.save(tmp_path / "out", allow_no_config=True).tensors == 65


def test_a_second_cast_of_rounded_numbers_is_refused(hub):
    with pytest.raises(UsageError, match="was cast from bfloat16 to float16 already"):
        hub.cast("fp16").cast("fp32")
    wide = hub.cast("fp32").cast("fp16")
    assert wide[EMBEDDING].dtype == np.float16


def test_threads_read_the_same(hub):
    expected = {name: bits(tensor[...]).copy() for name, tensor in hub.items()}
    wrong = []

    def read():
        for name in hub:
            if not (bits(hub.as_layout("hub")[name][...]) == expected[name]).all():
                wrong.append(name)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_model_says_so():
    with ckptforge.open(HUB) as model:
        assert model[EMBEDDING][0, 0] is not None
    with pytest.raises(UsageError, match=r"the model was closed; open it again\."):
        model[EMBEDDING][0]


def test_it_is_shown_in_a_line_and_in_a_notebook(hub):
    assert repr(hub).endswith("hf_hub: mixtral hub, 65 tensors, 895,616 bytes>")
    page = hub._repr_html_()
    assert (
        page.count("<tr>") == 22 and "and 45 more tensors" in page and "<td>256 × 64</td>" in page
    )
