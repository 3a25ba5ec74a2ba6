"""compare: equal models in any formats, layouts and splits; every kind of injected defect found,
and its cause named."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import CkptforgeError, LayoutError, ModelUnknownError
from ckptforge.examine.fingerprints import fingerprints
from ckptforge.run.budget import Budget
from tests.helpers import (
    FIXTURES,
    HUB,
    MINDSPORE,
    contents,
    tiny_config,
    write_hub,
    write_safetensors,
)
from tests.test_cli import ckpt
from tests.test_hashes import file_hash, make_blocks_small

LAYOUTS = [
    "dense",
    "gmm",
    "gmm-v3",
    "dense-qkv-r1.3",
    "gmm-qkv-r1.3",
    "dense-qkv-r1.4",
    "gmm-qkv-r1.4",
    "hub",
    "fused",
]
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A model whose expert matrices are square, so that they can be transposed unnoticed; 5
    experts, 3 layers."""
    path = tmp_path_factory.mktemp("square") / "hub"
    write_hub(
        path,
        tiny_config(
            hidden_size=16,
            intermediate_size=16,
            num_local_experts=5,
            num_hidden_layers=3,
            head_dim=4,
        ),
    )
    return path


def arrays(path):
    return {
        name: np.frombuffer(data, "u2").reshape(shape).copy()
        for name, (_, shape, data) in contents(path).items()
    }


def damaged(source, target, change):
    """A copy of a hub directory with `change` made to its arrays of bits."""
    tensors = arrays(source)
    change(tensors)
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    stored = {name: ("BF16", list(array.shape), array.tobytes()) for name, array in tensors.items()}
    write_safetensors(target / "model.safetensors", stored, {"format": "pt"})
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_model_in_every_layout_is_the_same_both_ways(tmp_path, layout):
    ckptforge.convert(HUB, tmp_path / "x", to=layout)
    for other in (HUB, FIXTURES / "peer/peer_r1.3.0_dense_bf16.ckpt"):
        for a, b, sides in ((other, tmp_path / "x", "b"), (tmp_path / "x", other, "a")):
            found = ckptforge.compare(
                a, b, **({f"layout_{sides}": layout} if "qkv" in layout else {})
            )
            assert found.equal and found.through == "mixtral" and not found.differences, found


@pytest.mark.parametrize(
    "configuration", sorted(path.name for path in (MINDSPORE / "sharded").iterdir())
)
def test_splits_are_the_same_as_the_whole_state_included(configuration):
    ranks, strategy = (
        MINDSPORE / "sharded" / configuration,
        MINDSPORE / "strategies" / configuration,
    )
    for whole in ("full.ckpt", "full_gmm.ckpt"):
        found = ckptforge.compare(MINDSPORE / whole, ranks, strategy_dir_b=strategy)
        assert found.equal and found.tensors == 73
        assert ckptforge.compare(ranks, MINDSPORE / whole, strategy_dir_a=strategy).equal


def test_after_a_cast(tmp_path):
    for dtype, fixture in (("fp16", "dense_fp16"), ("fp32", "dense_fp32")):
        peer = FIXTURES / f"peer/peer_r1.3.0_{fixture}.ckpt"
        assert ckptforge.compare(HUB, peer, after_cast=dtype).equal
        plain = ckptforge.compare(HUB, peer)
        assert not plain.equal and {difference.dtypes[1] for difference in plain.differences} == {
            {"fp16": "float16", "fp32": "float32"}[dtype]
        }
        assert any("rounded to fp16" in cause for cause in plain.causes) == (dtype == "fp16")


def swap(*names):
    def change(tensors):
        first, second = names
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def shift(tensors):
    before = {e: tensors[EXPERT.format(1, e, "w2")] for e in range(5)}
    tensors.update({EXPERT.format(1, e, "w2"): before[(e + 1) % 5] for e in range(5)})


def transpose(tensors):
    name = EXPERT.format(2, 3, "w1")
    tensors[name] = tensors[name].T.copy()


