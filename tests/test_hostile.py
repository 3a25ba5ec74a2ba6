"""Files made to harm: each is one error that names the file and the place, soon and in little
memory."""

import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import ckptforge
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import (
    CkptforgeError,
    ConfigError,
    FormatError,
    InputNotFoundError,
    OutputError,
    TableError,
    printable,
    shown,
)
from ckptforge.foreign.files import is_file_name, read_small
from ckptforge.formats import mindspore_ckpt, safetensors, safetensors_header
from ckptforge.formats.protobuf import encode_varint, number, record
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.strategy_files import read_strategy
from ckptforge.publish import journal
from ckptforge.storage.local import DISK
from ckptforge.tables.model_config import Expression
from ckptforge.tables.parsing import load_table
from ckptforge.verbs.check import check
from ckptforge.wording import listing
from tests.helpers import HUB, MINDSPORE, contents, tiny_config, write_hub, write_safetensors
from tests.test_tables import GOOD

STRATEGY = MINDSPORE / "strategies" / "mp8"


@pytest.fixture(autouse=True)
def bounded():
    """A hang or a flood of memory fails its test and no more."""

    def stop(*_):
        raise AssertionError("over 30 seconds")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# JSON, wherever it is read


def as_index(directory, content):
    shutil.copy(HUB / "config.json", directory)
    (directory / "model.safetensors.index.json").write_bytes(content)
    return "model.safetensors.index.json", lambda: open_checkpoint(directory)


def as_unified_map(directory, content):
    (directory / "param_name_map.json").write_bytes(content)
    return "param_name_map.json", lambda: open_checkpoint(directory)


def as_config(directory, content):
    for path in HUB.glob("model*"):
        shutil.copy(path, directory)
    (directory / "config.json").write_bytes(content)
    return "config.json", lambda: ckptforge.to_ms(directory, directory / "out.ckpt", dry_run=True)


def as_given_config(directory, content):
    (directory / "given.json").write_bytes(content)
    return "given.json", lambda: ckptforge.to_ms(
        HUB, directory / "out.ckpt", config=directory / "given.json", dry_run=True
    )


def as_manifest(directory, content):
    shutil.copy(MINDSPORE / "full.ckpt", directory / "x.ckpt")
    (directory / "x.ckpt.manifest.json").write_bytes(content)
    return "x.ckpt.manifest.json", lambda: ckptforge.to_torch(
        directory / "x.ckpt", directory / "out", dry_run=True
    )


def as_checked_manifest(directory, content):
    shutil.copy(MINDSPORE / "full.ckpt", directory / "x.ckpt")
    (directory / "x.ckpt.manifest.json").write_bytes(content)
    return "x.ckpt.manifest.json", lambda: check(directory / "x.ckpt")


def as_strategy(directory, content):
    (directory / "s.json").write_bytes(content)
    return "s.json", lambda: read_strategy(directory / "s.json")


def as_parallel_config(directory, content):
    (directory / "p.json").write_bytes(content)
    return "p.json", lambda: read_parallel_config(directory / "p.json")


