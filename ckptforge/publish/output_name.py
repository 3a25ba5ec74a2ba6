"""The name of an output, refused where it isn't the name of what would be written."""

from __future__ import annotations

from pathlib import Path

from ckptforge.checkpoints.whereabouts import OTHER_WEIGHTS
from ckptforge.errors import InputNotFoundError, UsageError
from ckptforge.formats.registry import endings, format_by_ending
from ckptforge.storage.address import address, scheme_of
from ckptforge.storage.endpoints import bucket_of
from ckptforge.storage.mounts import store_of, unmounted_address
from ckptforge.storage.store import PublishingStore
from ckptforge.wording import alternatives

_IN_BUCKETS = ("s3", "obs", "gs", "gcs", "az", "abfs", "abfss")
_TEXT = (".json", ".yaml", ".yml", ".toml")


def refuse_address(output: Path, written: bool = False) -> None:
    """Raises `UsageError` for an output `scheme://…`, with `written` unless it can be there."""
    found = unmounted_address(output)
    if found is not None and not (written and _is_written(output)):
        raise UsageError(
            f"{found}: is an address to which this isn't written: name a path here, and copy it "
            "there."
        )


def _is_written(output: Path) -> bool:
    try:
        store = store_of(output)
    except InputNotFoundError as error:  # a package for it isn't there
        raise UsageError(str(error)) from error
    return isinstance(store, PublishingStore) and store.publisher() is not None


def refuse_name(output: Path, *, directory: bool) -> None:
    """Refuses an output that is an address, that has the ending of a file that isn't written, or,
    where a `directory` is written, the ending of a checkpoint. Raises `UsageError` with what to
    write instead."""
    refuse_address(output, written=True)
    if scheme_of(output) in _IN_BUCKETS and not bucket_of(output)[2].strip("/"):
        found = str(address(output) or output).rstrip("/")
        raise UsageError(
            f"{found}: is a whole bucket; name what is written in it, such as {found}/model."
        )
    ending, stem = output.suffix, output.with_suffix("") if output.suffix else output
    if format_by_ending(output) is not None and not directory:
        return
    others = (*OTHER_WEIGHTS, *_TEXT)
    if ending.lower() not in others and format_by_ending(Path(f"x{ending.lower()}")) is None:
        return
    if directory:
        raise UsageError(
            f"{output}: the output needs a directory, not a file: name a directory, such as {stem}."
        )
    raise UsageError(
        f"{output}: no {ending} file is written: name a file that ends in "
        f"{alternatives(sorted(endings()))}, such as {stem}.ckpt, or a directory, such as {stem}."
    )
