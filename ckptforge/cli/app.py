"""The commands. Each hands its arguments to the verb of the same name and prints what comes
back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptforge.cli import options as opt
from ckptforge.cli import progress as progressing
from ckptforge.cli.command import Command, Group
from ckptforge.cli.completion import dtypes, layouts
from ckptforge.cli.console import print_json, print_result, this_command
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
from ckptforge.spelling import command_line, option
from ckptforge.verbs.mindformers_flags import CONVERT_OTHERS, TRANSFORM_OTHERS
from ckptforge.version import __version__

_VERSION = f"ckptforge {__version__}"
_EPILOG = """\b
Exit codes: 0 done; 1 bad input, or a check that failed; 2 wrong usage;
128 + the number of the signal that ended it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP).
Options are written with - or with _: --dry-run and --dry_run are the same."""


@click.group(cls=Group, context_settings=opt.CONTEXT, epilog=_EPILOG)
@click.version_option(__version__, message=_VERSION)
@click.pass_context
def cli(context: click.Context, /) -> None:
    """Convert model weights between Hugging Face and MindSpore/MindFormers, and reshard any
    MindSpore checkpoint for another parallel configuration.

    Works in constant memory. Numbers change only where --dtype says so; what can't be done right is
    refused.
    """
    context.with_resource(command_line())


@cli.command("version")
def version() -> None:
    """Print the version."""
    click.echo(_VERSION)


def _show(verb: Callable[..., Any], *args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
    with progressing.shown(quiet, "copying") as progress:
        result = verb(*args, progress=progress, command=this_command(), **kwargs)
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        print_result(result_text(result))


@cli.command(
    "to-ms",
    cls=Command,
    examples="""
    ckptforge to-ms hf_dir model.ckpt
    ckptforge to-ms hf_dir model_gmm.ckpt --layout gmm --dtype fp16
    ckptforge to-ms hf_dir model_dir --format safetensors --dry-run
""",
)
@click.argument("hf_dir", type=opt.PATH)
@click.argument("out", type=opt.PATH)
@opt.layout
@opt.strategy("--strategy-dir", "Write rank directories for the job with this strategy.")
@opt.parallel_config()
@opt.mindspore_output
@opt.config
@opt.planning
@opt.running
def to_ms(**arguments: Any) -> None:
    """Convert a Hugging Face directory to a MindSpore checkpoint.

    HF_DIR holds safetensors and config.json. OUT ending in .ckpt or .safetensors is one file;
    otherwise a directory that gets rank_0/checkpoint_0.ckpt. config.json, tokenizer and the like
    are kept in a manifest beside the checkpoint.
    """
    from ckptforge.verbs import convert as verbs

    _show(verbs.to_ms, arguments.pop("hf_dir"), arguments.pop("out"), **arguments)


@cli.command(
    "to-torch",
    cls=Command,
    examples="""
    ckptforge to-torch model.ckpt restored
    ckptforge to-torch trained.ckpt my-model --config hf_dir --dtype bf16
""",
)
@click.argument("ms", type=opt.PATH)
@click.argument("out_dir", type=opt.PATH)
@opt.option(
    "--layout",
    default="auto",
    show_default=True,
    metavar="auto|dense|gmm|…",
    shell_complete=layouts("mindspore", "auto"),
    help="The layout that MS has.",
)
@opt.option(
    "--hf-layout",
    metavar="hub|fused",
    shell_complete=layouts("huggingface"),
    help="The layout to write. [default: as the original directory had it, else hub]",
)
@opt.strategy("--strategy-dir", "MS holds the rank directories of the job with this strategy.")
@opt.source_config("--parallel-config", "MS")
@opt.shards
@opt.config
@opt.option(
    "--allow-no-config", is_flag=True, help="Write the weights alone where no config.json is known."
)
@opt.planning
@opt.running
def to_torch(**arguments: Any) -> None:
    """Convert a MindSpore checkpoint to a Hugging Face directory.

    MS is a .ckpt or .safetensors file, or a directory with one. The directory loads with
    from_pretrained as it stands. Optimizer state and counters are dropped and reported.
    """
    from ckptforge.verbs import convert as verbs

    _show(verbs.to_torch, arguments.pop("ms"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "convert",
    cls=Command,
    examples="""
    ckptforge convert model.ckpt model_gmm.ckpt --to gmm
    ckptforge convert hf_dir fused --to fused
