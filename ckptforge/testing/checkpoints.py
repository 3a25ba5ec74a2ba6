"""What every kind of directory must do, as tests that run with pytest. For one of one's own:

class TestMyKind(DirectoryKindTests):
    @pytest.fixture
    def kind(self): return MY_KIND

    @pytest.fixture
    def directory(self, tmp_path): return …  # one that may be changed, of this kind and no other

    @pytest.fixture
    def tensors(self): return {name: (dtype, shape, bytes) for …}  # what it holds
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from ckptforge.checkpoints.kinds import KINDS, DirectoryKind
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.errors import CkptforgeError, InputNotFoundError
from ckptforge.examine.window import Window
from ckptforge.model import Model

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name → dtype, shape, bytes


class DirectoryKindTests:
    """`kind` is the kind, `directory` one of it, `tensors` what it holds. `steps`: whether several
    checkpoints may lie in one, of which a step picks one."""

    steps = False

    def test_it_recognises_its_own(
        self, kind: DirectoryKind, directory: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "notes.txt").write_text("nothing")
        assert kind.recognises(directory) and not kind.recognises(other)

    def test_it_opens_what_is_there(
        self, kind: DirectoryKind, directory: Path, tensors: Tensors
    ) -> None:
        model = kind.open(directory, None)
        assert contents(model) == tensors
        assert model.path == directory and model.format
        assert model.files and all(file.path.is_file() for file in model.files)
        assert all(str(file.path).startswith(str(directory)) for file in model.files)
        paths = {file.path for file in model.files}
        assert {
            one.stored.path for value in model.values.values() for one in value.fragments
        } <= paths

    def test_it_is_found(self, kind: DirectoryKind, directory: Path, tensors: Tensors) -> None:
        with KINDS.registered(kind):
            chosen = next(one for one in KINDS if one.recognises(directory))
            assert chosen is kind
            assert contents(open_checkpoint(directory)) == tensors

    def test_a_step_is_refused_where_there_is_none(
        self, kind: DirectoryKind, directory: Path
    ) -> None:
        with pytest.raises(InputNotFoundError, match="step") as caught:
            kind.open(directory, 987_654)
        assert str(directory) in str(caught.value)

    def test_a_file_that_is_missing_or_damaged_gives_no_other_tensors(
        self, kind: DirectoryKind, directory: Path, tensors: Tensors, tmp_path: Path
    ) -> None:
        """Nor is it an error that isn't ours."""
        for name in sorted(path.relative_to(directory) for path in directory.rglob("*")):
            if (directory / name).is_dir():
                continue
            for damage in (_remove, _empty, _cut, _replace):
                copy = tmp_path / "copy"
                shutil.copytree(directory, copy)
                damage(copy / name)
                found = _opened_or_refused(kind, copy)
                assert found is None or found.items() <= tensors.items(), (name, damage)
                shutil.rmtree(copy)

    def test_links_and_other_things_in_it_are_no_harm(
        self, kind: DirectoryKind, directory: Path, tensors: Tensors
    ) -> None:
        (directory / "README.md").write_text("# A model\n")
        (directory / "link").symlink_to("nowhere")
        (directory / "more").mkdir()
        assert contents(kind.open(directory, None)) == tensors


def contents(model: Model) -> Tensors:
    """What the values of a model are."""
    window = Window()
    try:
        return {
            name: (value.dtype.name, value.shape, window.read(name, value).tobytes())
            for name, value in model.values.items()
        }
    finally:
        window.close()


def _opened_or_refused(kind: DirectoryKind, directory: Path) -> Tensors | None:
    try:
        return contents(kind.open(directory, None)) if kind.recognises(directory) else None
    except CkptforgeError as error:
        assert str(directory) in str(error) and len(str(error)) < 4000
        return None


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _replace(path: Path) -> None:
    path.unlink()
    path.mkdir()
