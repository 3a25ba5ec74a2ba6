"""PEFT's adapter directories: `adapter_config.json`, and the factors in
`adapter_model.safetensors`.

Convention of the peft library (peft/tuners/lora/config.py and layer.py): a module's adapter adds
scale · B·A, scale = lora_alpha / r, or lora_alpha / √r with use_rslora; alpha_pattern and
rank_pattern give a module's own (`module_pattern.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.adapters.module_pattern import ModulePatterns
from ckptforge.adapters.peft_names import plain_names
from ckptforge.checkpoints.files import model_of, read_file
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import is_there, read_small
from ckptforge.foreign.json import file_of, parse_object
from ckptforge.foreign.paths import has_name, is_directory
from ckptforge.formats.index import FileIndex
from ckptforge.model import Model

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BINARY = "adapter_model.bin"
DEFAULT = 8  # of r and of lora_alpha
_MAX_CONFIG = 16 * 1024 * 1024
# What doesn't change what a trained adapter adds.
_NAMES = """
    peft_type r lora_alpha rank_pattern alpha_pattern use_rslora target_modules exclude_modules
    task_type base_model_name_or_path revision inference_mode auto_mapping peft_version lora_dropout
    layers_to_transform layers_pattern megatron_config megatron_core loftq_config eva_config
    corda_config lora_ga_config qalora_group_size runtime_config ensure_weight_tying
"""
_HARMLESS = {*_NAMES.split(), "modules_to_save", "bias"}  # weights that the file holds whole
_HARMLESS |= {"target_parameters"}  # `stacked.py`
# What does, and the values under which it doesn't.
_PLAIN: dict[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    # others change the base
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


class AdapterConfig(msgspec.Struct, frozen=True, dict=True):
    """What adapter_config.json says of an adapter; `where` names it in messages."""

    where: str
    content: Mapping[str, Any]

    def rank(self, module: str) -> int:
        """r of a module of that name. Raises `FormatError`."""
        found = self._own("rank_pattern", module, self.content.get("r", DEFAULT))
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 31:
            raise FormatError(f"{self.where}: r is {shown(found)}, expected a positive integer.")
        return found

    def scale(self, module: str) -> float:
        """What B·A of a module of that name is multiplied with."""
        own = self._own("alpha_pattern", module, self.content.get("lora_alpha", DEFAULT))
        alpha = number(own, f"{self.where}: lora_alpha")
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.content.get("use_rslora") else alpha / rank

    @property
    def saved_modules(self) -> list[str]:
        """The modules held whole, by the ends of their names. Raises `FormatError`."""
        found = self.content.get("modules_to_save") or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise FormatError(
                f"{self.where}: modules_to_save is {shown(found)}, expected a list of names."
            )
        return found

    @property
    def stacked(self) -> bool:
        """Whether parameters that stack experts have adapters. Raises `FormatError` for ranks or
        scales of their own, whose modules' names say nothing of a parameter."""
        if not (targets := self.content.get("target_parameters")):
            return False
        for field in ("rank_pattern", "alpha_pattern"):
            if self.content.get(field):
                raise FormatError(
                    f"{self.where}: {field} beside target_parameters {shown(targets)} isn't "
                    "understood; merge this adapter with peft itself."
                )
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should hear of the modules that were asked for."""
        return tuple(note for patterns in self._patterns.values() for note in patterns.notes)

    def with_alpha(self, alpha: float) -> AdapterConfig:
        """The same with another lora_alpha."""
        return AdapterConfig(self.where, {**self.content, "lora_alpha": _plain(alpha)})

    def json(self) -> bytes:
        """It as a file."""
        return file_of(self.content)

    def _own(self, field: str, module: str, default: object) -> object:
        return self._patterns[field].value(module, default)

    @cached_property
    def _patterns(self) -> dict[str, ModulePatterns]:
        fields = ("rank_pattern", "alpha_pattern")
        values = {field: self.content.get(field) or {} for field in fields}
        return {field: ModulePatterns(self.where, field, own) for field, own in values.items()}


def _plain(number: float) -> float:
    """A number as PEFT writes it: whole ones without a point."""
    return int(number) if number == int(number) else number


def number(value: object, what: str) -> float:
    """A finite number. Raises `FormatError`, which says what it is of."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise FormatError(f"{what} is {shown(value)}, expected a number.")
    return float(value)


def is_adapter(path: Path) -> bool:
    """Whether a path is a PEFT directory."""
    return is_directory(path) and has_name(path / CONFIG)


class PeftAdapter:
    """A PEFT directory without a model beside its adapter."""

    def recognises(self, directory: Path) -> bool:
        """By its adapter_config.json."""
        return has_name(directory / CONFIG)

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """The factors under the names that save_pretrained gives them."""
        refuse_step(step, directory, "a PEFT adapter")
        file = read_weights(directory)
        tensors, notes = plain_names(file.path, file.tensors)
        named = replace(file, tensors=tensors)
        found = model_of(directory, [named], *notes, format="peft adapter")
        return replace(found, files=(file,))


PEFT_ADAPTER = PeftAdapter()


def read_weights(directory: Path) -> FileIndex:
    """The factors. Raises `InputNotFoundError` where they aren't there."""
    if is_there(directory / WEIGHTS):
        return read_file(directory / WEIGHTS)
    if is_there(directory / _BINARY):
        return read_file(directory / _BINARY)
    raise InputNotFoundError(f"{directory}: has {CONFIG} but no {WEIGHTS}.")


def parse_config(content: bytes, where: str) -> AdapterConfig:
    """Raises `FormatError` for an adapter that is more than B·A added to weights."""
    found = parse_object(content, where)
    if found.get("peft_type") != "LORA":
        raise FormatError(
            f"{where}: peft_type is {shown(found.get('peft_type'))}; only LORA is understood."
        )
    for key, value in found.items():
        plain = _PLAIN.get(key, (None, False, [], {}))
        as_plain = any(value == one and type(value) is type(one) for one in plain)
        if key not in _HARMLESS and not as_plain:
            name = key if key in _PLAIN else shown(key)
            raise FormatError(
                f"{where}: {name} is {shown(value)}, which a plain LoRA doesn't have; merge this "
                "adapter with peft itself."
            )
    return AdapterConfig(where, found)


def read_config(directory: Path) -> tuple[bytes, AdapterConfig]:
    """A directory's adapter_config.json, as it is and parsed. Raises `InputNotFoundError` and
    `FormatError`."""
    path = directory / CONFIG
    is_there(path)  # raises for a directory or a link to nowhere of that name
    content = read_small(path, _MAX_CONFIG)
    return content, parse_config(content, str(path))


def ends(modules: Sequence[str]) -> list[str]:
    """The last parts of modules' names, by which PEFT finds them."""
    return sorted({name.rpartition(".")[2] for name in modules})


def config_json(
    modules: Sequence[str], rank: int, alpha: float, like: AdapterConfig | None
) -> bytes:
    """An adapter_config.json of one rank and scale, for `modules`; the rest as in `like`."""
    fixed: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _plain(alpha),
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    if modules:
        fixed["target_modules"] = ends(modules)
    base: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
    }
    said = dict(like.content) if like is not None else {}
    said.pop("target_parameters", None)  # whose experts have modules of their own now
    return file_of({**base, **said, **fixed})