def shift_layers(tensors):
    for name in list(tensors):
        if name.startswith("model.layers.0."):
            other = name.replace("layers.0.", "layers.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]


DEFECTS = {
    "w1 and w3 exchanged": swap(EXPERT.format(0, 1, "w1"), EXPERT.format(0, 1, "w3")),
    "e exchanged": swap(EXPERT.format(0, 1, "w1"), EXPERT.format(0, 4, "w1")),
    "e shifted by": shift,
    "transposed": transpose,
    "wk and wv exchanged": swap(
        "model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"
    ),
    "attention_norm and ffn_norm exchanged": swap(
        "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
    ),
    "embedding and lm_head exchanged": swap("model.embed_tokens.weight", "lm_head.weight"),
    "l exchanged": shift_layers,
}


@pytest.mark.parametrize("cause", DEFECTS)
def test_defects_are_found_and_their_causes_named(tmp_path, square, cause):
    ckptforge.to_ms(
        damaged(square, tmp_path / "bad", DEFECTS[cause]), tmp_path / "bad.ckpt", layout="gmm"
    )
    found = ckptforge.compare(square, tmp_path / "bad.ckpt", layout_b="gmm")
    assert not found.equal and any(text.startswith(cause) for text in found.causes), found.causes
    back = ckptforge.compare(tmp_path / "bad", square)
    assert not back.equal and any(text.startswith(cause) for text in back.causes), back.causes


def test_transposed_experts_are_another_layout(tmp_path, square):
    ckptforge.to_ms(square, tmp_path / "g.ckpt", layout="gmm")
    with pytest.raises(LayoutError, match="layout_b"):
        (tmp_path / "g.ckpt.manifest.json").unlink()
        ckptforge.compare(square, tmp_path / "g.ckpt")
    found = ckptforge.compare(square, tmp_path / "g.ckpt", layout_b="dense")
    assert not found.equal and "B is what A is in layout gmm" in found.causes[0]


def test_a_wrong_qkv_grouping_is_another_layout(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "q.ckpt", layout="dense-qkv-r1.3")
    found = ckptforge.compare(HUB, tmp_path / "q.ckpt", layout_b="dense-qkv-r1.4")
    assert not found.equal and "B is what A is in layout dense-qkv-r1.3" in found.causes[0]


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_one_changed_bit_is_found_where_it_is(tmp_path_factory, square, data):
    """Any bit of any element, in any layout and split: one difference, its index and its origin."""
    work = tmp_path_factory.mktemp("bit")
    name = data.draw(st.sampled_from(sorted(arrays(square))))
    shape = arrays(square)[name].shape
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    bit = data.draw(st.integers(0, 15))

    def change(tensors):
        tensors[name][index] ^= np.uint16(1 << bit)

    layout = data.draw(st.sampled_from(["dense", "gmm", "gmm-v3", "fused"]))
    ckptforge.convert(damaged(square, work / "bad", change), work / "bad_ms", to=layout, workers=1)
    found = ckptforge.compare(square, work / "bad_ms", layout_b=layout, workers=2, memory="1MiB")
    (one,) = found.differences
    assert (one.count, one.source, one.source_index) == (1, name, index)
    assert arrays(work / "bad_ms")[one.name][one.index] == arrays(work / "bad")[name][index]


def test_figures_are_those_of_numpy(tmp_path, square):
    random = np.random.default_rng(0)
    values = random.normal(size=(16, 16)).astype("f4")
    name = EXPERT.format(0, 0, "w1")

    def set_to(array):
        return lambda tensors: tensors.update({name: (array.view("u4") >> 16).astype("u2")})

    changed = values.copy()
    changed[3, 5] *= 1.25
    changed[7, 2] = np.inf
    a, b = (
        damaged(square, tmp_path / "a", set_to(values)),
        damaged(square, tmp_path / "b", set_to(changed)),
    )
    (one,) = ckptforge.compare(a, b).differences
    x, y = (
        (array[name].astype("u4") << 16).view("f4").astype("f8") for array in (arrays(a), arrays(b))
    )
    finite = np.isfinite(y)
    assert one.count == np.count_nonzero(x != y) == 2 and one.nonfinite == 1 and one.index == (3, 5)
    assert one.max_abs == np.abs(x - y)[finite].max()
    assert one.relative_l2 == pytest.approx(
        np.linalg.norm((x - y)[finite]) / np.linalg.norm(x[finite]), rel=1e-12
    )


def test_tensors_of_several_tiles_and_other_dtypes(tmp_path):
    numbers = np.arange(1 << 20, dtype=np.float32)
    write_safetensors(
        tmp_path / "wide.safetensors", {"x": ("F32", [1024, 1024], numbers.tobytes())}
    )
    narrow = numbers.astype(ml_dtypes.bfloat16)
    write_safetensors(
        tmp_path / "narrow.safetensors", {"x": ("BF16", [1024, 1024], narrow.tobytes())}
    )
    found = ckptforge.compare(
        tmp_path / "wide.safetensors", tmp_path / "narrow.safetensors", memory="1MiB"
    )
    assert found.differences[0].count == int((narrow.astype(np.float32) != numbers).sum())
    assert ckptforge.compare(
        tmp_path / "narrow.safetensors", tmp_path / "wide.safetensors", memory="1MiB"
    ).differences


def test_tensors_on_one_side_and_state(tmp_path):
    full = MINDSPORE / "full.ckpt"
    ckptforge.convert(full, tmp_path / "w.ckpt", to="dense", weights_only=True)
    found = ckptforge.compare(full, tmp_path / "w.ckpt")
    assert found.equal and any("only A has optimizer state" in note for note in found.notes)
    tensors = {
        name: (
            {"bfloat16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}[d],
            list(s),
            b,
        )
        for name, (d, s, b) in contents(full).items()
    }
    tensors["adam_m.lm_head.weight"] = ("F32", [80, 32], bytes(80 * 32 * 4))
    del tensors["global_step"], tensors["adam_v.model.norm_out.weight"]
    tensors["model.extra"] = ("F32", [1], bytes(4))
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "ms"})
    found = ckptforge.compare(full, tmp_path / "x.safetensors")
    assert set(found.only_in_a) == {"adam_v.model.norm_out.weight", "global_step"}
    assert found.only_in_b == ["model.extra"] and [one.name for one in found.differences] == [
        "adam_m.lm_head.weight"
    ]
    weights = ckptforge.compare(full, tmp_path / "x.safetensors", weights_only=True)
    assert (
        not weights.only_in_a and not weights.differences and weights.only_in_b == ["model.extra"]
    )