JSON_READERS = [
    as_index,
    as_unified_map,
    as_config,
    as_given_config,
    as_manifest,
    as_checked_manifest,
    as_strategy,
]
BAD_JSON = {
    "a key twice": (b'{"a": {"key": 1, "key": 2}}', "holds the key 'key' twice"),
    "deep": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64 levels"),
    "very deep": (b'{"a":' * 100_000, "isn't valid JSON"),
    "digits": (b'{"a": ' + b"9" * 100_000 + b"}", "isn't valid JSON"),
    "half a surrogate pair": (b'{"a": ["\\ud800"]}', "half of a surrogate pair"),
    "half a surrogate pair in a key": (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
    "half a surrogate pair in UTF-8": (b'{"a": "\xed\xa0\x80"}', "isn't valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "isn't valid JSON"),
    "a NUL": (b'{"a": "\0"}', "isn't valid JSON"),
    "another kind": (b"[" + b"[]," * 1000 + b"1]", "holds a JSON list"),
    "many lists": (b'{"a":[' + b"[]," * 1_200_000 + b"1]}", "holds more than 2097152 values"),
    "many keys": (b"{" + b'"a":1,' * 2_200_000 + b"}", "holds more than 2097152 values"),
    "a string that doesn't end": (
        b'{"a":' + b'"\\' * 3_000_000 + b"," * 2_200_000,
        "holds more than 2097152 values|isn't valid JSON",
    ),
    "behind the end": (b"{} {}", "isn't valid JSON"),
    "empty": (b"", "isn't valid JSON"),
}


@pytest.mark.parametrize("reader", JSON_READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json(tmp_path, reader, kind):
    content, message = BAD_JSON[kind]
    name, read = reader(tmp_path, content)
    with pytest.raises(CkptforgeError, match=message) as caught:
        read()
    assert name in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "reader",
    [as_index, as_unified_map, as_manifest, as_checked_manifest, as_strategy],
    ids=lambda reader: reader.__name__,
)
@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_have(tmp_path, reader, constant):
    _, read = reader(tmp_path, b'{"a": %s}' % constant.encode())
    with pytest.raises(FormatError, match=f"holds {constant}"):
        read()


def test_configs_may_hold_infinity_as_published_ones_do_but_not_as_a_size(tmp_path):
    write_hub(tmp_path / "hub", tiny_config(time_step_limit=[0.0, float("inf")]))
    assert ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt").tensors
    for size in (
        "Infinity",
        "NaN",
        "1e999",
        "12.0",
        "-12",
        "true",
        '"12"',
        "[12]",
        "1" * 4000,
        '"' + "x" * 100_000 + '"',
    ):
        config = (tmp_path / "hub" / "config.json").read_text()
        (tmp_path / "c.json").write_text(
            config.replace('"hidden_size": 12', f'"hidden_size": {size}')
        )
        with pytest.raises(
            ConfigError, match="hidden_size is .*, expected a positive integer"
        ) as caught:
            ckptforge.to_ms(tmp_path / "hub", tmp_path / "y.ckpt", config=tmp_path / "c.json")
        assert len(str(caught.value)) < 2000


def test_files_that_are_too_large_are_not_read_whole(tmp_path):
    for reader, size, message in [
        (as_index, 65 << 20, "over 67108864 bytes"),
        (as_strategy, 65 << 20, "over 67108864 bytes"),
        (as_manifest, 257 << 20, "over 268435456 bytes"),
        (as_given_config, 17 << 20, "over 16777216 bytes"),
        (as_parallel_config, 1 << 20, "over 262144 bytes"),
    ]:
        directory = tmp_path / reader.__name__
        directory.mkdir()
        name, read = reader(directory, b"")
        os.truncate(directory / name, size)
        with pytest.raises(CkptforgeError, match=message):
            read()


def test_what_stands_in_strings_is_not_counted_as_values(tmp_path):
    text = json.dumps({"tokenizer": "[,]{" * 1_000_000})
    side = {
        "layout": None,
        "files": {"config.json": {"text": "{}"}, "tokenizer.json": {"text": text}},
        "shards": {},
    }
    _, read = as_manifest(
        tmp_path,
        json.dumps({"outputs": [], "layout": None, "model": None, "hugging_face": side}).encode(),
    )
    # of what is in the manifest, which is read
    with pytest.raises(CkptforgeError, match="config.json|layouts dense and gmm"):
        read()


def test_a_size_that_is_said_wrong_bounds_nothing(tmp_path):
    path = Path("/proc/self/maps")  # says 0 bytes
    assert read_small(path, 1 << 24)
    with pytest.raises(FormatError, match="over 10 bytes"):
        read_small(path, 10)


# Names that stand in files

BAD_NAMES = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/b.safetensors",
    "a\\b.safetensors",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 300,
    "é" * 200,
    "",
    ".",
    "..",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_files_that_lead_elsewhere(tmp_path, name):
    assert not is_file_name(name)
    for reader in (as_index, as_unified_map):
        directory = tmp_path / reader.__name__
        directory.mkdir()
        _, read = reader(directory, json.dumps({"weight_map": {"t": name}}).encode())
        with pytest.raises(FormatError, match="isn't the name of a file") as caught:
            read()
        assert "\x1b" not in str(caught.value) and len(str(caught.value).split("\n")) == 1
    for files, shards in (
        ({name: {"text": ""}}, {}),
        ({}, {name: {"metadata": {}, "tensors": {}}}),
    ):
        side = {"layout": None, "files": files, "shards": shards}
        manifest = {"outputs": [], "layout": None, "model": None, "hugging_face": side}
        _, read = as_manifest(tmp_path, json.dumps(manifest).encode())
        with pytest.raises(FormatError, match="isn't the name of a file"):
            read()
    if name != "a/b.safetensors":  # outputs may lie in directories
        _, read = as_checked_manifest(
            tmp_path, json.dumps({"outputs": [{"file": name, "size": 0, "tensors": {}}]}).encode()
        )
        with pytest.raises(FormatError, match="isn't a file of this output"):
            read()


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": ["gmm"]},
        {"model": {"a": 1}},
        {"outputs": [{"file": "x.ckpt", "size": 1e999}]},
        {"outputs": [{"file": "x.ckpt", "size": "12"}]},
        {"outputs": [{"file": "x.ckpt", "size": 1 << 80}]},
        {"outputs": [{"file": "x.ckpt", "size": 1, "mtime_ns": 1e999}]},
        {"outputs": [{"file": ["x.ckpt"], "size": 1}]},
        {"outputs": 3},
        {"hugging_face": []},
        {"hugging_face": {"files": {"a": {"base64": "é"}}, "shards": {}, "layout": None}},
        {"hugging_face": {"files": {"a": {}}, "shards": {}, "layout": None}},
        {"hugging_face": {"files": {"a": {"text": 3}}, "shards": {}, "layout": None}},
        {
            "hugging_face": {
                "files": {},
                "shards": {"a.safetensors": {"metadata": {"format": 3}, "tensors": {}}},
                "layout": None,
            }
        },
        {
            "hugging_face": {
                "files": {},
                "shards": {"a.safetensors": {"metadata": {}, "tensors": {"t": []}}},
                "layout": None,
            }
        },
        {"hugging_face": {"files": {}, "shards": {}, "layout": {}}},
    ],
)
def test_manifests_of_the_wrong_types(tmp_path, changes):
    manifest = {"outputs": [], "layout": None, "model": None, "hugging_face": None, **changes}
    content = json.dumps(manifest).replace("Infinity", "1e999").encode()
    _, read = as_manifest(tmp_path, content)
    with pytest.raises(FormatError, match=r"x.ckpt.manifest.json: isn't a ckptforge manifest"):
        read()


def test_a_manifests_small_files_do_not_take_the_place_of_weights(tmp_path):
    side = {
        "layout": None,
        "files": {"config.json": {"text": "{}"}, "model.safetensors": {"text": ""}},
        "shards": {},
    }
    _, read = as_manifest(
        tmp_path,
        json.dumps({"outputs": [], "layout": None, "model": None, "hugging_face": side}).encode(),
    )
    with pytest.raises(
        FormatError,
        match=r"'model.safetensors' isn't the name of a file beside "
        r"weights",
    ):
        read()


HOSTILE_NAMES = [
    "../../escaped",
    "/tmp/escaped",
    "a\nb",
    "a\x1b[31mb",
    "..",
    "con\0trol",
    "‮gnp.exe",
    "n" * 60_000,
    "#",
    "%s{}{0}",
]


def test_tensor_names_never_become_paths_and_are_escaped_where_they_are_shown(tmp_path):
    os.mkdir(tmp_path / "in")
    write_safetensors(
        tmp_path / "in" / "x.safetensors",
        {name: ("F32", [1], struct.pack("<f", i)) for i, name in enumerate(HOSTILE_NAMES)},
    )
    found = ckptforge.inspect(tmp_path / "in" / "x.safetensors")
    assert set(found.entries) == set(HOSTILE_NAMES)
    strategy = {"parallel_strategy_item": {}, "parallel_layout_item": {}}
    for name in HOSTILE_NAMES:
        strategy["parallel_layout_item"][name] = {
            "dev_matrix": [2],
            "tensor_map": [-1],
            "tensor_shape": [1],
        }
    (tmp_path / "in" / "s.json").write_text(json.dumps(strategy))
    ckptforge.split(
        tmp_path / "in" / "x.safetensors",
        tmp_path / "ranks",
        strategy_dir=tmp_path / "in" / "s.json",
    )
    ckptforge.merge(
        tmp_path / "ranks", tmp_path / "back.ckpt", strategy_dir=tmp_path / "in" / "s.json"
    )
    assert contents(tmp_path / "back.ckpt") == contents(tmp_path / "in" / "x.safetensors")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {
        "in/x.safetensors",
        "in/s.json",
        "ranks/rank_0/checkpoint_0.ckpt",
        "ranks/rank_1/checkpoint_1.ckpt",
        "ranks/ckptforge.manifest.json",
        "back.ckpt",
        "back.ckpt.manifest.json",
    }
    with pytest.raises(CkptforgeError) as caught:
        ckptforge.to_torch(tmp_path / "back.ckpt", tmp_path / "hf")
    assert (
        "\x1b" not in str(caught.value)
        and "a\nb" not in str(caught.value)
        and len(str(caught.value)) < 3000
    )


