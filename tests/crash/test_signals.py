"""Signals end a run as an error does: nothing is written on, nothing is left half done."""

import signal
import subprocess
import sys

import pytest

import ckptforge
from ckptforge.testing.stores import fail_when
from tests.crash.common import on_a_disk
from tests.helpers import HUB, with_default_signals


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=with_default_signals,
    )


@pytest.mark.parametrize("name", ["x.ckpt", "o"])
def test_a_signal_after_the_output_took_its_name_says_so(tmp_path, name):
    out = tmp_path / name
    syncing = fail_when(
        lambda call: call.name == "sync_directory" and call.path == tmp_path and out.exists(),
        KeyboardInterrupt(),
    )
    with on_a_disk(tmp_path, syncing), pytest.raises(KeyboardInterrupt) as error:
        ckptforge.to_ms(HUB, out)
    (note,) = error.value.__notes__
    assert "is in place and whole" in note and out.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_signals_in_a_row_end_as_one(tmp_path, number):
    """While tensors are written, and while what was written is removed."""
    done = run(f"""
import os, sys
from pathlib import Path
from ckptforge.cli import entry
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.testing.stores import FailingStore
def signalling(call):
    if call.path.name != "lock" and call.name in ("write", "copy_from", "unlink"):
        os.kill(os.getpid(), {int(number)})
def also(real):
    def call(*args):
        os.kill(os.getpid(), {int(number)})
        return real(*args)
    return call
entry._notes = also(entry._notes)
sys.argv = ["ckptforge", "to-ms", {str(HUB)!r}, {str(tmp_path / "x.ckpt")!r}]
with mounted({str(tmp_path)!r}, FailingStore(DISK, signalling)):
    entry.main()
""")
    assert done.returncode == 128 + number and "Traceback" not in done.stderr, done.stderr
    assert "No output was created" in done.stderr and not (tmp_path / "x.ckpt").exists()


def test_a_second_interrupt_waits_for_the_workers_too(tmp_path):
    """Or they would go on writing into files that others have opened meanwhile."""
    done = run(f"""
import signal, time
import ckptforge
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.testing.stores import FailingStore
writing, written, interrupts = [], [], []
def before(call):
    if call.path.name == "x.ckpt" and call.name == "write" and call.length > 1000:
        if not writing:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        writing.append(call)
        time.sleep(0.5)
def after(call):
    if call in writing:
        written.append(call)
def interrupting(*_):
    interrupts.append(1)
    if len(interrupts) == 1:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupting)
try:
    with mounted({str(tmp_path)!r}, FailingStore(DISK, before, after)):
        ckptforge.to_ms({str(HUB)!r}, {str(tmp_path / "x.ckpt")!r}, layout="gmm", workers=2)
except KeyboardInterrupt:
    ended = len(writing), len(written), len(interrupts)
    time.sleep(0.7)
    assert ended == (len(writing), len(written), len(interrupts)), "it went on"
    print(*ended)
""")
    writing, written, interrupts = map(int, done.stdout.split())
    assert 0 < writing == written and interrupts == 2, done.stderr
