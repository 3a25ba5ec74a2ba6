"""Inputs that aren't what a mapping knows: what is there is named, and nothing is made into another
model."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.errors import (
    ConfigError,
    LayoutError,
    MissingTensorsError,
    ModelUnknownError,
    UnmappedTensorsError,
    UsageError,
)
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.pieces import name_pieces
from ckptforge.tables.prefixes import adapted
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.state import is_state
from ckptforge.tables.unmapped import kind_of
from tests.helpers import (
    FIXTURES,
    HUB,
    MINDSPORE,
    contents,
    tiny_config,
    write_hub,
    write_safetensors,
)

STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64"}
HEADS = [
    "score.weight",
    "score.bias",
    "classifier.weight",
    "classifier.dense.weight",
    "v_head.summary.weight",
    "v_head.0.weight",
    "value_head.weight",
    "model.value_head.bias",
    "regression_head.weight",
    "qa_outputs.weight",
    "reward_head.weight",
    "critic_head.weight",
]


def rewrite(directory, change, config=None):
    """Changes a model's tensors (name → (dtype, shape, bytes)) in place, and its config.json."""
    tensors = contents(directory)
    changed = change(dict(tensors)) or tensors
    stored = {
        name: (STORED[dtype], list(shape), data) for name, (dtype, shape, data) in changed.items()
    }
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_never_left_out(tmp_path, head):
    """Tied in config.json: the head is the only tensor that the table doesn't know."""
    write_hub(tmp_path / "hub", tiny_config(tie_word_embeddings=True))
    rewrite(tmp_path / "hub", lambda tensors: {**tensors, head: ("bfloat16", (1, 12), bytes(24))})
    for allowed in (False, True):
        with pytest.raises(
            UnmappedTensorsError, match=rf"(?s){head}.*Only causal language models"
        ) as caught:
            ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", allow_unmapped=allowed)
        assert "allow-unmapped" not in str(caught.value)
    assert not (tmp_path / "x.ckpt").exists()


def test_no_name_that_a_table_knows_is_a_head():
    for table in shipped_tables():
        for layout in table.layouts.values():
            for pattern in layout.patterns:
                # its makers' names, which only that table knows from others
                own = "hc_" in pattern.template or "_hc." in pattern.template
                if not table.in_towers.isdisjoint(pattern.tensors):
                    continue
                if table.name == "deepseek_v4" and (own or pattern.template == "head.weight"):
                    continue
                assert (
                    kind_of(
                        pattern.name(
                            dict.fromkeys(pattern.name_axes, 0),
                            Lengths(dict.fromkeys(table.axes, 1)),
                        )
                    )
                    is None
                )


def test_what_is_in_a_layer_or_a_tower_is_no_head():
    assert kind_of("model.layers.3.mlp.score.weight") is None and kind_of("lm_head.weight") is None
    for name in (
        "vision_tower.vision_model.head.weight",
        "model.visual.merger.mlp.0.weight",
        "multi_modal_projector.linear_1.bias",
    ):
        kind = kind_of(name)
        assert kind is not None and kind.droppable


# names with something before them


def example(table, seed=0):
    """A tiny model of a table's example in its first Hugging Face layout: name → (dtype, shape,
    bytes), and its config.json."""
    layout = next(layout for layout in table.layouts.values() if layout.family == "huggingface")
    sizes = AxisSizes()
    sizes.learn_config(table, table.example, "example")
    lengths = sizes.lengths
    lengths |= {
        axis: rule.evaluate(table.example, "example") or 0
        for axis, rule in table.axes.items()
        if axis not in lengths
    }
    random = np.random.default_rng(seed)
    tensors = {}
    for pattern in layout.patterns:
        if not any(
            table.optional[name].holds(table.example)
            for name in pattern.tensors
            if name in table.optional
        ):
            shape = pattern.shape(lambda _, axis: lengths[axis])
            for _, name in name_pieces(pattern, lengths):
                tensors[name] = ("bfloat16", shape, random.bytes(2 * int(np.prod(shape))))
    for row in layout.passed:
        tensors[row.name("patch.weight")] = ("bfloat16", (3, 2), random.bytes(12))
    return tensors, dict(table.example)


def put(directory, tensors, config):
    directory.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (STORED[dtype], list(shape), data) for name, (dtype, shape, data) in tensors.items()
    }
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