def test_what_messages_show():
    assert printable("a\nb\x1b\u202e\ud800é") == "a\\nb\\x1b\\u202e\\ud800é"
    assert (
        len(shown("x" * 10**6)) < 250
        and len(shown([1] * 10**6)) < 250
        and len(shown({i: [i] * 99 for i in range(999)})) < 2500
    )
    assert shown(1 << 100_000) == "a int too large to show"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) < 250
    assert listing(["a\nb", "x" * 1000]).count("\n") == 1
    assert str(CkptforgeError("one\ntwo\x07")) == "one\ntwo\\x07"


# safetensors


def header(content, data=b""):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content)) + content + data


def entry(shape=(1,), dtype="U8", offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


E = json.dumps(entry()).encode()
BAD_SAFETENSORS = {
    "a header of 2**64 - 1 bytes": (b"\xff" * 8, "truncated"),
    "deep": (header(b'{"a":' * 100_000), "isn't JSON"),
    "deep lists": (header(b'{"a":' + b"[" * 100_000), "isn't JSON"),
    "a deep shape": (
        header(b'{"a":{"dtype":"U8","shape":' + b"[" * 90_000 + b"]" * 90_000 + b"}}", b"x"),
        "isn't JSON",
    ),
    "a shape deep enough to show": (
        header({"a": {**entry(), "shape": [[[[[[[[[[[[]]]]]]]]]]]]}}, b"x"),
        "isn't a list of sizes",
    ),
    "objects instead of sizes": (
        header({"a": {"dtype": "U8", "data_offsets": [0, 1], "shape": {"x": 1}}}, b"x"),
        "shape {'x': 1} isn't a list of sizes",
    ),
    "a text instead of a size": (header({"a": entry(["1"])}, b"x"), "shape .'1'. isn't a list"),
    "a text instead of an offset": (
        header({"a": entry(offsets=("0", 1))}, b"x"),
        "data_offsets .'0', 1. aren't two byte offsets",
    ),
    "many lists": (header(b'{"a":[' + b"[]," * 1_000_000 + b"1]}"), "exactly dtype"),
    "a name twice": (header(b'{"a":' + E + b',"a":' + E + b"}", b"x"), "holds 'a' twice"),
    "a name twice, written in two ways": (
        header(b'{"a":' + E + b',"\\u0061":' + E + b"}", b"x"),
        "holds 'a' twice",
    ),
    "metadata twice": (
        header(b'{"__metadata__":{},"__metadata__":{}}'),
        "holds '__metadata__' twice",
    ),
    "metadata with a key twice": (
        header(b'{"__metadata__":{"k":"1","k":"2"}}'),
        "__metadata__ holds 'k' twice",
    ),
    "metadata of numbers": (header({"__metadata__": {"k": 1}}), "strings to strings"),
    "metadata of deep lists": (
        header(b'{"__metadata__":{"k":' + b"[" * 100_000),
        "isn't JSON",
    ),
    "metadata that is a list": (header({"__metadata__": []}), "strings to strings"),
    "an entry with a key twice": (
        header(b'{"a":' + E[:-1] + b',"dtype":"U8"}}', b"x"),
        "exactly dtype, shape and data_offsets",
    ),
    "an entry with one key thrice": (
        header(b'{"a":{"dtype":1,"dtype":2,"dtype":3}}'),
        "exactly dtype, shape and data_offsets",
    ),
    "half a surrogate pair": (header(b'{"\\ud800":' + E + b"}", b"x"), "isn't JSON"),
    "half a surrogate pair in the metadata": (
        header(b'{"__metadata__":{"k":"\\ud800"}}'),
        "isn't JSON",
    ),
    "not UTF-8": (header(b'{"\xff":' + E + b"}", b"x"), "isn't JSON"),
    "a line break in a name": (header(b'{"a\nb":' + E + b"}", b"x"), "isn't JSON"),
    "a name of 70,000 bytes": (
        header({"n" * 70_000: entry()}, b"x"),
        "has 70000 bytes, at most 65536",
    ),
    "a name with a line break": (
        header({"a\nb": entry((2,))}, b"x"),
        r"'a\\nb': uint8 \[2\] needs",
    ),
    "digits": (
        header(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"),
        r"exactly dtype, shape and data_offsets \(Integer value out of range",
    ),
    "many digits": (
        header(
            b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,1]}}', b"x"
        ),
        "exactly dtype",
    ),
    "NaN": (
        header(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"),
        "isn't JSON",
    ),
    "a size of 2**63": (header({"a": entry((1 << 63,))}, b"x"), "isn't a list of sizes"),
    "65 dims": (header({"a": entry((1,) * 65)}, b"x"), "has 65 dims"),
    "a million dims": (header({"a": entry((2,) * 1_000_000)}, b"x"), "exactly dtype"),
    "a product over 64 bits": (
        header({"a": entry((1 << 33, 1 << 33), offsets=(0, 4))}, b"1234"),
        "more bytes than 63 bits",
    ),
    "a product of 64 dims": (
        header({"a": entry(((1 << 63) - 1,) * 64)}, b"x"),
        "more bytes than 63 bits",
    ),
    "a product over 64 bits with a 0": (
        header({"a": entry((1 << 62, 4, 0), offsets=(0, 0))}),
        "more bytes than 63 bits",
    ),
    "the same bytes for two": (header({"a": entry(), "b": entry()}, b"x"), "'b' overlaps"),
    "one inside another": (
        header({"a": entry((4,), offsets=(0, 4)), "b": entry((1,), offsets=(1, 2))}, b"1234"),
        "'b' overlaps",
    ),
    "none inside another": (
        header({"a": entry((4,), offsets=(0, 4)), "b": entry((0,), offsets=(2, 2))}, b"1234"),
        "'b' overlaps",
    ),
    "a comma at the end": (header(b'{"a":' + E + b",}", b"x"), "isn't JSON"),
    "something behind": (header(b'{"a":' + E + b"}{}", b"x"), r"isn't JSON \(trailing characters"),
    "a brace in a string": (
        header(b'{"a":{"dtype":"}","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "dtype '}' is unknown",
    ),
    "not ended": (header(b'{"a":{"dtype":"U8","shape":[1'), "isn't JSON"),
    "a dtype of 10,000 characters": (header({"a": entry(dtype="D" * 10_000)}, b"x"), "is unknown"),
    "no tensors": (header(b"{}"), "holds no tensors"),
    "a checksum of 5,000 digits": (
        header({"__metadata__": {"format": "ms", "crc_num": "9" * 5000}, "a": entry()}, b"x"),
        "expected a number",
    ),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path, kind):
    content, message = BAD_SAFETENSORS[kind]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert (
        "x.safetensors" in str(caught.value)
        and len(str(caught.value)) < 1000
        and "\n" not in str(caught.value)
    )


