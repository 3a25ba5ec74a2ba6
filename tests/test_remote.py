"""Addresses as inputs: read by ranges, whatever the network does meanwhile."""

import json
import os
import pickle
import random
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest
import xxhash

import ckptforge
from ckptforge.errors import CkptforgeError, InputNotFoundError, UsageError
from ckptforge.remote import patience
from ckptforge.remote.held import WINDOW, HeldObject
from ckptforge.remote.parts import PARTS, ObjectMemory
from ckptforge.remote.store import RemoteReader
from ckptforge.storage.address import Address, given_path
from ckptforge.storage.files import open_file
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import HUB, MINDSPORE
from tests.web.faults import now_and_then
from tests.web.server import serving

FULL = MINDSPORE / "full.ckpt"
RANKS = MINDSPORE / "sharded" / "mp8"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def large(tmp_path):
    """A directory of Hugging Face with 40 MB in two files."""
    from safetensors.numpy import save_file

    rng, root = np.random.default_rng(1), tmp_path / "large"
    root.mkdir()
    names, weight_map = iter(range(100)), {}
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        tensors = {f"t{next(names)}": rng.random((500, 1000), np.float32) for _ in range(10)}
        save_file(tensors, root / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text("{}")
    return root


def files_of(directory):
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file() and "manifest" not in path.name
    }


def twice_read(served):
    """Bytes that were sent more than once."""
    twice, name, end = 0, "", 0
    for other, start, length in sorted(served.ranges):
        end = end if other == name else 0
        twice += max(0, min(end, start + length) - start)
        name, end = other, max(end, start + length)
    return twice


def test_every_verb_takes_an_address_as_input(tmp_path):
    with serving(HUB.parent) as (address, _):
        at = f"{address}/{HUB.name}"
        assert (
            ckptforge.inspect(at).to_json()["tensors"]
            == (ckptforge.inspect(HUB).to_json()["tensors"])
        )
        ckptforge.to_ms(at, tmp_path / "far.ckpt", layout="gmm")
        ckptforge.to_ms(HUB, tmp_path / "near.ckpt", layout="gmm")
        assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()
        assert ckptforge.compare(at, tmp_path / "far.ckpt").equal
        with ckptforge.open(at) as far, ckptforge.open(HUB) as near:
            name = next(iter(near))
            assert np.array_equal(np.asarray(far[name][:]), np.asarray(near[name][:]))
        ckptforge.extract(at, name, tmp_path / "x.npy")
        assert (tmp_path / "x.npy").stat().st_size > 0
    with serving(tmp_path) as (address, _):
        ckptforge.to_torch(f"{address}/far.ckpt", tmp_path / "far")
        ckptforge.to_torch(tmp_path / "near.ckpt", tmp_path / "near")
        assert files_of(tmp_path / "far") == files_of(tmp_path / "near")


def test_ranks_are_merged_from_an_address(tmp_path):
    out = tmp_path / "far.ckpt"
    with serving(MINDSPORE) as (address, _):
        strategy = f"{address}/strategies/mp8"
        ckptforge.merge(f"{address}/sharded/mp8", out, strategy_dir=strategy)
    strategy = MINDSPORE / "strategies" / "mp8"
    ckptforge.merge(RANKS, tmp_path / "near.ckpt", strategy_dir=strategy)
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()


def test_the_manifest_has_addresses_and_hashes_of_the_files(tmp_path, large):
    """Of what lies afar the bytes are hashed in a row."""
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with serving(large) as (address, _):
        ckptforge.edit(address, tmp_path / "far", drop=["t0"])
    found = json.loads((tmp_path / "far" / "ckptforge.manifest.json").read_text())["sources"]
    for one in found:
        assert one["path"].startswith(f"{address}/model-0000")
        content = (large / one["path"].rpartition("/")[2]).read_bytes()
        ranges = one.get("ranges", [[0, len(content)]])
        starts = [at for first, end in ranges for at in range(first, end, WINDOW)]
        digests = [xxhash.xxh3_128(content[at : at + WINDOW]).digest() for at in starts]
        assert one["xxh3_128"] == xxhash.xxh3_128(b"".join(digests)).hexdigest()


