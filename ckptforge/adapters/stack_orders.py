"""Whether the factors of a stacked parameter are in the order that is understood: A for inputs, B
for outputs.

peft before 0.19 takes a parameter's second axis for A and its third for B, whatever they are; since
then the other way round, but for modules that transformers 5 calls `is_transposed`
(peft/tuners/lora/layer.py, class ParamWrapper, of 0.17.1, 0.18.1 and 0.21). Shapes tell, but those
of square parameters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.quantisation.stacks import inputs_first
from ckptforge.tables.axes import Pattern
from ckptforge.tables.table import Table
from ckptforge.values import Value

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
_SWAPPED_SINCE = (0, 19)
OTHERWISE = (
    "Inputs and outputs have changed places in them, as peft before 0.19 made factors, and later "
    "ones beside transformers 4: merge the adapter with what it was trained with."
)


def refuse_doubtful(
    path: Path, pairs: Collection[tuple[Pattern, Value, Value]], table: Table, version: object
) -> None:
    """Raises `FormatError` for factors of square parameters alone, unless the `version` of peft
    that made them says in which order they are."""
    square = [(pattern, a) for pattern, a, b in pairs if a.shape[1] == b.shape[0]]
    if len(square) < len(pairs):
        return  # the shape of another shows the order
    known = _VERSION.match(version) if isinstance(version, str) else None
    number = None if known is None else (int(known[1]), int(known[2]))
    for pattern, a in square:
        alike = (one for one in of_three_axes(table) if one.tensors == pattern.tensors)
        forms = {inputs_first(table, one) for one in alike}
        swapped = number is not None and number >= _SWAPPED_SINCE
        before = number is not None and number < _SWAPPED_SINCE
        if (forms == {False} and swapped) or (forms == {True} and before):
            continue
        by = "" if number is None else f" ({shown(version)})"
        raise FormatError(
            f"{path}: {a.origin.name} is of a square parameter, {pattern.template}, whose factors "
            "peft orders by inputs and outputs or the other way round, by its version and "
            f"transformers', and nothing in the adapter tells which{by}. Merge it with what it was "
            "trained with (merge_and_unload), and take the merged model."
        )


def of_three_axes(table: Table) -> Iterator[Pattern]:
    """What layouts of Hugging Face store with three axes, as stacked experts are."""
    layouts = (one for one in table.layouts.values() if one.family == "huggingface")
    return (one for layout in layouts for one in layout.patterns if len(one.axes) == 3)
