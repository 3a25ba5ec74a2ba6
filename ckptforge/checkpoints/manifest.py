"""Manifests as they are read: what was written, and what a way back to Hugging Face needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """A manifest as read back: the layout that was written, its files' sizes, the Hugging Face
    side, and what it says of how ranks are cut (`parallel/cut.py` reads that). `files` are the
    outputs' names with their directories."""

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
        return all(self.sizes.get(file.path.name) == file.size for file in files)

    def untouched(self, files: tuple[FileIndex, ...]) -> bool:
        """Whether these files are the very ones that were written, by their times."""
        if len(files) == 1 and len(self.mtimes) == 1:
            return next(iter(self.mtimes.values())) == _mtime_ns(files[0].path)
        return all(self.mtimes.get(file.path.name) == _mtime_ns(file.path) for file in files)

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
            if self.sizes.get(file.path.name) != file.size:
                return (
                    f"{printable(name)} has {file.size} bytes, {self.sizes.get(file.path.name)} "
                    "were written"
                )
            if self.mtimes.get(file.path.name) != file.mtime_ns:
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


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises `FormatError` if it isn't one."""
    content = read_object(path, MAX_MANIFEST)
    try:
        sizes = {
            Path(output["file"]).name: integer(output["size"]) for output in content["outputs"]
        }
        mtimes = {
            Path(output["file"]).name: integer(output.get("mtime_ns", -1))
            for output in content["outputs"]
        }
        packed = content["hugging_face"]
        hugging_face = None if packed is None else _hugging_face(path, packed)
        files = tuple(str(output["file"]) for output in content["outputs"])
        cut = content.get("cut")
        layout, model = _text_or_none(content["layout"]), _text_or_none(content["model"])
        return Manifest(path, layout, model, sizes, mtimes, hugging_face, files, cut)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"{path}: isn't a ckptforge manifest ({type(error).__name__}: {error}); remove it, or "
            "convert again."
        ) from error


def _hugging_face(path: Path, side: dict[str, Any]) -> HuggingFaceSide:
    files = {name: unpacked(packed) for name, packed in side["files"].items()}
    shards = side["shards"]
    for names, weights in ((files, False), (shards, True)):
        files_only = [name for name in names if is_file_name(name)]
        right = {name for name in files_only if (Path(name).suffix in WEIGHTS) == weights}
        if bad := [name for name in names if name not in right]:
            raise FormatError(
                f"{path}: {shown(bad[0])} isn't the name of a file "
                f"{'with' if weights else 'beside'} weights."
            )
    for shard in shards.values():
        for part in ("metadata", "tensors"):
            if not all(value is None or isinstance(value, str) for value in shard[part].values()):
                raise TypeError(f"the {part} of a shard aren't texts")
    return HuggingFaceSide(files, shards, _text_or_none(side["layout"]))


def integer(value: object) -> int:
    """A size or a time. Raises `TypeError` for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise TypeError(f"{shown(value)} stands where a number is expected")
    return value


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{shown(value)} stands where a name is expected")
    return value


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
