"""The files of a model on MindSpore's side: one file, or unified safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckptforge.checkpoints.mindspore import HYPER_PARAMETERS, UNIFIED_MAP
from ckptforge.errors import UsageError
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.registry import format_by_ending
from ckptforge.planning.lower import PlacedFile
from ckptforge.spelling import option
from ckptforge.tables.state import companion_prefix, is_state
from ckptforge.targets.target import LaidOut

UNIFIED_PART_BYTES = 3 << 30  # MindSpore's unified_safetensors
DEFAULT_ENDING = "ckpt"


def mindspore_file(path: Path, specs: Sequence[TensorSpec]) -> OutputFile:
    """A file with these tensors, in the format of its ending, as MindSpore reads it."""
    chosen = format_by_ending(path)
    assert chosen is not None, path
    return chosen.lay_out(path, chosen.ordered(specs), {"format": "ms"})


class MindSporeTarget(msgspec.Struct, frozen=True):
    """One MindSpore file: `path` is the file; `output` the same, or the directory it lies in."""

    output: Path
    path: Path

    @classmethod
    def of(cls, out: Path, ending: str | None, prefix: str) -> MindSporeTarget:
        """OUT with the ending of a format is the file, otherwise a directory that gets
        `rank_0/<prefix>0.<ending>`.

        Raises `UsageError` when its ending and the one asked for differ.
        """
        check_prefix(prefix)
        if format_by_ending(out) is None:
            name = f"{prefix}0.{ending or DEFAULT_ENDING}"
            return cls(out, out / "rank_0" / name)
        if ending not in (None, out.suffix.removeprefix(".")):
            raise UsageError(
                f"{option('format', ending)} contradicts the ending of {out}; omit one of them."
            )
        return cls(out, out)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The one file, with all tensors."""
        return LaidOut(files=(PlacedFile.whole(mindspore_file(self.path, specs)),))


class UnifiedTarget(msgspec.Struct, frozen=True):
    """MindSpore's unified safetensors: `part<i>.safetensors` of about 3 GiB, `param_name_map.json`
    with the file of each tensor, and counters and scales in `hyper_param.safetensors`."""

    output: Path

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The parts, filled as MindSpore fills them: the largest tensor first, each into the part
        that is emptiest."""
        hyper = [one for one in specs if is_state(one.name) and companion_prefix(one.name) is None]
        tensors = [spec for spec in specs if spec not in hyper]
        total = sum(spec.nbytes for spec in tensors)
        parts: list[list[TensorSpec]] = [[] for _ in range(max(1, -(-total // UNIFIED_PART_BYTES)))]
        filled = [0] * len(parts)
        for spec in sorted(tensors, key=lambda spec: spec.nbytes, reverse=True):
            emptiest = filled.index(min(filled))
            parts[emptiest].append(spec)
            filled[emptiest] += spec.nbytes
        files = {f"part{i}.safetensors": part for i, part in enumerate(parts)}
        weight_map = {spec.name: name for name, part in files.items() for spec in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        if hyper:
            files[HYPER_PARAMETERS] = hyper
        placed = (mindspore_file(self.output / name, part) for name, part in files.items())
        return LaidOut(
            files=tuple(map(PlacedFile.whole, placed)),
            small_files={UNIFIED_MAP: json.dumps(index, indent=4, ensure_ascii=False).encode()},
        )


def check_prefix(prefix: str) -> None:
    """Raises `UsageError` for what can't begin the name of a file."""
    if "/" in prefix or prefix.startswith(".") or "\0" in prefix:
        raise UsageError(
            f"{option('prefix', prefix)}: must be the beginning of a file name, without '/'."
        )
