"""A PEFT directory as a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckptforge.adapters import peft
from ckptforge.adapters.adapter import Adapter
from ckptforge.adapters.converting import Converted
from ckptforge.errors import PlanError
from ckptforge.formats import safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.planning.lower import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.targets.target import LaidOut


def holds(config: peft.AdapterConfig, rank: int, scale: float, modules: Sequence[str] = ()) -> bool:
    """Whether a config says the rank and scale of all modules, and names them."""
    targets = config.content.get("target_modules")
    if isinstance(targets, list):
        ends = {str(name).rpartition(".")[2] for name in targets}
        if not ends.issuperset(peft.ends(modules)):
            return False
    if config.content.get("rank_pattern") or config.content.get("alpha_pattern"):
        return False
    return config.rank("") == rank and abs(config.scale("") - scale) <= 1e-12 * abs(scale)


class PeftTarget(msgspec.Struct, frozen=True):
    """The directory of an adapter: its files as they were, where the factors are the same."""

    output: Path
    adapter: Adapter
    converted: Converted

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """adapter_model.safetensors, and adapter_config.json beside it. Raises `PlanError` for
        ranks and scales that PEFT has no record for."""
        adapter, converted = self.adapter, self.converted
        side, config = adapter.kept.side, adapter.kept.config
        files = {} if side is None else side.files
        small = {name: content for name, content in files.items() if name != peft.CONFIG}
        kept = None if config is None or config.stacked else config
        if side is not None and kept is not None and adapter.layout.family == "huggingface":
            small[peft.CONFIG] = side.files[peft.CONFIG]
        elif converted.rank is None or converted.scale is None:
            raise PlanError(
                f"{adapter.path}: its modules have different ranks or scales; PEFT has no record "
                "of which module has which."
            )
        elif side and kept and holds(kept, converted.rank, converted.scale, converted.modules):
            small[peft.CONFIG] = side.files[peft.CONFIG]
        else:
            small[peft.CONFIG] = peft.config_json(
                converted.modules, converted.rank, converted.scale * converted.rank, config
            )
        recorded = {} if side is None else side.shards.get(peft.WEIGHTS, {})
        by_name = {spec.name: spec for spec in specs}
        path = self.output / peft.WEIGHTS
        dtypes = {spec.name: spec.dtype.safetensors for spec in specs}
        if recorded.get("tensors") == dtypes:
            ordered = [by_name[name] for name in recorded["tensors"]]
            layout = safetensors.lay_out(path, ordered, recorded["metadata"])
        else:
            layout = safetensors.lay_out(path, safetensors.ordered(specs), {"format": "pt"})
        return LaidOut(files=(PlacedFile.whole(layout),), small_files=small)
