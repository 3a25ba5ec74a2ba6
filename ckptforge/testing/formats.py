"""What every format must do, as tests that run with pytest. For a format of one's own:

class TestMyFormat(FormatTests):
    @pytest.fixture
    def form(self): return my_format

    examples = (Path("a file that another program wrote"), …)  # if there are any

    def read_independently(self, path):  # by another program, if there is one
        return {name: (array.dtype.name, array.shape, array.tobytes()) for …}
"""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from ckptforge.checkpoints.files import model_of, read_file
from ckptforge.dtypes import BY_NAME, DTYPES, DType
from ckptforge.errors import CkptforgeError, FormatError, PlanError
from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import OutputFile, TensorSpec
from ckptforge.formats.registry import FORMATS, HEAD, Format
from ckptforge.run.budget import Budget
from ckptforge.run.run import run
from ckptforge.storage.files import read_range, write_exactly
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.targets.single import FileTarget
from ckptforge.targets.target import plan_for
from ckptforge.testing.stores import Call, FailingStore

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name → dtype, shape, bytes

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (5,), (3, 4), (2, 0, 3), (2, 3, 1, 4))
NAMES = ("a", "model.layers.0.mlp.up", "with a space", "ünï.çødé", "a/b", "n" * 300)
_LARGE = 3 << 29  # bytes
_PLACES = 120  # of a file that are overwritten
_MEMORY = 8 << 20  # bytes that reading a small file may take, whatever stands in it
_NUMBERS = (
    b"\xff",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"\xfe" * 7 + b"\1",
)