def test_models_that_no_mapping_knows_are_compared_by_name(tmp_path):
    one = {"a": ("F32", [2, 2], np.arange(4, dtype="f4").tobytes()), "b": ("I64", [1], bytes(8))}
    write_safetensors(tmp_path / "a.safetensors", one, {"format": "ms"})
    write_safetensors(tmp_path / "b.safetensors", {**one, "c": one["b"]}, {"format": "ms"})
    write_safetensors(
        tmp_path / "c.safetensors", {**one, "a": ("F32", [4], one["a"][2])}, {"format": "ms"}
    )
    write_safetensors(tmp_path / "d.safetensors", {"z": one["a"]}, {"format": "ms"})
    assert ckptforge.compare(tmp_path / "a.safetensors", tmp_path / "a.safetensors").equal
    found = ckptforge.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found.equal, found.only_in_b, found.through) == (False, ["c"], None)
    (shapes,) = ckptforge.compare(
        tmp_path / "a.safetensors", tmp_path / "c.safetensors"
    ).differences
    assert shapes.what == "shape [2, 2] in A, [4] in B"
    with pytest.raises(ModelUnknownError, match="no tensor name in common"):
        ckptforge.compare(tmp_path / "a.safetensors", tmp_path / "d.safetensors")


def test_models_of_different_sizes_are_said(tmp_path):
    write_hub(tmp_path / "small", tiny_config())
    with pytest.raises(LayoutError, match="models of different sizes"):
        ckptforge.compare(HUB, tmp_path / "small")


