"""The hub's names and the keys of config.json in the tables, against those that MindSpeed-LLM's
converters know (its model_cfg.json)."""

import json
import re

import pytest

from ckptforge.tables.shipped import shipped_tables
from tests.helpers import FIXTURES

TABLES = {table.name: table for table in shipped_tables()}
FAMILIES = json.loads((FIXTURES / "mindspeed_model_cfg.json").read_text())["families"]
OURS = {
    "llama2": "llama",
    "qwen25": "qwen2",
    "qwen3": "qwen3",
    "seed-oss": "qwen2",
    "mixtral": "mixtral",
    "qwen2-moe": "qwen2_moe",
    "qwen3-moe": "qwen3_moe",
    "qwen3-next": "qwen3_next",
    "glm4": "glm4",
    "glm45": "glm4_moe",
    "glm45-air": "glm4_moe",
    "deepseek2": "deepseek_v2",
    "deepseek2-lite": "deepseek_v2",
    "deepseek3": "deepseek_v3",
    "deepseek32": "deepseek_v32",
    "glm5": "deepseek_v32",
    "minimax_m2": "minimax_m2",
    "deepseek4_base": "deepseek_v4",
}
# modules without weights, and a norm that none of these models has
NO_WEIGHTS = {"module.#", "model.layers", "model.embedding.word_embeddings.norm"}
LATENT = {f"model.layers.#.self_attn.{x}_proj" for x in "qkv"}
# what the model with another form of attention has, or one whose head and embedding are repeated
ELSEWHERE = {
    "glm45-air": {"model.layers.#.self_attn.q_norm", "model.layers.#.self_attn.k_norm"},
    "deepseek2": {"model.layers.#.self_attn.q_proj"},
    "deepseek2-lite": {
        f"model.layers.#.self_attn.{x}" for x in ("q_a_proj", "q_a_layernorm", "q_b_proj")
    },
    "deepseek3": {"model.layers.#.shared_head.head", "model.layers.#.self_attn.q_proj"},
    "deepseek32": {"model.layers.#.shared_head.head"},
    "glm5": {"model.layers.#.shared_head.head", "model.layers.#.embed_tokens"},
}
# theirs has one name for both, and misses the model's place before these
OTHERWISE = {"mtp.#.eh_proj", *(f"layers.hc_head_{x}" for x in ("base", "fn", "scale"))}
SIZES = (
    *("num_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_experts"),
    *("moe_intermediate_size", "n_shared_experts", "first_k_dense_replace", "kv_lora_rank"),
    *("q_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "kv_channels"),
)


def theirs(family, what):
    base = FAMILIES[family]["base"]
    return {**(theirs(base, what) if base else {}), **FAMILIES[family][what]}


def weights(names):
    return {
        re.sub(r"\.?\[\w+\]|\{[\w+]+\}", lambda m: "#" if m[0][0] == "{" else ".#", name)
        .removesuffix(".weight")
        for name in names
    }  # fmt: skip


def ours(table):
    hub = table.layouts["hub"]
    return weights(pattern.template for pattern in (*hub.patterns, *hub.copies))


@pytest.mark.parametrize("family", OURS)
def test_every_name_of_theirs_is_one_of_the_table(family):
    own = weights(FAMILIES[family]["names"].values()) - NO_WEIGHTS
    assert own - ours(TABLES[OURS[family]]) == (OTHERWISE if family == "deepseek4_base" else set())


@pytest.mark.parametrize("family", sorted(OURS.keys() - {"deepseek4_base", "qwen3-next"}))
def test_every_weight_of_the_table_is_one_of_theirs(family):
    """But for biases, which they don't list, and layers of qwen3-next that predict a further token,
    of which they list the first names only."""
    table = TABLES[OURS[family]]
    named = weights(theirs(family, "names").values())
    lacking = {name for name in ours(table) - named if not name.endswith(".bias")}
    assert lacking == ELSEWHERE.get(family, set())
    rest = named - ours(table) - NO_WEIGHTS - LATENT
    assert all(name.startswith("model.layers.#.mlp.") for name in rest)  # dense ones of the base


@pytest.mark.parametrize("family", sorted(OURS.keys() - {"deepseek4_base"}))
def test_every_size_is_read_by_the_same_key(family):
    table, keys = TABLES[OURS[family]], theirs(family, "keys")
    read = {word for axis in table.axes.values() for word in re.findall(r"\w+", axis.text)}
    read |= {condition.key for condition in table.optional.values()}
    # published MiniMax-M2 says intermediate_size, which transformers reads
    other = {"moe_intermediate_size"} if family == "minimax_m2" else set()
    assert {keys[size] for size in SIZES if size in keys} - read == other
