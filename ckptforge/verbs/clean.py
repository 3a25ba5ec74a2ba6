"""Removing what runs that were killed left behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ckptforge.publish.publisher import publisher_of
from ckptforge.verbs.options import Clean
from ckptforge.verbs.public import verb
from ckptforge.wording import brief, counted

if TYPE_CHECKING:
    from ckptforge.publish.clean import Left


@dataclass(frozen=True, repr=False)
class Cleaned:
    """What `clean` found and, except for a dry run and what is busy, removed."""

    directory: str
    left: list[Left]
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes of disk that were, or would be, freed."""
        return sum(left.bytes for left in self.left if left.busy is None)

    @property
    def ok(self) -> bool:
        """Whether all was removed but what living runs may hold."""
        return not any(left.failed for left in self.left)

    def __repr__(self) -> str:
        return (
            f"<Cleaned {brief(self.directory)}: {counted(len(self.left), 'output')} left by runs, "
            f"{self.bytes} bytes>"
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"ok": self.ok, **asdict(self), "bytes": self.bytes}


@verb(Clean)
def clean(options: Clean) -> Cleaned:
    """Removes what interrupted or killed runs left of outputs in a directory, and of the directory
    itself. Returns a `Cleaned`.

    What a running process uses is left alone; what can't be removed is reported.

    Raises `InputNotFoundError` for a directory that isn't there.
    """
    path, dry_run = options.directory, options.dry_run
    return Cleaned(str(path), publisher_of(path).clean(path, dry_run), dry_run)
