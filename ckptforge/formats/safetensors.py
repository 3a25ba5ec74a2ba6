"""safetensors files: the index, and the layout of files to write.

Format (https://github.com/huggingface/safetensors, README "Format"): 8 bytes little-endian header
length, a JSON header {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string:
string}}, then the data, without holes. MindSpore's files are the same with `format: ms` in the
metadata, `Int4` notes and an optional `crc_num`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ckptforge.dtypes import BY_NAME, BY_SAFETENSORS
from ckptforge.errors import FormatError, PlanError, shown
from ckptforge.formats.index import MAX_TENSORS, Checksum, FileIndex, bytes_needed, check_name
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.spelling import flag
from ckptforge.storage.files import open_file, read_bytes
from ckptforge.values import Extent, Stored

NAME = "a safetensors file"
ENDINGS = (".safetensors",)
MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_MAX_ENTRY = 1 << 14  # characters of one tensor's entry: 64 dims have under 1,400
_EXACTLY = "its entry must have exactly dtype, shape and data_offsets"
_DAMAGED = "damaged, or another kind of file"
_METADATA = "__metadata__"
_INT4_NOTE = "Int4"  # MindSpore: metadata {tensor name: "Int4"} on an I8 tensor
# The order in which the safetensors library lays tensors out: by alignment, then by dtype, then by
# name.
_ORDER = (
    *("U64", "I64", "C64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"),
)


def recognises(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header with an object."""
    return 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:9] in (b"{", b" ")


def read_index(path: Path) -> FileIndex:
    """The index of one file, every rule of the format checked, no tensor data read. Raises
    `FormatError` naming the file, the tensor and the rule, `InputNotFoundError` if the file can't
    be opened."""

    def wrong(what: str) -> FormatError:
        return FormatError(f"{path}: {what}.")

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
    found = _entries(raw) or _members(
        path, raw, msgspec.Raw, "the safetensors header", "expected an object"
    )
    pairs = found.pop(_METADATA, msgspec.Raw(b"{}"))
    metadata = _members(path, pairs, str, _METADATA, "it must map strings to strings")
    data = end = 8 + length
    entries = [_stored(path, *named, metadata, data, size) for named in found.items()]
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
        raise FormatError(f"{path}: crc_num in the metadata is {shown(stored)}, expected a number.")
    parts: list[bytes | tuple[int, int]] = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts += [entry.name.encode(), (entry.extents[0].offset, entry.extents[0].length)]
    return Checksum(int(stored), tuple(parts))


class _Key(str):
    """A key of an object, of which `_members` hears when it is met."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """What the header says of a tensor."""

    dtype: Any
    shape: Any
    data_offsets: Any


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """The same as nearly all files have it."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


_RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY, _PLAIN = msgspec.json.Decoder(_Entry), msgspec.json.Decoder(_Plain)
_NOT_JSON = msgspec.DecodeError, UnicodeDecodeError, RecursionError


def _entries(raw: bytearray) -> dict[str, Any] | None:
    """The members of a header as nearly all files have it; None where a key may stand twice: then
    there are more quotation marks than ten for each tensor, of which `_stored` sees eight."""
    try:
        found = _RAWS.decode(raw) if b"\\" not in raw else {}
    except (msgspec.MsgspecError, *_NOT_JSON):
        return None
    pairs = bytes(found[_METADATA]) if _METADATA in found else b""
    marks = 10 * len(found) + (pairs.count(b'"') - 8 if pairs else 0)
    return found if len(found) <= MAX_TENSORS and raw.count(b'"') == marks else None


