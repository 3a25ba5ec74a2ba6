"""What a model's config.json says about sizes, and about what it computes with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.errors import ConfigError, shown

_KEY = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"  # with . one of an inner object
_OPERAND = rf"(?:{_KEY}|[0-9]{{1,9}})"
_TERM = re.compile(rf"{_OPERAND}(?:\s*[*/+-]\s*{_OPERAND})*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?")
_CONSTANT = re.compile(rf"{_KEY}|'[^']*'|{_NUMBER.pattern}")
_STEP = re.compile(rf"([*/]?)\s*({_OPERAND})\s*")
_NONE = " or 0"
_SIGN = re.compile(r"([+-])")

Config = Mapping[str, Any]
"""What a config.json says, or the part of it that is of the language model."""


def said(config: Config, key: str) -> Any:
    """The value of a key, with `.` of one in an inner object; None where it isn't there."""
    found: Any = config
    for word in key.split("."):
        found = found.get(word) if isinstance(found, Mapping) else None
    return found


class Expression(msgspec.Struct, frozen=True):
    """`a / b - c or d.e`: keys of config.json and numbers with `*`, `/`, `+` and `-`; `or` gives
    the next choice when a key of the first is absent or null. A last choice of `0` says that there
    may be none: see `default`. A number alone is a length that is the same for every model. `per`
    is the axis between whose indexes the length may differ (`tables/layer_counts.py`)."""

    text: str
    per: str = ""

    def __post_init__(self) -> None:
        for choice in self.choices:
            if not _TERM.fullmatch(choice):
                raise ValueError(
                    f"{self.text!r} isn't keys and numbers joined by '*', '/', '+', '-' and 'or'"
                )
            if len(self.choices) > 1 and all(word.isdigit() for _, word in _STEP.findall(choice)):
                raise ValueError(
                    f"{self.text!r}: {choice!r} names no key of config.json, so it would hold for "
                    "every model"
                )

    @property
    def choices(self) -> list[str]:
        """The choices, in order."""
        return [choice.strip() for choice in self.text.removesuffix(_NONE).split(" or ")]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that it names."""
        words = (word for choice in self.choices for _, word in _STEP.findall(choice))
        return tuple(word for word in words if not word.isdigit())

    @property
    def may_be_none(self) -> bool:
        """Whether a model may have none of these, which its tensors' names tell."""
        return self.text.endswith(_NONE)

    def evaluate(self, config: Config, where: str) -> int | None:
        """The value, or None when no choice has all its keys.

        Raises `ConfigError` for values that aren't counts and for divisions with a remainder.
        """
        for choice in self.choices:
            keys = [word for _, word in _STEP.findall(choice) if not word.isdigit()]
            if any(said(config, key) is None for key in keys):
                continue
            value = sign = 0
            for term in _SIGN.split(f"+{choice}")[1:]:
                if term in "+-":
                    sign = 1 if term == "+" else -1
                else:
                    value += sign * _product(term, config, where)
            if not 0 <= value < 1 << 63:
                raise ConfigError(
                    f"{where}: {choice} is {value}, which is no count; config.json doesn't fit a "
                    "model of this kind."
                )
            return value
        return None


def _product(term: str, config: Config, where: str) -> int:
    value = 1
    for operator, word in _STEP.findall(term):
        operand = int(word) if word.isdigit() else _count(said(config, word), word, where)
        if operator == "/":
            if not operand or value % operand:
                raise ConfigError(
                    f"{where}: {term.strip()} = {value} / {operand} isn't whole; config.json "
                    "doesn't fit a model of this kind."
                )
            value //= operand
        else:
            value *= operand
            if value >= 1 << 63:
                raise ConfigError(
                    f"{where}: {term.strip()} is over 63 bits; config.json doesn't fit a model of "
                    "this kind."
                )
    return value


_IS_FALSE = " is false"


class Condition(msgspec.Struct, frozen=True):
    """`key`, `not key` or `key is false`, of config.json: whether it is true or a positive number,
    is false, 0 or absent, or is false in so many words."""

    text: str

    def __post_init__(self) -> None:
        if not self.key.isidentifier():
            raise ValueError(
                f"{self.text!r} isn't a key of config.json, 'not' and a key, or a key and 'is "
                "false'"
            )

    @property
    def key(self) -> str:
        """The key of config.json."""
        return self.text.removeprefix("not ").removesuffix(_IS_FALSE)

    @property
    def in_words(self) -> bool:
        """Whether the key must be there. It is one of MindSpore's own, which isn't expected in the
        config.json of a checkpoint in a MindSpore layout."""
        return self.text.endswith(_IS_FALSE)

    def holds(self, config: Config) -> bool:
        """Whether a config meets it."""
        if self.in_words:
            return config.get(self.key) is False
        if self.text.startswith("not "):
            return not config.get(self.key)
        value = config.get(self.key)
        return value is True or (isinstance(value, int) and value > 0)

    def met(self) -> tuple[str, bool]:
        """(key, value) under which it holds."""
        return self.key, self.text == self.key