TABLES = {table.name: table for table in shipped_tables()}
IN_MINDSPORE = sorted(name for name, table in TABLES.items() if table.names_of("mindspore"))
ANY_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
)
PREFIXES = st.one_of(
    ANY_TEXT,
    ANY_TEXT.map(lambda text: text + "."),
    st.sampled_from(["module.", "_orig_mod.", "base_model.model.", "model."]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(IN_MINDSPORE), prefix=PREFIXES)
def test_any_prefix_of_all_names_comes_off(tmp_path_factory, name, prefix):
    """The same bits under the same names, in MindSpore's layout and back; the note names the
    prefix."""
    assume(
        not is_state(prefix + "x") and "lora_" not in prefix.lower() and not adapted([prefix + "x"])
    )
    tensors, config = example(TABLES[name])
    tmp = tmp_path_factory.mktemp("x")
    plain = put(tmp / "plain", tensors, config)
    prefixed = put(
        tmp / "prefixed", {prefix + tensor: content for tensor, content in tensors.items()}, config
    )
    expected, found = (
        ckptforge.to_ms(path, tmp / f"{path.name}.ckpt") for path in (plain, prefixed)
    )
    assert (tmp / "plain.ckpt").read_bytes() == (tmp / "prefixed.ckpt").read_bytes()
    assert (
        any(f"begin with {prefix!r}" in note for note in found.notes)
        and len(found.notes) == len(expected.notes) + 1
    )
    ckptforge.to_torch(tmp / "prefixed.ckpt", tmp / "back")
    assert contents(tmp / "back") == tensors


MIXTRAL, LLAMA = TABLES["mixtral"], TABLES["llama"]


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module."]
)
def test_wrappers_in_the_middle_come_out(tmp_path, wrapper):
    tensors, config = example(MIXTRAL)
    inside = {
        re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}", name): content
        for name, content in tensors.items()
    }
    put(tmp_path / "plain", tensors, config)
    put(tmp_path / "inside", inside, config)
    put(tmp_path / "both", {wrapper + name: content for name, content in inside.items()}, config)
    for name in ("plain", "inside", "both"):
        result = ckptforge.to_ms(tmp_path / name, tmp_path / f"{name}.ckpt")
        assert (tmp_path / f"{name}.ckpt").read_bytes() == (tmp_path / "plain.ckpt").read_bytes()
        assert any(wrapper in note for note in result.notes) == (name != "plain")


@pytest.mark.parametrize(
    "lead", ["", "model.language_model.", "language_model.", "thinker.model.", "model.model."]
)
def test_names_of_the_body_alone_may_differ(tmp_path, lead):
    """lm_head.weight as it is, as in vision-language models, or no head at all where it is tied."""
    tensors, config = example(LLAMA)
    other = {re.sub(r"^model\.", lead, name): content for name, content in tensors.items()}
    put(tmp_path / "plain", tensors, config)
    put(tmp_path / "other", other, config)
    ckptforge.to_ms(tmp_path / "plain", tmp_path / "plain.ckpt")
    result = ckptforge.to_ms(tmp_path / "other", tmp_path / "other.ckpt")
    assert (tmp_path / "plain.ckpt").read_bytes() == (tmp_path / "other.ckpt").read_bytes()
    assert any("'model.'" in note for note in result.notes)
    assert ckptforge.compare(tmp_path / "plain", tmp_path / "other").equal
    assert ckptforge.compare(tmp_path / "other", tmp_path / "plain.ckpt").equal
    assert ckptforge.compare(tmp_path / "plain.ckpt", tmp_path / "other").equal
    inspected = ckptforge.inspect(tmp_path / "other")
    assert (
        inspected.model == "llama"
        and inspected.layout == "hub"
        and f"{lead}norm.weight" in inspected.entries
    )


