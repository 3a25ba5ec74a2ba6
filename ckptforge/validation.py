"""What people write by hand, validated: the base of the pydantic models that declare it, and the
sentences about what doesn't fit them.

Importing pydantic takes longer than reading the index of most checkpoints, so the modules of such
models, and this one, are imported where a file is read, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ckptforge.errors import shown
from ckptforge.wording import counted, listing, nearest

Place = tuple[str | int, ...]
"""The keys, and the numbers in lists, that lead to a value."""

_EXPECTED, _WRONG = "expected", "wrong"  # the types of our own errors
_KINDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}


class Written(BaseModel):
    """Keys and values as people write them: no key that isn't declared, no value of another
    type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, found: Any) -> Any:
        """Names what is near an unknown key, and says what a missing one is for."""
        for key in found if isinstance(found, dict) else ():
            if key not in cls.model_fields and cls.model_config.get("extra") == "forbid":
                why = f"has the key {shown(key)}; there are {', '.join(cls.model_fields)}."
                raise _wrong(f"{why}{nearest(str(key), cls.model_fields)}")
        for name, field in cls.model_fields.items():
            if isinstance(found, dict) and field.is_required() and name not in found:
                raise _wrong(f"has no {name}: {field.description}.")
        return found


def expected(what: str, known: Collection[str] = ()) -> WrapValidator:
    """What messages call a type or a range of values, and words of which the nearest is named. For
    single values: whatever is wrong within is called so."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            near = nearest(value[:_LONG], known) if isinstance(value, str) else ""
            details = {"what": what, "near": near}
            raise PydanticCustomError(_EXPECTED, "{what}", details) from None

    return WrapValidator(check)


def model_of(
    record: type[msgspec.Struct], base: type[Written] = Written, **instead: Any
) -> type[Written]:
    """The model of a record whose fields say what they mean, and are in messages ("expected",
    "known" in `extra`), by `msgspec.Meta`. `instead` are other types for some of its fields."""
    fields: dict[str, Any] = {}
    for one in msgspec.structs.fields(record):
        kind = instead.get(one.name, _model_type(one.type))
        about: dict[str, Any] = {"description": get_args(one.type)[1].description}
        if isinstance(one.default, msgspec.Struct):
            about["default_factory"] = model_of(type(one.default))
        elif not one.required:
            no_default = one.default is msgspec.NODEFAULT
            about["default"] = one.default_factory() if no_default else one.default
        fields[one.name] = (kind, Field(**about))
    made: type[Written] = create_model(record.__name__, __base__=base, **fields)
    made.__doc__ = record.__doc__
    return made


def _model_type(kind: Any) -> Any:
    """A type of a record as pydantic has it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        parts: Any = (_model_type(inner[0]), *(rule for meta in inner[1:] for rule in _rules(meta)))
        return Annotated[parts] if len(parts) > 1 else parts[0]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return model_of(kind)
    if origin in (Union, UnionType):
        return reduce(or_, map(_model_type, inner))
    return kind if origin in (None, Literal) else origin[tuple(map(_model_type, inner))]


def _rules(meta: msgspec.Meta) -> Iterator[Any]:
    bounds = {name: getattr(meta, name) for name in ("pattern", "min_length", "max_length")}
    if given := {name: bound for name, bound in bounds.items() if bound is not None}:
        yield Field(**given)
    said, words = meta.extra or {}, meta.extra_json_schema
    if words is not None:
        yield AfterValidator(lambda word: _known(word, words["enum"]))
        yield Field(json_schema_extra=words)
    if "expected" in said:
        yield expected(said["expected"], said.get("known", ()))


def _known(word: str, words: Collection[str]) -> str:
    if word not in words:
        raise ValueError(word)
    return word


_LONG = 200  # characters of a word that may be a slip of the pen

M = TypeVar("M", bound=Written)


def validate(model: type[M], found: object, spell: Callable[[Place], str]) -> M:
    """What was found in a file, as a model; `spell` says how a place is called there. Raises
    `ValueError` with each place that is wrong: what was expected and what was found."""
    try:
        return model.model_validate(found)
    except ValidationError as error:
        wrong = [_sentence(one, spell) for one in error.errors(include_url=False)]
    if len(wrong) == 1:
        raise ValueError(wrong[0])
    raise ValueError(f"{counted(len(wrong), 'place')} are wrong:\n{listing(wrong)}")


def _sentence(error: ErrorDetails, spell: Callable[[Place], str]) -> str:
    *place, last = error["loc"] or ("",)
    if last == "[key]":
        where = spell(tuple(place[:-1]))
        return f"{where} has the key {shown(error['input'])}, expected text.".lstrip()
    where, context = spell(error["loc"]), error.get("ctx", {})
    if error["type"] == _WRONG:
        return f"{where} {error['msg']}".lstrip()
    if error["type"] == _EXPECTED:
        return f"{where} is {shown(error['input'])}, expected {context['what']}.{context['near']}"
    kind = _KINDS.get(error["type"], "")
    if "min_length" in context:
        kind = f"at least {counted(context['min_length'], 'entry')}"
    elif "max_length" in context:
        kind = f"at most {counted(context['max_length'], 'entry')}"
    return f"{where} is {shown(error['input'])}, expected {kind or error['msg']}."


def _wrong(why: str) -> PydanticCustomError:
    return PydanticCustomError(_WRONG, "{why}", {"why": why})
