"""What a file is that no reader of ckptforge understands, by its first bytes, and what to do with
it.

Magic numbers are those of the formats' own specifications: Git LFS pointers (git-lfs,
docs/spec.md), ZIP local headers, pickle opcodes, GGUF, NumPy, HDF5, ONNX and MindIR (protobuf), tar
(POSIX ustar), gzip, Zstandard, xz, bzip2, LZ4, 7z.
"""

from __future__ import annotations

import re
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from ckptforge.errors import CkptforgeError, FormatError, shown
from ckptforge.formats.registry import FORMATS, HEAD, formats_by_ending
from ckptforge.spelling import option
from ckptforge.storage.files import open_file

STRATEGY_FILE = "a MindSpore strategy file, not a checkpoint"
_HEAD = 4096
_TORCH = (
    "load it with torch.load(path, weights_only=True) and save the tensors with "
    "safetensors.torch.save_file, or save the model with save_pretrained, which writes safetensors"
)
_UNPACK = "unpack it first"
_AGAIN = "download the file again"
_LFS = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/")
_LFS_SIZE = re.compile(rb"^size ([0-9]{1,18})$", re.MULTILINE)
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x8a\x0a|\x95|[}\](c\x8c\x58]|ccollections|Mq?)")
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PUBLISHED = "take the model's safetensors from where it was published"
_NUMPY = "save the tensors by name with safetensors.numpy.save_file"
_SAVE = "save the model as safetensors (save_pretrained)"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file (ggml), mostly of quantised weights", _PUBLISHED),
    (b"lmgg", "a GGML file", _PUBLISHED),
    (b"tjgg", "a GGML file", _PUBLISHED),
    (b"\x93NUMPY", "a NumPy array (.npy)", _NUMPY),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow weights)", _SAVE),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
)
_MARKUP = re.compile(
    rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body|\?xml|error|center|h1)\b",
    re.IGNORECASE | re.DOTALL,
)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


class Found(msgspec.Struct, frozen=True):
    """`what` a file is, and what to do, both as parts of a sentence."""

    what: str
    advice: str


def identify(path: Path) -> Found | None:
    """What a file is, by its first bytes, if that is known. Raises `InputNotFoundError`."""
    head = head_of(path)
    return None if head is None else _identified(head)


def head_of(path: Path) -> bytes | None:
    """The first bytes of a file; None if reading fails. Raises `InputNotFoundError`."""
    buffer = bytearray(_HEAD)
    with closing(open_file(path)) as reader, suppress(OSError):
        return bytes(buffer[: reader.read_into(0, memoryview(buffer))])
    return None


def explained(path: Path, error: FormatError) -> FormatError:
    """`FormatError` with what the file is where it is of another kind than its name says; the
    error itself where it is of that kind, or that isn't known or the file has changed."""
    try:
        head = head_of(path)
    except CkptforgeError:
        return error
    if head is None or any(one.recognises(head[:HEAD]) for one in formats_by_ending(path)):
        return error
    if (found := _identified(head)) is None:
        return error
    return FormatError(f"{path}: is {found.what}: {found.advice}.")


def _identified(head: bytes) -> Found | None:
    if not head:
        again = f"{_AGAIN}, or write it again: a download or a save was interrupted"
        return Found("empty (0 bytes)", again)
    kinds = (_pointer, _archive, _magic, _protobuf, _text, _checkpoint)
    return next((found for recognise in kinds if (found := recognise(head))), None)


def _pointer(head: bytes) -> Found | None:
    if not _LFS.match(head):
        return None
    size = _LFS_SIZE.search(head)
    of = f", in place of the file itself of {int(size[1]):,} bytes" if size else ""
    how = "run `git lfs pull` in its repository, or download the model with `hf download`"
    return Found(f"a Git LFS pointer{of}", how)


def _archive(head: bytes) -> Found | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if name.endswith(b"/data.pkl"):
            return None  # a format of ours
        parts = (b"/version", b"/byteorder", b"/.format_version")
        if name.endswith(parts) or b"/data.pkl" in head:
            kinds = ".pth, .pt, .bin, or .ckpt of Lightning: a zip with a pickle"
            return Found(f"a PyTorch file ({kinds})", _TORCH)
        if name.endswith(b".npy"):
            return Found("a NumPy archive (.npz)", _NUMPY)
        return Found("a zip archive", _UNPACK)
    if head.startswith(_TORCH_MAGIC):
        return Found("a PyTorch file of the old format (.pth, .pt, .bin: a pickle)", _TORCH)
    if _PICKLE.match(head):
        danger = "a pickle from a stranger can run any program"
        return Found("a Python pickle (.pth, .pt, .bin, .pkl)", f"{_TORCH}; {danger}")
    return Found("a tar archive", _UNPACK) if head[257:262] == b"ustar" else None


def _magic(head: bytes) -> Found | None:
    found = (Found(what, advice) for magic, what, advice in _MAGIC if head.startswith(magic))
    return next(found, None)


def _strategy() -> Found:
    how = f"give it with {option('strategy_dir')}, and the checkpoint in its place"
    return Found(STRATEGY_FILE, how)


def _protobuf(head: bytes) -> Found | None:
    if b"\x12\x09MindSpore" in head[:64] and head[:1] == b"\x0a":
        how = "save the network's parameters with mindspore.save_checkpoint"
        return Found("a MindIR graph of MindSpore", how)
    at = 2 if head[:1] == b"\x08" and head[1:2] < b"\x80" else 0
    if head[at : at + 1] not in (b"\x12", b"\x1a"):
        return None
    body = at + 1
    while body < len(head) and head[body] & 0x80:
        body += 1
    inner = head[body + 1 : body + 2]
    if inner == b"\x0a":
        return _strategy()
    if at and inner.isalnum():
        return Found("an ONNX graph", "convert the model's own safetensors")
    return None


def _text(head: bytes) -> Found | None:
    if _MARKUP.match(head):
        what = "a web page, mostly the error page of a server, saved in place of the file"
        return Found(what, f"{_AGAIN}, logged in if that is needed")
    text = head.decode("utf-8", "ignore")
    whole = _TEXT.fullmatch(head) and len(text.encode()) >= len(head) - 3
    if not whole or not any(c.isalpha() for c in text[:80]):
        return None
    if b'"parallel_layout_item"' in head or b'"parallel_strategy_item"' in head:
        return _strategy()
    if b'"weight_map"' in head:
        how = "name the directory that holds the index and the files"
        return Found("the index of a model in several files", how)
    if head.lstrip()[:1] in (b"{", b"["):
        how = "name a file of tensors (.ckpt or .safetensors), or the directory that holds them"
        return Found("a JSON file", how)
    first = text.strip().split("\n")[0]
    how = "name a file of tensors (.ckpt or .safetensors); if this should be one, download it again"
    return Found(f"a text file starting with {shown(first[:80])}", how)


def _checkpoint(head: bytes) -> Found | None:
    one = next((one for one in FORMATS if one.recognises(head[:HEAD])), None)
    if one is None:
        return None
    how = f"rename it, or make a link to it, so that the name ends in {one.ENDINGS[0]}"
    return Found(f"{one.NAME} under another name", how)