def test_a_prefix_of_only_some_names_is_refused(tmp_path):
    tensors, config = example(LLAMA)
    for count in (1, len(tensors) // 2, len(tensors) - 1):
        some = {
            ("_orig_mod." if i < count else "") + name: content
            for i, (name, content) in enumerate(tensors.items())
        }
        put(tmp_path / "some", some, config)
        with pytest.raises(LayoutError, match="_orig_mod"):
            ckptforge.to_ms(tmp_path / "some", tmp_path / "x.ckpt")
    twice = {"module." + name: content for name, content in tensors.items()}
    twice["model.norm.weight"] = ("bfloat16", (64,), bytes(128))
    put(tmp_path / "twice", twice, config)
    with pytest.raises(LayoutError, match=r"module\..*'model.norm.weight'"):
        ckptforge.to_ms(tmp_path / "twice", tmp_path / "x.ckpt")
    both = {"thinker." + name: content for name, content in tensors.items()} | {
        "talker." + name: content for name, content in tensors.items()
    }
    put(tmp_path / "both", both, config)
    with pytest.raises(
        LayoutError,
        match=r"(?s)holds several "
        r"models.*(thinker.*talker|talker.*thinker)",
    ):
        ckptforge.to_ms(tmp_path / "both", tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_what_is_missing_behind_a_prefix_is_said_with_it(tmp_path):
    tensors, config = example(LLAMA)
    lost = {
        "module." + name: content
        for name, content in tensors.items()
        if name != "model.norm.weight"
    }
    put(tmp_path / "lost", lost, config)
    with pytest.raises(
        LayoutError,
        match=r"(?s)'module.', which is taken off; but then .*needs 1 tensor that "
        r"isn't there:\n  model.norm.weight",
    ):
        ckptforge.to_ms(tmp_path / "lost", tmp_path / "x.ckpt")


def test_a_model_that_peft_has_wrapped_is_refused_with_its_factors(tmp_path):
    tensors, config = example(LLAMA)
    wrapped = {}
    for name, content in tensors.items():
        base = "base_model.model." + name
        if "q_proj" in name:
            module = base.removesuffix("weight")
            wrapped |= {
                f"{module}base_layer.weight": content,
                f"{module}lora_A.default.weight": ("bfloat16", (2, 64), bytes(256)),
            }
            wrapped[f"{module}lora_B.default.weight"] = ("bfloat16", (64, 2), bytes(256))
        else:
            wrapped[base] = content
    put(tmp_path / "peft", wrapped, config)
    for allowed in (False, True):
        with pytest.raises(MissingTensorsError, match="peft has wrapped.*merge_and_unload"):
            ckptforge.to_ms(tmp_path / "peft", tmp_path / "x.ckpt", allow_unmapped=allowed)


def test_a_prefix_before_optimizer_state_and_in_ranks(tmp_path):
    """MindSpore's own names behind a prefix: the state follows its weight, a split by a parallel
    configuration has the layout's names."""
    ckptforge.convert(MINDSPORE / "full.ckpt", tmp_path / "plain.safetensors", to="gmm")
    there = contents(MINDSPORE / "full.ckpt")
    names = {
        name: re.sub(r"^(adam_[mv]\.|accu_grads\.|)(model|lm_head)\.", r"\1network.\2.", name)
        for name in there
    }
    stored = {
        "bfloat16": "BF16",
        "float32": "F32",
        "int32": "I32",
        "int64": "I64",
        "float16": "F16",
    }
    write_safetensors(
        tmp_path / "in.safetensors",
        {names[n]: (stored[d], list(s), b) for n, (d, s, b) in there.items()},
        {"format": "ms"},
    )
    ckptforge.convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", to="gmm")
    assert contents(tmp_path / "out.safetensors") == contents(tmp_path / "plain.safetensors")
    (tmp_path / "mp2.json").write_text(
        json.dumps({"parallel_config": {"model_parallel": 2}, "parallel": {"parallel_mode": 1}})
    )
    config = HUB / "config.json"
    assert config.is_file()
    tensors, example_config = example(LLAMA)
    put(tmp_path / "hub", tensors, example_config)
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.safetensors", weights_only=True)
    plain = contents(tmp_path / "x.safetensors")
    write_safetensors(
        tmp_path / "y.safetensors",
        {"network." + n: (stored[d], list(s), b) for n, (d, s, b) in plain.items()},
        {"format": "ms"},
    )
    for name in "xy":
        ckptforge.split(
            tmp_path / f"{name}.safetensors", tmp_path / name, parallel_config=tmp_path / "mp2.json"
        )
    for rank in range(2):
        files = [next((tmp_path / name / f"rank_{rank}").iterdir()) for name in "xy"]
        assert contents(files[0]) == contents(files[1])


# models beside a language model


VISION = {"model_type": "clip_vision_model", "hidden_size": 8, "num_hidden_layers": 1}


def test_the_language_model_of_a_larger_one(tmp_path):
    """text_config gives the sizes; the way back has the config.json of the language model alone."""
    tensors, config = example(LLAMA)
    inner = {
        key: value
        for key, value in config.items()
        if key not in ("architectures", "torch_dtype", "tie_word_embeddings")
    }
    outer = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": inner,
        "vision_config": VISION,
    }
    larger = {"language_model." + name: content for name, content in tensors.items()}
    larger["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"] = (
        "bfloat16",
        (8, 8),
        bytes(128),
    )
    larger["multi_modal_projector.linear_1.weight"] = ("bfloat16", (8, 8), bytes(128))
    put(tmp_path / "larger", larger, outer)
    (tmp_path / "larger" / "preprocessor_config.json").write_text("{}")
    (tmp_path / "larger" / "tokenizer.json").write_text("{}")
    with pytest.raises(UnmappedTensorsError, match="multi_modal_projector"):
        ckptforge.to_ms(tmp_path / "larger", tmp_path / "x.ckpt", layout="mcore")
    result = ckptforge.to_ms(
        tmp_path / "larger", tmp_path / "x.ckpt", layout="mcore", allow_unmapped=True
    )
    assert any(
        "describes more than the language model (vision_config)" in note for note in result.notes
    )
    put(tmp_path / "plain", tensors, config)
    ckptforge.to_ms(tmp_path / "plain", tmp_path / "plain.ckpt", layout="mcore")
    assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "plain.ckpt").read_bytes()
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert (
        contents(tmp_path / "back") == tensors
        and not (tmp_path / "back" / "preprocessor_config.json").exists()
    )
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    assert (tmp_path / "back" / "tokenizer.json").exists()
    put(
        tmp_path / "unknown",
        larger,
        {**outer, "text_config": {**inner, "model_type": "other_text"}},
    )
    with pytest.raises(ModelUnknownError, match="other_text"):
        ckptforge.to_ms(tmp_path / "unknown", tmp_path / "y.ckpt", allow_unmapped=True)
    ckptforge.to_ms(tmp_path / "unknown", tmp_path / "y.ckpt", allow_unmapped=True, model="llama")
    with pytest.raises(ConfigError, match=r"config.json"):
        ckptforge.to_torch(tmp_path / "y.ckpt", tmp_path / "back_y")


