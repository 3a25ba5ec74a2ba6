"""What things are called in Megatron's checkpoints: directories, and tensors whose numbers count
within a stage and a rank.

Source: Megatron-LM `megatron/training/checkpointing.py` (`get_checkpoint_name`), MindSpeed-LLM
`mindspeed_llm/tasks/checkpoint/convert.py` and `model_builder.py`, MindSpeed-MM
`checkpoint/vlm_model/hf_to_mm.py`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "model_optim_rng.pt"
CHUNKS, DESCRIBED = ".metadata", "metadata.json"  # of Megatron-core's checkpoints in chunks
SHARDED = "torch_dist"  # the name of that format in metadata.json
MAX_DESCRIBED = 1 << 16  # bytes
LAYERS = "decoder.layers."
MORE = "mtp."  # of layers that predict more tokens
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
_ITERATION = re.compile(r"iter_([0-9]{7,12})")
_RANK = re.compile(r"mp_rank_([0-9]{2,5})(?:_([0-9]{3,5}))?(?:_([0-9]{3,5}))?")
_EXPERT = re.compile(
    r"(.*\.experts\.(?:local_experts\.|linear_fc[12]\.(?:weight|bias)))([0-9]{1,6})(.*)", re.DOTALL
)
_STATE = re.compile(r".*\._extra_state(?:\..*)?", re.DOTALL)


class Stack(NamedTuple):
    """Layers that the stages of a job divide, with what lies before and behind them: the names of
    all of it begin with `home`, those of layers with `layers` and a number, those of what lies with
    the first layer with `first`. Where `fixed` that is the first stage, and the rest lies in the
    last, whatever layers these have."""

    home: str
    layers: str
    first: str
    fixed: bool = False


MODEL = Stack("", LAYERS, "embedding.", fixed=True)
# of MindSpeed-MM, whose models are made of several
LANGUAGE = Stack("text_decoder.", f"text_decoder.{LAYERS}", "text_decoder.embedding.")
VISION = Stack("image_encoder.", "image_encoder.encoder.blocks.layers.", "image_encoder.encoder.")
_BEGINS = "|".join(re.escape(one.layers) for one in (MODEL, LANGUAGE, VISION))
_LAYER = re.compile(rf"({_BEGINS})([0-9]{{1,6}})(\..*)", re.DOTALL)


def stack_of(name: str) -> Stack:
    """The layers that a tensor belongs to."""
    return next((one for one in (LANGUAGE, VISION) if name.startswith(one.home)), MODEL)


def iteration_of(name: str) -> int | None:
    """The number of an iteration by the name of its directory; -1 for `release`."""
    if name == "release":
        return -1
    match = _ITERATION.fullmatch(name)
    return int(match[1]) if match else None


def iteration_name(number: int) -> str:
    """The name of the directory of an iteration."""
    return f"iter_{number:07d}"


def numbers_of(name: str) -> tuple[int, ...] | None:
    """The numbers in the name of a rank's directory: tensor parallel, then, where there are any,
    stage and expert parallel."""
    match = _RANK.fullmatch(name)
    return tuple(int(number) for number in match.groups() if number) if match else None


def rank_name(tensor: int, stage: int | None, expert: int | None) -> str:
    """The name of a rank's directory, without what a job isn't cut by."""
    numbers = "".join(f"_{one:03d}" for one in (stage, expert) if one is not None)
    return f"mp_rank_{tensor:02d}{numbers}"


def layer_of(name: str) -> int | None:
    """The number of the layer in a tensor's name."""
    match = _LAYER.fullmatch(name)
    return int(match[2]) if match else None


def with_layer(name: str, number: int) -> str:
    """A tensor's name with another number of its layer."""
    return _LAYER.sub(lambda match: f"{match[1]}{number}{match[3]}", name)


def expert_of(name: str) -> int | None:
    """The number of the expert in a tensor's name; None where it has none, or all are in it."""
    match = _EXPERT.fullmatch(name)
    return int(match[2]) if match else None


def with_expert(name: str, number: int) -> str:
    """A tensor's name with another number of its expert."""
    return _EXPERT.sub(lambda match: f"{match[1]}{number}{match[3]}", name)


def is_extra_state(name: str) -> bool:
    """Whether it holds what Transformer Engine keeps beside weights."""
    return _STATE.fullmatch(name) is not None
