"""The commands. Each hands its arguments to the verb of the same name and prints what comes back."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from ckptforge.cli import options as opt
from ckptforge.cli.progress import bar
from ckptforge.cli.text import (
    check_text,
    checked_text,
    cleaned_text,
    comparison_text,
    description_text,
    inspection_text,
    result_text,
    tables_text,
    verification_text,
)
from ckptforge.errors import CkptforgeError
from ckptforge.mindformers_flags import CONVERT_OTHERS, TRANSFORM_OTHERS
from ckptforge.spelling import command_line
from ckptforge.version import __version__


class _Examples(click.Command):
    """A command whose help ends with examples, printed as they are."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


@click.group(context_settings=opt.CONTEXT)
@click.version_option(__version__, prog_name="ckptforge")
@click.pass_context
def cli(context: click.Context, /) -> None:
    """Weight conversion and checkpoint surgery for large models.

    Moves models between Hugging Face and MindSpore, and between the layouts of either, in constant memory at the speed of
    the disk. Numbers change only where --dtype says so; what can't be done right is refused.

    \b
    Exit codes: 0 done; 1 bad input, or a check that failed; 2 wrong usage; 130 interrupted.
    """
    context.with_resource(command_line())


def _show(verb: Callable[..., Any], *args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
    with bar(quiet) as progress:
        result = verb(*args, progress=progress, command=_command_line(), **kwargs)
    if as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
    elif not quiet:
        click.echo(result_text(result))


@cli.command(
    "to-ms",
    cls=_Examples,
    examples="""
    ckptforge to-ms hf_dir model.ckpt
    ckptforge to-ms hf_dir model_gmm.ckpt --layout gmm --dtype fp16
    ckptforge to-ms hf_dir model_dir --format safetensors --dry-run
""",
)
@click.argument("hf_dir", type=opt.PATH)
@click.argument("out", type=opt.PATH)
@opt.layout
@opt.strategy("--strategy-dir", "Write the rank directories of the job with this strategy.")
@opt.parallel_config()
@opt.mindspore_output
@opt.config
@opt.planning
@opt.running
def to_ms(**arguments: Any) -> None:
    """Convert a Hugging Face directory to a MindSpore checkpoint.

    HF_DIR holds safetensors and config.json. OUT ending in .ckpt or .safetensors is one file; otherwise a directory that
    gets rank_0/checkpoint_0.ckpt. config.json, tokenizer and the like are kept in a manifest beside the checkpoint.
    """
    from ckptforge import verbs

    _show(verbs.to_ms, arguments.pop("hf_dir"), arguments.pop("out"), **arguments)


@cli.command(
    "to-torch",
    cls=_Examples,
    examples="""
    ckptforge to-torch model.ckpt restored
    ckptforge to-torch trained.ckpt my-model --config hf_dir --dtype bf16
""",
)
@click.argument("ms", type=opt.PATH)
@click.argument("out_dir", type=opt.PATH)
@opt.option("--layout", default="auto", show_default=True, metavar="auto|dense|gmm|…", help="The layout that MS has.")
@opt.option("--hf-layout", metavar="hub|fused", help="The layout to write. [default: as the original directory had it, else hub]")
@opt.strategy("--strategy-dir", "MS holds the rank directories of the job with this strategy.")
@opt.source_config("--parallel-config", "MS")
@opt.shards
@opt.config
@opt.option("--allow-no-config", is_flag=True, help="Write the weights alone where no config.json is known.")
@opt.planning
@opt.running
def to_torch(**arguments: Any) -> None:
    """Convert a MindSpore checkpoint to a Hugging Face directory.

    MS is a .ckpt or .safetensors file, or a directory with one. The directory loads with from_pretrained as it stands.
    Optimizer state and counters are left out, and said.
    """
    from ckptforge import verbs

    _show(verbs.to_torch, arguments.pop("ms"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "convert",
    cls=_Examples,
    examples="""
    ckptforge convert model.ckpt model_gmm.ckpt --to gmm
    ckptforge convert hf_dir fused --to fused
""",
)
@click.argument("source", type=opt.PATH, metavar="IN")
@click.argument("out", type=opt.PATH)
@opt.option("--to", required=True, metavar="LAYOUT", help="The layout to write.")
@opt.option("--from", "from_", metavar="LAYOUT", help="The layout of IN. [default: told from names and shapes]")
@opt.strategy("--src-strategy-dir", "IN holds the rank directories of the job with this strategy.")
@opt.source_config("--src-parallel-config", "IN")
@opt.strategy("--dst-strategy-dir", "Write the rank directories of the job with this strategy.")
@opt.parallel_config("--dst-parallel-config")
@opt.mindspore_output
@opt.shards
@opt.config
@opt.planning
@opt.running
def convert(**arguments: Any) -> None:
    """Convert a checkpoint of any layout to any other layout of its model.

    Optimizer state follows its weights from one MindSpore layout to another.
    """
    from ckptforge import verbs

    _show(verbs.convert, arguments.pop("source"), arguments.pop("out"), **arguments)


@cli.command(
    "merge",
    cls=_Examples,
    examples="""
    ckptforge merge output/checkpoint merged.ckpt --strategy_dir output/strategy
""",
)
@click.argument("ms_dir", type=opt.PATH)
@click.argument("out", type=opt.PATH)
@opt.strategy("--strategy-dir", "The strategy of the job: a file, or the directory of its ranks' files.")
@opt.source_config("--parallel-config", "MS_DIR")
@opt.own_layout
@opt.check_replicas
@opt.mindspore_output
@opt.casting
@opt.source_model
@opt.mapping
@opt.running
def merge(**arguments: Any) -> None:
    """Merge the rank directories of a training job into one checkpoint.

    MS_DIR holds rank_<r>/ directories. Works for any model by a strategy; by the job's parallel configuration for those that a
    mapping knows; and of ranks that ckptforge wrote the manifest says how they are cut. Optimizer state and counters are kept.
    """
    from ckptforge import resharding

    _show(resharding.merge, arguments.pop("ms_dir"), arguments.pop("out"), **arguments)


@cli.command(
    "split",
    cls=_Examples,
    examples="""
    ckptforge split model.ckpt model_dir --strategy_dir strategy
    ckptforge split model.ckpt model_dir --parallel_config predict_model.yaml
""",
)
@click.argument("ms", type=opt.PATH)
@click.argument("out_dir", type=opt.PATH)
@opt.strategy("--strategy-dir", "The strategy of the target job: a file, or a directory.")
@opt.parallel_config()
@opt.own_layout
@opt.mindspore_output
@opt.casting
@opt.mapping
@opt.running
def split(**arguments: Any) -> None:
    """Split one checkpoint into the rank directories of a job.

    Writes OUT_DIR/rank_<r>/checkpoint_<r>.ckpt for every rank. Works for any model by a strategy; by a parallel
    configuration for those that a mapping knows.
    """
    from ckptforge import resharding

    _show(resharding.split, arguments.pop("ms"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "reshard",
    cls=_Examples,
    examples="""
    ckptforge reshard output/checkpoint model_dir --src_strategy_dir output/strategy --dst_strategy_dir mp4_strategy.ckpt
""",
)
@click.argument("ms_dir", type=opt.PATH)
@click.argument("out_dir", type=opt.PATH)
@opt.strategy("--src-strategy-dir", "The strategy that MS_DIR was made under. [default: what its manifest says]")
@opt.source_config("--src-parallel-config", "MS_DIR")
@opt.strategy("--dst-strategy-dir", "The strategy of the target job.")
@opt.parallel_config("--dst-parallel-config")
@opt.own_layout
@opt.check_replicas
@opt.mindspore_output
@opt.casting
@opt.source_model
@opt.mapping
@opt.running
def reshard(**arguments: Any) -> None:
    """From the rank directories of one job to those of another, in one pass.

    The numbers of devices need not divide each other. Works for any model.
    """
    from ckptforge import resharding

    _show(resharding.reshard, arguments.pop("ms_dir"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "strategy",
    cls=_Examples,
    examples="""
    ckptforge strategy output/strategy --parallel_config finetune_model.yaml --like hf_dir
    ckptforge strategy strategy_mp8 --parallel_config mp8.yaml --like model.ckpt --format json
""",
)
@click.argument("out_dir", type=opt.PATH)
@opt.parallel_config(required=True)
@opt.option("--like", type=opt.PATH, required=True, metavar="HF_DIR_OR_MS", help="A model of the kind and size that the job holds.")
@opt.option(
    "--layout",
    metavar="dense|gmm|mcore|…",
    help="How the job's network holds it. [default: as MS does; for HF_DIR the first MindSpore layout in `ckptforge mapping list`]",
)
@opt.option("--format", type=click.Choice(["ckpt", "json"]), default="ckpt", show_default=True, help="Format of the strategy files.")
@opt.option(
    "--dtype", default="keep", show_default=True, metavar="keep|fp16|bf16|fp32", help="The dtype that the job holds its weights in."
)
@opt.config
@opt.mapping
@opt.option("--step", type=int, metavar="N", help="Of several checkpoints in a directory, the one of this step. [default: the last]")
@opt.running
def strategy(**arguments: Any) -> None:
    """Write the strategy files of a job without compiling its network.

    One file for each pipeline stage, as MindSpore would save it, by data, model, expert and pipeline parallelism, vocab_emb_dp,
    optimizer parallelism, layer offsets and interleave.
    """
    from ckptforge import strategies

    _show(strategies.strategy, arguments.pop("out_dir"), **arguments)


@cli.command(
    "inspect",
    cls=_Examples,
    examples="""
    ckptforge inspect hf_dir
    ckptforge inspect model.ckpt --tensors
""",
)
@click.argument("path", type=opt.PATH)
@opt.strategy("--strategy-dir", "PATH holds the rank directories of the job with this strategy: shows which rank holds what.")
@opt.source_config("--parallel-config", "PATH")
@opt.own_layout
@opt.source_model
@opt.option("--tensors", is_flag=True, help="List every tensor.")
@opt.option("--model", metavar="NAME", help="The mapping to use. [default: told from config.json or the tensor names]")
@opt.option("--mapping", type=opt.PATH, metavar="FILE", help="A mapping table of your own.")
@opt.option("--step", type=int, metavar="N", help="Of several checkpoints in a directory, the one of this step.")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def inspect(path: Path, tensors: bool, as_json: bool, **arguments: Any) -> None:
    """Show what is in a checkpoint: format, model, layout, dtypes, sizes, ranks."""
    from ckptforge.inspection import inspect as look

    found = look(path, **arguments)
    click.echo(json.dumps(found.to_json(), ensure_ascii=False) if as_json else inspection_text(found, tensors))


@cli.command(
    "compare",
    cls=_Examples,
    examples="""
    ckptforge compare hf_dir model.ckpt
    ckptforge compare model.ckpt model_fp16.ckpt --after-cast fp16
    ckptforge compare hf_dir output/checkpoint --strategy_dir_b output/strategy
    ckptforge compare model.ckpt
""",
)
@click.argument("a", type=opt.PATH)
@click.argument("b", type=opt.PATH, required=False, metavar="[B]")
@opt.strategy("--strategy-dir-a", "A holds the rank directories of the job with this strategy.")
@opt.strategy("--strategy-dir-b", "The same for B.")
@opt.source_config("--parallel-config-a", "A")
@opt.source_config("--parallel-config-b", "B")
@opt.option("--layout-a", metavar="LAYOUT", help="The layout of A. [default: told from names and shapes]")
@opt.option("--layout-b", metavar="LAYOUT", help="The layout of B.")
@opt.option("--after-cast", metavar="fp16|bf16|fp32", help="Cast A's floating-point weights to this first.")
@opt.option("--weights-only", is_flag=True, help="Pass over optimizer state and counters.")
@opt.config
@opt.mapping
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@opt.option("--workers", type=int, metavar="N", help="Threads that read. [default: one per core, at most 8]")
@opt.option("--memory", metavar="SIZE", help="Buffers of all workers together. [default: 134MB]")
@opt.option("--quiet", is_flag=True, help="Print nothing but errors (and the JSON object).")
@click.pass_context
def compare(context: click.Context, /, a: Path, b: Path | None, as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Compare two checkpoints tensor by tensor, bit by bit, through the mapping.

    A and B may have any format, layout and split: A is brought into B's layout in passing. Without B, A is an output of
    ckptforge's and is compared with its manifest. Exit code 0: the same; 1: not.
    """
    with bar(quiet) as progress:
        if b is None:
            from ckptforge.checking import check

            running = {name: arguments.pop(name) for name in ("workers", "memory")}
            if given := [name for name, value in arguments.items() if value]:
                raise click.UsageError(f"--{given[0]} needs a second checkpoint.")
            found: Any = check(a, progress=progress, **running)
            text = check_text(found)
        else:
            from ckptforge.comparing import compare as compare_two

            found = compare_two(a, b, progress=progress, **arguments)
            text = comparison_text(found)
    if as_json:
        content = found.to_json()
        if not found.equal:
            content["error"] = {"type": "Different", "message": text.splitlines()[-1]}
        click.echo(json.dumps(content, ensure_ascii=False))
    elif not quiet:
        click.echo(text)
    context.exit(0 if found.equal else 1)


@cli.command(
    "verify",
    cls=_Examples,
    examples="""
    ckptforge verify hf_dir model.ckpt
    ckptforge verify hf_dir output/checkpoint --strategy_dir output/strategy --report verify.html
    ckptforge verify hf_dir model.ckpt --layers 0,1,31 --tokens 64
""",
)
@click.argument("hf_dir", type=opt.PATH)
@click.argument("ms", type=opt.PATH)
@opt.strategy("--strategy-dir", "MS holds the rank directories of the job with this strategy.")
@opt.source_config("--parallel-config", "MS")
@opt.option("--layout", metavar="dense|gmm|…", help="The layout that MS has. [default: told from names and shapes]")
@opt.option("--device", default="cpu", show_default=True, metavar="cpu|ascend[:N]", help="Where MindSpore computes.")
@opt.option("--compute", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True, help="Precision on both sides.")
@opt.option("--layers", metavar="0,1,31", help="Check only these layers. [default: all, and the logits]")
@opt.option("--tokens", metavar="N|ID,ID,…", help="How many random tokens, or the tokens. [default: 256 for small models, else 32]")
@opt.option("--text", metavar="TEXT", help="Tokens from a text, by the tokenizer in HF_DIR.")
@opt.option("--generate", type=click.IntRange(0, 1000), default=0, metavar="N", help="Continue greedily by N tokens on both sides.")
@opt.option("--report", type=opt.PATH, metavar="FILE.html", help="Also write a page with pictures of error and expert coverage.")
@opt.option("--overwrite", is_flag=True, help="Replace an existing report.")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@opt.option("--quiet", is_flag=True, help="Print nothing but errors (and the JSON object).")
@click.pass_context
def verify(
    context: click.Context,
    /,
    hf_dir: Path,
    ms: Path,
    layers: str | None,
    tokens: str | None,
    report: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **arguments: Any,
) -> None:
    """Run the same tokens through transformers and through MindSpore, and compare.

    Needs torch, transformers and mindspore; weights are streamed, expert by expert. Each layer gets the reference's input
    and must give its output; then the logits, end to end. Exit code 0: passed; 1: not.
    """
    from ckptforge.engine.output_name import refuse_address
    from ckptforge.errors import OutputError
    from ckptforge.forward.device import parse_device
    from ckptforge.forward.verification import verify as check

    parse_device(arguments["device"])
    if report is not None:
        refuse_address(report)
    if report is not None and report.exists() and not overwrite:
        raise OutputError(f"{report}: exists already; give --overwrite to replace it.")
    say = (lambda text: click.echo(text, err=True)) if not quiet and sys.stderr.isatty() else (lambda text: None)
    given = opt.integers(tokens, "--tokens")
    found = check(
        hf_dir,
        ms,
        layers=opt.integers(layers, "--layers"),
        tokens=given[0] if given is not None and len(given) == 1 else given,
        say=say,
        **arguments,
    )
    if report is not None:
        from ckptforge.engine.single_file import write_file
        from ckptforge.forward.report import html_page

        write_file(report, html_page(found).encode())
    if as_json:
        content = found.to_json()
        if not found.passed:
            content["error"] = {"type": "VerifyFailed", "message": verification_text(found).splitlines()[-1]}
        click.echo(json.dumps(content, ensure_ascii=False))
    elif not quiet:
        click.echo(verification_text(found))
    context.exit(0 if found.passed else 1)


def _show_call(make: Callable[[], Any], as_json: bool, quiet: bool, **running: Any) -> None:
    """Runs what a drop-in's flags mean, and says which command of ours that is."""
    call = make()
    with bar(quiet) as progress:
        result = call.run(progress=progress, command=_command_line(), **running)
    if as_json:
        click.echo(json.dumps({**result.to_json(), "command": call.command}, ensure_ascii=False))
    elif not quiet:
        click.echo(f"the same as: {call.command}")
        click.echo(result_text(result))


@cli.command(
    "convert-weight",
    cls=_Examples,
    examples="""
    ckptforge convert-weight --model NAME --input_path hf_dir --output_path model.ckpt --dtype fp16
    ckptforge convert-weight --model NAME --reversed --input_path model.ckpt --output_path hf_dir/ --dtype fp16
    ckptforge convert-weight --use_gmm=True --dtype=fp16 --torch_ckpt_dir=hf_dir --mindspore_ckpt_path=model.ckpt
""",
)
@opt.option("--model", metavar="NAME", help="The mapping to use, or MindFormers' name of it.")
@opt.option("--input-path", metavar="PATH", help="A Hugging Face directory; with --reversed a MindSpore checkpoint.")
@opt.option("--output-path", metavar="PATH", help="The .ckpt file; with --reversed a directory.")
@opt.option("--reversed", is_flag=True, help="From MindSpore to Hugging Face.")
@opt.option("--strategy-dir", metavar="DIR", help="With --reversed: the strategy of the rank directories in --input_path.")
@opt.option(
    "--torch-ckpt-dir",
    "--torch-ckpt-idr",
    "--torch-ckpt-path",
    "--huggingface-ckpt-path",
    "torch_ckpt_dir",
    metavar="DIR",
    help="A Hugging Face directory.",
)
@opt.option("--mindspore-ckpt-path", metavar="FILE", help="The .ckpt file to write; with --reversed to read.")
@opt.option("--pre-ckpt-path", metavar="FILE", help="A MindSpore checkpoint to bring into another layout.")
@opt.option("--use-gmm", type=bool, metavar="True|False", help="Write the GMM layout. [default: True from --pre_ckpt_path, else False]")
@opt.option("--qkv-concat", type=bool, metavar="True|False", help="Write joined q, k and v; --layout says in which order.")
@opt.option(
    "--layout",
    metavar="dense|gmm|mcore|…",
    help="How MindSpore is to hold the model; with --reversed how it does. [default: the model's first MindSpore layout in "
    "`ckptforge mapping list`; with --reversed told from names and shapes]",
)
@opt.option(
    "--dtype", type=click.Choice(["fp16", "bf16", "fp32"]), help="[default: fp32 with --input_path, fp16 with --torch_ckpt_dir, else kept]"
)
@opt.option("--save-format", type=click.Choice(["ckpt", "safetensors"]), help="Format of an output directory.")
@opt.option("--config", "--config-path", metavar="PATH", help="A config.json or its directory; MindFormers' YAML isn't needed.")
@opt.others(CONVERT_OTHERS)
@opt.option("--allow-overflow", is_flag=True, help="Write infinities where a cast makes them out of finite values.")
@opt.running
def convert_weight(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """MindFormers' convert_weight.py, with the same flags.

    Those of the unified script (--input_path, --output_path, --reversed, --strategy_dir) and of the scripts of one model
    (--torch_ckpt_dir, --pre_ckpt_path, --mindspore_ckpt_path, --use_gmm). Flags that aren't needed here, such as sizes, are
    taken with a note; those that can't be honoured are refused with the reason.
    """
    from ckptforge import dropins

    running = {name: arguments.pop(name) for name in ("overwrite", "resume", "dry_run", "workers", "memory", "no_hash", "allow_overflow")}
    others = opt.given(arguments, CONVERT_OTHERS)
    flags = dropins.ConvertFlags(**arguments, others=others)
    _show_call(lambda: dropins.convert_weight(flags), as_json, quiet, **running)


@cli.command(
    "transform-ckpt",
    cls=_Examples,
    examples="""
    ckptforge transform-ckpt --src_ckpt_strategy output/strategy/ --src_ckpt_dir output/checkpoint/ --dst_ckpt_dir merged --prefix model_
    ckptforge transform-ckpt --src_checkpoint model.ckpt --dst_checkpoint sliced --dst_strategy output/strategy/
""",
)
@click.argument("words", nargs=-1, metavar="[SRC SRC_STRATEGY DST DST_STRATEGY WORLD_SIZE PROCESS_NUM [PREFIX]]")
@opt.option(
    "--src-ckpt-strategy",
    "--src-strategy",
    "src_ckpt_strategy",
    metavar="DIR_OR_FILE",
    help="The strategy of the input; None: it is whole.",
)
@opt.option(
    "--dst-ckpt-strategy", "--dst-strategy", "dst_ckpt_strategy", metavar="DIR_OR_FILE", help="The strategy of the output; None: merge."
)
@opt.option(
    "--src-ckpt-dir",
    "--src-checkpoint",
    "--src-checkpoint-dir",
    "--src-ckpt-path-or-dir",
    "src_ckpt_dir",
    metavar="PATH",
    help="The rank_<r> directories to read, or a whole checkpoint.",
)
@opt.option(
    "--dst-ckpt-dir",
    "--dst-checkpoint",
    "--dst-checkpoint-dir",
    "dst_ckpt_dir",
    metavar="DIR",
    help="Where rank_<r>/<prefix><r>.ckpt go. [default: transformed_checkpoint]",
)
@opt.option("--prefix", default="checkpoint_", show_default=True, metavar="P", help="Beginning of the output files' names.")
@opt.option(
    "--save-format", "--format", "--output-format", "save_format", type=click.Choice(["ckpt", "safetensors"]), help="[default: ckpt]"
)
@opt.others(TRANSFORM_OTHERS)
@opt.running
def transform_ckpt(words: tuple[str, ...], as_json: bool, quiet: bool, **arguments: Any) -> None:
    """MindFormers' transform_ckpt.py and transform_checkpoint.py, with the same flags: merge, split or reshard, by the
    strategies given.

    The arguments of transform_checkpoint.sh are taken too. One call writes all ranks, straight into DST: --rank_id,
    --world_size, --transform_process_num and the like are taken with a note.
    """
    from ckptforge import dropins

    running = {name: arguments.pop(name) for name in ("overwrite", "resume", "dry_run", "workers", "memory", "no_hash")}
    others = opt.given(arguments, TRANSFORM_OTHERS)
    flags = dropins.TransformFlags(**arguments, others=others)
    _show_call(lambda: dropins.transform_ckpt(flags.with_words(words)), as_json, quiet, **running)


@cli.group("mapping")
def mapping() -> None:
    """Show and check the mapping tables: which tensors a model has in each layout."""


@mapping.command("list")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def mapping_list(as_json: bool) -> None:
    """The tables that come with ckptforge, and their layouts."""
    from dataclasses import asdict

    from ckptforge.tables import list_tables

    found = list_tables()
    click.echo(json.dumps({"ok": True, "tables": [asdict(one) for one in found]}) if as_json else tables_text(found))


@mapping.command(
    "show",
    cls=_Examples,
    examples="""
    ckptforge mapping show NAME
    ckptforge mapping show my-table.toml --layout mcore
""",
)
@click.argument("name")
@opt.option("--layout", metavar="LAYOUT", help="[default: MindSpore's first]")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def mapping_show(name: str, layout: str | None, as_json: bool) -> None:
    """Names, axes, operations and sharding of one layout. NAME is a shipped table, or a .toml file."""
    from dataclasses import asdict

    from ckptforge.tables import describe

    found = describe(name, layout)
    click.echo(json.dumps({"ok": True, **asdict(found)}, ensure_ascii=False) if as_json else description_text(found))


@mapping.command(
    "check",
    cls=_Examples,
    examples="""
    ckptforge mapping check my-table.toml
    ckptforge mapping check my-table.toml --config hf_dir/config.json
""",
)
@click.argument("file", metavar="FILE")
@opt.option("--config", type=opt.PATH, metavar="JSON", help="A config.json, or its directory: count tensors and parameters.")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def mapping_check(file: str, config: Path | None, as_json: bool) -> None:
    """Check a table: everything that loading checks, and what a model of a config.json has in each layout.

    FILE is a .toml file, or the name of a shipped table.
    """
    from ckptforge.tables import check_table

    found = check_table(file, config)
    click.echo(json.dumps(found.to_json()) if as_json else checked_text(found))


@mapping.command("schema")
def mapping_schema() -> None:
    """The JSON schema of tables, for editors."""
    from ckptforge.tables import table_schema

    click.echo(table_schema())


@cli.command(
    "clean",
    cls=_Examples,
    examples="""
    ckptforge clean output
    ckptforge clean output --dry-run
""",
)
@click.argument("directory", type=opt.PATH, metavar="DIR")
@opt.option("--dry-run", is_flag=True, help="Say what is there and remove nothing.")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@opt.option("--quiet", is_flag=True, help="Print nothing but errors (and the JSON object).")
def clean(directory: Path, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Remove what interrupted or killed runs left in DIR.

    Those are hidden directories .NAME.ckptforge beside the outputs that were being made. One that a living run holds is let alone.
    """
    from ckptforge.cleaning import clean as remove

    found = remove(directory, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False))
    elif not quiet:
        click.echo(cleaned_text(found))
    if not found.ok:
        sys.exit(1)


@cli.command(
    "demo",
    cls=_Examples,
    examples="""
    ckptforge demo
    ckptforge demo my-demo
""",
)
@click.argument("directory", type=opt.PATH, required=False, metavar="[DIR]")
@opt.option("--overwrite", is_flag=True, help="Replace an earlier demo in DIR.")
@opt.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo(directory: Path | None, overwrite: bool, as_json: bool) -> None:
    """Make a tiny model, convert it both ways, check the results, and show what was done.

    DIR is kept; without it everything happens in a temporary directory.
    """
    from ckptforge.demo import run_demo

    found = run_demo(directory, overwrite, (lambda _: None) if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))


def _fail(error: Exception, as_json: bool) -> NoReturn:
    """Ends with one error on stderr, or as a JSON object on stdout, and its exit code."""
    code = getattr(error, "exit_code", 1)
    message = " ".join([error.format_message() if isinstance(error, click.ClickException) else str(error), *_notes(error)])
    if as_json:
        click.echo(json.dumps({"ok": False, "error": {"type": type(error).__name__, "message": message}}, ensure_ascii=False))
    elif isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo(f"ckptforge: {message}", err=True)
    sys.exit(code)


def _stopped(error: BaseException, how: str, code: int, as_json: bool) -> NoReturn:
    message = " ".join([f"{how}.", *_notes(error)])
    with suppress(OSError):  # after a hangup there may be nobody to tell
        if as_json:
            click.echo(json.dumps({"ok": False, "error": {"type": how.capitalize(), "message": message}}, ensure_ascii=False))
        click.echo(f"ckptforge: {message}", err=True)
    sys.exit(code)


def _notes(error: BaseException | None) -> list[str]:
    """What was noted on an error, or on the one that click made it of."""
    found: list[str] = []
    while error is not None:
        found += getattr(error, "__notes__", [])
        error = error.__cause__
    return found


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal came that ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _: object) -> NoReturn:
    for other in _SIGNALS:  # those that follow, as wrappers send several, find a run that is ending
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)


def _command_line() -> str:
    return shlex.join(["ckptforge", *(word for word in sys.argv[1:] if word != "--resume")])


def main() -> None:
    """The entry point: no traceback reaches a user for bad input."""
    as_json = "--json" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    try:
        code = cli.main(prog_name="ckptforge", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        _stopped(error, "interrupted", 130, as_json)
    except _Stopped as error:
        _stopped(error, "terminated", 128 + error.number, as_json)
    except (CkptforgeError, click.ClickException) as error:
        _fail(error, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        _fail(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)
