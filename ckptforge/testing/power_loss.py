"""A file system in memory that may lose its power: what wasn't synced may then be there or not.

After `cut`, what is on the disk is:

- Of a file, each block as it was when the file was synced last or as it was written since, one by
  one; zeros where the file was shorter. Its size may be the old one, the new one or between; so a
  file that was never synced may be empty.
- Names as they were when their directory was synced last, and any of the changes since: changes of
  one name in their order, others each for itself. A rename or an exchange is one change, wholly or
  not at all.
- Modes, owners and times as they were at the last sync, or as they are.

That allows all that ext4 and XFS do, and more: their journals keep the order of changes of names,
which POSIX doesn't promise.
"""

from __future__ import annotations

import random

from ckptforge.storage.store import Kind
from ckptforge.testing.memory import Memory
from ckptforge.testing.nodes import Change, Node, Watcher, nodes_in

BLOCK = 512
_CHANCES = (0.0, 0.1, 0.5, 0.9, 1.0)  # that something unsynced is there


class PowerLoss(BaseException):
    """The power is gone: nothing that a process would still do is done."""


class Durable(Watcher):
    """What of a memory is durable: it watches the memory from now on."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._contents: dict[Node, bytes] = {}
        self._about: dict[Node, tuple[int, tuple[int, int], int]] = {}
        self._names: dict[Node, dict[str, Node]] = {}
        self._pending: list[tuple[Change, ...]] = []
        for node in nodes_in(memory.nodes.top):
            self._record(node)
            self._names[node] = dict(node.entries)
        memory.nodes.watcher = self

    def changing(self, changes: tuple[Change, ...]) -> None:
        """Keeps what may be lost."""
        self._pending.append(changes)

    def synced(self, node: Node) -> None:
        """Keeps what isn't lost any more."""
        self._record(node)
        needed: set[int] = set()
        keys: set[tuple[Node, str]] = set()
        for i in reversed(range(len(self._pending))):
            touched = {(directory, name) for directory, name, _ in self._pending[i]}
            if touched & keys or any(directory is node for directory, _ in touched):
                needed.add(i)
                keys |= touched
        self._names = self._after(needed)
        self._pending = [step for i, step in enumerate(self._pending) if i not in needed]

    def _record(self, node: Node) -> None:
        self._contents[node] = bytes(node.data)
        self._about[node] = (node.mode, node.owner, node.mtime_ns)

    def _after(self, applied: set[int]) -> dict[Node, dict[str, Node]]:
        """The durable names with some of the changes since."""
        names = {node: dict(entries) for node, entries in self._names.items()}
        for i in sorted(applied):
            for directory, name, node in self._pending[i]:
                entries = names.setdefault(directory, {})
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        return names

    def cut(self, chance: random.Random) -> Memory:
        """What is there when the power comes back."""
        kept: set[int] = set()
        lost: set[tuple[Node, str]] = set()
        likely = chance.choice(_CHANCES)
        for i, step in enumerate(self._pending):
            touched = {(directory, name) for directory, name, _ in step}
            if touched & lost or chance.random() >= likely:
                lost |= touched
            else:
                kept.add(i)
        names = self._after(kept)
        found = Memory(self.memory.root, self.memory.nodes.capacity)
        found.device = self.memory.device
        made: dict[Node, Node] = {}

        def remade(node: Node) -> Node:
            if node not in made:
                made[node] = self._remade(node, chance)
                for name, inner in names.get(node, {}).items():
                    made[node].entries[name] = remade(inner)
            return made[node]

        found.nodes.replace(remade(self.memory.nodes.top))
        return found

    def _remade(self, node: Node, chance: random.Random) -> Node:
        again = Node(node.kind, node.number, node.mode)
        about = node.mode, node.owner, node.mtime_ns
        durable = self._about.get(node, about)
        again.mode, again.owner, again.mtime_ns = chance.choice((about, durable))
        if node.kind is Kind.LINK:
            again.data = bytearray(node.data)
        elif node.kind is Kind.FILE:
            again.data = _mixed(self._contents.get(node, b""), bytes(node.data), chance)
        return again


def _mixed(old: bytes, new: bytes, chance: random.Random) -> bytearray:
    """What a file holds of which `old` was synced and `new` was written."""
    if old == new:
        return bytearray(new)
    between = chance.randrange(min(len(old), len(new)), max(len(old), len(new)) + 1)
    size = chance.choice((len(old), len(new), between))
    likely = chance.choice(_CHANCES)
    found = bytearray(size)
    for at in range(0, size, BLOCK):
        source = new if chance.random() < likely else old
        piece = source[at : min(at + BLOCK, size)]
        found[at : at + len(piece)] = piece
    return found
