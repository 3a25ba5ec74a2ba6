"""What a target is, and the files that several make."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuzz.mutate import Mutator


@dataclass(frozen=True)
class Target:
    """`read` is given an input; it may return or raise a `CkptforgeError`. `prepare` is done
    before, and not timed."""

    name: str
    seeds: Sequence[bytes]
    mutate: Mutator
    read: Callable[[bytes], object]
    prepare: Callable[[bytes], None] = lambda data: None


def safetensors_file(header: dict[str, object], data: bytes) -> bytes:
    """A safetensors file of that header."""
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data
