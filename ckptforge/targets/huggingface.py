"""The files that a conversion's tensors go into on the Hugging Face side, and sizes as users write
them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG, INDEX, SINGLE
from ckptforge.dtypes import DType
from ckptforge.errors import ConfigError, UsageError, shown
from ckptforge.foreign.json import file_of
from ckptforge.formats import safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.planning.lower import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import flag, offered, option
from ckptforge.tables.model_config import Config
from ckptforge.targets.target import LaidOut

STEM = "model"  # of the names of weight files
DEFAULT_SHARD_BYTES = 5 * 10**9
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str | int | None, name: str) -> int | None:
    """Bytes of `5GB` (10⁹), `512MiB` (2²⁰) or a plain number; None of None. Raises `UsageError`,
    naming the option."""
    if text is None:
        return None
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise UsageError(f"{option(name, text)}: expected a size such as 512MB, 5GB or 1GiB.")
    if len(match[1]) > 18:
        raise UsageError(f"{option(name, text)}: too large.")
    base = 1024 if match[3] else 1000
    size = (
        int(float(match[1]) * base ** "KMGT".find(match[2].upper()) * base)
        if match[2]
        else int(float(match[1]))
    )
    if size < 1:
        raise UsageError(f"{option(name, text)}: must be positive.")
    return size


class HuggingFaceTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A Hugging Face directory of a model in `layout`. `max_shard_size` None restores the recorded
    files where the tensors are the same, else 5 GB. `allow_no_config`: write the weights alone
    where no config.json is known. `cast`: the dtype that the weights were cast to. `stem` begins
    the names of weight files; `before` are the tensors whose dtypes are the model's, where what is
    written are codes."""

    output: Path
    layout: str
    side: HuggingFaceSide | None = None
    max_shard_size: int | None = None
    allow_no_config: bool = False
    cast: DType | None = None
    stem: str = STEM
    before: tuple[TensorSpec, ...] = ()

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    @property
    def has_config(self) -> bool:
        """Whether a config.json is known."""
        return self.side is not None and CONFIG in self.side.files

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The weight files, and the small files of the model. Raises `ConfigError` when there is no
        config.json, `PlanError` for dtypes that safetensors doesn't have."""
        if not self.has_config and not self.allow_no_config:
            alone = f", or {flag('allow_no_config')} to write the weights alone"
            raise ConfigError(
                f"{self.output}: {CONFIG} is missing, without which the directory can't be loaded, "
                "and the checkpoint has no manifest that "
                "holds it. Give the Hugging Face directory (or its config.json) with "
                f"{option('config')}{alone if offered('allow_no_config') else ''}."
            )
        kept = self.side.files if self.side is not None else {}
        small = {name: content for name, content in kept.items() if name != INDEX}
        if self.has_config:
            small[CONFIG] = _with_dtype(small[CONFIG], self._plain(specs))
        recorded = None if self.max_shard_size is not None else self._recorded(specs)
        if recorded is not None and self.side is not None:
            shards, own = recorded, self.side.files.get(INDEX)
            about = {name: self.side.shards[name]["metadata"] for name in shards}
        else:
            most = self.max_shard_size or DEFAULT_SHARD_BYTES
            shards = cut_into_shards(specs, most, self.stem)
            shards = {name: safetensors.ordered(tensors) for name, tensors in shards.items()}
            own, about = None, {name: {"format": "pt"} for name in shards}
        if own is not None:
            small[INDEX] = own
        elif len(shards) > 1:
            small[f"{self.stem}.safetensors.index.json"] = index_json(shards)
        files = tuple(
            PlacedFile.whole(safetensors.lay_out(self.output / name, tensors, about[name]))
            for name, tensors in shards.items()
        )
        return LaidOut(files=files, small_files=small, notes=self._notes(specs))

    def _notes(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """A sentence about a config.json that isn't written, or that said another dtype than the
        weights had without a cast."""
        if self.side is None or not self.has_config:
            return (
                f"{CONFIG} isn't known and so not written; put the model's own beside the weights "
                "before loading them.",
            )
        if self.cast is not None:
            return ()
        return tuple(
            f"{CONFIG} said {key} {shown(before)}, but the weights are {now}; the one that is "
            f"written says {now}."
            for key, (before, now) in _other_dtypes(
                json.loads(self.side.files[CONFIG]), self._plain(specs)
            ).items()
        )

    def _plain(self, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
        """Those whose dtype is the model's: no codes."""
        return [one for one in self.before or specs if one.dtype.itemsize > 1]

    def _recorded(self, specs: Sequence[TensorSpec]) -> dict[str, list[TensorSpec]] | None:
        """The recorded files with these tensors in the recorded order, if they are the same tensors
        of the same dtypes, each once."""
        if self.side is None or not self.side.shards or self.side.layout != self.layout:
            return None
        if self.stem != STEM:
            return None
        if any(shard.get("passed_over") for shard in self.side.shards.values()):
            return None  # the files were larger than what would be written
        by_name = {spec.name: spec for spec in specs}
        recorded = {
            name: stored
            for shard in self.side.shards.values()
            for name, stored in shard["tensors"].items()
        }
        if recorded != {name: spec.dtype.safetensors for name, spec in by_name.items()}:
            return None
        if not all(shard["metadata"].get("format") == "pt" for shard in self.side.shards.values()):
            return None  # transformers refuses files that don't say so
        if len(self.side.shards) == 1 and SINGLE not in self.side.shards:
            return None  # transformers doesn't look for files of other names
        return {
            name: [by_name[tensor] for tensor in shard["tensors"]]
            for name, shard in self.side.shards.items()
        }


def _other_dtypes(config: Config, specs: Sequence[TensorSpec]) -> dict[str, tuple[Any, str]]:
    """Key of config.json → (the dtype that it says, the one that most of the weights have), where
    these differ."""
    sizes: dict[DType, int] = {}
    for spec in specs:
        if spec.dtype.floating:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    if not sizes:
        return {}
    main = max(sizes, key=lambda dtype: sizes[dtype]).name
    return {
        key: (config[key], main)
        for key in ("dtype", "torch_dtype")
        if config.get(key) not in (None, main)
    }


def _with_dtype(config: bytes, specs: Sequence[TensorSpec]) -> bytes:
    """config.json with the dtype that most of the weights have, so that from_pretrained doesn't
    cast them back; the very same bytes if it says so already."""
    parsed: Mapping[str, Any] = json.loads(config)
    if not (changed := _other_dtypes(parsed, specs)):
        return config
    return file_of({**parsed, **{key: now for key, (_, now) in changed.items()}})


def cut_into_shards(
    tensors: Sequence[TensorSpec], max_bytes: int, stem: str = STEM
) -> dict[str, list[TensorSpec]]:
    """File name → tensors: consecutive tensors fill a shard up to `max_bytes`, a larger tensor has
    one of its own.

    The rule of `huggingface_hub.split_state_dict_into_shards_factory`.
    """
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if shards[-1] and filled + nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {
        f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards, 1)
    }


def index_json(shards: dict[str, list[TensorSpec]]) -> bytes:
    """The contents of `model.safetensors.index.json` for these shards."""
    weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
    # as json.dumps with an indent, which is slow, writes it
    lines = json.dumps(weight_map, sort_keys=True, ensure_ascii=False, separators=(",\n    ", ": "))
    return (
        f'{{\n  "metadata": {{\n    "total_size": {total}\n  }},\n  "weight_map": {{\n    '
        f"{lines[1:-1]}\n  }}\n}}\n"
    ).encode()
