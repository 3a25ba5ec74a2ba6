"""Which bytes of its files a model is made of, where that isn't all of them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from ckptforge.model import Model
from ckptforge.values import Stored

Ranges = tuple[tuple[int, int], ...]  # (first byte, end) of each, in order


def ranges_read(model: Model) -> dict[Path, Ranges]:
    """File → the ranges of bytes that are read of its tensors, for the files of a model that aren't
    read whole. A file with a checksum is."""
    whole, parts = _read(model)
    found: dict[Path, list[tuple[int, int]]] = {
        file.path: []
        for file in model.files
        if file.checksum is None
        and (file.passed_over or not whole.keys() >= set(map(id, file.tensors.values())))
    }
    for stored in whole.values():
        if stored.path in found:
            found[stored.path] += ((one.offset, one.offset + one.length) for one in stored.extents)
    for stored, held in parts.values():
        if stored.path in found and id(stored) not in whole:
            spans = [stored.file_ranges(*stored.bytes_of(lo, hi - lo)) for lo, hi in held]
            found[stored.path] += ((at, at + length) for at, length in chain(*spans))
    partly = [file for file in model.files if file.path in found]
    sizes = {file.path: sum(one.nbytes for one in file.tensors.values()) for file in partly}
    passing_over = {file.path for file in partly if file.passed_over}
    return {
        path: together
        for path, ranges in found.items()
        for together in (joined(ranges),)
        if path in passing_over or sum(end - first for first, end in together) != sizes[path]
    }


def _read(
    model: Model,
) -> tuple[dict[int, Stored], dict[int, tuple[Stored, list[tuple[int, int]]]]]:
    """By identity: the stored tensors that are read whole, and the elements that others are read
    of."""
    whole: dict[int, Stored] = {}
    parts: dict[int, tuple[Stored, list[tuple[int, int]]]] = {}
    values = chain(model.values.values(), *model.account.must_equal.values())
    # codes and scales, for one, have the same terms
    for terms in {id(value.terms): value.terms for value in values}.values():
        for fragment in (one for term in terms for one in term.fragments):
            stored, transfer = fragment.stored, fragment.transfer
            if transfer.shape == stored.shape or (size := transfer.size) == stored.elements:
                whole[id(stored)] = stored
            elif size:
                held = parts.setdefault(id(stored), (stored, []))[1]
                held.append((transfer.source, transfer.last_source + 1))
            for step in fragment.steps:
                whole.update((id(one), one) for one in step.inputs)
    return whole, parts


def joined(ranges: list[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that meet as one."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((first, end))
    return tuple(found)
