"""The files that a conversion's tensors go into on the Hugging Face side, and sizes as users write
them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints import huggingface
from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import INDEX
from ckptforge.checkpoints.opening import CONFIG
from ckptforge.dtypes import DType
from ckptforge.errors import ConfigError, UsageError, shown
from ckptforge.formats import safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.planning.conversion import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import flag, option

DEFAULT_SHARD_BYTES = 5 * 10**9
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str | int, name: str) -> int:
    """Bytes of `5GB` (10⁹), `512MiB` (2²⁰) or a plain number. Raises `UsageError`, naming the
    option."""
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


class HuggingFaceTarget(msgspec.Struct, frozen=True):
    """A Hugging Face directory. `max_shard_size` None restores the recorded files where the tensors
    are the same, else 5 GB. `allow_no_config`: write the weights alone where no config.json is
    known."""

    output: Path
    side: HuggingFaceSide | None
    max_shard_size: int | None
    allow_no_config: bool = False

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    @property
    def has_config(self) -> bool:
        return self.side is not None and CONFIG in self.side.files

    def notes(self, specs: Sequence[TensorSpec], cast: DType | None) -> tuple[str, ...]:
        """A sentence about a config.json that isn't written, or that said another dtype than the
        weights had without a `cast`."""
        if self.side is not None and self.has_config:
            changed = (
                {}
                if cast is not None
                else _other_dtypes(json.loads(self.side.files[CONFIG]), specs)
            )
            return tuple(
                f"{CONFIG} said {key} {shown(before)}, but the weights are {now}; the one that is "
                f"written says {now}."
                for key, (before, now) in changed.items()
            )
        return (
            f"{CONFIG} isn't known and so not written; put the model's own beside the weights "
            "before loading them.",
        )

    def lay_out(
        self, specs: Sequence[TensorSpec], layout: str
    ) -> tuple[tuple[PlacedFile, ...], dict[str, bytes]]:
        """(weight files, small files). Raises `ConfigError` when there is no config.json,
        `PlanError` for dtypes that safetensors doesn't have."""
        if not self.has_config and not self.allow_no_config:
            raise ConfigError(
                f"{self.output}: {CONFIG} is missing, without which the directory can't be loaded, "
                "and the checkpoint has no manifest that "
                "holds it. Give the Hugging Face directory (or its config.json) with "
                f"{option('config')}, or {flag('allow_no_config')} to write the "
                "weights alone."
            )
        kept = self.side.files if self.side is not None else {}
        small = {name: content for name, content in kept.items() if name != INDEX}
        if self.has_config:
            small[CONFIG] = _with_dtype(small[CONFIG], specs)
        if self.max_shard_size is None and (recorded := self._recorded(specs, layout)) is not None:
            assert self.side is not None
            if self.side.index_json is not None:
                small[INDEX] = self.side.index_json
            elif len(recorded) > 1:
                small[INDEX] = huggingface.index_json(recorded)
            files = tuple(
                PlacedFile(
                    safetensors.lay_out(
                        self.output / name, tensors, self.side.shards[name]["metadata"]
                    )
                )
                for name, tensors in recorded.items()
            )
            return files, small
        shards = huggingface.cut_into_shards(specs, self.max_shard_size or DEFAULT_SHARD_BYTES)
        shards = {name: safetensors.library_order(tensors) for name, tensors in shards.items()}
        if len(shards) > 1:
            small[INDEX] = huggingface.index_json(shards)
        files = tuple(
            PlacedFile(safetensors.lay_out(self.output / name, tensors, {"format": "pt"}))
            for name, tensors in shards.items()
        )
        return files, small

    def _recorded(
        self, specs: Sequence[TensorSpec], layout: str
    ) -> dict[str, list[TensorSpec]] | None:
        """The recorded files with these tensors in the recorded order, if they are the same tensors
        of the same dtypes, each once."""
        if self.side is None or not self.side.shards or self.side.layout != layout:
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
        if len(self.side.shards) == 1 and huggingface.SINGLE not in self.side.shards:
            return None  # transformers doesn't look for files of other names
        return {
            name: [by_name[tensor] for tensor in shard["tensors"]]
            for name, shard in self.side.shards.items()
        }


def _other_dtypes(
    config: Mapping[str, Any], specs: Sequence[TensorSpec]
) -> dict[str, tuple[Any, str]]:
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
    return (
        json.dumps(
            {**parsed, **{key: now for key, (_, now) in changed.items()}},
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    ).encode()
