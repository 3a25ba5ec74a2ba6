"""How far back the layers of a model attend, by the keys of config.json that say so."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ckptforge.tables.rows import means


class WindowRow(msgspec.Struct, frozen=True):
    """The keys of config.json that say how far back a layer attends."""

    size: Annotated[str, means("the key of the window's length in tokens")]
    switch: Annotated[str | None, means("the key that must be true for a window")] = None
    layer_types: Annotated[str | None, means("the key that lists which layers have the window")] = (
        None
    )
    first_layer: Annotated[
        str | None, means("the key of the first layer that has it, where layer_types says nothing")
    ] = None
    before_layer: Annotated[
        str | None, means("the key of the first layer that has it no more, where that is so")
    ] = None
    every: Annotated[
        int,
        means("how many layers later the next one has it, where layer_types says nothing", ge=1),
    ] = 1

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it names."""
        keys = (self.switch, self.size, self.layer_types, self.first_layer, self.before_layer)
        return tuple(key for key in keys if key is not None)
