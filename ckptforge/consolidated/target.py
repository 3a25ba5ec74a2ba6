"""A release in its makers' own files as a target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.consolidated.kind import SINGLE
from ckptforge.consolidated.params import META, PARAMS, params_of
from ckptforge.errors import PlanError
from ckptforge.foreign.json import parse_object
from ckptforge.formats.layout import TensorSpec
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.lower import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.tables.table import Layout
from ckptforge.targets.target import LaidOut

_FILES_OF_STACKED = 8  # which transformers' script expects
_ALONG = ("tokenizer*", "tekken.json", "chat_template*", "special_tokens_map.json")


class ConsolidatedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """consolidated.safetensors and params.json, as mistral-inference reads them; for Meta's layout
    consolidated.00.pth; and eight files for that of stacked experts. `side` is what goes along with
    the model."""

    output: Path
    layout: Layout
    side: HuggingFaceSide | None = None

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The files. Raises `PlanError` where torch's format can't be written, and for what it
        can't hold; `ConfigError` for a model that Meta's network can't be."""
        files = [self._file(name, own) for name, own in self._shared(specs)]
        beside = self.side.files if self.side is not None else {}
        small = {
            name: content
            for name, content in beside.items()
            if any(fnmatchcase(name, glob) for glob in _ALONG)
        }
        if CONFIG not in beside:
            note = f"{CONFIG} isn't known, so {PARAMS} isn't written; put the model's own there."
            return LaidOut(files=tuple(files), small_files=small, notes=(note,))
        config = parse_object(beside[CONFIG], CONFIG, constants=True)
        params, notes = params_of(config, self.layout.name == META, self.layout.switches)
        small[PARAMS] = (json.dumps(params, indent=4) + "\n").encode()
        return LaidOut(files=tuple(files), small_files=small, notes=notes)

    def _shared(self, specs: Sequence[TensorSpec]) -> list[tuple[str, Sequence[TensorSpec]]]:
        """The names of the files, with the tensors of each."""
        if self.layout.name == META:
            return [("consolidated.00.pth", specs)]
        if not any(".block_sparse_moe." in spec.name for spec in specs):
            return [(SINGLE, specs)]
        length = -(-len(specs) // _FILES_OF_STACKED)
        return [
            (f"consolidated.{i:02}.pt", specs[i * length : (i + 1) * length])
            for i in range(_FILES_OF_STACKED)
        ]

    def _file(self, name: str, specs: Sequence[TensorSpec]) -> PlacedFile:
        path = self.output / name
        if (chosen := format_by_ending(path)) is None:
            raise PlanError(f"{path}: no format writes such files.")
        return PlacedFile.whole(chosen.lay_out(path, chosen.ordered(specs), {"format": "pt"}))
