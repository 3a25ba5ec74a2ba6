"""Tensors that are made together, so that what they are made of is read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckptforge.planning.assembly import Assembly

Together = tuple[Assembly, ...]


def together(assemblies: Iterable[Assembly]) -> Iterator[Together]:
    """Assemblies, those that follow each other and are made together as one: of the same numbers
    what one family of encodings makes."""
    held: Together = ()
    for assembly in assemblies:
        if held and not _joins(assembly, held):
            yield held
            held = ()
        held += (assembly,)
    if held:
        yield held


def _joins(assembly: Assembly, held: Together) -> bool:
    one, other = held[0].encoding, assembly.encoding
    if one is None or other is None or one.family != other.family:
        return False
    if other in [member.encoding for member in held]:  # so that no tile takes more than it may
        return False
    return held[0].terms == assembly.terms
