"""The command line: stdout carries the result, stderr everything else."""

from __future__ import annotations

from ckptforge.cli.app import main

__all__ = ["main"]
