"""What is averaged, and how: what the options and the recipe say together."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from ckptforge.checkpoints.mindspore import rank_directories
from ckptforge.checkpoints.run_checkpoints import last_of
from ckptforge.errors import UsageError
from ckptforge.foreign.paths import is_directory
from ckptforge.spelling import option
from ckptforge.storage.address import given_path
from ckptforge.surgery.recipes import read_average_recipe
from ckptforge.surgery.schedules import schedule_weights
from ckptforge.surgery.weights import Weights, parse_weights, plain
from ckptforge.verbs.options import Average
from ckptforge.wording import counted

if TYPE_CHECKING:
    from ckptforge.surgery.average_schema import AverageRecipe, Input


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is averaged: what it is opened with, and how much it counts."""

    path: Path
    weights: Weights
    layout: str | None = None
    step: int | None = None
    strategy_dir: Path | None = None
    parallel_config: Path | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that is averaged, and how."""

    inputs: tuple[Named, ...]
    base: Named | None
    method: str
    scale: float
    density: float
    seed: int


def settings_of(options: Average) -> Settings:
    """What the options and the recipe say together. Raises `UsageError`."""
    recipe = None if options.recipe is None else read_average_recipe(options.recipe)
    inputs = _inputs(options, recipe)
    if not inputs:
        raise UsageError("nothing is averaged: name the checkpoints.")
    base = None
    if options.base is not None:
        base = _named(options, options.base, plain(1.0))
    elif recipe is not None and recipe.base is not None:
        base = _of_recipe(options, recipe.base, recipe.base.path, "the base")
    _refuse_cut(options, [*inputs, *([] if base is None else [base])])
    method = options.method or (recipe.method if recipe else "linear")
    for name in ("density", "seed"):
        if getattr(options, name) is not None and method != "dare":
            raise UsageError(f"{option(name)} is of {option('method', 'dare')}, not of {method}.")
    if options.scale is not None and base is None:
        raise UsageError(
            f"{option('scale')} multiplies the differences from a base: name it with "
            f"{option('base')}."
        )
    return Settings(
        inputs=inputs,
        base=base,
        method=method,
        scale=_number("scale", options.scale, float(recipe.scale) if recipe else 1.0),
        density=_density(options.density, float(recipe.density) if recipe else 0.5),
        seed=options.seed if options.seed is not None else (recipe.seed if recipe else 0),
    )


def _refuse_cut(options: Average, named: Sequence[Named]) -> None:
    """Raises `UsageError` where it is said how inputs are cut, and none of them is."""
    for name in ("strategy_dir", "parallel_config"):
        given = getattr(options, f"src_{name}")
        if given is not None and all(getattr(one, name) != given for one in named):
            raise UsageError(
                f"{option(f'src_{name}', given)} says how rank directories are cut, and no input "
                "is such; omit it."
            )


def _inputs(options: Average, recipe: AverageRecipe | None) -> tuple[Named, ...]:
    paths = [given_path(os.fspath(source)) for source in options.sources]
    if options.last is not None:
        return _of_run(options, paths, options.last)
    if options.schedule is not None:
        raise UsageError(
            f"{option('schedule', options.schedule)} says how much the last checkpoints of a run "
            f"count: say how many with {option('last')}."
        )
    if recipe is not None and recipe.input:
        if options.weights is not None:
            raise UsageError(f"{option('weights')} and the recipe both say weights; give one.")
        return _of_inputs(options, recipe.input, paths)
    based = options.base is not None or (recipe is not None and recipe.base is not None)
    weights = weights_of(options.weights, len(paths), 1.0 if based else 1 / max(len(paths), 1))
    pairs = zip(paths, weights, strict=True)
    return tuple(_named(options, path, plain(weight)) for path, weight in pairs)


def _of_run(options: Average, paths: Sequence[Path], last: int) -> tuple[Named, ...]:
    """The last checkpoints of a run."""
    if len(paths) != 1 or options.weights is not None or options.recipe is not None:
        raise UsageError(
            f"{option('last')} takes the last checkpoints of one run: name its directory alone, "
            f"and their weights with {option('schedule')}."
        )
    found = last_of(paths[0], last)
    weights = schedule_weights(options.schedule or "uniform", len(found))
    return tuple(
        replace(_named(options, one.path, plain(weight)), step=one.chosen)
        for one, weight in zip(found, weights, strict=True)
    )


def _of_inputs(
    options: Average, inputs: Sequence[Input], paths: Sequence[Path]
) -> tuple[Named, ...]:
    """The inputs of a recipe: those that it doesn't name are those of the call."""
    unnamed = [one for one in inputs if one.path is None]
    if len(unnamed) != len(paths):
        raise UsageError(
            f"{options.recipe}: leaves {counted(len(unnamed), 'path')} of its inputs to the call, "
            f"which names {len(paths)}."
        )
    given = iter(paths)
    return tuple(
        _of_recipe(options, one, one.path or next(given), f"input, no. {i}")
        for i, one in enumerate(inputs, 1)
    )


def _of_recipe(options: Average, one: Input, path: str | Path | None, where: str) -> Named:
    if path is None:
        raise UsageError(f"{options.recipe}: {where} has no path.")
    found = _named(options, Path(path), parse_weights(one.weight, f"{options.recipe}: {where}"))
    changes: dict[str, Any] = {"layout": one.layout, "step": one.step}
    if one.strategy_dir is not None or one.parallel_config is not None:
        changes["strategy_dir"] = None if one.strategy_dir is None else Path(one.strategy_dir)
        config = one.parallel_config
        changes["parallel_config"] = None if config is None else Path(config)
    return replace(found, **changes)


def _named(options: Average, path: Path, weights: Weights) -> Named:
    cut = is_directory(path) and list(rank_directories(path)) not in ([], [0])
    return Named(
        path=path,
        weights=weights,
        strategy_dir=options.src_strategy_dir if cut else None,
        parallel_config=options.src_parallel_config if cut else None,
    )


def weights_of(given: str | Sequence[float] | None, count: int, usual: float) -> list[float]:
    """A weight for each of `count` inputs, as given, else the usual one. Raises `UsageError`."""
    if given is None:
        return [usual] * count
    words: Sequence[Any] = given.split(",") if isinstance(given, str) else given
    try:
        found = [float(word) for word in words]
    except ValueError as error:
        raise UsageError(
            f"{option('weights', given)}: expected numbers, such as 0.5,0.5."
        ) from error
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UsageError(
            f"{option('weights', given)}: expected {counted(count, 'finite number')}, one for each "
            "checkpoint."
        )
    return found


def _number(name: str, given: float | None, usual: float) -> float:
    found = usual if given is None else float(given)
    if not math.isfinite(found):
        raise UsageError(f"{option(name, given)}: expected a finite number.")
    return found


def _density(given: float | None, usual: float) -> float:
    found = _number("density", given, usual)
    if not 0 < found <= 1:
        raise UsageError(f"{option('density', given)}: expected a number above 0, at most 1.")
    return found
