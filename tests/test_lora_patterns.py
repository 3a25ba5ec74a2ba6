"""Keys of rank_pattern and alpha_pattern, as peft reads them and bounded."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptforge
from ckptforge.adapters import module_pattern
from ckptforge.adapters.module_pattern import ModulePatterns
from ckptforge.errors import FormatError
from ckptforge.verbs.synthetic import write_model
from tests.helpers import transformers_config
from tests.test_lora import (
    TABLES,
    assert_same,
    raw_safetensors,
    weights_of,
    with_products,
    write_adapter,
)

_PARTS = [
    "a",
    "b",
    "q",
    "_proj",
    ".",
    r"\.",
    "|",
    "(",
    ")",
    "*",
    "+",
    "?",
    "{1,2}",
    "{2}",
    "{,1}",
    "{1,}",
    "^",
    "$",
    "[ab]",
    "[^a]",
    "[]a]",
]
_PARTS += [
    "(?:",
    "(?=",
    "(?!",
    "(?P<x>",
    r"\w",
    r"\d",
    r"\W",
    r"\b",
    r"\B",
    r"\A",
    r"\Z",
    "*?",
    "{",
    "}",
    "1",
    "-",
    r"\-",
    ".*",
]


def first_match(keys, name):
    """peft/utils/other.py, get_pattern_key (0.21)."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", name)), None)


def valid(key):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # flags behind the start, which newer Pythons refuse
            warnings.simplefilter("error", DeprecationWarning)
            re.purge()  # a pattern that was compiled before isn't warned of again
            re.compile(rf"(.*\.)?({key})$")
    except (re.error, DeprecationWarning):
        return False
    return True


KEYS = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=8).map("".join)
NAMES = st.lists(
    st.sampled_from(["a", "b", "q", "_proj", ".", "1", "-"]), min_size=1, max_size=7
).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=3, unique=True), st.lists(NAMES, min_size=1, max_size=4))
def test_the_first_key_that_matches_is_that_of_peft(keys, names):
    if not all(map(valid, keys)):
        with pytest.raises(FormatError, match="isn't a regular expression|isn't understood"):
            ModulePatterns("adapter_config.json", "rank_pattern", dict.fromkeys(keys))
        return
    try:
        patterns = ModulePatterns("adapter_config.json", "rank_pattern", {key: key for key in keys})
    except FormatError as error:
        assert "isn't understood" in str(error)
        assert any(word in "".join(keys) for word in ("++", "*+", "?+", "}+"))
        return
    for name in names:
        assert patterns.value(name, None) == first_match(keys, name), (keys, name)


@pytest.mark.parametrize(
    "key",
    [
        r".*\.layers\.1\..*(q_proj|v_proj)$",
        "q_proj",
        "^model.layers.0.self_attn.q_proj",
        r"layers\.(0|[2-9]|1\d)\.mlp\.(?!up).*_proj",
        r"layers\.\d+\.self_attn\.[qk]_proj",
        "model.layers.10.self_attn.k_proj",
        r"(?:down|gate)_proj",
        r"o_pro",
        "lm_head|embed_tokens",
    ],
)
def test_keys_as_they_are_written(key):
    layers = [f"model.layers.{i}" for i in (0, 1, 2, 10, 21)]
    parts = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.down_proj",
        "mlp.up_proj",
        "mlp.gate_proj",
    ]
    names = [f"{layer}.{part}" for layer in layers for part in parts] + [
        "lm_head",
        "model.embed_tokens",
    ]
    patterns = ModulePatterns("x", "alpha_pattern", {key: 3})
    assert [patterns.value(name, 1) for name in names] == [
        3 if first_match([key], name) else 1 for name in names
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        "(a+)+b",
        "(.*)*x",
        "(a|a|a)*(a|aa)+b",
        ".*.*.*.*.*.*.*.*x",
        "((.{0,99}){0,99}){0,99}z",
        "(" * 90 + "a" + ")*" * 90 + "b",
    ],
)
def test_what_would_keep_re_busy_for_years_ends(hostile):
    patterns = ModulePatterns("x", "rank_pattern", {hostile: 3})
    for i in range(100):
        assert patterns.value(f"model.layers.{i}.{'a' * 60}", 1) == 1


