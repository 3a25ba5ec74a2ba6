"""mindformers_adapter_config.json: what MindFormers' PyNative trainer says of an adapter that it
trained alone.

Source: MindFormers r2.1, `pynative/callback/checkpoint_callback.py` (`_write_adapter_manifest`) and
`pynative/config/config.py` (`LoraConfig`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckptforge.adapters.peft import AdapterConfig
from ckptforge.errors import FormatError, shown
from ckptforge.foreign.files import is_there
from ckptforge.foreign.json import read_object

CONFIG = "mindformers_adapter_config.json"
_FORMAT = "mindformers_pynative_lora_adapter_v1"


def read_pynative_config(files: Iterable[Path]) -> AdapterConfig | None:
    """The configuration beside the files of an adapter, or in the directory above; None where there
    is none. Raises `FormatError` for one of another kind."""
    directories = dict.fromkeys(file.parent for file in files)
    places = [*directories, *dict.fromkeys(one.parent for one in directories)]
    path = next((one / CONFIG for one in places if is_there(one / CONFIG)), None)
    if path is None:
        return None
    found = read_object(path)
    if found.get("format") != _FORMAT:
        raise FormatError(f"{path}: format is {shown(found.get('format'))}, expected {_FORMAT!r}.")
    said = found.get("lora_config")
    if not isinstance(said, dict):
        raise FormatError(f"{path}: lora_config is {shown(said)}, expected keys and values.")
    for key in ("lora_rank", "lora_alpha"):
        if not isinstance(said.get(key), int) or isinstance(said.get(key), bool):
            raise FormatError(
                f"{path}: lora_config.{key} is {shown(said.get(key))}, expected an integer."
            )
    content = {"peft_type": "LORA", "r": said["lora_rank"], "lora_alpha": said["lora_alpha"]}
    return AdapterConfig(str(path), content)
