"""merge, split and reshard: other splits of the same tensors, for any model, with no mapping needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from ckptforge.dtypes import DType, parse_target
from ckptforge.engine.conversion import identity
from ckptforge.engine.plan import Plan
from ckptforge.errors import FormatError, LayoutError, MissingTensorsError
from ckptforge.formats.checkpoint import Checkpoint, open_checkpoint
from ckptforge.formats.entry import TensorEntry
from ckptforge.jobs import Job, Options, PathLike, run_job
from ckptforge.mapping.binding import bind, recognise_names
from ckptforge.mapping.state import is_state
from ckptforge.mapping.table import shipped_tables
from ckptforge.outputs import MindSporeTarget, RankTarget
from ckptforge.partition.sharded import open_sharded
from ckptforge.partition.strategy_file import read_strategy
from ckptforge.result import Result


@dataclass(frozen=True)
class _Split:
    """A target split, or one file where `strategy_dir` is None."""

    out: Path
    format: str | None
    prefix: str
    strategy_dir: PathLike | None = None

    def place(self) -> MindSporeTarget | RankTarget:
        if self.strategy_dir is None:
            return MindSporeTarget.of(self.out, self.format, self.prefix)
        return RankTarget.of(self.out, self.format, self.prefix, read_strategy(Path(self.strategy_dir)))


def merge(
    ms_dir: PathLike,
    out: PathLike,
    *,
    strategy_dir: PathLike,
    format: str | None = None,
    prefix: str = "checkpoint_",
    check_replicas: bool = False,
    **options: Unpack[Options],
) -> Result:
    """Merges the rank directories of a job into one checkpoint. `check_replicas` compares all replicas. Returns a `Result`."""
    source = _sharded(ms_dir, strategy_dir, check_replicas, options)
    return run_job(_job("merge", source, _Split(Path(out), format, prefix), options), options)


def split(
    ms: PathLike,
    out_dir: PathLike,
    *,
    strategy_dir: PathLike,
    format: str | None = None,
    prefix: str = "checkpoint_",
    **options: Unpack[Options],
) -> Result:
    """Splits one checkpoint into the rank directories of a job. Returns a `Result`."""
    source = open_checkpoint(Path(ms), options.get("step"))
    return run_job(_job("split", source, _Split(Path(out_dir), format, prefix, strategy_dir), options), options)


def reshard(
    ms_dir: PathLike,
    out_dir: PathLike,
    *,
    src_strategy_dir: PathLike,
    dst_strategy_dir: PathLike,
    format: str | None = None,
    prefix: str = "checkpoint_",
    check_replicas: bool = False,
    **options: Unpack[Options],
) -> Result:
    """From the rank directories of one job to those of another, in one pass. Returns a `Result`."""
    source = _sharded(ms_dir, src_strategy_dir, check_replicas, options)
    return run_job(_job("reshard", source, _Split(Path(out_dir), format, prefix, dst_strategy_dir), options), options)


def _sharded(ms_dir: PathLike, strategy_dir: PathLike, check_replicas: bool, options: Options) -> Checkpoint:
    source = open_sharded(Path(ms_dir), read_strategy(Path(strategy_dir)), options.get("step"), check_replicas)
    _check_shapes(source, Path(strategy_dir))
    return source


def _job(verb: str, source: Checkpoint, split: _Split, options: Options) -> Job:
    dtype = parse_target(options.get("dtype"))
    state = [name for name in source.tensors if is_state(name)]
    dropped = set(state) if options.get("weights_only") else set()

    def cast(entry: TensorEntry) -> DType:
        return dtype if dtype is not None and entry.dtype.floating and not is_state(entry.name) else entry.dtype

    conversion = identity(source.tensors, [name for name in source.tensors if name not in dropped], cast)
    place = split.place()
    files = place.lay_out(conversion.specs)
    left_out = {"optimizer state and counters": state} if dropped else {}
    facts = {
        "model": None,
        "from": f"{source.ranks} ranks" if source.shards else "one",
        "to": "one" if split.strategy_dir is None else f"{len(files)} ranks",
        "source_format": source.format,
        "source_tensors": len(source.tensors),
        "dtype": dtype.name if dtype else "keep",
    }
    layouts = tuple(file.layout for file in files)
    notes = (*source.notes, *place.notes(conversion.specs))
    plan = Plan(verb, place.output, layouts, conversion.assemblies(files, source.shards), source.files, {}, left_out, notes, facts)
    return Job(plan, None, None, None)


def _check_shapes(source: Checkpoint, strategy: Path) -> None:
    """Where a mapping table knows the names, the merged shapes must agree over the whole model: most strategies that aren't
    those of the shards show there, as protobuf strategies hold no full shapes. Raises `FormatError`."""
    shapes = {name: entry.shape for name, entry in source.tensors.items() if not is_state(name)}
    contradiction: LayoutError | None = None
    for table in shipped_tables():
        for layout in table.layouts.values():
            if len(recognise_names(layout, shapes)[1]) * 2 > len(shapes):
                continue
            try:
                bind(table, layout, shapes, dict.fromkeys(table.optional.values(), True), "config.json")
                return
            except MissingTensorsError:
                continue
            except LayoutError as error:
                contradiction = contradiction or error
    if contradiction is not None:
        raise FormatError(
            f"{source.path}: merged under {strategy} the tensors contradict each other: {contradiction} "
            "It isn't the strategy of these shards."
        )
