"""A tensor that several files of one directory hold: the index decides, else equal bits are one
tensor, others are refused."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.checkpoints.duplicates import without_duplicates
from ckptforge.errors import FormatError
from ckptforge.formats.safetensors import read_index
from tests.helpers import (
    MINDSPORE,
    contents,
    raw_safetensors,
    tiny_config,
    write_hub,
    write_safetensors,
)

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def stored(path):
    """What a file holds, as `write_safetensors` takes it."""
    names = {"bfloat16": "BF16", "float32": "F32"}
    return {
        name: (names[dtype], list(shape), data)
        for name, (dtype, shape, data) in contents(path).items()
    }


@pytest.fixture
def model(tmp_path):
    """A model in two shards with an index."""
    write_hub(tmp_path / "hub", tiny_config(), files=2)
    return tmp_path / "hub"


def add_copies(model, *, equal, shard=B, of=A, count=3):
    """Copies of the first tensors of one shard in another, and their names."""
    tensors, others = stored(model / shard), stored(model / of)
    names = list(others)[:count]
    for name in names:
        dtype, shape, data = others[name]
        tensors[name] = (dtype, shape, data if equal else bytes(len(data)))
    write_safetensors(model / shard, tensors, {"format": "pt"})
    return names


@pytest.mark.parametrize(("shard", "of"), [(B, A), (A, B)])
@pytest.mark.parametrize("equal", [True, False])
def test_the_index_decides_between_copies_in_several_shards(tmp_path, model, shard, of, equal):
    meant = raw_safetensors(model)
    names = add_copies(model, equal=equal, shard=shard, of=of)
    result = ckptforge.convert(model, tmp_path / "out", to="hub")
    (note,) = [note for note in result.notes if "several files" in note]
    assert (
        note.startswith("3 tensors lie in several files")
        and names[0] in note
        and shard in note
        and INDEX in note
    )
    written = raw_safetensors(tmp_path / "out")
    assert written.keys() == meant.keys() and all(
        (written[name] == meant[name]).all() for name in meant
    )
    assert result.facts["source_tensors"] == len(meant)


def test_the_way_back_is_the_model_without_the_copies(tmp_path, model):
    meant = raw_safetensors(model)
    names = add_copies(model, equal=False)
    ckptforge.to_ms(model, tmp_path / "x.ckpt")
    side = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())["hugging_face"]
    assert side["shards"][B]["passed_over"] == names and not set(names) & set(
        side["shards"][B]["tensors"]
    )
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    back = raw_safetensors(tmp_path / "back")
    assert back.keys() == meant.keys() and all((back[name] == meant[name]).all() for name in meant)
    shutil.rmtree(tmp_path / "back")
    result = ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back", max_shard_size=1000)
    index = json.loads((tmp_path / "back" / INDEX).read_text())
    assert index["weight_map"].keys() == meant.keys() and index["metadata"]["total_size"] == sum(
        one.nbytes for one in meant.values()
    )
    assert result.tensors == len(meant)


def test_a_tensor_that_lies_elsewhere_than_the_index_says_is_refused(tmp_path, model):
    names = add_copies(model, equal=True)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"][next(iter(stored(model / B)))] = A
    (model / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=f"should be in {A} but lies in {B}"):
        ckptforge.inspect(model)
    del index["weight_map"][names[0]]
    (model / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match="lies in|aren't listed"):
        ckptforge.inspect(model)


def test_without_an_index_equal_bits_are_one_tensor(tmp_path, model):
    meant = raw_safetensors(model)
    (model / INDEX).unlink()
    names = add_copies(model, equal=True)
    result = ckptforge.to_ms(model, tmp_path / "x.ckpt")
    (note,) = [note for note in result.notes if "several files" in note]
    assert (
        "3 tensors" in note and "same bits" in note and names[0] in note and A in note and B in note
    )
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    back = raw_safetensors(tmp_path / "back")
    assert back.keys() == meant.keys() and all((back[name] == meant[name]).all() for name in meant)


def test_a_file_that_holds_nothing_but_copies_is_read_and_recorded(tmp_path, model):
    (model / INDEX).unlink()
    shutil.copy(model / A, model / "model-copy.safetensors")
    result = ckptforge.to_ms(model, tmp_path / "x.ckpt")
    assert any(
        f"{len(stored(model / A))} tensors lie in several files" in note for note in result.notes
    )
    sources = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())["sources"]
    assert len(sources) == 3 and all(source["xxh3_128"] for source in sources)


@pytest.mark.parametrize("change", ["values", "shape", "dtype"])
def test_without_an_index_other_copies_are_refused_with_both_files(tmp_path, model, change):
    (model / INDEX).unlink()
    (name,) = add_copies(model, equal=True, count=1)
    tensors = stored(model / B)
    dtype, shape, data = tensors[name]
    changed = {
        "values": (dtype, shape, data[:-1] + bytes([data[-1] ^ 1])),
        "shape": (dtype, [len(data) // 2], data),
    }
    tensors[name] = changed.get(change, ("F16", shape, data))
    write_safetensors(model / B, tensors, {"format": "pt"})
    with pytest.raises(FormatError) as error:
        ckptforge.to_ms(model, tmp_path / "x.ckpt")
    assert all(
        text in str(error.value) for text in (A, B, name, "there is no index", "Move the file")
    )
    assert not (tmp_path / "x.ckpt").exists()


def test_one_file_beside_shards_is_said(tmp_path, model):
    shutil.copy(model / A, model / "model.safetensors")
    found = ckptforge.inspect(model)
    assert [file.file for file in found.files] == [A, B]
    assert [
        note
        for note in found.notes
        if "not model.safetensors beside them, which transformers would load" in note
    ]
    (model / INDEX).unlink()
    found = ckptforge.inspect(model)
    assert [file.file for file in found.files] == ["model.safetensors"]
    assert [
        note
        for note in found.notes
        if f"no shard beside it, such as {A}, as there is no index" in note
    ]


def test_in_unified_safetensors_the_map_decides(tmp_path):
    shutil.copytree(MINDSPORE / "unified", tmp_path / "u")
    meant = contents(tmp_path / "u")
    path = tmp_path / "u/param_name_map.json"
    index = json.loads(path.read_text())
    moved = next(iter(index["weight_map"]))
    holder = tmp_path / "u" / index["weight_map"][moved]
    dtype, shape, data = stored(holder)[moved]
    for number, other in enumerate(("aaa.safetensors", "zzz.safetensors")):
        write_safetensors(
            tmp_path / "u" / other,
            {moved: (dtype, shape, bytes(len(data))), f"step{number}": ("F32", [], bytes(4))},
        )
        index["weight_map"][f"step{number}"] = other
    path.write_text(json.dumps(index))
    found = contents(tmp_path / "u")
    assert found[moved] == meant[moved] and len(found) == len(meant) + 2
    assert "param_name_map.json names" in "".join(ckptforge.inspect(tmp_path / "u").notes)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcde"), st.integers(0, 2), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_each_tensor_is_read_once_from_where_the_index_says(tmp_path_factory, files, data):
    directory = tmp_path_factory.mktemp("files")
    for number, held in enumerate(files):
        write_safetensors(
            directory / f"{number}.safetensors",
            {name: ("F32", [1], bytes([value] * 4)) for name, value in held.items()},
        )
    indexes = [read_index(directory / f"{number}.safetensors") for number in range(len(files))]
    everywhere = {
        name: [number for number, held in enumerate(files) if name in held]
        for held in files
        for name in held
    }
    named = {
        name: data.draw(st.sampled_from([None, *numbers])) for name, numbers in everywhere.items()
    }
    weight_map = {
        name: f"{number}.safetensors" for name, number in named.items() if number is not None
    }
    unclear = [
        name
        for name in everywhere
        if named[name] is None and len({files[number][name] for number in everywhere[name]}) > 1
    ]
    if unclear:
        with pytest.raises(FormatError, match="doesn't list it"):
            without_duplicates(indexes, weight_map, directory / "index.json")
        return
    found = without_duplicates(indexes, weight_map, directory / "index.json")
    kept = [(name, number) for number, file in enumerate(found) for name in file.tensors]
    expected = {
        name: numbers[0] if named[name] is None else named[name]
        for name, numbers in everywhere.items()
    }
    assert len(kept) == len(expected) and dict(kept) == expected
    assert [set(file.tensors) | set(file.passed_over) for file in found] == [
        set(held) for held in files
    ]
    assert bool([note for file in found for note in file.notes]) == any(
        len(numbers) > 1 for numbers in everywhere.values()
    )
