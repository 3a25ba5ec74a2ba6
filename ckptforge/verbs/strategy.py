"""Strategy files computed from a parallel configuration, without compiling the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptforge.dtypes import parse_target
from ckptforge.errors import UsageError
from ckptforge.parallel.compute import compute_strategy
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.strategy_files import Strategy, strategy_bytes
from ckptforge.planning.conversion import convert
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.reading.ranks import open_source
from ckptforge.reading.source import Choices
from ckptforge.spelling import option
from ckptforge.tables.axes import skeleton_of
from ckptforge.tables.state import companion_prefix
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.options import Modelled, PathLike
from ckptforge.verbs.public import public
from ckptforge.verbs.result import Result

if TYPE_CHECKING:
    from typing_extensions import Unpack


@public
def strategy(
    out_dir: PathLike,
    *,
    parallel_config: PathLike,
    like: PathLike,
    layout: str | None = None,
    format: Literal["ckpt", "json"] = "ckpt",
    config: PathLike | None = None,
    **options: Unpack[Modelled],
) -> Result:
    """Writes the strategy files of a job without compiling its network. Returns a `Result`.

    One file for each pipeline stage, `ckpt_strategy_rank_<first rank>.<format>`; `facts["cuts"]` of
    the result say how each kind of tensor is cut.

    Arguments:
        like: a model of the kind and size that the job holds, of Hugging Face or MindSpore, whole.
        layout: the layout that the job's network holds; by default that of `like`, or, where that
            is of Hugging Face, the first MindSpore layout in the table.
        format: "ckpt" (protobuf) or "json".
        dtype: the dtype that the job holds its weights in: "keep", "fp16", "bf16", "fp32" or
            "fp64".

    Raises `ConfigError` with the rule that is broken, the errors of opening `like`, and
    `OutputError`.
    """
    refuse_name(Path(out_dir), directory=True)
    parallel = read_parallel_config(Path(parallel_config))
    shared: dict[str, Any] = {"model": options.get("model"), "step": options.get("step")}
    mapping = options.get("mapping")
    choices = Choices(
        **shared,
        mapping=None if mapping is None else Path(mapping),
        config=None if config is None else Path(config),
        layout_option="layout",
    )
    source = open_source(Path(like), choices)
    source.refuse_unmapped(options.get("allow_unmapped", False))
    table = source.table
    own = source.binding.layout
    target, said = table.mindspore_layout(
        layout or (own.name if own.family == "mindspore" else None)
    )
    if target.family != "mindspore":
        raise UsageError(
            f"{option('layout', target.name)} is a layout of Hugging Face, which has no ranks."
        )
    specs = convert(
        source.binding, target, source.checkpoint.tensors, parse_target(options.get("dtype"))
    ).specs
    computed = compute_strategy(parallel, table, target, source.binding.sizes, specs)
    as_json = format == "json"
    files = {
        f"ckpt_strategy_rank_{stage * computed.devices}.{format}": strategy_bytes(
            stage, layouts, as_json=as_json
        )
        for stage, layouts in enumerate(computed.stages)
    }
    facts = {
        "model": table.name,
        "from": target.name,
        "to": computed.extent,
        "source_format": source.checkpoint.format,
        "source_tensors": len(source.checkpoint.tensors),
        "dtype": "keep",
        "cuts": _cuts(computed),
    }
    plan = Plan(
        "strategy",
        Path(out_dir),
        (),
        (),
        source.checkpoint.files,
        files,
        {},
        (*source.checkpoint.notes, *said),
        facts,
    )
    return run_job(Job(plan, manifest=False), options)


def _cuts(strategy: Strategy) -> list[dict[str, Any]]:
    """A row for each kind of weight (names alike except for numbers) and each way that it is
    cut."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for stage, layouts in enumerate(strategy.stages):
        for name, layout in layouts.items():
            if companion_prefix(name) is not None:
                continue
            row = rows.setdefault(
                (skeleton_of(name)[0], layout),
                {
                    "tensor": name,
                    "count": 0,
                    "stages": [],
                    "shape": list(layout.full_shape or ()),
                    "device_matrix": list(layout.device_matrix),
                    "tensor_map": [axes[0] if axes else -1 for axes in layout.tensor_map],
                    "optimizer_shards": layout.optimizer_shards,
                    "part": list(layout.shape_of_parts(layout.full_shape or ()) or ()),
                },
            )
            row["count"] += 1
            if stage not in row["stages"]:
                row["stages"].append(stage)
    return list(rows.values())
