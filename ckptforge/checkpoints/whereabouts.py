"""What a path is that holds no checkpoint itself, and where the checkpoint lies.

Layouts of directories: the hub's cache (huggingface_hub,
`models--ORG--NAME/{blobs,refs,snapshots/REVISION}`), and the output of a MindFormers run
(`checkpoint/rank_<r>`, `strategy/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ckptforge.checkpoints.files import of_a_format
from ckptforge.checkpoints.sniff import identify
from ckptforge.errors import CkptforgeError, InputNotFoundError
from ckptforge.foreign.files import named, read_small
from ckptforge.foreign.paths import exists, is_directory, is_file
from ckptforge.formats.registry import endings
from ckptforge.spelling import option
from ckptforge.storage.address import scheme_of
from ckptforge.storage.mounts import unknown_address
from ckptforge.wording import alternatives, listing

_ENDINGS = ".bin .pt .pth .gguf .pkl .h5 .npz .npy .onnx .mindir .msgpack .zip .tar .gz .zst"
OTHER_WEIGHTS = tuple(_ENDINGS.split())
_IN_PART = (".incomplete", ".part", ".crdownload", ".aria2")  # ends of downloads under way
_LOOKED_AT = 256  # entries of a directory
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PAGE = re.compile(r"https://(?:huggingface\.co|hf-mirror\.com)/([\w.-]+/[\w.-]+)")
_RANK = re.compile(r"rank_[0-9]+")


def explain_missing(path: Path, model: bool = True) -> str:
    """What a path that doesn't exist may mean: a sentence with a space before it, or nothing. A
    `model` may be an id of the hub."""
    text = str(path)
    if unknown_address(path) is not None:
        return " It is an address that ckptforge can't read: download it first."
    if scheme_of(path) in ("s3", "obs"):
        return (
            " There is no such bucket, or nothing of that name in it: see whether the address is "
            f"right, and the service, which {option('endpoint')} names."
        )
    if hub := _HUB_PAGE.fullmatch(text):
        return f" It is the page of a model on the Hugging Face hub: name it as hf://{hub[1]}."
    if model and _HUB_ID.fullmatch(text) and not exists(path.parent):
        return f" If it is the id of a model on the Hugging Face hub, name it as hf://{text}."
    return ""


def no_weights(directory: Path) -> InputNotFoundError:
    """The error for a directory without files of a checkpoint: what it is, what to name."""
    return InputNotFoundError(
        f"{directory}: no {alternatives(endings())} files in it.{explain_directory(directory)}"
    )


def holds_weights(directory: Path) -> bool:
    """Whether files of a checkpoint lie in a directory, or an index of them, or ranks."""
    entries = _entries(directory, None)
    indexed = any(entry.name.endswith(".safetensors.index.json") for entry in entries)
    ranks = any(_RANK.fullmatch(entry.name) and is_directory(entry) for entry in entries)
    return indexed or ranks or bool(of_a_format(entries))


def explain_directory(directory: Path) -> str:
    """A sentence, after a space, on a directory that holds no checkpoint itself; or nothing."""
    steps: Iterable[Callable[[Path], str | None]] = (
        _hub_cache,
        _run,
        _one_down,
        _download,
        _other_weights,
    )
    return next((f" {found}" for step in steps if (found := step(directory))), "")


def _hub_cache(directory: Path) -> str | None:
    snapshots = directory / "snapshots"
    cached = directory.name.startswith("models--") or is_directory(directory / "blobs")
    if not cached or not is_directory(snapshots):
        return None
    found = [path for path in _entries(snapshots) if is_directory(path)]
    if not found:
        return (
            "It is a model in the cache of the Hugging Face hub, of which nothing was downloaded."
        )
    refs: dict[str, list[str]] = {}
    for ref in _entries(directory / "refs"):
        if is_file(ref):
            snapshot = read_small(ref, 4096).decode("utf-8", "replace").strip()
            refs.setdefault(snapshot, []).append(ref.name)
    lines = []
    for path in found:
        named = f" ({', '.join(refs[path.name])})" if path.name in refs else ""
        lines.append(f"{path}{named}{'' if holds_weights(path) else ', without weights'}")
    return (
        f"It is a model in the cache of the Hugging Face hub; name the snapshot:\n{listing(lines)}"
    )


def _run(directory: Path) -> str | None:
    strategy = directory / "strategy"
    for name in ("checkpoint", "checkpoint_network"):
        cut = is_directory(strategy)
        if is_directory(directory / name) and (cut or holds_weights(directory / name)):
            how = f", with {option('strategy_dir', strategy)} if it was cut among ranks"
            how = how if cut else ""
            return f"It is the output directory of a training job; name {directory / name}{how}."
    return None


def _one_down(directory: Path) -> str | None:
    found = [
        str(path) for path in _entries(directory) if is_directory(path) and holds_weights(path)
    ]
    found += [str(path) for path in _entries(directory) if is_directory(path / "snapshots")]
    if not found:
        return None
    if len(found) > 1:
        return f"Name one of these:\n{listing(found)}"
    return f"The model lies one level down; name {found[0]}."


def _download(directory: Path) -> str | None:
    found = [path.name for path in _entries(directory) if path.suffix in _IN_PART]
    if not found:
        return None
    return f"It holds {found[0]}: the download isn't finished; start it again, or wait for its end."


def _other_weights(directory: Path) -> str | None:
    files = [path for path in _entries(directory) if is_file(path)]
    other = [path for path in files if path.suffix in OTHER_WEIGHTS]
    for path in other:
        try:
            found = identify(path)
        except CkptforgeError:
            continue
        if found is not None:
            return f"It holds {path.name}, which is {found.what}: {found.advice}."
    if other:
        return f"It holds {other[0].name}: save the model as safetensors first (save_pretrained)."
    names = ", ".join(path.name for path in files[:5]) + (", …" if len(files) > 5 else "")
    return f"It holds {names}." if files else None


def _entries(directory: Path, limit: int | None = _LOOKED_AT) -> list[Path]:
    return named(directory, "")[:limit]
