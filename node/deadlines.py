"""What becomes of processes whose deadlines have passed: failed, or back in the queue.

`scheduler` knows which are late, `store.processes` the transactions; the clock is the node's.
"""

from __future__ import annotations

from collections.abc import Callable

from node.model import Process, State
from node.processes import Processes
from node.store import processes as store


async def expire(processes: Processes) -> None:
    """Deal with every deadline that has passed; what could not be dealt with comes up again.

    So does every hand-out of which nobody knows whether it happened (`HandOut.look_again`).
    Raises the last exception that kept one from being dealt with: none keeps the others waiting.
    """
    now = processes.now()
    failure: Exception | None = None
    for entry in processes.queue.overdue(now):
        try:
            await processes.change_quietly(
                entry.colony, entry.processid, _step(processes, _late_start)
            )
        except Exception as error:
            processes.queue.again(entry)
            failure = error
    for colony, processid, _ in processes.running.overdue(now):
        try:
            await processes.change_quietly(colony, processid, _step(processes, _late_end))
        except Exception as error:
            processes.running.again(processid)
            failure = error
    try:
        await processes.handout.look_again()
    except Exception as error:
        failure = error
    if failure is not None:
        raise failure


def _step(
    processes: Processes, decide: Callable[[Process, int, int], store.Step | None]
) -> Callable[[Process, int], store.Step | None]:
    return lambda process, revision: decide(process, revision, processes.now())


def _late_start(process: Process, revision: int, now: int) -> store.Step | None:
    # What a peer has ends by the deadlines of its forward.
    away = process.peer and not process.waitforparents
    if process.state != State.WAITING or away or not 0 < process.waitdeadline < now:
        return None
    errors = ["Maximum waiting time limit exceeded"]
    return store.close(process, revision, State.FAILED, now, errors=errors)


def _late_end(process: Process, revision: int, now: int) -> store.Step | None:
    if process.state != State.RUNNING or not 0 < process.execdeadline < now:
        return None
    if -1 < process.spec.maxretries <= process.retries:
        errors = ["Maximum execution time limit exceeded"]
        return store.close(process, revision, State.FAILED, now, errors=errors)
    return store.requeue(process, revision, now, counts=True)