# config.json: absent, without model_type, of another model or task


def test_without_config_json_the_only_table_that_fits_is_taken(tmp_path):
    for name, table in TABLES.items():
        tensors, config = example(table)
        path = put(tmp_path / name, tensors, None)
        found = ckptforge.inspect(path)
        # only config.json tells the last layers from MTP's, and which layers are of which kind
        after_all = {"l"} & {a for p in table.layouts["hub"].patterns for a in p.offsets.values()}
        if after_all or name == "deepseek_v4":
            assert re.search(
                "There is no config.json, which says how many there are of each: give it with|"
                "is said by config.json alone .* which is absent or lacks it: give it with",
                found.layout_reason,
            )
        else:
            assert found.model == name and any(
                "there is no config.json" in note for note in found.notes
            ), name
        if name not in IN_MINDSPORE:
            continue
        first = table.first_layout("mindspore").name
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        ckptforge.to_ms(
            path, tmp_path / f"{name}.ckpt", layout=first, config=tmp_path / f"{name}.json"
        )
        put(tmp_path / f"{name}_with", tensors, config)
        ckptforge.to_ms(tmp_path / f"{name}_with", tmp_path / f"{name}_with.ckpt", layout=first)
        assert (tmp_path / f"{name}.ckpt").read_bytes() == (
            tmp_path / f"{name}_with.ckpt"
        ).read_bytes()
    with pytest.raises(ConfigError, match="config.json.*give it with config"):
        ckptforge.to_ms(tmp_path / "llama", tmp_path / "x.ckpt", layout="mcore")


@pytest.mark.parametrize("table", [one for one in TABLES.values() if one.name not in IN_MINDSPORE])
@pytest.mark.parametrize("with_config", [True, False])
def test_a_model_without_layouts_of_mindspore_is_said_to_have_none(tmp_path, table, with_config):
    """Also where nothing says which layout the tensors are in."""
    tensors, config = example(table)
    put(tmp_path / "x", tensors, config if with_config else None)
    said = rf"only layouts of MindSpore are read here, and {table.name} has none: it has hub"
    with pytest.raises(LayoutError, match=rf"{said}.*Use `ckptforge.convert`"):
        ckptforge.to_torch(tmp_path / "x", tmp_path / "y", model=table.name)
    if with_config:
        none = rf"layouts of MindSpore, of which {table.name} has none"
        with pytest.raises(UsageError, match=rf"to-ms writes {none}"):
            ckptforge.to_ms(tmp_path / "x", tmp_path / "y.ckpt", layout="hub")
        with pytest.raises(UsageError, match=rf"to-torch reads {none}"):
            ckptforge.to_torch(tmp_path / "x", tmp_path / "y", layout="hub")


