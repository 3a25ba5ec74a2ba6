"""Names that a wrapper, or a larger model, has put something before: which names of a layout they
are without it.

Found by comparing the names that are there with those that a layout needs, so that any text may
stand before them. Only what wrappers put into the middle of names is listed: torch.compile, FSDP,
activation checkpointing, DeepSpeed, DDP.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from ckptforge.errors import shown
from ckptforge.tables.skeletons import HASH, skeleton_of
from ckptforge.tables.state import COMPANION_PREFIXES
from ckptforge.tables.table import Layout
from ckptforge.wording import counted

WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_module", "module"),
)
_ADAPTED = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save|original_module)(?:\.|$)")
_KEPT = 8  # candidates that are looked at in full


class Renaming(msgspec.Struct, frozen=True):
    """`names` are stored name → the layout's name, of those that differ; `said` is what was done,
    as a sentence, `flaw` why it can't be done."""

    names: Mapping[str, str]
    said: str
    flaw: str = ""

    def of_state(self, names: Iterable[str]) -> dict[str, str]:
        """The same for optimizer state, whose names hold their weight's after a prefix."""
        found = {}
        for name in names:
            prefix = next((prefix for prefix in COMPANION_PREFIXES if name.startswith(prefix)), "")
            if name.removeprefix(prefix) in self.names:
                found[name] = prefix + self.names[name.removeprefix(prefix)]
        return found


class _Head(msgspec.Struct, frozen=True):
    """`lead` stands before names in place of `put`."""

    lead: str
    put: str


_AS_IT_IS = _Head("", "")  # wrappers in the middle of names alone


def adapted(names: Iterable[str]) -> list[str]:
    """The names that only a model has which peft has wrapped: factors, adapted layers."""
    return [name for name in names if _ADAPTED.search(name)]


def renamings(layouts: Iterable[Layout], names: Sequence[str]) -> Iterator[Renaming]:
    """What may have been done to the names of one of these layouts, the likeliest first."""
    plain = {name: _unwrapped(name) for name in names}
    kinds = Counter(_skeleton(name) for name in plain.values())
    first = {_skeleton(name): name for name in reversed(plain.values())}
    votes: dict[_Head, tuple[int, Layout]] = {}
    for layout in layouts:
        for head, count in _heads(layout, kinds, first).items():
            if count > votes.get(head, (0, layout))[0]:
                votes[head] = (count, layout)
        whole = sum(count for skeleton, count in kinds.items() if skeleton in _skeletons(layout))
        wrapped = any(name != stored for stored, name in plain.items())
        if wrapped and whole > votes.get(_AS_IT_IS, (0, layout))[0]:
            votes[_AS_IT_IS] = (whole, layout)
    seen: list[Mapping[str, str]] = []
    most = max((count for count, _ in votes.values()), default=0)
    likely = [(head, vote) for head, vote in votes.items() if vote[0] * 2 >= most]
    # last those that end in the middle of a word
    likely.sort(key=lambda item: (-item[1][0], not f".{item[0].lead}".endswith(".")))
    for head, (_, layout) in likely[:_KEPT]:
        renaming = _renaming(head, layout, plain)
        if renaming is not None and renaming.names not in seen:
            seen += [] if renaming.flaw else [renaming.names]
            yield renaming


def common_prefix(names: Collection[str]) -> str:
    """What all names begin with, up to the last dot of it that some have; empty for one name."""
    low, high = min(names, default=""), max(names, default="")
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    length = next(differ, min(len(low), len(high)))
    return low[: low.rfind(".", 0, length) + 1] if len(names) > 1 else ""


def _unwrapped(name: str) -> str:
    """A name without the wrappers in the middle of it; those at its beginning stay."""
    words = name.split(".")
    start = next((i for i, word in enumerate(words) if word not in WRAPPERS), 0)
    return ".".join([*words[:start], *(word for word in words[start:] if word not in WRAPPERS)])


def _skeleton(name: str) -> str:
    return skeleton_of(name)[0]


def _skeletons(layout: Layout) -> set[str]:
    return {pattern.skeleton for pattern in (*layout.patterns, *layout.copies)}


def _first_word(layout: Layout) -> str:
    """The word, with its dot, that most names of a layout begin with."""
    templates = (pattern.template for pattern in layout.patterns)
    words = Counter(name.partition(".")[0] for name in templates if "." in name)
    return f"{words.most_common(1)[0][0]}." if words else ""


