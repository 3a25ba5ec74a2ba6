"""Inputs that aren't what a mapping knows: what is there is named, and nothing is made into another model."""

import json

import pytest

import ckptforge
from ckptforge.errors import UnmappedTensorsError
from ckptforge.mapping.table import shipped_tables
from ckptforge.mapping.unmapped import kind_of
from tests.helpers import contents, tiny_config, write_hub, write_safetensors

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
    stored = {name: (STORED[dtype], list(shape), data) for name, (dtype, shape, data) in changed.items()}
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_never_left_out(tmp_path, head):
    """Tied in config.json: the head is the only tensor that the table doesn't know."""
    write_hub(tmp_path / "hub", tiny_config(tie_word_embeddings=True))
    rewrite(tmp_path / "hub", lambda tensors: {**tensors, head: ("bfloat16", (1, 12), bytes(24))})
    for allowed in (False, True):
        with pytest.raises(UnmappedTensorsError, match=rf"(?s){head}.*Only causal language models") as caught:
            ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", allow_unmapped=allowed)
        assert "allow-unmapped" not in str(caught.value)
    assert not (tmp_path / "x.ckpt").exists()


def test_no_name_that_a_table_knows_is_a_head():
    for table in shipped_tables():
        for layout in table.layouts.values():
            for pattern in layout.patterns:
                assert kind_of(pattern.name(dict.fromkeys(pattern.name_axes, 0), dict.fromkeys(table.axes, 1))) is None


def test_what_is_in_a_layer_or_a_tower_is_no_head():
    assert kind_of("model.layers.3.mlp.score.weight") is None and kind_of("lm_head.bias") is None
    for name in ("vision_tower.vision_model.head.weight", "model.visual.merger.mlp.0.weight", "multi_modal_projector.linear_1.bias"):
        kind = kind_of(name)
        assert kind is not None and kind.droppable
