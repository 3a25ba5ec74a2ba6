"""safetensors files: the index, and the layout of files to write.

Format (https://github.com/huggingface/safetensors, README "Format"): 8 bytes little-endian header
length, a JSON header {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string:
string}}, then the data, without holes. MindSpore's files are the same with `format: ms` in the
metadata, `Int4` notes and an optional `crc_num`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.errors import DamagedError, FormatError, PlanError, shown
from ckptforge.formats.index import Checksum, FileIndex
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.safetensors_header import INT4_NOTE, METADATA, ORDER, read_header
from ckptforge.spelling import flag, offered
from ckptforge.storage.files import open_file, read_bytes
from ckptforge.values import Extent, Stored

NAME = "a safetensors file"
ENDINGS = (".safetensors",)
MAX_HEADER = 100_000_000  # the limit of the safetensors library itself


def recognises(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header with an object."""
    return 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:9] in (b"{", b" ")


def read_index(path: Path) -> FileIndex:
    """The index of one file, every rule of the format checked, no tensor data read. Raises
    `FormatError` naming the file, the tensor and the rule, `InputNotFoundError` if the file can't
    be opened."""

    def wrong(what: str) -> FormatError:
        return DamagedError(f"{path}: {what}.")

    with closing(open_file(path)) as reader:
        status = reader.status()
        size = status.size
        if size < 8:
            raise wrong(f"{size} bytes are too few for a safetensors file, which begins with 8")
        length = int.from_bytes(read_bytes(reader, 0, 8, path), "little")
        if length > size - 8:
            raise wrong(
                f"the header should have {length} bytes but only {size - 8} follow; truncated, or "
                "not a safetensors file"
            )
        if length > MAX_HEADER:
            raise wrong(f"a header of {length} bytes is over the format's limit of {MAX_HEADER}")
        raw = read_bytes(reader, 8, length, path)
    data = end = 8 + length
    metadata, entries = read_header(path, raw, data, size)
    entries.sort(key=lambda entry: (entry.extents[0].offset, entry.extents[0].length))
    for entry in entries:
        extent = entry.extents[0]
        if extent.offset != end:
            what = "overlaps the tensor" if extent.offset < end else "leaves a hole"
            at = f"it begins at data byte {extent.offset - data}, expected {end - data}"
            raise wrong(f"tensor {shown(entry.name)} {what} before it: {at}")
        end = extent.offset + extent.length
    if end != size:
        raise wrong(
            f"the tensors end at byte {end} but the file has {size}: {size - end} bytes belong to "
            "no tensor"
        )
    return FileIndex(
        path=path,
        format="mindspore safetensors" if metadata.get("format") == "ms" else "safetensors",
        size=size,
        mtime_ns=status.mtime_ns,
        tensors={entry.name: entry for entry in entries},
        metadata=metadata,
        checksum=_checksum(path, metadata, entries),
    )


def _checksum(path: Path, metadata: Mapping[str, str], entries: list[Stored]) -> Checksum | None:
    """MindSpore's crc_num: over each tensor's name and bytes, in the order of the names."""
    stored = metadata.get("crc_num")
    if stored is None or metadata.get("format") != "ms":
        return None
    if not stored.isascii() or not stored.isdigit() or len(stored) > 20:
        raise DamagedError(
            f"{path}: crc_num in the metadata is {shown(stored)}, expected a number."
        )
    parts: list[bytes | tuple[int, int]] = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts += [entry.name.encode(), (entry.extents[0].offset, entry.extents[0].length)]
    return Checksum(int(stored), tuple(parts))


def ordered(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The order in which the safetensors library itself would lay these tensors out, which keeps
    them aligned."""
    places = {dtype: place for place, dtype in enumerate(ORDER)}
    return sorted(tensors, key=lambda tensor: (places[_stored_dtype(tensor)], tensor.name))


def _stored_dtype(tensor: TensorSpec) -> str:
    if tensor.dtype.name == "qint4x2":
        return "I8"
    if tensor.dtype.safetensors is None:
        raise PlanError(
            f"tensor {tensor.name!r}: safetensors has no dtype {tensor.dtype}; write a .ckpt"
            + f", or leave it out with {flag('weights_only')}" * offered("weights_only")
            + "."
        )
    return tensor.dtype.safetensors


def lay_out(path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """A file with these tensors in this order; `format: ms` in the metadata makes it MindSpore's
    variant. Raises `PlanError` for a dtype that safetensors can't hold and for names that clash."""
    notes = dict(metadata)
    header: dict[str, Any] = {METADATA: notes} if metadata else {}
    begin = 0
    for tensor in tensors:
        name, dtype, end = tensor.name, _stored_dtype(tensor), begin + tensor.nbytes
        if name in header or name == METADATA:
            raise PlanError(
                f"{path}: tensor {name!r} would be written twice, or bears the name of the "
                "metadata."
            )
        if tensor.dtype.name == "qint4x2":
            if metadata.get("format") != "ms":
                raise PlanError(
                    f"{path}: tensor {name!r} is {tensor.dtype}, which only MindSpore's files hold."
                )
            notes[name] = INT4_NOTE
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    raw = msgspec.json.encode(header)
    raw += b" " * (-len(raw) % 8)
    data = 8 + len(raw)
    places = {}
    for tensor in tensors:
        first, last = header[tensor.name]["data_offsets"]
        places[tensor.name] = tensor.placed(path, Extent(0, data + first, last - first))
    literals = ((0, len(raw).to_bytes(8, "little") + raw),)
    return OutputFile(path=path, size=data + begin, literals=literals, places=places)
