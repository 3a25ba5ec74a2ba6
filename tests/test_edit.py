"""Surgery over named axes: what an edit makes is what cutting by hand with numpy makes, in every
layout and split, and config.json says it."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.errors import FormatError, LayoutError, UnmappedTensorsError, UsageError
from ckptforge.model import Model
from ckptforge.surgery.edits import EDITS
from ckptforge.surgery.rules import broken, by_layers, tokens_moved, unsaid_of_layers
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import contents, rounded, write_safetensors

TABLES = {table.name: table for table in shipped_tables()}
CONFIGS = {name: dict(table.example) for name, table in TABLES.items()}
CONFIGS["deepseek_v3"] |= {"n_group": 2, "topk_group": 1}  # so that half the experts are enough
MOE = ("mixtral", "qwen3_moe", "deepseek_v3")
CODES = {"float32": "F32", "bfloat16": "BF16"}


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def arrays_of(path):
    return {
        name: np.frombuffer(data, getattr(ml_dtypes, dtype, dtype)).reshape(shape)
        for name, (dtype, shape, data) in contents(path).items()
    }


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model of each table."""
    root = tmp_path_factory.mktemp("models")
    for name, table in TABLES.items():
        write_model(root / name, table, CONFIGS[name], seed=len(name))
    return root


def write_hub(directory, arrays, config):
    """A Hugging Face directory by hand."""
    directory.mkdir()
    tensors = {
        name: (CODES[array.dtype.name], list(array.shape), array.tobytes())
        for name, array in arrays.items()
    }
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))


def experts_by_hand(arrays, kept):
    """Only some experts, by the names of the hub; `kept` is a list, or one for each layer."""
    found = {}
    for name, array in arrays.items():
        layer = int(re.search(r"layers\.(\d+)\.", name)[1]) if ".layers." in name else -1
        own = kept[layer] if isinstance(kept, dict) and layer in kept else kept
        if match := re.search(r"(.*\.experts\.)(\d+)(\..*)", name):
            for new, old in enumerate(own):
                if old == int(match[2]):
                    found[f"{match[1]}{new}{match[3]}"] = array
        elif re.search(r"(block_sparse_moe|mlp)\.gate\.(weight|e_score_correction_bias)", name):
            found[name] = array[list(own)]
        else:
            found[name] = array
    return found


EXPERTS = {
    "mixtral": "num_local_experts",
    "qwen3_moe": "num_experts",
    "deepseek_v3": "n_routed_experts",
}


@pytest.mark.parametrize("name", MOE)
def test_experts_are_taken_as_by_hand_in_every_layout(models, tmp_path, name):
    kept = [0, 3, 4, 7]
    config = {**CONFIGS[name], EXPERTS[name]: 4}
    by_hand = experts_by_hand(arrays_of(models / name), kept)
    write_hub(tmp_path / "hand", by_hand, config)
    result = ckptforge.edit(models / name, tmp_path / "edited", take=["e=0,3-4,7"])
    assert arrays_of(tmp_path / "edited").keys() == by_hand.keys()
    assert contents(tmp_path / "edited") == contents(tmp_path / "hand")
    assert config_of(tmp_path / "edited") == config
    assert result.facts["surgery"]["config"] == {EXPERTS[name]: [8, 4]}
    hub, hand = ckptforge.open(models / name), ckptforge.open(tmp_path / "hand")
    for layout in TABLES[name].layouts:
        edited, expected = hub.as_layout(layout).take(e=kept), hand.as_layout(layout)
        assert list(edited) == list(expected)
        for tensor in expected:
            assert (bits(edited[tensor][...]) == bits(expected[tensor][...])).all(), tensor
        assert edited.config == config and edited.layout == layout


