"""The header of a safetensors file (see `formats/safetensors.py`), every rule of it checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ckptforge.dtypes import BY_NAME, BY_SAFETENSORS, DType
from ckptforge.errors import DamagedError, FormatError, shortened, shown
from ckptforge.formats.index import MAX_NAME, MAX_TENSORS, bytes_needed, check_name
from ckptforge.values import Extent, Stored

METADATA = "__metadata__"
INT4_NOTE = "Int4"  # MindSpore: metadata {tensor name: "Int4"} on an I8 tensor
_MAX_ENTRY = 1 << 14  # characters of one tensor's entry: 64 dims have under 1,400
_EXACTLY = "its entry must have exactly dtype, shape and data_offsets"
_DAMAGED = "damaged, or another kind of file"
_NO_METADATA = msgspec.Raw(b"{}")
# The order in which the safetensors library lays tensors out: by alignment, then by dtype, then by
# name.
ORDER = (
    *("U64", "I64", "C64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"),
)


def read_header(
    path: Path, raw: bytearray, data: int, size: int
) -> tuple[Mapping[str, str], list[Stored]]:
    """(metadata, tensors in the header's order) of a file of `size` bytes, of which those from
    `data` on are tensors. Raises `FormatError`."""
    metadata, plain = _plain_header(path, raw)
    found = None if plain is None else _plain_tensors(path, plain, metadata, data, size)
    if found is not None:
        return metadata, found
    entries = _members(path, raw, msgspec.Raw, "the safetensors header", "expected an object")
    metadata = _metadata_of(path, entries.pop(METADATA, _NO_METADATA))
    return metadata, [_stored(path, *named, metadata, data, size) for named in entries.items()]


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

    metadata: msgspec.Raw = msgspec.field(name=METADATA, default=_NO_METADATA)


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
    if found.pop(METADATA, None) is not None:
        marks += bytes(pairs).count(b'"') - 8
    short = max(map(len, found), default=0) <= MAX_NAME // 4  # of bytes, up to four a character
    if raw.count(b'"') != marks or not short or len(found) > MAX_TENSORS:
        return {}, None
    return _metadata_of(path, pairs), found


def _plain_tensors(
    path: Path, found: Mapping[str, _Plain], metadata: Mapping[str, str], data: int, size: int
) -> list[Stored] | None:
    """The tensors of a plain header; None where one isn't right, or isn't what its dtype says."""
    if INT4_NOTE in metadata.values():
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
    return _members(path, pairs, str, METADATA, "it must map strings to strings")


def _members(
    path: Path, raw: bytearray | msgspec.Raw, of: type, what: str, expected: str
) -> dict[str, Any]:
    """The members of a JSON object, each `of` a type; with `msgspec.Raw` nothing is made of what
    they hold. Raises `FormatError` with `what` it is of, also for a key that stands twice and for
    too many."""
    seen: set[str] = set()

    def meet(_: type, key: str) -> _Key:
        if key in seen:
            raise DamagedError(f"{path}: {what} holds {shown(key)} twice.")
        if key != METADATA and len(seen) - (METADATA in seen) == MAX_TENSORS:
            raise DamagedError(f"{path}: holds more than {MAX_TENSORS} tensors.")
        seen.add(key)
        return _Key(key)

    decoder = msgspec.json.Decoder(dict[_Key, of], dec_hook=meet)  # type: ignore[valid-type]
    try:
        return {str(key): value for key, value in decoder.decode(raw).items()}
    except msgspec.ValidationError as error:
        raise DamagedError(f"{path}: {what} is JSON of another kind, {expected}.") from error
    except _NOT_JSON as error:
        why = str(error).removeprefix("JSON is malformed: ")
        raise DamagedError(f"{path}: {what} isn't JSON ({why}); {_DAMAGED}.") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _stored(
    path: Path, name: str, entry: msgspec.Raw, metadata: Mapping[str, str], data: int, size: int
) -> Stored:
    def wrong(what: str) -> FormatError:
        return DamagedError(f"{path}: tensor {shown(name)}: {what}.")

    check_name(name, path)
    dtype, shape, (begin, end) = _read_entry(bytes(entry), f"{path}: tensor {shown(name)}:")
    if dtype.name == "int8" and metadata.get("format") == "ms" and metadata.get(name) == INT4_NOTE:
        dtype = BY_NAME["qint4x2"]
    if begin > end or end > size - data:
        raise wrong(
            f"data_offsets [{begin}, {end}] lie outside the {size - data} bytes of data; "
            "truncated or damaged"
        )
    needed = bytes_needed(dtype, shape, path, name)
    if needed != end - begin:
        raise wrong(
            f"{dtype} {list(shape)} needs {needed} bytes but its offsets hold {end - begin}"
        )
    extents = (Extent(0, data + begin, end - begin),)
    return Stored(path=path, name=name, dtype=dtype, shape=shape, extents=extents)


def _read_entry(raw: bytes, where: str) -> tuple[DType, tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, offsets) of an entry. Raises `FormatError`, beginning with `where`."""

    def wrong(what: str) -> FormatError:
        return DamagedError(f"{where} {what}.")

    if len(raw) > _MAX_ENTRY:
        raise wrong(_EXACTLY)
    try:
        spec = _ENTRY.decode(raw)
    except msgspec.ValidationError as error:
        raise wrong(f"{_EXACTLY} ({shortened(str(error))})") from error
    except _NOT_JSON as error:
        raise wrong(f"its entry isn't JSON ({error}); {_DAMAGED}") from error
    dtype, shape, offsets = spec.dtype, spec.shape, spec.data_offsets
    if not isinstance(dtype, str) or dtype not in BY_SAFETENSORS:
        raise FormatError(
            f"{where} dtype {shown(dtype)} is unknown; known: {', '.join(ORDER)}. Save it in one "
            "of them, or leave it out."
        )
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise wrong(f"shape {shown(shape)} isn't a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise wrong(f"data_offsets {shown(offsets)} aren't two byte offsets")
    if raw.count(b'"') != 8:  # of three keys and a dtype; more where a key stands twice
        raise wrong(_EXACTLY)
    return BY_SAFETENSORS[dtype], tuple(shape), (offsets[0], offsets[1])
