"""Mutations of pickles by their opcodes, and of the zip archives of torch by the fields of their
headers."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from random import Random

from fuzz import mutate, trees

GLOBALS = [
    *("os system", "builtins eval", "builtins getattr", "builtins list", "builtins dict"),
    *("collections OrderedDict", "collections defaultdict", "argparse Namespace", "torch Size"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch bfloat16"),
    *("torch._utils _rebuild_parameter", "torch._utils _rebuild_wrapper_subclass"),
    *("torch._tensor _rebuild_from_type_v2", "torch.storage UntypedStorage", "torch FloatStorage"),
    *("torch.distributed._shard.sharded_tensor.api ShardedTensor", "numpy dtype"),
    *("torch.distributed.tensor DTensor", "numpy.core.multiarray scalar", "megatron.core.enums X"),
    *("torch.distributed.tensor.placement_types Shard", "a\x1b[2J b", "\u202e x"),
    *("torch.distributed.checkpoint.metadata TensorStorageMetadata", "x" * 300 + " y"),
]
_KINDS = {3: (b"J", b"K", b"M", b"\x8a"), 4: (b"X", b"\x8c", b"U"), 5: (b"c", b"\x93")}
_PLAIN = b"NNN\x88\x89]}()l\x85\x86\x87teusaR\x81bQ20q\x94\x8f\x90\x91od"
_FIELDS = {  # of a local header, an entry and the ends of a directory: (offset, bytes) of numbers
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
    b"PK\x05\x06": ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\x06\x06": ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\x06\x07": ((4, 4), (8, 8), (16, 4)),
}


def opcodes(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Takes out, repeats, moves, swaps and changes opcodes, and puts others between them."""
    parts = split(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        kind = random.randrange(16)
        if kind > 8:  # of the same kind, so that the rest is as it should be
            kind = 3 + kind % 3
            alike = [i for i, part in enumerate(parts) if part[:1] in _KINDS[kind]]
            i = random.choice(alike or range(len(parts)))
        else:
            i = random.randrange(len(parts))
        if kind == 0:
            del parts[i : i + random.choice([1, 1, 4])]
        elif kind == 1:
            parts[i:i] = parts[i : i + random.choice([1, 8, 40])] * random.choice([1, 2, 50])
        elif kind == 2:
            j = random.randrange(len(parts))
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 3:
            parts[i] = _number(random)
        elif kind == 4:
            parts[i] = _text(random.choice(trees.NAMES))
        elif kind == 5:
            module, name = random.choice(GLOBALS).split(" ", 1)
            parts[i] = f"c{module}\n{name}\n".encode()
        elif kind == 6:
            parts.insert(i, bytes([random.choice(_PLAIN)]))
        elif kind == 7:
            parts.insert(i, b"h" + bytes([random.randrange(40)]))
        else:
            other = split(random.choice(seeds))
            j = random.randrange(len(other))
            parts[i:i] = other[j : j + random.choice([1, 4, 40])]
        parts = parts or [b"."]
    return b"".join(parts)[: mutate.MAX]


def split(data: bytes) -> list[bytes]:
    """A pickle cut before each opcode, as far as it is one."""
    starts = []
    try:
        for _, _, at in pickletools.genops(data):
            starts.append(at or 0)
    except Exception:
        starts.append(len(data))
    ends = [*starts[1:], len(data)]
    return [data[at:end] for at, end in zip(starts, ends, strict=True)] or [data]


def _number(random: Random) -> bytes:
    number = random.choice(trees.NUMBERS) * random.choice([1, 1, 1, -1])
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def headers(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Puts other numbers into the headers of a zip archive."""
    out = bytearray(data)
    found = [
        (at, fields)
        for mark, fields in _FIELDS.items()
        for at in _each(data, mark)
        if at + 56 <= len(data) or mark == b"PK\x05\x06"
    ]
    for _ in range(random.choice([1, 1, 2, 3])):
        if not found:
            break
        at, fields = random.choice(found)
        offset, size = random.choice(fields)
        start = at + offset
        own = int.from_bytes(out[start : start + size], "little")
        other, _ = random.choice(found)
        new = random.choice([random.choice(trees.NUMBERS), own + random.choice([-1, 1, 64]), other])
        out[start : start + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out)


def _each(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def pickle_of(path_or_bytes: bytes) -> bytes:
    """The pickle in an archive of torch."""
    with zipfile.ZipFile(io.BytesIO(path_or_bytes)) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
        return archive.read(name)


def with_pickle(content: bytes, pickle: bytes) -> bytes:
    """An archive of torch with another pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("/data.pkl") else old.read(name))
    return made.getvalue()
