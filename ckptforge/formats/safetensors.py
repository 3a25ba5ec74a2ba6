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

from ckptforge.dtypes import BY_NAME, BY_SAFETENSORS, DType
from ckptforge.errors import FormatError, PlanError, shown
from ckptforge.formats.index import (
    MAX_NAME,
    MAX_TENSORS,
    Checksum,
    FileIndex,
    bytes_needed,
    check_name,
)
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
_NO_METADATA = msgspec.Raw(b"{}")
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
    data = end = 8 + length
    metadata, plain = _plain_header(path, raw)
    entries = _plain_tensors(path, plain, metadata, data, size) if plain is not None else None
    if entries is None:
        found = _members(path, raw, msgspec.Raw, "the safetensors header", "expected an object")
        metadata = _metadata_of(path, found.pop(_METADATA, _NO_METADATA))
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


class _Plain(msgspec.Struct, frozen=True, gc=False):
    """The same as nearly all files have it. What a header lacks is None."""

    dtype: str | None = None
    shape: tuple[_Count, ...] | None = None
    data_offsets: tuple[_Count, _Count] | None = None


class _Head(msgspec.Struct):
    """What a header says beside the tensors."""

    metadata: msgspec.Raw = msgspec.field(name=_METADATA, default=_NO_METADATA)


_ENTRY = msgspec.json.Decoder(_Entry)
_PLAIN, _HEAD = msgspec.json.Decoder(dict[str, _Plain]), msgspec.json.Decoder(_Head)
_NOT_JSON = msgspec.DecodeError, UnicodeDecodeError, RecursionError


def _plain_header(path: Path, raw: bytearray) -> tuple[Mapping[str, str], dict[str, _Plain] | None]:
    """(metadata, the entries of the tensors) of a header as nearly all files have it: compact, and
    with what each entry must have and no more. None where that isn't so or can't be told, for the
    rules to be looked at one by one."""
    # more than so many commas for each entry are axes that no tensor has
    few = raw.count(b",") <= 16 * raw.count(b"{") <= 16 * (MAX_TENSORS + 2)
    body = raw.rstrip()
    if not few or b"\\" in raw or any(blank in body for blank in (b"  ", b"\n", b"\t", b"\r")):
        return {}, None
    try:
        found, pairs = _PLAIN.decode(raw), _HEAD.decode(raw).metadata
    except (msgspec.MsgspecError, *_NOT_JSON):
        return {}, None
    # an entry with all of its three keys has eight marks and two of its name, and more where a key
    # stands twice or another is there
    marks = 10 * len(found)
    if found.pop(_METADATA, None) is not None:
        marks += bytes(pairs).count(b'"') - 8
    short = max(map(len, found), default=0) <= MAX_NAME // 4  # of bytes, up to four a character
    if raw.count(b'"') != marks or not short or len(found) > MAX_TENSORS:
        return {}, None
    return _metadata_of(path, pairs), found


def _plain_tensors(
    path: Path, found: Mapping[str, _Plain], metadata: Mapping[str, str], data: int, size: int
) -> list[Stored] | None:
    """The tensors of a plain header; None where one isn't right, or isn't what its dtype says."""
    if _INT4_NOTE in metadata.values():
        return None
    needed: dict[tuple[str, tuple[int, ...]], int] = {}
    tensors = []
    for name, one in found.items():
        shape, offsets = one.shape, one.data_offsets
        if one.dtype not in BY_SAFETENSORS or shape is None or offsets is None:
            return None
        dtype, (begin, end) = BY_SAFETENSORS[one.dtype], offsets
        if (nbytes := needed.get((one.dtype, shape))) is None:
            try:
                nbytes = needed[one.dtype, shape] = bytes_needed(dtype, shape, path, name)
            except FormatError:
                return None
        if end - begin != nbytes or end > size - data:
            return None
        extents = (Extent(0, data + begin, nbytes),)
        tensors.append(Stored(path=path, name=name, dtype=dtype, shape=shape, extents=extents))
    return tensors


def _metadata_of(path: Path, pairs: msgspec.Raw) -> dict[str, str]:
    return _members(path, pairs, str, _METADATA, "it must map strings to strings")


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
    dtype, shape, (begin, end) = _read_entry(bytes(entry), wrong)
    if dtype.name == "int8" and metadata.get("format") == "ms" and metadata.get(name) == _INT4_NOTE:
        dtype = BY_NAME["qint4x2"]
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


def _read_entry(
    raw: bytes, wrong: Callable[[str], FormatError]
) -> tuple[DType, tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, offsets) of an entry."""
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
    return BY_SAFETENSORS[dtype], tuple(shape), (offsets[0], offsets[1])


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
