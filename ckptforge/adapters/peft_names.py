"""Names of tensors in PEFT's files, and the variants of them that circulate.

`base_model.model.` stands before the name of every module. Written from a state_dict that
save_pretrained hasn't gone through, names also hold the adapter's name (`….lora_A.default.weight`)
and the wrappers of torch.compile, DDP and FSDP; some programs leave the prefix away. A weight that
is stored whole keeps its module's name: one that was trained (modules_to_save, biases), or one of
the base model beside its factors (`….base_layer.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.values import Stored

PREFIX = "base_model.model."
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NAMED = re.compile(
    r"(.*\.lora_[AB])\.([^.]+)(\.weight)|(.*\.lora_embedding_[AB])\.([^.]+)()|(.*)\.modules_to_save\.([^.]+)(\..+)"
)
_BASE = ".base_layer."


def plain_names(
    path: Path, tensors: Mapping[str, Stored]
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """(the tensors by the names that save_pretrained gives them, a note where those in the file are
    others).

    Raises `FormatError` for a file of several adapters.
    """
    found: dict[str, Stored] = {}
    adapters: dict[str, str] = {}
    for name, entry in tensors.items():
        plain, adapter = _plain(name)
        if adapter is not None:
            adapters.setdefault(adapter, name)
        if len(adapters) > 1:
            raise FormatError(
                f"{path}: holds several adapters, {' and '.join(map(shown, adapters))} (in the "
                f"names {' and '.join(map(shown, adapters.values()))}); keep one in a file of its "
                "own."
            )
        if plain in found:
            raise FormatError(
                f"{path}: {shown(found[plain].name)} and {shown(name)} are one name, "
                f"{shown(plain)}, without the adapter's."
            )
        found[plain] = entry
    changed = [(entry.name, plain) for plain, entry in found.items() if entry.name != plain]
    if not changed:
        return dict(tensors), ()
    return found, (
        f"{len(changed)} names of tensors aren't as PEFT saves them: {changed[0][0]} was read as "
        f"{changed[0][1]}.",
    )


def _plain(name: str) -> tuple[str, str | None]:
    """(a name without wrappers, with the prefix and without the adapter's name, that name)."""
    words = [word for word in name.split(".") if word not in _WRAPPERS]
    while words[:1] == ["module"] or words[:2] == ["base_model", "model"]:
        words = words[1 if words[0] == "module" else 2 :]
    plain = PREFIX + ".".join(words)
    match = _NAMED.fullmatch(plain)
    if match is None:
        return plain, None
    stem, adapter, rest = (part for part in match.groups() if part is not None)
    return stem + rest, adapter


def whole_weight(name: str) -> str:
    """The name in the model of a weight that is stored whole."""
    return name.removeprefix(PREFIX).replace(_BASE, ".")


def of_the_base(name: str) -> bool:
    """Whether a weight is the base model's, stored along, which training left alone."""
    return name.endswith(f"{_BASE}weight")
