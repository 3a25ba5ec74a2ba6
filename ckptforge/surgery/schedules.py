"""How much each of the last checkpoints of a run counts in their average."""

from __future__ import annotations

import math
from itertools import pairwise

from ckptforge.errors import UsageError
from ckptforge.spelling import option
from ckptforge.wording import nearest

SCHEDULES = ("uniform", "ema:DECAY", "minus-sqrt")


def schedule_weights(schedule: str, count: int) -> tuple[float, ...]:
    """The weights of `count` checkpoints, the oldest first, which add up to 1.

    `uniform`: all alike. `ema:d`: an exponential moving average that begins with the oldest and
    gives each later one 1 - d. `minus-sqrt`: what a learning rate that decays as 1 - √x would have
    made of the steps in between (Tian et al., "WSM: Decay-Free Learning Rate Schedule via
    Checkpoint Merging", 2025; the weights are those of Megatron-LM's weighted_merge.py). Raises
    `UsageError` for another schedule.
    """
    name, _, argument = schedule.partition(":")
    if name == "uniform" and not argument:
        return (1 / count,) * count
    if name == "minus-sqrt" and not argument:
        rate = [1 - math.sqrt(i / count) for i in range(count)] + [0.0]
        return tuple(one - after for one, after in pairwise(rate))
    if name == "ema":
        decay = _decay(schedule, argument)
        later = [(1 - decay) * decay ** (count - 1 - i) for i in range(1, count)]
        return (decay ** (count - 1), *later)
    near = nearest(name, ["uniform", "ema", "minus-sqrt"])
    raise UsageError(f"{option('schedule', schedule)}: expected {', '.join(SCHEDULES)}.{near}")


def _decay(schedule: str, text: str) -> float:
    try:
        decay = float(text)
    except ValueError:
        decay = math.nan
    if not 0 <= decay < 1:
        raise UsageError(
            f"{option('schedule', schedule)}: expected a decay from 0 to below 1, such as ema:0.9."
        )
    return decay
