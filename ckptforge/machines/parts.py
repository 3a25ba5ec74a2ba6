"""What the parts of a run share: `parts/` in the staging directory of the output.

    plan        what all of them carry out, written by the first; a journal's line (`publish/journal.py`)
    3           the ledger of part 3: a journal, with the units that are durable
    3.lock      locked while part 3 runs
    3.beat      changed every few seconds while part 3 runs
    unit-17.1   holds the number of the part that took unit 17 from its owner; unit-17.2 from that one

Each has one writer, or is made once, by a link, which is one step on NFS, too.
"""  # noqa: E501

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckptforge.errors import LeftError, OutputError
from ckptforge.machines.share import Share
from ckptforge.publish import journal as journals
from ckptforge.publish.directory import staging_path
from ckptforge.publish.file_system import FileSystem, file_system_of
from ckptforge.publish.journal import Journal, journal_line
from ckptforge.publish.sharing import NotesOnDisk
from ckptforge.publish.tree import lies_at, make_directories
from ckptforge.spelling import command
from ckptforge.storage.files import write_exactly


class Parts:
    """The parts of one run, in the staging directory of its output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.disk: FileSystem = file_system_of(output)
        self.directory = staging_path(output) / "parts"
        self.notes = NotesOnDisk(self.disk, self.directory)

    @property
    def head(self) -> Mapping[str, Any] | None:
        """What they carry out; None where there are no parts. Raises `OutputError`."""
        if not lies_at(self.disk, self.directory / "plan"):
            return None
        found = journals.look(self.disk, self.directory / "plan")
        if found is None:
            raise OutputError(
                f"{self.directory / 'plan'}: isn't what a run of ckptforge wrote; remove it "
                f"with {command('clean', self.output)}."
            )
        return found.head

    def meet(self, head: Mapping[str, Any]) -> None:
        """Says what is carried out, or makes sure that it is what the others do. Raises
        `LeftError`."""
        staging = self.directory.parent
        if not lies_at(self.disk, self.directory):
            for name in ("journal", "out", "old"):
                if lies_at(self.disk, staging / name):
                    raise LeftError(
                        f"{self.output}: an earlier run, which wasn't one of parts, stopped in "
                        f"{staging}; remove what it left with {command('clean', self.output)}."
                    )
        make_directories(self.disk, self.directory)
        if (found := self.head) is None:
            line = journal_line(json.dumps(head, separators=(",", ":")).encode())
            self.notes.write_once("plan", line)
            self.disk.sync_directory(staging.parent)
            found = self.head or head
        reason = journals.differences(found, head)
        if found.get("parts") != head["parts"]:
            reason = f"it has {found.get('parts')} parts, not {head['parts']}"
        elif reason is None and (left := journals.look(self.disk, staging / "journal")):
            reason = "they are complete and were being published" if left.publishing else None
        if reason:
            raise LeftError(
                f"{self.output}: parts of a run lie in {staging} that this can't go on with: "
                f"{reason}. Publish them with {command('finish', self.output)}, or remove them "
                f"with {command('clean', self.output)}."
            )

    @contextmanager
    def ledger(self, share: Share) -> Iterator[Journal]:
        """The ledger of a part, which no other process may run now. Raises `OutputError`."""
        disk, path = self.disk, self.directory / str(share.number)
        lock = disk.create(self.directory / f"{share.number}.lock")
        try:
            if not lock.lock():
                raise OutputError(
                    f"{self.output}: another process runs part {share}; give each process a part "
                    "of its own."
                )
            found = journals.reopen(disk, path) if lies_at(disk, path) else None
            ledger = found or journals.begin(disk, path, {"part": str(share)})
            disk.sync_directory(self.directory)
            try:
                yield ledger
            finally:
                with suppress(OSError):
                    ledger.close()
        finally:
            with suppress(OSError):
                lock.close()

    def ledgers(self) -> dict[int, Journal]:
        """What stands in the ledgers of all parts that were begun."""
        names = [name for name in self.disk.names(self.directory) if name.isdecimal()]
        found = {int(name): journals.look(self.disk, self.directory / name) for name in names}
        return {number: ledger for number, ledger in found.items() if ledger is not None}

    def takers(self) -> dict[int, tuple[int, int]]:
        """Unit → (how often it was taken, number of the part that has it)."""
        found: dict[int, tuple[int, int]] = {}
        for name in self.disk.names(self.directory):
            unit, _, times = name.removeprefix("unit-").partition(".")
            if not (name.startswith("unit-") and unit.isdecimal() and times.isdecimal()):
                continue
            if int(times) > found.get(int(unit), (0, 0))[0]:
                found[int(unit)] = int(times), int(self.notes.read(name) or 0)
        return found

    def take(self, unit: int, times: int, part: int) -> bool:
        """Takes a unit that was taken so often before; False where another was first."""
        return self.notes.write_once(f"unit-{unit}.{times + 1}", str(part).encode())

    def beat_of(self, part: int) -> bytes:
        """What a part's heartbeat is now; nothing where it never ran."""
        return self.notes.read(f"{part}.beat") or b""

    @contextmanager
    def beating(self, part: int, seconds: float) -> Iterator[None]:
        """Changes the heartbeat of a part every so many seconds."""
        stop = threading.Event()
        file = self.disk.create(self.directory / f"{part}.beat")

        def beat() -> None:
            while not stop.is_set():
                with suppress(OSError, OutputError):
                    write_exactly(file, 0, secrets.token_hex(8).encode(), self.directory)
                    file.sync()
                stop.wait(seconds)

        thread = threading.Thread(target=beat, name="ckptforge heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                file.close()


def finished_units(ledgers: Mapping[int, Journal]) -> set[int]:
    """The units that any part has finished durably."""
    return {unit for ledger in ledgers.values() for unit in ledger.units}
