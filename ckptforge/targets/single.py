"""One file of any format as a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ckptforge.formats.layout import TensorSpec
from ckptforge.formats.registry import Format
from ckptforge.planning.lower import PlacedFile
from ckptforge.targets.target import LaidOut


class FileTarget(msgspec.Struct, frozen=True):
    """One file with all tensors, and metadata where its format has room for them."""

    output: Path
    format: Format
    metadata: Mapping[str, str]

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The file. Raises `PlanError` for what its format can't hold."""
        file = self.format.lay_out(self.output, self.format.ordered(specs), self.metadata)
        return LaidOut(files=(PlacedFile.whole(file),))
