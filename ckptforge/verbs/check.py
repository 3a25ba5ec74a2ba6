"""Checking an output against its manifest: whether it is still what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.files import read_file
from ckptforge.checkpoints.manifest import DIRECTORY_NAME, MAX_MANIFEST, Output, manifest_path
from ckptforge.errors import CkptforgeError, FormatError, InputNotFoundError, shown
from ckptforge.examine.hashes import tensor_hashes
from ckptforge.foreign.files import is_file_name
from ckptforge.foreign.json import read_object
from ckptforge.foreign.paths import is_directory, is_file, status_of
from ckptforge.formats.index import FileIndex
from ckptforge.spelling import flag
from ckptforge.storage.store import Kind
from ckptforge.verbs.choices import budget_of
from ckptforge.verbs.options import Check as CheckOptions
from ckptforge.verbs.public import verb
from ckptforge.wording import brief, counted

# name → dtype, shape, hash
Tensors = dict[str, list[Any]]


class Check(msgspec.Struct, frozen=True):
    """What `compare OUT` found: `problems` are sentences, empty where all is as written."""

    path: str
    manifest: str
    files: int
    tensors: int
    bytes: int
    problems: list[str]

    @property
    def equal(self) -> bool:
        """Whether nothing has changed."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.equal

    def __repr__(self) -> str:
        found = "equal" if self.equal else f"different, {counted(len(self.problems), 'problem')}"
        return f"<Check of {brief(self.path)}: {found}, {counted(self.tensors, 'tensor')}>"

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"ok": self.equal, "verb": "compare", **msgspec.structs.asdict(self)}


@verb(CheckOptions)
def check(options: CheckOptions) -> Check:
    """Compares the files of an output with its manifest: names, dtypes, shapes and the hashes of
    the bytes. Returns a `Check`.

    Raises `InputNotFoundError` when there is no manifest, `FormatError` for one that is damaged or
    holds no hashes.
    """
    budget = budget_of(options)
    path = options.path
    manifest = manifest_path(path, is_directory(path))
    if not is_file(manifest):
        raise InputNotFoundError(
            f"{path}: has no manifest ({manifest}) to be compared with; name a second checkpoint."
        )
    outputs = _outputs(manifest)
    base = path if manifest.name == DIRECTORY_NAME else path.parent
    problems: list[str] = []
    opened: dict[Path, tuple[FileIndex, Tensors]] = {}
    for name, size, tensors in outputs:
        file = base / name if len(outputs) > 1 or is_directory(path) else path
        found = status_of(file)
        if found is None or found.kind is not Kind.FILE:
            problems.append(f"{file}: is missing.")
            continue
        if found.size != size:
            problems.append(f"{file}: has {found.size} bytes, {size} were written.")
        try:
            opened[file] = read_file(file), tensors
        except CkptforgeError as error:
            problems.append(str(error))
    stored = {file: index.tensors.values() for file, (index, _) in opened.items()}
    hashes = tensor_hashes(stored, budget, progress=options.progress)
    for file, (index, tensors) in opened.items():
        problems += (f"{file}: {problem}" for problem in _problems(index, tensors, hashes[file]))
    return Check(
        path=str(path),
        manifest=str(manifest),
        files=len(outputs),
        tensors=sum(len(tensors) for _, _, tensors in outputs),
        bytes=sum(size for _, size, _ in outputs),
        problems=problems,
    )


def _problems(index: FileIndex, tensors: Tensors, hashes: Mapping[str, str]) -> Iterator[str]:
    """What isn't in a file as it was written."""
    for name in tensors:
        if name not in index.tensors:
            yield f"tensor {shown(name)} is missing."
    for name in index.tensors:
        if name not in tensors:
            yield f"tensor {shown(name)} wasn't written with it."
    for name, stored in index.tensors.items():
        if name not in tensors:
            continue
        if [stored.dtype.name, list(stored.shape)] != tensors[name][:2]:
            written = shown(tensors[name][:2])
            yield f"{shown(name)} is {stored.dtype} {list(stored.shape)}, {written} was written."
        elif hashes[name] != tensors[name][2]:
            yield f"{shown(name)} has other bytes than were written."


class _Held(Output, frozen=True):
    """An output with its tensors, or the earlier one that it is like, and its hashes."""

    tensors: Tensors | None = None
    like: str | None = None
    hashes: str | None = None


class _Content(msgspec.Struct, frozen=True):
    outputs: list[_Held]


def _outputs(manifest: Path) -> list[tuple[str, int, Tensors]]:
    """(file, size, its tensors) for each output of a manifest. Raises `FormatError`."""
    content = read_object(manifest, MAX_MANIFEST)
    found: dict[str, tuple[str, int, Tensors]] = {}
    try:
        for output in msgspec.convert(content, _Content).outputs:
            name = output.file
            if not all(map(is_file_name, name.split("/"))):
                raise FormatError(f"{manifest}: {shown(name)} isn't a file of this output.")
            tensors = _like(output, found)
            for tensor, stored in tensors.items():
                if len(stored) < 3:
                    raise FormatError(
                        f"{manifest}: holds no hash of {shown(tensor)}, as it was written with "
                        f"{flag('no_hash')} or by an older ckptforge."
                    )
            found[name] = name, output.size, tensors
    except (KeyError, ValueError) as error:
        raise FormatError(
            f"{manifest}: isn't a ckptforge manifest ({type(error).__name__}: {error})."
        ) from error
    return list(found.values())


def _like(output: _Held, earlier: Mapping[str, tuple[str, int, Tensors]]) -> Tensors:
    """The tensors of an output, which may be like an earlier one's. Raises `ValueError`."""
    if output.like is None:
        if output.tensors is None:
            raise ValueError(f"{shown(output.file)} has no tensors")
        return output.tensors
    tensors = earlier[output.like][2]
    if output.hashes is None:
        return {name: stored[:2] for name, stored in tensors.items()}
    hashes = output.hashes.split(" ") if tensors else []
    pairs = zip(tensors.items(), hashes, strict=True)
    return {name: [*stored[:2], found] for (name, stored), found in pairs}
