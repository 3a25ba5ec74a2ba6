"""Runs one command and writes what it took: `python -I -S launcher.py RESULT TOUCH [FILE...] --
COMMAND...`.

Linux counts the memory of the process that forked into the peak of the command it becomes
(`ru_maxrss` outlives exec), so a command is started from here, where almost nothing is imported:
what Python takes by itself, some 9 MB, is all that can hide a peak.

Before that the FILEs are read, so that the page cache holds them, and TOUCH bytes of memory are
touched by a process that ends at once: under a host that takes free memory back, the command then
finds it there and doesn't wait for it page by page.
"""

import mmap
import os
import sys
import time

_PAGE = mmap.PAGESIZE
_AT_ONCE = 1 << 28


def touch(nbytes: int) -> None:
    """Touches every page of so much fresh memory, and gives it back to the system."""
    child = os.fork()
    if not child:
        held = []
        for _ in range(nbytes // _AT_ONCE):
            memory = mmap.mmap(-1, _AT_ONCE)
            memory[::_PAGE] = bytes(_AT_ONCE // _PAGE)
            held.append(memory)
        os._exit(0)
    os.waitpid(child, 0)


def read(path: str) -> None:
    buffer = mmap.mmap(-1, 1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    end = sys.argv.index("--")
    result, nbytes, files, command = (
        sys.argv[1],
        int(sys.argv[2]),
        sys.argv[3:end],
        sys.argv[end + 1 :],
    )
    for path in files:
        read(path)
    touch(nbytes)
    began = time.monotonic()
    child = os.fork()
    if not child:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    taken = (
        os.waitstatus_to_exitcode(status),
        wall,
        usage.ru_utime,
        usage.ru_stime,
        usage.ru_maxrss * 1024,
        usage.ru_inblock * 512,
    )
    with open(result, "w") as file:
        file.write(" ".join(map(str, taken)))


main()
