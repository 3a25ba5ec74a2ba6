"""Which model and layout a checkpoint is, by config.json, names and, last, shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ckptforge.errors import LayoutError, MissingTensorsError, ModelUnknownError, shown
from ckptforge.spelling import option
from ckptforge.tables.binding import Binding, Shapes
from ckptforge.tables.layout_choice import Hints, fitting, readable, recognise
from ckptforge.tables.prefixes import Renaming, adapted, renamings
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import Table
from ckptforge.tables.table_choice import choose_table, has_class, nearest_layout, possible_tables
from ckptforge.wording import counted


class Identified(msgspec.Struct, frozen=True):
    """A binding, what was done to the names, and by what the model was known."""

    binding: Binding
    renaming: Renaming | None = None
    note: str = ""

    def renamed(self, name: str) -> str:
        """The layout's name of a stored tensor."""
        return name if self.renaming is None else self.renaming.names.get(name, name)


def identify(tables: Sequence[Table], shapes: Shapes, hints: Hints) -> Identified:
    """The table and the layout of a checkpoint, with what stands before the layout's names taken
    off.

    Raises `ModelUnknownError` and `LayoutError`, which say what is there, and `UsageError`.
    """
    try:
        return _read(tables, shapes, hints)
    except (LayoutError, ModelUnknownError) as error:
        first = error
    found = adapted(shapes)
    if found and len(found) < len(shapes):
        raise MissingTensorsError(
            "holds a model that peft has wrapped, its adapter not merged: "
            f"{counted(len(found), 'tensor')} such as {shown(found[0])}. Merge it with "
            "merge_and_unload() and save the result; or save the adapter alone with "
            f"save_pretrained and add it to the base model with {option('merge_lora')}."
        ) from first
    identified, reason = _renamed(tables, shapes, hints)
    if identified is not None:
        return identified
    lacking = isinstance(first, MissingTensorsError)
    raise reason or _contradiction(tables, shapes, hints, lacking) or first


def _read(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, renaming: Renaming | None = None
) -> Identified:
    table = choose_table(tables, shapes, hints)
    binding = recognise(table, shapes, hints)
    if hints.model is not None or hints.config.get("model_type") in table.model_types:
        return Identified(binding, renaming)
    clue = "its architectures" if has_class(table, hints.config) else "the tensor names"
    seen = f"{hints.config_source} has no model_type" if hints.config else "there is no config.json"
    return Identified(binding, renaming, f"{seen}: treated as {table.name}, from {clue}.")


def _renamed(
    tables: Sequence[Table], shapes: Shapes, hints: Hints
) -> tuple[Identified | None, LayoutError | ModelUnknownError | None]:
    """The model under other names, or what is wrong with them."""
    tables_left = possible_tables(tables, hints)
    layouts = [layout for table in tables_left for layout in readable(table, hints)]
    found: list[tuple[Identified, Renaming]] = []
    flawed: LayoutError | None = None
    reason: LayoutError | ModelUnknownError | None = None
    for renaming in renamings(layouts, list(shapes)):
        renamed = {renaming.names.get(name, name): shape for name, shape in shapes.items()}
        try:
            identified = _read(tables, renamed, hints, renaming)
        except (LayoutError, ModelUnknownError) as error:
            if reason is None and len(renaming.names) * 2 > len(shapes):
                reason = type(error)(f"{renaming.said}; but then {error}")
            continue
        if set(renaming.names.values()) <= set(identified.binding.unknown):
            continue  # it fits as these names are no longer in the way
        if not renaming.flaw:
            found.append((identified, renaming))
        elif flawed is None:
            said = renaming.said.replace(", which is", ", which would be")
            flawed = LayoutError(
                f"{said}, but {renaming.flaw}. Save the model again without that prefix."
            )
    names = [renaming.names.items() for _, renaming in found]
    whole = [one for one in found if not any(one[1].names.items() < other for other in names)]
    if len(whole) > 1:
        listed = "\n".join(f"  {renaming.said}" for _, renaming in whole)
        return None, LayoutError(
            f"holds several models, each of which fits:\n{listed}\nKeep the tensors of one."
        )
    return (whole[0][0], None) if whole else (None, flawed or reason)


def _contradiction(
    tables: Sequence[Table], shapes: Shapes, hints: Hints, lacking: bool
) -> ModelUnknownError | None:
    """That config.json names a model, and the tensors are those of another: which knows more of
    them, or, where the model that is named lacks some (`lacking`), has no more than these."""
    model_type, meant = hints.config.get("model_type"), possible_tables(tables, hints)
    if hints.model is not None or len(meant) != 1 or model_type not in meant[0].model_types:
        return None
    plain, named = replace(hints, config={}, layout=None), {table.name for table in tables}
    known = nearest_layout(meant[0], shapes).known
    for table in shipped_tables() if lacking or known < len(shapes) else ():
        whole = table.name not in named and nearest_layout(table, shapes).known == len(shapes)
        if whole and fitting(table, shapes, plain, readable(table, plain)):
            return ModelUnknownError(
                f"{hints.config_source} has model_type {shown(model_type)}, but the tensors are "
                f"those of {table.name}. Give the model's own config.json with {option('config')}; "
                "or, if only model_type is wrong in it, name the table with "
                f"{option('model', table.name)}."
            )
    return None
