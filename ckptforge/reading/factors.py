"""Models that are nothing but the factors of an adapter."""

from __future__ import annotations

from ckptforge.model import Model
from ckptforge.tables.lora import is_lora
from ckptforge.tables.state import state_of


def holds_only_factors(model: Model) -> bool:
    """Whether a model is an adapter, without the weights that it is for."""
    names = [name for name in model.values if not state_of(model, name)]
    return model.format == "peft adapter" or (bool(names) and all(map(is_lora, names)))
