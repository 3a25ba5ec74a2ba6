"""Mutations: of bytes, of text by its formats' words, and of structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from fuzz import trees

Mutator = Callable[[bytes, Sequence[bytes], Random], bytes]
MAX = 1 << 17  # bytes of an input

WORDS = {
    "json": [
        *trees.RAW,
        '"a":1,',
        ",",
        ":",
        "{",
        "}",
        "[",
        "]",
        "\\u",
        "\\ud83d\\ude00",
        '"a":1,"a":2',
        "\ufeff",
    ],
    "yaml": [
        "&a ",
        "*a",
        "<<: *a",
        "<<: [*a, *a]",
        "!!int ''",
        "!!float ''",
        "!!bool x",
        "!!binary a",
        "!!set ",
        "!!omap ",
        "!!timestamp x",
        "!!python/name:os.system ",
        "? ",
        "- ",
        "---\n",
        "%YAML 1.1\n",
        "|\n",
        ">\n",
        "\n  ",
        "0x" + "f" * 100,
        "1:" * 50,
        ".inf",
        ".nan",
        "{",
        "[",
        "#",
        "'",
        '"',
        "9" * 100,
        "\t",
        "2020-99-99",
        "~",
        "true",
    ],
    "toml": [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        "a.b.c",
        "'''",
        '"""',
        '"',
        "'",
        "\n",
        "#",
        "\\u0000",
        "\\ud800",
        "0x" + "f" * 100,
        "9" * 5000,
        "inf",
        "nan",
        "2020-99-99",
        "00:00:00",
        "{l}",
        "{e}",
        " : ",
        "[w1: I + w3: I]",
        "(g r d)",
        "l:mp",
        "e:ep",
        "extends",
        "family",
        " or ",
        " * ",
        "/ 0",
        "²",
        "٣",
    ],
}


def mangle(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Flips, cuts, repeats and splices bytes."""
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        at = random.randrange(len(out) + 1)
        kind = random.randrange(9)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << random.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = random.choice(
                [0, 1, 8, 10, 0x7F, 0x80, 0xFF, random.randrange(256)]
            )
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + random.choice([1, 2, 8, 64])]
        elif kind == 4:
            out[at:at] = random.randbytes(random.choice([1, 2, 8]))
        elif kind == 5:
            out[at:at] = out[at : at + random.choice([1, 8, 64, 1024])] * random.choice([1, 2, 50])
        elif kind == 6:
            out[at : at + 8] = random.choice(trees.NUMBERS).to_bytes(
                8, random.choice(["little", "big"])
            )
        elif kind == 7:
            other = random.choice(seeds)
            out[at:] = other[random.randrange(len(other) + 1) :]
        else:
            out[at:at] = random.choice(
                [b"\xff" * 12, b"\x80" * 40, b"\0" * 40, b"\x0b\x0c", b"\xed\xa0\x80"]
            )
    return bytes(out[:MAX])


def words(language: str) -> Mutator:
    """Puts words of a language into a text, takes parts out of it, and moves its lines."""

    def mutate(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
        text = data.decode("utf-8", "replace")
        for _ in range(random.choice([1, 1, 2, 4])):
            at = random.randrange(len(text) + 1)
            word = random.choice(WORDS[language])
            kind = random.randrange(6)
            if kind == 0:
                text = text[:at] + word * random.choice([1, 1, 2, 100]) + text[at:]
            elif kind == 1:
                text = text[:at] + word + text[at + len(word) :]
            elif kind == 2:
                text = text[:at] + text[at + random.choice([1, 4, 40]) :]
            else:
                lines = text.split("\n")
                i, j = random.randrange(len(lines)), random.randrange(len(lines))
                if kind == 3:
                    lines[i], lines[j] = lines[j], lines[i]
                elif kind == 4:
                    lines.insert(j, lines[i])
                else:
                    head, separator, _ = lines[i].partition(random.choice([": ", " = ", "="]))
                    lines[i] = head + separator + word
                text = "\n".join(lines)
        return text.encode("utf-8", "replace")[:MAX]

    return mutate


def json_tree(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Changes values, keys and structure of JSON."""
    try:
        tree = trees.load(data.decode())
    except (ValueError, RecursionError):
        return mangle(data, seeds, random)
    if not isinstance(tree, list):
        tree = [tree]
    trees.mutate_json(tree, random)
    return trees.dump(tree).encode("utf-8", "surrogatepass")[:MAX]


def safetensors(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Changes the header and gives it the right length, mostly."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return mangle(data, seeds, random)
    header = random.choice([json_tree, json_tree, json_tree, words("json"), mangle])(
        data[8 : 8 + length], [seed[8:] for seed in seeds], random
    )
    said = (
        random.choice([0, 7, 1 << 26, 1 << 40, (1 << 64) - 1, len(header) + 1])
        if random.random() < 0.05
        else len(header)
    )
    body = data[8 + length :]
    if random.random() < 0.1:
        body = body[: random.randrange(len(body) + 1)] + bytes(random.choice([0, 1, 8]))
    return said.to_bytes(8, "little") + header + body


def protobuf(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """Changes fields, their lengths, their nesting and how their numbers are written."""
    fields = trees.parse(data)
    if fields is None:
        return mangle(data, seeds, random)
    trees.mutate_fields(fields, random)
    return trees.write(fields)[:MAX]


def mixed(*mutators: Mutator) -> Mutator:
    """One of them, or of them and `mangle`, for each input."""

    def mutate(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
        return random.choice([*mutators, *mutators, mangle])(data, seeds, random)

    return mutate
