"""`tie` and `untie`: whether the head of a model is its embedding."""

from __future__ import annotations

from msgspec.structs import replace

from ckptforge.errors import UsageError
from ckptforge.model import Model
from ckptforge.reading.source import Source
from ckptforge.spelling import command
from ckptforge.surgery.edited import with_config
from ckptforge.surgery.names import drop


def tie(source: Source) -> tuple[Model, list[str]]:
    """(the model without the heads that are its embedding, what can't be said of it). They must
    hold the same, which is compared when it is written. Raises `UsageError` where none is there."""
    model, config, account = source.model, dict(source.config), source.model.account
    wrong = [] if config else ["no config.json is known, which would say that they are tied"]
    for tensor, used, key in _pairs(source):
        names = source.binding.names.get(source.binding.layout.holding(tensor), {})
        for name in names.values():
            pair = model.values[name], model.values[_only(source, used)]
            account = replace(
                account, must_equal={**account.must_equal, (name, _only(source, used)): pair}
            )
            model = drop(model, name)
            config[key] = True
    if model is source.model:
        raise UsageError(f"{source.model.path}: has no head of its own that could be tied.")
    account = replace(model.account, must_equal=account.must_equal)
    return with_config(source, replace(model, account=account), config), wrong


def untie(source: Source) -> tuple[Model, list[str]]:
    """(the model with a copy of its embedding as its head, what can't be said of it). Raises
    `UsageError` where it has one."""
    model, config = source.model, dict(source.config)
    values = dict(model.values)
    for tensor, used, key in _pairs(source):
        pattern = source.binding.layout.holding(tensor)
        if pattern not in source.binding.names:
            values[pattern.template] = model.values[_only(source, used)]
            config[key] = False
    if len(values) == len(model.values):
        raise UsageError(f"{model.path}: has a head of its own already.")
    return with_config(source, replace(model, values=values), config), []


def _pairs(source: Source) -> list[tuple[str, str, str]]:
    """(head, what stands in for it, the key of config.json that says so)."""
    table = source.table
    tied = table.pipeline.tied if table.pipeline is not None else {}
    found = [
        (tensor, used, table.optional[tensor].met()[0])
        for tensor, used in tied.items()
        if tensor in table.optional and table.optional[tensor].met()[1]
    ]
    if not found:
        raise UsageError(
            f"the mapping {table.name} says of no tensor that another may stand in for it "
            f"({command('mapping show')})."
        )
    return found


def _only(source: Source, tensor: str) -> str:
    (name,) = source.binding.names[source.binding.layout.holding(tensor)].values()
    return name
