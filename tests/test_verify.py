"""The forward check: passes for what is right in every layout and split, fails for injected
defects, never picks another device."""

import json
import shutil
import types

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import UsageError, VerifyError
from ckptforge.forward import bench as verification
from ckptforge.forward import checks, device
from ckptforge.forward.arithmetic import Arithmetic
from ckptforge.forward.experts import GroupedExperts, LoopExperts, sort_by_expert
from ckptforge.forward.mindspore_forward import MindSporeForward
from ckptforge.forward.network import LayerOutput, network_of
from ckptforge.forward.precision import precision_of
from ckptforge.forward.routing import Route, Router
from ckptforge.forward.weights import Weights
from ckptforge.reading.known import Choices
from ckptforge.verbs.ranks import open_source
from tests.helpers import FIXTURES, HUB, contents, tiny_config, write_safetensors
from tests.test_cli import ckpt
from tests.test_compare import EXPERT, swap

LAYOUTS = ["dense", "gmm", "gmm-v3"]  # `test_verify_models` has them all


@pytest.fixture(scope="module")
def heavy():
    """MindSpore, torch and transformers, where all are installed."""
    pytest.importorskip("torch").set_num_threads(
        1
    )  # its threads and MindSpore's wait for each other
    pytest.importorskip("transformers")
    return pytest.importorskip("mindspore")


def model(path, seed=0, **changes):
    """A Mixtral of numbers large enough that every defect shows (standard deviation 0.2), norms
    about one."""
    config = tiny_config(
        **{
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "num_hidden_layers": 3,
            "num_local_experts": 4,
            "vocab_size": 64,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "torch_dtype": "float32",
            **changes,
        }
    )
    from tests.helpers import write_hub

    write_hub(path, config, dtype="F32")
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (_, shape, _) in contents(path).items():
        values = random.normal(0, 0.2, shape) + (1 if len(shape) == 1 else 0)
        tensors[name] = ("F32", list(shape), values.astype("f4").tobytes())
    write_safetensors(path / "model.safetensors", tensors, {"format": "pt"})
    return path


def changed(source, target, change, **config):
    """A copy with changes to its float32 arrays and to config.json."""
    tensors = {
        name: np.frombuffer(data, "f4").reshape(shape).copy()
        for name, (_, shape, data) in contents(source).items()
    }
    change(tensors)
    target.mkdir()
    (target / "config.json").write_text(
        json.dumps({**json.loads((source / "config.json").read_text()), **config})
    )
    stored = {name: ("F32", list(array.shape), array.tobytes()) for name, array in tensors.items()}
    write_safetensors(target / "model.safetensors", stored, {"format": "pt"})
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fixture_passes_in_every_layout(heavy, tmp_path, layout):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout=layout)
    found = ckptforge.verify(HUB, tmp_path / "x.ckpt")
    assert (
        found.passed and found.layout == layout and len(found.layers) == 2 and not found.unreached
    )
    assert (
        max(layer.worst for layer in found.layers) < 5e-6
        and found.end.relative_l2 < 5e-6
        and found.end.top1 == 1
    )


@pytest.mark.parametrize("form", ["safetensors", "ranks", "unified", "peer"])
def test_from_every_form(heavy, tmp_path, form):
    options = {}
    if form == "ranks":
        config = tmp_path / "c.json"
        config.write_text(
            json.dumps(
                {
                    "dp": 4,
                    "mp": 2,
                    "ep": 4,
                    "enable_parallel_optimizer": True,
                    "parallel_optimizer_threshold": 0,
                }
            )
        )
        ckptforge.to_ms(HUB, tmp_path / "x", parallel_config=config)
        ckptforge.strategy(tmp_path / "s", parallel_config=config, like=HUB)
        options["strategy_dir"] = tmp_path / "s"
    elif form == "peer":
        shutil.copy(FIXTURES / "peer/peer_r1.3.0_dense_bf16.ckpt", tmp_path / "x")
        (tmp_path / "x").rename(tmp_path / "x.ckpt")
    else:
        ckptforge.to_ms(HUB, tmp_path / "x", format=form)
    path = tmp_path / ("x.ckpt" if form == "peer" else "x")
    assert ckptforge.verify(HUB, path, **options).passed