""",
)
@click.argument("source", type=opt.PATH, metavar="IN")
@click.argument("out", type=opt.PATH)
@opt.option(
    "--to", required=True, metavar="LAYOUT", shell_complete=layouts(), help="The layout to write."
)
@opt.option(
    "--from",
    "from_",
    metavar="LAYOUT",
    shell_complete=layouts(),
    help="The layout of IN. [default: detected from names and shapes]",
)
@opt.strategy("--src-strategy-dir", "IN holds the rank directories of the job with this strategy.")
@opt.source_config("--src-parallel-config", "IN")
@opt.strategy("--dst-strategy-dir", "Write rank directories for the job with this strategy.")
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
    from ckptforge.verbs import convert as verbs

    _show(verbs.convert, arguments.pop("source"), arguments.pop("out"), **arguments)


@cli.command(
    "merge",
    cls=Command,
    examples="""
    ckptforge merge output/checkpoint merged.ckpt --strategy-dir output/strategy
""",
)
@click.argument("ms_dir", type=opt.PATH)
@click.argument("out", type=opt.PATH)
@opt.strategy(
    "--strategy-dir", "The strategy of the job: a file, or the directory of its ranks' files."
)
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

    MS_DIR holds rank_<r>/ directories. Works for any model by a strategy; by the job's parallel
    configuration for those that a mapping knows; and of ranks that ckptforge wrote the manifest
    says how they are cut. Optimizer state and counters are kept.
    """
    from ckptforge.verbs import reshard as resharding

    _show(resharding.merge, arguments.pop("ms_dir"), arguments.pop("out"), **arguments)