def test_a_header_over_the_formats_limit(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(FormatError, match="over the format's limit of 100000000"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_too_many_tensors(tmp_path, monkeypatch):
    for module in (safetensors_header, mindspore_ckpt):
        monkeypatch.setattr(module, "MAX_TENSORS", 3)
    (tmp_path / "x.safetensors").write_bytes(
        header({name: entry((0,), offsets=(0, 0)) for name in "abcd"})
    )
    (tmp_path / "x.ckpt").write_bytes(value(tag=b"a") * 4)
    for name in ("x.safetensors", "x.ckpt"):
        with pytest.raises(FormatError, match="holds more than 3"):
            open_checkpoint(tmp_path / name)


def test_valid_headers_of_unusual_form_are_read(tmp_path):
    text = '{ "__metadata__" : { "k{}" : "}\\"{é\\u00e9" } ,'
    text += (
        '\n "a\\n\\u0062 é" : {\t"data_offsets":[0,1] ,\r\n"shape" : [ 1 ],"dtype":"U\\u0038"} }   '
    )
    (tmp_path / "x.safetensors").write_bytes(header(text.encode(), b"x"))
    index = safetensors.read_index(tmp_path / "x.safetensors")
    assert index.metadata == {"k{}": '}"{éé'} and list(index.tensors) == ["a\nb é"]
    (tmp_path / "x.safetensors").write_bytes(header({"a": entry((1 << 40, 0), offsets=(0, 0))}))
    assert contents(tmp_path / "x.safetensors") == {"a": ("uint8", (1 << 40, 0), b"")}


# .ckpt


def value(tag=b"t", dims=(1,), dtype=b"Int8", content=b"x", more=b""):
    inner = b"".join(number(1, n) for n in dims) + record(2, dtype) + record(3, content) + more
    return record(1, record(1, tag) + record(2, inner))


GROUP = b"\x0b\x08\x01\x0c"
BAD_CKPT = {
    "a varint that never ends": (b"\xff" * 1000, "doesn't end"),
    "a varint over 64 bits": (b"\x0a" + b"\xff" * 9 + b"\x7f", "over 64 bits"),
    "a length of 2**64 - 1": (
        b"\x0a" + encode_varint((1 << 64) - 1) + b"x",
        "should have 18446744073709551615 bytes",
    ),
    "a length over its record": (
        record(1, b"\x0a\x7f" + b"x" * 20) + bytes(200),
        "should have 127 bytes but only 20",
    ),
    "a group": (GROUP, "wire type 3"),
    "the end of a group": (b"\x0c", "wire type 4"),
    "groups in groups": (b"\x0b" * 100_000, "wire type 3"),
    "64 bits": (b"\x09" + bytes(8), "wire type 1"),
    "32 bits": (b"\x0d" + bytes(4), "wire type 5"),
    "wire type 7": (b"\x0f" + bytes(4), "wire type 7"),
    "a group in a tensor": (value(more=GROUP), "wire type 3"),
    "field 0": (b"\x02\x00", "field 0"),
    "field 2**61 - 1": (encode_varint((1 << 64) - 6) + b"\x00", "field 2305843009213693951"),
    "packed dims without end": (
        value(dims=(), more=record(1, b"\x01" * 1_000_000)),
        "more than 64 dims",
    ),
    "dims without end": (value(dims=(1,) * 100_000), "more than 64 dims"),
    "a negative dim": (value(dims=(-1,)), "can't be negative"),
    "a product over 64 bits": (value(dims=(1 << 32, 1 << 32)), "more bytes than 63 bits"),
    "a product over 64 bits with a 0": (
        value(dims=(1 << 62, 8, 0), content=b""),
        "more bytes than 63 bits",
    ),
    "a product of 64 dims": (value(dims=((1 << 63) - 1,) * 64), "more bytes than 63 bits"),
    "a name of 70,000 bytes": (value(tag=b"n" * 70_000), "has 70000 bytes"),
    "a name that isn't UTF-8": (value(tag=b"\xff"), "isn't UTF-8"),
    "half a surrogate pair": (value(tag=b"\xed\xa0\x80"), "isn't UTF-8"),
    "a name with a line break": (
        value(tag=b"a\nb", dims=(2,)),
        r"'a\\nb'.*should have 2 bytes but "
        r"1",
    ),
    "a long dtype": (value(dtype=b"D" * 60_000), "which is unknown"),
    "two names": (record(1, record(1, b"a") + record(1, b"b")), "repeated protobuf field 1"),
    "two contents": (value(more=record(3, b"y")), "repeated protobuf field 3"),
    "no tensor": (record(1, record(1, b"a")), "lacks its tensor"),
    "nothing in a value": (record(1, b""), "lacks its name"),
    "zeros": (bytes(1000), "protobuf field 0"),
}


@pytest.mark.parametrize("kind", BAD_CKPT)
def test_bad_ckpt(tmp_path, kind):
    content, message = BAD_CKPT[kind]
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_checkpoint(tmp_path / "x.ckpt")
    assert (
        "x.ckpt" in str(caught.value)
        and len(str(caught.value)) < 1000
        and "\n" not in str(caught.value)
    )


def test_notes_on_tensors_that_are_stored_twice_are_few(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"".join(value(tag=b"%d" % (i % 50)) for i in range(500)))
    notes = mindspore_ckpt.read_index(tmp_path / "x.ckpt").notes
    assert len(notes) == 11 and "40 more" in notes[-1]


# Strategy files


def layout(name=b"w", matrix=b"\x08\x08", tensor_map=b"\x08" + b"\xff" * 9 + b"\x01", more=b""):
    inner = record(1, matrix) + record(2, tensor_map) + record(3, b"") + record(4, b"") + more
    return record(3, record(1, name) + record(2, inner))


def operator(stage):
    return record(2, record(1, b"op") + record(2, number(1, stage)))


BAD_STRATEGY = {
    "a varint that never ends": (b"\xff" * 1000, "a number that begins at byte 0 doesn't end"),
    "a varint over 64 bits": (
        b"\x08" + b"\xff" * 9 + b"\x7f",
        "the number at byte 1 is over 64 bits; damaged, or not a strategy file",
    ),
    "a length of 2**64 - 1": (
        b"\x1a" + encode_varint((1 << 64) - 1),
        "the record at byte 0 should have 18446744073709551615 bytes",
    ),
    "a group": (b"\x08\x01" + GROUP, "byte 2 holds protobuf wire type 3"),
    "groups in groups": (b"\x0b" * 100_000, "wire type 3"),
    "64 bits": (b"\x09" + bytes(8), "wire type 1"),
    "a group in a layout": (layout(more=GROUP), "byte 2[0-9] holds protobuf wire type 3"),
    "an unknown field": (b"\x20\x01", "field 4"),
    "a number for a record": (b"\x18\x01", "a number instead of a record"),
    "fields without end": (b"\x08\x01" * 600_000, "more than 131072 values"),
    "lists without end": (layout(more=b"\x12\x00" * 100_000), "more than 256 values"),
    "a device matrix without end": (layout(matrix=number(1, 1) * 100_000), "more than 64 values"),
    "a tensor map without end": (layout(tensor_map=number(1, -1) * 100_000), "more than 64 values"),
    "2**62 devices": (
        layout(matrix=number(1, 1 << 62)),
        "'w': its device matrix is for more than 131072 devices",
    ),
    "2**4032 devices": (layout(matrix=number(1, (1 << 63) - 1) * 64), "more than 131072 devices"),
    "no devices": (layout(matrix=number(1, 0)), "sizes below 1"),
    "fewer than no devices": (layout(matrix=number(1, -8)), "sizes below 1"),
    "a device axis that isn't there": (layout(tensor_map=number(1, 1 << 40)), "doesn't have"),
    "a negative device axis": (layout(tensor_map=number(1, -2)), "doesn't have"),
    "a device axis twice": (layout(tensor_map=number(1, 0) * 2), "uses a device axis twice"),
    "many shards": (layout(more=number(6, 1) + number(7, 1 << 62)), "doesn't fit 8 replicas"),
    "stage 2**64 - 1": (operator(-1) + layout(), "of stage -1"),
    "stage 2**62": (operator(1 << 62) + layout(), "of stage 4611686018427387904"),
    "stage 100,000": (operator(100_000) + layout(), "of stage 100000"),
    "stage 1,000 alone": (operator(1_000) + layout(), "stage 0 is missing"),
    "stage 999,999 in a name": (layout(b"999999-w") + layout(b"0-w"), "of stage 999999"),
    "stages and devices": (
        b"".join(layout(b"%d-w" % i, number(1, 1 << 16)) for i in range(3)),
        "3 stages of 65,536 devices",
    ),
    "an operator without a stage": (record(2, b"") + layout(), "an operator without a stage"),
    "one name twice": (layout() * 2, "'w' is laid out twice"),
    "a name of 70,000 bytes": (layout(b"n" * 70_000), "has 70000 bytes"),
    "a name that isn't UTF-8": (layout(b"\xff"), "isn't UTF-8"),
    "a name with a line break": (layout(b"a\nb", number(1, 0)), r"'a\\nb'"),
    "a manual split": (layout(more=number(5, 1)), "manually split"),
    "nothing": (b"", "holds no parameter layouts"),
}


@pytest.mark.parametrize("kind", BAD_STRATEGY)
def test_bad_strategies(tmp_path, kind):
    content, message = BAD_STRATEGY[kind]
    (tmp_path / "s.ckpt").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_strategy(tmp_path / "s.ckpt")
    assert "s.ckpt" in str(caught.value) and len(str(caught.value)) < 1000


def test_the_hand_made_strategy_without_fault_is_read(tmp_path):
    (tmp_path / "s.ckpt").write_bytes(number(1, 1) + operator(0) + layout())
    assert read_strategy(tmp_path / "s.ckpt").ranks == 8


def json_strategy(**changes):
    item = {"dev_matrix": [8], "tensor_map": [0, -1], "tensor_shape": [8, 4], "field": 0, **changes}
    return {"parallel_layout_item": {"w": item}, "parallel_strategy_item": {"op": {"stage": 0}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json_strategy(dev_matrix=[1e300]), "where a number is expected"),
        (json_strategy(dev_matrix=[True]), "where a number is expected"),
        (json_strategy(dev_matrix="8"), "where a number is expected"),
        (json_strategy(dev_matrix=8), "isn't a strategy file"),
        (json_strategy(dev_matrix={"a": 1}), "where a number is expected"),
        (json_strategy(dev_matrix=[10**4000]), "more than 131072 devices"),
        (json_strategy(dev_matrix=[2] * 100_000), "more than 64 axes"),
        (json_strategy(dev_matrix=[1 << 62] * 60), "more than 131072 devices"),
        (json_strategy(tensor_map=[-1] * 100_000), "more than 64 axes"),
        (json_strategy(tensor_map=[0, 10**4000]), "names device axes that"),
        (json_strategy(dev_matrix=[-(10**4000)]), "sizes below 1"),
        (json_strategy(tensor_map=[[0]]), "where a number is expected"),
        (json_strategy(tensor_shape=[-8, 4]), "isn't one of a tensor"),
        (json_strategy(tensor_shape=[1 << 63, 4]), "isn't one of a tensor"),
        (json_strategy(tensor_shape=[8]), "can't be cut"),
        (json_strategy(tensor_shape=[3] * 100_000), "can't be cut"),
        (
            json_strategy(opt_weight_shard_step=1, opt_weight_shard_size=10**4000),
            "doesn't fit 1 replica",
        ),
        (json_strategy(param_split_shape=[1]), "manually split"),
        ({"parallel_layout_item": {"w": None}}, "isn't a strategy file"),
        ({"parallel_layout_item": [1]}, "isn't a strategy file"),
        (
            {"parallel_layout_item": {"n" * 70_000: {"dev_matrix": [1], "tensor_map": []}}},
            "has 70000 bytes",
        ),
        ({**json_strategy(), "parallel_strategy_item": {"op": {"stage": -1}}}, "of stage -1"),
        (
            {**json_strategy(), "parallel_strategy_item": {"op": {"stage": 10**3000}}},
            "of stage 1000",
        ),
        ({**json_strategy(), "parallel_strategy_item": {"op": {"stage": 0.5}}}, "has stage 0.5"),
        ({**json_strategy(), "parallel_strategy_item": {"op": {"stage": "0"}}}, "has stage '0'"),
        ({**json_strategy(), "parallel_strategy_item": {"op": {}}}, "isn't a strategy file"),
        ({**json_strategy(), "parallel_strategy_item": [1]}, "isn't a strategy file"),
        ({}, "isn't a strategy file"),
    ],
)
def test_bad_json_strategies(tmp_path, content, message):
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=message) as caught:
        read_strategy(tmp_path / "s.json")
    assert "s.json" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_stage_that_is_infinite(tmp_path):
    content = json.dumps(json_strategy()).replace('"stage": 0', '"stage": 1e999')
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(FormatError, match="has stage inf"):
        read_strategy(tmp_path / "s.json")


