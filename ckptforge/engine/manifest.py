"""The manifest: what was written, from what, and what a way back to Hugging Face needs."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.engine.audit import Audit, audit_json
from ckptforge.engine.plan import Plan
from ckptforge.errors import FormatError, counted, printable, shown
from ckptforge.formats.checkpoint import CONFIG
from ckptforge.formats.entry import FileIndex
from ckptforge.formats.huggingface import INDEX
from ckptforge.formats.small_files import entries_of, is_file_name, is_there, read_small
from ckptforge.formats.small_json import read_object
from ckptforge.mapping.table import Layout, Table
from ckptforge.partition.cut import Cut, cut_json, cut_of, read_cut
from ckptforge.partition.strategy_file import Strategy
from ckptforge.version import __version__

DIRECTORY_NAME = "ckptforge.manifest.json"
MAX_SMALL_FILE = 32 * 1024 * 1024
MAX_MANIFEST = 256 * 1024 * 1024  # it holds small files
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".mindir"}
_MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
    "*.jinja",
]
_log = logging.getLogger(__name__)


class HuggingFaceSide(msgspec.Struct, frozen=True):
    """What a Hugging Face directory is beside its weights: small files by name, and how its weights are cut into files.

    `shards` is file name → {"metadata": …, "tensors": {name: safetensors dtype}} in the order of the file, with "passed_over", the
    names of tensors that it holds too but that are read from another file.
    """

    files: dict[str, bytes] = msgspec.field(default_factory=dict)
    shards: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    layout: str | None = None
    skipped: tuple[str, ...] = ()

    @property
    def index_json(self) -> bytes | None:
        return self.files.get(INDEX)

    def to_json(self) -> dict[str, Any]:
        return {"layout": self.layout, "files": {name: _packed(content) for name, content in self.files.items()}, "shards": self.shards}


def _packed(content: bytes) -> dict[str, str]:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def small_files_of(directory: Path, all_files: bool = True) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """(contents by name, sentences about files left out): the regular files of a model directory that aren't weights, or
    of any other directory those that by their names belong to a model."""
    files: dict[str, bytes] = {}
    skipped: list[str] = []
    for path in entries_of(directory):
        if not is_file_name(path.name):
            skipped.append(f"{path.name} isn't carried along: its name has control characters or isn't Unicode.")
            continue
        if path.is_dir() and all_files and not path.name.startswith("."):
            skipped.append(f"{path.name}/ isn't carried along: it is a directory.")
        if all_files and not path.name.startswith(".") and not path.is_dir() and not path.is_file():
            skipped.append(f"{path.name} isn't carried along: it isn't a regular file.")
        if all_files and path.suffix in _WEIGHTS - {".safetensors"} and path.is_file():
            skipped.append(f"{path.name} isn't carried along: it holds weights of another format.")
        if path.name.startswith(".") or path.name.endswith("manifest.json") or path.suffix in _WEIGHTS or not path.is_file():
            continue
        if not all_files and not any(fnmatchcase(path.name, glob) for glob in _MODEL_FILES):
            continue
        if path.name.endswith(".index.json") and path.name != INDEX:
            continue
        if path.name != CONFIG and not _is_inside(path, directory):
            skipped.append(f"{path.name} isn't carried along: it is a link to a file outside of {directory}.")
            continue
        try:
            files[path.name] = read_small(path, MAX_SMALL_FILE)
        except FormatError:
            skipped.append(f"{path.name} isn't carried along: it has over {MAX_SMALL_FILE} bytes.")
    return files, tuple(skipped)


def _is_inside(path: Path, directory: Path) -> bool:
    """Whether what a name leads to lies in the model's directory, or in the blobs of the hub's cache that it is a snapshot of: what
    a link leads to elsewhere may be private, and an output is passed on."""
    if not path.is_symlink():
        return True
    target, root = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    return any(inside in target.parents for inside in (root, *blobs))


def hugging_face_side(directory: Path, files: tuple[FileIndex, ...], layout: str | None, all_files: bool = True) -> HuggingFaceSide:
    """What is to be kept of a Hugging Face directory whose weights are in `files`."""
    small, skipped = small_files_of(directory, all_files=all_files)
    shards = {
        file.path.name: {
            "metadata": dict(file.metadata),
            "tensors": {name: entry.dtype.safetensors for name, entry in file.tensors.items()},
            **({"passed_over": list(file.passed_over)} if file.passed_over else {}),
        }
        for file in files
        if is_file_name(file.path.name)
    }
    return HuggingFaceSide(small, shards, layout, skipped)


class Manifest(msgspec.Struct, frozen=True):
    """A manifest as read back: the layout that was written, its files' sizes, the Hugging Face side, and how ranks are cut. `files`
    are the outputs' names with their directories."""

    path: Path
    layout: str | None
    model: str | None
    sizes: dict[str, int]
    mtimes: dict[str, int]
    hugging_face: HuggingFaceSide | None
    files: tuple[str, ...] = ()
    cut: Cut | None = None

    def describes(self, files: tuple[FileIndex, ...]) -> bool:
        """Whether these files have the sizes that were written; a single one may have been renamed with its manifest."""
        if len(files) == 1 and len(self.sizes) == 1 and self.path.name == manifest_path(files[0].path, False).name:
            return self.sizes == {next(iter(self.sizes)): files[0].size}
        return all(self.sizes.get(file.path.name) == file.size for file in files)

    def untouched(self, files: tuple[FileIndex, ...]) -> bool:
        """Whether these files are the very ones that were written, by their times: what is in them can be trusted."""
        if len(files) == 1 and len(self.mtimes) == 1:
            return next(iter(self.mtimes.values())) == files[0].path.stat().st_mtime_ns
        return all(self.mtimes.get(file.path.name) == file.path.stat().st_mtime_ns for file in files)

    def distrust(self, directory: Path, files: tuple[FileIndex, ...]) -> str | None:
        """Why the cut of rank directories can't be taken from here; None where it can: these are all the files that were written, at
        their places and untouched since."""
        if self.cut is None:
            return "its manifest doesn't say how they are cut"
        found = {str(file.path.relative_to(directory)): file for file in files}
        if other := next((name for name in found if name not in self.files), None):
            return f"{printable(other)} isn't among the {counted(len(self.files), 'file')} that its manifest names"
        if missing := next((name for name in self.files if name not in found), None):
            return f"{printable(missing)}, which its manifest names, isn't among the {counted(len(found), 'file')} there"
        for name, file in found.items():
            if self.sizes.get(file.path.name) != file.size:
                return f"{printable(name)} has {file.size} bytes, {self.sizes.get(file.path.name)} were written"
            if self.mtimes.get(file.path.name) != file.mtime_ns:
                return f"{printable(name)} was changed, or copied without its time (cp -p and rsync -t keep it), since it was written"
        return None