@pytest.mark.parametrize(("name", "layout"), [("mixtral", "dense"), ("deepseek_v3", "mcore")])
def test_from_eight_ranks_to_four_in_one_pass(models, tmp_path, name, layout):
    eight, four = tmp_path / "8.json", tmp_path / "4.json"
    eight.write_text('{"data_parallel": 4, "model_parallel": 2, "expert_parallel": 4}')
    four.write_text('{"data_parallel": 2, "model_parallel": 2, "expert_parallel": 2}')
    ckptforge.to_ms(models / name, tmp_path / "r8", layout=layout, parallel_config=eight)
    ckptforge.edit(tmp_path / "r8", tmp_path / "r4", take=["e=0,3,4,7"], dst_parallel_config=four)
    ckptforge.edit(models / name, tmp_path / "hub", take=["e=0,3,4,7"])
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "whole.ckpt", layout=layout)
    ckptforge.merge(tmp_path / "r4", tmp_path / "merged.ckpt")
    assert contents(tmp_path / "merged.ckpt") == contents(tmp_path / "whole.ckpt")
    assert len(list((tmp_path / "r4").glob("rank_*"))) == 4
    ckptforge.to_torch(tmp_path / "r4", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hub")


def test_each_layer_may_keep_other_experts(models, tmp_path):
    """DeepSeek-V3 has a dense layer, two with experts, and one that predicts a further token."""
    name = "deepseek_v3"
    kept = {1: [0, 1, 2, 3], 2: [7, 6, 5, 4], 3: [0, 2, 4, 6]}
    hub = ckptforge.open(models / name)
    expected = experts_by_hand(arrays_of(models / name), kept)
    files = {
        "numbered.json": {str(layer): own for layer, own in kept.items()},
        "in_order.json": list(kept.values()),
        "all.json": [None, *kept.values()],
    }
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
        edited = hub.take(e=f"@{tmp_path / file}")
        assert edited.keys() == expected.keys()
        for tensor, array in expected.items():
            assert (bits(edited[tensor][...]) == bits(array)).all(), tensor
    mcore = hub.as_layout("mcore").take(e=list(kept.values()))
    for tensor, one in hub.take(e=kept).as_layout("mcore").items():
        assert (bits(mcore[tensor][...]) == bits(one[...])).all(), tensor


def layers_by_hand(arrays, layers, before):
    """Layers in another order, the further ones after them."""
    found = {}
    for name, array in arrays.items():
        match = re.search(r"(.*layers\.)(\d+)(\..*)", name)
        if match is None:
            found[name] = array
        elif int(match[2]) >= before:
            new = int(match[2]) - before + len(layers)
            found[f"{match[1]}{new}{match[3]}"] = array
        else:
            for new, old in enumerate(layers):
                if old == int(match[2]):
                    found[f"{match[1]}{new}{match[3]}"] = array
    return found


@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [
        ("mixtral", [1, 0, 1, 1], {"num_hidden_layers": 4}),
        ("qwen3_moe", [1], {"num_hidden_layers": 1}),
        ("deepseek_v3", [0, 2, 1, 2], {"num_hidden_layers": 4}),
        ("deepseek_v3", [0, 0, 2], {"first_k_dense_replace": 2}),
        ("llama", [0, 1, 0], {"num_hidden_layers": 3}),
    ],
)
def test_layers_are_taken_as_by_hand_and_keep_their_numbering(
    models, tmp_path, name, layers, changes
):
    before = CONFIGS[name]["num_hidden_layers"]
    expected = layers_by_hand(arrays_of(models / name), layers, before)
    written = ",".join(map(str, layers))
    ckptforge.edit(models / name, tmp_path / "out", take=[f"num_hidden_layers={written}"])
    found = arrays_of(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(found[tensor].tobytes() == array.tobytes() for tensor, array in expected.items())
    assert config_of(tmp_path / "out") == {**CONFIGS[name], **changes}
    for layout in list(TABLES[name].layouts)[1:6]:
        edited = ckptforge.open(models / name).as_layout(layout).take(l=layers)
        there = ckptforge.open(tmp_path / "out").as_layout(layout)
        assert list(edited) == list(there)
        for tensor, one in there.items():
            assert (bits(edited[tensor][...]) == bits(one[...])).all(), tensor


def test_dense_layers_stay_before_those_with_experts(models):
    hub = ckptforge.open(models / "deepseek_v3")
    with pytest.raises(
        UsageError, match=r"the layers of axis k \(first_k_dense_replace\) must stay"
    ):
        hub.take(l=[1, 0, 2])
    with pytest.raises(UsageError, match="axis m counts some of the layers: take l, all"):
        hub.take(m=[0])
    none = hub.take(t=[])
    assert none.config["num_nextn_predict_layers"] == 0
    assert not any(".layers.3." in name for name in none) and len(none) < len(hub)


@st.composite
def edits(draw, sizes, axes):
    """(axis, indexes) of an edit that config.json can say."""
    axis = draw(st.sampled_from(axes))
    least = 4 if axis == "e" else 1
    indexes = st.integers(0, sizes[axis] - 1)
    return axis, draw(st.lists(indexes, min_size=least, max_size=10))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_edit_and_a_conversion_can_change_places(models, data):
    """Bit for bit, whatever the axes, lists and layouts."""
    name = data.draw(st.sampled_from(["mixtral", "qwen3_moe", "llama", "qwen3"]))
    table = TABLES[name]
    hub = ckptforge.open(models / name)
    sizes = hub.source.binding.sizes.lengths
    axes = [axis for axis in ("e", "l", "V", "I", "H", "g", "r") if axis in table.axes]
    chosen = data.draw(
        st.lists(edits(sizes, axes), min_size=1, max_size=2, unique_by=lambda x: x[0])
    )
    layout = data.draw(st.sampled_from(list(table.layouts)))
    one, other = hub, hub.as_layout(layout)
    for axis, indexes in chosen:
        one, other = one.take(**{axis: indexes}), other.take(**{axis: indexes})
    one = one.as_layout(layout)
    assert list(one) == list(other)
    for tensor in one:
        assert (bits(one[tensor][...]) == bits(other[tensor][...])).all(), (layout, tensor)
    assert one.config == other.config


def test_other_axes_are_cut_wherever_they_occur(models):
    hub = ckptforge.open(models / "mixtral")
    arrays = {name: tensor[...] for name, tensor in hub.items()}
    kept = [0, 5, 6, 100]
    inner = hub.take(intermediate_size=kept)
    for name, tensor in inner.items():
        expected = arrays[name]
        if ".w1." in name or ".w3." in name:
            expected = expected[kept]
        elif ".w2." in name:
            expected = expected[:, kept]
        assert (bits(tensor[...]) == bits(expected)).all(), name
    assert inner.config["intermediate_size"] == 4
    heads = hub.take(g=[1])
    assert heads.config["num_key_value_heads"] == 1 and heads.config["num_attention_heads"] == 4
    assert heads.config["head_dim"] == 8 and heads.config["hidden_size"] == 64
    query = "model.layers.0.self_attn.q_proj.weight"
    assert (bits(heads[query][...]) == bits(arrays[query][32:])).all()
    rows = hub.take(V="0-9,250")
    assert (
        bits(rows["lm_head.weight"][...]) == bits(arrays["lm_head.weight"][[*range(10), 250]])
    ).all()


def test_padding_fills_what_is_asked_for(models, tmp_path):
    path = models / "llama"
    hub = ckptforge.open(path)
    name = "model.embed_tokens.weight"
    before, size = hub[name][...], hub[name].shape[0]
    mean = before.astype("f8").mean(axis=0).astype(before.dtype)
    drawn = hub.pad(V=size + 40, fill="normal:0.5,3")[name][size:].astype("f8")
    cases = {
        "zero": np.zeros_like(before[:5]),
        "mean": np.broadcast_to(mean, (5, before.shape[1])),
        "copy:7": np.broadcast_to(before[7], (5, before.shape[1])),
    }
    for fill, expected in cases.items():
        padded = hub.pad(V=size + 5, fill=fill)
        assert (bits(padded[name][:size]) == bits(before)).all()
        assert (bits(padded[name][size:]) == bits(expected)).all(), fill
        assert padded.config["vocab_size"] == size + 5
    assert abs(drawn.std() - 0.5) < 0.05 and abs(drawn.mean()) < 0.05
    assert hub.pad(V="multiple:1000").config["vocab_size"] == 1000
    outputs = []
    for workers, memory in ((1, "1MiB"), (8, "64MiB")):
        out = tmp_path / f"w{workers}"
        ckptforge.edit(
            path, out, pad=["V=multiple:1000"], fill="normal:0.02,1", workers=workers, memory=memory
        )
        outputs.append(contents(out))
    assert outputs[0] == outputs[1] and ckptforge.check(tmp_path / "w1")
    back = ckptforge.open(tmp_path / "w1").take(V=f"0-{size - 1}")
    assert (bits(back[name][...]) == bits(before)).all()


@pytest.mark.parametrize("fill", ["zero", "copy:2", "normal:0.02,5", "mean"])
def test_padding_and_conversion_can_change_places(models, fill):
    for name, axis, layouts in (
        ("mixtral", "e", ("gmm-v3", "mcore")),
        ("qwen3_moe", "I", ("fused", "mcore")),
        ("deepseek_v3", "e", ("mcore", "legacy-bmm")),
    ):
        hub = ckptforge.open(models / name)
        size = hub.source.binding.sizes.get(axis) + 4
        for layout in layouts if fill != "mean" or name == "mixtral" else ():
            one = hub.pad(fill=fill, **{axis: size}).as_layout(layout)
            other = hub.as_layout(layout).pad(fill=fill, **{axis: size})
            for tensor in one:
                assert (bits(one[tensor][...]) == bits(other[tensor][...])).all(), (layout, tensor)


def test_groups_of_experts_become_their_mean(models):
    for name in ("mixtral", "qwen3_moe"):
        hub = ckptforge.open(models / name)
        groups = [[0, 3], {"1": 1, "2": 3}, [4], [7, 5, 6]]
        weights = [{0: 0.5, 3: 0.5}, {1: 0.25, 2: 0.75}, {4: 1.0}, dict.fromkeys((7, 5, 6), 1 / 3)]
        merged = hub.merge(e=groups)
        gate = next(tensor for tensor in hub if tensor.endswith("gate.weight"))
        expert = next(tensor for tensor in hub if ".experts.0." in tensor)
        for i, own in enumerate(weights):
            rows = sum(hub[gate][...][k].astype("f8") * w for k, w in own.items())
            assert (merged[gate][i] == rounded(rows, ml_dtypes.bfloat16)).all(), i
            parts = (
                hub[expert.replace(".0.", f".{k}.", 1) if ".layers.0." not in expert else
                    expert.replace("experts.0", f"experts.{k}")][...].astype("f8") * w
                for k, w in own.items()
            )  # fmt: skip
            total = rounded(sum(parts), ml_dtypes.bfloat16)
            found = merged[expert.replace("experts.0", f"experts.{i}")][...]
            assert (found == total).all(), i
        for layout in TABLES[name].layouts:
            one, other = merged.as_layout(layout), hub.as_layout(layout).merge(e=groups)
            for tensor in one:
                assert (one[tensor][...] == other[tensor][...]).all(), (layout, tensor)


def test_optimizer_state_follows_its_weights(models, tmp_path):
    ckptforge.to_ms(models / "mixtral", tmp_path / "x.safetensors", layout="gmm")
    arrays = arrays_of(tmp_path / "x.safetensors")
    tensors = dict(arrays)
    for name, array in arrays.items():
        tensors[f"adam_m.{name}"] = array.astype("f4") * 2
        tensors[f"adam_v.{name}"] = array.astype("f4") * 3
    raw = {
        name: (CODES[array.dtype.name], list(array.shape), array.tobytes())
        for name, array in tensors.items()
    }
    step = np.array(7, "i8")
    raw["global_step"] = ("I64", [], step.tobytes())
    write_safetensors(tmp_path / "train.safetensors", raw)
    ckptforge.edit(
        tmp_path / "train.safetensors",
        tmp_path / "out.safetensors",
        take=["e=5,0,5"],
        pad=["V=300"],
        to="dense",
    )
    found = arrays_of(tmp_path / "out.safetensors")
    for name, array in list(found.items()):
        if name.startswith("adam_"):
            continue
        if name == "global_step":
            assert array == 7
            continue
        assert (found[f"adam_m.{name}"] == array.astype("f4") * 2).all(), name
        assert (found[f"adam_v.{name}"] == array.astype("f4") * 3).all(), name
    merged = ckptforge.open(tmp_path / "train.safetensors").merge(e=[[0, 1], [2, 3]])
    assert not any(name.startswith("adam_") for name in merged)


def test_the_factors_of_an_adapter_follow_their_weights(models, tmp_path):
    """Experts that a layout stacks have none; the rows of a factor are those of its weight."""
    ckptforge.to_ms(models / "mixtral", tmp_path / "x.safetensors", layout="dense")
    random = np.random.default_rng(1)
    tensors = dict(arrays_of(tmp_path / "x.safetensors"))
    for layer in range(2):
        for module in ("wq", "wo"):
            name = f"model.layers.{layer}.attention.{module}"
            rows, columns = tensors[f"{name}.weight"].shape
            factors = {"a": (4, columns), "b": (rows, 4)}
            for factor, shape in factors.items():
                made = random.normal(size=shape).astype("f4")
                tensors[f"{name}.mindpet_delta_lora_{factor}"] = made
                tensors[f"adam_m.{name}.mindpet_delta_lora_{factor}"] = made * 2
    raw = {n: (CODES[a.dtype.name], list(a.shape), a.tobytes()) for n, a in tensors.items()}
    write_safetensors(tmp_path / "lora.safetensors", raw)
    ckptforge.edit(
        tmp_path / "lora.safetensors", tmp_path / "out.safetensors", take=["l=1,0,1", "g=1"],
        config=models / "mixtral",
    )  # fmt: skip
    found = arrays_of(tmp_path / "out.safetensors")
    base, heads = "model.layers.{}.attention.{}.mindpet_delta_lora_{}", slice(32, 64)
    for new, old in enumerate((1, 0, 1)):
        for module, part, index in (
            ("wq", "a", np.s_[:]),
            ("wq", "b", np.s_[heads]),
            ("wo", "a", np.s_[:, heads]),
            ("wo", "b", np.s_[:]),
        ):
            expected = tensors[base.format(old, module, part)][index]
            name = base.format(new, module, part)
            assert (found[name] == expected).all(), name
            assert (found[f"adam_m.{name}"] == expected * 2).all(), name
    assert sum("mindpet" in name for name in found) == 3 * 2 * 2 * 2
    with pytest.raises(UsageError, match="a mean of factors isn't that of their products"):
        ckptforge.open(tmp_path / "lora.safetensors", config=models / "mixtral").merge(e=[[0, 1]])


def test_dtypes_by_kind_come_before_the_cast_of_all(models, tmp_path):
    path = models / "mixtral"
    ckptforge.edit(
        path, tmp_path / "out", set_dtype=["router=fp32", "*norm.weight=fp32"], dtype="fp16"
    )
    for name, (dtype, _, _) in contents(tmp_path / "out").items():
        kept = "gate" in name or name.endswith("norm.weight")
        assert dtype == ("float32" if kept else "float16"), name
    fused = ckptforge.open(path).as_layout("mcore")
    with pytest.raises(UsageError, match="wq is stored in one tensor with wk, wv in layout mcore"):
        fused.set_dtype(wq="fp32")


def test_heads_are_tied_only_where_they_are_the_embedding(models, tmp_path):
    with pytest.raises(FormatError, match=r"lm_head\.weight should be a copy"):
        ckptforge.edit(models / "llama", tmp_path / "no", tie=True)
    same = arrays_of(models / "llama")
    same["lm_head.weight"] = same["model.embed_tokens.weight"]
    write_hub(tmp_path / "same", same, CONFIGS["llama"])
    ckptforge.edit(tmp_path / "same", tmp_path / "tied", tie=True)
    assert "lm_head.weight" not in contents(tmp_path / "tied")
    assert config_of(tmp_path / "tied")["tie_word_embeddings"] is True
    ckptforge.edit(tmp_path / "tied", tmp_path / "untied", untie=True)
    assert contents(tmp_path / "untied") == contents(tmp_path / "same")
    assert config_of(tmp_path / "untied")["tie_word_embeddings"] is False
    with pytest.raises(UsageError, match="has a head of its own already"):
        ckptforge.edit(tmp_path / "same", tmp_path / "no", untie=True)


def test_names_are_dropped_kept_and_renamed_with_what_then_cannot_be_read(models, tmp_path):
    path = models / "mixtral"
    with pytest.raises(
        UsageError, match=r"after drop no mapping reads the model any more[^$]*lm_head"
    ):
        ckptforge.edit(path, tmp_path / "no", drop=["lm_head"])
    result = ckptforge.edit(
        path, tmp_path / "some", keep=["router", "*norm*"], allow_unloadable=True
    )
    assert result.tensors == 7 and "no mapping reads the model after keep" in result.notes[-1]
    ckptforge.edit(
        path, tmp_path / "named", rename=["model.layers.*.input_layernorm.weight=n.*.w"],
        allow_unloadable=True,
    )  # fmt: skip
    names = contents(tmp_path / "named")
    assert "n.0.w" in names and "n.1.w" in names and len(names) == len(contents(path))
    with pytest.raises(UsageError, match="would both be 'x'"):
        ckptforge.edit(path, tmp_path / "no", rename=["lm_head.weight=x", "model.norm.weight=x"])
    with pytest.raises(UsageError, match="Did you mean 'router'"):
        ckptforge.edit(path, tmp_path / "no", drop=["routr"])
    with pytest.raises(UsageError, match="nothing would be left"):
        ckptforge.edit(path, tmp_path / "no", drop=["*"])


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"take": ["x=0"]}, r"mixtral has no axis 'x'; it has l \(num_hidden_layers\)"),
        ({"take": ["num_local_expert=0"]}, "Did you mean 'num_local_experts'"),
        ({"take": ["num_attention_heads=0"]}, "stands for the axes g, r, d of mixtral"),
        ({"take": ["e=0,8"]}, r"index 8 is beyond axis e, of 8 \(0 to 7\)"),
        ({"take": ["e=3-1"]}, "the range 3-1 goes down"),
        ({"take": ["e=a"]}, "expected indexes such as 0,2,5"),
        ({"take": ["e="]}, "leaves nothing of axis e"),
        ({"take": ["e"]}, "expected two things, such as e=0,2,5"),
        ({"take": ["e=0"]}, "num_experts_per_tok is 2, more than the 1 experts"),
        ({"take": ["d=0-3"]}, "axis d is turned by RoPE"),
        ({"pad": ["d=multiple:3"]}, "axis d is turned by RoPE"),
        ({"merge": ["d=[[0,1]]"]}, "axis d is turned by RoPE"),
        ({"pad": ["e=4"]}, "axis e has 8 already; take='e=0-3' cuts it"),
        ({"pad": ["l=4"]}, "layers aren't filled: repeat some with take"),
        ({"pad": ["V=1k"]}, "expected a size, or a multiple such as multiple:128"),
        ({"pad": ["V=300"], "fill": "zeros"}, "Did you mean 'zero'"),
        ({"pad": ["V=300"], "fill": "copy:256"}, "the axis has 256 indexes, from 0"),
        ({"pad": ["I=300"], "fill": "mean"}, "the mean of more than 64 indexes is made of rows"),
        ({"merge": ["e=[[0,9]]"]}, "9 isn't an index of axis e, of 8"),
        ({"merge": ["e=[0]"]}, r"expected groups such as e=\[\[0,3\],\[1,2\]\]"),
        ({"set_dtype": ["router=int8"]}, "int8"),
        ({}, "nothing is edited"),
    ],
)
def test_what_cannot_be_edited_is_refused(models, tmp_path, given_, message):
    with pytest.raises(UsageError, match=message):
        ckptforge.edit(models / "mixtral", tmp_path / "no", **given_)
    assert not (tmp_path / "no").exists()


