"""The `args` of a checkpoint: the training script's arguments, of which some say how a job is cut
and what config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptforge.errors import FormatError, shown
from ckptforge.megatron.job import Job
from ckptforge.torch_files.pickle_data import Inert
from ckptforge.torch_files.torch_zip import read_data
from ckptforge.wording import counted

Arguments = Mapping[str, Any]
# config.json's key → the argument, and for most models in MindSpeed-LLM the key itself, too
_ALSO = {
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "intermediate_size": "ffn_hidden_size",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "num_experts": "num_moe_experts",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
}
_TENSOR, _STAGES = "tensor_model_parallel_size", "pipeline_model_parallel_size"
_EXPERT, _EXPERT_TENSOR = "expert_model_parallel_size", "expert_tensor_parallel_size"
_PLAIN = (int, float, str, bool)
_MAX_RANKS = 1 << 17
_EXTENDED, _SCHEDULE, V_SHAPED = "moe_tp_extend_ep", "schedules_method", "dualpipev"


def read_arguments(path: Path) -> Arguments:
    """Those in a rank's file; none where it has none. Raises `FormatError` for another kind of
    file."""
    root = read_data(path)
    if not isinstance(root, dict) or not any(str(key).startswith("model") for key in root):
        raise FormatError(f"{path}: holds no 'model', expected a checkpoint of Megatron's.")
    return arguments_in(root)


def arguments_in(root: Mapping[Any, Any]) -> Arguments:
    """The arguments that an object of a checkpoint holds."""
    held = root.get("args")
    found = held.state if isinstance(held, Inert) else held
    return found if isinstance(found, dict) else {}


def job_of(arguments: Arguments, parts: int, where: Path) -> Job:
    """How a job is cut, by its arguments. Raises `FormatError`."""
    tensor = _degree(arguments, _TENSOR, 1, where)
    job = Job(
        tensor=tensor,
        stages=_degree(arguments, _STAGES, 1, where),
        expert=_degree(arguments, _EXPERT, 1, where),
        expert_tensor=_degree(arguments, _EXPERT_TENSOR, tensor, where),
        extended=arguments.get(_EXTENDED) is True,
        parts=parts,
        v_shaped=arguments.get(_SCHEDULE) == V_SHAPED,
    )
    if job.tensor * job.stages * job.expert > _MAX_RANKS:
        raise FormatError(
            f"{where}: args say tensor parallel {job.tensor}, {counted(job.stages, 'stage')}, "
            f"expert parallel {job.expert}: more than {_MAX_RANKS} ranks."
        )
    return job


def _degree(arguments: Arguments, key: str, default: int, where: Path) -> int:
    value = arguments.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 16:
        raise FormatError(f"{where}: args has {key} {shown(value)}, expected a positive integer.")
    return value


def described(arguments: Arguments) -> dict[str, Any]:
    """What the arguments say under the keys of config.json."""
    found = {
        key: value
        for key, value in arguments.items()
        if isinstance(key, str) and _is_plain(value) and not key.startswith("_")
    }
    grouped = arguments.get("group_query_attention") is not False  # else num_query_groups is 1
    for key, argument in _ALSO.items():
        value = arguments.get(argument)
        if isinstance(value, int) and (grouped or argument != "num_query_groups"):
            found.setdefault(key, value)
    found.pop("vocab_size", None)  # without the padding, or the tokenizer's
    return found


def _is_plain(value: object, depth: int = 4) -> bool:
    """Whether a value is one that config.json can have, but for null, and not nested deeper."""
    if isinstance(value, dict | list) and depth:
        inner = value.values() if isinstance(value, dict) else value
        named = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        return named and all(one is None or _is_plain(one, depth - 1) for one in inner)
    return isinstance(value, _PLAIN)


def arguments_of(job: Job, config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a job that a checkpoint is written for: what config.json says, under its
    keys and under Megatron's, and how it is cut."""
    plain = {key: value for key, value in config.items() if _is_plain(value)}
    for key, argument in _ALSO.items():
        if plain.get(key) is not None:
            plain[argument] = plain[key]
    heads, groups = plain.get("num_attention_heads"), plain.get("num_key_value_heads")
    return {
        **plain,
        "group_query_attention": groups is not None and groups != heads,
        "untie_embeddings_and_output_weights": not plain.get("tie_word_embeddings", False),
        _TENSOR: job.tensor,
        _STAGES: job.stages,
        _EXPERT: job.expert,
        _EXPERT_TENSOR: job.expert_tensor,
        _EXTENDED: job.extended,
        **({_SCHEDULE: V_SHAPED} if job.v_shaped else {}),
        **more,
    }
