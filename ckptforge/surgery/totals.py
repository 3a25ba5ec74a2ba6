"""What the weights of an average add up to, tensor by tensor, and what is to be said of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.surgery.sums import Mix
from ckptforge.wording import counted

_NEAR = 1e-9  # so far may a sum of decimals be from what is meant


def adds_up_to_nothing(weights: Iterable[float]) -> bool:
    """Whether weights add up to 0, but for what rounding leaves."""
    given = list(weights)
    return abs(sum(given)) <= _NEAR * sum(map(abs, given))


def notes_on_totals(found: Mapping[str, Mix], method: str = "linear") -> tuple[str, ...]:
    """Notes on tensors that are no average of the inputs. Raises `UsageError` where every input of
    a tensor has weight 0 and there is no base, so that it would be zeros, and where shares of an
    arc don't add up to 1."""
    if any(mix.base is not None for mix in found.values()):
        kept = [name for name, mix in found.items() if not any(mix.weights) or mix.scale == 0]
        return (f"{_of(kept, found)} the base's, to which nothing is added.",) if kept else ()
    zeros = [name for name, mix in found.items() if not any(mix.weights)]
    if zeros:
        raise UsageError(
            f"the weights of {_named(zeros)} are 0 for every input, which would make zeros of it: "
            "give one of the inputs a weight."
        )
    totals = {name: sum(mix.weights) for name, mix in found.items()}
    others = {name: one for name, one in totals.items() if not math.isclose(one, 1, abs_tol=_NEAR)}
    if not others:
        return ()
    if method == "slerp":
        name, total = next(iter(others.items()))
        raise UsageError(
            f"the weights of {name} add up to {total:g}: {option('method', method)} goes from the "
            "first checkpoint to the second by their shares, which add up to 1."
        )
    least, most = min(others.values()), max(others.values())
    sums = f"{least:g}" if math.isclose(least, most, abs_tol=_NEAR) else f"{least:g} to {most:g}"
    whose = "" if len(others) == len(totals) else f" of {_named(list(others))}"
    differences = [name for name in others if adds_up_to_nothing(found[name].weights)]
    if differences:
        some = "" if len(differences) == len(others) else f" (in {_named(differences)})"
        return (
            f"the weights{whose} add up to {0 if len(differences) == len(others) else sums}{some}: "
            "what is written is a difference of the inputs, no average.",
        )
    return (
        f"the weights{whose} add up to {sums}: the sums are that many times as large as an "
        "average.",
    )


def _of(names: list[str], found: Mapping[str, Mix]) -> str:
    return "all weights are" if len(names) == len(found) else f"{_named(names)} are"


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{counted(len(names), 'tensor')}, such as {names[0]},"
