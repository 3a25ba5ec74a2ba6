"""What a target is: where a model goes, and which files that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ckptforge.dtypes import DType
from ckptforge.formats.layout import TensorSpec, specs_of
from ckptforge.model import Model
from ckptforge.planning.lower import Assemblies, PlacedFile
from ckptforge.planning.plan import Plan
from ckptforge.planning.reads import ranges_read


class LaidOut(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an output: those with tensors, and the small ones beside them; `notes`, `facts`
    and `cut` are what they say to a plan's."""

    files: tuple[PlacedFile, ...]
    small_files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = msgspec.field(default_factory=dict)
    cut: Mapping[str, Any] | None = None


class Target(Protocol):
    """Where a model goes: a file or a directory of some kind."""

    @property
    def output(self) -> Path:
        """The file or directory that appears."""

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The files for tensors of these names, dtypes and shapes. Raises `PlanError` for what the
        target can't hold."""


def facts_of(
    source: Model, model: str | None, from_: str | None, to: str | None, dtype: DType | None
) -> dict[str, Any]:
    """What a job is, for people: the name of its `model`'s table, what it goes from and to."""
    return {
        "model": model,
        "from": from_,
        "to": to,
        "source_format": source.format,
        "source_tensors": len(source.values),
        "dtype": dtype.name if dtype else "keep",
    }


def plan_for(verb: str, model: Model, target: Target, facts: Mapping[str, Any]) -> Plan:
    """The plan that writes a model to a target; a process that carries it out proves what it
    writes. Raises what laying out raises."""
    laid = target.lay_out(specs_of(model.values))
    return Plan(
        verb=verb,
        output=target.output,
        assemblies=Assemblies(model.values, laid.files).in_families(),
        sources=model.files,
        small_files=laid.small_files,
        account=model.account.noting(*laid.notes),
        facts={**facts, **laid.facts},
        cut=laid.cut,
        read=ranges_read(model),
        held=model.held,
    )