def test_what_takes_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr(module_pattern, "MAX_STEPS", 10_000)
    patterns = ModulePatterns("adapter_config.json", "rank_pattern", {"(?:(?=.*a)+)*z": 3})
    with pytest.raises(FormatError, match="rank_pattern: its 1 keys take too many steps"):
        for i in range(10_000):
            patterns.value(f"model.layers.{i}.q_proj", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "expected an object"),
        ({"(": 1}, r"the key '\(', which isn't a regular expression"),
        ({"a" * 501: 1}, "at most 500 characters"),
        ({f"a{i}": 1 for i in range(4097)}, "has 4,097 keys, at most 4,096"),
        ({r"(a)\1": 1}, r"in which '\\\\1' isn't understood|in which '\\1' isn't understood"),
        ({"(?<=a)b": 1}, "isn't understood"),
        ({"(?i:a)": 1}, "isn't understood"),
        ({"a{99999999999}": 1}, "isn't a regular expression"),
    ],
)
def test_keys_that_are_refused(values, message):
    with pytest.raises(FormatError, match=message) as raised:
        ModulePatterns("adapter_config.json", "alpha_pattern", values)
    assert "adapter_config.json: alpha_pattern" in str(raised.value)


def test_keys_that_are_nested_deeply_are_refused_or_matched():
    try:
        assert (
            ModulePatterns("x", "rank_pattern", {"(" * 240 + "a" + ")" * 240: 3}).value("a", 1) == 3
        )
    except FormatError as error:
        assert "nested too deeply" in str(error)


def test_two_keys_for_one_module_are_said(tmp_path):
    """PEFT sorts the keys when it saves, so that another may come first than in training."""
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    hub = raw_safetensors(tmp_path / "hub")
    shapes = weights_of("llama", hub, ["q_proj.weight", "o_proj.weight"])
    products = write_adapter(
        tmp_path / "lora", shapes, alpha_pattern={".*q_proj": 16, "q_proj": 32}
    )
    result = ckptforge.convert(
        tmp_path / "hub", tmp_path / "m", to="hub", merge_lora=tmp_path / "lora"
    )
    for weight, product in products.items():
        product *= 2 if "q_proj" in weight else 1
    assert_same(tmp_path / "m", with_products(hub, products))
    assert any(
        "'.*q_proj' and 'q_proj' both match model.layers.0.self_attn.q_proj" in note
        for note in result.notes
    )


def test_merging_with_keys_that_are_expressions(tmp_path):
    write_model(tmp_path / "hub", TABLES["llama"], TABLES["llama"].example)
    hub = raw_safetensors(tmp_path / "hub")
    shapes = weights_of("llama", hub, ["q_proj.weight", "v_proj.weight", "down_proj.weight"])

    def one(weight):
        return ".layers.1." in weight and "_proj" in weight and "down" not in weight

    key, later = r".*\.layers\.1\..*(q_proj|v_proj)$", r"[qv]_proj"
    products = write_adapter(
        tmp_path / "lora",
        shapes,
        rank=lambda weight: 8 if one(weight) else 2 if "down" not in weight else 4,
        rank_pattern={key: 8, later: 2},
        alpha_pattern={key: 32, "x|down_proj": 16},
    )
    for weight, product in products.items():  # of alpha 8 and its own rank
        product *= 4 if one(weight) else 2 if "down" in weight else 1
    ckptforge.convert(tmp_path / "hub", tmp_path / "m", to="hub", merge_lora=tmp_path / "lora")
    assert_same(tmp_path / "m", with_products(hub, products))


def test_expressions_give_the_scales_that_peft_has(tmp_path):
    torch, peft, transformers = (
        pytest.importorskip(name) for name in ("torch", "peft", "transformers")
    )
    config = dict(TABLES["llama"].example, torch_dtype="float32", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(transformers_config(**config))
    model.save_pretrained(tmp_path / "hub")
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=["q_proj", "k_proj", "down_proj"],
            init_lora_weights=False,
            rank_pattern={r".*\.1\.self_attn\.(q|k)_proj": 3, r"layers\.1\..*": 2},
            alpha_pattern={"^model.layers.0.*q_proj": 5, r"mlp.(?!up).*_proj$": 7},
        ),
    )
    wrapped.save_pretrained(tmp_path / "lora")
    ckptforge.convert(tmp_path / "hub", tmp_path / "m", to="hub", merge_lora=tmp_path / "lora")
    merged = {
        name: torch.from_numpy(bits.view(np.float32).copy())
        for name, bits in raw_safetensors(tmp_path / "m").items()
    }
    for name, theirs in wrapped.merge_and_unload().named_parameters():
        assert torch.allclose(merged[name], theirs, rtol=1e-6, atol=1e-7), name
