"""Manifests as they are read: what was written, and what a way back to Hugging Face needs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ckptforge.checkpoints.card import WEIGHTS, HuggingFaceSide, unpacked
from ckptforge.errors import FormatError, printable, shown
from ckptforge.foreign.files import is_file_name, is_there
from ckptforge.foreign.json import read_object
from ckptforge.foreign.paths import is_directory, status_of
from ckptforge.formats.index import FileIndex
from ckptforge.wording import counted

DIRECTORY_NAME = "ckptforge.manifest.json"

MAX_MANIFEST = 256 * 1024 * 1024  # it holds small files

_log = logging.getLogger(__name__)


class Manifest(msgspec.Struct, frozen=True):
    """A manifest as read back: the layout that was written, its files' sizes and times by their
    names, with directories where several have one name, the Hugging Face side, and what it says of
    how ranks are cut (`parallel/cut.py` reads that). `files` are the outputs' names with their
    directories."""

    path: Path
    layout: str | None
    model: str | None
    sizes: dict[str, int]
    mtimes: dict[str, int]
    hugging_face: HuggingFaceSide | None
    files: tuple[str, ...] = ()
    cut: Mapping[str, Any] | None = None

    def describes(self, files: tuple[FileIndex, ...]) -> bool:
        """Whether these files have the sizes that were written; one may be renamed."""
        alone = len(files) == 1 and len(self.sizes) == 1
        if alone and self.path.name == manifest_path(files[0].path, False).name:
            return self.sizes == {next(iter(self.sizes)): files[0].size}
        return all(self._said(self.sizes, file.path) == file.size for file in files)

    def untouched(self, files: tuple[FileIndex, ...]) -> bool:
        """Whether these files are the very ones that were written, by their times."""
        if len(files) == 1 and len(self.mtimes) == 1:
            return next(iter(self.mtimes.values())) == _mtime_ns(files[0].path)
        return all(self._said(self.mtimes, file.path) == _mtime_ns(file.path) for file in files)

    def _said(self, of: Mapping[str, int], path: Path) -> int | None:
        """What is said of a file: by its name, or with directories where several have that."""
        if path.name in of:
            return of[path.name]
        with suppress(ValueError):
            return of.get(path.relative_to(self.path.parent).as_posix())
        return None

    def distrust(self, directory: Path, files: tuple[FileIndex, ...]) -> str | None:
        """Why the cut of rank directories can't be taken from here; None where it can: these are
        all the files that were written, at their places and untouched since."""
        if self.cut is None:
            return "its manifest doesn't say how they are cut"
        found = {str(file.path.relative_to(directory)): file for file in files}
        if other := next((name for name in found if name not in self.files), None):
            return (
                f"{printable(other)} isn't among the {counted(len(self.files), 'file')} that its "
                "manifest names"
            )
        if missing := next((name for name in self.files if name not in found), None):
            return (
                f"{printable(missing)}, which its manifest names, isn't among the "
                f"{counted(len(found), 'file')} there"
            )
        for name, file in found.items():
            if (size := self._said(self.sizes, file.path)) != file.size:
                return f"{printable(name)} has {file.size} bytes, {size} were written"
            if self._said(self.mtimes, file.path) != file.mtime_ns:
                return (
                    f"{printable(name)} was changed, or copied without its time (cp -p and rsync "
                    "-t keep it), since it was written"
                )
        return None


def _mtime_ns(path: Path) -> int | None:
    return None if (found := status_of(path)) is None else found.mtime_ns


def manifest_path(output: Path, is_directory: bool) -> Path:
    """Where an output's manifest lies: in a directory, or beside a file."""
    beside = output.with_name(output.name + ".manifest.json")
    return output / DIRECTORY_NAME if is_directory else beside


_Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Output(msgspec.Struct, frozen=True):
    """What a manifest says of an output file."""

    file: str
    size: _Number
    mtime_ns: _Number = -1


class _Side(msgspec.Struct, frozen=True):
    """What it keeps of a Hugging Face directory: see `HuggingFaceSide`."""

    files: dict[str, dict[str, str]]
    shards: dict[str, dict[str, Any]]
    layout: str | None


class _Shard(msgspec.Struct, frozen=True):
    metadata: dict[str, str | None]
    tensors: dict[str, str | None]


class _Content(msgspec.Struct, frozen=True):
    outputs: list[Output]
    hugging_face: _Side | None
    layout: str | None
    model: str | None
    cut: Any = None


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises `FormatError` if it isn't one."""
    content = read_object(path, MAX_MANIFEST)
    try:
        found = msgspec.convert(content, _Content)
        side = found.hugging_face
        counts = Counter(Path(output.file).name for output in found.outputs)
        by_name = {}
        for output in found.outputs:
            name = Path(output.file).name
            by_name[name if counts[name] == 1 else output.file] = output
        return Manifest(
            path=path,
            layout=found.layout,
            model=found.model,
            sizes={name: output.size for name, output in by_name.items()},
            mtimes={name: output.mtime_ns for name, output in by_name.items()},
            hugging_face=None if side is None else _hugging_face(path, side),
            files=tuple(output.file for output in found.outputs),
            cut=found.cut,
        )
    except (KeyError, ValueError) as error:
        raise FormatError(
            f"{path}: isn't a ckptforge manifest ({type(error).__name__}: {error}); remove it, or "
            "convert again."
        ) from error


def _hugging_face(path: Path, side: _Side) -> HuggingFaceSide:
    files = {name: unpacked(packed) for name, packed in side.files.items()}
    for names, weights in ((files, False), (side.shards, True)):
        files_only = [name for name in names if is_file_name(name)]
        right = {name for name in files_only if (Path(name).suffix in WEIGHTS) == weights}
        if bad := [name for name in names if name not in right]:
            raise FormatError(
                f"{path}: {shown(bad[0])} isn't the name of a file "
                f"{'with' if weights else 'beside'} weights."
            )
    msgspec.convert(side.shards, dict[str, _Shard])  # which only checks them
    return HuggingFaceSide(files, side.shards, side.layout)


def find_manifest(path: Path, files: tuple[FileIndex, ...]) -> Manifest | None:
    """The manifest that goes with a checkpoint: beside its file, or in its directory; None if there
    is none or it is of another file by that name."""
    first = files[0].path
    own = manifest_path(path, is_directory(path))
    candidates = [own, manifest_path(first, False), first.parent / DIRECTORY_NAME]
    if first.parent.name.startswith("rank_"):
        candidates.append(first.parent.parent / DIRECTORY_NAME)
    for candidate in candidates:
        if is_there(candidate):
            manifest = read_manifest(candidate)
            if manifest.describes(files):
                _log.info("manifest %s: of this checkpoint", candidate)
                return manifest
            _log.info("manifest %s: of files of other sizes, not used", candidate)
    _log.info("no manifest found for %s", path)
    return None


def written_names(directory: Path) -> set[str]:
    """The files that the manifest of a directory says were written with it, if it has one."""
    path = directory / DIRECTORY_NAME
    if not is_there(path):
        return set()
    content = read_object(path, MAX_MANIFEST)
    outputs = content.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    named = [output.get("file") for output in outputs if isinstance(output, dict)]
    small = content.get("small_files")
    named += small if isinstance(small, list) else []
    return {DIRECTORY_NAME, *(name for name in named if isinstance(name, str))}
