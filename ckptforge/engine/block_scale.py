"""Block-scaled matrices: numbers of eight bits, each block of which is multiplied by one number of another tensor.

Element (i, j) is `value · scale[i // rows, j // columns]`, in float32; blocks at the edges may be smaller. So says the `weight_block_size`
of transformers' FP8 configurations (integrations/finegrained_fp8.py); MindFormers' `weight_dequant` computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import BY_NAME
from ckptforge.engine.low_rank import numbers_of
from ckptforge.engine.tiles import Spans, windows
from ckptforge.errors import FormatError
from ckptforge.formats.entry import BlockScale, TensorEntry

Array = NDArray[Any]
_LARGEST = np.float32(57344)  # of eight bits, float8_e5m2's


def scale_bytes(scaled: BlockScale) -> int:
    """Memory that the scales of one matrix take, as numbers and while they are read."""
    return scaled.scale.nbytes + 4 * scaled.scale.elements


class Scales:
    """The scales of one matrix of `columns` columns, in memory. `read` gives the bytes of a tensor."""

    def __init__(self, scaled: BlockScale, columns: int, read: Callable[[TensorEntry], Array]) -> None:
        self._scales = numbers_of(read(scaled.scale), scaled.scale, BY_NAME["float32"])
        self._rows, self._block, self._columns = scaled.block[0], min(scaled.block[1], columns), columns
        with np.errstate(all="ignore"):
            if not np.isfinite(self._scales * _LARGEST).all():
                raise FormatError(f"{scaled.scale.path}: {scaled.scale.name} holds scales that aren't finite, or make numbers that aren't.")

    def apply(self, numbers: Array, start: int, spans: Spans) -> None:
        """Multiplies what was read of the matrix: `numbers`, in float32, are its `spans`, counted from element `start`."""
        for at, row, count, c0, c1 in windows(start, spans, self._columns):
            window = numbers[at : at + count * (c1 - c0)].reshape(count, c1 - c0)
            first = c0 // self._block
            for i in range(row // self._rows, (row + count - 1) // self._rows + 1):
                across = np.repeat(self._scales[i, first : (c1 - 1) // self._block + 1], self._block)
                inner = window[max(i * self._rows - row, 0) : (i + 1) * self._rows - row]
                inner *= across[c0 - first * self._block :][: c1 - c0]