def test_the_command(tmp_path, square):
    bad = damaged(square, tmp_path / "bad", DEFECTS["w1 and w3 exchanged"])
    same = ckpt("compare", square, square)
    assert (
        same.returncode == 0
        and same.stdout.splitlines()[-1].startswith("the same")
        and not same.stderr
    )
    different = ckpt("compare", square, bad)
    assert different.returncode == 1 and "likely cause: w1 and w3 exchanged" in different.stdout
    found = json.loads(ckpt("compare", square, bad, "--json").stdout)
    assert (
        found["ok"] is False
        and found["error"]["type"] == "Different"
        and len(found["differences"]) == 2
    )
    quiet = ckpt("compare", square, bad, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert ckpt("compare", square, tmp_path / "none").returncode == 1
    alone = ckpt("compare", square)
    assert alone.returncode == 1 and "has no manifest" in alone.stderr
    assert ckpt("compare", square, "--layout-a", "hub").returncode == 2


@pytest.mark.parametrize("form", ["ckpt", "ranks", "hub"])
def test_an_output_against_its_manifest(tmp_path, form):
    out = tmp_path / ("x.ckpt" if form == "ckpt" else "x")
    if form == "ranks":
        ckptforge.reshard(
            MINDSPORE / "sharded/mp8",
            out,
            src_strategy_dir=MINDSPORE / "strategies/mp8",
            dst_strategy_dir=MINDSPORE / "strategies/pp2mp2",
        )
    elif form == "hub":
        ckptforge.convert(HUB, out, to="fused", max_shard_size="300KB")
    else:
        ckptforge.to_ms(HUB, out, dtype="fp32")
    found = ckptforge.check(out)
    assert found.equal and found.tensors == sum(len(contents(path)) for path in weight_files(out))
    said = json.loads(ckpt("compare", out, "--json").stdout)
    assert (
        said["ok"]
        and said["verb"] == "compare"
        and said["tensors"] == found.tensors
        and said["problems"] == []
    )
    file = weight_files(out)[-1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    (problem,) = ckptforge.check(out).problems
    assert "has other bytes than were written" in problem and str(file) in problem
    file.write_bytes(content[:-1])
    assert not ckptforge.check(out).equal
    file.unlink()
    assert any("missing" in problem for problem in ckptforge.check(out).problems)


def weight_files(out):
    return (
        [out]
        if out.is_file()
        else sorted(path for path in out.rglob("*") if path.suffix in (".ckpt", ".safetensors"))
    )


def test_hashes_are_what_the_docs_say(tmp_path, monkeypatch):
    """XXH3 of the digests of blocks, whatever the workers and the buffers; blocks made small, a
    chunked tensor included."""
    xxhash = pytest.importorskip("xxhash")
    make_blocks_small(monkeypatch)
    monkeypatch.setattr("ckptforge.formats.mindspore_ckpt.CHUNK_BYTES", 1536)
    for workers in (1, 2):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=workers, memory="2MiB", overwrite=True)
        (output,) = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())["outputs"]
        for name, (dtype, shape, data) in contents(tmp_path / "x.ckpt").items():
            digests = b"".join(
                xxhash.xxh3_128(data[at : at + 1000]).digest() for at in range(0, len(data), 1000)
            )
            assert output["tensors"][name] == [
                dtype,
                list(shape),
                xxhash.xxh3_128(digests).hexdigest(),
            ]


