"""The journal of a run: which tensors are finished, with their hashes, so that another run can
continue from there.

Each line is the XXH3 (64 bits, hexadecimal) of a JSON object, a space, and the object: first what
the run is made from (`begin`), then one for each finished tensor and each hashed block of a source,
at last one when everything is written and is being put in place. A line that isn't whole ends it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from ckptforge.errors import LeftError, OutputError, shown
from ckptforge.formats.index import FileIndex
from ckptforge.planning.plan import Plan
from ckptforge.publish.audit import audit_json, read_audit
from ckptforge.publish.file_system import FileSystem, LockableWriter
from ckptforge.run.audit import Audit
from ckptforge.run.schedule import Finished, Key
from ckptforge.spelling import flag
from ckptforge.storage.files import write_exactly
from ckptforge.storage.mounts import absolute
from ckptforge.storage.store import Reader
from ckptforge.version import __version__
from ckptforge.wording import listing

_MAX_LINE = 1 << 26
_PIECE = 1 << 16


@dataclass
class Journal:
    """An open journal. `sources` are digests by (index of the source, first byte of the block);
    `units` numbers those of several processes' work that are durable (`machines/units.py`);
    `consumed` are the indexes of sources that were removed; `publishing` is the inode of what is
    being put in place, once that has begun; at byte `end` the next line goes."""

    path: Path
    file: LockableWriter
    head: Mapping[str, Any]
    tensors: dict[Key, Finished] = field(default_factory=dict)
    sources: dict[tuple[int, int], bytes] = field(default_factory=dict)
    units: set[int] = field(default_factory=set)
    consumed: set[int] = field(default_factory=set)
    publishing: int | None = None
    end: int = 0

    @property
    def audit(self) -> Audit:
        """What the casts of all finished tensors did."""
        audit = Audit()
        for finished in self.tensors.values():
            audit.merge(finished.audit)
        return audit

    def add_tensor(self, key: Key, finished: Finished) -> None:
        """Notes a finished tensor."""
        self.tensors[key] = finished
        self.add_line(
            {
                "file": key[0],
                "tensor": key[1],
                "hash": finished.hash,
                "casts": audit_json(finished.audit),
            }
        )

    def add_source(self, index: int, start: int, digest: bytes) -> None:
        """Notes the hash of a block of a source."""
        self.sources[index, start] = digest
        self.add_line({"source": index, "start": start, "digest": digest.hex()})

    def add_unit(self, number: int) -> None:
        """Notes durably that a unit is finished and durable itself."""
        self.units.add(number)
        self.add_line({"unit": number})
        self.sync()

    def refuse_to_lose(self, output: Path, reason: str = "") -> None:
        """Raises `LeftError` where sources were removed, of which all that is left lies here."""
        if self.consumed and self.publishing is None:
            gone = [self.head["sources"][index]["path"] for index in sorted(self.consumed)]
            raise LeftError(
                f"{output}: {self.path.parent} holds all that is left of files that were removed "
                f"({flag('consume')}):\n{listing(gone)}\n{reason}Go on with {flag('resume')} and "
                "the command that it was begun with; it can't be started over."
            )

    def add_consumed(self, index: int) -> None:
        """Notes durably that a source is about to be removed, as all that was made of it is
        durable."""
        self.consumed.add(index)
        self.add_line({"consumed": index})
        self.sync()

    def add_publishing(self, inode: int) -> None:
        """Durably: what is put in place before would be taken for another's."""
        self.publishing = inode
        self.add_line({"publishing": inode})
        self.sync()

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Writes a line. Raises `OutputError`."""
        content = journal_line(json.dumps(line, separators=(",", ":")).encode())
        try:
            write_exactly(self.file, self.end, content, self.path)
        except OutputError as error:
            with suppress(OSError):  # what follows would be lost behind half a line
                self.file.resize(self.end)
            reason = getattr(error.__cause__, "strerror", None)
            raise OutputError(f"{self.path}: can't be written: {reason}.") from error
        self.end += len(content)

    def sync(self) -> None:
        """Makes the lines durable. Raises `OutputError`."""
        try:
            self.file.sync()
        except OSError as error:
            raise OutputError(f"{self.path}: can't be synced to disk: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def journal_line(content: bytes) -> bytes:
    """A line of a journal."""
    return xxhash.xxh3_64(content).hexdigest().encode() + b" " + content + b"\n"


def begin(disk: FileSystem, path: Path, head: Mapping[str, Any]) -> Journal:
    """A new journal, whose first line is durable. Raises `OutputError` and `OSError`."""
    try:
        file = disk.create(path)
        file.resize(0)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
    journal = Journal(path, file, head)
    journal.add_line(journal.head)
    journal.sync()
    return journal


def reopen(disk: FileSystem, path: Path) -> Journal | None:
    """The journal that a run left, cut after its last whole line; None where there is none."""
    journal = _open(disk, path)
    if journal is not None:
        journal.file.resize(journal.end)
    return journal


def look(disk: FileSystem, path: Path) -> Journal | None:
    """What stands in a journal that another run may be writing; it is closed already."""
    if (journal := _open(disk, path)) is not None:
        journal.close()
    return journal


def _open(disk: FileSystem, path: Path) -> Journal | None:
    try:
        file = disk.reopen(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(
            f"{path}: can't be opened: {error.strerror}; remove the directory that it lies in."
        ) from error
    if file is None:
        raise OutputError(f"{path}: isn't a regular file; remove the directory that it lies in.")
    journal: Journal | None = None
    try:
        journal = _read(path, file)
    finally:
        if journal is None:
            file.close()
    return journal


def _read(path: Path, file: LockableWriter) -> Journal | None:
    """A journal up to its last whole line."""
    journal: Journal | None = None
    for line in _lines(file):
        try:
            text = line.partition(b" ")[2]
            if line != journal_line(text[:-1]):
                break
            content = json.loads(text)
            if journal is None:
                journal = Journal(path, file, {**content})
            else:
                _read_line(journal, content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            break
        journal.end += len(line)
    return journal


def _lines(file: Reader) -> Iterator[bytes]:
    """The lines of a file, with their ends; one that is too long is cut."""
    offset, rest, buffer = 0, b"", memoryview(bytearray(_PIECE))
    while count := file.read_into(offset, buffer):
        offset += count
        *lines, rest = (rest + buffer[:count]).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if len(rest) > _MAX_LINE:
            break
    if rest:
        yield rest


def _read_line(journal: Journal, content: dict[str, Any]) -> None:
    if "tensor" in content:
        key = str(content["file"]), str(content["tensor"])
        journal.tensors[key] = Finished(str(content["hash"]), read_audit(content["casts"]))
    elif "source" in content:
        block = int(content["source"]), int(content["start"])
        journal.sources[block] = bytes.fromhex(content["digest"])
    elif "consumed" in content:
        journal.consumed.add(int(content["consumed"]))
    elif "unit" in content:
        journal.units.add(int(content["unit"]))
    else:
        journal.publishing = int(content["publishing"])


def head_of(plan: Plan, command: str | None) -> dict[str, Any]:
    """What a run is made from: our version, the plan, the sources when they were indexed."""
    return {
        "ckptforge": __version__,
        "command": command,
        "plan": fingerprint(plan),
        "sources": [_state(file) for file in plan.sources],
    }


def differences(before: Mapping[str, Any], head: Mapping[str, Any]) -> str | None:
    """Why a run that is made from `head` can't continue where one stopped that was made from
    `before`; None if it can."""
    if before.get("ckptforge") != head["ckptforge"]:
        return (
            f"it was begun by ckptforge {str(before.get('ckptforge'))[:100]}, this is "
            f"{head['ckptforge']}"
        )
    old, new = before.get("sources"), head["sources"]
    if not isinstance(old, list) or [isinstance(a, dict) and a.get("path") for a in old] != [
        b["path"] for b in new
    ]:
        return "its inputs are other files"
    for a, b in zip(old, new, strict=True):
        for key, what in (("size", "size"), ("mtime_ns", "time of change"), ("index", "header")):
            if a.get(key) != b[key]:
                return (
                    f"the input {b['path']} has changed since: its {what} was {shown(a.get(key))}, "
                    f"now it is {b[key]}"
                )
    if before.get("plan") != head["plan"]:
        first, second = (
            str(found or "a call from Python")[:1000]
            for found in (before.get("command"), head["command"])
        )
        return f"it was begun by another command ({first}; this is {second})"
    return None


def _state(file: FileIndex) -> dict[str, Any]:
    index = xxhash.xxh3_64()
    for entry in file.tensors.values():
        extents = [(extent.start, extent.offset, extent.length) for extent in entry.extents]
        index.update(_bytes(entry.name, entry.dtype, entry.shape, extents))
    return {
        "path": os.path.normpath(absolute(file.path)),
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "index": index.hexdigest(),
    }


def _bytes(*values: object) -> bytes:
    return "\0".join(map(str, values)).encode(errors="surrogatepass") + b"\n"


def fingerprint(plan: Plan) -> str:
    """A hash of all that decides a plan's bytes but what the sources hold."""
    state = xxhash.xxh3_64()
    numbers = {file.path: i for i, file in enumerate(plan.sources)}
    state.update(_bytes(plan.verb, plan.is_directory, sorted(plan.small_files.items())))
    known: dict[int, bytes] = {}  # of what many files have alike

    def once(thing: object, content: Iterable[bytes]) -> bytes:
        if id(thing) not in known:
            known[id(thing)] = xxhash.xxh3_128_digest(b"".join(content))
        return known[id(thing)]

    for placed in plan.assemblies.files:
        file, literals = placed.file, placed.file.literals
        state.update(_bytes(plan.name_of(file.path), file.size))
        state.update(once(literals, (_bytes(at) + literal for at, literal in literals)))
        for part in placed.parts:
            state.update(once(part.names, (_bytes(*part.names),)) + _bytes(part.box))
    steps: dict[tuple[int, ...], bytes] = {}
    encode = msgspec.msgpack.Encoder().encode
    own = (placed.own.items() for placed in plan.assemblies.files if placed.own is not None)
    for name, value in chain(plan.assemblies.values.items(), *own):
        state.update(_bytes(name, value.dtype))
        if value.encoding is not None:
            state.update(value.encoding.identity())
        for term in value.terms:
            state.update(_bytes(term.weight, term.fill))
            for fragment in term.fragments:
                stored, key = fragment.stored, tuple(map(id, fragment.steps))
                if key not in steps:
                    steps[key] = b"".join(step.identity() for step in fragment.steps)
                # of a file that is computed its path, which says how
                number = numbers.get(stored.path, str(stored.path))
                source = (number, stored.name, stored.dtype.name)
                state.update(encode((source, fragment.transfer)) + steps[key])
    return state.hexdigest()
