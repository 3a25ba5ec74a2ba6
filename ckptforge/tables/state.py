"""What training checkpoints hold beside weights: optimizer state, counters and scales."""

from __future__ import annotations

import re

# Tensors that follow their weight: same shape, same split, the weight's name behind the prefix.
COMPANION_PREFIXES = ("adam_m.", "adam_v.", "accu_grads.", "moments.", "moment1.", "moment2.")

_SCALARS = re.compile(
    r"global_step|epoch_num|step_num|current_iterator_step|last_overflow_iterator_step|scale_sense|loss_scale|"
    r"learning_rate\w*|beta1_power|beta2_power|data_offset|.*\.(?:global_step|learning_rate)"
)


def companion_prefix(name: str) -> str | None:
    """`adam_m.` of `adam_m.lm_head.weight`; None for what is no weight's state."""
    return next((prefix for prefix in COMPANION_PREFIXES if name.startswith(prefix)), None)


def is_state(name: str) -> bool:
    """True for optimizer state and counters, with which no network computes."""
    return companion_prefix(name) is not None or _SCALARS.fullmatch(name) is not None