def test_the_logits_are_those_that_were_recorded(heavy, tmp_path):
    from safetensors.numpy import load_file

    recorded = load_file(FIXTURES / "peer/torch_logits_fp32.safetensors")
    tokens = next(array for array in recorded.values() if array.dtype == np.int64)
    logits = next(
        array
        for array in recorded.values()
        if array.dtype == np.float32 and array.shape == (*tokens.shape, 256)
    )
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")
    source = open_source(tmp_path / "x.ckpt", Choices(family="mindspore"))
    weights = Weights(source)
    side = MindSporeForward(heavy, weights, network_of(weights, source.config, "x"))
    hidden = side.embed(tokens)
    for i in range(2):
        hidden = side.layer(i, hidden)[0]
    made = side.head(hidden)
    assert np.linalg.norm(made - logits) / np.linalg.norm(logits) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 7, "num_experts_per_tok": 3},
        {"num_key_value_heads": 1, "head_dim": 6},
        {"num_key_value_heads": 4, "num_experts_per_tok": 1},
        {"num_local_experts": 2, "num_experts_per_tok": 2},
        {"tie_word_embeddings": True, "intermediate_size": 24},
        {"sliding_window": 5},
    ],
)
def test_other_configurations_pass(heavy, tmp_path, changes):
    hub = model(tmp_path / "hub", **changes)
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout="gmm")
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", layout="gmm", tokens=100)
    assert found.passed, (found.layers, found.end)


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize("layout", ["dense", "gmm"])
def test_half_precision_passes_with_routing_replay(heavy, tmp_path, compute, layout):
    hub = model(tmp_path / "hub", num_local_experts=8)
    ckptforge.to_ms(hub, tmp_path / "x.ckpt", layout=layout)
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", layout=layout, compute=compute)
    assert found.passed and found.compute == compute, (found.layers, found.end)
    assert max(layer.worst for layer in found.layers) > 1e-4  # it was rounded


def test_other_experts_are_let_off_only_within_the_margin():
    """The margin: the least chosen logit less the greatest one not chosen; allowed up to twice what
    the logits differ by."""
    expected, gate, gates = np.ones((1, 2, 4), "f4"), 0.1, np.ones((2, 1), "f4")
    logits = np.array([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0]], "f4")
    router = Router(3, 1, False, True, 1, 1, 1.0)
    for difference, within, beyond in ((0.06, 1, 0), (0.04, 0, 1)):
        other = logits + np.array([[difference, 0, 0], [0, 0, 0]], "f4")
        found = checks.layer_check(
            3,
            gate,
            LayerOutput(expected, Route(logits, logits, np.array([[0], [0]]), gates)),
            LayerOutput(expected, Route(other, other, np.array([[1], [0]]), gates)),
            router,
        )
        assert (found.flips_within, found.flips_beyond, found.passed) == (
            within,
            beyond,
            not beyond,
        )
        assert abs(found.least_margin - 0.1) < 1e-6 and found.reached == [2, 0, 0]


@pytest.mark.parametrize(
    "defect", ["w1 and w3", "two experts", "transposed", "wk and wv", "norms", "layer"]
)
def test_half_precision_catches_defects(heavy, tmp_path, defect):
    hub = model(tmp_path / "hub")
    ckptforge.to_ms(changed(hub, tmp_path / "bad", DEFECTS[defect]), tmp_path / "x.ckpt")
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", layout="dense", compute="bf16")
    assert not found.passed, (found.layers, found.end)


