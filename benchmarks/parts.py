"""What the parts of a conversion take by themselves, on one thread: `python -m benchmarks.parts
[--gigabytes 1.5]`.

Of as many bytes: reading them from the page cache, hashing, casting and transposing them in pieces
that are in the processor's caches, making FP8 codes of them and numbers of codes, writing them into
a new file, having the kernel copy them, and bringing them to the disk. Each in a process of its
own, with its memory at hand, in turns; the seconds are those of the part. With
CKPTFORGE_KERNELS=off numpy does what is compiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from benchmarks.measurement import measure, show, succeeded
from ckptforge.dtypes import BY_NAME
from ckptforge.run.buffers import Buffers
from ckptforge.run.casts import cast_function, numpy_dtype
from ckptforge.run.pieces import PIECE_BYTES
from ckptforge.run.transpose import copy_strided
from ckptforge.steps.code_tables import Tables
from ckptforge.steps.encoded import CODES, Encoded
from ckptforge.transfers import Transfer

SIDE, BLOCK = 1024, 128


def read(source: Path, target: Path) -> None:
    (buffer,) = Buffers().lend((PIECE_BYTES, 0))
    with source.open("rb", buffering=0) as file:
        while file.readinto(buffer.data):
            pass


def compute(source: Path, work: Callable[[], object], nbytes: int) -> None:
    for _ in range(source.stat().st_size // nbytes):
        work()


def hash_(source: Path, target: Path) -> None:
    data, state = np.ones(PIECE_BYTES, np.uint8), xxhash.xxh3_128()
    compute(source, lambda: state.update(data), data.nbytes)


def cast(source: Path, target: Path) -> None:
    dtypes = BY_NAME["bfloat16"], BY_NAME["float16"]
    # as in the synthetic model
    numbers = np.random.default_rng(0).standard_normal(PIECE_BYTES // 2, np.float32) * np.float32(
        0.1
    )
    data = numbers.astype(numpy_dtype(dtypes[0]))
    out = np.empty(data.size, np.float16)
    compute(source, lambda: cast_function(*dtypes)(data, out), data.nbytes)


def transpose(source: Path, target: Path) -> None:
    data, out = np.ones(SIDE * SIDE, np.uint16), np.empty(SIDE * SIDE, np.uint16)
    turned = Transfer((SIDE, SIDE), 0, (1, SIDE), 0, (SIDE, 1))
    compute(source, lambda: copy_strided(data, out, turned), data.nbytes)


def encode(source: Path, target: Path) -> None:
    numbers = np.random.default_rng(0).standard_normal((BLOCK, 8 * BLOCK), np.float32)
    data = numbers.astype(numpy_dtype(BY_NAME["bfloat16"]))
    parts = [
        Encoded(code=CODES["fp8-block128"], part=part, shape=data.shape, source=BY_NAME["bfloat16"])
        for part in ("codes", "scales")
    ]
    into = [(parts[0], np.empty(data.size, np.uint8)), (parts[1], np.empty(4 * 8, np.uint8))]
    compute(source, lambda: parts[0].encode(data, "x", into), data.nbytes)


def decode(source: Path, target: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, BLOCK * 8 * BLOCK).astype(np.uint8)
    stood = np.random.default_rng(1).standard_normal((1, 8, 256), np.float32)
    tables = Tables(stood, BY_NAME["float32"], BY_NAME["bfloat16"])
    rows, blocks = np.zeros(BLOCK, np.intp), np.repeat(np.arange(8), BLOCK)
    out = np.empty(codes.size, numpy_dtype(BY_NAME["bfloat16"]))
    compute(source, lambda: tables.decode(codes, rows, blocks, out), out.nbytes)


def write(source: Path, target: Path) -> None:
    (buffer,) = Buffers().lend((PIECE_BYTES, 0))
    buffer[:] = 1
    with target.open("wb", buffering=0) as file:
        for _ in range(source.stat().st_size // PIECE_BYTES):
            file.write(buffer.data)


def kernel_copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as out:
        while os.copy_file_range(file.fileno(), out.fileno(), 1 << 30):
            pass


def write_sync(source: Path, target: Path) -> None:
    write(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


PARTS = {
    "read": read,
    "hash (XXH3)": hash_,
    "cast bfloat16 → float16": cast,
    f"transpose {SIDE} × {SIDE}, 2 bytes": transpose,
    "encode bfloat16 → FP8": encode,
    "decode FP8 → bfloat16": decode,
    "write": write,
    "write, fsync": write_sync,
    "copy_file_range": kernel_copy,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--part",
        nargs=3,
        metavar=("NAME", "SOURCE", "TARGET"),
        help="does one, and prints its seconds",
    )
    args = parser.parse_args()
    if args.part:
        name, source, target = args.part
        began = time.monotonic()
        PARTS[name](Path(source), Path(target))
        print(time.monotonic() - began)
        return
    taken: dict[str, list[float]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory(prefix="ckptforge-benchmark-") as work:
        source, target = Path(work) / "source", Path(work) / "target"
        nbytes = round(args.gigabytes * 1e9) // PIECE_BYTES * PIECE_BYTES
        with source.open("wb") as file:
            for _ in range(nbytes // PIECE_BYTES):
                file.write(os.urandom(PIECE_BYTES))
        for _ in range(args.repeats):
            for name in PARTS:
                target.unlink(missing_ok=True)
                os.sync()
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.parts",
                    "--part",
                    name,
                    str(source),
                    str(target),
                ]
                taken[name] += [
                    float(run.stdout)
                    for run in succeeded([measure(command, [source], nbytes + 10**9)])
                ]

    def rows(name: str, seconds: list[float]) -> list[str]:
        if not seconds:
            return [name, "failed", "", ""]
        middle = statistics.median(seconds)
        return [
            name,
            f"{middle:#.3g}",
            f"{min(seconds):#.3g}–{max(seconds):#.3g}",
            f"{nbytes / 1e9 / middle:#.3g}",
        ]

    show(
        [f"{nbytes / 1e9:.2f} GB", "s", "min–max", "GB/s"], (rows(*item) for item in taken.items())
    )


if __name__ == "__main__":
    main()
