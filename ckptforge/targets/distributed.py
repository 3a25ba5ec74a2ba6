"""A checkpoint of torch.distributed.checkpoint as a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckptforge.checkpoints.card import HuggingFaceSide
from ckptforge.checkpoints.huggingface import INDEX
from ckptforge.formats.layout import TensorSpec
from ckptforge.planning.lower import PlacedFile
from ckptforge.publish.output_name import refuse_name
from ckptforge.targets.huggingface import DEFAULT_SHARD_BYTES, cut_into_shards
from ckptforge.targets.target import LaidOut


class DistributedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """`.metadata`, and files of at most `max_file_size` bytes with whole tensors, or one of them;
    `side` is what goes along with a model of Hugging Face."""

    output: Path
    side: HuggingFaceSide | None = None
    max_file_size: int | None = None

    def __post_init__(self) -> None:
        refuse_name(self.output, directory=True)

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The files. Raises `PlanError` for dtypes that torch doesn't have."""
        from ckptforge.torch_files.distributed import METADATA
        from ckptforge.torch_files.distributed_writing import Item, chunk_file, metadata_of
        from ckptforge.torch_files.writing import lay_out_items

        files, items = [], dict[str, Item]()
        shards = cut_into_shards(specs, self.max_file_size or DEFAULT_SHARD_BYTES)
        for number, held in enumerate(shards.values()):
            name = chunk_file(number)
            file, places = lay_out_items(self.output / name, held)
            files.append(PlacedFile.whole(file))
            items |= {one: (name, *place) for one, place in places.items()}
        kept = self.side.files if self.side is not None else {}
        small = {name: content for name, content in kept.items() if name != INDEX}
        small[METADATA] = metadata_of(self.output / METADATA, specs, items)
        return LaidOut(files=tuple(files), small_files=small)
