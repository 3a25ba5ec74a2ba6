"""What people write by hand, validated: the base of the pydantic models that declare it, and the
sentences about what doesn't fit them.

Importing pydantic takes longer than reading the index of most checkpoints, so the modules of such
models, and this one, are imported where a file is read, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ckptforge.errors import shown
from ckptforge.wording import counted, listing, nearest

Place = tuple[str | int, ...]
"""The keys, and the numbers in lists, that lead to a value."""

_EXPECTED, _WRONG = "expected", "wrong"  # the types of our own errors
_KINDS = {
    "string_type": "text",
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