def test_lists_for_layers_must_fit_them(models, tmp_path):
    hub = ckptforge.open(models / "deepseek_v3")
    with pytest.raises(UsageError, match="different lengths, from 2 to 4"):
        hub.take(e=[[0, 1, 2, 3], [0, 1], [0, 1, 2, 3]])
    with pytest.raises(UsageError, match="2 lists, and 3 layers have axis e"):
        hub.take(e=[[0, 1, 2, 3], [0, 1, 2, 3]])
    with pytest.raises(UsageError, match="layer 3 has axis e, too, and no list is for it"):
        hub.take(e={1: [0, 1, 2, 3], 2: [0, 1, 2, 3]})
    with pytest.raises(UsageError, match="n_group is 2, which doesn't divide the 5 experts"):
        hub.take(e=[0, 1, 2, 3, 4])
    with pytest.raises(UsageError, match="more than the 1 experts in topk_group 1 groups"):
        hub.take(e=[0, 4])
    other = hub.take(e=[0, 1, 3, 2, 4, 5, 7, 6])
    assert not any("other groups" in note for note in other.notes)
    assert any("other groups" in note for note in hub.take(e=[0, 4, 1, 5]).notes)


def test_what_cannot_be_said_is_written_where_that_is_allowed(models, tmp_path):
    result = ckptforge.edit(
        models / "mixtral", tmp_path / "out", take=["e=0"], allow_unloadable=True
    )
    assert any("config.json can't say it: num_experts_per_tok" in note for note in result.notes)
    assert config_of(tmp_path / "out")["num_local_experts"] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 8}, "more than the 4 experts"),
        ({"n_routed_experts": 6, "n_group": 4}, "n_group is 4, which doesn't divide the 6 experts"),
        ({"n_routed_experts": 8, "n_group": 2, "topk_group": 4}, "topk_group is 4, more than"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "isn't a multiple of"),
        ({"num_hidden_layers": 2, "layer_types": ["a"] * 3}, "layer_types has 3 entries, for 2"),
        ({"num_hidden_layers": 2, "mlp_only_layers": [0, 2]}, "mlp_only_layers is .*2 layers"),
        ({"num_hidden_layers": 2, "first_k_dense_replace": 3}, "is 3, more than the 2 layers"),
        ({"vocab_size": 8, "pad_token_id": 8}, "pad_token_id is 8, beyond vocab_size 8"),
    ],
)
def test_what_config_json_cannot_say_is_named_unless_it_was_so_before(config, message):
    (why,) = broken(config)
    assert re.search(message, why) and not broken(config, config)


