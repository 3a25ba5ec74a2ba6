"""One tensor as numpy's file: NumPy's format version 1.0 (numpy/lib/format.py), row-major."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ckptforge.errors import UsageError
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.planning.lower import PlacedFile
from ckptforge.spelling import option
from ckptforge.targets.target import LaidOut
from ckptforge.values import Extent

ENDING = ".npy"


class NpyTarget(msgspec.Struct, frozen=True):
    """A file of one tensor, which ends in `.npy`. Raises `UsageError` for another ending."""

    output: Path

    def __post_init__(self) -> None:
        if self.output.suffix != ENDING:
            raise UsageError(
                f"{self.output}: one tensor is written as numpy's file: name one that ends in "
                f"{ENDING}, such as {self.output.with_suffix(ENDING)}."
            )

    def lay_out(self, specs: Sequence[TensorSpec]) -> LaidOut:
        """The file. A dtype that numpy doesn't have is written as raw bytes, with a note."""
        (spec,) = specs
        known = spec.dtype.numpy is not None and hasattr(np, spec.dtype.numpy)
        descr = np.dtype(spec.dtype.numpy if known else f"V{spec.dtype.itemsize}").str
        header = io.BytesIO()
        about = {"descr": descr, "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_1_0(header, about)
        at = header.tell()
        file = OutputFile(
            path=self.output,
            size=at + spec.nbytes,
            literals=((0, header.getvalue()),),
            places={spec.name: spec.placed(self.output, Extent(0, at, spec.nbytes))},
        )
        note = (
            f"numpy has no {spec.dtype}: the file holds raw bytes, which "
            f"`.view(ml_dtypes.{spec.dtype.numpy or spec.dtype})` makes numbers of; "
            f"{option('dtype', 'fp32')} writes numbers."
        )
        return LaidOut(files=(PlacedFile.whole(file),), notes=() if known else (note,))
