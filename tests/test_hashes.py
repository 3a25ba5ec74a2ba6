"""The hashes of a manifest, made where bytes pass by, are those of what lies in the files."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import ckptforge
import ckptforge.verbs.convert  # so that the modules are there whose blocks are made small
from ckptforge.checkpoints.files import read_file
from ckptforge.dtypes import BY_NAME
from ckptforge.run import page_cache
from ckptforge.run.blocks import Block
from ckptforge.run.forms import best_form
from ckptforge.run.passing import Passing
from ckptforge.storage.local import LocalReader, LocalWriter
from ckptforge.transfers import Transfer
from ckptforge.values import Extent, Fragment, Stored, Term, Value
from tests.helpers import HUB, write_safetensors

BLOCK = 1000


def make_blocks_small(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("ckptforge.run.") and hasattr(module, "BLOCK_BYTES"):
            monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and batches so small that there are many of a tensor, and several tensors of one."""
    make_blocks_small(monkeypatch)
    monkeypatch.setattr("ckptforge.run.schedule._MOST_BYTES", 7000)
    monkeypatch.setattr("ckptforge.run.schedule._BATCHES", 1)


def blocks_of(data: bytes, block: int = BLOCK) -> list[bytes]:
    return [data[at : at + block] for at in range(0, len(data), block)]


def hash_of(blocks: list[bytes]) -> str:
    return xxhash.xxh3_128(b"".join(xxhash.xxh3_128(one).digest() for one in blocks)).hexdigest()


def file_hash(path: Path, block: int = BLOCK) -> str:
    """As docs/compare.md says."""
    data, found = path.read_bytes(), []
    runs = []
    for stored in read_file(path).tensors.values():
        assert len(stored.extents) == 1
        (extent,) = stored.extents
        runs.append((extent.offset, extent.offset + extent.length))
        tensor = data[slice(*runs[-1])]
        tensor_blocks = enumerate(blocks_of(tensor, block))
        found += [(runs[-1][0] + i * block, content) for i, content in tensor_blocks]
    edges = [(0, 0), *sorted(runs), (len(data), len(data))]
    gaps = [(end, start) for (_, end), (start, _) in pairwise(edges)]
    where = [at for start, end in gaps for at in range(start, end)]
    rest = bytes(data[at] for at in where)
    found += [(where[i * block], content) for i, content in enumerate(blocks_of(rest, block))]
    return hash_of([content for _, content in sorted(found)])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "fp16"}, {"layout": "gmm"}, {"layout": "gmm", "dtype": "fp32"}],
    ids=str,
)
def test_hashes_are_those_of_the_files(tmp_path, small_blocks, options, workers):
    out = tmp_path / "out.safetensors"
    ckptforge.to_ms(HUB, out, workers=workers, **options)
    check(tmp_path / "out.safetensors.manifest.json", tmp_path)
    back = tmp_path / "hf"
    ckptforge.to_torch(out, back, workers=workers, memory="1MiB")
    check(back / "ckptforge.manifest.json", back)


def check(manifest: Path, directory: Path) -> None:
    content = json.loads(manifest.read_text())
    for source in content["sources"]:
        if "ranges" not in source:
            assert source["xxh3_128"] == file_hash(Path(source["path"]))
    count = 0
    for output in content["outputs"]:
        path = directory / output["file"]
        for name, stored in read_file(path).tensors.items():
            (extent,) = stored.extents
            data = path.read_bytes()[extent.offset : extent.offset + extent.length]
            assert output["tensors"][name][2] == hash_of(blocks_of(data)), name
            count += 1
    assert count


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"dtype": "fp32"}], ids=str)
def test_tensors_are_not_read_again_to_be_hashed(tmp_path, monkeypatch, options, workers):
    """Neither where batches end, nor by a worker that has nothing else to do."""
    best_form.cache_clear()
    for name, module in list(sys.modules.items()):
        if name.startswith("ckptforge.run.") and hasattr(module, "BLOCK_BYTES"):
            monkeypatch.setattr(module, "BLOCK_BYTES", 1024)
    monkeypatch.setattr("ckptforge.run.schedule._MOST_BYTES", 8000)
    monkeypatch.setattr("ckptforge.run.budget._MAX_TILE_BYTES", 600)
    read = []
    done = Block.do
    monkeypatch.setattr(Block, "do", lambda self, worker: read.append(self) or done(self, worker))
    ckptforge.to_ms(HUB, tmp_path / "out.safetensors", workers=workers, **options)
    assert read and not [block for block in read if block.entry.name]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), sizes=st.lists(st.integers(1, 4 * BLOCK), min_size=1, max_size=3))
