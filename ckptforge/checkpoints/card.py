"""What goes along with a model: small files, and how its weights are cut into files."""

from __future__ import annotations

import base64
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.checkpoints.huggingface import CONFIG, INDEX
from ckptforge.errors import FormatError
from ckptforge.foreign.files import entries_of, is_file_name, read_small
from ckptforge.foreign.paths import is_directory, is_file, is_link, real_path
from ckptforge.formats.index import FileIndex

MAX_SMALL_FILE = 32 * 1024 * 1024

_ENDINGS = ".safetensors .bin .pt .pth .ckpt .gguf .onnx .h5 .msgpack .npz .mindir"
WEIGHTS = set(_ENDINGS.split())

_GLOBS = """
    config.json generation_config.json tokenizer* special_tokens_map.json added_tokens.json vocab.*
    merges.txt tekken.json chat_template* preprocessor_config.json processor_config.json *.jinja
"""
_MODEL_FILES = _GLOBS.split()


class HuggingFaceSide(msgspec.Struct, frozen=True):
    """What a Hugging Face directory is beside its weights: small files by name, and how its weights
    are cut into files.

    `shards` is file name → {"metadata": …, "tensors": {name: safetensors dtype}} in the order of
    the file, with "passed_over", the names of tensors that it holds too but that are read from
    another file.
    """

    files: dict[str, bytes] = msgspec.field(default_factory=dict)
    shards: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    layout: str | None = None
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {
            "layout": self.layout,
            "files": {name: packed(content) for name, content in self.files.items()},
            "shards": self.shards,
        }


def packed(content: bytes) -> dict[str, str]:
    """A small file as a manifest holds it: as text where it is, else in base64."""
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def small_files_of(
    directory: Path, all_files: bool = True
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """(contents by name, sentences about files left out): the regular files of a model directory
    that aren't weights, or of any other directory those that by their names belong to a model."""
    files: dict[str, bytes] = {}
    skipped: list[str] = []
    for path in entries_of(directory):
        why = _why_left(path, directory, all_files)
        if why is None:
            try:
                files[path.name] = read_small(path, MAX_SMALL_FILE)
            except FormatError:
                why = f"it has over {MAX_SMALL_FILE} bytes"
        if why:
            name = f"{path.name}/" if is_directory(path) else path.name
            skipped.append(f"{name} isn't carried along: {why}.")
    return files, tuple(skipped)


def _why_left(path: Path, directory: Path, all_files: bool) -> str | None:
    """Why a file isn't carried along; "" where nobody need hear that, None where it is."""
    name, hidden = path.name, path.name.startswith(".")
    if not is_file_name(name):
        return "its name has control characters or isn't Unicode"
    if not is_file(path):
        what = "it is a directory" if is_directory(path) else "it isn't a regular file"
        return what if all_files and not hidden else ""
    if all_files and path.suffix in WEIGHTS - {".safetensors"}:
        return "it holds weights of another format"
    if hidden or path.suffix in WEIGHTS or name.endswith("manifest.json"):
        return ""
    if not all_files and not any(fnmatchcase(name, glob) for glob in _MODEL_FILES):
        return ""
    if name.endswith(".index.json") and name != INDEX:
        return ""
    inside = name == CONFIG or _is_inside(path, directory)
    return None if inside else f"it is a link to a file outside of {directory}"


def _is_inside(path: Path, directory: Path) -> bool:
    """Whether what a name leads to lies in the model's directory, or in the blobs of the hub's
    cache that it is a snapshot of: what a link leads to elsewhere may be private, and an output is
    passed on."""
    if not is_link(path):
        return True
    target, root = real_path(path), real_path(directory)
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    return any(inside in target.parents for inside in (root, *blobs))


def hugging_face_side(
    directory: Path, files: tuple[FileIndex, ...], layout: str | None, all_files: bool = True
) -> HuggingFaceSide:
    """What is to be kept of a Hugging Face directory whose weights are in `files`."""
    small, skipped = small_files_of(directory, all_files=all_files)
    shards = {
        file.path.name: {
            "metadata": dict(file.metadata),
            "tensors": {name: entry.dtype.safetensors for name, entry in file.tensors.items()},
            **({"passed_over": list(file.passed_over)} if file.passed_over else {}),
        }
        for file in files
        if is_file_name(file.path.name) and file.path.suffix in WEIGHTS
    }
    return HuggingFaceSide(small, shards, layout, skipped)


def unpacked(packed: dict[str, str]) -> bytes:
    """What `packed` was made of."""
    text = packed.get("text")
    return base64.b64decode(packed["base64"]) if text is None else text.encode("utf-8")
