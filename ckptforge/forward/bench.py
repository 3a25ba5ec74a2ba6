"""The forward check of a model: the same tokens through both sides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ckptforge.errors import UsageError, VerifyError
from ckptforge.forward import prompt
from ckptforge.forward.checks import EndCheck, LayerCheck, end_check, layer_check
from ckptforge.forward.checks import generate as continued
from ckptforge.forward.device import import_mindspore, select_device
from ckptforge.forward.mindspore_forward import MindSporeForward
from ckptforge.forward.network import LayerOutput, Network, network_of
from ckptforge.forward.precision import Precision, precision_of
from ckptforge.forward.prompt import Limits, prompt_of
from ckptforge.forward.routing import Route, Router
from ckptforge.forward.torch_forward import TorchForward
from ckptforge.forward.weights import Weights
from ckptforge.reading.source import Source
from ckptforge.spelling import option
from ckptforge.wording import counted

_log = logging.getLogger(__name__)
_SAMPLE = (
    "a sample of layers: each gets the output of the one checked before it, and the logits aren't "
    "compared."
)
_ASCEND = "experts were computed by GroupedMatmul, which no test of ours has run on a device."
Array = NDArray[Any]
Say = Callable[[str], object]


class Wanted(prompt.Wanted, Protocol):
    """What is to be checked: layers, by which tokens, how many tokens more are to be generated, and
    who hears of each layer."""

    layers: Sequence[int] | None
    generate: int
    say: Say | None


class Found(NamedTuple):
    """What a check found; `end` is None where only a sample of the layers was checked."""

    tokens: int
    layers: list[LayerCheck]
    end: EndCheck | None
    generated: list[list[int]]
    notes: list[str]


class Bench(NamedTuple):
    """Where and in which precision MindSpore computes."""

    mindspore: Any
    device: str
    precision: Precision

    @classmethod
    def of(cls, compute: str, device: str) -> Bench:
        """Raises `VerifyError` for what isn't there, `UsageError` for another word."""
        precision = precision_of(compute)
        mindspore = import_mindspore()
        return cls(mindspore, select_device(mindspore, device), precision)

    def check(self, hub: Source, checkpoint: Source, wanted: Wanted) -> Found:
        """Runs the same tokens through both. Raises `UsageError` for layers and tokens that the
        model doesn't have, `VerifyError` for models of different sizes."""
        with closing(Weights(hub)) as reference, closing(Weights(checkpoint)) as weights:
            network, torch_side, mindspore_side = _sides(self, reference, weights)
            sides = torch_side, mindspore_side
            limits = Limits(network.vocab, network.positions, network.hidden)
            ids = prompt_of(wanted, limits).ids
            layers = _wanted(network, wanted.layers)
            whole = len(layers) == network.layers
            say = wanted.say or (lambda _: None)
            checks, end = _run(*sides, self.precision, ids, layers, whole, say)
            count = wanted.generate
            made = [continued(side, network, ids[:1], count) for side in sides] if count else []
            unread = sorted(reference.unread & weights.unread) if whole else []
        notes = [*([] if end else [_SAMPLE]), *([_ASCEND] if self.device == "Ascend" else [])]
        if unread:
            notes.append(_not_computed(unread))
        return Found(int(ids.size), checks, end, made, notes)


def _sides(
    bench: Bench, reference: Weights, weights: Weights
) -> tuple[Network, TorchForward, MindSporeForward]:
    """(the reference's sizes, the reference, MindSpore with its own config's constants)."""
    network, own = (
        network_of(side, side.source.config, f"the config of {side.source.model.path}")
        for side in (reference, weights)
    )
    if own.sizes != network.sizes:
        what = ("layers", "tokens", "hidden size", "experts")
        named = zip(what, network.sizes, own.sizes, strict=True)
        apart = ", ".join(f"{one} {a} and {b}" for one, a, b in named if a != b)
        paths = " and ".join(str(side.source.model.path) for side in (reference, weights))
        raise VerifyError(f"{paths} are models of different sizes: {apart}.")
    make = MindSporeForward if bench.device == "CPU" else MindSporeForward.on_ascend
    torch_side = TorchForward(reference, precision=bench.precision)
    made = make(bench.mindspore, weights, own, bench.precision)
    return network, torch_side, made


def _wanted(network: Network, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(network.layers))
    if bad := [i for i in layers if not 0 <= i < network.layers]:
        raise UsageError(
            f"{option('layers', bad[0])}: the model has layers 0 to {network.layers - 1}."
        )
    if list(layers) != sorted(set(layers)) or not layers:
        raise UsageError(
            f"{option('layers', ','.join(map(str, layers)))}: expected different layers in order."
        )
    return list(layers)


def _run(
    torch_side: TorchForward,
    mindspore_side: MindSporeForward,
    precision: Precision,
    ids: Array,
    wanted: Sequence[int],
    whole: bool,
    say: Say,
) -> tuple[list[LayerCheck], EndCheck | None]:
    given = torch_side.embed(ids)
    running = mindspore_side.embed(ids)
    router = mindspore_side.network.router
    checks: list[LayerCheck] = []
    routes: list[Route | None] = []
    for i in wanted:
        expected = _ranked(torch_side.layer(i, given), torch_side.weights, i, router)
        experts = None if expected.route is None else expected.route.experts
        got = mindspore_side.layer(i, given, experts)
        checks.append(layer_check(i, precision.layer_gate, expected, got, router))
        say(f"layer {i}: worst token {checks[-1].worst:.2e}")
        _log.info("layer %d: worst token %.2e", i, checks[-1].worst)
        if whole:
            running = mindspore_side.layer(i, running, experts).hidden
            routes.append(expected.route)
        given = expected.hidden
    return checks, end_check(
        torch_side, mindspore_side, precision, ids, routes, given, running
    ) if whole else None


def _ranked(output: LayerOutput, weights: Weights, i: int, router: Router | None) -> LayerOutput:
    """The reference's output with the figures that its router chose by."""
    if output.route is None or router is None:
        return output
    bias = weights.float32("router_bias", i) if weights.has("router_bias", i) else None
    ranked = router.ranked(output.route.logits, bias)
    return output._replace(route=output.route._replace(ranked=ranked))


def _not_computed(tensors: Sequence[str]) -> str:
    names = ", ".join([*tensors[:4], *(["…"] if len(tensors) > 4 else [])])
    kinds = counted(len(tensors), "kind of tensor", "weren't")
    return f"{kinds} verified, as transformers doesn't compute with it: {names}."