class FormatTests:
    """`form` is the format, `metadata` what its files are written with, `examples` files of other
    programs."""

    metadata: Mapping[str, str] = {}
    examples: Sequence[Path] = ()

    def read_independently(self, path: Path) -> Tensors | None:
        """What another program reads from a file; None where there is no such program."""
        return None

    def test_a_file_is_found_by_its_ending_and_known_by_its_first_bytes(
        self, form: Format, tmp_path: Path
    ) -> None:
        path = tmp_path / f"x{form.ENDINGS[0]}"
        path.write_bytes(made(form, path, small(form, self.metadata), self.metadata))
        head = path.read_bytes()[:HEAD]
        assert form.recognises(head) and not form.recognises(b"") and not form.recognises(bytes(16))
        assert all(ending.startswith(".") for ending in form.ENDINGS) and form.NAME.startswith("a")
        with FORMATS.registered(form):
            assert not any(one.recognises(head) for one in FORMATS if one is not form)
            assert read_file(path) == form.read_index(path)

    def test_what_it_writes_it_reads(self, form: Format, tmp_path: Path) -> None:
        for dtype in held_dtypes(form, self.metadata):
            shapes = SHAPES if dtype.numpy is not None else ((3,),)
            specs = [TensorSpec(f"t{i}", dtype, shape) for i, shape in enumerate(shapes)]
            self._round_trip(form, tmp_path, filled(specs))
        dtype = held_dtypes(form, self.metadata)[0]
        self._round_trip(form, tmp_path, filled([TensorSpec(name, dtype, (2,)) for name in NAMES]))

    def _round_trip(self, form: Format, directory: Path, tensors: Tensors) -> None:
        path = directory / f"x{form.ENDINGS[0]}"
        path.write_bytes(made(form, path, tensors, self.metadata))
        index = form.read_index(path)
        assert index.path == path and index.size == path.stat().st_size
        assert index.mtime_ns == path.stat().st_mtime_ns and index.format
        assert contents(index) == tensors
        found = self.read_independently(path)
        assert found is None or found == tensors

    def test_it_reads_what_other_programs_write(self, form: Format, tmp_path: Path) -> None:
        for path in self.examples:
            found = contents(form.read_index(path))
            expected = self.read_independently(path)
            assert found and expected in (None, found)
            again = tmp_path / path.name
            again.write_bytes(made(form, again, found, self.metadata))
            assert contents(form.read_index(again)) == found

    def test_every_byte_of_a_file_is_said_once(self, form: Format, tmp_path: Path) -> None:
        specs = form.ordered(specs_of(small(form, self.metadata)))
        assert sorted(spec.name for spec in specs) == sorted(small(form, self.metadata))
        file = form.lay_out(tmp_path / "x", specs, self.metadata)
        parts = [(offset, offset + len(literal)) for offset, literal in file.literals]
        for name, place in file.places.items():
            assert place.name == name and sum(e.length for e in place.extents) == place.nbytes
            parts += [(e.offset, e.offset + e.length) for e in place.extents if e.length]
        parts.sort()
        assert all(one[1] == other[0] for one, other in pairwise([(0, 0), *parts]))
        assert parts[-1][1] == file.size
        for at in (at for seal in file.seals for at in seal.at):
            assert any(o <= at and at + 4 <= o + len(literal) for o, literal in file.literals)

    def test_a_run_writes_the_same_file(self, form: Format, tmp_path: Path) -> None:
        path, out = (tmp_path / f"{name}{form.ENDINGS[0]}" for name in ("x", "y"))
        path.write_bytes(made(form, path, small(form, self.metadata), self.metadata))
        model = model_of(path, [form.read_index(path)])
        plan = plan_for("test", model, FileTarget(out, form, self.metadata), {})
        writer = DISK.create(out)
        writer.resize(plan.files[0].size)
        for offset, literal in plan.files[0].literals:
            write_exactly(writer, offset, literal, out)
        run(plan, {out: writer}, Budget(2, 1 << 20))
        writer.close()
        assert contents(form.read_index(out)) == small(form, self.metadata)
        assert out.read_bytes() == path.read_bytes()

    def test_what_it_cannot_hold_is_refused(self, form: Format) -> None:
        held = held_dtypes(form, self.metadata)
        for dtype in (dtype for dtype in DTYPES if dtype not in held):
            with pytest.raises(PlanError, match="the tensor"):
                form.lay_out(Path("x"), [TensorSpec("the tensor", dtype, (2,))], self.metadata)
        with pytest.raises(PlanError, match="twice"):
            form.lay_out(Path("x"), [TensorSpec("twice", held[0], (2,))] * 2, self.metadata)

    def test_a_file_that_is_cut_off_gives_no_other_tensors(
        self, form: Format, tmp_path: Path
    ) -> None:
        tensors = small(form, self.metadata)
        path = tmp_path / f"x{form.ENDINGS[0]}"
        whole = made(form, path, tensors, self.metadata)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            found = read_or_refused(form, path)
            assert found is None or found.items() <= tensors.items()
        path.write_bytes(whole + b"x")
        found = read_or_refused(form, path)
        assert found in (None, tensors)

    def test_turned_bits_end_in_errors_of_ours_only(self, form: Format, tmp_path: Path) -> None:
        path = tmp_path / f"x{form.ENDINGS[0]}"
        whole = bytearray(made(form, path, small(form, self.metadata), self.metadata))
        for at in spread(len(whole)):
            for bit in range(8):
                whole[at] ^= 1 << bit
                path.write_bytes(whole)
                read_or_refused(form, path)
                whole[at] ^= 1 << bit

    def test_hostile_numbers_take_no_memory(self, form: Format, tmp_path: Path) -> None:
        path = tmp_path / f"x{form.ENDINGS[0]}"
        whole = made(form, path, small(form, self.metadata), self.metadata)
        tracemalloc.start()
        try:
            for at in spread(len(whole)):
                for number in _NUMBERS:
                    path.write_bytes(whole[:at] + number + whole[at + len(number) :])
                    tracemalloc.reset_peak()
                    before, _ = tracemalloc.get_traced_memory()
                    read_or_refused(form, path)
                    assert tracemalloc.get_traced_memory()[1] - before < _MEMORY, (at, number)
        finally:
            tracemalloc.stop()

    def test_an_index_takes_memory_for_names_not_for_tensors(
        self, form: Format, tmp_path: Path
    ) -> None:
        path = tmp_path / f"x{form.ENDINGS[0]}"
        dtype = held_dtypes(form, self.metadata)[0]
        spec = TensorSpec("large", dtype, (_LARGE // dtype.itemsize,))
        file = form.lay_out(path, [spec], self.metadata)
        writer = DISK.create(path)
        writer.resize(file.size)  # without taking up room
        for offset, literal in file.literals:
            write_exactly(writer, offset, literal, path)
        writer.close()
        read = 0

        def count(call: Call) -> None:
            nonlocal read
            read += call.length if call.name == "read_into" else 0

        tracemalloc.start()
        try:
            with mounted(tmp_path, FailingStore(DISK, count)):
                index = form.read_index(path)
            assert tracemalloc.get_traced_memory()[1] < _MEMORY
        finally:
            tracemalloc.stop()
        assert index.tensors["large"].nbytes == spec.nbytes and read < 1 << 20


def held_dtypes(form: Format, metadata: Mapping[str, str]) -> list[DType]:
    """The dtypes that a format can hold; there is one at least."""
    found = []
    for dtype in DTYPES:
        try:
            form.lay_out(Path("x"), [TensorSpec("t", dtype, (2,))], metadata)
        except PlanError:
            continue
        found.append(dtype)
    assert found
    return found


def filled(specs: Sequence[TensorSpec]) -> Tensors:
    """Tensors with numbers that are the same in every run."""
    numbers = random.Random(0)
    return {
        spec.name: (spec.dtype.name, spec.shape, numbers.randbytes(spec.nbytes)) for spec in specs
    }


def small(form: Format, metadata: Mapping[str, str]) -> Tensors:
    """Three tensors."""
    dtypes = held_dtypes(form, metadata)
    shapes: tuple[tuple[int, ...], ...] = ((2, 3), (), (4,))
    return filled(
        [
            TensorSpec(f"layers.{i}.w", dtypes[i % len(dtypes)], shape)
            for i, shape in enumerate(shapes)
        ]
    )


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    """Tensors as what is to be written."""
    return [TensorSpec(name, BY_NAME[dtype], shape) for name, (dtype, shape, _) in tensors.items()]


def made(form: Format, path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The file that a format lays out for tensors, filled with their bytes."""
    file = form.lay_out(path, form.ordered(specs_of(tensors)), metadata)
    return _filled(file, tensors)


def _filled(file: OutputFile, tensors: Tensors) -> bytes:
    content = bytearray(file.size)
    for offset, literal in file.literals:
        content[offset : offset + len(literal)] = literal
    for name, place in file.places.items():
        data = tensors[name][2]
        for extent in place.extents:
            part = data[extent.start : extent.start + extent.length]
            content[extent.offset : extent.offset + extent.length] = part
    for seal in file.seals:
        crc = zlib.crc32(content[seal.start : seal.start + seal.length])
        for at in seal.at:
            content[at : at + 4] = crc.to_bytes(4, "little")
    return bytes(content)


def contents(index: FileIndex) -> Tensors:
    """What the tensors of an index hold; asserts that their bytes lie in the file, in order."""
    found = {}
    for name, stored in index.tensors.items():
        at = 0
        for extent in stored.extents:
            assert extent.start == at and 0 <= extent.offset <= index.size - extent.length
            at += extent.length
        assert at == stored.nbytes and stored.name == name and stored.path == index.path
        buffer = bytearray(stored.nbytes)
        read_range(stored, 0, memoryview(buffer))
        found[name] = (stored.dtype.name, stored.shape, bytes(buffer))
    return found


def read_or_refused(form: Format, path: Path) -> Tensors | None:
    """What is in a file, or None where it is refused as a damaged one should be."""
    try:
        index = form.read_index(path)
    except CkptforgeError as error:
        assert isinstance(error, FormatError), error
        assert str(path) in str(error) and len(str(error)) < 4000 and str(error).isprintable()
        return None
    return contents(index)


def spread(length: int) -> range:
    """Places of a file, all of them if it is small."""
    return range(0, length, max(1, length // _PLACES))
