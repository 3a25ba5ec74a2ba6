"""The commands: the records of options that each takes, what it does, its help."""

from __future__ import annotations

from importlib.util import find_spec
from typing import cast

import click

from ckptforge.cli import actions, surgery
from ckptforge.cli.command import CONTEXT, Command, Group, Root
from ckptforge.cli.completion import helped
from ckptforge.cli.page import Page, Report
from ckptforge.spelling import command_line
from ckptforge.verbs import options
from ckptforge.version import __version__
from ckptforge.wording import nearest

_VERSION = f"ckptforge {__version__}"
_EPILOG = """\b
Exit codes: 0 done; 1 bad input, or a check that failed; 2 wrong usage;
128 + the number of the signal that ended it (130 Ctrl-C, 143 SIGTERM,
129 SIGHUP).
Options are written with - or with _: --dry-run and --dry_run are the same."""


@click.group(cls=Root, context_settings=CONTEXT, epilog=_EPILOG)
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


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete commands, options and their values.

    \b
    bash: eval "$(ckptforge completion bash)" in ~/.bashrc
    zsh:  eval "$(ckptforge completion zsh)" in ~/.zshrc
    fish: ckptforge completion fish > ~/.config/fish/completions/ckptforge.fish
    """
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(cli, {}, "ckptforge", "_CKPTFORGE_COMPLETE").source())


@cli.command("help")
@click.argument("command", nargs=-1, metavar="[COMMAND|TOPIC]", shell_complete=helped)
@click.pass_context
def help_of(context: click.Context, command: tuple[str, ...]) -> None:
    """Show what a command does and its options, or a topic; without one, the list of both."""
    parent, found = context.find_root(), cast(click.Command, cli)
    if command and command[0].replace("_", "-") not in cli.commands:
        click.echo(_topic(" ".join(command).replace("_", "-"), parent))
        return
    for word in command:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{found.name} has no commands of its own.", parent)
        name, one, _ = found.resolve_command(parent, [word])
        assert one is not None
        parent, found = click.Context(one, parent, name), one
    click.echo(found.get_help(parent))


def _topic(name: str, context: click.Context) -> str:
    from ckptforge.cli.topics import topic, topics

    text = topic(name)
    if text is None:
        near = nearest(name, [*cli.commands, *topics()])
        raise click.UsageError(f"No such command or topic {name!r}.{near}", context)
    return text


@cli.group("mapping", cls=Group)
def mapping() -> None:
    """Show and check the mapping tables: which tensors a model has in each layout."""


@mapping.command("schema")
def mapping_schema() -> None:
    """The JSON schema of tables, for editors."""
    from ckptforge.verbs.tables import table_schema

    click.echo(table_schema())


COMMANDS = (
    Command("to-ms", actions.write, options.ToMs, Page).described("""
        Convert a Hugging Face directory to a MindSpore checkpoint.

        HF_DIR holds safetensors and config.json. OUT ending in .ckpt or .safetensors is one file;
        otherwise a directory that gets rank_0/checkpoint_0.ckpt. config.json, tokenizer and the
        like are kept in a manifest beside the checkpoint.

        Examples:
            ckptforge to-ms hf_dir model.ckpt
            ckptforge to-ms hf_dir model_gmm.ckpt --layout gmm --dtype fp16
            ckptforge to-ms hf_dir model_dir --format safetensors --dry-run
        """),
    Command("to-torch", actions.write, options.ToTorch, Page).described("""
        Convert a MindSpore checkpoint to a Hugging Face directory.

        MS is a .ckpt or .safetensors file, or a directory with one. The directory loads with
        from_pretrained as it stands. Optimizer state and counters are dropped and reported.

        Examples:
            ckptforge to-torch model.ckpt restored
            ckptforge to-torch trained.ckpt my-model --config hf_dir --dtype bf16
        """),
    Command("convert", actions.write, options.Convert, Page).described("""
        Convert a checkpoint of any layout to any other layout of its model.

        Optimizer state follows its weights from one MindSpore layout to another.

        Examples:
            ckptforge convert model.ckpt model_gmm.ckpt --to gmm
            ckptforge convert hf_dir fused --to fused
        """),
    Command("merge", actions.write, options.Merge, Page).described("""
        Merge the rank directories of a training job into one checkpoint.

        MS_DIR holds rank_<r>/ directories. Works for any model by a strategy; by the job's parallel
        configuration for those that a mapping knows; and of ranks that ckptforge wrote the manifest
        says how they are cut. Optimizer state and counters are kept.

        Examples:
            ckptforge merge output/checkpoint merged.ckpt --strategy-dir output/strategy
        """),
    Command("split", actions.write, options.Split, Page).described("""
        Split one checkpoint into the rank directories of a job.

        Writes OUT_DIR/rank_<r>/checkpoint_<r>.ckpt for every rank. Works for any model by a
        strategy; by a parallel configuration for those that a mapping knows.

        Examples:
            ckptforge split model.ckpt model_dir --strategy-dir strategy
            ckptforge split model.ckpt model_dir --parallel-config predict_model.yaml
        """),
    Command("reshard", actions.write, options.Reshard, Page).described("""
        Reshard the rank directories of one job for another, in one pass.

        The numbers of devices need not divide each other. Works for any model.

        Examples:
            ckptforge reshard output/checkpoint model_dir --src-strategy-dir output/strategy --dst-strategy-dir mp4_strategy.ckpt
        """),  # noqa: E501
    Command("strategy", actions.write, options.Strategy, Page).described("""
        Write the strategy files of a job without compiling its network.

        One file for each pipeline stage, as MindSpore would save it, by data, model, expert and
        pipeline parallelism, vocab_emb_dp, optimizer parallelism, layer offsets and interleave.

        Examples:
            ckptforge strategy output/strategy --parallel-config finetune_model.yaml --like hf_dir
            ckptforge strategy strategy_mp8 --parallel-config mp8.yaml --like model.ckpt --format json
        """),  # noqa: E501
    Command("inspect", actions.inspect, options.Inspect, actions.Listed, Page).described("""
        Show what is in a checkpoint: format, model, layout, dtypes, sizes, ranks.

        With the strategy or the parallel configuration of rank directories, or their manifest, it
        shows which rank holds what.

        Examples:
            ckptforge inspect hf_dir
            ckptforge inspect model.ckpt --tensors
        """),
    Command("compare", actions.compare, actions.CompareOrCheck, Page).described("""
        Compare two checkpoints tensor by tensor, bit by bit, through the mapping.

        A and B may have any format, layout and split: A is brought into B's layout in passing.
        Without B, A is an output of ckptforge and is compared with its manifest. Exit code 0: the
        same; 1: not.

        Examples:
            ckptforge compare hf_dir model.ckpt
            ckptforge compare model.ckpt model_fp16.ckpt --after-cast fp16
            ckptforge compare hf_dir output/checkpoint --strategy-dir-b output/strategy
            ckptforge compare model.ckpt
        """),
    Command("verify", actions.verify, options.Verify, Report).described("""
        Run the same tokens through transformers and through MindSpore, and compare.

        Needs torch, transformers and mindspore; weights are streamed, matrix by matrix. Each layer
        gets the reference's input and must give its output; then the logits, end to end. Exit code
        0: passed; 1: not. Of two Hugging Face directories transformers computes both: losses and
        logits side by side, 0 where all numbers are finite.

        Examples:
            ckptforge verify hf_dir model.ckpt
            ckptforge verify hf_dir output/checkpoint --strategy-dir output/strategy --html verify.html
            ckptforge verify hf_dir model.ckpt --layers 0,1,31 --tokens 64
            ckptforge verify hf_dir edited --text @story.txt
        """),  # noqa: E501
    Command("finish", actions.write, options.Finish).described("""
        Publish what the parts of a job have written.

        The parts are processes that were run with --part, on any machines that share OUT's
        directory. Nothing appears while one of them is missing or not finished; those are named.

        Examples:
            ckptforge to-ms hf_dir model.ckpt --part 1/2
            ckptforge to-ms hf_dir model.ckpt --part 2/2
            ckptforge finish model.ckpt
        """),
    Command("clean", actions.clean, options.Clean).described("""
        Remove what interrupted or killed runs left in DIR.

        Those are hidden directories .NAME.ckptforge beside the outputs that were being made.
        Directories in use by a running process are left alone.

        Examples:
            ckptforge clean output
            ckptforge clean output --dry-run
        """),
    *surgery.COMMANDS,
    Command("demo", actions.demo, actions.Demo).described("""
        Make a tiny model, convert it both ways, and show the commands.

        DIR is kept, and the commands can be pasted there; without DIR nothing is kept.

        Examples:
            ckptforge demo
            ckptforge demo my-demo
        """),
)
MAPPING_COMMANDS = (
    Command("list", actions.mapping_list).described("""
        The tables that come with ckptforge, and their layouts.
        """),
    Command("show", actions.mapping_show, options.MappingShow).described("""
        Names, axes, operations and sharding of one layout. NAME is a shipped table, or a .toml
        file.

        Examples:
            ckptforge mapping show NAME
            ckptforge mapping show my-table.toml --layout mcore
        """),
    Command("check", actions.mapping_check, options.MappingCheck).described("""
        Check a table: everything that loading checks, and what a model of a config.json has in each
        layout.

        FILE is a .toml file, or the name of a shipped table.

        Examples:
            ckptforge mapping check my-table.toml
            ckptforge mapping check my-table.toml --config hf_dir/config.json
        """),
)
for command in COMMANDS:
    cli.add_command(command)
if find_spec("ckptforge.cli.dropins") is not None:  # nothing else needs it
    from ckptforge.cli.dropins import DROP_INS

    for command in DROP_INS:
        cli.add_command(command)
for command in MAPPING_COMMANDS:
    mapping.add_command(command)
