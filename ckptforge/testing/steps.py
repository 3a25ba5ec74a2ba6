"""What every step must do, as tests that run with pytest. For a step of one's own:

class TestMyStep(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        return StepCase(step=…, stored=…, expected=…, others=[…])
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from copy import copy
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ckptforge.dtypes import DType
from ckptforge.examine.window import read_value
from ckptforge.run.assembler import as_numbers
from ckptforge.run.budget import Budget
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.files import OpenFiles
from ckptforge.run.worker import Worker
from ckptforge.values import Fragment, Step, Stored, Term, Value, Window, whole_transfer

Array = NDArray[Any]
_CUTS = 20
_SLACK = 1 << 13  # bytes of Python's own objects


class StepCase(msgspec.Struct, frozen=True, kw_only=True):
    """A step, the stored tensor that it is for, of two axes at least, and what it makes of all its
    numbers where that is known. `others` are steps that differ from it in one thing each."""

    step: Step
    stored: Stored
    others: Sequence[Step]
    expected: Array | None = None


class StepTests:
    """`case` is the step and what it is for."""

    def test_its_identity_differs_where_anything_does(self, case: StepCase) -> None:
        found = [step.identity() for step in (case.step, *case.others)]
        assert all(isinstance(one, bytes) and one for one in found)
        assert len(set(found)) == len(found) > 1
        assert case.step.identity() == copy(case.step).identity()

    def test_it_says_what_it_needs_and_gives(self, case: StepCase) -> None:
        assert all(isinstance(one, Stored) for one in case.step.inputs)
        assert case.step.gives(case.stored.dtype).name in ("float32", "float64")

    def test_windows_in_any_cut_give_the_same_numbers(self, case: StepCase) -> None:
        worker = _worker()
        rows, columns = _matrix(case.stored)
        numbers = _numbers(case, worker)
        prepared = case.step.prepare(case.stored, worker.assembler.read_whole)
        whole = numbers.copy()
        prepared.apply(whole, [Window(0, 0, rows, 0, columns)])
        if case.expected is not None:
            assert same(whole.reshape(case.expected.shape), case.expected)
        for seed in range(_CUTS):
            found = np.zeros((rows, columns), whole.dtype)
            for windows in _cuts(rows, columns, random.Random(seed)):
                # several windows lie in one buffer, one behind the other
                parts = [
                    numbers.reshape(rows, columns)[w.first : w.first + w.rows, w.start : w.stop]
                    for w in windows
                ]
                buffer = np.concatenate([part.reshape(-1) for part in parts])
                prepared.apply(buffer, windows)
                for w in windows:
                    size = w.rows * (w.stop - w.start)
                    found[w.first : w.first + w.rows, w.start : w.stop] = buffer[
                        w.at : w.at + size
                    ].reshape(w.rows, -1)
            assert same(found.reshape(-1), whole), seed

    def test_its_memory_is_an_upper_bound(self, case: StepCase) -> None:
        worker = _worker()
        case.step.prepare(case.stored, worker.assembler.read_whole)  # opens files, and imports
        tracemalloc.start()
        try:
            prepared = case.step.prepare(case.stored, worker.assembler.read_whole)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert prepared is not None and peak <= case.step.memory(case.stored) + _SLACK

    def test_a_run_gives_the_same_numbers(self, case: StepCase) -> None:
        fragment = Fragment(case.stored, whole_transfer(case.stored.shape), (case.step,))
        value = Value(
            dtype=fragment.dtype,
            shape=case.stored.shape,
            terms=(Term(fragments=(fragment,)),),
            kind="test",
        )
        numbers = _numbers(case, _worker())
        rows, columns = _matrix(case.stored)
        case.step.prepare(case.stored, _worker().assembler.read_whole).apply(
            numbers, [Window(0, 0, rows, 0, columns)]
        )
        for memory in (1 << 20, 1 << 14, 1 << 12):
            found = read_value("test", value, Worker(OpenFiles(), Budget(1, memory)))
            assert same(found.reshape(-1), numbers)


def same(a: Array, b: Array) -> bool:
    """Whether two arrays have the same bits, any two NaNs being the same."""
    return (
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    )


def _worker() -> Worker:
    return Worker(OpenFiles(), Budget(1, 1 << 20))


def _matrix(stored: Stored) -> tuple[int, int]:
    """Its rows, all leading axes taken as one, and its columns."""
    columns = stored.shape[-1]
    return stored.elements // columns, columns


def _numbers(case: StepCase, worker: Worker) -> Array:
    """The stored numbers as the step gets them."""
    raw = worker.assembler.read_whole(case.stored, None).reshape(-1).view(np.uint8)
    dtype: DType = case.step.gives(case.stored.dtype)
    found = np.empty(case.stored.elements, numpy_dtype(dtype))
    cast_function(case.stored.dtype, dtype)(as_numbers(raw, case.stored.dtype), found)
    return found


def _cuts(rows: int, columns: int, chance: random.Random) -> list[list[Window]]:
    """All of a matrix in windows, those of a strip of rows in one list."""
    found = []
    row = 0
    while row < rows:
        count = chance.randint(1, rows - row)
        at, column, strip = 0, 0, []
        while column < columns:
            width = chance.randint(1, columns - column)
            strip.append(Window(at, row, count, column, column + width))
            at += count * width
            column += width
        found.append(strip)
        row += count
    return found