def _heads(layout: Layout, kinds: Mapping[str, int], first: Mapping[str, str]) -> dict[_Head, int]:
    """What stands before the layout's names, or for their first word, and how often."""
    votes: Counter[_Head] = Counter()
    known, word = _skeletons(layout), _first_word(layout)
    bodies = {skeleton[len(word) :] for skeleton in known if word and skeleton.startswith(word)}
    for skeleton, count in kinds.items():
        for wanted, put in ((known, ""), (bodies, word)):
            for body in wanted:
                if skeleton.endswith(body) and "." in body:
                    lead = _lead(first[skeleton], skeleton[: len(skeleton) - len(body)])
                    if lead not in (None, put) and (not put or not lead or lead.endswith(".")):
                        votes[_Head(lead, put)] += count
    return dict(votes)


def _lead(name: str, skeleton: str) -> str | None:
    """The beginning of a name that has a skeleton of its own."""
    parts = re.split("(#)", skeleton)
    expression = "".join("[0-9]+" if part == "#" else re.escape(part) for part in parts)
    match = re.match(expression, name.replace("#", HASH))
    return None if match is None else name[: match.end()]


def _renaming(head: _Head, layout: Layout, plain: Mapping[str, str]) -> Renaming | None:
    skeletons = _skeletons(layout)

    def known(name: str) -> bool:
        return _skeleton(name) in skeletons or layout.passes(name)

    found: dict[str, str] = {}
    for stored, name in plain.items():
        standard = head.put + name[len(head.lead) :] if name.startswith(head.lead) else name
        standard = standard if known(standard) else name
        if known(standard):
            found[stored] = standard
    led = [stored for stored, standard in found.items() if plain[stored] != standard]
    pairs = found.items()
    parents = {stored.rpartition(".")[0]: name.rpartition(".")[0] for stored, name in pairs}
    others = (name for name in plain if name not in found and name.rpartition(".")[0] in parents)
    beside = {name: _beside(name, parents) for name in others}
    names = {stored: name for stored, name in {**found, **beside}.items() if stored != name}
    if not names:
        return None
    after = {**dict.fromkeys(plain), **found, **beside}
    return Renaming(names, _said(head, led, found, plain), _flaw(head, found, plain, after))


def _beside(name: str, parents: Mapping[str, str]) -> str:
    """The name of what belongs to the same module as a weight: a bias, a scale."""
    parent, _, leaf = name.rpartition(".")
    return f"{parents[parent]}.{leaf}" if parents[parent] else leaf


def _said(
    head: _Head, led: Sequence[str], found: Mapping[str, str], plain: Mapping[str, str]
) -> str:
    sentences = []
    if led and not head.lead:
        sentences.append(
            f"the names lack {shown(head.put)}, which is put before {len(led)} of them"
        )
    elif led and head.put:
        many = counted(len(led), "name", "begin")
        sentences.append(
            f"{many} with {shown(head.lead)}, which is replaced with {shown(head.put)}"
        )
    elif led:
        begin = sum(name.startswith(head.lead) for name in plain)
        names = counted(len(plain), "name", "begin")
        many = f"all {names}" if begin == len(plain) else f"{begin} of {names}"
        sentences.append(f"{many} with {shown(head.lead)}, which is taken off")
    for wrapper in WRAPPERS:
        changed = (name for name in found if name != plain[name])
        if inside := [name for name in changed if f".{wrapper}." in f".{name}"]:
            sentences.append(
                f"{counted(len(inside), 'name', 'hold')} {shown(wrapper + '.')}, which is taken out"
            )
    return "; ".join(sentences)


def _flaw(
    head: _Head, found: Mapping[str, str], plain: Mapping[str, str], after: Mapping[str, str | None]
) -> str:
    """Why the names can't be changed, if they can't; `after` is what they become, or None."""
    holders: dict[str, str] = {}
    for stored, new in after.items():
        name = new or stored
        if (other := holders.setdefault(name, stored)) != stored:
            return (
                f"{shown(other)} and {shown(stored)} would be one tensor, {shown(name)}, without it"
            )
    same = [stored for stored, name in found.items() if plain[stored] == name]
    wrapped = head.lead.partition(".")[0] in WRAPPERS
    without = [stored for stored in same if not head.put or wrapped or stored.startswith(head.put)]
    if without and len(found) > len(same):
        lack = counted(len(without), "name", "don't")
        return f"{lack} begin with it, such as {shown(without[0])}"
    ways: dict[str, str] = {}
    for stored, name in found.items():
        if _skeleton(ways.setdefault(_skeleton(name), stored)) != _skeleton(stored):
            both = f"{shown(ways[_skeleton(name)])} and {shown(stored)}"
            return f"{both}, of the same kind, don't both have it"
    return ""
