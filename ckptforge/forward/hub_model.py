"""A model of transformers' own, without weights: of a config.json, by its model_type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptforge.errors import ConfigError, VerifyError, shown
from ckptforge.tables.model_config import classes_of
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.tables.table import Layout, Table
from ckptforge.wording import install_hint, listing

# of config.json, what isn't about the network, or would have transformers look for more than it
_LEFT_OUT = ("auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_version")


def import_torch() -> tuple[Any, Any]:
    """torch and transformers. Raises `VerifyError` where one isn't installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise VerifyError(
            f"the forward check needs torch and transformers: {install_hint('torch')} ({error})."
        ) from error
    return torch, transformers


def model_of(config: Mapping[str, Any], table: Table, attention: str, where: str) -> Any:
    """The model that predicts tokens, of texts alone or of images, too, on torch's device meta.
    Nothing of a repository is run.

    Raises `VerifyError` for a model that the installed transformers doesn't have, and `ConfigError`
    for a config that it makes none of.
    """
    torch, transformers = import_torch()
    made, kind = _classes(transformers, config, table, where)
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    kept.pop("model_type", None)
    try:
        with torch.device("meta"):
            return kind.from_config(
                made(**kept),
                attn_implementation=attention,
                experts_implementation="eager",
                trust_remote_code=False,
            ).eval()
    except Exception as error:  # of whatever kind its checks of a config raise
        raise ConfigError(
            f"{where}: transformers {transformers.__version__} makes no {made.__name__} of it: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _classes(
    transformers: Any, config: Mapping[str, Any], table: Table, where: str
) -> tuple[Any, Any]:
    """(of its configuration, of such models), by model_type, else by the class in `architectures`,
    else by the table's first model_type."""
    auto = transformers.models.auto
    known, named = auto.configuration_auto.CONFIG_MAPPING, classes_of(config)
    for classes, kind in (
        (auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
        (
            auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            transformers.AutoModelForImageTextToText,
        ),
    ):
        types = [
            config.get("model_type"),
            *(kind for kind, name in classes.items() if name in named),
        ]
        types = types if config.get("model_type") or len(types) > 1 else [*table.model_types]
        found = next((one for one in types if isinstance(one, str) and one in classes), None)
        if found is not None:
            return known[found], kind
    raise VerifyError(
        f"{where}: transformers {transformers.__version__} has no language model for model_type "
        f"{shown(config.get('model_type'))}, so there is nothing to compare with."
    )


def layouts_in_memory(model: Any, table: Table, where: str) -> list[Layout]:
    """The layouts whose names a model of transformers' has in memory: more than one where they
    differ in shapes alone. Raises `VerifyError`."""
    names = list(model.state_dict())
    kinds = {skeleton_of(name)[0]: name for name in names}
    found: list[Layout] = []
    lacking: list[str] = []
    for own in table.names_of("huggingface"):
        layout = table.layouts[own]
        skeletons = {pattern.skeleton for pattern in layout.patterns}
        missing = [
            name
            for kind, name in kinds.items()
            if kind not in skeletons and not layout.passes(name)
        ]
        if not missing:
            found.append(layout)
        lacking = missing if not lacking or len(missing) < len(lacking) else lacking
    if found:
        return found
    raise VerifyError(
        f"{where}: transformers' {type(model).__name__} has tensors that the table {table.name} "
        f"doesn't know:\n{listing(lacking)}"
    )