def test_a_rank_of_many_digits(tmp_path):
    for name in ("rank_0", "rank_" + "9" * 200):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.ckpt").write_bytes(value())
    with pytest.raises(
        InputNotFoundError,
        match=r"ranks are missing:\n  rank_1\n(.*\n)*  … and "
        r"9+88 more",
    ):
        ckptforge.merge(tmp_path, tmp_path / "out.ckpt", strategy_dir=STRATEGY)


# Parallel configurations


def laughs(merge=False):
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [1, 2]"]
    for i in range(1, 40):
        aliases = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"a{i}: &a{i} {{<<: [{aliases}]}}" if merge else f"a{i}: &a{i} [{aliases}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(), "too many keys and values, aliases counted"),
        (laughs(merge=True), "too many keys and values, aliases counted"),
        ("offset: &a [*a]", "an alias inside of what it stands for"),
        ("a: &a {<<: *a}", "an alias inside of what it stands for"),
        ("offset: " + "[" * 5000, "nested more than 64 levels"),
        ("{offset: " * 5000, "nested more than 64 levels"),
        ("- " * 5000, "nested more than 64 levels"),
        ("mp: 1\nmp: 2", "holds the key 'mp' twice"),
        ('{"mp": 1, "mp": 2}', "holds the key 'mp' twice"),
        ("parallel_config:\n  mp: 1\n  mp: 2", "holds the key 'mp' twice"),
        ("[" + "1," * 50_000 + "]", "too many keys and values"),
        ("mp: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("mp: " + "1:" * 50_000 + "1", "a number of 100001 characters"),
        ("mp: " + "9" * 60, "mp is 9+, expected a positive integer"),
        ("optimizer_weight_shard_size: 0x" + "f" * 40, "expected -1 or a positive integer"),
        ("mp: !!int ''", "doesn't fit its tag"),
        ("mp: !!float ''", "doesn't fit its tag"),
        ("mp: !!bool x", "doesn't fit its tag"),
        ("mp: !!timestamp x", "doesn't fit its tag"),
        ("mp: 2020-99-99", "doesn't fit its tag"),
        ("mp: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("mp: !!python/name:os.system", "could not determine a constructor"),
        ("mp: !" + "x" * 100_000 + " 1", "could not determine a constructor"),
        ("? [a]\n: b", "unhashable"),
        ("mp: *none", "undefined alias"),
        ("mp: 1\n---\nmp: 2", "another document"),
        ("mp: 1\n\0", "unacceptable character"),
        ("mp: .inf", "mp is inf, expected"),
        ("mp: .nan", "mp is nan, expected"),
        ("mp: 1e3", "mp is '1e3', expected"),
        ("mp: [1]", r"mp is \[1\], expected"),
        ("mp: {a: 1}", "mp is {'a': 1}, expected"),
        ("dp: 1000000\nmp: 1000000", "devices, more than 131072"),
        ("mp: 1\npp: 1000000", "pipeline_stage 1000000 .* more than 1024"),
        (
            "pp: 2\npp_interleave_num: 60000\npipeline_interleave: true",
            "pp_interleave_num 60000 is more than 1024",
        ),
        ("parallel_config: &a {model_parallel: 1}\nmodel_parallel: *a", "they mean the same"),
        ("mp\x1b: 1\nmp: 1", "unacceptable character"),
        ('"mp\\e\\n": 1', r"'mp\\x1b\\n' isn't a key"),
        ("x" * 1000 + ": 1", "isn't a key"),
        ("mp: 1\nshard: " + "x" * 20_000, "shard is 'x+...x+', expected keys"),
    ],
)
def test_bad_parallel_configs(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_parallel_config(tmp_path / "p.yaml")
    assert (
        "p.yaml" in str(caught.value)
        and len(str(caught.value)) < 1500
        and "\x1b" not in str(caught.value)
    )


def test_aliases_and_merges_as_mindformers_files_have_them(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "base: &base {data_parallel: 2, model_parallel: 1}\nparallel_config: {<<: *base, "
        "model_parallel: 4}\nagain: *base\n"
    )
    config = read_parallel_config(tmp_path / "p.yaml")
    assert (config.degrees.data, config.degrees.model) == (2, 4)


def test_a_shard_row_with_a_long_key(tmp_path):
    (tmp_path / "p.yaml").write_text("mp: 1\nshard:\n  norm: {" + "x" * 1000 + ": 1}")
    with pytest.raises(
        ConfigError, match="shard.norm has the key .x+...x+.; there are cut, whole_if"
    ) as caught:
        ckptforge.strategy(tmp_path / "out", parallel_config=tmp_path / "p.yaml", like=HUB)
    assert len(str(caught.value)) < 1000
    (tmp_path / "p.yaml").write_text("mp: 1\nshard:\n  " + "x" * 1000 + ": 1")
    with pytest.raises(ConfigError, match=r"shard.x+\.\.\.x+ is 1, expected keys") as caught:
        ckptforge.strategy(tmp_path / "out", parallel_config=tmp_path / "p.yaml", like=HUB)
    assert len(str(caught.value)) < 1000


def test_many_offsets_of_interleaved_stages_end(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "pp: 256\npp_interleave_num: 256\npipeline_interleave: true\nmp: 1\noffset: 0"
    )
    with pytest.raises(ConfigError, match="2 layers for 256 stages, of which each needs one"):
        ckptforge.strategy(tmp_path / "out", parallel_config=tmp_path / "p.yaml", like=HUB)


# Mapping tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "isn't valid TOML"),
        ("a = " + "{a=" * 50_000, "isn't valid TOML"),
        ("a = " + "9" * 5000, "isn't valid TOML"),
        ("\n\n" + ".".join("a" * 20_000) + " = 1", "line 3: a key of more than 32 parts"),
        (".".join(['"a\\""'] * 20_000) + " = 1", "line 1: a key of more than 32 parts"),
        ("[" + " . ".join("a" * 20_000) + "]", "a key of more than 32 parts"),
        ("name = 'a'\nname = 'b'", "isn't valid TOML"),
        ("a = 2020-99-99", "isn't valid TOML"),
        ("x" * 1000, "isn't valid TOML"),
        ("\0", "isn't valid TOML"),
        (
            GOOD.replace('H = "hidden"', 'H = "hidden * %s"' % ("9" * 5000)),
            "characters, at most 1000",
        ),
        (GOOD.replace('H = "hidden"', 'H = "hidden * %s"' % ("9" * 500)), "isn't keys and numbers"),
        (
            GOOD.replace("[tensors]", "[tensors]\n" + "\n".join(f"t{i} = 'H'" for i in range(300))),
            "tensors has 303 entries, at most 256",
        ),
        (
            GOOD.replace("[axes]", "[axes]\n" + "\n".join(f"x{i} = 'k'" for i in range(300))),
            "axes has 303 entries, at most 256",
        ),
        (
            GOOD + "".join(f"[layout.c{i}]\nextends = 'a'\n" for i in range(100)),
            "layout has 102 entries, at most 32",
        ),
        (
            GOOD + "[ignored]\nmindspore = [" + "'*a'," * 1000 + "]",
            "ignored.mindspore has 1000 entries",
        ),
        (GOOD.replace("layers.{l}.up", "layers.{l}.#up"), "has a '#'"),
        (
            GOOD.replace("layers.{l}.up", "layers.{l}.\\nup"),
            r"'layers.{l}.\\nup' has a '#' or an "
            r"unprintable character",
        ),
        (
            GOOD.replace("layers.{l}.up : I H", "layers.{l}.up : " + "H " * 5000),
            "characters, at most 1000",
        ),
        (
            GOOD + "[shard.a]\nup = {cut = '" + "I:mp " * 40_000 + "'}",
            "shard.a.up.cut has 200000 characters",
        ),
        (GOOD + "[shard.a]\nup = {cut = 'l:mp I:ep H:mp'}", "there are 3 cuts"),
        (GOOD + "[layout." + "n" * 1000 + "]", "layout has the key 'n+...n+', at most 200"),
        (
            GOOD + "[shard.a]\nup = {" + "n" * 1000 + " = 1}",
            "shard.a.up has the key 'n+...n+', at most 200",
        ),
        (GOOD + "[example]\na = 0x" + "f" * 5000, "example.a is a number of more than 64 bits"),
        (GOOD + "[example]\na" + ".a" * 20 + " = 1", "8 deep"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(TableError, match=message) as caught:
        load_table(tmp_path / "t.toml")
    assert "t.toml" in str(caught.value) and len(str(caught.value)) < 3000


def test_a_table_that_is_too_large(tmp_path):
    (tmp_path / "t.toml").write_text("#" * 300_000)
    with pytest.raises(TableError, match="over 262144 bytes"):
        load_table(tmp_path / "t.toml")


def test_products_of_a_config_are_bounded():
    product = Expression(" * ".join(["k"] * 60))
    with pytest.raises(ConfigError, match="over 63 bits"):
        product.evaluate({"k": 2**31 - 1}, "config.json")


# Kinds of files


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        where = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            bound.bind(path.name)
        finally:
            os.chdir(where)


def make_directory(path):
    path.mkdir()


def make_link_to_nothing(path):
    path.symlink_to("nowhere")


def make_link_to_itself(path):
    path.symlink_to(path.name)


def make_link_to_a_device(path):
    path.symlink_to("/dev/zero")


MAKERS = [
    make_pipe,
    make_socket,
    make_directory,
    make_link_to_nothing,
    make_link_to_itself,
    make_link_to_a_device,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_what_is_no_regular_file(tmp_path, make):
    """Wherever a file is named, by a user, by its fixed name or by an index."""
    hub = tmp_path / "hub"
    write_hub(hub, tiny_config(), files=2)
    shard = "model-00001-of-00002.safetensors"
    for name in (
        "config.json",
        "model.safetensors.index.json",
        "ckptforge.manifest.json",
        "param_name_map.json",
        "model.safetensors",
        shard,
    ):
        broken = tmp_path / f"with_{name}"
        shutil.copytree(hub, broken)
        if name == "model.safetensors":
            (broken / "model.safetensors.index.json").unlink()
        (broken / name).unlink(missing_ok=True)
        make(broken / name)
        with pytest.raises(InputNotFoundError, match=name):
            ckptforge.to_ms(broken, tmp_path / "out.ckpt")
    named = tmp_path / "named.ckpt"
    make(named)
    for read in (
        lambda: ckptforge.to_torch(MINDSPORE / "full.ckpt", tmp_path / "out", config=named),
        lambda: ckptforge.merge(
            MINDSPORE / "sharded" / "mp8", tmp_path / "out.ckpt", strategy_dir=named
        ),
        lambda: ckptforge.to_ms(HUB, tmp_path / "out", parallel_config=named),
        lambda: ckptforge.to_ms(HUB, tmp_path / "out", mapping=named),
        lambda: ckptforge.inspect(named),
        lambda: ckptforge.to_torch(named, tmp_path / "out"),
    ):
        with pytest.raises(CkptforgeError, match="named.ckpt"):
            read()
    ranks = tmp_path / "ranks"
    shutil.copytree(MINDSPORE / "sharded" / "dp2mp2", ranks)
    checkpoint = next((ranks / "rank_1").iterdir())
    checkpoint.unlink()
    make(checkpoint)
    with pytest.raises(CkptforgeError, match="rank_1"):
        ckptforge.merge(
            ranks, tmp_path / "out.ckpt", strategy_dir=MINDSPORE / "strategies" / "dp2mp2"
        )
    assert not (tmp_path / "out.ckpt").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\0b.ckpt", "x" * 300 + ".ckpt", "d/" * 3000 + "x.ckpt"])
def test_paths_that_no_system_has(tmp_path, name):
    for read in (
        lambda: ckptforge.inspect(tmp_path / name),
        lambda: read_strategy(tmp_path / name),
        lambda: read_parallel_config(tmp_path / name),
        lambda: load_table(tmp_path / name),
        lambda: read_small(tmp_path / name, 10),
    ):
        with pytest.raises(InputNotFoundError):
            read()


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_files_that_shrink_while_they_are_read(tmp_path, monkeypatch, name):
    shutil.copy(MINDSPORE / "misc" / f"dtypes{Path(name).suffix}", tmp_path / name)
    fstat = os.fstat

    def shrinking(fd):
        found = fstat(fd)
        if os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / name):
            os.truncate(tmp_path / name, 20)
        return found

    monkeypatch.setattr(os, "fstat", shrinking)
    size = (tmp_path / name).stat().st_size
    with pytest.raises(FormatError, match=f"{name}.*(ends at byte|truncated)"):
        open_checkpoint(tmp_path / name)
    assert size > 20


def test_links_do_not_carry_files_from_elsewhere(tmp_path):
    write_hub(tmp_path / "hub", tiny_config())
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "hub" / "tokenizer.json").symlink_to(tmp_path / "secret")
    (tmp_path / "hub" / "inside.txt").write_text("inside")
    (tmp_path / "hub" / "link.txt").symlink_to("inside.txt")
    make_pipe(tmp_path / "hub" / "pipe.txt")
    (tmp_path / "hub" / "a\nb").write_text("")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    text = (tmp_path / "x.ckpt.manifest.json").read_text()
    assert (
        set(json.loads(text)["hugging_face"]["files"]) == {"config.json", "inside.txt", "link.txt"}
        and "a key" not in text
    )


def test_a_snapshot_of_the_hubs_cache_is_links_to_its_blobs(tmp_path):
    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "0123",
        tmp_path / "models--a--b" / "blobs",
    )
    write_hub(snapshot, tiny_config())
    (snapshot / "tokenizer.json").write_text("{}")
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"{i:040x}")
        path.symlink_to(f"../../blobs/{i:040x}")
    ckptforge.to_ms(snapshot, tmp_path / "x.ckpt")
    manifest = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())
    assert set(manifest["hugging_face"]["files"]) == {"config.json", "tokenizer.json"}


