"""[layout], [copies] and [shard]: how layouts store the logical tensors, invertibly: each name can
be read back, and no two are the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from msgspec.structs import replace

from ckptforge.errors import shown
from ckptforge.tables.axes import Pattern
from ckptforge.tables.passed import PassedRow, overlap, parse_passed
from ckptforge.tables.row_text import parse_pattern
from ckptforge.tables.rows import at, check_known, check_layout, sentence
from ckptforge.tables.selection import is_selection
from ckptforge.tables.sharding import BY_AXES, Sharding, parse_sharding, stored_cuts
from ckptforge.tables.skeletons import is_number
from ckptforge.tables.table import Layout, Logical, Switch
from ckptforge.tables.table_file import TableFile
from ckptforge.wording import nearest

OF_A_LAYOUT = ("family", "extends", "told", "files", "sharding")
"""Keys of a [layout] that are no rows."""

Rows = dict[str, Pattern]
"""Logical tensor → the pattern that holds it."""


def make_layouts(file: TableFile, logical: Logical) -> dict[str, Layout]:
    """Raises `TableError` with the row and the rule that it breaks."""
    for section in ("shard", "copies", "config", "switches"):
        for name in getattr(file, section):
            with at(section, name):
                check_layout(name, file.layout)
    return {name: _layout(name, file, logical) for name in file.layout}


def _layout(name: str, file: TableFile, logical: Logical) -> Layout:
    ancestors = file.lineage(name)
    rows = _rows(ancestors, file, logical)
    passed = _passed_rows(ancestors, file, logical)
    with at("layout", name):
        family = _family(file.layout[ancestor].get("family") for ancestor in ancestors)
        elsewhere = [tensor for tensor in logical.passed if tensor not in logical.towers]
        _check_all_are_stored({*rows, *passed}, [*logical.tensors, *elsewhere])
        _check_optional_alone(rows, file.optional)
        patterns = tuple(dict.fromkeys(rows[tensor] for tensor in logical.tensors))
        _check_names_differ(patterns, file.axes)
    return Layout(
        name=name,
        family=family,
        patterns=patterns,
        sharding=_sharding(ancestors, family, patterns, file, logical),
        copies=_copies(ancestors, patterns, file),
        passed=tuple(passed.values()),
        by_name_only=file.layout[name].get("told") == "by name only",
        in_eight_files=file.layout[name].get("files") == "eight",
        config=file.config.get(name, {}),
        switches={
            key: Switch(config=row.config, note=row.note)
            for key, row in file.switches.get(name, {}).items()
        },
    )


def _family(said: Iterable[str | None]) -> str:
    found = [family for family in said if family is not None]
    if not found:
        raise ValueError(
            "has no family, nor has a layout that it extends; expected huggingface, mindspore, "
            "consolidated or megatron"
        )
    return found[-1]


def _rows(ancestors: Sequence[str], file: TableFile, logical: Logical) -> Rows:
    """The rows of a layout and those that it inherits."""
    rows: Rows = {}
    for ancestor in ancestors:
        own: dict[str, tuple[str, Pattern]] = {}
        for key, text in file.layout[ancestor].items():
            if key in OF_A_LAYOUT or key in logical.passed:
                continue
            with at("layout", ancestor, key):
                pattern = _parse_row(text, key)
                _check_row(pattern, logical, file.axes)
                _check_not_stored_yet(pattern, own)
            own.update(dict.fromkeys(pattern.tensors, (key, pattern)))
        with at("layout", ancestor):
            _check_redefined_whole(rows, own)
        rows.update({tensor: pattern for tensor, (_, pattern) in own.items()})
    return rows


def _passed_rows(
    ancestors: Sequence[str], file: TableFile, logical: Logical
) -> dict[str, PassedRow]:
    """The rows of a layout, and those that it inherits, that pass through unchanged."""
    found: dict[str, PassedRow] = {}
    for ancestor in ancestors:
        for key in filter(logical.passed.__contains__, file.layout[ancestor]):
            with at("layout", ancestor, key):
                row = found[key] = parse_passed(file.layout[ancestor][key], key)
                others = (other for tensor, other in found.items() if tensor != key)
                if (other := next((one for one in others if overlap(one, row)), None)) is not None:
                    raise ValueError(f"can have the names of {other.tensor!r}, too")
    return found


def _parse_row(text: str, key: str) -> Pattern:
    try:
        return parse_pattern(text, key)
    except ValueError as error:
        # A slip of the pen makes a row of what should say something of the layout.
        near = "" if " : " in text else nearest(key, OF_A_LAYOUT)
        raise ValueError(f"{sentence(str(error))}{near}") from error


def _check_row(pattern: Pattern, logical: Logical, written: Mapping[str, str]) -> None:
    """A name that can be read back, and each tensor with all its axes."""
    check_template(pattern, written)
    check_known(pattern.tensors, logical.tensors, "[tensors]")
    for tensor in pattern.tensors:
        axes, found = logical.tensors[tensor], [*pattern.name_axes, *pattern.factors(tensor)]
        if lost := [axis for axis in axes if axis not in found]:
            raise ValueError(
                f"axis {lost[0]!r} of tensor {tensor!r} is lost; the layout can't be inverted"
            )
        if extra := [axis for axis in found if axis not in axes]:
            raise ValueError(
                f"tensor {tensor!r} has no axis {shown(extra[0])}; it has {' '.join(axes)!r}"
            )
        if len(set(found)) < len(found):
            raise ValueError(f"an axis of tensor {tensor!r} stands twice")


def _check_not_stored_yet(pattern: Pattern, own: Mapping[str, tuple[str, Pattern]]) -> None:
    """One row of a layout for each tensor."""
    for tensor in pattern.tensors:
        if tensor in own:
            raise ValueError(
                f"tensor {tensor!r} is stored by row {own[tensor][0]!r}, too: it can't be inverted"
            )


def _check_redefined_whole(inherited: Rows, own: Mapping[str, tuple[str, Pattern]]) -> None:
    """A row of several tensors is inherited whole, or not at all."""
    replaced = {inherited[tensor]: tensor for tensor in own if tensor in inherited}
    for tensor, pattern in inherited.items():
        if pattern in replaced and tensor not in own:
            raise ValueError(
                f"redefines {replaced[pattern]!r} but not {tensor!r}, which the inherited row "
                f"{pattern.template!r} holds with it"
            )


def _check_all_are_stored(rows: Collection[str], tensors: Iterable[str]) -> None:
    for tensor in tensors:
        if tensor not in rows:
            raise ValueError(f"no row stores tensor {tensor!r}; the layout can't be inverted")


def _check_optional_alone(rows: Rows, optional: Mapping[str, str]) -> None:
    """A tensor that may be absent shares a row only with such as are absent with it."""
    for tensor, condition in optional.items():
        for neighbour in rows[tensor].tensors:
            if optional.get(neighbour) != condition:
                raise ValueError(
                    f"concatenates {tensor!r}, which [optional] says may be absent, with "
                    f"{neighbour!r}, which isn't optional alike; store it by itself"
                )


def _check_names_differ(patterns: Sequence[Pattern], axes: Mapping[str, str]) -> None:
    by_skeleton: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        others = by_skeleton.setdefault(pattern.skeleton, [])
        if (other := find_clash(pattern, others, axes)) is not None:
            raise ValueError(
                f"rows {other.template!r} and {pattern.template!r} can produce the same name; the "
                "layout is ambiguous"
            )
        others.append(pattern)


def _copies(
    ancestors: Sequence[str], patterns: Sequence[Pattern], file: TableFile
) -> tuple[Pattern, ...]:
    """The [copies] rows of a layout and of those that it extends."""
    found: dict[str, Pattern] = {}
    for ancestor in ancestors:
        for tensor, template in file.copies.get(ancestor, {}).items():
            with at("copies", ancestor, tensor):
                copy = replace(_original(tensor, patterns), template=template)
                check_template(copy, file.axes)
                _check_axes_of_copy(copy, file)
                if (clash := find_clash(copy, (*patterns, *found.values()), file.axes)) is not None:
                    raise ValueError(
                        f"{template!r} and {clash.template!r} can produce the same name; the "
                        "layout is ambiguous"
                    )
            found[tensor] = copy
    return tuple(found.values())


def _original(tensor: str, patterns: Iterable[Pattern]) -> Pattern:
    for pattern in patterns:
        if pattern.tensors == (tensor,) and not pattern.name_axes:
            return pattern
    raise ValueError("isn't a tensor that the layout stores by itself, as one of its name")


def _check_axes_of_copy(copy: Pattern, file: TableFile) -> None:
    own = file.tensors[copy.tensors[0]].split()
    for axis in copy.name_axes:
        if axis not in file.axes or axis in own:
            raise ValueError(
                f"{axis!r} must be an axis of [axes] that the tensor itself doesn't have"
            )


def _sharding(
    ancestors: Sequence[str],
    family: str,
    patterns: Iterable[Pattern],
    file: TableFile,
    logical: Logical,
) -> dict[str, Sharding] | None:
    """The [shard] rows of a layout, and what it inherits of them."""
    name = ancestors[-1]
    with at("layout", name):
        if "sharding" in file.layout[name] and name in file.shard:
            raise ValueError(f"sharding must be 'not known', without [shard.{name}], or omitted")
    layouts = list(enumerate(map(file.layout.__getitem__, ancestors)))
    unknown = [i + 1 for i, layout in layouts if "sharding" in layout]
    whose = [i for i, layout in layouts if "family" in layout]  # another's networks cut otherwise
    heirs = ancestors[max((*unknown, *whose), default=0) :]
    spread = [ancestor for ancestor in heirs if ancestor in file.shard]
    rows: dict[str, Sharding] = {}
    origin: dict[str, str] = {}
    for ancestor in spread:
        for tensor, row in file.shard[ancestor].items():
            with at("shard", ancestor, tensor):
                check_known([tensor], logical.tensors, "[tensors]")
                rows[tensor] = parse_sharding(row, logical.tensors[tensor])
            origin[tensor] = ancestor
    checked = patterns if spread and family not in BY_AXES else ()
    for pattern in checked:
        tensor = next((tensor for tensor in pattern.tensors if tensor in rows), pattern.tensors[0])
        with at("shard", origin.get(tensor, spread[-1]), tensor, note=f"for layout {name}"):
            stored_cuts(pattern, rows)
    for tensor in logical.in_towers:  # which nothing spreads
        rows.setdefault(tensor, Sharding(optimizer=False))
    return rows if spread else None


def check_template(pattern: Pattern, axes: Mapping[str, str]) -> None:
    """Raises `ValueError` with the rule that the template of a name breaks."""
    template = pattern.template
    if stray := next((word for word in pattern.words if word in "{}"), None):
        raise ValueError(f"{template!r} has a stray {stray!r}")
    if "#" in template or not template.isprintable():
        raise ValueError(
            f"{shown(template)} has a '#' or an unprintable character, which no name may have"
        )
    if len(set(pattern.name_axes)) < len(pattern.name_axes):
        raise ValueError(f"{template!r} has one axis twice")
    for offset in pattern.offsets.values():
        if offset not in axes:
            raise ValueError(
                f"{template!r} adds the length of {offset!r}, which isn't in "
                f"[axes].{nearest(offset, axes)}"
            )
    for axis, offset in pattern.offsets.items():
        if selected := [one for one in (axis, offset) if is_selection(axes.get(one, ""))]:
            raise ValueError(
                f"{template!r} adds a length, but {selected[0]!r} counts only some of another "
                "axis, whose numbers stand in the name as they are"
            )
    if any(a and b for a, b in pairwise(map(is_number, pattern.words))):
        raise ValueError(f"in {template!r} two numbers touch, so that a name can't be read back")


def find_clash(
    pattern: Pattern, others: Iterable[Pattern], axes: Mapping[str, str]
) -> Pattern | None:
    """The first of the others that can produce the same name as a pattern; `axes` as they are
    written in [axes]."""
    return next((other for other in others if _can_clash(pattern, other, axes)), None)


def _can_clash(a: Pattern, b: Pattern, axes: Mapping[str, str]) -> bool:
    """Whether two templates can produce one name: alike in text, and no place where both write
    different numbers. Those that add something to an index at one place are told apart by the
    lengths of the axes, and those of which each has another axis there that counts only some
    indexes, by these."""
    if a.skeleton != b.skeleton:
        return False
    words = list(zip(a.words, b.words, strict=True))
    if any(x != y and "+" in x + y for x, y in words):
        return False
    selected = {f"{{{axis}}}" for axis, text in axes.items() if is_selection(text)}
    if any(x != y and x in selected and y in selected for x, y in words):
        return False
    return all(x == y or x.startswith("{") or y.startswith("{") for x, y in words)
