"""What `verify` finds of two Hugging Face directories: what each computes, side by side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import UsageError
from ckptforge.foreign.paths import is_directory
from ckptforge.reading.known import Choices
from ckptforge.reading.source import Source, bind_source
from ckptforge.spelling import option
from ckptforge.verbs.options import Verify
from ckptforge.verbs.options.record import options_of
from ckptforge.verbs.ranks import describes_itself, in_ranks, is_megatron
from ckptforge.wording import brief

if TYPE_CHECKING:
    from ckptforge.forward.side_by_side import LayerApart, LogitsApart

_OF_MINDSPORE = ("device", "layers", "layout", "parallel_config", "strategy_dir")


@dataclass(frozen=True, repr=False)
class SideBySide:
    """What `verify` found of two Hugging Face directories. `prompt` is `text`, `ids` or `random`;
    `losses` are in nats for each token, None of a single one."""

    a: str
    b: str
    models: list[str]
    compute: str
    prompt: str
    tokens: int
    losses: list[float] | None
    logits: LogitsApart
    layers: list[LayerApart]
    generated: list[list[int]]
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether both compute finite numbers: how far they may be apart, nobody knows here."""
        return all(map(math.isfinite, [self.logits.relative_l2, *(self.losses or ())]))

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        losses = " and ".join(f"{loss:.4f}" for loss in self.losses or ())
        return f"<SideBySide of {brief(self.a)} and {brief(self.b)}: losses {losses or 'none'}>"

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"ok": self.passed, "verb": "verify", **asdict(self)}


def is_hub_directory(path: Path, choices: Choices) -> bool:
    """Whether a checkpoint is a directory of Hugging Face, by its files and by its names."""
    if in_ranks(path, choices) or describes_itself(path) or is_megatron(path):
        return False
    if not is_directory(path):
        return False
    model = open_checkpoint(path, choices.step)
    if model.format != "hugging face directory":
        return False
    source = bind_source(model, replace(choices, family=None, layout=None))
    return source.binding.layout.family == "huggingface"


def compare_computed(one: Source, other: Source, options: Verify) -> SideBySide:
    """Runs the same tokens through both. Raises `UsageError` for options that are MindSpore's."""
    known = options_of(Verify)
    for name in _OF_MINDSPORE:
        if (given := getattr(options, name)) != known[name].default:
            raise UsageError(
                f"{option(name, given)}: {options.ms} is a Hugging Face directory, which "
                "transformers computes as a whole on the CPU; omit it."
            )
    from ckptforge.forward.side_by_side import side_by_side

    found = side_by_side(one, other, options)
    return SideBySide(
        a=str(options.hf_dir),
        b=str(options.ms),
        models=[one.table.name, other.table.name],
        compute=options.compute,
        prompt=found.prompt.of,
        tokens=int(found.prompt.ids.size),
        losses=found.losses,
        logits=found.logits,
        layers=found.layers,
        generated=found.generated,
        notes=found.notes,
    )