def test_a_router_of_another_order_is_caught_in_spite_of_replay(heavy, tmp_path):
    """With one expert for a token, its gate is 1 whatever the router says: only the router's own
    logits show it."""
    hub = model(tmp_path / "hub", num_experts_per_tok=1)

    def rolled(tensors):
        name = next(
            name
            for name in tensors
            if "layers.1." in name and tensors[name].shape == (4, 16) and "gate" in name
        )
        tensors[name] = np.roll(tensors[name], 1, 0)

    ckptforge.to_ms(changed(hub, tmp_path / "bad", rolled), tmp_path / "x.ckpt")
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", layout="dense")
    assert [layer.passed for layer in found.layers] == [True, False, True] and found.layers[
        1
    ].router > 0.1


def one_element(tensors):
    name = "model.layers.1.self_attn.o_proj.weight"
    flat = np.abs(tensors[name])
    place = np.unravel_index(flat.argmax(), flat.shape)
    tensors[name][place] *= 1.1


def shift_layer(tensors):
    for name in [name for name in tensors if name.startswith("model.layers.0.")]:
        tensors[name] = tensors[name.replace("layers.0.", "layers.1.")]


def transpose_one(tensors):
    name = EXPERT.format(1, 2, "w2")
    tensors[name] = tensors[name].T.copy()