def manifest_path(output: Path, is_directory: bool) -> Path:
    """Where an output's manifest lies: in a directory, or beside a file."""
    return output / DIRECTORY_NAME if is_directory else output.with_name(output.name + ".manifest.json")


def manifest_json(
    plan: Plan,
    table: Table | None,
    layout: Layout | None,
    side: HuggingFaceSide | None,
    audit: Audit,
    mtimes: Mapping[Path, int],
    hashes: Mapping[Path, Mapping[str, str]] | None = None,
    command: str | None = None,
) -> bytes:
    """The manifest of a finished plan; without a table where none was needed, without hashes where they weren't made.

    `outputs[].tensors` is name → [dtype, shape, hash]; see `engine/blocks.py`. An output that has the same tensors as an earlier one,
    as the ranks of a stage have, names that (`like`) and holds only its hashes, in that order, with blanks between.
    """
    content = {
        "ckptforge": __version__,
        "verb": plan.verb,
        "command": None if command is None else _unicode(command),
        "model": table.name if table else None,
        "layout": layout.name if layout else None,
        "mapping": {"source": table.source, "sha256": hashlib.sha256(table.text).hexdigest()} if table else None,
        "sources": [_source_json(source, hashes) for source in plan.sources],
        "outputs": list(_outputs_json(plan, mtimes, hashes)),
        "small_files": sorted(plan.small_files),
        "left_out": plan.left_out,
        "casts": audit_json(audit),
        "cut": None if plan.strategy is None else cut_json(cut_of(plan.strategy, _held(plan, plan.strategy))),
        "hugging_face": side.to_json() if side else None,
    }
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _outputs_json(plan: Plan, mtimes: Mapping[Path, int], hashes: Mapping[Path, Mapping[str, str]] | None) -> Iterator[dict[str, Any]]:
    first: dict[tuple[object, ...], str] = {}
    for file in plan.files:
        name = plan.name_of(file.path)
        own = None if hashes is None else [hashes[file.path][tensor] for tensor in file.tensors]
        found: dict[str, Any] = {"file": name, "size": file.size, "mtime_ns": mtimes[file.path]}
        kinds = tuple((tensor, entry.dtype.name, entry.shape) for tensor, entry in file.tensors.items())
        if (like := first.setdefault(kinds, name)) != name:
            yield {**found, "like": like, **({} if own is None else {"hashes": " ".join(own)})}
            continue
        stored = [[dtype, list(shape), *([own[i]] if own is not None else [])] for i, (_, dtype, shape) in enumerate(kinds)]
        yield {**found, "tensors": dict(zip(file.tensors, stored, strict=True))}


