"""The ranks of a job, as threads of one process that run one at a time: a rank runs until it waits
for the others, so nothing needs to be safe for threads."""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import mindspore.communication
import mindspore.mint.distributed
import mindspore.runtime


class Current(threading.local):
    """The rank that a thread is. Before a job runs, MindFormers sees one rank of one."""

    def __init__(self) -> None:
        self.rank, self.round, self.world = 0, 0, World(1)


class World:
    """So many ranks, and what they tell one another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._turn = threading.Lock()
        self._barrier = threading.Barrier(size)
        self._told: defaultdict[int, dict[int, bytes]] = defaultdict(dict)

    def run(self, do: Callable[[int], Any]) -> list[Any]:
        """What `do` gives for each rank. Raises what the rank raised that failed first."""
        results: list[Any] = [None] * self.size
        raised: list[BaseException] = []

        def work(rank: int) -> None:
            current.world, current.rank, current.round = self, rank, 0
            try:
                with self._turn:
                    results[rank] = do(rank)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                raised.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]
        return results

    def tell_all(self, value: Any) -> list[Any]:
        """What every rank said in this round. Values are pickled, as they would be for the way."""
        told = self._told[current.round]
        current.round += 1
        told[current.rank] = pickle.dumps(value)
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        return [pickle.loads(told[rank]) for rank in range(self.size)]


current = Current()


def install() -> None:
    """Has MindSpore's functions for communication speak to the `World` that runs. To be called
    before MindFormers is imported, whose modules import them by name."""

    def gather_object(value: Any, values: list[Any] | None = None, dst: int = 0) -> None:
        told = current.world.tell_all(value)
        if current.rank == dst and values is not None:
            values[:] = told

    def all_gather_object(values: list[Any], value: Any) -> None:
        values[:] = current.world.tell_all(value)

    def scatter_object_list(received: list[Any], values: list[Any] | None, src: int = 0) -> None:
        received[0] = current.world.tell_all(values)[src][current.rank]

    def barrier() -> None:
        current.world.tell_all(None)

    for module in (mindspore.communication, mindspore.communication.management):
        module.get_rank = module.get_local_rank = lambda: current.rank
        module.get_group_size = lambda: current.world.size
    for function in (gather_object, all_gather_object, scatter_object_list, barrier):
        setattr(mindspore.mint.distributed, function.__name__, function)
    mindspore.communication.comm_func.barrier = barrier
    mindspore.runtime.synchronize = lambda: None
