"""What the tensors are that no table knows: some can't simply be left out."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from ckptforge.tables import companions
from ckptforge.tables.model_config import Config, classes_of


class Kind(msgspec.Struct, frozen=True):
    """A kind of tensor. `what` says in words what such a tensor is, `advice` what to do; those that
    aren't `droppable` are refused even under `--allow-unmapped`, as without them it would not be
    the same model."""

    name: str
    what: str
    advice: str
    droppable: bool = False


HEAD = Kind(
    "head",
    "the head of a model that isn't a language model (a reward, value, classification or "
    "question-answering model)",
    "Only causal language models, with lm_head or tied embeddings, are converted; without this "
    "head it would not be the same model.",
)
_QUANTISED = Kind(
    "quantised",
    "parts of quantised weights (scales, zero points, codes) that belong to no quantised weight",
    "Without them the weights would be wrong: take the model before it was quantised.",
)
_TOWER = Kind(
    "tower",
    "a part for images, audio or video beside the language model",
    "Without it the language model alone is converted.",
    droppable=True,
)
# Module names in transformers, trl, OpenRLHF and ColossalAI. lm_head and output_layer aren't among
# them.
_HEAD = re.compile(
    r"(?:.*\.)?(?:score|scores|classifier|qa_outputs|span_classifier|summary|v_head|value_head|reward_head|rm_head|regression_head|"
    r"ranking_head|critic_head|classification_head|(?!lm_head)[a-z]+_head|head|critic|regression_layer|embed_out|cls|pooler)(?:\.\w+)*|lm_head\.bias"
)
_TOWERS = re.compile(
    r"(?:.*\.)?(?:visual|vision\w*|image\w*|audio\w*|speech\w*|video\w*|multi_modal\w*|multimodal\w*|mm_\w+|connector|"
    r"talker|token2wav|code2wav|patch_embed)\.(?:.*)"
)
_IN_LAYERS = re.compile(r"(?:.*\.)?(?:layers|blocks|h)\.[0-9]+\..*")

_TASK = re.compile(
    r"\w+(?:For(?:Sequence|Token|Image|Audio)\w*Classification|ForQuestionAnswering|ForMultipleChoice|ForMaskedLM|ForReward\w*|"
    r"ForScor\w+|ForRegression|RewardModel|ValueModel|CriticModel|WithValueHead|ForEmbedding)"
)


def other_task(config: Config) -> str:
    """The class in config.json's architectures that has another head, if any."""
    return next((name for name in classes_of(config) if _TASK.fullmatch(name)), "")


def kind_of(name: str) -> Kind | None:
    """What an unknown tensor is, by its name; None where that isn't clear."""
    if _TOWERS.fullmatch(name):
        return _TOWER
    if _HEAD.fullmatch(name) and not _IN_LAYERS.fullmatch(name):
        return HEAD
    return None if companions.kind_of(name) is None else _QUANTISED


def of_kind(names: Iterable[str], kind: Kind) -> list[str]:
    """Those of the names that are of a kind."""
    return [name for name in names if kind_of(name) == kind]


def undroppable(names: Iterable[str]) -> tuple[Kind, list[str]] | None:
    """The first kind among the names that can't be left out, and all names of that kind."""
    names = list(names)
    for name in names:
        kind = kind_of(name)
        if kind is not None and not kind.droppable:
            return kind, of_kind(names, kind)
    return None