def test_names_that_are_not_unicode(tmp_path):
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    write_hub(directory, tiny_config())
    Path(os.fsdecode(os.fsencode(directory) + b"/\xfe.txt")).write_text("")
    ckptforge.to_ms(directory, tmp_path / "x.ckpt")
    manifest = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())
    assert list(manifest["hugging_face"]["files"]) == ["config.json"]
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(directory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loop", "is a symbolic link"),
        ("loop/x.ckpt", "symbolic links"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
        ("pipe.ckpt", "isn't replaced"),
    ],
)
def test_outputs_that_are_nothing_to_write_to(tmp_path, name, message):
    make_link_to_itself(tmp_path / "loop")
    make_pipe(tmp_path / "pipe.ckpt")
    with pytest.raises(OutputError, match=message):
        ckptforge.to_ms(HUB, tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "pipe.ckpt"]


@pytest.mark.parametrize(
    "make",
    [make_pipe, make_directory, make_link_to_a_device, make_link_to_itself],
    ids=lambda make: make.__name__,
)
def test_a_journal_that_is_no_file(tmp_path, make):
    make(tmp_path / "journal")
    with pytest.raises(OutputError, match="journal"):
        journal.reopen(DISK, tmp_path / "journal")


@pytest.mark.parametrize(
    "line",
    [
        '{"publishing": 1e999}',
        '{"source": 0, "start": 1e999, "digest": ""}',
        "[" * 100_000,
        '{"tensor": 1}',
        "9" * 5000,
    ],
)
def test_a_journal_ends_before_what_is_no_line_of_it(tmp_path, line):
    path = tmp_path / "journal"
    first, last = (
        b"".join(map(journal.journal_line, lines))
        for lines in ([b'{"plan": "1"}', b'{"publishing": 7}'], [b'{"publishing": 8}'])
    )
    for bad in (
        journal.journal_line(line.encode()),
        line.encode() + b"\n",
        b"0" * 16 + b' {"publishing": 9}\n',
    ):
        path.write_bytes(first + bad + last)
        found = journal.reopen(DISK, path)
        found.close()
        assert found.publishing == 7 and path.read_bytes() == first


