"""Which scales and offsets belong to a quantised weight, and how they fit it."""

from __future__ import annotations

from collections.abc import Mapping

from ckptforge.errors import ConfigError, FormatError, QuantisedError, shown
from ckptforge.quantisation.method import DESCRIBED, DESCRIPTION, Method
from ckptforge.spelling import option
from ckptforge.steps.grid import Grid
from ckptforge.steps.scaled import Scaled
from ckptforge.tables.companions import offset_of
from ckptforge.values import Stored

ADVICE = "Take the model before it was quantised, or dequantise it with the program that did it."


def scaled_of(
    tensors: Mapping[str, Stored], scales: Mapping[str, str], method: Method | None, where: str
) -> dict[str, Scaled]:
    """The steps for weights, each with the name of its scales beside it; `where` names config.json.
    Raises `QuantisedError` for one that can't be undone, `FormatError` for scales that don't fit
    it, and `ConfigError` where nothing says how large a block is."""
    found: dict[str, Scaled] = {}
    # what dtypes and shapes say is found once for all that share them
    alike: dict[object, Scaled] = {}
    types = {} if method is None else method.types
    for name, of in scales.items():
        entry, scale = tensors[name], tensors[of]
        offset = None if (beside := offset_of(name, tensors)) is None else tensors[beside]
        told = None if offset is None else (offset.dtype.name, offset.shape)
        kinds = entry.dtype.name, entry.shape, scale.dtype.name, scale.shape
        key = kinds, told, types.get(name)
        if (known := alike.get(key)) is None:
            known = alike[key] = _fitted(entry, scale, offset, method, where, name)
        found[name] = Scaled(
            scale=Grid(stored=scale, exponents=known.scale.exponents),
            block=known.block,
            offset=None if offset is None else Grid(stored=offset),
        )
    return found


def _fitted(
    entry: Stored,
    scale: Stored,
    offset: Stored | None,
    method: Method | None,
    where: str,
    name: str,
) -> Scaled:
    _check_codes(entry, scale, method, name)
    exponents = method is not None and method.are_exponents(name) and scale.dtype.name == "uint8"
    if not (scale.dtype.floating or scale.dtype.name == "float8_e8m0" or exponents):
        raise FormatError(
            f"{described(entry)}: its scales should be floats, but {shown(scale.name)} in "
            f"{scale.path} is {scale.dtype} {list(scale.shape)}."
        )
    if offset is None and method is not None and method.shifted and entry.dtype.name == "int8":
        raise FormatError(
            f"{described(entry)}, but there is no {shown(f'{entry.name}_zero_point')}, which "
            f"{method.where} says it has (symmetric is false); is a file missing?"
        )
    block = _block(entry, scale, method, where)
    grid = _grid(entry.shape, block)
    numbers = offset is None or offset.dtype.floating or offset.dtype.name.startswith("int")
    if offset is not None and not (numbers and _grid_of(entry.shape, offset.shape) == grid):
        raise FormatError(
            f"{described(entry)}: its offsets should be floats or signed integers, as many as its "
            f"scales, {list(scale.shape)}, but {shown(offset.name)} in {offset.path} is "
            f"{offset.dtype} {list(offset.shape)}."
        )
    return Scaled(
        scale=Grid(stored=scale, exponents=exponents),
        block=block,
        offset=None if offset is None else Grid(stored=offset),
    )


def not_undone(entry: Stored, method: Method, why: str) -> QuantisedError:
    """The error for a weight of a model whose method is read, but not for this one."""
    return QuantisedError(
        f"{described(entry)}, quantised by {method.name} ({method.where}): {why}. {ADVICE}"
    )


def described(entry: Stored) -> str:
    """A stored tensor, for a message."""
    return f"{entry.path}: {shown(entry.name)} is {entry.dtype} {list(entry.shape)}"


def _check_codes(entry: Stored, scale: Stored, method: Method | None, name: str) -> None:
    if method is not None and (refusal := method.refusal(name)) is not None:
        raise not_undone(entry, method, refusal)
    allowed = ("float8_e4m3fn", "float8_e5m2") if method is None else method.codes_of(name)
    if entry.dtype.name not in allowed:
        source = "no config.json or description says how"
        if method is not None:
            source = f"{method.where} says {method.name}"
        elif entry.path.name.startswith(DESCRIBED):
            source = f"{DESCRIPTION}, which says how, is missing beside it: get it, too"
        raise FormatError(
            f"{described(entry)}, expected {' or '.join(sorted(allowed)) or 'no scales'}, as "
            f"{scale.path} has scales of it, {shown(scale.name)} ({source})."
        )


def _block(entry: Stored, scale: Stored, method: Method | None, where: str) -> tuple[int, ...]:
    """How many elements share a scale, by axis. The shape of the scales says it where there is one
    for the whole tensor, or one for each row or column; else the method must, and fit."""
    shape, counts = entry.shape, _grid_of(entry.shape, scale.shape)
    blocks = () if method is None else method.blocks
    groups = () if method is None else method.groups
    choices = {(1,) * (len(shape) - 2) + block for block in blocks if len(shape) > 1}
    choices |= {(1,) * (len(shape) - 1) + (group,) for group in groups if shape}
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
            f"{where}: {described(entry)} with scales of shape {list(scale.shape)}, but "
            "quantization_config.weight_block_size isn't two positive integers, expected the rows "
            "and columns of a block, which the shapes don't tell. Take config.json from where the "
            f"quantised model was published, or give it with {option('config')}."
        )
    expected = [list(_grid(shape, choice)) for choice in sorted(choices)]
    raise FormatError(
        f"{described(entry)}: {_sizes(blocks, groups)}its scales should be floats of shape "
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
