"""Options of an output's files that have no effect on those that are written."""

from __future__ import annotations

from collections.abc import Container

from ckptforge.errors import UsageError
from ckptforge.spelling import flag, option
from ckptforge.verbs.options import Options
from ckptforge.verbs.options.record import options_of

HUGGING_FACE = "a directory of Hugging Face's"
DCP_DIRECTORY = "a directory of torch.distributed.checkpoint's"
RELEASE = "a release's files"
MEGATRON_RUN = "a checkpoint of Megatron's"
_OF_FILES = (
    "format",
    "prefix",
    "iteration",
    "mindformers",
    "remove_redundancy",
    "shards",
    "max_shard_size",
)


def refuse_unused(
    options: Options, written: str, taken: Container[str] = (), formats: Container[str] = ()
) -> None:
    """Raises `UsageError` for an option that was given and that none of what is `written` heeds, of
    which it takes those in `taken`, and as its format those in `formats`."""
    known = options_of(type(options))
    for name in _OF_FILES:
        if name not in known or name in taken:
            continue
        given = getattr(options, name)
        if given == known[name].default or (name == "format" and given in formats):
            continue
        spelled = flag(name) if given is True else option(name, given)
        raise UsageError(f"{spelled} has no effect on {written}, which is written here; omit it.")
