"""When faults happen that pass."""


def now_and_then(kind, every=3, most=5):
    """For servers here: each third request has this fault, so many in all. These are fewer than are
    tried again, so that also one request that they all strike, while others go on, survives."""
    left = iter(range(most))
    return lambda number, *_: kind if number % every == 1 and next(left, -1) >= 0 else None
