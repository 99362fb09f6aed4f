"""Deadlines of processes: a late process fails, or goes back into the queue.

`processes.queue` knows which are late, `store.work.processes` has the transactions; the clock is
the node's.
"""

from __future__ import annotations

from functools import partial

from node.model.types import Process, State
from node.processes.assignment import Assigner
from node.processes.service import Processes
from node.store.work import processes as store


async def expire(processes: Processes, assigner: Assigner) -> None:
    """End or put back every process whose deadline has passed.

    A process that could not be changed comes up again at the next call, and keeps no other one
    waiting; the same holds for uncertain assignments (`Assigner.look_again`). Raises the last
    exception.
    """
    now = processes.clock.steady()
    failure: Exception | None = None
    for entry in processes.queue.overdue(now):
        late = partial(_late_start, processes, entry.waiting.waitdeadline)
        try:
            await processes.change_quietly(entry.colony, entry.processid, late)
        except Exception as error:
            processes.queue.again(entry)
            failure = error
    for colony, processid, running in processes.running.overdue(now):
        late = partial(_late_end, processes, running.execdeadline)
        try:
            await processes.change_quietly(colony, processid, late)
        except Exception as error:
            processes.running.again(processid)
            failure = error
    try:
        await assigner.look_again()
    except Exception as error:
        failure = error
    if failure is not None:
        raise failure


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
