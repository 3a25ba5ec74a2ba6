"""MindSpore's strategy files: protobuf and JSON, per stage and merged, and directories of them.

Format: `node_strategy.proto` (package mindspore.straspb). A file whose name ends in `.json` is
JSON, any other protobuf. In a merged file parameter names are `<stage>-<parameter>`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ckptforge.checkpoints.whereabouts import explain_missing
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import entries_of, read_small
from ckptforge.foreign.paths import exists, is_directory, is_file
from ckptforge.formats.index import check_name
from ckptforge.formats.protobuf import Source
from ckptforge.parallel import strategy_json, strategy_protobuf
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES, Stage
from ckptforge.wording import counted, listing

# a parameter takes some 100 bytes, in JSON 250; the largest models have some 10,000 in a stage
MAX_BYTES = 1 << 26
_MERGED = re.compile(r"([0-9]{1,6})-(.+)", re.DOTALL)


class Strategy(msgspec.Struct, frozen=True):
    """`stages[k]` is parameter → layout of pipeline stage k; global rank = stage · devices +
    device.

    `path` is where it comes from; `computed` whether it was made for the tensors at hand instead of
    read from strategy files.
    """

    path: Path
    stages: tuple[Stage, ...]
    devices: int
    computed: bool = False

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.devices * len(self.stages)

    @property
    def extent(self) -> str:
        """How many ranks and stages there are, in words."""
        stages = f" in {len(self.stages)} stages" if len(self.stages) > 1 else ""
        return counted(self.ranks, "rank") + stages

    def stage_of(self, rank: int) -> int:
        """The stage of a global rank."""
        return rank // self.devices

    def first_stage(self, parameter: str) -> int | None:
        """The lowest stage that holds a parameter, whose values count, or None."""
        return next((i for i, stage in enumerate(self.stages) if parameter in stage), None)


def read_strategy(path: Path) -> Strategy:
    """Reads a strategy file, or a directory of the files of one job's ranks.

    Raises `InputNotFoundError` when there is none, and `FormatError` for files that are damaged,
    disagree, lack a stage, or hold what ckptforge can't honour (manual embedding split).
    """
    if is_directory(path):
        files = (file for file in entries_of(path) if file.suffix in (".ckpt", ".json"))
        paths = list(filter(is_file, files))
        if not paths:
            raise InputNotFoundError(f"{path}: no strategy files (.ckpt or .json) in it.")
        if len({file.suffix for file in paths}) > 1:
            raise FormatError(
                f"{path}: holds .ckpt and .json strategy files; keep one kind, or name one file."
            )
    elif exists(path):
        paths = [path]
    else:
        raise InputNotFoundError(
            f"{path}: no such strategy file or directory; check the "
            f"path.{explain_missing(path, model=False)}"
        )
    stages: dict[int, Stage] = {}
    origin: dict[int, Path] = {}
    seen: set[bytes] = set()
    for file in paths:
        content = read_small(file, MAX_BYTES)
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            continue  # the ranks of a stage write identical files
        seen.add(digest)
        for stage, layouts in _read_file(file, content).items():
            if stage not in stages:
                stages[stage], origin[stage] = layouts, file
            elif stages[stage] != layouts:
                names = {**stages[stage], **layouts}
                name = next(n for n in names if stages[stage].get(n) != layouts.get(n))
                raise FormatError(
                    f"{path}: {origin[stage].name} and {file.name} disagree on stage {stage}, for "
                    f"one on parameter {shown(name)}; they are of two jobs. Keep the files of one."
                )
    return make_strategy(path, stages)


def make_strategy(path: Path, stages: Mapping[int, Stage], computed: bool = False) -> Strategy:
    """Stages that belong together. Raises `FormatError` where they don't."""
    if not stages or not any(stages.values()):
        raise FormatError(
            f"{path}: holds no parameter layouts; it isn't a strategy file, or of one device."
        )
    if missing := [stage for stage in range(len(stages)) if stage not in stages]:
        found = ", ".join(map(str, sorted(stages)[:10])) + (", …" if len(stages) > 10 else "")
        raise FormatError(
            f"{path}: stage {missing[0]} is missing (there is {found}); give the strategy files of "
            "all stages."
        )
    devices = {layout.devices: name for stage in stages.values() for name, layout in stage.items()}
    if len(devices) > 1:
        different = [f"{name}: {counted(count, 'device')}" for count, name in devices.items()]
        raise FormatError(
            f"{path}: parameters are laid out for different numbers of devices:\n"
            f"{listing(different)}"
        )
    if next(iter(devices)) * len(stages) > MAX_DEVICES:
        raise FormatError(
            f"{path}: {counted(len(stages), 'stage')} of {counted(next(iter(devices)), 'device')}: "
            f"more than {MAX_DEVICES} in all; damaged."
        )
    ordered = tuple(stages[stage] for stage in sorted(stages))
    return Strategy(path, ordered, next(iter(devices)), computed)


def _read_file(path: Path, content: bytes) -> dict[int, Stage]:
    own_stage, layouts = (
        strategy_json.read_file(path, content)
        if path.suffix == ".json"
        else strategy_protobuf.read_file(Source(path, "strategy file", content))
    )
    stages: dict[int, Stage] = {}
    for name, layout in layouts.items():
        check_name(name, path)
        if problem := layout.problem():
            raise FormatError(f"{path}: parameter {shown(name)}: {problem}.")
        match = _MERGED.fullmatch(name)
        stage, parameter = (int(match[1]), match[2]) if match else (own_stage, name)
        if not 0 <= stage < MAX_STAGES:
            raise FormatError(
                f"{path}: parameter {shown(name)} is of stage {shown(stage)}; damaged, or not a "
                "strategy file."
            )
        stages.setdefault(stage, {})[parameter] = layout
    return stages


def strategy_bytes(stage: int, layouts: Stage, *, as_json: bool = False) -> bytes:
    """A strategy file of one stage, as MindSpore's own tools read it.

    JSON can't say that several device axes split one tensor axis: `ValueError`.
    """
    if as_json:
        return strategy_json.file_bytes(stage, layouts)
    return strategy_protobuf.file_bytes(stage, layouts)
