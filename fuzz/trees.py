"""Seeds taken apart, so that a mutation goes where a format's own checks are: JSON as a tree,
protobuf as nested fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ckptforge.formats.protobuf import encode_varint

NUMBERS = [
    0,
    1,
    2,
    7,
    63,
    64,
    65,
    127,
    128,
    255,
    1 << 14,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    (1 << 53) + 1,
    (1 << 62),
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "é" * 200,
    "x" * 300,
    "rank_0",
    "1-w",
    "999999-w",
    "__metadata__",
    "#",
    "{l}",
    "NaN",
]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "1.5",
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    "[" * 200,
    '{"a":' * 200,
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    '""',
    "01",
    "+1",
    "0x10",
    "/*",
    "'a'",
    '"',
]


_MANY = 2000  # messages in a message, after some of its fields were repeated


class Raw(str):
    """Text that stands in JSON as it is, right or wrong."""


class Pairs(list[tuple[Any, Any]]):
    """A JSON object, whose keys may stand twice."""


def load(text: str) -> Any:
    """The tree of a JSON text."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(tree: Any) -> str:
    """JSON of a tree, which may hold what JSON may not."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{dump(key)}:{dump(value)}" for key, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(dump, tree)) + "]"
    return json.dumps(tree, ensure_ascii=False)


def containers(tree: Any) -> list[Any]:
    """Every list and object in a tree."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, list):
            found.append(node)
            left += [value for _, value in node] if isinstance(node, Pairs) else node
    return found


def strange_json(random: Random) -> Any:
    """A value that a reader may not expect where it stands."""
    kind = random.randrange(8)
    if kind < 2:
        return Raw(random.choice(RAW))
    if kind < 4:
        return random.choice(NUMBERS) * random.choice([1, 1, -1])
    if kind < 6:
        return random.choice(NAMES)
    if kind == 6:
        return [random.choice(NUMBERS)] * random.choice([0, 1, 2, 3, 70])
    return random.choice([None, True, False, 0.5, Pairs(), [], Pairs([("a", 1), ("a", 2)])])


def mutate_json(tree: Any, random: Random) -> None:
    """Changes a tree in place at a few places."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        node = random.choice(containers(tree))
        if not node:
            node.append(
                ("a", strange_json(random)) if isinstance(node, Pairs) else strange_json(random)
            )
            continue
        i = random.randrange(len(node))
        kind = random.randrange(8)
        if kind == 0:
            del node[i]
        elif kind == 1:
            node.insert(random.randrange(len(node) + 1), node[i])
        elif kind == 2 and isinstance(node, Pairs):
            node[i] = (random.choice([random.choice(NAMES), strange_json(random)]), node[i][1])
        elif kind == 3:
            j = random.randrange(len(node))
            if isinstance(node, Pairs):
                node[i], node[j] = (node[i][0], node[j][1]), (node[j][0], node[i][1])
            else:
                node[i], node[j] = node[j], node[i]
        elif kind == 4 and isinstance(node, Pairs) and isinstance(node[i][1], int):
            node[i] = (node[i][0], node[i][1] + random.choice([-1, 1, 1 << 32]))
        elif isinstance(node, Pairs):
            node[i] = (node[i][0], strange_json(random))
        else:
            node[i] = (
                node[i] + random.choice([-1, 1, 8])
                if kind == 4 and isinstance(node[i], int)
                else strange_json(random)
            )


@dataclass
class Field:
    """A protobuf field: `inner` are its fields if its content is a message, else `content`, or
    `value` of a varint. `length` is a wrong length to write."""

    number: int
    wire: int
    value: int = 0
    content: bytes = b""
    inner: list[Field] | None = None
    length: int | None = None
    long: bool = False


def parse(data: bytes, depth: int = 0) -> list[Field] | None:
    """The fields of a message; None for what isn't one."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if at < 0 or key & 7 not in (0, 2) or not 0 < key >> 3 < 32:
            return None
        item = Field(key >> 3, key & 7, value)
        if item.wire == 2:
            if value > len(data) - at:
                return None
            item.content = data[at : at + value]
            item.inner = parse(item.content, depth + 1) if depth < 4 and value else None
            at += value
        found.append(item)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if not 0 <= at + i < len(data):
            break
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value, at + i + 1
    return 0, -1


def write(fields: list[Field]) -> bytes:
    """The bytes of fields."""
    out = bytearray()
    for item in fields:
        out += encode_varint(item.number << 3 | item.wire)
        if item.wire == 2:
            content = item.content if item.inner is None else write(item.inner)
            out += _long(len(content) if item.length is None else item.length, item.long) + content
        else:
            out += _long(item.value, item.long) + item.content
    return bytes(out)


def _long(value: int, long: bool) -> bytes:
    """A varint; `long`: written in more bytes than it needs."""
    short = encode_varint(value)
    return short[:-1] + bytes([short[-1] | 0x80, 0x80, 0x00]) if long else short


def mutate_fields(fields: list[Field], random: Random) -> None:
    """Changes a message in place at a few places."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        messages, left = [], [fields]
        while left:
            message = left.pop()
            messages.append(message)
            left += [item.inner for item in message if item.inner is not None]
            if len(messages) > _MANY:
                return
        message = random.choice(messages)
        if not message:
            message.append(Field(random.randrange(1, 8), 0, random.choice(NUMBERS)))
            continue
        i = random.randrange(len(message))
        item = message[i]
        kind = random.randrange(12)
        if kind == 0:
            del message[i]
        elif kind == 1:
            message.insert(random.randrange(len(message) + 1), item)
        elif kind == 2:
            message[i : i + 1] = [item] * random.choice([2, 65, 300])
        elif kind == 3:
            item.number = random.choice([0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 1 << 28, (1 << 61) - 1])
        elif kind == 4:
            item.wire = random.choice([0, 1, 2, 3, 4, 5, 6, 7])
        elif kind == 5:
            item.length = random.choice(NUMBERS)
        elif kind == 6:
            item.long = True
        elif kind == 7:
            message[i : i + 1] = [
                Field(item.number, 3, content=write([item])),
                Field(item.number, 4),
            ]
        elif kind == 8:
            nested = item
            for _ in range(random.choice([1, 5, 100])):
                nested = Field(item.number, 2, inner=[nested])
            message[i] = nested
        elif kind == 9 and item.wire == 2 and item.inner is None:
            item.content = random.choice(
                [
                    random.choice(NAMES).encode(),
                    b"\xff\xfe",
                    b"",
                    b"\x80" * 30,
                    random.choice(["Float32", "str", "Int4", "BFloat16"]).encode(),
                ]
            )
        elif kind == 10:
            item.inner, item.content = None, random.randbytes(random.randrange(20))
        else:
            item.value = random.choice([random.choice(NUMBERS), item.value + 1, item.value - 1])


__all__ = [
    "NAMES",
    "NUMBERS",
    "RAW",
    "Field",
    "Pairs",
    "Raw",
    "dump",
    "field",
    "load",
    "mutate_fields",
    "mutate_json",
    "parse",
    "write",
]