def test_the_manifest_holds_the_command_and_hashes_of_the_sources(tmp_path):
    import shlex

    assert ckpt("to-ms", HUB, tmp_path / "a b.ckpt", "--dtype", "fp16").returncode == 0
    manifest = json.loads((tmp_path / "a b.ckpt.manifest.json").read_text())
    assert shlex.split(manifest["command"]) == [
        "ckptforge",
        "to-ms",
        str(HUB),
        str(tmp_path / "a b.ckpt"),
        "--dtype",
        "fp16",
    ]
    assert manifest["sources"]
    for source in manifest["sources"]:
        path = Path(source["path"])
        assert source["size"] == path.stat().st_size
        assert source["xxh3_128"] == file_hash(path, 8 * 1024 * 1024)
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", no_hash=True)
    manifest = json.loads((tmp_path / "x.ckpt.manifest.json").read_text())
    assert manifest["command"] is None and not any(
        "xxh3_128" in source for source in manifest["sources"]
    )


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_source_of_which_a_part_is_read_is_hashed_in_part(tmp_path, in_parts):
    xxhash = pytest.importorskip("xxhash")
    block = 8 * 1024 * 1024
    numbers = np.arange(6 * block // 2, dtype=np.uint16).reshape(6, -1)
    tensors = {f"t{i}": ("U16", [len(row)], row.tobytes()) for i, row in enumerate(numbers)}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    for part in ["1/2", "2/2"] if in_parts else [None]:
        only = {"keep": ["t2"], "allow_no_config": True, "part": part}
        ckptforge.edit(tmp_path / "a.safetensors", tmp_path / "out", **only)
    if in_parts:
        ckptforge.finish(tmp_path / "out")
    (source,) = json.loads((tmp_path / "out/ckptforge.manifest.json").read_text())["sources"]
    # the header, and t2
    start = (tmp_path / "a.safetensors").stat().st_size - 6 * block
    assert source["ranges"] == [[0, start], [start + 2 * block, start + 3 * block]]
    data = (tmp_path / "a.safetensors").read_bytes()
    digests = [
        xxhash.xxh3_128(data[at : min(at + block, end)]).digest()
        for first, end in source["ranges"]
        for at in range(first, end, block)
    ]
    assert source["xxh3_128"] == xxhash.xxh3_128(b"".join(digests)).hexdigest()
    assert ckptforge.check(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"rms_norm_eps": 1e-3}, {"rms_norm_eps": (1e-5, 1e-3)}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
            {"rope_theta": (1e6, 1e4)},
        ),
        ({"rope_parameters": None, "rope_theta": 1e6}, {}),  # as transformers 4 writes it
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling.rope_type": ("default", "linear"), "rope_scaling.factor": (None, 2.0)},
        ),
        (
            {"num_experts_per_tok": 1, "transformers_version": "4.0"},
            {"num_experts_per_tok": (2, 1)},
        ),
        ({"sliding_window": 7}, {"sliding_window": (None, 7)}),
    ],
)
def test_the_constants_of_the_configs_are_compared(tmp_path, change, differs):
    """They aren't in any tensor: a checkpoint of the same bits with another eps is another
    model."""
    shutil.copytree(HUB, tmp_path / "hub")
    config = {**json.loads((HUB / "config.json").read_text()), **change}
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="gmm")
    found = ckptforge.compare(HUB, tmp_path / "x.ckpt")
    assert found.constants == differs and found.equal == (not differs) and not found.differences
    done = ckpt("compare", HUB, tmp_path / "x.ckpt")
    assert done.returncode == bool(differs) and done.stdout.count("config.json: ") == len(differs)
    (tmp_path / "x.ckpt.manifest.json").unlink()
    unknown = ckptforge.compare(HUB, tmp_path / "x.ckpt", layout_b="gmm")
    assert unknown.equal and "no config.json is known of B" in unknown.notes[-1]


def test_outputs_without_hashes(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", no_hash=True)
    with pytest.raises(CkptforgeError, match="no_hash=True"):
        ckptforge.check(tmp_path / "x.ckpt")
    for content in (
        "{}",
        '{"outputs": [{"file": "../x", "size": 1, "tensors": {}}]}',
        '{"outputs": [3]}',
        "nonsense",
    ):
        (tmp_path / "x.ckpt.manifest.json").write_text(content)
        with pytest.raises(CkptforgeError, match="x.ckpt.manifest.json"):
            ckptforge.check(tmp_path / "x.ckpt")


def test_a_cast_of_the_wrong_side_is_said(tmp_path):
    write_hub(tmp_path / "wide", tiny_config(), dtype="F32")
    ckptforge.convert(
        tmp_path / "wide", tmp_path / "narrow", to="hub", dtype="bf16", allow_overflow=True
    )
    found = ckptforge.compare(tmp_path / "narrow", tmp_path / "wide", after_cast="bf16")
    assert not found.equal and any("name B first" in cause for cause in found.causes)
    assert ckptforge.compare(tmp_path / "wide", tmp_path / "narrow", after_cast="bf16").equal


def test_causes_name_tensors_in_their_order_whichever_is_read_first(tmp_path):
    sizes = {f"layers.{i}": 1 if i % 2 else 1 << 18 for i in range(40)}
    stored = {name: ("F32", [size], bytes(4 * size)) for name, size in sizes.items()}
    write_safetensors(tmp_path / "x.safetensors", stored)
    values = open_checkpoint(tmp_path / "x.safetensors").values
    assert list(fingerprints(values, Budget.of(4, 64 << 20))) == list(values) == list(sizes)
