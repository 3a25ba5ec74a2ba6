"""Tensors that are transposed on their way from one address to another: written from front to back,
they are read all over, and so are held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckptforge.errors import OutputError
from ckptforge.planning.plan import Plan
from ckptforge.remote.held import WINDOW
from ckptforge.remote.parts import PARTS
from ckptforge.spelling import option
from ckptforge.storage.address import address


@contextmanager
def holding_turned(plan: Plan, memory: int) -> Iterator[None]:
    """Has room for the largest of them. Raises `OutputError` where `memory` is less."""
    nbytes, name = max(_turned(plan), default=(0, ""))
    needed = nbytes + 4 * WINDOW
    if needed > PARTS.limit and nbytes > memory:
        raise OutputError(
            f"{plan.output}: {name} is transposed on its way from one address to another, for "
            f"which {nbytes} bytes of it are held in memory: give {option('memory')} of at least "
            "that, or write to a disk."
        )
    with PARTS.allowing(needed):
        yield


def _turned(plan: Plan) -> Iterator[tuple[int, str]]:
    """(bytes of the source that are read all over, tensor)."""
    if not any(address(source.path) for source in plan.sources):
        return
    for assembly in plan.assemblies:
        for fragment in assembly.fragments:
            transfer, stored = fragment.transfer.coalesced(), fragment.stored
            turned = transfer.shape and transfer.source_strides[-1] != 1
            if turned and address(stored.path):
                elements = transfer.last_source + 1 - transfer.source
                yield stored.bytes_of(transfer.source, elements)[1], assembly.place.name
