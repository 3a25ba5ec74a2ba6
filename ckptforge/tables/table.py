"""Mapping tables: loading a TOML file, and every rule a table must keep to be invertible and
unambiguous."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ckptforge.errors import TableError, UsageError, nearest, shown
from ckptforge.spelling import option
from ckptforge.storage.small_files import read_small
from ckptforge.tables.axes import Pattern, parse_pattern, skeleton_of
from ckptforge.tables.constants import ModelConstants, parse_constants
from ckptforge.tables.lora import AdaptedWeight, Lora, adaptable, adapted_weights, columns_of
from ckptforge.tables.model_config import Condition, Constant, Expression
from ckptforge.tables.sharding import Pipeline, Sharding, parse_sharding, stored_cuts
from ckptforge.tables.table_file import MAX_BYTES, TableFile, read_table_file


class Layout(msgspec.Struct, frozen=True):
    """How one layout stores a model: its patterns in checkpoint order, each logical tensor in
    exactly one.

    `sharding` is how the network that holds this layout spreads each logical tensor; None where the
    table doesn't say. `copies` are tensors that hold once more what a logical tensor holds.
    `by_name_only`: names and shapes are those of another layout, which is meant unless a user or a
    manifest names this one.
    """

    name: str
    family: str
    patterns: tuple[Pattern, ...]
    sharding: dict[str, Sharding] | None = None
    copies: tuple[Pattern, ...] = ()
    by_name_only: bool = False

    def holding(self, tensor: str) -> Pattern:
        return next(pattern for pattern in self.patterns if tensor in pattern.tensors)


class Table(msgspec.Struct, frozen=True, dict=True):
    """A model's mapping: logical tensors with their axes, and their patterns in every layout.
    `example` is a tiny config.json, `pipeline` says where tensors lie when the layers are divided
    among stages, `constants` and, by model_type, `model_constants` what else of config.json the
    model computes with, `keep_dtype` the tensors that a cast of the weights leaves in their dtype,
    `aliases` other names that MindFormers' scripts have for the model."""

    name: str
    source: str
    text: bytes
    model_types: tuple[str, ...]
    axes: dict[str, Expression]
    tensors: dict[str, tuple[str, ...]]
    optional: dict[str, Condition]
    layouts: dict[str, Layout]
    ignored: dict[str, tuple[str, ...]]
    example: dict[str, Any]
    pipeline: Pipeline | None = None
    constants: tuple[Constant, ...] = ()
    refused: Mapping[str, Mapping[str, str]] = msgspec.field(default_factory=dict)
    demo: bool = False
    lora: Lora = Lora()
    keep_dtype: frozenset[str] = frozenset()
    model_constants: Mapping[str, ModelConstants] = msgspec.field(default_factory=dict)
    defaults_from: str = ""
    aliases: tuple[str, ...] = ()

    @cached_property
    def counted(self) -> frozenset[str]:
        """The axes that stand in names only, never in a shape: their length may be 0."""
        shaped = {
            axis
            for layout in self.layouts.values()
            for p in layout.patterns
            for tensor in p.tensors
            for axis in p.factors(tensor)
        }
        return frozenset(self.axes) - shaped

    @cached_property
    def kept_patterns(self) -> tuple[Pattern, ...]:
        """How the tensors that keep their dtype are stored, in whatever layout."""
        found = {
            p: None
            for layout in self.layouts.values()
            for p in layout.patterns
            if self.keeps_dtype(p)
        }
        return tuple(found)

    def keeps_dtype(self, pattern: Pattern) -> bool:
        """Whether a cast of the weights leaves what is stored so in its dtype."""
        return pattern.tensors[0] in self.keep_dtype

    def layout(self, name: str) -> Layout:
        """Raises `UsageError`, listing the layouts, for a name that the table doesn't have."""
        try:
            return self.layouts[name]
        except KeyError:
            raise UsageError(
                f"layout {name!r} is unknown for {self.name}; it has "
                f"{', '.join(self.layouts)}.{nearest(name, self.layouts)}"
            ) from None

    def first_layout(self, family: str) -> Layout:
        """The layout of a family that is written where none is named: the first in the table.
        Raises `UsageError` where it has none."""
        found = next((layout for layout in self.layouts.values() if layout.family == family), None)
        if found is None:
            raise UsageError(
                f"the mapping {self.name} has no layout of family {family}; it has "
                f"{', '.join(self.layouts)}."
            )
        return found

    def mindspore_layout(self, name: str | None) -> tuple[Layout, tuple[str, ...]]:
        """The MindSpore layout to write: the named one, or the first; and a sentence where nobody
        named it. Raises `UsageError`."""
        if name is not None:
            return self.layout(name), ()
        chosen = self.first_layout("mindspore")
        if sum(layout.family == "mindspore" for layout in self.layouts.values()) == 1:
            return chosen, (f"layout {chosen.name}, the only MindSpore layout of {self.name}.",)
        return chosen, (
            f"layout {chosen.name}, the first of {self.name}'s MindSpore layouts; "
            f"{option('layout')} picks another.",
        )

    def refusal(self, layout: Layout, names: Iterable[str]) -> tuple[str, str] | None:
        """(tensor, reason) of the first of these names whose presence means that the checkpoint
        can't be converted."""
        globs = self.refused.get(layout.family, {})
        return next(
            (
                (name, reason)
                for name in names
                for glob, reason in globs.items()
                if fnmatchcase(name, glob)
            ),
            None,
        )

    def knows(self, names: Iterable[str], family: str) -> bool:
        """Whether one of the family's layouts has all of these names."""
        known = {name: skeleton_of(name)[0] for name in names}
        layouts = [layout for layout in self.layouts.values() if layout.family == family]
        return any(
            set(known.values()) <= {p.skeleton for p in (*layout.patterns, *layout.copies)}
            for layout in layouts
        )

    def is_ignored(self, layout: Layout, tensor_name: str) -> bool:
        return any(fnmatchcase(tensor_name, glob) for glob in self.ignored.get(layout.family, ()))


