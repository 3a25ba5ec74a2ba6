"""An opened model: a mapping from names to tensors, and what makes another of it."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ckptforge.errors import CkptforgeError, LayoutError, UsageError
from ckptforge.examine.window import Window
from ckptforge.model import Model
from ckptforge.quantisation.undo import refuse_codes
from ckptforge.reading.known import Choices
from ckptforge.reading.source import Source, bind_source
from ckptforge.reading.state import followed
from ckptforge.spelling import flag
from ckptforge.surgery import names as named
from ckptforge.surgery.cast import cast
from ckptforge.surgery.edits import edit_named
from ckptforge.tables.convert import convert, uncast_note
from ckptforge.tables.shipped import shipped_tables
from ckptforge.tables.table import names_that_keep_dtype
from ckptforge.verbs.choices import Names, choices_of
from ckptforge.verbs.edits import Edits
from ckptforge.verbs.inputs import open_input, with_adapter
from ckptforge.verbs.job import run_job
from ckptforge.verbs.notebook import table_of
from ckptforge.verbs.options.dtypes import parse_target
from ckptforge.verbs.options.opening import Open, Save
from ckptforge.verbs.options.record import Options
from ckptforge.verbs.public import method, verb
from ckptforge.verbs.result import Result
from ckptforge.verbs.saving import saving_job
from ckptforge.verbs.tensor import Tensor
from ckptforge.wording import brief, counted, nearest

_AHEAD = 64 * 1024 * 1024  # bytes that are brought before they are read, by items()


class OpenedModel(Edits, Mapping[str, Tensor]):
    """The tensors of a checkpoint by their names. Nothing is read before a tensor is indexed, and
    then only what the index needs, from any number of threads.

    `as_layout`, `cast`, `take`, `pad`, `merge`, `expand`, `set_dtype`, `tie`, `untie`, `average`,
    `rename`, `drop` and `keep` make another model, at no cost; `save` writes one in a single pass.
    A `with` statement closes the files at its end.
    """

    def __init__(
        self, model: Model, choices: Choices, window: Window, source: Source | None, reason: str
    ) -> None:
        self._model, self._choices, self._window = model, choices, window
        self._source, self._reason = source, reason

    def __getitem__(self, name: str) -> Tensor:
        """A tensor. Raises `KeyError`, with the nearest name."""
        if name not in self._model.values:
            near = nearest(str(name), list(self._model.values))
            raise KeyError(f"no tensor has the name {name!r}.{near}")
        return Tensor(name, self._model.values[name], self._window)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.values)

    def __len__(self) -> int:
        return len(self._model.values)

    def items(self) -> ItemsView[str, Tensor]:
        """Names and tensors in the order of the files; the next are read ahead."""
        return _Items(self)

    def __enter__(self) -> OpenedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files, also those of models that were made of this one."""
        self._window.close()

    @property
    def model(self) -> str | None:
        """The name of the mapping table that knows it; None where none does."""
        return None if self._source is None else self._source.table.name

    @property
    def layout(self) -> str | None:
        """The layout that its names and shapes are; None where no table knows it."""
        return None if self._source is None else self._source.binding.layout.name

    @property
    def as_model(self) -> Model:
        """Its tensors as values, for functions from model to model (docs/extending.md)."""
        return self._model

    @property
    def source(self) -> Source | None:
        """How a table reads it; None where none knows it."""
        return self._source

    @property
    def choices(self) -> Choices:
        """What was said of it when it was opened."""
        return self._choices

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json says of the language model; empty where none is known."""
        return {} if self._source is None else self._source.config

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should hear of."""
        return self._model.notes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._model.nbytes

    def as_layout(self, layout: str) -> OpenedModel:
        """The model in another layout of its table, such as "hub" or "gmm". Optimizer state follows
        from one MindSpore layout to another. Raises `LayoutError` where no table knows the model,
        and `PlanError` for what can't become one tensor."""
        source = self._bound()
        target = source.table.layout(layout)
        account = source.model.account.leaving("not known to the mapping", tuple(source.unmapped))
        values = convert(source.binding, target, source.model.values, None).values
        if {source.binding.layout.family, target.family} == {"mindspore"}:
            state, account = followed(source, target, account)
            values = {**values, **state}
        else:
            account = account.leaving("optimizer state and counters", source.state)
        changed = replace(
            source.model, values=values, account=account, family=target.family, layout=target.name
        )
        return self._changed(changed, replace(self._choices, layout=layout))

    def cast(self, dtype: str) -> OpenedModel:
        """The model with its floating-point weights cast to "fp16", "bf16", "fp32" or "fp64"; those
        that its table keeps stay. Rounding is counted when it is saved. Raises `UsageError` for
        another word, and where a cast has rounded them already."""
        wanted = parse_target(dtype)
        self.refuse_codes("a cast")
        tables = shipped_tables() if self._source is None else (self._source.table,)
        kept = names_that_keep_dtype(tables, self._model.values)
        values, uncast = cast(self._model.values, wanted, kept)
        changed = replace(self._model, values=values).noting(*uncast_note(uncast, wanted))
        return self._changed(changed)

    def rename(self, names: Mapping[str, str] | Callable[[str], str]) -> OpenedModel:
        """The model with other names: by a mapping from old names to new (one `*` in both stands
        for anything), or by a function of each name. Raises `UsageError` for a name that there
        isn't, or that two would have."""
        return self._changed(named.rename(self._model, names))

    def drop(self, *what: str) -> OpenedModel:
        """The model without the tensors of these kinds, or names (globs). Raises `UsageError` for
        what names none."""
        return self._changed(named.drop(self._model, *what, source=self._source))

    def keep(self, *what: str) -> OpenedModel:
        """The model with only the tensors of these kinds, or names (globs). Raises `UsageError` for
        what names none."""
        return self._changed(named.keep(self._model, *what, source=self._source))

    def apply(self, function: Callable[[Model], Model]) -> OpenedModel:
        """The model that a function of yours makes of it (docs/extending.md)."""
        return self._changed(function(self._model))

    @method(Save)
    def save(self, options: Save) -> Result:
        """Writes the model in one pass, whole or not at all. Returns a `Result`.

        A directory is one of Hugging Face for a model in such a layout, else one of MindSpore.

        Raises `UsageError`, `ConfigError`, `PlanError`, `CastOverflowError`, `OutputError` and the
        errors of reading; nothing is written then.
        """
        read = self._choices if self._source is None else self._source
        with self._window.files():
            return run_job(saving_job("save", self._model, read, options), options)

    def _bound(self) -> Source:
        if self._source is None:
            raise LayoutError(f"{self._model.path}: no mapping knows these tensors: {self._reason}")
        return self._source

    def refuse_codes(self, doing: str) -> None:
        """Raises `QuantisedError` for codes that nothing has undone, as no table reads them."""
        refuse_codes(self._model, doing, self._reason)

    def changed(self, model: Model, card: Mapping[str, bytes] | None) -> OpenedModel:
        """Another model that is of the same table and in the same layout, with its small files."""
        return self._changed(replace(model, card=card), self._as_now())

    def _as_now(self) -> Choices:
        """What would read the model as it is read."""
        if self._source is None:
            return self._choices
        table, layout = self._source.table.name, self._source.binding.layout.name
        return replace(self._choices, model=table, layout=layout)

    def edit(self, name: str, argument: Any, allow_unloadable: bool = False) -> OpenedModel:
        """The model after an edit by its name in recipes (docs/surgery.md). Raises `UsageError`
        where config.json, or the model's table, can't say what it is then, unless that is
        allowed."""
        edit = edit_named(name)
        if name in ("set_dtype", "pad", "expand"):
            self.refuse_codes(flag(name))
        if name == "expand" and self._source is not None:
            hub = self._source.table.first_layout("huggingface").name
            if self.layout != hub:
                return self.as_layout(hub).edit(name, argument, allow_unloadable)
        model, unsaid = edit.apply(self._model, self._source, argument)
        if unsaid and not allow_unloadable:
            raise UsageError(
                f"{self._model.path}: config.json can't say what {name} makes of the model: "
                f"{'; '.join(unsaid)}. Give {flag('allow_unloadable')} to write it all the same."
            )
        model = model.noting(*(f"config.json can't say it: {why}." for why in unsaid))
        choices = self._as_now()
        if name == "expand":
            choices = replace(self._choices, model=argument["to"], layout=None)
        if self._source is None:
            return self._changed(model, choices)
        try:
            made = _opened(model, choices, self._window, asked=True)
        except CkptforgeError as error:
            if not allow_unloadable:
                raise UsageError(
                    f"after {name} no mapping reads the model any more: {error}\nGive "
                    f"{flag('allow_unloadable')} to write it all the same."
                ) from error
            why = str(error)
            first = why.splitlines()[0].rstrip(":.")
            model = model.noting(f"no mapping reads the model after {name}: {first}.")
            made = OpenedModel(model, choices, self._window, None, why)
        return made

    def average(self, *others: OpenedModel, weights: Sequence[float] | None = None) -> OpenedModel:
        """The weighted sum of this model and others, by default their mean, in this one's layout
        and dtypes (docs/surgery.md). Raises `LayoutError`, `MissingTensorsError` and
        `UsageError`."""
        from ckptforge.verbs.average import sum_of  # which needs this

        for other in others:
            self._window.know(other._window)
        with self._window.files():
            return sum_of([self, *others], weights)

    def _changed(self, model: Model, choices: Choices | None = None) -> OpenedModel:
        return _opened(model, choices or self._choices, self._window, asked=False)

    def __repr__(self) -> str:
        what = " ".join(word for word in (self.model, self.layout) if word) or "not recognised"
        extent = f"{counted(len(self), 'tensor')}, {self.nbytes:,} bytes"
        return f"<OpenedModel of {brief(self._model.path)}: {what}, {extent}>"

    def _repr_html_(self) -> str:
        return table_of(repr(self), self._model.values)


