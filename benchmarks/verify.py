"""Memory and time of a forward check of one layer of real size: `python -m benchmarks.verify`.

Makes a one-layer Mixtral (hidden 4096, intermediate 14336, 8 experts) in bfloat16, converts it to
the GMM layout, checks its layer, and prints resident memory above what importing mindspore, torch
and transformers takes.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import ckptforge
from benchmarks.model import make, sizes_of


def resident() -> float:
    """MB of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1000
    raise SystemExit("no RssAnon in /proc/self/status")


def main() -> None:
    import mindspore
    import torch
    from transformers.models.mixtral import modeling_mixtral

    from ckptforge.verbs.verify import verify

    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        hub, gmm = Path(work) / "hub", Path(work) / "gmm.ckpt"
        if os.fork() == 0:  # in a process of its own, so that its memory doesn't count
            make(hub, sizes_of(3.0, real=True))
            ckptforge.to_ms(hub, gmm, layout="gmm")
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the model couldn't be made")
        base, peak, stop = resident(), [0.0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.01):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.monotonic()
        found = verify(hub, gmm, layers=[0], tokens=32)
        seconds = time.monotonic() - began
        stop.set()
        watcher.join()
        del mindspore, torch, modeling_mixtral
    layer = found.layers[0]
    print(
        f"passed: {found.passed}; worst token {layer.worst:.1e}; tokens by expert {layer.reached}"
    )
    print(
        f"{seconds:.1f} s; anonymous memory {peak[0] - base:.0f} MB above the {base:.0f} MB of "
        "the imports"
    )
    print(
        "peak resident, imports and mapped files included: "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB"
    )


if __name__ == "__main__":
    main()
