"""Files of tensors: read in the format that they have by their names, and put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptforge.checkpoints.sniff import explained, head_of
from ckptforge.errors import FormatError, ReadError, shown
from ckptforge.foreign.files import is_file_name
from ckptforge.foreign.json import read_object
from ckptforge.foreign.paths import is_directory
from ckptforge.formats.index import FileIndex
from ckptforge.formats.registry import FORMATS, HEAD, endings, format_by_ending, formats_by_ending
from ckptforge.model import Account, Model
from ckptforge.storage.mounts import store_of
from ckptforge.wording import alternatives, counted

_log = logging.getLogger(__name__)


def read_file(path: Path) -> FileIndex:
    """The index of one file, by the ending of its name; of several formats with that ending in the
    one that recognises it.

    Raises `FormatError`, which says what the file is where it is of another kind, and
    `InputNotFoundError` if it can't be opened.
    """
    found = formats_by_ending(path)
    if (first := next(found, None)) is None:
        ends = alternatives(sorted(endings()))
        raise explained(
            path, FormatError(f"{path}: the name must end in {ends}, by which the format is known.")
        )
    try:
        return first.read_index(path)
    except ReadError:
        raise
    except FormatError as error:
        head = (head_of(path) or b"")[:HEAD]
        if (other := next((one for one in found if one.recognises(head)), None)) is not None:
            return other.read_index(path)
        if (better := explained(path, error)) is error:
            raise
        raise better from error


def refuse_changed(file: FileIndex) -> None:
    """Raises `FormatError` for a file changed since it was indexed, `ReadError` for none."""
    try:
        found = store_of(file.path).status(file.path)
    except OSError as error:
        raise ReadError(
            f"{file.path}: has vanished while it was read: {error.strerror}."
        ) from error
    if (found.size, found.mtime_ns) != (file.size, file.mtime_ns):
        raise FormatError(
            f"{file.path}: was changed while it was read; nothing was written, convert it again."
        )


def model_of(path: Path, files: Sequence[FileIndex], *notes: str, format: str = "") -> Model:
    """Files as one model; `path` is what a user named. Raises `FormatError` for no tensors."""
    values = {name: value for file in files for name, value in file.values()}
    if not values:
        raise FormatError(f"{path}: holds no tensors.")
    directory = is_directory(path)
    if directory and files[0].format == "safetensors":
        format = format or "hugging face directory"
    found = Model(
        path=path,
        format=format or files[0].format,
        directory=path if directory else path.parent,
        files=tuple(files),
        values=values,
        account=Account().noting(*notes, *(note for file in files for note in file.notes)),
    )
    if _log.isEnabledFor(logging.INFO):
        tensors, held = counted(len(values), "tensor"), counted(len(files), "file")
        size = f"{found.nbytes:,}"
        _log.info("opened %s: %s, %s in %s, %s bytes", path, found.format, tensors, held, size)
    return found


def of_a_format(paths: Iterable[Path]) -> list[Path]:
    """The paths that end as files of the usual formats do; where none does, of any format."""
    paths = list(paths)
    usual = {ending for one in FORMATS.usual for ending in one.ENDINGS}
    found = [path for path in paths if path.suffix in usual]
    return found or [path for path in paths if format_by_ending(path) is not None]


def weight_map_of(index: Path, of: str = "tensor") -> dict[str, str]:
    """Tensor → name of its file, as an index says. Raises `FormatError`."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise FormatError(f"{index}: weight_map must map {of} names to file names.")
    if bad := [name for name in sorted(set(weight_map.values())) if not is_file_name(name)]:
        raise FormatError(f"{index}: {shown(bad[0])} isn't the name of a file in this directory.")
    return weight_map
