"""MindFormers' iteration directories, put together by hand from metadata.json and the files."""

import ast
import json
import math
from pathlib import Path

import numpy as np

from tests.helpers import FIXTURES, raw_safetensors

MINDFORMERS = FIXTURES / "mindformers21"
RUNS = sorted(path.parent.name for path in MINDFORMERS.glob("*/full.npz"))


def iteration_of(root: Path) -> Path:
    """The iteration that a root's tracker names."""
    number = int((root / "latest_checkpointed_iteration.txt").read_text())
    return root / f"iteration_{number:08d}"


def assembled(root: Path) -> dict[str, np.ndarray]:
    """name → bits of the full tensor. Checks that metadata.json says of each rank's slice what the
    layout does, that copies are equal, and that every element is covered once."""
    directory = iteration_of(root)
    files = {path.name: raw_safetensors(path) for path in directory.glob("*.safetensors")}
    if not (directory / "metadata.json").exists():
        assert len({name.partition("model-")[2] for name in files if "model-" in name}) == 1
        return {name: array for file in files.values() for name, array in file.items()}
    metadata = json.loads((directory / "metadata.json").read_text())
    described, found, covered = metadata["state_dict_metadata"], {}, {}
    for key, holders in metadata["storage_data"].items():
        name, (number,) = ast.literal_eval(key)
        tensor = described[name]
        cuts, shape = tensor["axis_fragmentations"], tensor["global_shape"]
        part = [n // cut for n, cut in zip(shape, cuts, strict=True)]
        place = tuple(
            slice(int(i) * n, (int(i) + 1) * n)
            for i, n in zip(np.unravel_index(number, cuts) if cuts else (), part, strict=True)
        )
        for holder in holders:
            piece = files[holder["file_name"]][name]
            assert list(piece.shape) == part, name
            if tensor["layout"] is not None:
                assert place == by_layout(tensor, holder["storage_rank"]), name
            full = found.setdefault(name, np.zeros(shape, piece.dtype))
            if holder is holders[0]:
                full[place] = piece
                covered.setdefault(name, np.zeros(shape, int))[place] += 1
            assert np.array_equal(full[place], piece), name
    assert set(found) == set(described)
    assert all((count == 1).all() for count in covered.values())
    for file in files.values():
        for name, array in file.items():
            assert name in described or np.array_equal(found.setdefault(name, array), array)
    return found


def by_layout(tensor: dict, rank: int) -> tuple[slice, ...]:
    """The slice that a rank holds by the layout of a tensor."""
    layout = tensor["layout"]
    assert list(layout) == [
        "device_matrix",
        "tensor_map",
        "interleaved_parallel",
        "alias_name",
        "rank_list",
    ]
    matrix = layout["device_matrix"]
    assert math.prod(matrix) == len(layout["rank_list"])
    position = rank % len(layout["rank_list"])
    coordinates = [int(c) for c in np.unravel_index(position, matrix)]
    place = []
    for axes, length in zip(layout["tensor_map"], tensor["global_shape"], strict=True):
        index, cut = 0, 1
        for axis in [axes] if isinstance(axes, int) else axes:
            if axis != -1:
                index = index * matrix[-1 - axis] + coordinates[-1 - axis]
                cut *= matrix[-1 - axis]
        place.append(slice(index * (length // cut), (index + 1) * (length // cut)))
    return tuple(place)
