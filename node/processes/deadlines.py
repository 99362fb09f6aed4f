"""Deadlines of processes: a late process fails, or goes back into the queue.

`processes.queue` knows which are late, `store.work.processes` has the transactions; the clock is
the node's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial

import trio

from node.etcd.errors import EtcdUnavailable
from node.model.types import Process, Running, State
from node.processes.assignment import Assigner
from node.processes.queue import QueueEntry
from node.processes.service import Processes
from node.store.work import processes as store

# Late processes that are changed at the same time.
_AT_ONCE = 32

# Colony and id of a late process, the transition that ends it, and what lets it come up again.
_Late = tuple[str, str, Callable[[Process, int], store.Transition | None], Callable[[], None]]


async def expire(processes: Processes, assigner: Assigner) -> None:
    """End or put back every process whose deadline has passed, several at the same time.

    Running processes come first, also those that become late meanwhile: their executors may be
    gone. A process that could not be changed comes up again at the next call, and keeps no other
    one waiting; the same holds for uncertain assignments (`Assigner.look_again`). If the store is
    away, the rest comes up at the next call, too. Raises EtcdUnavailable then; otherwise the first
    exception.
    """
    failure: Exception | None = None
    failed: list[Callable[[], None]] = []
    late = _late(processes)
    workers = 1

    async def work() -> None:
        nonlocal failure, workers
        for colony, processid, step, again in late:
            if workers < _AT_ONCE:
                # One more for each process: mostly nothing is late.
                workers += 1
                nursery.start_soon(work)
            try:
                await processes.change_quietly(colony, processid, step)
            except EtcdUnavailable as error:
                failed.append(again)
                failure = error
                late.close()  # the others would run into their timeouts, too
            except Exception as error:
                failed.append(again)
                failure = failure or error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
    for again in failed:
        again()
        await trio.lowlevel.checkpoint()
    try:
        await assigner.look_again()
    except Exception as error:
        failure = failure or error
    if failure is not None:
        raise failure


def _late(processes: Processes) -> Generator[_Late]:
    """Return the late processes: at each step a running one, as long as there is one.

    Those that are left when nobody wants any more come up again.
    """
    queue, running, steady = processes.queue, processes.running, processes.clock.steady
    now, waiting, runs = steady(), deque[QueueEntry](), deque[tuple[str, str, Running]]()
    try:
        while True:
            if not runs:
                runs.extend(running.overdue(steady()))
            if not runs and not waiting:
                waiting.extend(queue.overdue(now))
            if runs:
                colony, processid, run = runs.popleft()
                step = partial(_late_end, processes, run.execdeadline)
                yield colony, processid, step, partial(running.again, processid)
            elif waiting:
                entry = waiting.popleft()
                step = partial(_late_start, processes, entry.waiting.waitdeadline)
                yield entry.colony, entry.processid, step, partial(queue.again, entry)
            else:
                return
    finally:
        for _, processid, _ in runs:
            running.again(processid)
        for entry in waiting:
            queue.again(entry)


def _late_start(
    processes: Processes, deadline: int, process: Process, revision: int
) -> store.Transition | None:
    """End a process that waits past its `deadline` (Unix ns, as stored), unless that has changed
    since.

    The wall clock is not read: it may have been set since the deadline was given.
    """
    # A process with a peer ends by the deadlines of its forward.
    away = process.peer and not process.waitforparents
    if process.state != State.WAITING or away or process.waitdeadline != deadline:
        return None
    errors = ["Maximum waiting time limit exceeded"]
    return store.close(process, revision, State.FAILED, processes.clock.now(), errors=errors)


def _late_end(
    processes: Processes, deadline: int, process: Process, revision: int
) -> store.Transition | None:
    """End a process that runs past its deadline, or put it back; otherwise as `_late_start`."""
    if process.state != State.RUNNING or process.execdeadline != deadline:
        return None
    now = processes.clock.now()
    if -1 < process.spec.maxretries <= process.retries:
        errors = ["Maximum execution time limit exceeded"]
        return store.close(process, revision, State.FAILED, now, errors=errors)
    return store.requeue(process, revision, now, counts=True)