@cli.command(
    "split",
    cls=Command,
    examples="""
    ckptforge split model.ckpt model_dir --strategy-dir strategy
    ckptforge split model.ckpt model_dir --parallel-config predict_model.yaml
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

    Writes OUT_DIR/rank_<r>/checkpoint_<r>.ckpt for every rank. Works for any model by a strategy;
    by a parallel configuration for those that a mapping knows.
    """
    from ckptforge.verbs import reshard as resharding

    _show(resharding.split, arguments.pop("ms"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "reshard",
    cls=Command,
    examples="""
    ckptforge reshard output/checkpoint model_dir --src-strategy-dir output/strategy --dst-strategy-dir mp4_strategy.ckpt
""",  # noqa: E501
)
@click.argument("ms_dir", type=opt.PATH)
@click.argument("out_dir", type=opt.PATH)
@opt.strategy(
    "--src-strategy-dir",
    "The strategy that MS_DIR was made under. [default: what its manifest says]",
)
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
    """Reshard the rank directories of one job for another, in one pass.

    The numbers of devices need not divide each other. Works for any model.
    """
    from ckptforge.verbs import reshard as resharding

    _show(resharding.reshard, arguments.pop("ms_dir"), arguments.pop("out_dir"), **arguments)


@cli.command(
    "strategy",
    cls=Command,
    examples="""
    ckptforge strategy output/strategy --parallel-config finetune_model.yaml --like hf_dir
    ckptforge strategy strategy_mp8 --parallel-config mp8.yaml --like model.ckpt --format json
""",
)
@click.argument("out_dir", type=opt.PATH)
@opt.parallel_config(required=True)
@opt.option(
    "--like",
    type=opt.PATH,
    required=True,
    metavar="HF_DIR_OR_MS",
    help="A model of the kind and size that the job holds.",
)
@opt.option(
    "--layout",
    metavar="dense|gmm|mcore|…",
    shell_complete=layouts("mindspore"),
    help="How the job's network holds it. [default: as MS does; for HF_DIR the first MindSpore "
    "layout in `ckptforge mapping list`]",
)
@opt.option(
    "--format",
    type=opt.Choice(["ckpt", "json"]),
    default="ckpt",
    show_default=True,
    help="Format of the strategy files.",
)
@opt.option(
    "--dtype",
    default="keep",
    show_default=True,
    metavar="keep|fp16|bf16|fp32",
    shell_complete=dtypes("keep"),
    help="The dtype that the job holds its weights in.",
)
@opt.config
@opt.mapping
@opt.option(
    "--step",
    type=int,
    metavar="N",
    help="Training step to use when a directory holds several. [default: the last]",
)
@opt.running
def strategy(**arguments: Any) -> None:
    """Write the strategy files of a job without compiling its network.

    One file for each pipeline stage, as MindSpore would save it, by data, model, expert and
    pipeline parallelism, vocab_emb_dp, optimizer parallelism, layer offsets and interleave.
    """
    from ckptforge.verbs import strategy as strategies

    _show(strategies.strategy, arguments.pop("out_dir"), **arguments)


@cli.command(
    "inspect",
    cls=Command,
    examples="""
    ckptforge inspect hf_dir
    ckptforge inspect model.ckpt --tensors
""",
)
@click.argument("path", type=opt.PATH)
@opt.strategy(
    "--strategy-dir",
    "PATH holds the rank directories of the job with this strategy: shows which rank holds what.",
)
@opt.source_config("--parallel-config", "PATH")
@opt.own_layout
@opt.source_model
@opt.option("--tensors", is_flag=True, help="List every tensor.")
@opt.model()
@opt.option(
    "--mapping",
    type=opt.PATH,
    metavar="FILE",
    help="A mapping table of your own (docs/mappings.md).",
)
@opt.option(
    "--step",
    type=int,
    metavar="N",
    help="Training step to use when a directory holds several. [default: the last]",
)
@opt.as_json()
@opt.saying()
def inspect(path: Path, tensors: bool, as_json: bool, quiet: bool, **arguments: Any) -> None:
    """Show what is in a checkpoint: format, model, layout, dtypes, sizes, ranks."""
    from ckptforge.verbs.inspection import inspect as look

    found = look(path, **arguments)
    if as_json:
        print_json({"verb": "inspect", **found.to_json()})
    elif not quiet:
        print_result(inspection_text(found, tensors))


@cli.command(
    "compare",
    cls=Command,
    examples="""
    ckptforge compare hf_dir model.ckpt
    ckptforge compare model.ckpt model_fp16.ckpt --after-cast fp16
    ckptforge compare hf_dir output/checkpoint --strategy-dir-b output/strategy
    ckptforge compare model.ckpt
""",
)
@click.argument("a", type=opt.PATH)
@click.argument("b", type=opt.PATH, required=False, metavar="[B]")
@opt.strategy("--strategy-dir-a", "A holds the rank directories of the job with this strategy.")
@opt.strategy("--strategy-dir-b", "B holds the rank directories of the job with this strategy.")
@opt.source_config("--parallel-config-a", "A")
@opt.source_config("--parallel-config-b", "B")
@opt.option(
    "--layout-a",
    metavar="LAYOUT",
    shell_complete=layouts(),
    help="The layout of A. [default: detected from names and shapes]",
)
@opt.option("--layout-b", metavar="LAYOUT", shell_complete=layouts(), help="The layout of B.")
@opt.option(
    "--after-cast",
    metavar="fp16|bf16|fp32|fp64",
    shell_complete=dtypes(),
    help="Cast A's floating-point weights to this first.",
)
@opt.trim_vocab
@opt.option("--weights-only", is_flag=True, help="Ignore optimizer state and counters.")
@opt.config
@opt.mapping
@opt.as_json()
@opt.option(
    "--workers",
    type=int,
    metavar="N",
    help="Number of worker threads. [default: one per core, at most 8]",
)
@opt.option(
    "--memory", metavar="SIZE", help="Memory for the buffers of all workers. [default: 128MiB]"
)
@opt.saying()
@click.pass_context
def compare(
    context: click.Context, /, a: Path, b: Path | None, as_json: bool, quiet: bool, **arguments: Any
) -> None:
    """Compare two checkpoints tensor by tensor, bit by bit, through the mapping.

    A and B may have any format, layout and split: A is brought into B's layout in passing. Without
    B, A is an output of ckptforge and is compared with its manifest. Exit code 0: the same; 1: not.
    """
    with progressing.shown(quiet, "comparing") as progress:
        if b is None:
            from ckptforge.verbs.check import check

            running = {name: arguments.pop(name) for name in ("workers", "memory")}
            if given := [name for name, value in arguments.items() if value]:
                raise click.UsageError(f"{option(given[0])} needs a second checkpoint, B.", context)
            found: Any = check(a, progress=progress, **running)
            text = check_text(found)
        else:
            from ckptforge.verbs.compare import compare as compare_two

            found = compare_two(a, b, progress=progress, **arguments)
            text = comparison_text(found)
    if as_json:
        different = None if found.equal else text.splitlines()[-1]
        print_json(found.to_json(), "same" if found.equal else "different", different, "Different")
    elif not quiet:
        print_result(text, failed=not found.equal)
    context.exit(0 if found.equal else 1)


@cli.command(
    "verify",
    cls=Command,
    examples="""
    ckptforge verify hf_dir model.ckpt
    ckptforge verify hf_dir output/checkpoint --strategy-dir output/strategy --report verify.html
    ckptforge verify hf_dir model.ckpt --layers 0,1,31 --tokens 64
""",
)
@click.argument("hf_dir", type=opt.PATH)
@click.argument("ms", type=opt.PATH)
@opt.strategy("--strategy-dir", "MS holds the rank directories of the job with this strategy.")
@opt.source_config("--parallel-config", "MS")
@opt.option(
    "--layout",
    metavar="dense|gmm|…",
    shell_complete=layouts("mindspore"),
    help="The layout that MS has. [default: detected from names and shapes]",
)
@opt.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|ascend[:N]",
    help="Where MindSpore computes.",
)
@opt.option(
    "--compute",
    type=opt.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Precision on both sides.",
)
@opt.option(
    "--layers", metavar="0,1,31", help="Check only these layers. [default: all, and the logits]"
)
@opt.option(
    "--tokens",
    metavar="N|ID,ID,…",
    help="How many random tokens, or the tokens. [default: 256 for small models, else 32]",
)
@opt.option("--text", metavar="TEXT", help="Tokens from a text, by the tokenizer in HF_DIR.")
@opt.option(
    "--generate",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Continue greedily by N tokens on both sides.",
)
@opt.option(
    "--report",
    type=opt.PATH,
    metavar="FILE.html",
    help="Also write a page with pictures of error and expert coverage.",
)
@opt.option("--overwrite", is_flag=True, help="Replace an existing report.")
@opt.as_json()
@opt.saying()
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

    Needs torch, transformers and mindspore; weights are streamed, expert by expert. Each layer gets
    the reference's input and must give its output; then the logits, end to end. Exit code 0:
    passed; 1: not.
    """
    from ckptforge.errors import OutputError
    from ckptforge.forward.device import parse_device
    from ckptforge.publish.output_name import refuse_address
    from ckptforge.verbs.verify import verify as check

    parse_device(arguments["device"])
    if report is not None:
        refuse_address(report)
    if report is not None and report.exists() and not overwrite:
        raise OutputError(f"{report}: exists already; give --overwrite to replace it.")
    say = (
        (lambda text: click.echo(text, err=True))
        if not quiet and sys.stderr.isatty() and not opt.is_verbose(context)
        else (lambda text: None)
    )
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
        from ckptforge.cli.verify_report import html_page
        from ckptforge.publish.single_file import write_file

        write_file(report, html_page(found).encode())
    text = verification_text(found)
    if as_json:
        failure = None if found.passed else text.splitlines()[-1]
        print_json(found.to_json(), "passed" if found.passed else "failed", failure, "VerifyFailed")
    elif not quiet:
        print_result(text, failed=not found.passed)
    context.exit(0 if found.passed else 1)


def _show_call(make: Callable[[], Any], as_json: bool, quiet: bool, **running: Any) -> None:
    """Runs what a drop-in's flags mean, and says which command of ours that is."""
    call = make()
    with progressing.shown(quiet, "copying") as progress:
        result = call.run(progress=progress, command=this_command(), **running)
    if as_json:
        print_json({**result.to_json(), "command": call.command})
    elif not quiet:
        print_result(f"the same as: {call.command}\n{result_text(result)}")


@cli.command(
    "convert-weight",
    cls=Command,
    examples="""
    ckptforge convert-weight --model NAME --input_path hf_dir --output_path model.ckpt --dtype fp16
    ckptforge convert-weight --model NAME --reversed --input_path model.ckpt --output_path hf_dir/ --dtype fp16
    ckptforge convert-weight --use_gmm=True --dtype=fp16 --torch_ckpt_dir=hf_dir --mindspore_ckpt_path=model.ckpt
""",  # noqa: E501
)
@opt.model("The mapping to use, or MindFormers' name of it.")
@opt.option(
    "--input-path",
    metavar="PATH",
    help="A Hugging Face directory; with --reversed a MindSpore checkpoint.",
)
@opt.option("--output-path", metavar="PATH", help="The .ckpt file; with --reversed a directory.")
@opt.option("--reversed", is_flag=True, help="From MindSpore to Hugging Face.")
@opt.option(
    "--strategy-dir",
    metavar="DIR",
    help="With --reversed: the strategy of the rank directories in --input_path.",
)
@opt.option(
    "--torch-ckpt-dir",
    "--torch-ckpt-idr",
    "--torch-ckpt-path",
    "--huggingface-ckpt-path",
    "torch_ckpt_dir",
    metavar="DIR",
    help="A Hugging Face directory.",
)
@opt.option(
    "--mindspore-ckpt-path",
    metavar="FILE",
    help="The .ckpt file to write; with --reversed to read.",
)
@opt.option(
    "--pre-ckpt-path", metavar="FILE", help="A MindSpore checkpoint to bring into another layout."
)
@opt.option(
    "--use-gmm",
    type=bool,
    metavar="True|False",
    help="Write the GMM layout. [default: True from --pre_ckpt_path, else False]",
)
@opt.option(
    "--qkv-concat",
    type=bool,
    metavar="True|False",
    help="Write joined q, k and v; --layout says in which order.",
)
@opt.option(
    "--layout",
    metavar="dense|gmm|mcore|…",
    shell_complete=layouts("mindspore"),
    help="How MindSpore is to hold the model; with --reversed how it does. [default: the model's "
    "first MindSpore layout in "
    "`ckptforge mapping list`; with --reversed detected from names and shapes]",
)
@opt.option(
    "--dtype",
    type=opt.Choice(["fp16", "bf16", "fp32"]),
    help="[default: fp32 with --input_path, fp16 with --torch_ckpt_dir, else kept]",
)
@opt.option(
    "--save-format", type=opt.Choice(["ckpt", "safetensors"]), help="Format of an output directory."
)
@opt.option(
    "--config",
    "--config-path",
    metavar="PATH",
    help="A config.json or its directory; MindFormers' YAML isn't needed.",
)
@opt.others(CONVERT_OTHERS)
@opt.option("--allow-overflow", is_flag=True, help="Allow casts that overflow to infinity.")
@opt.running
def convert_weight(as_json: bool, quiet: bool, **arguments: Any) -> None:
    """MindFormers' convert_weight.py, with the same flags.

    Those of the unified script (--input_path, --output_path, --reversed, --strategy_dir) and of the
    scripts of one model (--torch_ckpt_dir, --pre_ckpt_path, --mindspore_ckpt_path, --use_gmm).
    Flags that aren't needed here, such as sizes, are taken with a note; those that can't be
    honoured are refused with the reason.
    """
    from ckptforge.verbs import dropins

    running = {
        name: arguments.pop(name)
        for name in (
            "overwrite",
            "resume",
            "dry_run",
            "workers",
            "memory",
            "no_hash",
            "allow_overflow",
        )
    }
    others = opt.given(arguments, CONVERT_OTHERS)
    flags = dropins.ConvertFlags(**arguments, others=others)
    _show_call(lambda: dropins.convert_weight(flags), as_json, quiet, **running)


@cli.command(
    "transform-ckpt",
    cls=Command,
    examples="""
    ckptforge transform-ckpt --src_ckpt_strategy output/strategy/ --src_ckpt_dir output/checkpoint/ --dst_ckpt_dir merged --prefix model_
    ckptforge transform-ckpt --src_checkpoint model.ckpt --dst_checkpoint sliced --dst_strategy output/strategy/
""",  # noqa: E501
)
@click.argument(
    "words", nargs=-1, metavar="[SRC SRC_STRATEGY DST DST_STRATEGY WORLD_SIZE PROCESS_NUM [PREFIX]]"
)
@opt.option(
    "--src-ckpt-strategy",
    "--src-strategy",
    "src_ckpt_strategy",
    metavar="DIR_OR_FILE",
    help="The strategy of the input; None: it is whole.",
)
@opt.option(
    "--dst-ckpt-strategy",
    "--dst-strategy",
    "dst_ckpt_strategy",
    metavar="DIR_OR_FILE",
    help="The strategy of the output; None: merge.",
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
@opt.option(
    "--prefix",
    default="checkpoint_",
    show_default=True,
    metavar="P",
    help="Start of the output files' names.",
)
@opt.option(
    "--save-format",
    "--format",
    "--output-format",
    "save_format",
    type=opt.Choice(["ckpt", "safetensors"]),
    help="[default: ckpt]",
)
@opt.others(TRANSFORM_OTHERS)
@opt.running
def transform_ckpt(words: tuple[str, ...], as_json: bool, quiet: bool, **arguments: Any) -> None:
    """MindFormers' transform_ckpt.py and transform_checkpoint.py, with the same flags.

    Merges, splits or reshards, by the strategies given. The arguments of transform_checkpoint.sh
    are taken too. One call writes all ranks, straight into DST: --rank_id, --world_size,
    --transform_process_num and the like are taken with a note.
    """
    from ckptforge.verbs import dropins

    running = {
        name: arguments.pop(name)
        for name in ("overwrite", "resume", "dry_run", "workers", "memory", "no_hash")
    }
    others = opt.given(arguments, TRANSFORM_OTHERS)
    flags = dropins.TransformFlags(**arguments, others=others)
    _show_call(lambda: dropins.transform_ckpt(flags.with_words(words)), as_json, quiet, **running)


@cli.group("mapping")
def mapping() -> None:
    """Show and check the mapping tables: which tensors a model has in each layout."""


@mapping.command("list")
@opt.as_json()
def mapping_list(as_json: bool) -> None:
    """The tables that come with ckptforge, and their layouts."""
    from dataclasses import asdict

    from ckptforge.verbs.tables import list_tables

    found = list_tables()
    if as_json:
        print_json({"verb": "mapping list", "tables": [asdict(one) for one in found]})
    else:
        print_result(tables_text(found))


@mapping.command(
    "show",
    cls=Command,
    examples="""
    ckptforge mapping show NAME
    ckptforge mapping show my-table.toml --layout mcore
""",
)
@click.argument("name")
@opt.option(
    "--layout", metavar="LAYOUT", shell_complete=layouts(), help="[default: MindSpore's first]"
)
@opt.as_json()
def mapping_show(name: str, layout: str | None, as_json: bool) -> None:
    """Names, axes, operations and sharding of one layout. NAME is a shipped table, or a .toml
    file."""
    from dataclasses import asdict

    from ckptforge.verbs.tables import describe

    found = describe(name, layout=layout)
    if as_json:
        print_json({"verb": "mapping show", **asdict(found)})
    else:
        print_result(description_text(found))


@mapping.command(
    "check",
    cls=Command,
    examples="""
    ckptforge mapping check my-table.toml
    ckptforge mapping check my-table.toml --config hf_dir/config.json
""",
)
@click.argument("file", metavar="FILE")
@opt.option(
    "--config",
    type=opt.PATH,
    metavar="JSON",
    help="A config.json, or its directory: count tensors and parameters.",
)
@opt.as_json()
@opt.saying()
def mapping_check(file: str, config: Path | None, as_json: bool, quiet: bool) -> None:
    """Check a table: everything that loading checks, and what a model of a config.json has in each
    layout.

    FILE is a .toml file, or the name of a shipped table.
    """
    from ckptforge.verbs.tables import check_table

    found = check_table(file, config=config)
    if as_json:
        print_json({"verb": "mapping check", **found.to_json()})
    elif not quiet:
        print_result(checked_text(found))


@mapping.command("schema")
def mapping_schema() -> None:
    """The JSON schema of tables, for editors."""
    from ckptforge.verbs.tables import table_schema

    click.echo(table_schema())


@cli.command(
    "clean",
    cls=Command,
    examples="""
    ckptforge clean output
    ckptforge clean output --dry-run
""",
)
@click.argument("directory", type=opt.PATH, metavar="DIR")
@opt.option("--dry-run", is_flag=True, help="Say what is there and remove nothing.")
@opt.as_json()
@opt.saying()
def clean(directory: Path, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Remove what interrupted or killed runs left in DIR.

    Those are hidden directories .NAME.ckptforge beside the outputs that were being made.
    Directories in use by a running process are left alone.
    """
    from ckptforge.verbs.clean import clean as remove

    found = remove(directory, dry_run=dry_run)
    text = cleaned_text(found)
    if as_json:
        failure = None if found.ok else "something that isn't in use couldn't be removed."
        print_json(
            {"verb": "clean", **found.to_json()},
            "done" if found.ok else "failed",
            failure,
            "OutputError",
        )
    elif not quiet:
        print_result(text, failed=not found.ok)
    if not found.ok:
        sys.exit(1)


@cli.command(
    "demo",
    cls=Command,
    examples="""
    ckptforge demo
    ckptforge demo my-demo
""",
)
@click.argument("directory", type=opt.PATH, required=False, metavar="[DIR]")
@opt.option("--overwrite", is_flag=True, help="Replace an earlier demo in DIR.")
@opt.as_json()
@opt.saying()
def demo(directory: Path | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Make a tiny model, convert it both ways, and show the commands.

    DIR is kept, and the commands can be pasted there; without DIR nothing is kept.
    """
    from ckptforge.cli.demo import run_demo

    found = run_demo(directory, overwrite, (lambda _: None) if as_json or quiet else click.echo)
    if as_json:
        print_json({"verb": "demo", **found})