def test_keys_of_heads_follow_where_no_axis_stands_for_them(models, tmp_path):
    ckptforge.edit(models / "deepseek_v3", tmp_path / "out", take=["h=2,0"])
    found = config_of(tmp_path / "out")
    assert found["num_attention_heads"] == found["num_key_value_heads"] == 2
    ckptforge.edit(models / "mixtral", tmp_path / "grouped", take=["r=0"])
    found, before = config_of(tmp_path / "grouped"), CONFIGS["mixtral"]
    assert found["num_key_value_heads"] == before["num_key_value_heads"]
    assert found["num_attention_heads"] == found["num_key_value_heads"]


def test_layers_that_are_dropped_by_name_leave_config_json_untrue(models, tmp_path):
    predicting = f"model.layers.{CONFIGS['deepseek_v3']['num_hidden_layers']}.*"
    with pytest.raises(UsageError, match=r"num_nextn_predict_layers is 1, .*as take='t=' would"):
        ckptforge.edit(models / "deepseek_v3", tmp_path / "no", drop=[predicting])
    ckptforge.edit(models / "deepseek_v3", tmp_path / "a", take=["t="])
    ckptforge.edit(models / "deepseek_v3", tmp_path / "b", drop=[predicting], allow_unloadable=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert config_of(tmp_path / "a")["num_nextn_predict_layers"] == 0
    with pytest.raises(UsageError, match="qwen3_moe, which has experts already"):
        ckptforge.open(models / "qwen3_moe").expand("qwen3_moe")


@pytest.mark.parametrize("model", ["deepseek_v3", "glm4_moe"])
def test_layers_that_no_tensor_has_stay_as_config_json_says_them(models, tmp_path, model):
    """As transformers saves a model, without the MTP layers that its config.json counts."""
    predicting = f"model.layers.{CONFIGS[model]['num_hidden_layers']}."
    plain = {n: a for n, a in arrays_of(models / model).items() if not n.startswith(predicting)}
    write_hub(tmp_path / "saved", plain, CONFIGS[model])
    for words in ("e=0-3", "l=0-1"):
        axis = words[0]
        ckptforge.edit(tmp_path / "saved", tmp_path / axis, take=[words])
        ckptforge.edit(models / model, tmp_path / f"{axis}2", take=["t=", words])
        assert contents(tmp_path / axis) == contents(tmp_path / f"{axis}2")
        assert config_of(tmp_path / axis)["num_nextn_predict_layers"] == 1
    assert config_of(tmp_path / "e")["n_routed_experts"] == 4


def test_keys_that_count_layers_follow():
    config = {"layer_types": ["a", "b", "c"], "mlp_only_layers": [0, 2], "other": [1, 2, 3]}
    assert by_layers(config, [2, 2, 1], 3) == {
        "layer_types": ["c", "c", "b"], "mlp_only_layers": [0, 1],
    }  # fmt: skip
    every_other = {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    for layers, dense in (([0, 1], [0]), ([1, 1], []), ([3, 2, 1], [0, 1])):
        assert by_layers(every_other, layers, 4) == {
            "decoder_sparse_step": 1, "mlp_only_layers": dense,
        }  # fmt: skip
    window = {"use_sliding_window": True, "max_window_layers": 2}
    assert not list(unsaid_of_layers(window, [0, 1, 2], 4))
    assert list(unsaid_of_layers(window, [2, 0], 4))
    moved, lost = tokens_moved(
        {"bos_token_id": 5, "eos_token_id": [7, 5], "pad_token_id": 1}, [5, 7]
    )
    assert moved == {"bos_token_id": 0, "eos_token_id": [1, 0]} and "token 1 isn't kept" in lost[0]


def test_tokenizer_files_that_no_longer_fit_are_named(models, tmp_path):
    arrays, config = arrays_of(models / "llama"), {**CONFIGS["llama"], "eos_token_id": 3}
    write_hub(tmp_path / "m", arrays, config)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    generation = {"eos_token_id": [3, 0], "top_k": 5}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(generation))
    result = ckptforge.edit(tmp_path / "m", tmp_path / "a", take=["V=3,0-2"])
    follows = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert follows == {"eos_token_id": [0, 1], "top_k": 5}
    lost = ckptforge.edit(tmp_path / "m", tmp_path / "d", take=["V=3,4"])
    assert any("generation_config.json goes along as it is" in note for note in lost.notes)
    assert any("tokenizer.json has tokens by their old numbers" in note for note in result.notes)
    assert config_of(tmp_path / "a")["eos_token_id"] == 0
    result = ckptforge.edit(tmp_path / "m", tmp_path / "b", take=["V=0-9"])
    assert any("tokenizer.json has lost tokens" in note for note in result.notes)
    result = ckptforge.edit(tmp_path / "m", tmp_path / "c", pad=["V=300"])
    assert not result.notes and (tmp_path / "c" / "tokenizer.json").exists()


def test_a_recipe_goes_in_its_order_and_is_kept_in_the_manifest(models, tmp_path):
    (tmp_path / "kept.json").write_text("[0, 1, 2, 3]")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[[edit]]\npad = { e = 10 }\nfill = 'copy:0'\n"
        "[[edit]]\ntake = { e = [9, 0, 3, 2], l = '1,1' }\n"
        f"[[edit]]\ntake = {{ e = '@{tmp_path / 'kept.json'}' }}\n"
        "[[edit]]\nset_dtype = { router = 'fp32' }\n"
    )
    ckptforge.edit(models / "mixtral", tmp_path / "out", recipe=recipe)
    hub = ckptforge.open(models / "mixtral")
    expected = hub.take(e=[0, 0, 3, 2], l=[1, 1]).set_dtype(router="fp32")
    found = ckptforge.open(tmp_path / "out")
    assert set(found) == set(expected)
    assert all((bits(found[name][...]) == bits(one[...])).all() for name, one in expected.items())
    kept = json.loads((tmp_path / "out" / "ckptforge.manifest.json").read_text())["surgery"]
    assert [step[0] for step in kept["edits"]] == ["pad", "take", "take", "take", "set_dtype"]
    assert kept["kinds"]["router"] == [[2, [8, 64], "bfloat16"], [2, [4, 64], "float32"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[edit]]\ntaek = { e = 0 }", "edit, no. 1: there is no edit 'taek'.*Did you mean 'take'"),
        ("[[edit]]\ntake = 3", "edit, no. 1, take is 3, expected"),
        ("[[edit]]\n[[edit]]\ntie = true", "edit, no. 1 has nothing, expected one of"),
        ("[[edit]]\ntie = true\ndrop = ['x']", "edit, no. 1 has tie and drop, expected one of"),
        ("[[edit]]\nexpand = { to = 'x', exprts = 2 }", "'exprts'.*Did you mean 'experts'"),
        ("edits = 1", "has the key 'edits'.*Did you mean 'edit'"),
        ("[[edit]]\nset_dtype = { w1 = 'fp31' }", "edit, no. 1: set_dtype.*Did you mean 'fp32'"),
        ("[[edit]]\ntake = { e = '0,9' }", "edit, no. 1: take='e=0,9': index 9 is beyond axis e"),
    ],
)  # fmt: skip
def test_a_recipe_says_which_row_is_wrong(models, tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        ckptforge.edit(models / "mixtral", tmp_path / "no", recipe=tmp_path / "r.toml")


def edits_of(output):
    """The edits that a manifest keeps."""
    found = json.loads((output / "ckptforge.manifest.json").read_text())["surgery"]["edits"]
    return [
        (name, argument if isinstance(argument, str) else argument[1]) for name, argument in found
    ]


def test_edits_of_a_call_come_in_the_order_in_which_they_are_given(models, tmp_path):
    from click.testing import CliRunner

    turns = [("pad", "e=12"), ("take", "e=0,9,11,2"), ("pad", "e=5"), ("take", "e=4,0,3")]
    words = [word for name, value in turns for word in (f"--{name}", value)]
    fill = ["--fill", "copy:1", "--set-dtype", "router=fp32"]
    line = ["edit", str(models / "mixtral"), str(tmp_path / "a"), *words, *fill, "--quiet"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    given = {"edits": turns, "fill": "copy:1", "set_dtype": ["router=fp32"]}
    ckptforge.edit(models / "mixtral", tmp_path / "b", **given)
    ckptforge.edit(models / "mixtral", tmp_path / "c", part="1/1", **given)
    ckptforge.finish(tmp_path / "c")
    opened = ckptforge.open(models / "mixtral")
    by_methods = (
        opened.pad("copy:1", e=12).take(e=[0, 9, 11, 2]).pad("copy:1", e=5).take(e=[4, 0, 3])
    )
    by_methods.set_dtype(router="fp32").save(tmp_path / "d")
    for other in "bcd":
        assert contents(tmp_path / other) == contents(tmp_path / "a")
    order = ["pad", "take", "pad", "take", "set_dtype"]
    assert [name for name, _ in edits_of(tmp_path / "c")] == order
    # keywords come in their order
    ckptforge.edit(models / "mixtral", tmp_path / "e", take=["e=2,1,3"], pad=["e=4"])
    ckptforge.edit(models / "mixtral", tmp_path / "f", pad=["e=9"], take=["e=2,1,8"])
    assert [name for name, _ in edits_of(tmp_path / "e")] == ["take", "pad"]
    assert [name for name, _ in edits_of(tmp_path / "f")] == ["pad", "take"]
    with pytest.raises(UsageError, match=r"edits holds \['taek', 'e=0'\].*Did you mean 'take'"):
        ckptforge.edit(models / "mixtral", tmp_path / "no", edits=[("taek", "e=0")])


def test_a_call_can_expand_as_a_recipe_does(models, tmp_path):
    text = "mixtral experts=4 active=1 router=normal:0.02,3"
    ckptforge.edit(models / "llama", tmp_path / "out", expand=[text], pad=["V=260"])
    opened = ckptforge.open(models / "llama")
    opened.expand("mixtral", experts=4, active=1, router="normal:0.02,3").pad(V=260).save(
        tmp_path / "same"
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    for wrong, message in (
        ("experts=4", "expected a mapping"),
        ("mixtral expert=4", "Did you mean 'experts'"),
        ("mixtral experts=0", "experts is 0, expected a whole number, 1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            ckptforge.edit(models / "llama", tmp_path / "no", expand=[wrong])


def test_an_edit_of_another_package_stands_in_recipes(models, tmp_path):
    class Doubled:
        NAME = "double"

        def apply(self, model: Model, source, argument):
            from msgspec.structs import replace

            values = {
                name: replace(value, terms=tuple(replace(term, weight=2.0) for term in value.terms))
                for name, value in model.values.items()
                if argument == "all"
            }
            return replace(model, values=values), []

    recipe = tmp_path / "r.toml"
    recipe.write_text("[[edit]]\ndouble = 'all'\n")
    with EDITS.registered(Doubled()):
        ckptforge.edit(models / "llama", tmp_path / "out", recipe=recipe)
    one, two = arrays_of(models / "llama"), arrays_of(tmp_path / "out")
    assert all((two[name] == one[name] * 2).all() for name in one)


def test_an_interrupted_edit_is_resumed(models, tmp_path):
    class Enough(Exception):
        pass

    def stop(done, total):
        if done > total / 2:
            raise Enough

    given_ = {"take": ["e=0,3,4,7"], "pad": ["V=1000"], "fill": "mean", "workers": 1}
    with pytest.raises(Enough):
        ckptforge.edit(models / "mixtral", tmp_path / "out", progress=stop, **given_)
    ckptforge.edit(models / "mixtral", tmp_path / "out", resume=True, **given_)
    ckptforge.edit(models / "mixtral", tmp_path / "whole", **given_)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_dry_run_shows_kinds_and_config(models, tmp_path):
    from click.testing import CliRunner

    words = ["edit", str(models / "mixtral"), str(tmp_path / "x"), "--take", "e=0,1", "--dry-run"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"router +2 × \[8, 64\] bfloat16 +2 × \[2, 64\] bfloat16", done.stdout)
    assert re.search(r"num_local_experts +8 +2", done.stdout) and not (tmp_path / "x").exists()


def test_tensors_that_the_mapping_does_not_know_may_have_the_axis(models, tmp_path):
    arrays = arrays_of(models / "mixtral")
    arrays["model.layers.0.block_sparse_moe.extra"] = np.ones(8, "f4")
    write_hub(tmp_path / "m", arrays, CONFIGS["mixtral"])
    with pytest.raises(UnmappedTensorsError, match=r"isn't known to the mapping[^$]*extra"):
        ckptforge.edit(tmp_path / "m", tmp_path / "no", take=["e=0,1"])
    result = ckptforge.edit(tmp_path / "m", tmp_path / "out", take=["e=0,1"], allow_unmapped=True)
    assert result.left_out["dropped"] == ["model.layers.0.block_sparse_moe.extra"]


def test_without_a_mapping_only_names_and_dtypes_can_be_edited(tmp_path):
    tensors = {name: ("F32", [2], np.ones(2, "f4").tobytes()) for name in ("a.w", "b.w")}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    ckptforge.edit(tmp_path / "x.safetensors", out, drop=["a*"], rename=["*.w=*.v"],
                   set_dtype=["b.v=fp16"])  # fmt: skip
    assert {name: one[0] for name, one in contents(out).items()} == {"b.v": "float16"}
    with pytest.raises(LayoutError, match="no mapping knows these tensors"):
        ckptforge.edit(tmp_path / "x.safetensors", tmp_path / "no", take=["e=0"])


def test_without_config_the_names_and_shapes_tell(models, tmp_path):
    write_safetensors(
        tmp_path / "x.safetensors",
        {
            name: (CODES[array.dtype.name], list(array.shape), array.tobytes())
            for name, array in arrays_of(models / "mixtral").items()
        },
    )
    edited = ckptforge.open(tmp_path / "x.safetensors").take(e=[1, 0])
    expected = ckptforge.open(models / "mixtral").take(e=[1, 0])
    assert all((bits(edited[name][...]) == bits(expected[name][...])).all() for name in expected)
    with pytest.raises(UsageError, match="the length of axis r .* isn't known"):
        ckptforge.open(tmp_path / "x.safetensors").take(r=[0])