def test_hashes_of_any_mixture_of_runs_are_those_of_the_files(
    tmp_path_factory, small_blocks, data, sizes
):
    """Tensors put together of runs of others, whole ones among them, some cast."""
    tmp_path = tmp_path_factory.mktemp("runs")
    noise = np.random.default_rng(0)
    tensors = {
        f"t{i}": ("U8", [size], noise.integers(0, 256, size, np.uint8).tobytes())
        for i, size in enumerate(sizes)
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    opened = ckptforge.open(tmp_path / "x.safetensors")
    stored = [value.origin for value in opened._model.values.values()]
    values = {}
    for i in range(data.draw(st.integers(1, 4))):
        fragments, end = [], 0
        for _ in range(data.draw(st.integers(1, 3))):
            source = data.draw(st.sampled_from(stored))
            whole = data.draw(st.booleans())
            first = 0 if whole else data.draw(st.integers(0, source.elements - 1))
            count = source.elements if whole else data.draw(st.integers(1, source.elements - first))
            fragments.append(Fragment(source, Transfer((count,), first, (1,), end, (1,))))
            end += count
        terms = (Term(fragments=tuple(fragments)),)
        values[f"v{i}"] = Value(dtype=stored[0].dtype, shape=(end,), terms=terms, kind="v")
    out = tmp_path / "out" / "y.safetensors"
    out.parent.mkdir()
    opened.apply(lambda model: replace(model, values=values)).save(out, workers=2)
    check(out.parent / "y.safetensors.manifest.json", out.parent)


def test_a_block_of_two_halves_is_neither_of_them(tmp_path, small_blocks):
    """Of tensors of one size, after each has gone over whole."""
    tensors = {name: ("U8", [BLOCK], bytes([i]) * BLOCK) for i, name in enumerate("ab")}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    opened = ckptforge.open(tmp_path / "x.safetensors")
    model, half = opened._model, BLOCK // 2
    first, second = (value.origin for value in model.values.values())
    fragments = (
        Fragment(first, Transfer((half,), 0, (1,), 0, (1,))),
        Fragment(second, Transfer((half,), half, (1,), half, (1,))),
    )
    both = replace(model.values["a"], terms=(Term(fragments=fragments),))
    out = tmp_path / "out" / "y.safetensors"
    out.parent.mkdir()
    values = {**model.values, "c": both}
    opened.apply(lambda model: replace(model, values=values)).save(out, workers=1)
    check(out.parent / "y.safetensors.manifest.json", out.parent)


@given(
    st.integers(0, 5 * BLOCK), st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(1, 2500)))
)
def test_what_passes_has_the_digests_of_its_blocks(nbytes, pieces):
    patched = pytest.MonkeyPatch()
    patched.setattr("ckptforge.run.passing.BLOCK_BYTES", BLOCK)
    with patched.context():
        data = bytes(i * 7 % 251 for i in range(nbytes))
        extents = (Extent(0, 0, nbytes),)
        uint8 = BY_NAME["uint8"]
        path = Path("file")
        entry = Stored(path=path, name="a", dtype=uint8, shape=(nbytes,), extents=extents)
        passing = Passing()
        patched.setattr("ckptforge.run.passing.BLOCK_BYTES", BLOCK)
        for start, length in [*pieces, *((i, 300) for i in range(0, nbytes, 300))]:
            passing.feed(entry, start, memoryview(data)[start : start + length])
        wanted = {(entry, i * BLOCK): xxhash.xxh3_128(one) for i, one in enumerate(blocks_of(data))}
        assert passing.digests == {key: state.digest() for key, state in wanted.items()}
    patched.undo()


def test_what_is_done_with_is_dropped_of_models_larger_than_memory(tmp_path, monkeypatch):
    """All but what was last, each byte after its last use; others' pages stay."""
    monkeypatch.setattr(page_cache, "free_memory", lambda: 1000)
    monkeypatch.setattr(page_cache, "KEPT_BYTES", 200_000)
    dropped: dict[int, int] = {}

    def drop(self, offset, length):
        found = os.fstat(self.fd)
        dropped[found.st_ino] = dropped.get(found.st_ino, 0) + length

    monkeypatch.setattr(LocalReader, "drop_cached", drop)
    monkeypatch.setattr(LocalWriter, "begin_sync", lambda self, offset, length: None)
    out = tmp_path / "out.safetensors"
    ckptforge.to_ms(HUB, out, dtype="fp32", workers=1)
    sources = [path for path in HUB.iterdir() if path.suffix == ".safetensors"]
    sizes = {path.stat().st_ino: path.stat().st_size for path in (out, *sources)}
    assert dropped.keys() <= sizes.keys()
    assert all(nbytes <= sizes[number] for number, nbytes in dropped.items())
    most = max(stored.nbytes for path in (out, *sources) for stored in sizes_of(path))
    assert sum(sizes.values()) - sum(dropped.values()) < 200_000 + 2 * most + 50_000
    dropped.clear()
    monkeypatch.setattr(page_cache, "free_memory", lambda: 1 << 40)
    ckptforge.to_ms(HUB, tmp_path / "other.safetensors", workers=1)
    assert not dropped


def sizes_of(path: Path):
    return read_file(path).tensors.values()
