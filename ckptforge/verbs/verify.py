"""verify: the same tokens through transformers and MindSpore, by layer and end to end, or through
two models of transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ckptforge.reading.known import Choices
from ckptforge.verbs.choices import choices_of
from ckptforge.verbs.options import Verify
from ckptforge.verbs.public import verb
from ckptforge.verbs.ranks import open_source
from ckptforge.verbs.side_by_side import SideBySide, compare_computed, is_hub_directory
from ckptforge.wording import brief, counted

if TYPE_CHECKING:
    from ckptforge.forward.checks import EndCheck, LayerCheck


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
        """Whether every layer and the end passed."""
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
        """The object that `--json` prints."""
        return {"ok": self.passed, "verb": "verify", **asdict(self)}


@verb(Verify)
def verify(options: Verify) -> Verification | SideBySide:
    """Runs the same tokens through transformers and through MindSpore, and compares. Returns a
    `Verification`; of two Hugging Face directories, which transformers computes both, a
    `SideBySide`.

    Needs torch and transformers, and mindspore for its checkpoints. A `Verification` is true where
    it passed, a `SideBySide` where all numbers are finite.

    Raises `UsageError` for layers and tokens that the model doesn't have, `VerifyError` for missing
    packages, a device that isn't there and models of different sizes, and the errors of opening.
    """
    choices = choices_of(options, family="mindspore")
    if is_hub_directory(options.ms, choices):
        hub = open_source(options.hf_dir, Choices(family="huggingface"))
        other = open_source(options.ms, Choices(family="huggingface"))
        return compare_computed(hub, other, options)
    from ckptforge.forward.bench import Bench  # which needs torch and mindspore

    bench = Bench.of(options.compute, options.device)
    hub = open_source(options.hf_dir, Choices(family="huggingface"))
    checkpoint = open_source(options.ms, choices)
    if not checkpoint.config:  # that of the reference
        checkpoint = open_source(options.ms, replace(choices, config=options.hf_dir))
    found = bench.check(hub, checkpoint, options)
    return Verification(
        hf_dir=str(options.hf_dir),
        ms=str(options.ms),
        layout=checkpoint.binding.layout.name,
        device=bench.device,
        compute=options.compute,
        tokens=found.tokens,
        layers=found.layers,
        end=found.end,
        unreached=[
            f"layer {check.layer}: "
            f"{', '.join(str(e) for e, count in enumerate(check.reached) if not count)}"
            for check in found.layers
            if 0 in check.reached
        ],
        generated=found.generated,
        notes=found.notes,
    )
