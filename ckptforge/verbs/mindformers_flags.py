"""The flags of MindFormers' scripts: those that are taken, those that ask for nothing that is left
to do here, and those that aren't honoured, each with the reason.

Source: MindFormers r1.0 … r1.8.0 and master (fd4deebc1): `convert_weight.py`,
`convert_reversed.py`, `research/*/convert_*.py`, `toolkit/weight_convert`,
`mindformers/tools/transform_ckpt.py`, `transform_ckpt_lora.py`,
`ckpt_transform/transform_checkpoint.py` and `.sh`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ckptforge.errors import UsageError
from ckptforge.verbs.options.option import option
from ckptforge.verbs.options.record import Options

_SIZES = "sizes are read from the tensors and config.json"
_PROCESSES = "one call writes everything, and --workers says with how many threads"
_LAYOUT = (
    "it chooses how MindSpore is to hold the model: name that with --layout instead; `ckptforge "
    "mapping list` shows the layouts"
)
_OTHER = "it is of a model that no table describes; `ckptforge mapping list` shows the tables"

_SIZE_FLAGS = """
    layers num_layers hidden_size ffn_hidden_size moe_ffn_hidden_size n_head num_attention_heads
    num_query_groups kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim num_routed_experts
    num_nextn_predict_layers first_k_dense_replace config auto_config param_json
"""

CONVERT_NOT_NEEDED: Mapping[str, str] = {
    **dict.fromkeys(_SIZE_FLAGS.split(), _SIZES),
    **dict.fromkeys(("worker_num", "max_worker", "max_process_num"), _PROCESSES),
    "is_lora": "an adapter is known by its tensors",
    "load_format": "a file's format is known by its contents",
}
CONVERT_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("use_grouped_gemm", "infer", "split_mla", "concat", "use_qkv_concat"), _LAYOUT
    ),
    **dict.fromkeys(
        ("is_pretrain", "modal", "emb_strategy", "enable_emb_opt", "vit_num_head"), _OTHER
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
        "convert MERGED OUT --to LAYOUT --merge-lora MERGED --lora-alpha ALPHA`, where ALPHA is "
        "lora_scaling times the adapter's rank"
    )
}
# The options that the drop-ins take beside those with a meaning of their own.
CONVERT_OTHERS = tuple(flag for flag in (*CONVERT_NOT_NEEDED, *CONVERT_REFUSED) if flag != "config")
TRANSFORM_OTHERS = (*TRANSFORM_NOT_NEEDED, *TRANSFORM_REFUSED)


class ConvertFlags(Options):
    """The flags of convert_weight.py: of the unified script (`input_path`, `output_path`), or of a
    script of one model. `layout` is ours, and so is a `config` that is a config.json or its
    directory; `others` are those above, by name."""

    model: str | None = option(
        "the mapping to use, or MindFormers' name of it", metavar="NAME", completes="model"
    )
    input_path: str | None = option(
        "a Hugging Face directory; with `reversed` a MindSpore checkpoint", metavar="PATH"
    )
    output_path: str | None = option("the .ckpt file; with `reversed` a directory", metavar="PATH")
    reversed: bool = option("from MindSpore to Hugging Face", False)
    strategy_dir: str | None = option(
        "with `reversed`: the strategy of the rank directories in `input_path`", metavar="DIR"
    )
    torch_ckpt_dir: str | None = option(
        "a Hugging Face directory",
        metavar="DIR",
        aliases=("--torch-ckpt-idr", "--torch-ckpt-path", "--huggingface-ckpt-path"),
    )
    mindspore_ckpt_path: str | None = option(
        "the .ckpt file to write; with `reversed` to read", metavar="FILE"
    )
    pre_ckpt_path: str | None = option(
        "a MindSpore checkpoint to bring into another layout", metavar="FILE"
    )
    use_gmm: bool | None = option(
        "write the GMM layout", unset="True from `pre_ckpt_path`, else False"
    )
    qkv_concat: bool | None = option("write joined q, k and v; `layout` says in which order")
    layout: str | None = option(
        "how MindSpore is to hold the model; with `reversed` how it does",
        unset="the model's first MindSpore layout in `ckptforge mapping list`; with `reversed` "
        "detected from names and shapes",
        choices="dense|gmm|mcore|…",
        completes="mindspore",
    )
    dtype: Literal["fp16", "bf16", "fp32"] | None = option(
        "what the weights are cast to",
        unset="fp32 with `input_path`, fp16 with `torch_ckpt_dir`, else kept",
    )
    save_format: Literal["ckpt", "safetensors"] | None = option("format of an output directory")
    config: str | None = option(
        "a config.json or its directory; MindFormers' YAML isn't needed",
        metavar="PATH",
        aliases=("--config-path",),
    )
    others: Mapping[str, str] = option("flags without a meaning here", default={}, hidden=True)


class TransformFlags(Options):
    """The flags of transform_ckpt.py, transform_checkpoint.py and transform_ckpt_lora.py; `words`
    are the arguments of transform_checkpoint.sh, `others` those above."""

    words: Sequence[str] = option(
        "the arguments of transform_checkpoint.sh",
        default=(),
        metavar="[SRC SRC_STRATEGY DST DST_STRATEGY WORLD_SIZE PROCESS_NUM [PREFIX]]",
        kw_only=False,
    )
    src_ckpt_strategy: str | None = option(
        "the strategy of the input; None: it is whole",
        metavar="DIR_OR_FILE",
        aliases=("--src-strategy",),
    )
    dst_ckpt_strategy: str | None = option(
        "the strategy of the output; None: merge",
        metavar="DIR_OR_FILE",
        aliases=("--dst-strategy",),
    )
    src_ckpt_dir: str | None = option(
        "the rank_<r> directories to read, or a whole checkpoint",
        metavar="PATH",
        aliases=("--src-checkpoint", "--src-checkpoint-dir", "--src-ckpt-path-or-dir"),
    )
    dst_ckpt_dir: str | None = option(
        "where rank_<r>/<prefix><r>.ckpt go",
        unset="transformed_checkpoint",
        metavar="DIR",
        aliases=("--dst-checkpoint", "--dst-checkpoint-dir"),
    )
    prefix: str = option("start of the output files' names", default="checkpoint_", metavar="P")
    save_format: Literal["ckpt", "safetensors"] | None = option(
        "format of the output files", unset="ckpt", aliases=("--format", "--output-format")
    )
    others: Mapping[str, str] = option("flags without a meaning here", default={}, hidden=True)


_FALSE = ("false", "0", "no", "n", "f", "off", "none", "")
_SAYS_SOMETHING_WHEN_FALSE = ("use_grouped_gemm", "lora_scaling")


def refuse(given: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Raises `UsageError` for a flag that isn't honoured, unless it is switched off."""
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
