"""A checkpoint whose weights are quantised, as one of what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import FormatError, QuantisedError, shown
from ckptforge.foreign.json import file_of
from ckptforge.model import Model
from ckptforge.quantisation.fitting import ADVICE, described, not_undone, scaled_of
from ckptforge.quantisation.method import (
    EARLIER,
    KEYS,
    MODEL_OPT,
    OF_EXPERTS,
    Method,
    find_method,
    is_description,
)
from ckptforge.quantisation.packed import Packed, fragments_of_codes
from ckptforge.spelling import command, option
from ckptforge.steps.scaled import Scaled
from ckptforge.tables.companions import is_of_activations, kind_of, scale_of, writer_of
from ckptforge.values import Stored, Term, Value
from ckptforge.wording import counted

_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "int8")
_NONE = "but no weight is quantised; a config.json that is written doesn't say so"
_WEIGHTS = ("bfloat16", "float16", "float32")


class Undone(msgspec.Struct, frozen=True):
    """A model with its quantised weights as what they stand for, without the tensors by which they
    are computed; `activations` are scales that only the quantised model needs."""

    model: Model
    activations: tuple[str, ...] = ()


def undo(model: Model, config: Mapping[str, Any], where: str) -> Undone:
    """The model with every quantised weight computed from its numbers and scales; `where` names
    config.json.

    Raises `QuantisedError`, which names the method, for weights that can't be undone, `FormatError`
    for scales that don't fit their weight or are missing, and `ConfigError` where nothing says how
    large a block is.
    """
    tensors = {name: stored for name, value in model.values.items() if (stored := _read_by(value))}
    method = None
    if all(file.path.suffix == ".safetensors" for file in model.files):
        method = find_method(config, where, model.directory)
    _refuse_unread(model.path, tensors, method)
    packed = list(method.packing.weights(tensors)) if method and method.packing else []
    _refuse_two(model, packed)
    gone = {name for one in packed for name in (*one.taken, *one.beside)}
    _refuse_cut(model, [name for name in gone if model.values[name].whole is None])
    for name in gone:
        tensors.pop(name, None)
    codes = (n for n, one in tensors.items() if method or one.dtype.name in _EIGHT_BITS)
    scales = {name: scale for name in codes if (scale := scale_of(name, tensors)) is not None}
    weights = list(scales)
    if weights or (method is not None and method.codes):
        _refuse_without_scales(tensors, method, weights)
    if not weights and not packed:
        note = () if method is None else (f"{method.where} says {method.name}, {_NONE}.",)
        return Undone(model.noting(*note))
    both = (*weights, *dict.fromkeys(scales.values()))
    _refuse_cut(model, [name for name in both if model.values[name].whole is None])
    dtype = _dtype_of(config)
    steps = scaled_of(tensors, scales, method, where)
    beside = frozenset(tensor.name for step in steps.values() for tensor in step.inputs)
    undone = {name: _undone(model.values[name], step, dtype) for name, step in steps.items()}
    undone |= {one.name: replace(one.value, dtype=dtype) for one in packed}
    activations = tuple(name for name in tensors if name not in beside and is_of_activations(name))
    unused = tuple(dict.fromkeys(name for one in packed for name in one.beside))
    notes = (*_notes(tensors, steps, method), *_packed_notes(packed, method))
    taken = (beside | {name for one in packed for name in one.taken}) - undone.keys()
    values = _in_place(model.values, undone, packed, taken)
    return Undone(replace(model, values=values).noting(*notes), (*unused, *activations))


def _read_by(value: Value) -> Stored | None:
    """The stored tensor that a value begins with; None where its numbers go through steps."""
    first = None
    for term in value.terms:
        for fragment in term.fragments:
            if fragment.steps:
                return None
            first = fragment if first is None else first
    return None if first is None else first.stored


def _in_place(
    values: Mapping[str, Value],
    undone: Mapping[str, Value],
    packed: Sequence[Packed],
    taken: Collection[str],
) -> dict[str, Value]:
    """All values but those `taken`, those of packed weights where their codes were."""
    makes = {one.taken[0]: one.name for one in packed}
    found: dict[str, Value] = {}
    for name, value in values.items():
        if (made := makes.get(name, name)) in undone:
            found[made] = undone[made]
        elif name not in taken:
            found[name] = value
    return found


def _refuse_two(model: Model, packed: Sequence[Packed]) -> None:
    """Raises `FormatError` for a weight that is there both in codes and as it is."""
    for one in packed:
        if one.name in model.values and one.name not in one.taken:
            codes, plain = model.values[one.taken[0]].origin, model.values[one.name].origin
            raise FormatError(
                f"{described(codes)}, the codes of {shown(one.name)}, which is there by itself, "
                f"too: {plain.dtype} {list(plain.shape)} in {plain.path}. Which of them is the "
                "weight isn't known; keep one."
            )


def _refuse_cut(model: Model, cut: Sequence[str]) -> None:
    if cut:
        raise FormatError(
            f"{model.path}: {shown(cut[0])} is stored with scales of its blocks and cut into "
            f"ranks, which isn't read; merge the ranks first, with {command('merge')}."
        )


def _packed_notes(packed: Sequence[Packed], method: Method | None) -> Iterator[str]:
    """A sentence for each kind of packed weights."""
    by = "" if method is None else f" ({method.name})"
    for what, count in Counter(one.what for one in packed).items():
        yield f"{counted(count, 'weight', 'are')} stored in {what}{by}: computed in float32."


def _undone(value: Value, step: Scaled, dtype: DType) -> Value:
    term = Term(fragments=fragments_of_codes(value.origin, step))
    return Value(dtype=dtype, shape=value.shape, terms=(term,), kind=value.kind)


def _refuse_unread(path: Path, names: Mapping[str, Stored], method: Method | None) -> None:
    """Raises `QuantisedError` where tensors show a method that can't be undone."""
    writer = writer_of(names)
    if method is not None and method.unread is not None:
        sign = next((name for name, entry in names.items() if _is_sign(name, entry)), None)
        if sign is not None:
            entry = names[sign]
            raise QuantisedError(
                f"{path}: the weights are quantised: {method.where} says {method.name}, and "
                f"{shown(sign)} is {entry.dtype} {list(entry.shape)}. "
                f"{method.unread[0].upper()}{method.unread[1:]}. {ADVICE}"
            )
    elif writer is not None and (method is None or method.packing is None):
        raise QuantisedError(
            f"{path}: the weights are quantised, by {writer[0]} as {shown(writer[1])} shows, which "
            f"isn't read. {ADVICE}"
        )


