"""What a MindSpore training checkpoint holds beside the weights, for any model: optimizer state,
and counters and scales.

Source: the optimizers of MindSpore and of MindFormers v1.0 … r2.1 (AdamW, FusedAdamW, Muon, PMA).
"""

from __future__ import annotations

import re

from ckptforge.model import Model

# Tensors that follow their weight: same shape, same split, the weight's name behind the prefix.
COMPANION_PREFIXES = (
    "adam_m.",
    "adam_v.",
    "accu_grads.",
    "moments.",
    "moment1.",
    "moment2.",
    "muon_m.",
    "main_param.",
    "exp_avg.",
    "exp_avg_sq.",
    "max_exp_avg_sq.",
    "pma_weight_ema.",
    "pma_weight_sma.",
    "pma_weight_wma.",
)
MAIN_PARAM = "main_param."  # the float32 numbers that a rounded weight was made of

_OF_TENSORS = (".weight", ".weight_scale_inv", ".bias")  # as no scalar ends, and nearly all else
_SCALARS = re.compile(
    r"global_step|epoch_num|step_num|current_iterator_step|last_overflow_iterator_step|scale_sense|loss_scale|"
    r"learning_rate\w*|beta1_power|beta2_power|data_offset|.*\.(?:global_step|learning_rate)|"
    r"(?:adam_m|adam_v|muon_m)\.placeholder\.[0-9]+"
)


def companion_prefix(name: str) -> str | None:
    """`adam_m.` of `adam_m.lm_head.weight`; None for names that are no optimizer state of a
    weight."""
    if not name.startswith(COMPANION_PREFIXES) or _SCALARS.fullmatch(name) is not None:
        return None
    return next(prefix for prefix in COMPANION_PREFIXES if name.startswith(prefix))


def is_state(name: str) -> bool:
    """True for optimizer state and training scalars: nothing that a network computes its output
    with."""
    if name.endswith(_OF_TENSORS):
        return name.startswith(COMPANION_PREFIXES)
    return companion_prefix(name) is not None or _SCALARS.fullmatch(name) is not None


def state_of(model: Model, name: str) -> bool:
    """The same of a tensor of a model, which may lie in a file of optimizer state."""
    return name in model.optimizer or is_state(name)


def state_in(model: Model) -> list[str]:
    """The tensors of a model of which that is so, in its order."""
    optimizer, tensors, prefixes = model.optimizer, _OF_TENSORS, COMPANION_PREFIXES
    return [
        name
        for name in model.values
        if name in optimizer
        or ((name.startswith(prefixes) or not name.endswith(tensors)) and is_state(name))
    ]
