"""A checkpoint whose weights are quantised, as one of what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.huggingface import CONFIG
from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import ConfigError, FormatError, QuantisedError, shown
from ckptforge.foreign.json import file_of
from ckptforge.model import Model
from ckptforge.quantisation.method import KEYS, MODEL_OPT, Method, find_method, is_description
from ckptforge.spelling import command, option
from ckptforge.steps.scaled import Scaled
from ckptforge.tables.companions import is_of_activations, kind_of, offset_of, scale_of, writer_of
from ckptforge.values import Stored, Value
from ckptforge.wording import counted

_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "int8")
_ADVICE = "Take the model before it was quantised, or dequantise it with the program that did it."
_NONE = "but no weight is quantised; a config.json that is written doesn't say so"
_WEIGHTS = ("bfloat16", "float16", "float32")


class Undone(msgspec.Struct, frozen=True):
    """A model with its quantised weights as what they stand for. `taken` are the scales and offsets
    by which they are computed, `activations` those that only the quantised model needs."""

    model: Model
    taken: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ()


def undo(model: Model, config: Mapping[str, Any], where: str) -> Undone:
    """The model with every quantised weight computed from its numbers and scales; `where` names
    config.json.

    Raises `QuantisedError`, which names the method, for weights that can't be undone, `FormatError`
    for scales that don't fit their weight or are missing, and `ConfigError` where nothing says how
    large a block is.
    """
    plain = ((n, v) for n, v in model.values.items() if not any(f.steps for f in v.fragments))
    tensors = {name: value.origin for name, value in plain}
    method = None
    if all(file.path.suffix == ".safetensors" for file in model.files):
        method = find_method(config, where, model.directory)
    _refuse_unread(model.path, tensors, method)
    scaled = (name for name in tensors if scale_of(name, tensors) is not None)
    weights = [n for n in scaled if method is not None or tensors[n].dtype.name in _EIGHT_BITS]
    if weights or (method is not None and method.codes):
        _refuse_without_scales(tensors, method, weights)
    if not weights:
        note = () if method is None else (f"{method.where} says {method.name}, {_NONE}.",)
        return Undone(model.noting(*note))
    scales = {str(scale_of(name, tensors)) for name in weights}
    if cut := next((n for n in (*weights, *scales) if model.values[n].whole is None), None):
        raise FormatError(
            f"{model.path}: {shown(cut)} is stored with scales of its blocks and cut into ranks, "
            f"which isn't read; merge the ranks first, with {command('merge')}."
        )
    dtype = _dtype_of(config)
    steps = {name: _scaled(tensors, name, method, where) for name in weights}
    beside = frozenset(tensor.name for step in steps.values() for tensor in step.inputs)
    undone = {name: _undone(model.values[name], step, dtype) for name, step in steps.items()}
    values = {**model.values, **undone}
    activations = tuple(name for name in tensors if name not in beside and is_of_activations(name))
    changed = replace(model, values=values).noting(*_notes(tensors, steps, method))
    return Undone(changed, beside, activations)


def _undone(value: Value, step: Scaled, dtype: DType) -> Value:
    read = value.map(lambda fragment: replace(fragment, steps=(*fragment.steps, step)))
    return replace(read, dtype=dtype)


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
                f"{method.unread[0].upper()}{method.unread[1:]}. {_ADVICE}"
            )
    elif writer is not None:
        raise QuantisedError(
            f"{path}: the weights are quantised, by {writer[0]} as {shown(writer[1])} shows, which "
            f"isn't read. {_ADVICE}"
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
            raise _not_undone(names[name], method, refusal)
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


def _scaled(tensors: Mapping[str, Stored], name: str, method: Method | None, where: str) -> Scaled:
    entry, scale = tensors[name], tensors[str(scale_of(name, tensors))]
    offset = None if (found := offset_of(name, tensors)) is None else tensors[found]
    _check_codes(entry, scale, method, name)
    exponents = method is not None and method.are_exponents(name) and scale.dtype.name == "uint8"
    if not (scale.dtype.floating or scale.dtype.name == "float8_e8m0" or exponents):
        raise FormatError(
            f"{_described(entry)}: its scales should be floats, but {shown(scale.name)} in "
            f"{scale.path} is {scale.dtype} {list(scale.shape)}."
        )
    block = _block(entry, scale, method, where)
    grid = _grid(entry.shape, block)
    numbers = offset is None or offset.dtype.floating or "int" in offset.dtype.name
    if offset is not None and not (numbers and _grid_of(entry.shape, offset.shape) == grid):
        raise FormatError(
            f"{_described(entry)}: its offsets should be as many as its scales, "
            f"{list(scale.shape)}, but {shown(offset.name)} in {offset.path} is {offset.dtype} "
            f"{list(offset.shape)}."
        )
    return Scaled(scale=scale, block=block, offset=offset, exponents=exponents)


def _not_undone(entry: Stored, method: Method, why: str) -> QuantisedError:
    return QuantisedError(
        f"{_described(entry)}, quantised by {method.name} ({method.where}): {why}. {_ADVICE}"
    )


def _described(entry: Stored) -> str:
    return f"{entry.path}: {shown(entry.name)} is {entry.dtype} {list(entry.shape)}"


def _check_codes(entry: Stored, scale: Stored, method: Method | None, name: str) -> None:
    if method is not None and (refusal := method.refusal(name)) is not None:
        raise _not_undone(entry, method, refusal)
    allowed = ("float8_e4m3fn", "float8_e5m2") if method is None else method.codes_of(name)
    if entry.dtype.name not in allowed:
        source = "no config.json or description says how"
        if method is not None:
            source = f"{method.where} says {method.name}"
        raise FormatError(
            f"{_described(entry)}, expected {' or '.join(sorted(allowed)) or 'no scales'}, as "
            f"{scale.path} has scales of it, {shown(scale.name)} ({source})."
        )


def _block(entry: Stored, scale: Stored, method: Method | None, where: str) -> tuple[int, ...]:
    """How many elements share a scale, by axis. The shape of the scales says it where there is one
    for the whole tensor, or one for each row or column; else the method must, and fit."""
    shape, counts = entry.shape, _grid_of(entry.shape, scale.shape)
    blocks = () if method is None else method.blocks
    groups = () if method is None else method.groups
    choices = {(1,) * (len(shape) - 2) + block for block in blocks if len(shape) > 1}
    choices |= {(1,) * (len(shape) - 1) + (group,) for group in groups}
    fitting = {choice for choice in choices if _grid(shape, choice) == counts}
    if len({tuple(map(min, choice, shape)) for choice in fitting}) == 1:
        return next(iter(fitting))
    pairs = () if counts is None else zip(counts, shape, strict=True)
    plain = counts is not None and all(count in (1, n) for count, n in pairs)
    assumed = method is None or method.assumed or not blocks
    if plain and counts is not None and (assumed or not scale.shape or scale.shape == (1,)):
        return tuple(max(n, 1) if count == 1 else 1 for count, n in zip(counts, shape, strict=True))
    if not choices and len(shape) > 1 and len(scale.shape) == len(shape):
        raise ConfigError(
            f"{where}: {_described(entry)} with scales of shape {list(scale.shape)}, but "
            "quantization_config.weight_block_size isn't two positive integers, expected the rows "
            "and columns of a block, which the shapes don't tell. Take config.json from where the "
            f"quantised model was published, or give it with {option('config')}."
        )
    expected = [list(_grid(shape, choice)) for choice in sorted(choices)]
    raise FormatError(
        f"{_described(entry)}: {_sizes(blocks, groups)}its scales should be floats of shape "
        f"{' or '.join(map(str, expected or ([], [shape[0] if shape else 1, 1])))}, but "
        f"{shown(scale.name)} in {scale.path} is {scale.dtype} {list(scale.shape)}."
    )


def _sizes(blocks: tuple[tuple[int, int], ...], groups: tuple[int, ...]) -> str:
    if blocks:
        return f"with blocks of {' or '.join(f'{rows} × {columns}' for rows, columns in blocks)} "
    return f"with groups of {' or '.join(map(str, groups))} " if groups else ""


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """How many blocks there are along each axis of a tensor."""
    return tuple(-(-n // step) for n, step in zip(shape, block, strict=True))


def _grid_of(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many scales there are along each axis of a tensor; None where their shape can't tell."""
    if scales in ((), (1,)):
        return (1,) * len(shape)
    if len(scales) == len(shape):
        return scales
    if len(scales) < len(shape) and scales == shape[: len(scales)]:
        return scales + (1,) * (len(shape) - len(scales))
    return None


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
    kinds = Counter(
        (_kind(tensors[name].shape, one.block), one.offset is not None)
        for name, one in scaled.items()
    )
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
                f"{_described(entry)} with scales beside it, {shown(scale)}: a cast would take "
                f"codes for weights. Omit {option('dtype')}, and cast where the model is "
                "converted, which undoes the scales."
            )


def without_quantisation(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, bytes]:
    """Small files that stand beside weights which aren't quantised: config.json (`config`, parsed)
    without what says that they are, and without the files that describe how."""
    described = {MODEL_OPT, *filter(is_description, files)}
    kept = {name: content for name, content in files.items() if name not in described}
    dropped = (*KEYS, "quantize") if any(map(is_description, files)) else KEYS
    inner = config.get("text_config")
    plain = {key: value for key, value in config.items() if key not in dropped}
    if isinstance(inner, Mapping) and any(key in inner for key in dropped):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in dropped}
    if CONFIG in kept and plain != dict(config):
        kept[CONFIG] = file_of(plain)
    return kept
