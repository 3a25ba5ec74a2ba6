"""A release in its makers' own files as a target.

Source: mistral-inference `transformer.py`; transformers' script for its releases with experts,
`convert_*_weights_to_hf.py`, which wants eight files; Meta's `generation.py`, which loads as many
`consolidated.NN.pth` as it has processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ckptforge.boxes import box_shape
from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.consolidated.kind import SINGLE
from ckptforge.consolidated.params import PARAMS, as_in_config, params_of
from ckptforge.consolidated.shards import boxes_of, is_cut
from ckptforge.errors import PlanError
from ckptforge.foreign.json import parse_object
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.lower import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.tables.sizes import AxisSizes
from ckptforge.tables.table import Layout
from ckptforge.targets.target import LaidOut

_EIGHT = 8  # as many as transformers' script expects
_ALONG = ("tokenizer*", "tekken.json", "chat_template*", "special_tokens_map.json")


class ConsolidatedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """consolidated.safetensors and params.json, as mistral-inference reads them; for layouts of
    which a table says how model parallelism cuts them, Meta's, consolidated.NN.pth for each of
    `shards`; and eight files for a layout of which the table says so. `sizes` are the lengths of
    the model's axes, `side` is what goes along with it."""

    output: Path
    layout: Layout
    sizes: AxisSizes
    shards: int = 1
    side: HuggingFaceSide | None = None

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The files. Raises `PlanError` where torch's format can't be written, and for what it
        can't hold; `ConfigError` for a model that Meta's network can't be."""
        files = self._sharded(specs) if is_cut(self.layout) else self._whole(specs)
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
        params, notes = params_of(config, is_cut(self.layout), self.layout.switches)
        if self.layout.in_eight_files:
            params |= as_in_config(config)
        small[PARAMS] = (json.dumps(params, indent=4) + "\n").encode()
        return LaidOut(files=tuple(files), small_files=small, notes=notes)

    def _sharded(self, specs: Sequence[TensorSpec]) -> list[PlacedFile]:
        shapes = {spec.name: spec.shape for spec in specs}
        placed = []
        for i, boxes in enumerate(boxes_of(self.layout, self.sizes, shapes, self.shards)):
            own = [
                replace(spec, shape=box_shape(boxes[spec.name])) if spec.name in boxes else spec
                for spec in specs
            ]
            placed.append(PlacedFile.cut(self._file(f"consolidated.{i:02}.pth", own), boxes, i))
        return placed

    def _whole(self, specs: Sequence[TensorSpec]) -> list[PlacedFile]:
        if not self.layout.in_eight_files:
            return [PlacedFile.whole(self._file(SINGLE, specs))]
        length = -(-len(specs) // _EIGHT)
        return [
            PlacedFile.whole(
                self._file(f"consolidated.{i:02}.pt", specs[i * length : (i + 1) * length])
            )
            for i in range(_EIGHT)
        ]

    def _file(self, name: str, specs: Sequence[TensorSpec]) -> OutputFile:
        path = self.output / name
        if (chosen := format_by_ending(path)) is None:
            raise PlanError(f"{path}: no format writes such files.")
        return chosen.lay_out(path, chosen.ordered(specs), {"format": "pt"})