class _Items(ItemsView[str, Tensor]):
    def __init__(self, opened: OpenedModel) -> None:
        super().__init__(opened)
        self._opened = opened

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        model, window = self._opened._model, self._opened._window
        numbers = {file.path: i for i, file in enumerate(model.files)}
        order = sorted(
            model.values.items(),
            key=lambda item: (numbers.get(item[1].origin.path, -1), item[1].origin.file_offset(0)),
        )
        ahead = iter(order)
        brought = 0
        for name, value in order:
            while brought < _AHEAD and (coming := next(ahead, None)) is not None:
                window.begin_read(coming[1])
                brought += coming[1].nbytes
            yield name, self._opened[name]
            brought -= value.nbytes


@verb(Open)
def open(options: Open) -> OpenedModel:
    """Opens a checkpoint of any kind, in any split, as a model: a mapping from names to tensors.
    Returns an `OpenedModel`.

    Reads indexes only. Quantised weights are what they stand for.

    Raises `InputNotFoundError`, `FormatError` and `UsageError`, and what reading it as `model`,
    `layout` or `mapping` raises where one of them is given.
    """
    choices = choices_of(options)
    if options.merge_lora is None:
        return _open(options.path, choices, options.adapter)
    opened = _open(options.path, choices, options.adapter, asked=True)
    source = with_adapter(opened._bound(), options.merge_lora, options.lora_alpha, options.step)
    return OpenedModel(source.model, choices, opened._window, source, "")


def opened_by(path: Path, options: Options, names: Names, **more: Any) -> OpenedModel:
    """A checkpoint opened as the options of another verb say; see `choices_of`."""
    return _open(path, choices_of(options, names, **more))


def _open(path: Path, choices: Choices, adapter: bool = False, asked: bool = False) -> OpenedModel:
    asked = asked or any((choices.model, choices.layout, choices.mapping, choices.trim_vocab))
    return _opened(open_input(path, choices, adapter), choices, Window(), asked)


def _opened(model: Model, choices: Choices, window: Window, asked: bool) -> OpenedModel:
    """A model read as a layout, if a table knows it."""
    try:
        source = bind_source(model, choices)
    except CkptforgeError as error:
        if asked:
            raise
        return OpenedModel(model, choices, window, None, str(error))
    return OpenedModel(source.model, replace(choices, trim_vocab=False), window, source, "")
