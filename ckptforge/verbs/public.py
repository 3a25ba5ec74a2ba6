"""What makes a verb public: a function of its options, with them in its docstring."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import Parameter, Signature
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

from ckptforge.spelling import offering
from ckptforge.verbs.options.record import Options, options_of, types_of

P = ParamSpec("P")
R = TypeVar("R", bound=Options)
T = TypeVar("T")
S = TypeVar("S")
C = TypeVar("C", bound=Callable[..., Any])


def verb(record: Callable[P, R]) -> Callable[[Callable[[R], T]], Callable[P, T]]:
    """Makes a function of a record one of the record's options.

    Its docstring gets a section "Arguments:" before the paragraph on what it raises.
    """

    def decorate(function: Callable[[R], T]) -> Callable[P, T]:
        resumable = _reaching(_going_on(function))

        @functools.wraps(resumable)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return resumable(record(*args, **kwargs))

        return _shown(call, function, cast(type[Options], record))

    return decorate


def _reaching(function: Callable[[R], T]) -> Callable[[R], T]:
    """A verb that reaches the buckets of its call where its `endpoint` says, and whose messages
    advise its own options."""

    @functools.wraps(function)
    def call(options: R) -> T:
        with _endpoints(options), offering(vars(options)):
            return function(options)

    return call


def _endpoints(options: Options) -> AbstractContextManager[None]:
    given = vars(options)
    if (endpoint := given.get("endpoint")) is None:
        return nullcontext()
    from ckptforge.storage.endpoints import at_endpoints, endpoints_of

    return at_endpoints(endpoints_of(endpoint, given.values()))


def _going_on(function: Callable[[R], T]) -> Callable[[R], T]:
    """A verb that finds what is left of inputs that an earlier run of it has removed."""

    @functools.wraps(function)
    def call(options: R) -> T:
        given = vars(options)
        if "consume" not in given:
            return function(options)
        from ckptforge.publish.consuming import husks_mounted

        with husks_mounted(given.get("out") or given["out_dir"]):
            return function(options)

    return call


def of_record(function: Callable[..., T]) -> Callable[[Options], T]:
    """A verb as a function of its record, for whoever has one, which needn't be checked again."""
    return function.__wrapped__  # type: ignore[attr-defined, no-any-return]


def method(
    record: Callable[P, R],
) -> Callable[[Callable[[S, R], T]], Callable[Concatenate[S, P], T]]:
    """Makes a method of a record one of the record's options."""

    def decorate(function: Callable[[S, R], T]) -> Callable[Concatenate[S, P], T]:
        @functools.wraps(function)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            options = record(*args, **kwargs)
            with _endpoints(options), offering(vars(options)):
                return function(self, options)

        own = Parameter("self", Parameter.POSITIONAL_ONLY)
        return _shown(call, function, cast(type[Options], record), own)

    return decorate


def _shown(call: C, function: Callable[..., Any], record: type[Options], *first: Parameter) -> C:
    """A call with the signature and the docstring that show the record's options."""
    kinds = types_of(record)
    parameters = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY if one.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
            default=Parameter.empty if one.required else one.default,
            annotation=kinds[name],
        )
        for name, one in options_of(record).items()
    ]
    returned = get_type_hints(function).get("return", Any)
    signature = Signature([*first, *parameters], return_annotation=returned)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = _documented(inspect.cleandoc(function.__doc__ or ""), record)
    return call


def _documented(text: str, record: type[Options]) -> str:
    before, raises, after = re.match(r"(.*?)(^Raises |\Z)(.*)", text, re.S | re.M).groups()  # type: ignore[union-attr]
    entries = [
        textwrap.fill(f"{name}: {one.text}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, one in options_of(record).items()
    ]
    return "\n".join([before.rstrip(), "", "Arguments:", *entries, "", raises + after]).rstrip()
