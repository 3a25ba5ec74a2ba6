"""The process that MindFormers runs in: reads a request from each line of its standard input, and
answers each with a line of JSON.

    python -m tests.mindformers_oracle.process WHEEL
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import Any

import mindspore

from tests.mindformers_oracle import layouts, world
from tests.mindformers_oracle.imports import import_checkpoint
from tests.mindformers_oracle.jobs import Job


def main(wheel: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MindFormers logs to the standard output
    logging.disable(logging.WARNING)  # it says much, and looks at the stack for each line
    world.install()
    layouts.install()
    import_checkpoint(wheel)
    for line in sys.stdin:
        try:
            answer = {"result": carry_out(json.loads(line))}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def carry_out(request: dict[str, Any]) -> Any:
    from tests.mindformers_oracle.load import load
    from tests.mindformers_oracle.save import save

    job = Job.from_json(request.pop("job"))
    mode = mindspore.PYNATIVE_MODE if job.pynative else mindspore.GRAPH_MODE
    mindspore.set_context(mode=mode, device_target="CPU")
    return {"load": load, "save": save}[request.pop("do")](job=job, **request)


if __name__ == "__main__":
    main(sys.argv[1])
