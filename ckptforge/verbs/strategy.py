"""Strategy files computed from a parallel configuration, without compiling the network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ckptforge.errors import UsageError
from ckptforge.formats.layout import specs_of
from ckptforge.model import Account
from ckptforge.planning.lower import Assemblies
from ckptforge.planning.plan import Plan
from ckptforge.publish.output_name import refuse_name
from ckptforge.spelling import command, option
from ckptforge.tables.convert import convert
from ckptforge.tables.skeletons import skeleton_of
from ckptforge.tables.state import companion_prefix
from ckptforge.targets.target import facts_of
from ckptforge.verbs.choices import choices_of
from ckptforge.verbs.job import Job, run_job
from ckptforge.verbs.options import Strategy as StrategyOptions
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.parts import lines_of
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import compute_strategy, open_source
from ckptforge.verbs.result import Result

if TYPE_CHECKING:
    from ckptforge.parallel.strategy_files import Strategy


@verb(StrategyOptions)
def strategy(options: StrategyOptions) -> Result:
    """Writes the strategy files of a job without compiling its network. Returns a `Result`.

    One file for each pipeline stage, `ckpt_strategy_rank_<first rank>.<format>`; `facts["cuts"]` of
    the result say how each kind of tensor is cut.

    Raises `ConfigError` with the rule that is broken, the errors of opening `like`, and
    `OutputError`.
    """
    from ckptforge.parallel.config_file import read_parallel_config
    from ckptforge.parallel.join import held_by_ranks

    refuse_name(options.out_dir, directory=True)
    parallel = read_parallel_config(options.parallel_config)
    source = open_source(options.like, choices_of(options, {}))
    source.refuse_unmapped(options.allow_unmapped, options.drop)
    table = source.table
    own = source.binding.layout
    target, layout_notes = table.mindspore_layout(
        options.layout or (own.name if own.family == "mindspore" else None)
    )
    if target.family != "mindspore":
        raise UsageError(
            f"{option('layout', target.name)} is a layout of Hugging Face, which has no ranks."
        )
    if parallel.mesh is not None:
        raise UsageError(
            f"{options.parallel_config}: is of MindFormers' PyNative trainer, which has no "
            f"strategy files; {command('split')} with {option('format', 'mindformers')} writes "
            "what it loads."
        )
    dtype = parse_target(options.dtype)
    values = convert(source.binding, target, source.model.values, dtype, partly=True).values
    computed = compute_strategy(parallel, source, target, specs_of(values))
    parts = [asdict(one) for one in lines_of(held_by_ranks(values, computed))]
    facts = facts_of(source.model, table.name, target.name, computed.extent, None)
    plan = Plan(
        verb="strategy",
        output=options.out_dir,
        assemblies=Assemblies({}, ()),
        sources=source.model.files,
        small_files=_files(computed, options.format),
        account=Account().noting(*source.model.notes, *layout_notes),
        facts={**facts, "cuts": _cuts(computed), "parts": parts},
    )
    return run_job(Job(plan, manifest=False), options)


def _files(strategy: Strategy, format: str) -> dict[str, bytes]:
    """A strategy file for each stage, named after its first rank."""
    from ckptforge.parallel.strategy_files import strategy_bytes

    return {
        f"ckpt_strategy_rank_{stage * strategy.devices}.{format}": strategy_bytes(
            stage, layouts, as_json=format == "json"
        )
        for stage, layouts in enumerate(strategy.stages)
    }


def _cuts(strategy: Strategy) -> list[dict[str, Any]]:
    """A row for each kind of weight (names alike but for numbers) and way to cut it."""
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