def _held(plan: Plan, strategy: Strategy) -> list[list[str]]:
    """The tensors of each stage, whose ranks hold the same ones."""
    return [list(plan.files[stage * strategy.devices].tensors) for stage in range(len(strategy.stages))]


def _source_json(source: FileIndex, hashes: Mapping[Path, Mapping[str, str]] | None) -> dict[str, Any]:
    try:
        mtime = source.path.stat().st_mtime_ns
    except OSError:
        mtime = None
    found = {"path": _unicode(str(source.path)), "size": source.size, "mtime_ns": mtime}
    return found if hashes is None else {**found, "xxh3_128": hashes[source.path][""]}


def _unicode(text: str) -> str:
    """What may hold names of files that aren't Unicode, with escapes for them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises `FormatError` if it isn't one."""
    content = read_object(path, MAX_MANIFEST)
    try:
        sizes = {Path(output["file"]).name: integer(output["size"]) for output in content["outputs"]}
        mtimes = {Path(output["file"]).name: integer(output.get("mtime_ns", -1)) for output in content["outputs"]}
        hugging_face = None if content["hugging_face"] is None else _hugging_face(path, content["hugging_face"])
        files = tuple(str(output["file"]) for output in content["outputs"])
        cut = None if content.get("cut") is None else read_cut(content["cut"])
        layout, model = _text_or_none(content["layout"]), _text_or_none(content["model"])
        return Manifest(path, layout, model, sizes, mtimes, hugging_face, files, cut)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{path}: isn't a ckptforge manifest ({type(error).__name__}: {error}); remove it, or convert again.") from error


def _hugging_face(path: Path, side: dict[str, Any]) -> HuggingFaceSide:
    files = {name: _unpacked(packed) for name, packed in side["files"].items()}
    shards = side["shards"]
    for names, weights in ((files, False), (shards, True)):
        if bad := [name for name in names if not is_file_name(name) or (Path(name).suffix in _WEIGHTS) != weights]:
            raise FormatError(f"{path}: {shown(bad[0])} isn't the name of a file {'with' if weights else 'beside'} weights.")
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


def _unpacked(packed: dict[str, str]) -> bytes:
    return packed["text"].encode("utf-8") if "text" in packed else base64.b64decode(packed["base64"])


def find_manifest(path: Path, files: tuple[FileIndex, ...]) -> Manifest | None:
    """The manifest that goes with a checkpoint: beside its file, or in its directory; None if there is none or it is of
    another file by that name."""
    first = files[0].path
    candidates = [manifest_path(path, os.path.isdir(path)), manifest_path(first, False), first.parent / DIRECTORY_NAME]
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
    """The files in an output directory that its manifest says were written with it; none without a manifest."""
    path = directory / DIRECTORY_NAME
    if not is_there(path):
        return set()
    content = read_object(path, MAX_MANIFEST)
    outputs = content.get("outputs")
    named = [output.get("file") for output in outputs if isinstance(output, dict)] if isinstance(outputs, list) else []
    small = content.get("small_files")
    return {DIRECTORY_NAME, *(name for name in (*named, *(small if isinstance(small, list) else ())) if isinstance(name, str))}
