"""Megatron's directories as a kind."""

from __future__ import annotations

from pathlib import Path

from ckptforge.megatron.reading import open_megatron
from ckptforge.megatron.roots import is_megatron
from ckptforge.model import Model
from ckptforge.reading.known import Choices


class MegatronDirectory:
    """The root of a run, or one of its iterations, with a directory for each rank."""

    def recognises(self, directory: Path) -> bool:
        """By the names of iterations and ranks."""
        return is_megatron(directory)

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """An iteration, of a root the last one, or that of the step."""
        return open_megatron(directory, Choices(step=step), check_replicas)


MEGATRON = MegatronDirectory()
