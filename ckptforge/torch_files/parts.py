"""The parts of tensors that ranks have, as torch's files describe them: DTensor, ShardedTensor."""

from __future__ import annotations

from typing import Any

from ckptforge.formats.index import MAX_DIMS
from ckptforge.torch_files.pickle_data import Inert, Named
from ckptforge.torch_files.views import Unreadable, View, is_count

_MAX_PIECES = 16  # that a rank has of one tensor


class Sharded(Unreadable, frozen=True):
    """The part that a rank has of a tensor of this shape (DTensor), cut along an axis; None where
    each has all of it."""

    local: View
    shape: tuple[int, ...]
    axis: int | None


class Pieces(Unreadable, frozen=True):
    """What a rank has of a tensor of this shape (ShardedTensor): boxes, each by where it begins."""

    pieces: tuple[tuple[tuple[int, ...], View], ...]
    shape: tuple[int, ...]


def whole_of(found: View | Unreadable) -> View | Unreadable:
    """The tensor itself where a rank has all of it."""
    if isinstance(found, Sharded) and found.local.shape == found.shape:
        return found.local
    if isinstance(found, Pieces) and len(found.pieces) == 1:
        ((_, view),) = found.pieces
        return view if view.shape == found.shape else found
    return found


def part_of(arguments: tuple[Any, ...]) -> Sharded | Pieces | Unreadable | None:
    """The part that a rank has of a tensor, of what `_rebuild_from_type_v2` is called with; None
    where it is none.

    Source: torch 2.13 `torch/distributed/tensor`, and files that it wrote.
    """
    _, kind, inner, state = arguments
    if isinstance(kind, Named) and kind.name.endswith(".ShardedTensor"):
        return _pieces(inner[2], state)
    if not isinstance(kind, Named) or not kind.name.endswith(".DTensor"):
        return None
    local, spec = _attribute(state, "_local_tensor"), _attribute(state, "_spec")
    placements = _attribute(spec.state, "placements") if isinstance(spec, Inert) else None
    shape = inner[2]
    if not isinstance(local, View) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        return None
    if not isinstance(placements, tuple) or len(placements) > MAX_DIMS:
        return None
    cut = [one for one in placements if not one.name.endswith(".Replicate")]
    if any(not one.name.endswith(".Shard") for one in cut) or len(cut) > 1:
        return Unreadable("a part of a tensor (DTensor), cut in a way that isn't known")
    axis = _attribute(cut[0].state, "dim") if cut else None
    if not all(map(is_count, shape)) or len(local.shape) != len(shape):
        return None
    if cut and (axis is None or not is_count(axis) or axis >= len(shape)):
        return None
    what = f"a part {list(local.shape)} of a tensor {list(shape)} (DTensor)"
    return Sharded(what=what, local=local, shape=shape, axis=axis)


def _pieces(shape: Any, state: Any) -> Pieces | None:
    """A ShardedTensor by its state: the shards of this rank, then what describes all. None where it
    isn't one.

    Source: torch 2.13 `torch/distributed/_shard/sharded_tensor/api.py` (`__getstate__`).
    """
    local = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
        return None
    if not isinstance(local, list) or len(local) > _MAX_PIECES:
        return None
    if not all(isinstance(one, Inert) for one in local):
        return None
    pieces = []
    for one in local:
        view, about = _attribute(one.state, "tensor"), _attribute(one.state, "metadata")
        start = _attribute(about.state, "shard_offsets") if isinstance(about, Inert) else None
        if not isinstance(view, View) or not isinstance(start, list | tuple):
            return None
        if len(start) != len(shape) or len(view.shape) != len(shape):
            return None
        ends = zip(start, view.shape, shape, strict=True)
        if not all(map(is_count, start)) or any(lo + n > whole for lo, n, whole in ends):
            return None
        pieces.append((tuple(start), view))
    what = f"a part of a tensor {list(shape)} (ShardedTensor)"
    return Pieces(what=what, pieces=tuple(pieces), shape=shape)


def _attribute(state: Any, name: str) -> Any:
    """An attribute in a state, which is a dictionary, or one of them and one of slots; None where
    there is none."""
    parts = state[:2] if isinstance(state, tuple) else (state,)
    return next((part[name] for part in parts if isinstance(part, dict) and name in part), None)
