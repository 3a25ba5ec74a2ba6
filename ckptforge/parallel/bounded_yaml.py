"""YAML by PyYAML's safe loader, bounded in size and depth, with one value for each key."""

from __future__ import annotations

from typing import Any

import yaml

_MAX_DEPTH = 64
_MAX_NUMBER = 64  # characters


def parse_yaml(text: str, max_nodes: int) -> object:
    """What the text says. Raises `ValueError` with what is wrong, also for more than `max_nodes`
    keys and values, where an alias counts as much as what it stands for."""
    try:
        loader = _Loader(text, max_nodes)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    # Beside its own errors PyYAML lets through whatever comes of values that don't fit their tags,
    # such as `!!int ""`.
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
    ) as error:
        why = " ".join(str(error)[:500].split()).replace('in "<unicode string>",', "at")
        raise ValueError(
            why if isinstance(error, yaml.YAMLError) else f"a value doesn't fit its tag ({why})"
        ) from error


class _Loader(yaml.SafeLoader):
    """Counts while it composes, before any value is made."""

    def __init__(self, text: str, max_nodes: int) -> None:
        super().__init__(text)
        self._left, self._depth = max_nodes, 0
        self._sizes: dict[int, int] = {}  # by node, as they stay alive

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before, mark = self._left, self.peek_event().start_mark  # type: ignore[no-untyped-call]
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} levels deep{mark}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.YAMLError(f"an alias inside of what it stands for{mark}")
        self._left -= self._sizes[id(node)] if alias else 1
        if self._left < 0:
            raise yaml.YAMLError(
                f"holds too many keys and values, aliases counted as what they stand for{mark}"
            )
        if not alias:
            self._sizes[id(node)] = before - self._left
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if len(node.value) > _MAX_NUMBER and node.tag in numbers:
            # base 60 takes time by their square
            raise yaml.YAMLError(f"a number of {len(node.value)} characters{node.start_mark}")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"holds the key {key.value[:200]!r} twice{key.start_mark}")
                seen.add((key.tag, key.value))
        return node