DEFECTS = {
    "w1 and w3": swap(EXPERT.format(0, 1, "w1"), EXPERT.format(0, 1, "w3")),
    "two experts": lambda tensors: [
        swap(EXPERT.format(1, 0, w), EXPERT.format(1, 3, w))(tensors) for w in ("w1", "w2", "w3")
    ],
    "transposed": transpose_one,
    "wk and wv": swap(
        "model.layers.2.self_attn.k_proj.weight", "model.layers.2.self_attn.v_proj.weight"
    ),
    "norms": swap(
        "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
    ),
    "one element": one_element,
    "layer": shift_layer,
    "lm_head": lambda tensors: tensors["lm_head.weight"].__imul__(1.01),
    "not a number": lambda tensors: tensors["model.layers.1.self_attn.q_proj.weight"].__setitem__(
        (0, 0), np.nan
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_caught(heavy, tmp_path, defect):
    hub = model(tmp_path / "hub")
    ckptforge.to_ms(changed(hub, tmp_path / "bad", DEFECTS[defect]), tmp_path / "x.ckpt")
    assert not ckptforge.compare(hub, tmp_path / "x.ckpt", layout_b="dense").equal
    found = ckptforge.verify(hub, tmp_path / "x.ckpt", layout="dense")
    assert not found.passed, (found.layers, found.end)


@pytest.mark.parametrize(
    "config", [{"rms_norm_eps": 1e-3}, {"rope_theta": 1e4}, {"num_experts_per_tok": 1}]
)
def test_another_configuration_is_caught(heavy, tmp_path, config):
    """A checkpoint's own config, kept in its manifest, computes with its own constants."""
    hub = model(tmp_path / "hub")
    ckptforge.to_ms(changed(hub, tmp_path / "bad", lambda _: None, **config), tmp_path / "x.ckpt")
    assert not ckptforge.verify(hub, tmp_path / "x.ckpt", layout="dense").passed


def test_layers_tokens_and_generation(heavy, tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    found = ckptforge.verify(HUB, tmp_path / "x.ckpt", layers=[1], tokens=[5, 6, 7], generate=3)
    assert (
        found.passed and found.end is None and found.tokens == 3 and found.notes and found.unreached
    )
    assert found.generated[0] == found.generated[1] and len(found.generated[0]) == 3
    for wrong in (
        {"layers": [2]},
        {"layers": [1, 0]},
        {"tokens": [256]},
        {"tokens": 0},
        {"tokens": 129},
        {"text": "hello"},
        {"tokens": 1, "text": "x"},
    ):
        with pytest.raises(UsageError):
            ckptforge.verify(HUB, tmp_path / "x.ckpt", **wrong)
    with pytest.raises(VerifyError, match="different sizes"):
        ckptforge.verify(model(tmp_path / "other"), tmp_path / "x.ckpt")


def test_the_command(heavy, tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")
    done = ckpt(
        "verify", HUB, tmp_path / "x.ckpt", "--report", tmp_path / "r.html", "--generate", "2"
    )
    assert (
        done.returncode == 0
        and done.stdout.splitlines()[-1].startswith("passed")
        and done.stderr.startswith(f"wrote {tmp_path / 'r.html'}: a page of ")
        and done.stderr.count("\n") == 1
    )
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 4 and page.count("<circle") == 6 and ">passed: MindSpore" in page
    assert ckpt("verify", HUB, tmp_path / "x.ckpt", "--report", tmp_path / "r.html").returncode == 1
    (tmp_path / "d").mkdir()
    wrong = ckpt("verify", HUB, tmp_path / "x.ckpt", "--report", tmp_path / "d", "--overwrite")
    assert (
        wrong.returncode == 1
        and wrong.stderr.count("\n") == 1
        and f"{tmp_path / 'd'}: isn't a page, and is kept" in wrong.stderr
    )
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    hub = model(tmp_path / "hub")
    ckptforge.to_ms(changed(hub, tmp_path / "bad", DEFECTS["w1 and w3"]), tmp_path / "bad.ckpt")
    bad = ckpt("verify", hub, tmp_path / "bad.ckpt", "--layout", "dense", "--json")
    assert bad.returncode == 1 and json.loads(bad.stdout)["error"]["type"] == "VerifyFailed"
    ascend = ckpt("verify", HUB, tmp_path / "x.ckpt", "--device", "ascend")
    assert (
        ascend.returncode == 1
        and ascend.stderr.count("\n") == 1
        and "Ascend" in ascend.stderr
        and not ascend.stdout
    )


def test_wrong_usage_and_missing_extras(tmp_path):
    for args in (["--device", "gpu"], ["--layers", "a"], ["--tokens", "1,x"]):
        assert ckpt("verify", HUB, tmp_path, *args).returncode == 2
    assert [device.parse_device(text) for text in ("cpu", "ascend", "Ascend:3")] == [
        ("CPU", 0),
        ("Ascend", 0),
        ("Ascend", 3),
    ]


class Recorder:
    """A MindSpore whose every use is recorded; setting the device fails as it does where there is
    none."""

    def __init__(self, present):
        self.calls, self.present = [], present
        self.runtime = types.SimpleNamespace(
            launch_blocking=lambda: self.calls.append("launch_blocking")
        )

    def set_device(self, name, number):
        self.calls.append(("set_device", name, number))
        if not self.present:
            raise RuntimeError("Unsupported device target Ascend.")

    def __getattr__(self, name):
        raise AssertionError(f"{name} was used before the device was there")


def test_the_device_is_selected_before_anything_else(monkeypatch, tmp_path):
    fake = Recorder(present=False)
    monkeypatch.setattr(verification, "import_mindspore", lambda: fake)
    with pytest.raises(VerifyError, match="device='ascend:2': MindSpore can't use it: Unsupported"):
        ckptforge.verify(tmp_path / "none", tmp_path / "none", device="ascend:2")
    assert fake.calls == [("set_device", "Ascend", 2)]
    fake = Recorder(present=True)
    assert device.select_device(fake, "ascend") == "Ascend" and fake.calls == [
        ("set_device", "Ascend", 0)
    ]


def test_sorting_by_expert_pads_those_without_tokens():
    chosen = np.array([[2, 0], [2, 4], [0, 2]])
    tokens, places, ends = sort_by_expert(chosen, 5)
    assert tokens.tolist() == [0, 2, 3, 0, 1, 2, 3, 1] and places.tolist() == [
        1,
        0,
        0,
        0,
        0,
        1,
        0,
        1,
    ]
    assert ends.tolist() == [2, 3, 6, 7, 8] and (np.diff(ends, prepend=0) > 0).all()


def stand_in(mindspore, calls):
    """GroupedMatmul in numpy, which checks what the kernel asks for."""

    def matmul(x, w, bias, scale, offset, antiquant_scale, antiquant_offset, groups):
        assert (bias, scale, offset, antiquant_scale, antiquant_offset) == (None,) * 5
        assert x[0].dtype == w[0].dtype
        rows, stack, ends = (
            tensor.asnumpy()
            for tensor in (x[0].astype(mindspore.float32), w[0].astype(mindspore.float32), groups)
        )
        assert stack.shape[0] == len(ends) and stack.shape[1] == rows.shape[1]
        assert (
            ends.dtype == np.int64
            and ends[-1] == len(rows)
            and (np.diff(ends, prepend=0) > 0).all()
        )
        calls.append((rows.shape, stack.shape, str(x[0].dtype)))
        parts = [part @ stack[e] for e, part in enumerate(np.split(rows, ends[:-1]))]
        return (mindspore.Tensor(np.concatenate(parts)).astype(x[0].dtype),)

    return matmul


@pytest.mark.parametrize(("compute", "gate"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_the_ascend_side_computes_what_the_other_does(heavy, tmp_path, compute, gate):
    """A whole layer with grouped experts, in the precision's own dtype, on a CPU with a stand-in
    for the kernel."""
    hub = model(tmp_path / "hub", intermediate_size=24)
    weights = Weights(open_source(hub, Choices()))
    network = network_of(weights, weights.source.config, "x")
    precision, calls = precision_of(compute), []
    side = MindSporeForward.on_ascend(heavy, weights, network, precision, stand_in(heavy, calls))
    hidden = np.random.default_rng(0).normal(size=(1, 5, 16)).astype("f4")
    made, _ = side.layer(1, hidden)
    expected, _ = MindSporeForward(heavy, weights, network).layer(1, hidden)
    assert np.linalg.norm(made - expected) <= gate * np.linalg.norm(expected)
    assert len(calls) == 3 and {dtype for _, _, dtype in calls} == {
        {"fp32": "Float32", "fp16": "Float16"}[compute]
    }


def test_grouped_experts_equal_the_loop(heavy, tmp_path):
    """An expert without tokens included."""
    hub = model(tmp_path / "hub", intermediate_size=24)
    weights = Weights(open_source(hub, Choices()))
    calls = []
    random = np.random.default_rng(0)
    states = heavy.Tensor(random.normal(size=(5, 16)).astype("f4"))
    chosen = np.array([[0, 2], [2, 3], [3, 0], [0, 2], [2, 0]])  # expert 1 gets none
    gates = heavy.Tensor(random.random((5, 2)).astype("f4"))
    grouped = GroupedExperts(heavy, weights, 4, heavy.float32, stand_in(heavy, calls))(
        1, states, chosen, gates
    ).asnumpy()
    loop = LoopExperts(Arithmetic(heavy, weights, 1e-5))(1, states, chosen, gates).asnumpy()
    assert np.allclose(grouped, loop, atol=1e-5) and [call[:2] for call in calls] == [
        ((11, 16), (4, 16, 24))
    ] * 2 + [((11, 24), (4, 24, 16))]


def test_mindspore_accepts_the_shapes_of_the_grouped_call(heavy, tmp_path, monkeypatch):
    """Its own shape inference runs before it looks for a kernel, which a CPU doesn't have."""
    monkeypatch.chdir(tmp_path)  # it leaves a file there that says what failed
    primitive = heavy.ops.auto_generate.GroupedMatmul(split_item=3, group_type=0)

    @heavy.jit
    def call(x, w, groups):
        return primitive([x], [w], None, None, None, None, None, groups)[0]

    x, groups = (
        heavy.Tensor(np.zeros((11, 16), np.float16)),
        heavy.Tensor(np.array([2, 3, 8, 11]), heavy.int64),
    )
    with pytest.raises(RuntimeError, match="Unsupported op"):
        call(x, heavy.Tensor(np.zeros((4, 16, 24), np.float16)), groups)
    with pytest.raises(ValueError, match="shape"):
        call(x, heavy.Tensor(np.zeros((4, 24, 16), np.float16)), groups)
