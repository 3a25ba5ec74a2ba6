"""The recipe of an average, as people write it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from ckptforge.validation import Written, expected

_Method = Literal["linear", "slerp", "dare"]
METHODS = get_args(_Method)
Method = Annotated[_Method, expected("linear, slerp or dare", METHODS)]
Weight = Annotated[
    float | int | str,
    expected("a number, or a curve over the layers such as '0.2 -> 0.8'"),
]
Text = Annotated[str, expected("text")]
Number = Annotated[float | int, expected("a number")]


class Input(Written):
    """One checkpoint."""

    path: Text | None = Field(
        default=None,
        description="where it lies; omitted, those that the call names are taken in order",
    )
    weight: Weight | dict[str, Weight] = Field(
        default=1.0,
        description="how much it counts: a number, a curve '0.2 -> 0.8' from the first layer to "
        "the last, or keys: default, l (all tensors of layers), and globs of the mapping's tensors",
    )
    layout: Text | None = Field(default=None, description="its layout, where it isn't detected")
    step: int | None = Field(default=None, ge=0, description="which step, where there are several")
    strategy_dir: Text | None = Field(
        default=None, description="the strategy of its job, of rank directories"
    )
    parallel_config: Text | None = Field(
        default=None, description="the parallel configuration of its job, of rank directories"
    )


class AverageRecipe(Written):
    """What is averaged, and how."""

    method: Method = Field(default="linear", description="how: linear, slerp or dare")
    scale: Number = Field(
        default=1.0, description="what the sum of the differences from the base is multiplied by"
    )
    density: Annotated[float | int, expected("a number above 0, at most 1")] = Field(
        default=0.5, gt=0, le=1, description="of dare: which part of each difference is kept"
    )
    seed: int = Field(default=0, description="of dare: by which the kept elements are chosen")
    base: Input | None = Field(
        default=None, description="the checkpoint that differences are taken from"
    )
    input: list[Input] = Field(
        default=[], max_length=1000, description="the checkpoints that are averaged, in order"
    )
