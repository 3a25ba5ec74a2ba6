"""verify: the same tokens through transformers' layers and through MindSpore, layer by layer and
end to end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ckptforge.errors import UsageError, VerifyError, brief, counted
from ckptforge.forward.checks import EndCheck, LayerCheck, end_check, layer_check
from ckptforge.forward.checks import generate as continued
from ckptforge.forward.device import import_mindspore, select_device
from ckptforge.forward.mindspore_forward import MindSporeForward
from ckptforge.forward.network import Network, network_of
from ckptforge.forward.precision import Precision, precision_of
from ckptforge.forward.torch_forward import TorchForward
from ckptforge.forward.weights import Weights
from ckptforge.parallel.ranks import open_source
from ckptforge.reading.source import Choices, Source
from ckptforge.spelling import option
from ckptforge.verbs.options import Say, Verify
from ckptforge.verbs.public import verb

_log = logging.getLogger(__name__)
_SMALL = 1024  # up to this hidden size tokens cost little
Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Verification:
    """What `verify` found. `end` is None where only a sample of the layers was checked."""

    hf_dir: str
    ms: str
    layout: str
    device: str
    compute: str
    tokens: int
    layers: list[LayerCheck]
    end: EndCheck | None
    unreached: list[str]
    generated: list[list[int]]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return all(layer.passed for layer in self.layers) and (self.end is None or self.end.passed)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        found = "passed" if self.passed else "failed"
        return (
            f"<Verification of {brief(self.ms)} by {brief(self.hf_dir)}: {found}, "
            f"{counted(len(self.layers), 'layer')}>"
        )

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.passed, "verb": "verify", **asdict(self)}


@verb(Verify)
def verify(options: Verify) -> Verification:
    """Runs the same tokens through transformers and through MindSpore, and compares. Returns a
    `Verification`.

    Needs torch, transformers and mindspore. The `Verification` is true where it passed.

    Raises `UsageError` for layers and tokens that the model doesn't have, `VerifyError` for missing
    packages, a device that isn't there and models of different sizes, and the errors of opening.
    """
    precision = precision_of(options.compute)
    mindspore = import_mindspore()
    chosen_device = select_device(mindspore, options.device)
    hub = open_source(options.hf_dir, Choices(family="huggingface", layout_option="layout"))
    checkpoint = _open_mindspore(options)
    with closing(Weights(hub)) as reference, closing(Weights(checkpoint)) as weights:
        network, torch_side, mindspore_side = _sides(
            mindspore, chosen_device, precision, reference, weights
        )
        ids = _tokens(network, int(reference.size("H")), options)
        wanted = _wanted(network, options.layers)
        checks, end = _run(
            torch_side,
            mindspore_side,
            precision,
            ids,
            wanted,
            len(wanted) == network.layers,
            options.say or (lambda _: None),
        )
        generated = (
            [
                continued(side, network, ids[:1], options.generate)
                for side in (torch_side, mindspore_side)
            ]
            if options.generate
            else []
        )
    notes = (
        []
        if end
        else [
            "a sample of layers: each gets the output of the one checked before "
            "it, and the logits aren't compared."
        ]
    )
    if chosen_device == "Ascend":
        notes.append(
            "experts were computed by GroupedMatmul, which no test of ours has run on a device."
        )
    return Verification(
        hf_dir=str(options.hf_dir),
        ms=str(options.ms),
        layout=checkpoint.binding.layout.name,
        device=chosen_device,
        compute=options.compute,
        tokens=int(ids.size),
        layers=checks,
        end=end,
        unreached=[
            f"layer {check.layer}: "
            f"{', '.join(str(e) for e, count in enumerate(check.reached) if not count)}"
            for check in checks
            if 0 in check.reached
        ],
        generated=generated,
        notes=notes,
    )


def _sides(
    mindspore: Any, device: str, precision: Precision, reference: Weights, weights: Weights
) -> tuple[Network, TorchForward, MindSporeForward]:
    """(the reference's sizes, the reference, MindSpore with the constants of the checkpoint's own
    config)."""
    network, own = (
        network_of(side, side.source.config, f"the config of {side.source.model.path}")
        for side in (reference, weights)
    )
    if (own.layers, own.experts, own.vocab, weights.size("H")) != (
        network.layers,
        network.experts,
        network.vocab,
        reference.size("H"),
    ):
        paths = " and ".join(str(side.source.model.path) for side in (reference, weights))
        raise VerifyError(f"{paths} are models of different sizes: {network} and {own}.")
    make = MindSporeForward if device == "CPU" else MindSporeForward.on_ascend
    torch_side = TorchForward(reference, reference.source.config, precision=precision)
    return network, torch_side, make(mindspore, weights, own, precision)


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
    checks, routes = [], []
    for i in wanted:
        expected, logits, experts = torch_side.layer(i, given)
        got, other_logits, other_experts = mindspore_side.layer(i, given, experts)
        checks.append(
            layer_check(
                i, precision.layer_gate, expected, got, logits, other_logits, experts, other_experts
            )
        )
        say(f"layer {i}: worst token {checks[-1].worst:.2e}")
        _log.info("layer %d: worst token %.2e", i, checks[-1].worst)
        if whole:
            running, _, _ = mindspore_side.layer(i, running, experts)
            routes.append(experts)
        given = expected
    return checks, end_check(
        torch_side, mindspore_side, precision, ids, routes, given, running
    ) if whole else None


def _open_mindspore(options: Verify) -> Source:
    """With the config that goes with it, of which its manifest tells; the reference's where it has
    none."""
    choices = Choices(
        layout=options.layout,
        strategy=options.strategy_dir,
        parallel_config=options.parallel_config,
        family="mindspore",
        layout_option="layout",
    )
    source = open_source(options.ms, choices)
    return (
        source
        if source.config
        else open_source(options.ms, replace(choices, config=options.hf_dir))
    )


def _tokens(network: Network, hidden: int, options: Verify) -> NDArray[np.int64]:
    """(1, length) token ids."""
    tokens, text, hf_dir = options.tokens, options.text, options.hf_dir
    limit = network.positions
    if text is not None:
        if tokens is not None:
            raise UsageError(
                f"{option('tokens')} and {option('text')} both say what to run; give one."
            )
        try:
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(str(hf_dir))(text)["input_ids"]
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(
                f"{option('text')} needs a tokenizer in {hf_dir}, which can't be loaded: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        ids = np.array([found], np.int64)
    elif tokens is None or isinstance(tokens, int):
        count = tokens if tokens is not None else min(limit, 256 if hidden <= _SMALL else 32)
        if count < 1:
            raise UsageError(f"{option('tokens', count)}: at least one is needed.")
        ids = np.random.default_rng(0).integers(0, network.vocab, (1, count))
    else:
        ids = np.array([list(tokens)], np.int64)
    if ids.size == 0 or ids.min() < 0 or ids.max() >= network.vocab:
        raise UsageError(f"token ids must be from 0 to {network.vocab - 1}.")
    if ids.shape[1] > limit:
        raise UsageError(
            f"{counted(ids.shape[1], 'token', 'are')} more than the "
            f"{counted(limit, 'position')} of the model."
        )
    return ids
