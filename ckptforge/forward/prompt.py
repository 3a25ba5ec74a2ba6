"""What is run through models: token ids from a text, as given, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import UsageError
from ckptforge.foreign.files import read_small
from ckptforge.spelling import option
from ckptforge.wording import counted

SMALL = 1024  # up to this hidden size tokens cost little
_MAX_TEXT = 1 << 20
# Plain prose, so that a loss is one of language: random tokens have no likely successor.
TEXT = """The harbour lay quiet before sunrise. Two men carried crates from the boat to the store
while a third counted them and wrote the number on a slate. By eight o'clock the first carts had
come down the hill, and the merchants began to argue about the price of salt. Nobody had expected
the storm to pass so quickly. In the afternoon the sea was flat, the gulls came back to the quay,
and the children who had waited all week were allowed to swim out to the buoy. What remained of the
bad weather was a line of seaweed on the sand and a broken mast, which the carpenter said he would
mend by the end of the month if somebody paid him for the wood."""


class Wanted(Protocol):
    """What is to be run: a number of random tokens or their ids, or a text (by the tokenizer in
    `hf_dir`)."""

    hf_dir: Any
    tokens: int | Sequence[int] | None
    text: str | None


class Limits(NamedTuple):
    """What bounds a prompt: ids below `vocab`, `positions` in all; of a hidden size."""

    vocab: int
    positions: int
    hidden: int


class Prompt(NamedTuple):
    """Token ids (1, length), and where they come from: `text`, `ids` or `random`."""

    ids: NDArray[np.int64]
    of: str


def prompt_of(wanted: Wanted, limits: Limits, default: str | None = None) -> Prompt:
    """What is asked for; else as much of the text `default` as fits; else random tokens. Raises
    `UsageError` for what the model doesn't have."""
    tokens, text = wanted.tokens, wanted.text
    if text is not None and tokens is not None:
        raise UsageError(f"{option('tokens')} and {option('text')} both say what to run; give one.")
    if text is not None:
        made = Prompt(_tokenised(wanted.hf_dir, _text(text)), "text")
    elif tokens is None and default is not None:
        made = Prompt(_tokenised(wanted.hf_dir, default)[:, : limits.positions], "text")
    elif tokens is None or isinstance(tokens, int):
        made = Prompt(_random(tokens, limits), "random")
    else:
        made = Prompt(np.array([list(tokens)], np.int64), "ids")
    ids = made.ids
    if ids.size == 0 or ids.min() < 0 or ids.max() >= limits.vocab:
        raise UsageError(f"token ids must be from 0 to {limits.vocab - 1}.")
    if ids.shape[1] > limits.positions:
        raise UsageError(
            f"{counted(ids.shape[1], 'token', 'are')} more than the "
            f"{counted(limits.positions, 'position')} of the model."
        )
    return made


def _text(text: str) -> str:
    """A text as it is given, or what is in the file of `@FILE`. Raises `UsageError`."""
    if not text.startswith("@"):
        return text
    content = read_small(Path(text[1:]), _MAX_TEXT, UsageError)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text[1:]}: isn't text in UTF-8: {error}.") from error


def _tokenised(hf_dir: Any, text: str) -> NDArray[np.int64]:
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(hf_dir), local_files_only=True)
        return np.array([tokenizer(text)["input_ids"]], np.int64)
    except Exception as error:  # of whatever kind a tokenizer's files make it raise
        raise UsageError(
            f"{option('text')} needs a tokenizer in {hf_dir}, which can't be loaded: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _random(tokens: int | None, limits: Limits) -> NDArray[np.int64]:
    most = 256 if limits.hidden <= SMALL else 32
    count = tokens if tokens is not None else min(limits.positions, most)
    if count < 1:
        raise UsageError(f"{option('tokens', count)}: at least one is needed.")
    return np.random.default_rng(0).integers(0, limits.vocab, (1, count))