def names_that_keep_dtype(tables: Iterable[Table], names: Iterable[str]) -> frozenset[str]:
    """Those of the names of stored tensors that a table has, in any of its layouts, for a tensor
    that keeps its dtype: for commands that need no table, and so don't know which model it is."""
    by_skeleton: dict[str, list[Pattern]] = {}
    for pattern in {pattern for table in tables for pattern in table.kept_patterns}:
        by_skeleton.setdefault(pattern.skeleton, []).append(pattern)
    found = set()
    for name in names if by_skeleton else ():
        skeleton, numbers = skeleton_of(name)
        if any(pattern.match(numbers) is not None for pattern in by_skeleton.get(skeleton, ())):
            found.add(name)
    return frozenset(found)


def load_table(path: Path) -> Table:
    """Loads and checks a user's table. Raises `InputNotFoundError`, and `TableError` with the row
    and the reason."""
    return parse_table(read_small(path, MAX_BYTES, TableError), str(path))


def shipped_tables(model: object = None, model_type: object = None) -> tuple[Table, ...]:
    """The tables that come with ckptforge, by name. Where one of them is named `model`, or is for
    the `model_type` of a config.json, only those that are: reading all takes longer than reading
    most checkpoints' indexes."""
    files = _shipped_files()
    chosen = [file for file in files if file[0] == f"{model}.toml"]
    if not chosen and model is None:
        chosen = [
            file for file in files if isinstance(model_type, str) and f'"{model_type}"' in file[2]
        ]
    return tuple(_shipped_table(name, content) for name, content, _ in chosen or files)


def candidate_tables(
    given: Path | None, model: object = None, model_type: object = None
) -> tuple[Table, ...]:
    """The table in a user's file, else the shipped ones that may be meant."""
    return shipped_tables(model, model_type) if given is None else (load_table(given),)


@cache
def _shipped_table(name: str, content: bytes) -> Table:
    return parse_table(content, f"mappings/{name}")


