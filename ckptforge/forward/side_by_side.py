"""Two models of transformers' own, side by side: the same tokens through both, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import ConfigError, shown
from ckptforge.forward.checks import generate, log_softmax, relative
from ckptforge.forward.precision import Precision, precision_of
from ckptforge.forward.prompt import TEXT, Limits, Prompt, Wanted, prompt_of
from ckptforge.forward.torch_forward import TorchForward
from ckptforge.forward.weights import Weights
from ckptforge.reading.source import Source

Array = NDArray[Any]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "vocab.txt")


class Asked(Wanted, Protocol):
    """What is to be run, in which precision, how many tokens more are to be generated, and who
    hears of each layer."""

    generate: int
    say: Callable[[str], object] | None

    @property
    def compute(self) -> str:
        """`fp32`, `fp16` or `bf16`."""


@dataclass(frozen=True)
class LayerApart:
    """The relative L2 of what a layer of B makes, against the same layer of A, each model running
    by itself."""

    layer: int
    relative_l2: float


@dataclass(frozen=True)
class LogitsApart:
    """Two models' logits, over the `vocab` tokens that both have: their relative L2, the share of
    positions with the same first choice, and the KL divergence of B from A in nats."""

    relative_l2: float
    top1: float
    kl: float
    vocab: int


class Found(NamedTuple):
    """What was found. `losses` are each model's mean of -log p of the next token in nats, over all
    of its own tokens; None of a single token. `layers` is empty where those of one aren't those of
    the other."""

    prompt: Prompt
    layers: list[LayerApart]
    logits: LogitsApart
    losses: list[float] | None
    generated: list[list[int]]
    notes: list[str]


def side_by_side(one: Source, other: Source, asked: Asked) -> Found:
    """Runs the same tokens through both. Raises `UsageError` for tokens that one doesn't have, and
    what making the models raises."""
    precision = precision_of(asked.compute)
    with closing(Weights(one)) as mine, closing(Weights(other)) as theirs:
        sides = _Side(mine, precision), _Side(theirs, precision)
        prompt, notes = _prompt(sides, asked)
        states, layers = _layers(sides, prompt.ids, asked.say or (lambda _: None))
        logits, losses = _heads(sides, states, prompt.ids)
        count, ids = asked.generate, prompt.ids[:1]
        made = [generate(side.forward, side, ids, count) for side in sides] if count else []
        if not layers:
            notes.append(
                "layers aren't compared, as A and B don't have as many, or of another hidden size."
            )
        if logits.vocab < max(side.vocab for side in sides):
            notes.append(
                f"A has {sides[0].vocab:,} tokens and B {sides[1].vocab:,}: logits are compared "
                f"over the first {logits.vocab:,}."
            )
    return Found(prompt, layers, logits, losses, made, notes)


class _Side:
    """A model with its sizes."""

    def __init__(self, weights: Weights, precision: Precision) -> None:
        self.forward = TorchForward(weights, precision=precision)
        self.layers, (self.vocab, self.hidden) = weights.layers, weights.shape("embedding")
        card = weights.source.hugging_face
        files = card.files if card is not None else {}
        self.tokenizer = {name: files[name] for name in _TOKENIZERS if name in files}
        self.positions = getattr(self.forward.config, "max_position_embeddings", None) or 0
        if not isinstance(self.positions, int) or self.positions < 1:
            raise ConfigError(
                f"the config of {weights.source.model.path}: max_position_embeddings is "
                f"{shown(self.positions)}, expected a positive number."
            )


Sides = tuple[_Side, _Side]


def _prompt(sides: Sides, asked: Asked) -> tuple[Prompt, list[str]]:
    """The tokens, and what is to be said of them."""
    one, other = sides
    limits = Limits(
        vocab=min(one.vocab, other.vocab),
        positions=min(one.positions, other.positions),
        hidden=max(one.hidden, other.hidden),
    )
    prompt = prompt_of(asked, limits, TEXT if one.tokenizer else None)
    notes = []
    if prompt.of == "random":
        why = "" if one.tokenizer else ", as A has no tokenizer"
        notes.append(f"the tokens are random{why}: their losses say nothing of language.")
    if prompt.of == "text" and asked.text is None:
        notes.append("the text is a paragraph of ckptforge's own.")
    differing = [
        name
        for name in one.tokenizer.keys() & other.tokenizer.keys()
        if one.tokenizer[name] != other.tokenizer[name]
    ]
    if prompt.of == "text" and differing:
        notes.append(f"B has another {min(differing)} than A, by which the text became tokens.")
    return prompt, notes


def _layers(
    sides: Sides, ids: Array, say: Callable[[str], object]
) -> tuple[list[Array], list[LayerApart]]:
    """What each model makes of the tokens before its head, and how far apart its layers are."""
    one, other = sides
    alike = (one.layers, one.hidden) == (other.layers, other.hidden)
    states = [side.forward.embed(ids) for side in sides]
    apart: list[LayerApart] = []
    for i in range(max(one.layers, other.layers)):
        for k, side in enumerate(sides):
            if i < side.layers:
                states[k] = side.forward.layer(i, states[k]).hidden
        if alike and states[0].shape == states[1].shape:
            apart.append(LayerApart(i, relative(*states)))
            say(f"layer {i}: relative L2 {apart[-1].relative_l2:.2e}")
    return states, apart


def _heads(
    sides: Sides, states: Sequence[Array], ids: Array
) -> tuple[LogitsApart, list[float] | None]:
    """The logits of both, one position at a time compared."""
    a, b = (side.forward.head(made)[0] for side, made in zip(sides, states, strict=True))
    shared = min(a.shape[1], b.shape[1])
    squares, size, kl, same = 0.0, 0.0, 0.0, 0
    lost = [0.0, 0.0]
    for at, (mine, theirs) in enumerate(zip(a, b, strict=True)):
        rows = [row.astype(np.float64) for row in (mine, theirs)]
        if at + 1 < ids.shape[1]:
            for k, row in enumerate(rows):
                lost[k] -= float(log_softmax(row)[ids[0, at + 1]])
        p, q = (row[:shared] for row in rows)
        squares += float(((p - q) ** 2).sum())
        size += float((p**2).sum())
        same += int(p.argmax() == q.argmax())
        p, q = log_softmax(p), log_softmax(q)
        kl += float((np.exp(p) * (p - q)).sum())
    count = len(a)
    error = (squares / (size or 1.0)) ** 0.5
    apart = LogitsApart(error if np.isfinite(error) else np.inf, same / count, kl / count, shared)
    return apart, [one / (count - 1) for one in lost] if count > 1 else None