def _members(
    path: Path, raw: bytearray | msgspec.Raw, of: type, what: str, expected: str
) -> dict[str, Any]:
    """The members of a JSON object, each `of` a type; with `msgspec.Raw` nothing is made of what
    they hold. Raises `FormatError` with `what` it is of, also for a key that stands twice and for
    too many."""
    seen: set[str] = set()

    def meet(_: type, key: str) -> _Key:
        if key in seen:
            raise FormatError(f"{path}: {what} holds {shown(key)} twice.")
        if key != _METADATA and len(seen) - (_METADATA in seen) == MAX_TENSORS:
            raise FormatError(f"{path}: holds more than {MAX_TENSORS} tensors.")
        seen.add(key)
        return _Key(key)

    decoder = msgspec.json.Decoder(dict[_Key, of], dec_hook=meet)  # type: ignore[valid-type]
    try:
        return {str(key): value for key, value in decoder.decode(raw).items()}
    except msgspec.ValidationError as error:
        raise FormatError(f"{path}: {what} is JSON of another kind, {expected}.") from error
    except _NOT_JSON as error:
        why = str(error).removeprefix("JSON is malformed: ")
        raise FormatError(f"{path}: {what} isn't JSON ({why}); {_DAMAGED}.") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _stored(
    path: Path, name: str, entry: msgspec.Raw, metadata: Mapping[str, str], data: int, size: int
) -> Stored:
    def wrong(what: str) -> FormatError:
        return FormatError(f"{path}: tensor {shown(name)}: {what}.")

    check_name(name, path)
    raw = bytes(entry)
    try:
        spec = _PLAIN.decode(raw) if raw.count(b'"') == 8 and len(raw) <= _MAX_ENTRY else None
    except (msgspec.MsgspecError, *_NOT_JSON):
        spec = None
    if spec is None or spec.dtype not in BY_SAFETENSORS:
        spec = _read_entry(raw, wrong)
    dtype = BY_SAFETENSORS[spec.dtype]
    if dtype.name == "int8" and metadata.get("format") == "ms" and metadata.get(name) == _INT4_NOTE:
        dtype = BY_NAME["qint4x2"]
    shape, (begin, end) = spec.shape, spec.data_offsets
    if begin > end or end > size - data:
        raise wrong(
            f"data_offsets [{begin}, {end}] lie outside the {size - data} bytes of data; "
            "truncated or damaged, get the file again"
        )
    needed = bytes_needed(dtype, shape, path, name)
    if needed != end - begin:
        raise wrong(
            f"{dtype} {list(shape)} needs {needed} bytes but its offsets hold {end - begin}"
        )
    extents = (Extent(0, data + begin, end - begin),)
    return Stored(path=path, name=name, dtype=dtype, shape=shape, extents=extents)


def _read_entry(raw: bytes, wrong: Callable[[str], FormatError]) -> _Plain:
    """An entry in which something is unusual, or wrong."""
    if len(raw) > _MAX_ENTRY:
        raise wrong(_EXACTLY)
    try:
        spec = _ENTRY.decode(raw)
    except msgspec.ValidationError as error:
        raise wrong(f"{_EXACTLY} ({error})") from error
    except _NOT_JSON as error:
        raise wrong(f"its entry isn't JSON ({error}); {_DAMAGED}") from error
    dtype, shape, offsets = spec.dtype, spec.shape, spec.data_offsets
    if not isinstance(dtype, str) or dtype not in BY_SAFETENSORS:
        raise wrong(f"dtype {shown(dtype)} is unknown; known: {', '.join(_ORDER)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise wrong(f"shape {shown(shape)} isn't a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise wrong(f"data_offsets {shown(offsets)} aren't two byte offsets")
    if raw.count(b'"') != 8:  # of three keys and a dtype; more where a key stands twice
        raise wrong(_EXACTLY)
    return _Plain(dtype, tuple(shape), (offsets[0], offsets[1]))


def ordered(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The order in which the safetensors library itself would lay these tensors out, which keeps
    them aligned."""
    return sorted(tensors, key=lambda tensor: (_ORDER.index(_stored_dtype(tensor)), tensor.name))


def _stored_dtype(tensor: TensorSpec) -> str:
    if tensor.dtype.name == "qint4x2":
        return "I8"
    if tensor.dtype.safetensors is None:
        raise PlanError(
            f"tensor {tensor.name!r}: safetensors has no dtype {tensor.dtype}; write a .ckpt, or "
            f"leave it out with {flag('weights_only')}."
        )
    return tensor.dtype.safetensors


def lay_out(path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """A file with these tensors in this order; `format: ms` in the metadata makes it MindSpore's
    variant. Raises `PlanError` for a dtype that safetensors can't hold and for names that clash."""
    notes = dict(metadata)
    header: dict[str, Any] = {_METADATA: notes} if metadata else {}
    begin = 0
    for tensor in tensors:
        name, dtype, end = tensor.name, _stored_dtype(tensor), begin + tensor.nbytes
        if name in header or name == _METADATA:
            raise PlanError(
                f"{path}: tensor {name!r} would be written twice, or bears the name of the "
                "metadata."
            )
        if tensor.dtype.name == "qint4x2":
            if metadata.get("format") != "ms":
                raise PlanError(
                    f"{path}: tensor {name!r} is {tensor.dtype}, which only MindSpore's files hold."
                )
            notes[name] = _INT4_NOTE
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    data = 8 + len(raw)
    places = {}
    for tensor in tensors:
        at = data + header[tensor.name]["data_offsets"][0]
        places[tensor.name] = tensor.placed(path, Extent(0, at, tensor.nbytes))
    literals = ((0, len(raw).to_bytes(8, "little") + raw),)
    return OutputFile(path=path, size=data + begin, literals=literals, places=places)
