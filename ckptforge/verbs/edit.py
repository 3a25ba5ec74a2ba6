"""Surgery over named axes: opened, edited, brought into a layout, and written, in one pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ckptforge.dtypes import DType
from ckptforge.errors import UsageError
from ckptforge.publish.output_name import refuse_name
from ckptforge.quantisation.wishes import wishes_of
from ckptforge.spelling import option
from ckptforge.surgery.names import drop
from ckptforge.tables.state import state_of
from ckptforge.verbs.choices import SOURCE
from ckptforge.verbs.edit_steps import steps_of
from ckptforge.verbs.job import run_job
from ckptforge.verbs.model_card import carded
from ckptforge.verbs.opened import OpenedModel, opened_by
from ckptforge.verbs.options import Edit
from ckptforge.verbs.public import verb
from ckptforge.verbs.result import Result
from ckptforge.verbs.saving import save_of, saving_job


@verb(Edit)
def edit(options: Edit) -> Result:
    """Takes, merges and pads axes of a model, drops, renames and casts tensors, in one pass.
    Returns a `Result`.

    An axis is changed in every tensor that has it, in any layout and split; optimizer state and
    config.json follow.

    Raises `UsageError` (also for what config.json can't say), `InputNotFoundError`, `FormatError`,
    `ModelUnknownError`, `LayoutError`, `MissingTensorsError`, `UnmappedTensorsError`,
    `ConfigError`, `PlanError`, `CastOverflowError` and `OutputError`; nothing is written then.
    """
    steps = steps_of(options)
    wishes = wishes_of(options.quantise)
    if wishes:
        refuse_name(options.out, directory=True)
    if not steps and not wishes:
        raise UsageError(f"nothing is edited: name an edit, such as {option('take', 'e=0,2,5')}.")
    first = _opened(options)
    model = first
    if options.dtype not in (None, "keep"):
        model = model.cast(options.dtype)
    for name, argument, where in steps:
        try:
            model = model.edit(name, argument, options.allow_unloadable)
        except UsageError as error:
            if where:
                raise UsageError(f"{where}: {error}") from error
            raise
    if options.to is not None:
        if model.source is not None:
            model.source.refuse_unmapped(options.allow_unmapped)
        model = model.as_layout(options.to)
    facts = {
        "from": first.layout or "one",
        "source_tensors": len(first),
        "dtype": options.dtype or "keep",
        "surgery": _recorded(first, model, steps),
    }
    read = model.choices if model.source is None else model.source
    made = model.as_model
    if options.allow_unmapped:  # a head that isn't the embedding may be left out, too
        made = replace(made, account=replace(made.account, must_equal={}))
    job = saving_job("edit", made, read, save_of(options), facts, wishes)
    first.close()
    return run_job(carded(job, options), options)


def _opened(options: Edit) -> OpenedModel:
    """What is edited, without what is to be left out."""
    found = opened_by(options.source, options, SOURCE)
    source, gone = found.source, list[str]()
    if source is not None and options.allow_unmapped:
        gone += [*source.unmapped, *source.activations]
    if options.weights_only:
        gone += [name for name in found if state_of(found.as_model, name)]
    if not gone:
        return found
    model = drop(found.as_model, *(name for name in gone if name in found))
    return found.changed(model, model.card)


def _recorded(first: OpenedModel, last: OpenedModel, steps: Any) -> dict[str, Any]:
    """The edits, and what they changed of config.json, for the manifest and for people."""
    return {
        "edits": [[step.name, _plain(step.argument)] for step in steps],
        "config": config_changes(
            first.config, first.config if last.source is None else last.config
        ),
        "kinds": _kinds_changed(first, last),
    }


def _plain(argument: Any) -> Any:
    """An argument as JSON has it: dtypes by name."""
    return (
        [_plain(one) for one in argument]
        if isinstance(argument, tuple)
        else (argument.name if isinstance(argument, DType) else argument)
    )


def _kinds_changed(first: OpenedModel, last: OpenedModel) -> dict[str, list[Any]]:
    """Kind of tensor → [how many and of which shape there were, the same afterwards], of those that
    differ; by the layout of each."""
    before, after = _kinds(first), _kinds(last)
    return {
        kind: [before.get(kind), after.get(kind)]
        for kind in (*before, *(kind for kind in after if kind not in before))
        if before.get(kind) != after.get(kind)
    }


def _kinds(model: OpenedModel) -> dict[str, list[Any]]:
    if model.source is None:
        return {}
    values, binding = model.as_model.values, model.source.binding
    found = {}
    for pattern, names in binding.names.items():
        first = values[next(iter(names.values()))]
        found[pattern.kind] = [len(names), list(first.shape), first.dtype.name]
    return found


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key → [what config.json said, what it says], of those that differ."""
    return {
        key: [before.get(key), after.get(key)]
        for key in (*before, *(key for key in after if key not in before))
        if json.dumps(before.get(key)) != json.dumps(after.get(key))
    }