def test_no_range_is_read_twice(tmp_path, large, monkeypatch):
    """Not even to be hashed, when it has left memory."""
    monkeypatch.setattr(PARTS, "limit", 5 * WINDOW)
    with serving(large) as (address, served):
        ckptforge.edit(address, tmp_path / "out", set_dtype=["*=fp16"])
        size = sum(path.stat().st_size for path in large.iterdir())
        assert twice_read(served) == 0 and served.sent <= 1.2 * size
        assert max(length for _, _, length in served.ranges) == WINDOW
        assert len(served.ranges) <= size / WINDOW + 10


def test_nor_where_experts_are_stacked_and_transposed(tmp_path, monkeypatch):
    """Of tensors larger than what is in memory of them, which lie apart."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_local_experts": 3}
    table = next(table for table in shipped_tables() if table.name == "mixtral")
    hub, config = tmp_path / "hub", table.example | sizes | {"num_hidden_layers": 1}
    write_model(hub, table, config)
    monkeypatch.setattr(PARTS, "limit", 6 * WINDOW)
    with serving(hub) as (address, served):
        ckptforge.to_ms(address, tmp_path / "far.ckpt", layout="gmm")
        size = sum(path.stat().st_size for path in hub.iterdir())
        assert twice_read(served) == 0 and served.sent <= 1.2 * size
    ckptforge.to_ms(hub, tmp_path / "near.ckpt", layout="gmm")
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()


@pytest.mark.parametrize("what", ["t0=fp16", "*=fp16"])
@pytest.mark.parametrize("unit", [1 << 20, 4 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_nor_where_threads_are_late(tmp_path, large, monkeypatch, what, unit, seed):
    """What one thread read and let go isn't brought again for another that comes to it late: to go
    on from there, or to hash it. Parts are as small as where many objects are read in turn."""
    monkeypatch.setattr(PARTS, "limit", 6 * WINDOW)
    monkeypatch.setattr(PARTS, "_unit", lambda: unit)
    chance, read_into = random.Random(seed), ObjectMemory.read_into

    def late(self, held, offset, buffer):
        if chance.random() < 0.1:
            time.sleep(0.05)
        return read_into(self, held, offset, buffer)

    monkeypatch.setattr(ObjectMemory, "read_into", late)
    with serving(large) as (address, served):
        ckptforge.edit(address, tmp_path / "far", set_dtype=[what])
        assert twice_read(served) == 0
    monkeypatch.undo()
    ckptforge.edit(large, tmp_path / "near", set_dtype=[what])
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")


def test_what_fails_while_a_window_is_hashed_names_the_address(tmp_path, large, monkeypatch):
    def broken(*_):
        raise OSError(5, "the line is cut")

    monkeypatch.setattr(RemoteReader, "digest", broken)
    with serving(large) as (address, _):
        with pytest.raises(CkptforgeError, match="reading at byte .* failed: the line is cut") as e:
            ckptforge.edit(address, tmp_path / "out", set_dtype=["*=fp16"])
        assert f"{address}/model-0000" in str(e.value)
    assert not (tmp_path / "out").exists()


def test_what_has_to_be_read_twice_is_said(large, monkeypatch, caplog):
    monkeypatch.setattr(PARTS, "limit", 1 << 20)
    with serving(large) as (address, _):
        path = given_path(f"{address}/model-00001-of-00002.safetensors")
        reader, buffer = open_file(path), memoryview(bytearray(1 << 19))
        for offset in (0, 9 << 20, 17 << 20) * 8:
            reader.read_into(offset, buffer)
        reader.close()
    assert "bytes were read twice" in caplog.text and str(path) in caplog.text


def test_only_headers_are_read_to_say_what_is_there(large):
    with serving(large) as (address, served):
        ckptforge.inspect(address)
        assert served.sent < 2 * 300_000


@pytest.mark.parametrize("kind", ["busy", "reset", "truncated", "slow"])
def test_faults_that_pass_are_survived(tmp_path, large, kind):
    with serving(large, now_and_then(kind)) as (address, served):
        ckptforge.edit(address, tmp_path / "far", drop=["t0"])
        assert served.faults[kind] > 1 and twice_read(served) == 0
    ckptforge.edit(large, tmp_path / "near", drop=["t0"])
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("busy", "failed 7 times: the server says 503"),
        ("reset", "failed 7 times"),
        ("all", "gives no ranges of bytes"),
        ("other", "was changed while it was read"),
    ],
)
def test_faults_that_stay_are_errors_that_name_the_address(tmp_path, large, kind, message):
    with serving(large, lambda number, start: kind if start > WINDOW else None) as (address, _):
        with pytest.raises(CkptforgeError, match=message) as error:
            ckptforge.edit(address, tmp_path / "out", drop=["t0"])
        assert f"{address}/model-0000" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_of_the_hub_is_read_at_one_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(HUB) as (address, served):
        monkeypatch.setenv("HF_ENDPOINT", address)
        ckptforge.to_ms("hf://org/name@v1", tmp_path / "far.ckpt", layout="gmm")
        asked = [path for _, path in served.asked]
        assert any("/resolve/c0ffee/" in path for path in asked)
        assert sum("/revision/v1" in path for path in asked) == 1
        for (_, path), headers in zip(served.asked, served.headers, strict=True):
            assert ("Authorization" in headers) == ("signed" not in path)
        with pytest.raises(InputNotFoundError, match="hf://org/none: No such file"):
            ckptforge.inspect("hf://org/none")
    ckptforge.to_ms(HUB, tmp_path / "near.ckpt", layout="gmm")
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()
    manifest = (tmp_path / "far.ckpt.manifest.json").read_text()
    assert "hf://org/name@v1/" in manifest and "secret" not in manifest


def test_secrets_in_an_address_are_refused_and_not_shown():
    for text in (
        "https://me:word1@host/x.ckpt",
        "https://host/x.safetensors?X-Amz-Signature=word1",
        "s3://word1:word1@bucket/x",
    ):
        with pytest.raises(UsageError) as error:
            ckptforge.inspect(text)
        assert "word1" not in str(error.value) and "leave it out" in str(error.value)


def test_plain_http_is_read_from_this_machine_only():
    with pytest.raises(InputNotFoundError, match="http:// is read from this machine only"):
        ckptforge.inspect("http://example.org/x.safetensors")


def test_an_address_stays_one_through_what_paths_go_through():
    path = given_path("s3://bucket/a/b.ckpt")
    assert isinstance(path, Address) and str(path) == os.fspath(path) == "s3://bucket/a/b.ckpt"
    for other in (
        path.parent / "b.ckpt",
        path.with_name("b.ckpt"),
        pickle.loads(pickle.dumps(path)),
    ):
        assert str(other) == str(path) and other == path and hash(other) == hash(path)
    assert (path.name, path.suffix, str(path.parent)) == ("b.ckpt", ".ckpt", "s3://bucket/a")
    assert not isinstance(given_path("a/b.ckpt"), Address)


def test_what_is_read_next_comes_with_what_its_hash_needs_and_no_more():
    content, fetched = os.urandom(2 * WINDOW), []

    def fetch(start, into):
        fetched.append((start, start + len(into)))
        into[:] = content[start : start + len(into)]

    def read(first, end):
        buffer = memoryview(bytearray(end - first))
        parts.begin_only(held, first, end - first)
        at = first
        while at < end:
            at += parts.read_into(held, at, buffer[at - first :])
        assert buffer == content[first:end]

    mib = 1 << 20
    parts, held = ObjectMemory(), HeldObject(len(content), fetch)
    held.readers = 1
    parts.expect(held, [(2 * mib, 5 * mib), (6 * mib, 7 * mib), (9 * mib, 12 * mib)])
    read(3 * mib, 5 * mib)  # one MiB that is wanted later is in the way, and two that aren't at all
    assert fetched == [(0, 6 * mib)]
    read(6 * mib, 7 * mib)  # nothing of the rest of its window is read
    assert max(fetched) == (6 * mib, 8 * mib) and list(held.digests) == [0]
    read(10 * mib, 12 * mib)
    read(9 * mib, 10 * mib)
    read(2 * mib, 3 * mib)
    assert sorted(held.digests) == [0, 1]
    fetched.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(fetched))


def test_what_is_in_memory_stays_within_its_bound():
    content = os.urandom(20 * WINDOW + 5)
    fetched = []

    def fetch(start, into):
        fetched.append((start, len(into)))
        into[:] = content[start : start + len(into)]

    parts = ObjectMemory(limit=4 * WINDOW)
    held = HeldObject(len(content), fetch)
    buffer, at = memoryview(bytearray(1 << 20)), 0
    while count := parts.read_into(held, at, buffer):
        assert buffer[:count] == content[at : at + count]
        at += count
        assert sum(part.stop - part.start for part in held.parts) <= 5 * WINDOW
    assert at == len(content) == sum(length for _, length in fetched)
    assert len(held.digests) == 21
