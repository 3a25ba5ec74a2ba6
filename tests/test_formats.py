"""Formats against files that other programs wrote, and against damaged ones."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptforge.checkpoints import mindspore as mindspore_dir
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.composing import part_of
from ckptforge.dtypes import BY_MINDSPORE, DTYPES
from ckptforge.errors import CkptforgeError, FormatError, InputNotFoundError, PlanError
from ckptforge.examine.window import read_value
from ckptforge.formats import mindspore_ckpt, protobuf, safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.run.budget import Budget
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.targets.huggingface import cut_into_shards, index_json
from ckptforge.values import value_of
from tests.helpers import FIXTURES, HUB, MINDSPORE, contents, write_safetensors

EXPECTED = json.loads((MINDSPORE / "misc" / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_every_misc_file_reads_as_mindspore_wrote_it(name):
    found = contents(MINDSPORE / name)
    assert list(found) == list(EXPECTED[name]) or name.endswith("safetensors")
    for tensor, (dtype, shape, data) in EXPECTED[name].items():
        if dtype == "str":
            assert found[tensor][0] == "str" and found[tensor][2].decode("utf-32-le") == shape
            continue
        assert found[tensor][:2] == (BY_MINDSPORE[dtype].name, tuple(shape))
        expected = bytes.fromhex(data)
        # expected.json holds the first bytes of large ones
        assert found[tensor][2][: len(expected)] == expected


def test_the_full_checkpoint_reads_as_its_npz():
    found, expected = contents(MINDSPORE / "full.ckpt"), np.load(MINDSPORE / "full.npz")
    about = json.loads((MINDSPORE / "full.json").read_text())
    assert list(found) == list(about["dtypes"])
    for name, (dtype, shape, data) in found.items():
        assert dtype == BY_MINDSPORE[about["dtypes"][name]].name
        assert shape == expected[name].shape and data == expected[name].tobytes()


def test_safetensors_of_mindspore_hold_what_the_ckpt_holds():
    from_ckpt = contents(MINDSPORE / "misc" / "dtypes.ckpt")
    assert contents(MINDSPORE / "misc" / "dtypes.safetensors") == from_ckpt
    unified = open_checkpoint(MINDSPORE / "unified")
    full = contents(MINDSPORE / "full.ckpt")
    assert contents(MINDSPORE / "unified") == full and len(unified.files) == 2


def test_checksums_are_checked():
    buffer = memoryview(bytearray(64))
    mindspore_ckpt.read_index(MINDSPORE / "misc" / "crc.ckpt").verify(buffer)
    safetensors.read_index(MINDSPORE / "misc" / "crc.safetensors").verify(buffer)
    with pytest.raises(FormatError, match="crc32"):
        mindspore_ckpt.read_index(MINDSPORE / "bad" / "crc_mismatch.ckpt").verify(buffer)


def test_a_changed_byte_fails_the_safetensors_checksum(tmp_path):
    data = bytearray((MINDSPORE / "misc" / "crc.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="crc32"):
        safetensors.read_index(tmp_path / "x.safetensors").verify(memoryview(bytearray(64)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad/empty.ckpt", "empty"),
        ("bad/long_content.ckpt", "'z'.*should have 4 bytes but 8"),
        ("bad/short_content.ckpt", "'z'.*should have 12 bytes but 8"),
        ("bad/truncated_1byte.ckpt", "truncated"),
        ("bad/truncated_mid.ckpt", "truncated"),
        ("bad/unknown_dtype.ckpt", "'Float31', which is unknown"),
        ("misc/enc_AES-CBC.ckpt", "encrypted \\(AES-CBC\\)"),
        ("misc/enc_AES-GCM.ckpt", "encrypted \\(AES-GCM\\)"),
        ("misc/enc_SM4-CBC.ckpt", "encrypted \\(SM4-CBC\\)"),
        ("misc/map_param.ckpt", "'hash_table' is a MapParameter"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(name, message):
    with pytest.raises(FormatError, match=message) as error:
        open_checkpoint(MINDSPORE / name)
    assert Path(name).name in str(error.value)


def rewrite(index, lay_out, path):
    """A file laid out for the tensors of another, filled with their bytes."""
    specs = [TensorSpec(entry.name, entry.dtype, entry.shape) for entry in index.tensors.values()]
    laid_out = lay_out(path, specs)
    made, data = bytearray(laid_out.size), index.path.read_bytes()
    for offset, literal in laid_out.literals:
        made[offset : offset + len(literal)] = literal
    for name, entry in index.tensors.items():
        content = b"".join(
            data[extent.offset : extent.offset + extent.length] for extent in entry.extents
        )
        for extent in laid_out.places[name].extents:
            made[extent.offset : extent.offset + extent.length] = content[
                extent.start : extent.start + extent.length
            ]
    return bytes(made)


@pytest.mark.parametrize(
    "path",
    [
        MINDSPORE / "full.ckpt",
        MINDSPORE / "misc" / "dtypes.ckpt",
        MINDSPORE / "misc" / "append.ckpt",
        MINDSPORE / "misc" / "order_unicode.ckpt",
        MINDSPORE / "misc" / "zero_size_async.ckpt",
        FIXTURES / "peer" / "peer_r1.3.0_dense_bf16.ckpt",
    ],
    ids=lambda path: path.name,
)
def test_the_ckpt_writer_is_byte_identical(path):
    assert (
        rewrite(mindspore_ckpt.read_index(path), mindspore_ckpt.lay_out, path) == path.read_bytes()
    )


def test_the_safetensors_writer_orders_like_the_library():
    for path in [*HUB.glob("*.safetensors"), MINDSPORE / "misc" / "dtypes.safetensors"]:
        index = safetensors.read_index(path)
        specs = [
            TensorSpec(entry.name, entry.dtype, entry.shape) for entry in index.tensors.values()
        ]
        assert safetensors.ordered(specs) == specs
        made = rewrite(
            index,
            lambda at, tensors, found=index: safetensors.lay_out(
                at, tensors, {"format": found.metadata["format"]}
            ),
            path,
        )
        if "misc" not in str(path):  # MindSpore's metadata has a random order
            assert made == path.read_bytes()


def test_big_tensors_are_cut_into_chunks_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(mindspore_ckpt, "CHUNK_BYTES", 100)
    path = tmp_path / "x.ckpt"
    dtype = BY_MINDSPORE["Float32"]
    laid_out = mindspore_ckpt.lay_out(
        path, [TensorSpec("big", dtype, (7, 11)), TensorSpec("exact", dtype, (25,))]
    )
    data = bytearray(laid_out.size)
    for offset, literal in laid_out.literals:
        data[offset : offset + len(literal)] = literal
    content = bytes(range(256)) + bytes(52)
    for extent in laid_out.places["big"].extents:
        data[extent.offset : extent.offset + extent.length] = content[
            extent.start : extent.start + extent.length
        ]
    path.write_bytes(data)
    assert [extent.length for extent in laid_out.places["big"].extents] == [100, 100, 100, 8]
    assert [extent.length for extent in laid_out.places["exact"].extents] == [100]
    assert contents(path)["big"] == ("float32", (7, 11), content)


def record(tag, dims, dtype, content):
    inner = (
        b"".join(b"\x08" + bytes([dim]) for dim in dims)
        + protobuf.record(2, dtype.encode())
        + protobuf.record(3, content)
    )
    return protobuf.record(1, protobuf.record(1, tag.encode()) + protobuf.record(2, inner))


def test_loading_rules_of_ckpt(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(
        record("a", [9], "Float32", b"1234")  # dims and type come from the last chunk
        + record("a", [3], "Int32", b"5678abcd")
        + record("empty_chunk", [1], "Int8", b"")
        + record("empty_chunk", [1], "Int8", b"x")
        + record("b", [1], "Int8", b"1")
        + record("scalar", [0], "Float32", b"wxyz")  # dims [0] with an element is a scalar
        + record("b", [2], "Int8", b"23")  # comes again: replaces the first, at its place
    )
    index = mindspore_ckpt.read_index(path)
    assert list(index.tensors) == ["a", "empty_chunk", "b", "scalar"]
    assert contents(path) == {
        "a": ("int32", (3,), b"12345678abcd"),
        "empty_chunk": ("int8", (1,), b"x"),
        "b": ("int8", (2,), b"23"),
        "scalar": ("float32", (), b"wxyz"),
    }
    assert "'b' is stored twice" in index.notes[0]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        ["misc/dtypes.ckpt", "misc/append.ckpt", "misc/crc.ckpt", "misc/dtypes.safetensors"]
    ),
    st.data(),
)
def test_damage_ends_in_our_errors_only(tmp_path_factory, name, data):
    raw = bytearray((MINDSPORE / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = tmp_path_factory.mktemp("damage") / Path(name).name
    path.write_bytes(raw)
    try:
        contents(path)
    except CkptforgeError as error:
        assert str(path) in str(error)


SAFETENSORS_DAMAGE = {
    "short": (b"1234", "too few"),
    "long header": (struct.pack("<Q", 1 << 40) + b"{}", "truncated"),
    "not json": (struct.pack("<Q", 2) + b"{x", "isn't JSON"),
    "not an object": (struct.pack("<Q", 2) + b"[]", "expected an object"),
    "twice": (struct.pack("<Q", 20) + b'{"a":{},"a":{}}     ', "twice"),
    "metadata": (struct.pack("<Q", 23) + b'{"__metadata__":{"a":1}}'[:23] + b"", "JSON|strings"),
}


@pytest.mark.parametrize("kind", SAFETENSORS_DAMAGE)
def test_damaged_safetensors_headers(tmp_path, kind):
    data, message = SAFETENSORS_DAMAGE[kind]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        safetensors.read_index(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            "needs 8 bytes but its offsets hold 4",
        ),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}, "outside"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "hole"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}, "outside"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "belong to no tensor"),
        ({"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}, "'F31' is unknown"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "unknown"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "sizes"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "sizes"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "sizes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "two byte offsets"),
        ({"dtype": "F32", "shape": [2]}, "exactly"),
        ("F32", "exactly"),
        ({"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}, "needs"),
    ],
)
def test_wrong_safetensors_entries(tmp_path, spec, message):
    header = json.dumps({"t": spec}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FormatError, match=message):
        safetensors.read_index(tmp_path / "x.safetensors")


def test_a_header_is_read_the_same_however_its_json_is_written(tmp_path):
    entries = {
        "__metadata__": {"format": "pt", "dtype": "none", "a key": "of  two spaces"},
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
        "a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]},
    }
    found = []
    for written in ({"separators": (",", ":")}, {}, {"indent": 1}):
        raw = json.dumps(entries, **written).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(25))
        index = safetensors.read_index(path)
        starts = {name: one.extents[0].offset - len(raw) for name, one in index.tensors.items()}
        kinds = {name: (one.dtype, one.shape) for name, one in index.tensors.items()}
        found.append((list(kinds.items()), starts, index.metadata))
    assert found[0][1] == {"a": 8, "b": 9}
    assert found[0] == found[1] == found[2]


def test_an_entry_that_lacks_a_key_beside_one_that_has_more_is_refused(tmp_path):
    raw = (
        b'{"a":{"dtype":"U8","shape":[0]},'
        b'"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":[0]}}'
    )
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(FormatError, match="tensor 'a': its entry must have exactly"):
        safetensors.read_index(tmp_path / "x.safetensors")


def test_overlapping_tensors(tmp_path):
    header = json.dumps(
        {
            n: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]}
            for n, at in (("a", 0), ("b", 4))
        }
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(FormatError, match="'b' overlaps"):
        safetensors.read_index(tmp_path / "x.safetensors")


def test_any_box_of_a_tensor_is_read(tmp_path):
    numbers = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    write_safetensors(tmp_path / "x.safetensors", {"t": ("F32", [2, 3, 4], numbers.tobytes())})
    value = value_of(safetensors.read_index(tmp_path / "x.safetensors").tensors["t"])
    files = OpenFiles()
    for box in [
        ((0, 2), (0, 3), (0, 4)),
        ((1, 2), (0, 3), (0, 4)),
        ((0, 2), (1, 3), (2, 3)),
        ((0, 1), (2, 2), (0, 4)),
    ]:
        expected = numbers[tuple(slice(*range_) for range_ in box)]
        found = read_value("t", part_of(value, box), Worker(files, Budget(1, 1 << 20)))
        assert found.shape == expected.shape and (found == expected).all()
    files.close()


def test_checkpoints_are_chosen_by_numeric_step(tmp_path):
    for name in ("m-1_9.ckpt", "m-1_10.ckpt", "m-1_2.ckpt"):
        (tmp_path / name).write_bytes(record("a", [1], "Int8", b"1"))
    chosen, note = mindspore_dir.choose_checkpoint(tmp_path, None)
    assert chosen.name == "m-1_10.ckpt" and "m-1_10.ckpt" in note
    assert mindspore_dir.choose_checkpoint(tmp_path, 9)[0].name == "m-1_9.ckpt"
    with pytest.raises(InputNotFoundError, match="no checkpoint of step 7"):
        mindspore_dir.choose_checkpoint(tmp_path, 7)
    (tmp_path / "other.ckpt").write_bytes(b"")
    with pytest.raises(FormatError, match="other.ckpt"):
        mindspore_dir.choose_checkpoint(tmp_path, None)


def test_dtypes_that_a_format_cannot_hold():
    for dtype in DTYPES:
        spec = [TensorSpec("t", dtype, (2,))]
        if dtype.safetensors is None:
            with pytest.raises(PlanError, match="'t'"):
                safetensors.lay_out(Path("x"), spec, {"format": "pt"})
        if dtype.mindspore is None or not dtype.mindspore_loads:
            with pytest.raises(PlanError, match="MindSpore can't load"):
                mindspore_ckpt.lay_out(Path("x"), spec)


def test_an_index_is_written_as_json_with_an_indent():
    shards = {
        name: [TensorSpec(tensor, DTYPES[1], (2,)) for tensor in tensors]
        for name, tensors in {"b": ["y", 'é"\n'], "a": ["x, {", "w\x7f\u2028"]}.items()
    }
    weight_map = {tensor.name: name for name, held in shards.items() for tensor in held}
    index = {"metadata": {"total_size": 32}, "weight_map": dict(sorted(weight_map.items()))}
    assert index_json(shards).decode() == json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def test_shards_are_cut_like_the_hub_does():
    dtype = BY_MINDSPORE["Int8"]
    specs = [
        TensorSpec(name, dtype, (size,)) for name, size in (("a", 6), ("b", 4), ("c", 20), ("d", 1))
    ]
    shards = cut_into_shards(specs, 10)
    assert [[spec.name for spec in shard] for shard in shards.values()] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert next(iter(shards)) == "model-00001-of-00003.safetensors"
    assert list(cut_into_shards(specs, 100)) == ["model.safetensors"]
