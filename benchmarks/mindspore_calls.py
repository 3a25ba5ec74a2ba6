"""One call of MindSpore's in a process of its own: prints the seconds that it took without the
imports, as the last line.

`python mindspore_calls.py FUNCTION ARGUMENTS WORDS OUT`: lists and keywords in JSON; OUT is a
directory to be made first.
"""

import json
import os
import sys
import time

import mindspore


def load_and_save(source: str, target: str) -> None:
    mindspore.save_checkpoint(mindspore.load_checkpoint(source), target)


if __name__ == "__main__":  # unified_safetensors starts processes, which may import this
    name, arguments, words, out = sys.argv[1:]
    call = load_and_save if name == "load_and_save" else getattr(mindspore, name)
    os.makedirs(out)
    began = time.monotonic()
    call(*json.loads(arguments), **json.loads(words))
    print(f"\n{time.monotonic() - began}")
