# ruff: noqa: E501  (a line of data is a published configuration)
"""Published shapes of config.json, every key as published but small, against what transformers 5
makes of them when it saves."""

import json
import os

import pytest

import ckptforge
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model

TABLES = {model_type: table for table in shipped_tables() for model_type in table.model_types}
LLAMA_2 = """{
 "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
 "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 4096,
 "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4, "pretraining_tp": 1,
 "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
 "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 64}"""
QWEN2_5 = """{
 "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 3, "eos_token_id": 5, "hidden_act": "silu",
 "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 32768, "max_window_layers": 2,
 "model_type": "qwen2", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
 "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
 "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 64}"""
PUBLISHED = {
    "Llama-2": LLAMA_2,
    "Llama-3.1": """{
 "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [1, 2, 9],
 "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 131072,
 "mlp_bias": false, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
 "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
 "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": false,
 "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 64}""",
    "Mistral-7B-v0.1": """{
 "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32,
 "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 32768, "model_type": "mistral",
 "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
 "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
 "use_cache": true, "vocab_size": 64}""",
    "Mixtral-8x7B": """{
 "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
 "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 32768, "model_type": "mixtral",
 "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4,
 "output_router_logits": false, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
 "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0",
 "use_cache": true, "vocab_size": 64}""",
    "Qwen2.5": QWEN2_5,
    "Qwen2.5 with yarn": QWEN2_5[:-1] + ', "rope_scaling": {"factor": 4.0, '
    '"original_max_position_embeddings": 32768, "type": '
    '"yarn"}}',
    "Qwen3": """{
 "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 3, "eos_token_id": 5,
 "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
 "max_position_embeddings": 40960, "max_window_layers": 2, "model_type": "qwen3", "num_attention_heads": 4, "num_hidden_layers": 2,
 "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
 "use_sliding_window": false, "vocab_size": 64}""",
    "Qwen3-MoE": """{
 "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 3,
 "decoder_sparse_step": 1, "eos_token_id": 5, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
 "intermediate_size": 48, "max_position_embeddings": 40960, "max_window_layers": 2, "mlp_only_layers": [],
 "model_type": "qwen3_moe", "moe_intermediate_size": 16, "norm_topk_prob": true, "num_attention_heads": 4, "num_experts": 4,
 "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "output_router_logits": false, "rms_norm_eps": 1e-06,
 "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
 "use_sliding_window": false, "vocab_size": 64}""",
    # Without quantization_config: these weights have 16 bits. MTP layers aren't among what
    # transformers loads.
    "DeepSeek-V3": """{
 "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "auto_map": {"AutoConfig":
 "configuration_deepseek.DeepseekV3Config", "AutoModel": "modeling_deepseek.DeepseekV3Model", "AutoModelForCausalLM":
 "modeling_deepseek.DeepseekV3ForCausalLM"}, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
 "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
 "kv_lora_rank": 16, "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 16,
 "moe_layer_freq": 1, "n_group": 4, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": true,
 "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 4,
 "num_nextn_predict_layers": 0, "pretraining_tp": 1, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
 "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
 "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000, "routed_scaling_factor": 2.5,
 "scoring_func": "sigmoid", "seq_aux": true, "tie_word_embeddings": false, "topk_group": 2, "topk_method": "noaux_tc",
 "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true, "v_head_dim": 12, "vocab_size": 64}""",
    "GLM-4.5-Air": """{
 "architectures": ["Glm4MoeForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "pad_token_id": 3, "eos_token_id": [3, 4, 5],
 "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "partial_rotary_factor": 0.5, "initializer_range": 0.02,
 "intermediate_size": 48, "max_position_embeddings": 131072, "model_type": "glm4_moe", "moe_intermediate_size": 16,
 "norm_topk_prob": true, "num_attention_heads": 4, "n_group": 1, "topk_group": 1, "n_routed_experts": 4, "n_shared_experts": 1,
 "routed_scaling_factor": 1.0, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_hidden_layers": 2,
 "num_key_value_heads": 2, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 1000000,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.54.0", "use_cache": true,
 "use_qk_norm": false, "vocab_size": 64}""",
    "MiniMax-M2": """{
 "architectures": ["MiniMaxM2ForCausalLM"], "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 16,
 "max_position_embeddings": 196608, "model_type": "minimax_m2", "num_attention_heads": 4, "num_experts_per_tok": 2,
 "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_mtp_modules": 3, "qk_norm_type": "per_layer",
 "rms_norm_eps": 1e-06, "rope_theta": 5000000, "rotary_dim": 8, "scoring_func": "sigmoid", "tie_word_embeddings": false,
 "transformers_version": "4.46.1", "use_cache": true, "use_mtp": true, "use_qk_norm": true, "use_routing_bias": true,
 "vocab_size": 64}""",
    "without model_type": LLAMA_2.replace('"model_type": "llama", ', ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_saved_again_by_transformers_is_the_same(tmp_path, name):
    """Config and weights: loaded, and written by save_pretrained. The logits are the same as
    well."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = json.loads(PUBLISHED[name])
    write_model(
        tmp_path / "published", TABLES[config.get("model_type", "llama")], config, dtype="float32"
    )
    kind = getattr(transformers, config["architectures"][0])

    def loaded(directory):
        return kind.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    loaded(tmp_path / "published").save_pretrained(tmp_path / "saved")
    for one, other in (("published", "saved"), ("saved", "published")):
        found = ckptforge.compare(tmp_path / one, tmp_path / other)
        assert (
            found.constants == {}
            and found.equal
            and (found.through or name == "without model_type")
        )
    with torch.no_grad():
        one, other = (
            loaded(tmp_path / side)(torch.arange(24)[None]).logits
            for side in ("published", "saved")
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_that_are_left_out_stand_for_the_defaults_of_transformers(tmp_path, name):
    """A config.json without whatever its configuration class fills in alike, against the published
    one."""
    transformers = pytest.importorskip("transformers")
    config = json.loads(PUBLISHED[name])
    kind = transformers.CONFIG_MAPPING[config.get("model_type", "llama")]
    plain = kind().to_dict()
    short = {
        key: value
        for key, value in config.items()
        if key in ("model_type", "architectures") or plain.get(key, []) != value
    }
    if config.get("rope_theta") == kind.default_theta:
        short.pop("rope_theta")
    assert len(short) < len(config)
    write_model(tmp_path / "published", TABLES[config.get("model_type", "llama")], config)
    (tmp_path / "short").mkdir()
    os.link(tmp_path / "published/model.safetensors", tmp_path / "short/model.safetensors")
    (tmp_path / "short/config.json").write_text(json.dumps(short))
    assert ckptforge.compare(tmp_path / "published", tmp_path / "short").constants == {}
