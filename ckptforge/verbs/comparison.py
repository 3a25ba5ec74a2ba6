"""What `compare` finds: which tensors differ, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptforge.examine.block_errors import BlockError
from ckptforge.examine.differences import Difference, differing
from ckptforge.run.budget import Budget
from ckptforge.run.pool import Progress
from ckptforge.values import Value
from ckptforge.verbs.explain import pairs_of
from ckptforge.wording import brief, counted


@dataclass(frozen=True)
class TensorDifference:
    """A tensor of B that isn't what A makes it: `what` in words, and the figures where both have
    its shape.

    `index` is the first that differs in B's tensor, `source` and `source_index` A's tensor and
    index there (in a shard: of the shard).
    """

    name: str
    what: str
    dtypes: tuple[str, str]
    elements: int = 0
    count: int = 0
    max_abs: float = 0.0
    relative_l2: float | None = None
    nonfinite: int = 0
    index: tuple[int, ...] | None = None
    source: str | None = None
    source_index: tuple[int, ...] | None = None


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found. `equal`: every tensor has the same bits, or the same values after the
    named cast, and the constants of the configs are the same.

    `constants` are the keys of config.json by which A and B compute something else, with A's value
    and B's, absent ones filled in as transformers does; those of rope_parameters are called
    rope_scaling.KEY too. `through` is the mapping that tensors were compared through, None where
    they were compared by their names; `causes` are likely reasons for the differences, in words.
    `quantisation` is how far B's quantised weights are from A's, by kind, where that was asked for.
    """

    a: str
    b: str
    through: str | None
    layouts: tuple[str | None, str | None]
    after_cast: str | None
    tensors: int
    bytes: int
    equal: bool
    differences: list[TensorDifference]
    only_in_a: list[str]
    only_in_b: list[str]
    constants: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantisation: list[BlockError] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.equal

    def __repr__(self) -> str:
        differ = f"different, {counted(len(self.differences), 'tensor')} of {self.tensors}"
        found = "equal" if self.equal else differ
        return f"<Comparison of {brief(self.a)} and {brief(self.b)}: {found}>"

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints, but for what all have."""
        return {"ok": self.equal, "verb": "compare", **asdict(self)}


def differences(
    mine: Mapping[str, Value],
    theirs: Mapping[str, Value],
    budget: Budget,
    progress: Progress | None,
) -> tuple[list[TensorDifference], int]:
    """(what differs from B's tensors of these names, in B's order, bytes compared)."""
    comparable = [name for name, value in mine.items() if value.shape == theirs[name].shape]
    unequal = differing(pairs_of(comparable, mine, theirs), budget, progress)
    found = []
    for name, other in theirs.items():
        if (one := mine.get(name)) is None:
            continue
        dtypes = (one.dtype.name, other.dtype.name)
        if one.shape != other.shape:
            what = f"shape {list(one.shape)} in A, {list(other.shape)} in B"
        elif name in unequal:
            found.append(_with_figures(name, dtypes, unequal[name]))
            continue
        elif one.dtype == other.dtype:
            continue
        elif one.dtype.floating and other.dtype.floating:
            what = f"the same values, but {dtypes[0]} in A and {dtypes[1]} in B"
        else:
            what = f"dtype {dtypes[0]} in A, {dtypes[1]} in B"
        found.append(TensorDifference(name, what, dtypes))
    return found, sum(theirs[name].nbytes for name in comparable)


def _with_figures(name: str, dtypes: tuple[str, str], found: Difference) -> TensorDifference:
    source, source_index = found.first_source or (None, None)
    return TensorDifference(
        name=name,
        what="values differ",
        dtypes=dtypes,
        elements=found.elements,
        count=found.count,
        max_abs=found.max_abs,
        relative_l2=found.relative_l2,
        nonfinite=found.nonfinite,
        index=found.first,
        source=source,
        source_index=source_index,
    )