# What the command line makes of it


def ckpt(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "ckptforge", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


BAD_FILES = sorted(path for path in (MINDSPORE / "bad").iterdir())


@pytest.mark.parametrize("path", BAD_FILES, ids=lambda path: path.name)
def test_every_bad_fixture_is_one_error(tmp_path, path):
    if path.name.startswith("strategy"):
        done = ckpt(
            "merge", MINDSPORE / "sharded" / "mp8", tmp_path / "out.ckpt", "--strategy_dir", path
        )
    else:
        done = ckpt("to-torch", path, tmp_path / "out")
    assert (
        done.returncode == 1
        and done.stdout == ""
        and done.stderr.startswith("ckptforge: ")
        and "Traceback" not in done.stderr
    )
    assert path.name in done.stderr and list(tmp_path.iterdir()) == []


def test_names_with_escapes_do_not_reach_the_terminal(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a\x1b[2J\nb": ("F32", [1], bytes(4))})
    done = ckpt("inspect", tmp_path / "x.safetensors", "--tensors")
    assert done.returncode == 0 and "\x1b" not in done.stdout and "a\\x1b[2J\\nb" in done.stdout


def test_file_names_that_are_not_unicode_are_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    write_safetensors(path, {"a": ("F32", [1], bytes(4))})
    for extra in ((), ("--json",)):
        done = ckpt("inspect", path, *extra, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
        assert (
            done.returncode == 0
            and "Traceback" not in done.stderr
            and "\\udcff.safetensors" in done.stdout
        )


def test_a_key_of_an_entry_that_is_long_is_cut_in_the_message(tmp_path):
    """Found by fuzzing packings: a message of 10,188 characters."""
    entry = {"dtype": "F32", "shape": [2], "data_of" + "9" * 10_000: [0, 8]}
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(FormatError, match="must have exactly dtype, shape and data_off") as caught:
        ckptforge.open(path)
    assert len(str(caught.value)) < 4000