@cache
def _shipped_files() -> tuple[tuple[str, bytes, str], ...]:
    """(file name, contents, the line with model_type) of each."""
    root = resources.files("ckptforge") / "mappings"
    if not root.is_dir():  # a source tree, where the tables stand beside the package
        root = Path(__file__).parents[2] / "mappings"
    files = sorted(
        (file for file in root.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name
    )
    texts = [(file.name, file.read_bytes()) for file in files]
    return tuple(
        (
            name,
            text,
            next(
                (line for line in text.decode().split("\n") if line.startswith("model_type ")), ""
            ),
        )
        for name, text in texts
    )


def parse_table(content: bytes, source: str) -> Table:
    """Checks a table's text. Raises `TableError` with the row and the reason."""
    raw = read_table_file(content, source)
    tensors = {tensor: tuple(axes.split()) for tensor, axes in raw.tensors.items()}
    expressions = dict(_expressions(raw, source))
    for tensor, axes in tensors.items():
        row = f"{source}: [tensors] {tensor}"
        if not tensor.isidentifier():
            raise TableError(f"{row}: the name must be an identifier.")
        if unknown := [axis for axis in axes if axis not in expressions]:
            raise TableError(f"{row}: axis {unknown[0]!r} isn't in [axes].")
        if len(set(axes)) < len(axes):
            raise TableError(f"{row}: an axis stands twice in {' '.join(axes)!r}.")
    optional: dict[str, Condition] = {}
    for tensor, text in raw.optional.items():
        if tensor not in tensors:
            raise TableError(f"{source}: [optional] {tensor}: isn't a tensor of [tensors].")
        try:
            optional[tensor] = Condition(text)
        except ValueError as error:
            raise TableError(f"{source}: [optional] {tensor}: {error}.") from error
    layouts = {name: _layout(name, raw, tensors, source) for name in raw.layout}
    pipeline = _pipeline(raw, tensors, layouts, source)
    for section, named in (("shard", raw.shard), ("copies", raw.copies)):
        if unknown_layouts := [name for name in named if name not in layouts]:
            raise TableError(
                f"{source}: [{section}.{unknown_layouts[0]}]: there is no layout of that name."
            )
    ignored: dict[str, tuple[str, ...]] = {
        family: tuple(globs) for family, globs in raw.ignored.items()
    }
    try:
        constants = tuple(Constant(text) for text in raw.constants)
    except ValueError as error:
        raise TableError(f"{source}: constants: {error}.") from error
    return Table(
        raw.name,
        source,
        content,
        tuple(raw.model_type),
        expressions,
        tensors,
        optional,
        layouts,
        ignored,
        raw.example,
        pipeline,
        constants,
        {family: dict(reasons) for family, reasons in raw.refused.items()},
        raw.demo,
        _lora(raw, layouts, source),
        _keep_dtype(raw, layouts, source),
        _model_constants(raw, source),
        raw.defaults_from,
        aliases=tuple(raw.aliases),
    )


def _keep_dtype(raw: TableFile, layouts: dict[str, Layout], source: str) -> frozenset[str]:
    kept = frozenset(raw.keep_dtype)
    if unknown := sorted(kept - set(raw.tensors)):
        raise TableError(f"{source}: keep_dtype: {unknown[0]!r} isn't in [tensors].")
    for layout in layouts.values():
        for pattern in layout.patterns:
            if 0 < len(kept.intersection(pattern.tensors)) < len(pattern.tensors):
                raise TableError(
                    f"{source}: keep_dtype: layout {layout.name} stores "
                    f"{', '.join(pattern.tensors)} in "
                    f"one, {pattern.template!r}; name all of them or none."
                )
    return kept


def _model_constants(raw: TableFile, source: str) -> dict[str, ModelConstants]:
    if raw.window and raw.pipeline is None:
        raise TableError(
            f"{source}: [window] needs [pipeline], which says what axis the layers are."
        )
    return parse_constants(raw.defaults, raw.rope, raw.window, raw.model_type, source)


def _expressions(raw: TableFile, source: str) -> Iterator[tuple[str, Expression]]:
    for axis, text in raw.axes.items():
        if not axis.isidentifier():
            raise TableError(f"{source}: [axes] {axis}: the name must be an identifier.")
        try:
            yield axis, Expression(text)
        except ValueError as error:
            raise TableError(f"{source}: [axes] {axis}: {error}.") from error


def _lineage(name: str, raw: TableFile, source: str) -> list[str]:
    """The layouts that `name` is made of, from the one that extends none to itself."""
    chain = [name]
    while parent := raw.layout[chain[-1]].get("extends"):
        if parent not in raw.layout:
            raise TableError(
                f"{source}: [layout.{chain[-1]}] extends {parent!r}, which isn't a "
                "layout of this table."
            )
        if parent in chain:
            raise TableError(f"{source}: [layout.{name}] extends itself by way of {parent!r}.")
        chain.append(parent)
    return chain[::-1]


def _layout(name: str, raw: TableFile, tensors: dict[str, tuple[str, ...]], source: str) -> Layout:
    family = None
    rows: dict[str, Pattern] = {}  # logical tensor → the pattern that holds it
    for ancestor in _lineage(name, raw, source):
        family = raw.layout[ancestor].get("family", family)
        own: dict[str, tuple[str, Pattern]] = {}
        for key, text in raw.layout[ancestor].items():
            if key in ("family", "extends", "told", "sharding"):
                continue
            row = f"{source}: [layout.{ancestor}] {key}"
            pattern = _row(row, key, text, tensors, raw.axes)
            for tensor in pattern.tensors:
                if tensor in own:
                    raise TableError(
                        f"{row}: tensor {tensor!r} is stored by row "
                        f"{own[tensor][0]!r} already; the layout can't be inverted."
                    )
                own[tensor] = (key, pattern)
        replaced = {id(rows[tensor]): tensor for tensor in own if tensor in rows}
        for tensor, pattern in rows.items():
            if id(pattern) in replaced and tensor not in own:
                raise TableError(
                    f"{source}: [layout.{ancestor}] redefines {replaced[id(pattern)]!r} but not "
                    f"{tensor!r}, which the inherited row "
                    f"{pattern.template!r} holds with it."
                )
        rows.update({tensor: pattern for tensor, (_, pattern) in own.items()})
    if family not in ("huggingface", "mindspore"):
        raise TableError(
            f"{source}: [layout.{name}]: family must be huggingface or mindspore, found {family!r}."
        )
    if lost := [tensor for tensor in tensors if tensor not in rows]:
        raise TableError(
            f"{source}: [layout.{name}]: no row stores tensor {lost[0]!r}; the layout "
            "can't be inverted."
        )
    for tensor, condition in raw.optional.items():
        alone = [
            neighbour
            for neighbour in rows[tensor].tensors
            if raw.optional.get(neighbour) != condition
        ]
        if alone:
            raise TableError(
                f"{source}: [layout.{name}] concatenates {tensor!r}, which [optional] says may be "
                f"absent, with {alone[0]!r}, which isn't "
                "optional alike; store it by itself."
            )
    ordered: list[Pattern] = []
    for tensor in tensors:
        if rows[tensor] not in ordered:
            ordered.append(rows[tensor])
    for i, pattern in enumerate(ordered):
        for other in ordered[:i]:
            if _can_clash(pattern, other):
                raise TableError(
                    f"{source}: [layout.{name}]: rows {other.template!r} and {pattern.template!r} "
                    "can produce the same name; "
                    "the layout is ambiguous."
                )
    told = raw.layout[name].get("told", "by names and shapes")
    if told not in ("by names and shapes", "by name only"):
        raise TableError(
            f"{source}: [layout.{name}]: told must be 'by name only', or omitted, found {told!r}."
        )
    sharding, copies = (
        _sharding(name, raw, tensors, tuple(ordered), source),
        _copies(name, raw, ordered, source),
    )
    return Layout(name, family, tuple(ordered), sharding, copies, told == "by name only")


def _copies(name: str, raw: TableFile, patterns: list[Pattern], source: str) -> tuple[Pattern, ...]:
    """The [copies] rows of a layout and of those that it extends."""
    found: dict[str, Pattern] = {}
    for ancestor in _lineage(name, raw, source):
        for tensor, template in raw.copies.get(ancestor, {}).items():
            row = f"{source}: [copies.{ancestor}] {tensor}"
            original = next((pattern for pattern in patterns if pattern.tensors == (tensor,)), None)
            if original is None or original.name_axes:
                raise TableError(
                    f"{row}: isn't a tensor that the layout stores by itself, as one of its name."
                )
            copy = replace(original, template=template)
            _check_template(row, copy, raw.axes)
            if lost := [
                axis
                for axis in copy.name_axes
                if axis not in raw.axes or axis in raw.tensors[tensor].split()
            ]:
                raise TableError(
                    f"{row}: {lost[0]!r} must be an axis of [axes] that the tensor "
                    "itself doesn't have."
                )
            if clash := next(
                (other for other in (*patterns, *found.values()) if _can_clash(copy, other)), None
            ):
                raise TableError(
                    f"{row}: {template!r} and {clash.template!r} can produce the same "
                    "name; the layout is ambiguous."
                )
            found[tensor] = copy
    return tuple(found.values())


def _sharding(
    name: str,
    raw: TableFile,
    tensors: dict[str, tuple[str, ...]],
    patterns: tuple[Pattern, ...],
    source: str,
) -> dict[str, Sharding] | None:
    """The [shard] rows of a layout and of those that it extends, up to one whose network is said to
    spread it in another way."""
    said = raw.layout[name].get("sharding")
    if said not in (None, "not known") or (said and name in raw.shard):
        raise TableError(
            f"{source}: [layout.{name}]: sharding must be 'not known', without "
            f"[shard.{name}], or omitted, found {said!r}."
        )
    chain = _lineage(name, raw, source)
    unknown = [i for i, ancestor in enumerate(chain) if "sharding" in raw.layout[ancestor]]
    lineage = [
        ancestor for ancestor in chain[unknown[-1] + 1 if unknown else 0 :] if ancestor in raw.shard
    ]
    rows: dict[str, Sharding] = {}
    for ancestor in lineage:
        for tensor, row in raw.shard[ancestor].items():
            if tensor not in tensors:
                raise TableError(f"{source}: [shard.{ancestor}] {tensor}: isn't in [tensors].")
            try:
                rows[tensor] = parse_sharding(row, tensors[tensor])
            except ValueError as error:
                raise TableError(f"{source}: [shard.{ancestor}] {tensor}: {error}.") from error
    for pattern in patterns if lineage else ():
        try:
            stored_cuts(pattern, rows)
        except ValueError as error:
            raise TableError(
                f"{source}: [shard.{lineage[-1]}] for layout {name}: {error}."
            ) from error
    return rows if lineage else None


def _pipeline(
    raw: TableFile, tensors: dict[str, tuple[str, ...]], layouts: dict[str, Layout], source: str
) -> Pipeline | None:
    if raw.pipeline is None:
        return None
    layers = [raw.pipeline.layers] if isinstance(raw.pipeline.layers, str) else raw.pipeline.layers
    numbers = tuple(
        (axis.strip(), offset.strip() or None)
        for axis, _, offset in (text.partition("+") for text in layers)
    )
    for axis in {axis for pair in numbers for axis in pair if axis is not None}:
        if axis not in raw.axes:
            raise TableError(f"{source}: [pipeline]: {axis!r} isn't in [axes].")
    if not numbers or numbers[0][1] is not None:
        raise TableError(
            f"{source}: [pipeline]: layers must begin with the axis that counts all layers."
        )
    found = Pipeline(
        numbers, tuple(raw.pipeline.first), tuple(raw.pipeline.last), raw.pipeline.tied
    )
    for tensor in (*found.first, *found.last, *found.tied, *found.tied.values()):
        if tensor not in tensors:
            raise TableError(f"{source}: [pipeline]: {tensor!r} isn't in [tensors].")
    for tensor, axes in tensors.items():
        places = (
            sum(axis in axes for axis, _ in numbers)
            + found.first.count(tensor)
            + found.last.count(tensor)
        )
        if places != 1:
            raise TableError(
                f"{source}: [pipeline]: {tensor!r} must have the axis {numbers[0][0]!r} of the "
                "layers, or stand once in first or last."
            )
    for layout in layouts.values():
        for pattern in layout.patterns if layout.sharding is not None else ():
            if {axis for axis, _ in numbers} & set(pattern.factors(pattern.tensors[0])):
                raise TableError(
                    f"{source}: [pipeline]: layout {layout.name} stacks the layers in "
                    f"{pattern.template!r}, which stages can't divide."
                )
    return found


def _lora(raw: TableFile, layouts: dict[str, Layout], source: str) -> Lora:
    if raw.lora is None:
        return Lora()
    if both := sorted(set(raw.lora.modules) & set(raw.lora.embeddings)):
        raise TableError(f"{source}: [lora]: {both[0]!r} stands in modules and in embeddings.")
    weights: dict[str, tuple[AdaptedWeight, ...]] = {}
    matrices: dict[str, frozenset[Pattern]] = dict.fromkeys(layouts, frozenset())
    for section, tensors, templates in (
        ("names", raw.lora.modules, raw.lora.names),
        ("embedding_names", raw.lora.embeddings, raw.lora.embedding_names),
    ):
        key = "modules" if section == "names" else "embeddings"
        if unknown := [tensor for tensor in tensors if tensor not in raw.tensors]:
            raise TableError(f"{source}: [lora] {key}: {unknown[0]!r} isn't in [tensors].")
        _check_factor_names(templates, layouts, f"{source}: [lora.{section}]")
        names = {
            name: next(
                (templates[a] for a in _lineage(name, raw, source)[::-1] if a in templates), None
            )
            for name in layouts
        }
        first = next(
            (
                layout
                for layout in layouts.values()
                if layout.family == "huggingface" and names[layout.name]
            ),
            None,
        )
        if first is None and (tensors or section == "names"):
            raise TableError(
                f"{source}: [lora.{section}] names no layout of Hugging Face, whose matrices say "
                "what is a row and what a column."
            )
        if first is None:
            continue
        try:
            columns = columns_of(tensors, first.patterns)
        except ValueError as error:
            raise TableError(f"{source}: [lora] {key}: {error}.") from error
        for name, pair in names.items():
            found = adaptable(tensors, layouts[name].patterns, columns)
            matrices[name] |= found
            ordered = (pattern for pattern in layouts[name].patterns if pattern in found)
            if pair is not None:
                weights[name] = (
                    *weights.get(name, ()),
                    *adapted_weights(ordered, pair, section != "names"),
                )
    return Lora(weights, matrices, frozenset(raw.lora.embeddings))


def _check_factor_names(
    names: Mapping[str, list[str]], layouts: Collection[str], section: str
) -> None:
    for name, templates in names.items():
        row = f"{section} {name}"
        if name not in layouts:
            raise TableError(f"{row}: there is no layout of that name.")
        if any(
            template.count("{}") != 1 or set(template.replace("{}", "")) & set("{}#")
            for template in templates
        ):
            raise TableError(
                f"{row}: each name must hold {{}} once, where the weight's name goes, "
                "and no other brace."
            )
        if any("lora_" not in template.lower() for template in templates):
            raise TableError(
                f"{row}: a factor's name must hold lora_, which distinguishes it from a weight."
            )
        if templates[0] == templates[1]:
            raise TableError(f"{row}: both factors have one name.")


def _row(
    row: str, key: str, text: str, tensors: dict[str, tuple[str, ...]], axes: Collection[str]
) -> Pattern:
    try:
        pattern = parse_pattern(text, key)
    except ValueError as error:
        raise TableError(f"{row}: {error}.") from error
    _check_template(row, pattern, axes)
    placeholders = pattern.name_axes
    for tensor in pattern.tensors:
        if tensor not in tensors:
            raise TableError(f"{row}: {tensor!r} isn't in [tensors].")
        found = [*placeholders, *pattern.factors(tensor)]
        if lost := [axis for axis in tensors[tensor] if axis not in found]:
            raise TableError(
                f"{row}: axis {lost[0]!r} of tensor {tensor!r} is lost; the layout "
                "can't be inverted."
            )
        if extra := [axis for axis in found if axis not in tensors[tensor]]:
            raise TableError(
                f"{row}: tensor {tensor!r} has no axis {extra[0]!r}; it has "
                f"{' '.join(tensors[tensor])!r}."
            )
        if len(set(found)) < len(found):
            raise TableError(f"{row}: an axis of tensor {tensor!r} stands twice.")
    return pattern


def _check_template(row: str, pattern: Pattern, axes: Collection[str]) -> None:
    words = pattern.words
    if stray := [word for word in words if word in ("{", "}")]:
        raise TableError(f"{row}: {pattern.template!r} has a stray {stray[0]!r}.")
    if "#" in pattern.template or not pattern.template.isprintable():
        raise TableError(
            f"{row}: {shown(pattern.template)} has a '#' or an unprintable character, "
            "which no name may have."
        )
    placeholders = pattern.name_axes
    if len(set(placeholders)) < len(placeholders):
        raise TableError(f"{row}: {pattern.template!r} has one axis twice.")
    numeric = [word.isdigit() or word.startswith("{") for word in words]
    if offset := next((offset for offset in pattern.offsets.values() if offset not in axes), None):
        raise TableError(
            f"{row}: {pattern.template!r} adds the length of {offset!r}, which isn't in [axes]."
        )
    if any(a and b for a, b in pairwise(numeric)):
        raise TableError(
            f"{row}: in {pattern.template!r} two numbers touch, so that a name can't be read back."
        )


def _can_clash(a: Pattern, b: Pattern) -> bool:
    """Whether two templates can produce one name: alike in text, and no place where both write
    different numbers. Those that add something to an index at one place are told apart by the
    lengths of the axes."""
    if a.skeleton != b.skeleton or any(
        x != y and "+" in x + y for x, y in zip(a.words, b.words, strict=True)
    ):
        return False
    return all(
        x == y or x.startswith("{") or y.startswith("{")
        for x, y in zip(a.words, b.words, strict=True)
    )