def _is_sign(name: str, entry: Stored) -> bool:
    """Whether a tensor shows that weights are quantised: a companion of one, or codes."""
    codes = not entry.dtype.floating and len(entry.shape) > 1
    return codes or kind_of(name) is not None or entry.dtype.name in _EIGHT_BITS


def _refuse_without_scales(
    names: Mapping[str, Stored], method: Method | None, weights: list[str]
) -> None:
    scaled = set(weights)
    codes = (name for name, entry in names.items() if entry.dtype.name in _EIGHT_BITS)
    lacking = [name for name in codes if name not in scaled and kind_of(name) is None]
    for name in lacking:
        if method is not None and (refusal := method.refusal(name)) is not None:
            raise not_undone(names[name], method, refusal)
    if lacking:
        entry = names[lacking[0]]
        scales = ((name, scale_of(name, names)) for name in weights)
        endings = (scale[len(name) :] for name, scale in scales if scale is not None)
        ending = next(endings, "_scale")
        source = "" if method is None else f" ({method.where} says {method.name})"
        raise FormatError(
            f"{entry.path}: {shown(entry.name)} is {entry.dtype}, but there is no "
            f"{shown(entry.name + ending)}, by which it would be multiplied "
            f"({counted(len(lacking), 'such weight')}){source}; is a file missing?"
        )


def _dtype_of(config: Mapping[str, Any]) -> DType:
    """What dequantised weights are taken for: the model's own dtype, by config.json."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if holder.get(key) in _WEIGHTS:
                return BY_NAME[holder[key]]
    return BY_NAME["bfloat16"]


def _notes(
    tensors: Mapping[str, Stored], scaled: Mapping[str, Scaled], method: Method | None
) -> Iterator[str]:
    """A sentence for each kind of scales."""
    alike = Counter(
        [(tensors[name].shape, one.block, one.offset is not None) for name, one in scaled.items()]
    )
    kinds = Counter[tuple[str, bool]]()
    for (shape, block, shifted), count in alike.items():
        kinds[_kind(shape, block), shifted] += count
    by = "" if method is None else f" ({method.name})"
    for (kind, shifted), count in kinds.items():
        formula = "(value - offset) × scale" if shifted else "value × scale"
        yield (
            f"{counted(count, 'weight', 'are')} stored with {kind}{by}: read as {formula}, in "
            "float32."
        )


def _kind(shape: tuple[int, ...], block: tuple[int, ...]) -> str:
    if block == shape:
        return "one scale"
    if len(shape) > 1 and block[-1] == shape[-1] and all(step == 1 for step in block[:-1]):
        return "a scale for each row"
    return f"a scale for each block of {' × '.join(map(str, block[-2:]))}"


def refuse_scaled(model: Model) -> None:
    """Raises `QuantisedError` for eight-bit floats with scales, which a cast ignores."""
    names = {name: value.origin for name, value in model.values.items()}
    for name, entry in names.items():
        codes = entry.dtype.itemsize == 1 and entry.dtype.floating
        if codes and (scale := scale_of(name, names)) is not None:
            raise QuantisedError(
                f"{described(entry)} with scales beside it, {shown(scale)}: a cast would take "
                f"codes for weights. Omit {option('dtype')}, and cast where the model is "
                "converted, which undoes the scales."
            )


def refuse_codes(model: Model, doing: str, reason: str) -> None:
    """Raises `QuantisedError` for codes with scales that nothing has undone, for a `reason`:
    `doing`, such as an average, would take them for weights."""
    names = {name: value.origin for name, value in model.values.items()}
    beside = {
        name: scale
        for name, entry in names.items()
        if entry.dtype.itemsize == 1 and (scale := scale_of(name, names)) is not None
    }
    sign = next(iter(beside.values()), None) or (writer_of(names) or (None, None))[1]
    if sign is not None:
        raise QuantisedError(
            f"{model.path}: {shown(sign)} shows that weights are quantised, and they aren't read "
            f"as what they stand for: {doing} would take their codes for weights. {reason}"
        )


def without_quantisation(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, bytes]:
    """Small files that stand beside weights which aren't quantised: config.json (`config`, parsed)
    without what says that they are, and without the files that describe how."""
    described = {MODEL_OPT, *EARLIER, *filter(is_description, files)}
    kept = {name: content for name, content in files.items() if name not in described}
    dropped = (*KEYS, "quantize") if any(map(is_description, files)) else KEYS
    if any(key in config for key in KEYS):
        dropped = (*dropped, OF_EXPERTS)
    inner = config.get("text_config")
    plain = {key: value for key, value in config.items() if key not in dropped}
    if isinstance(inner, Mapping) and any(key in inner for key in dropped):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in dropped}
    if CONFIG in kept and plain != dict(config):
        kept[CONFIG] = file_of(plain)
    return kept
