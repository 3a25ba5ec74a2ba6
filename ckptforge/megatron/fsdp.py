"""An iteration that a trainer on Megatron has written of a model that FSDP2 spreads: one checkpoint
of torch.distributed.checkpoint, with the model's tensors, whole, beside the optimizer's and what
else a run has.

Source: MindSpeed-MM `checkpoint/common/hf_to_dcp.py`, `checkpoint/common/merge_dcp_to_hf.py`.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from ckptforge.errors import FormatError, shown
from ckptforge.megatron.chunks import LEFT
from ckptforge.megatron.roots import MegatronIteration
from ckptforge.model import Model
from ckptforge.torch_files.distributed import Described, described_model

_FAMILY = "huggingface"  # whose networks such trainers wrap
_OF_MODEL = "model."
_VERSION = "checkpoint_version"  # which trainers on Megatron write, and nobody else


def open_fsdp(directory: Path, iteration: MegatronIteration) -> Model:
    """The model's tensors, by the names that the network has for them. Raises
    `InputNotFoundError` and `FormatError`."""
    described = Described(iteration.directory)
    found = described_model(directory, described)
    account = found.account.noting(*iteration.notes)
    if _VERSION not in described.others:
        return replace(found, account=account)
    own = {name: value for name, value in found.values.items() if name.startswith(_OF_MODEL)}
    if not own:
        raise FormatError(
            f"{iteration.directory}: holds no tensors of a model, whose names begin with "
            f"{_OF_MODEL!r}; there is {shown(next(iter(found.values)))}."
        )
    left = tuple(name for name in found.values if name not in own)
    return replace(
        found,
        values={name.removeprefix(_OF_MODEL): value for name, value in own.items()},
        account=account.leaving(LEFT, left),
        family=_FAMILY,
        run={"iteration": max(iteration.number or 0, 0)},
    )
