"""The map from tensors to files that an index of a directory holds."""

from __future__ import annotations

from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.foreign.files import is_file_name
from ckptforge.foreign.json import read_object


def weight_map_of(index: Path, of: str = "tensor") -> dict[str, str]:
    """Tensor → name of its file, as an index says. Raises `FormatError`."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise FormatError(f"{index}: weight_map must map {of} names to file names.")
    if bad := [name for name in sorted(set(weight_map.values())) if not is_file_name(name)]:
        raise FormatError(f"{index}: {shown(bad[0])} isn't the name of a file in this directory.")
    return weight_map
