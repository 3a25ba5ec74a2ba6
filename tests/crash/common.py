"""What the tests of interrupted runs share."""

import os
from contextlib import suppress

import pytest

import ckptforge
from ckptforge.publish.directory import staging_path
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.testing.stores import FailingStore, fail_when
from tests.helpers import FIXTURES, HUB

STRATEGIES = FIXTURES / "mindspore" / "strategies"
SHARDED = FIXTURES / "mindspore" / "sharded"
FULL = FIXTURES / "mindspore" / "full.ckpt"
STEPS = ("rename", "link", "exchange")  # that put an output in place


def jobs(dense):
    """Name → (verb, inputs, name of the output, options); `dense` is a `.ckpt` of the fixture."""
    return {
        "to_ms": (ckptforge.to_ms, (HUB,), "x.ckpt", {"dtype": "fp16", "layout": "gmm"}),
        "to_torch": (ckptforge.to_torch, (dense,), "hf", {"max_shard_size": "200KB"}),
        "merge": (
            ckptforge.merge,
            (SHARDED / "mp8",),
            "m.ckpt",
            {"strategy_dir": STRATEGIES / "mp8"},
        ),
        "split": (ckptforge.split, (FULL,), "ranks", {"strategy_dir": STRATEGIES / "dp4mp2ep2"}),
    }


def tree(path):
    """Every file below a path with its contents, but for manifests, which hold times."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and "manifest" not in f.name
    }


def on_a_disk(place, before=lambda call: None, after=lambda call: None):
    """Below a directory, the disk has faults."""
    return mounted(place, FailingStore(DISK, before, after))


def in_a_process(action):
    """Runs `action` in a forked process; returns its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def interrupt(out, after, source=HUB, **options):
    """Leaves a run of `to_ms` that stopped after a part of its bytes."""

    def progress(done, total):
        if done > after * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        ckptforge.to_ms(source, out, progress=progress, workers=1, **{"layout": "gmm", **options})
    assert "resume=True continues from there" in stopped.value.__notes__[-1]


def stopped_while_placed(out, **options):
    """Leaves a run of `to_ms` that was stopped when all was written and before it was put in
    place."""
    placing = fail_when(lambda call: call.name in STEPS and call.other == out, KeyboardInterrupt())
    with on_a_disk(out.parent, placing), pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, out, **options)
    assert "publishing" in (staging_path(out) / "journal").read_text()


def clean_all(*places):
    """`ckptforge.clean`, where there is anything."""
    for place in places:
        with suppress(ckptforge.InputNotFoundError):
            ckptforge.clean(place)