def test_files_of_a_kind_that_a_model_has_no_layout_of_are_refused(tmp_path):
    tensors, config = example(LLAMA)
    put(tmp_path / "x", {"layers.0.attention.wq.weight": tensors["lm_head.weight"]}, None)
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "consolidated.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LayoutError, match=r"only layouts of releases are read here, and gpt_oss"):
        ckptforge.convert(tmp_path / "x", tmp_path / "y", to="hub", model="gpt_oss")


def test_without_model_type_the_architectures_tell(tmp_path):
    tensors, config = example(LLAMA)
    del config["model_type"]
    for architectures in (["MistralForCausalLM"], ["LlamaForCausalLM"], None):
        path = put(tmp_path / "x", tensors, {**config, "architectures": architectures})
        found = ckptforge.inspect(path)
        assert found.model == "llama" and any(
            "has no model_type: treated as llama" in note for note in found.notes
        )


def test_a_model_type_that_is_none_of_the_tables_is_not_passed_over(tmp_path):
    tensors, config = example(MIXTRAL)
    put(tmp_path / "x", tensors, {**config, "model_type": "gemma"})
    with pytest.raises(
        ModelUnknownError,
        match=r"model_type 'gemma', which no table "
        r"supports.*names of mixtral.*model='mixtral'",
    ):
        ckptforge.to_ms(tmp_path / "x", tmp_path / "x.ckpt")
    ckptforge.to_ms(tmp_path / "x", tmp_path / "x.ckpt", model="mixtral")
    put(tmp_path / "x", tensors, {**config, "model_type": "llama"})
    with pytest.raises(
        ModelUnknownError,
        match=r"model_type 'llama', but the tensors are those of "
        r"mixtral",
    ):
        ckptforge.to_ms(tmp_path / "x", tmp_path / "y.ckpt")


@pytest.mark.parametrize(
    "task",
    [
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "LlamaForQuestionAnswering",
        "LlamaRewardModel",
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_for_another_task_is_never_made_a_language_model(tmp_path, task, tied):
    tensors, config = example(LLAMA)
    del tensors["lm_head.weight"]
    config |= {"architectures": [task], "tie_word_embeddings": tied}
    for head in ({"score.weight": ("bfloat16", (1, 64), bytes(128))}, {}):
        put(tmp_path / "x", {**tensors, **head}, config)
        for allowed in (False, True):
            with pytest.raises(
                MissingTensorsError,
                match="(?s)score.weight.*causal language models" if head else task,
            ) as caught:
                ckptforge.to_ms(tmp_path / "x", tmp_path / "x.ckpt", allow_unmapped=allowed)
            assert "tie_word_embeddings" not in str(caught.value)


def test_a_missing_lm_head_is_not_advised_away(tmp_path):
    tensors, config = example(LLAMA)
    del tensors["lm_head.weight"]
    put(tmp_path / "x", tensors, config)
    with pytest.raises(
        MissingTensorsError,
        match=r"(?s)lm_head.weight.*tie_word_embeddings true "
        r"doesn't stand there.*another model",
    ):
        ckptforge.to_ms(tmp_path / "x", tmp_path / "x.ckpt")
    (tmp_path / "x" / "config.json").unlink()
    with pytest.raises(MissingTensorsError, match=r"(?s)lm_head.weight.*give it with config"):
        ckptforge.to_ms(tmp_path / "x", tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("key", "asked", "there"), [("num_hidden_layers", 9, 2), ("num_experts", 16, 4)]
)
def test_a_config_that_asks_for_more_than_is_there_is_named(tmp_path, key, asked, there):
    shutil.copytree(FIXTURES / "mindspeed" / "qwen3_moe", tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config | {key: asked}))
    with pytest.raises(MissingTensorsError) as error:
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    last = str(error.value).splitlines()[-1]
    assert f"{key} " in last.replace(")", " ") and "hub/config.json (" in last
    assert last.endswith(f"says {asked}, and the names of tensors have {there}.")
