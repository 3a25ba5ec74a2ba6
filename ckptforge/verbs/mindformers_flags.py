"""Flags of MindFormers' scripts that ask for nothing that is left to do here, and flags that aren't
honoured, each with the reason.

Source: MindFormers r1.0 … r1.8.0 and master (fd4deebc1): `convert_weight.py`,
`convert_reversed.py`, `research/*/convert_*.py`, `toolkit/weight_convert`,
`mindformers/tools/transform_ckpt.py`, `transform_ckpt_lora.py`,
`ckpt_transform/transform_checkpoint.py` and `.sh`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptforge.errors import UsageError

_SIZES = "sizes are read from the tensors and config.json"
_PROCESSES = "one call writes everything, and --workers says with how many threads"
_LAYOUT = (
    "it chooses how MindSpore is to hold the model: name that with --layout instead; "
    "`ckptforge mapping list` shows the layouts"
)
_OTHER = (
    "it is of a model that no mapping table describes; `ckptforge mapping list` shows those "
    "that are"
)

CONVERT_NOT_NEEDED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *(
                "layers",
                "num_layers",
                "hidden_size",
                "ffn_hidden_size",
                "moe_ffn_hidden_size",
                "n_head",
                "num_attention_heads",
            ),
            *(
                "num_query_groups",
                "kv_channels",
                "qk_nope_head_dim",
                "qk_rope_head_dim",
                "v_head_dim",
                "num_routed_experts",
            ),
            *(
                "num_nextn_predict_layers",
                "first_k_dense_replace",
                "config",
                "auto_config",
                "param_json",
            ),
        ),
        _SIZES,
    ),
    **dict.fromkeys(("worker_num", "max_worker", "max_process_num"), _PROCESSES),
    "is_lora": "an adapter is known by its tensors",
    "load_format": "a file's format is known by its contents",
}
CONVERT_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("use_grouped_gemm", "infer", "split_mla", "concat", "use_qkv_concat"), _LAYOUT
    ),
    **dict.fromkeys(
        ("telechat_type", "is_pretrain", "modal", "emb_strategy", "enable_emb_opt", "vit_num_head"),
        _OTHER,
    ),
    "align_rank": "the factors of an adapter keep their ranks",
}
TRANSFORM_NOT_NEEDED: Mapping[str, str] = dict.fromkeys(
    ("rank_id", "world_size", "transform_process_num", "npu_num_per_node", "transform_by_rank"),
    _PROCESSES,
)
TRANSFORM_REFUSED: Mapping[str, str] = {
    "lora_scaling": (
        "it adds an adapter to the weights: bring the ranks together without it, then `ckptforge "
        "convert MERGED OUT --to LAYOUT "
        "--merge-lora MERGED --lora-alpha ALPHA`, where ALPHA is lora_scaling times the adapter's "
        "rank"
    )
}
# The options that the drop-ins take beside those with a meaning of their own.
CONVERT_OTHERS = tuple(flag for flag in (*CONVERT_NOT_NEEDED, *CONVERT_REFUSED) if flag != "config")
TRANSFORM_OTHERS = (*TRANSFORM_NOT_NEEDED, *TRANSFORM_REFUSED)
_FALSE = ("false", "0", "no", "n", "f", "off", "none", "")
_SAYS_SOMETHING_WHEN_FALSE = ("use_grouped_gemm", "lora_scaling")


def refuse(given: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Raises `UsageError`, with the reason, for the first flag that is given and not honoured; one
    that is switched off asks nothing."""
    for flag, reason in reasons.items():
        if flag in given and (
            given[flag].lower() not in _FALSE or flag in _SAYS_SOMETHING_WHEN_FALSE
        ):
            raise UsageError(f"--{flag} isn't taken: {reason}.")


def not_needed(given: Mapping[str, str], reasons: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each reason why flags that are given need nothing to be done."""
    found: dict[str, list[str]] = {}
    for flag, reason in reasons.items():
        if flag in given:
            found.setdefault(reason, []).append(f"--{flag}")
    return tuple(
        f"{_joined(flags)} {'is' if len(flags) == 1 else 'are'}n't needed: {reason}."
        for reason, flags in found.items()
    )


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
