"""Options that several commands share, and how option names are read: with `_` and with `-`
alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from ckptforge.cli.completion import dtypes, layouts, models
from ckptforge.errors import nearest

CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
PATH = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option(*names: str, **settings: Any) -> Decorator:
    """`click.option`, here so that commands import one thing."""
    return click.option(*names, **settings)


class Choice(click.Choice[str]):
    """`click.Choice` that suggests the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}{nearest(str(value), self.choices)}", param, ctx)


def as_json() -> Decorator:
    """--json."""
    return option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the result as one JSON object (docs/json.md).",
    )


def saying() -> Decorator:
    """--quiet and --verbose, which can't be used together."""
    return _all(
        option(
            "--quiet",
            is_flag=True,
            callback=_exclusive,
            help="Print nothing but errors (and the JSON object).",
        ),
        option(
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_log,
            help="Say on stderr what was found, and why, and how long it took.",
        ),
    )


def is_verbose(ctx: click.Context) -> bool:
    """Whether --verbose was given."""
    return ctx.meta.get("ckptforge.saying") == "verbose"


def _exclusive(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and ctx.meta.setdefault("ckptforge.saying", param.name) != param.name:
        raise click.UsageError("--quiet and --verbose can't be used together.", ctx)
    return value


def _log(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if _exclusive(ctx, param, value):
        from ckptforge.cli.verbose import log_to_stderr

        log_to_stderr()


def _all(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


def others(flags: Iterable[str]) -> Decorator:
    """Options of MindFormers' scripts that help doesn't list."""
    return _all(
        *(option(f"--{flag.replace('_', '-')}", metavar="VALUE", hidden=True) for flag in flags)
    )


def given(arguments: dict[str, Any], flags: Iterable[str]) -> dict[str, str]:
    """Takes the options of `others` out of a command's arguments: those that were given."""
    values = {flag: arguments.pop(flag) for flag in flags}
    return {flag: value for flag, value in values.items() if value is not None}


running = _all(
    option(
        "--overwrite",
        is_flag=True,
        help="Replace an existing output, and what an interrupted run left of one.",
    ),
    option(
        "--resume",
        is_flag=True,
        help="Continue where an interrupted run of the same command stopped.",
    ),
    option(
        "--dry-run",
        is_flag=True,
        help="Print the plan (outputs, tensors, bytes, memory, what "
        "is left out) and write nothing.",
    ),
    as_json(),
    option(
        "--workers",
        type=int,
        metavar="N",
        help="Number of worker threads. [default: one per core, at most 8]",
    ),
    option(
        "--memory", metavar="SIZE", help="Memory for the buffers of all workers. [default: 128MiB]"
    ),
    option(
        "--no-hash",
        is_flag=True,
        help="Compute no hashes: the manifest has none, and the run can't be resumed.",
    ),
    saying(),
)

casting = _all(
    option(
        "--dtype",
        default="keep",
        show_default=True,
        metavar="keep|fp16|bf16|fp32|fp64",
        shell_complete=dtypes("keep"),
        help="Cast the floating-point weights; what a cast changes is counted and printed.",
    ),
    option("--allow-overflow", is_flag=True, help="Allow casts that overflow to infinity."),
    option("--weights-only", is_flag=True, help="Drop optimizer state and counters."),
    option(
        "--step",
        type=int,
        metavar="N",
        help="Training step to use when a directory holds several. [default: the last]",
    ),
)


def model(
    text: str = "The mapping to use. [default: detected from config.json or the tensor names]",
) -> Decorator:
    """--model."""
    return option("--model", metavar="NAME", shell_complete=models, help=text)


mapping = _all(
    model(),
    option(
        "--mapping",
        type=PATH,
        metavar="FILE",
        help="A mapping table of your own (docs/mappings.md).",
    ),
)

lora = _all(
    option(
        "--merge-lora",
        type=PATH,
        metavar="ADAPTER",
        help="Add this LoRA adapter to the weights, in float32.",
    ),
    option(
        "--adapter",
        is_flag=True,
        help="Convert only the LoRA adapter that the input holds beside its weights.",
    ),
    option(
        "--lora-alpha",
        type=float,
        metavar="X",
        help="lora_alpha, where the adapter doesn't record it (MindSpore's), or instead of what it "
        "records.",
    ),
)

trim_vocab = option(
    "--trim-vocab",
    is_flag=True,
    help="Cut off rows of the embedding and the head beyond config.json's vocab_size.",
)

planning = _all(
    casting,
    lora,
    option(
        "--allow-unmapped",
        is_flag=True,
        help="Leave out tensors that the mapping doesn't know instead of refusing.",
    ),
    trim_vocab,
    option(
        "--drop",
        multiple=True,
        metavar="GLOB",
        help="Leave out unknown tensors of these names, also heads and scales, which "
        "--allow-unmapped refuses.",
    ),
    mapping,
)

check_replicas = option(
    "--check-replicas", is_flag=True, help="Compare all replicas instead of reading one."
)


def parallel_config(name: str = "--parallel-config", required: bool = False) -> Decorator:
    """An option that names a parallel configuration."""
    text = (
        "Shard for this parallel configuration: a MindFormers YAML, or a file with the same keys."
    )
    return option(name, type=PATH, metavar="FILE", help=text, required=required)


def source_config(name: str, source: str) -> Decorator:
    """An option that names the parallel configuration of a source."""
    text = (
        f"{source} holds the rank directories of the job with this parallel configuration, of "
        "a "
        "model that a mapping knows."
    )
    return option(name, type=PATH, metavar="FILE", help=text)


def strategy(name: str, text: str, required: bool = False) -> Decorator:
    """An option that names a strategy."""
    return option(name, type=PATH, metavar="DIR_OR_FILE", help=text, required=required)


def integers(text: str | None, name: str) -> list[int] | None:
    """Numbers joined by commas. Raises `click.UsageError`, naming the option."""
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise click.UsageError(
            f"{name} {text!r}: expected whole numbers, joined by commas."
        ) from error


mindspore_output = _all(
    option(
        "--format",
        type=Choice(["ckpt", "safetensors", "unified"]),
        help="Format of an output directory; unified: MindSpore's unified safetensors. [default: "
        "by OUT's ending, else ckpt]",
    ),
    option(
        "--prefix",
        default="checkpoint_",
        show_default=True,
        metavar="P",
        help="Start of file names in an output directory: rank_0/P0.ckpt",
    ),
)

own_layout = option(
    "--layout",
    metavar="LAYOUT",
    shell_complete=layouts("mindspore"),
    help="The layout of the input, for a parallel configuration. [default: detected from its names "
    "and shapes]",
)
source_model = option(
    "--config",
    type=PATH,
    metavar="HF_DIR",
    help="Where config.json is, if a parallel configuration of the input needs it.",
)
shards = option(
    "--max-shard-size",
    metavar="SIZE",
    help="Largest weight file. [default: as the original directory had it, else 5GB]",
)
config = option(
    "--config",
    type=PATH,
    metavar="HF_DIR",
    help="Where config.json and tokenizer are, if the checkpoint has no manifest.",
)
layout = option(
    "--layout",
    metavar="dense|gmm|mcore|…",
    shell_complete=layouts("mindspore"),
    help="How MindSpore is to hold the model. [default: the model's first MindSpore layout in "
    "`ckptforge mapping list`]",
)
