"""A Hugging Face directory of torch files: pytorch_model.bin, or several with an index."""

from __future__ import annotations

from pathlib import Path

from ckptforge.checkpoints.duplicates import without_duplicates
from ckptforge.checkpoints.files import model_of, read_file, weight_map_of
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.errors import FormatError, InputNotFoundError, shown
from ckptforge.foreign.files import is_there
from ckptforge.foreign.paths import is_file
from ckptforge.model import Model
from ckptforge.wording import listing

SINGLE = "pytorch_model.bin"
INDEX = f"{SINGLE}.index.json"


class TorchDirectory:
    """What transformers' save_pretrained wrote with safe_serialization=False."""

    def recognises(self, directory: Path) -> bool:
        """By the names that transformers looks for."""
        return is_there(directory / SINGLE) or is_there(directory / INDEX)

    def open(self, directory: Path, step: int | None, check_replicas: bool | None = False) -> Model:
        """All files as one model. Raises `InputNotFoundError` and `FormatError`."""
        refuse_step(step, directory, "a Hugging Face directory")
        index = directory / INDEX
        weight_map = weight_map_of(index) if is_there(index) else {}
        names = sorted(set(weight_map.values())) or [SINGLE]
        if missing := [name for name in names if not is_file(directory / name)]:
            raise InputNotFoundError(
                f"{directory}: files named by {INDEX} are missing:\n{listing(missing)}"
            )
        files = [read_file(directory / name) for name in names]
        held = {file.path.name: file.tensors for file in files}
        for tensor, name in weight_map.items():
            if tensor not in held[name]:
                raise FormatError(f"{index}: tensor {shown(tensor)} isn't in {name}, as it says.")
        files = without_duplicates(files, weight_map, index)
        return model_of(directory, files, format="hugging face directory")


TORCH_DIRECTORY = TorchDirectory()
