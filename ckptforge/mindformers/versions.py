"""What the versions of MindFormers write in different ways.

Source: the packages mindformers 1.7.0, 1.8.0, 1.9.0, 2.0.0 and 2.1.0,
`mindformers/checkpoint/{checkpoint,metadata,sharded_tensor}.py`.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ckptforge.errors import UsageError
from ckptforge.spelling import option

_FIRST = ("epoch_num", "step_num", "global_step", "loss_scale", "global_batch_size")
COMMON_KEYS = (*_FIRST, "consumed_samples", "ckpt_status")


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version: the keys of its common.json, whether metadata.json names the ranks that hold a
    slice, whether a tensor may have no layout there, and how far that is indented."""

    name: str
    common_keys: tuple[str, ...]
    rank_group: bool
    no_layout: bool
    indent: int | None


_V1_7 = Version(name="1.7", common_keys=_FIRST, rank_group=False, no_layout=False, indent=4)
_V1_9 = replace(_V1_7, name="1.9", common_keys=(*_FIRST, "ckpt_status"), rank_group=True)
_V2_0 = replace(_V1_9, name="2.0", no_layout=True)
_V2_1 = replace(_V2_0, name="2.1", common_keys=COMMON_KEYS, indent=None)
_ALL = (_V1_7, replace(_V1_7, name="1.8"), _V1_9, _V2_0, _V2_1)
VERSIONS = {version.name: version for version in _ALL}
LATEST = "2.1"


def version_of(name: str | None) -> Version:
    """The version of this name, such as "2.1" or "2.1.0"; the latest for None. Raises `UsageError`
    for another name."""
    text = LATEST if name is None else name.strip().lower().removeprefix("r").removeprefix("v")
    found = VERSIONS.get(".".join(text.split(".")[:2]))
    if found is None or not all(part.isdigit() for part in text.split(".")):
        raise UsageError(
            f"{option('mindformers', name)}: expected a version that writes such checkpoints: "
            f"{', '.join(VERSIONS)}."
        )
    return found