class Constant(msgspec.Struct, frozen=True):
    """`a or b.c or 'd'`: a value of config.json that changes what a model computes, not the shapes
    of its tensors: a key, one in an inner object, or a text in quotes or a number for configs that
    don't say it. The first choice names it."""

    text: str

    def __post_init__(self) -> None:
        for choice in self._choices:
            if not _CONSTANT.fullmatch(choice):
                raise ValueError(
                    f"{self.text!r} isn't keys of config.json, with '.' for inner ones, texts in "
                    "quotes and numbers, joined by 'or'"
                )

    @property
    def name(self) -> str:
        """What it is called: its first choice."""
        return self._choices[0]

    @property
    def _choices(self) -> list[str]:
        return [choice.strip() for choice in self.text.split(" or ")]

    def value(self, config: Config) -> Any:
        """The first choice that isn't absent or null; None when all are."""
        for choice in self._choices:
            if choice.startswith("'"):
                return choice[1:-1]
            if _NUMBER.fullmatch(choice):
                return float(choice)
            if (found := said(config, choice)) is not None:
                return found
        return None


def _count(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ConfigError(f"{where}: {key} is {shown(value)}, expected a positive integer.")
    return value


class LanguagePart(msgspec.Struct, frozen=True):
    """What a config.json says of the language model in it: `config`, and `where` it stands for
    messages. `beside` are the keys of other models that it describes, such as a vision tower."""

    config: Config
    where: str
    beside: tuple[str, ...] = ()

    def of_the_whole(self, described: Config) -> LanguagePart:
        """The same with what `described` says of the models beside it, under its model_type."""
        others = {key: described[key] for key in self.beside if key in described}
        whole = {**self.config, **others, "model_type": described["model_type"]}
        return replace(self, config=whole)


_OWN = (
    *("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
_INNER = re.compile(r"(?:text|llm|language|language_model)_config")
_OF_A_MODEL = ("model_type", "hidden_size", "num_hidden_layers", "depth", "embed_dim", "d_model")


def classes_of(config: Config) -> list[str]:
    """The classes in config.json's architectures."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _is_a_model(value: object) -> bool:
    return isinstance(value, Mapping) and any(name in value for name in _OF_A_MODEL)


def with_language_part(config: Config, before: Config, after: Config) -> dict[str, Any]:
    """A config.json whose language part said `before` and is to say `after`: what differs goes to
    where it stood."""
    keys = [key for key, value in config.items() if _INNER.fullmatch(key) and _is_a_model(value)]
    changed = {k: v for k, v in after.items() if k not in before or before[k] != v}
    if not keys:
        return {**config, **changed}
    inner = {k: v for k, v in config[keys[0]].items() if k in after or k not in before}
    own = {k: v for k, v in changed.items() if k in inner or k not in config}
    outer = {k: v for k, v in changed.items() if k in config}
    return {**config, **outer, keys[0]: {**inner, **own}}


def language_part(config: Config, where: str) -> LanguagePart:
    """The language model of a config.json, which is all of it unless an inner object is for that
    (`text_config` and the like of vision-language models; such as stand in `thinker_config` too).
    What only the outer object says of both is taken along."""
    models = (key for key, value in config.items() if _is_a_model(value))
    others = (key for key in models if key.endswith("_config") and not _INNER.fullmatch(key))
    beside = tuple(key for key in others if key != "quantization_config")
    for key, value in config.items():
        if _INNER.fullmatch(key) and _is_a_model(value):
            outer = {name: config[name] for name in _OWN if config.get(name) is not None}
            tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
            return LanguagePart({**outer, **value, **tied}, f"{where} ({key})", beside)
    for key, value in config.items():
        if isinstance(value, Mapping) and key == "thinker_config":
            inner = language_part(value, f"{where} ({key})")
            if inner.config is not value:
                rest = (name for name in beside if name != key)
                return replace(inner, beside=(*inner.beside, *rest))
    return LanguagePart(config, where, beside)
