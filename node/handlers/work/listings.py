"""Listings of processes: selected by what is known without reading them, in pages.

Waiting and running processes are in memory, the others under the keys of closed processes. The
caller checks rights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import islice

import trio

from colonyd.errors import Invalid
from node.etcd.client import EtcdClient
from node.etcd.pages import LOOK, Pages, Rows, below, newest_first, values
from node.model.codec import unpack, wire_process
from node.model.types import SECOND, Closed, Process, Running, State
from node.processes.queue import QueueEntry
from node.processes.service import Processes
from node.rpc import requests as req
from node.store import keys
from node.store.work import processes as store

MAX_COUNT = 100
# Processes that one look back may return; more is refused.
MAX_HISTORY = 20_000


async def waiting(
    processes: Processes, colony: str, field: str = "", value: str = ""
) -> Pages[QueueEntry]:
    """Return the processes that wait for executors or for other processes, in order, in pages.

    Only those with a value in a field of `store.FILTERS`, if one is given. A process that comes
    meanwhile is included if its place is behind the page before.
    """
    kind, initiator, label = (value if field == each else "" for each in store.FILTERS)
    last: QueueEntry | None = None
    while True:
        order = processes.queue.in_order(
            colony, executortype=kind, label=label, initiator=initiator, after=last
        )
        page = list(islice(order, LOOK))
        if not page:
            return
        yield page
        last = page[-1]
        await trio.lowlevel.checkpoint()


async def running(processes: Processes, colony: str) -> Pages[tuple[str, Running]]:
    """Return running processes, as process ids and marks, by start time, in pages."""
    last: tuple[str, Running] | None = None
    while page := list(islice(processes.running.in_order(colony, last), LOOK)):
        yield page
        last = page[-1]
        await trio.lowlevel.checkpoint()


async def matching(processes: Processes, request: req.GetProcesses, now: int) -> list[str]:
    """Return the ids of processes in one state, at most as many as requested; `now` in Unix ns.

    Waiting ones by priority, and then those that wait for another colony to take them; running ones
    by start, closed ones the newest first. Raises Invalid and EtcdError.
    """
    colony, limit = request.colonyname, request.count
    if not 0 <= limit <= MAX_COUNT:
        raise Invalid(f"count: between 0 and {MAX_COUNT}")
    if not 0 <= request.state <= State.CANCELLED:
        raise Invalid("state: 0 waiting, 1 running, 2 successful, 3 failed or 4 cancelled")
    if limit == 0:
        return []
    found = list[str]()
    field, value = wanted(request)
    if request.state == State.WAITING:
        async with aclosing(waiting(processes, colony, field, value)) as entries:
            async for page in entries:
                found += [entry.processid for entry in page]
                if len(found) >= limit:
                    break
        if len(found) < limit and colony == processes.hooks.home:
            found += await _outgoing(processes, request, limit - len(found))
    elif request.state == State.RUNNING:
        async with aclosing(running(processes, colony)) as runs:
            async for marks in runs:
                found += [pid for pid, run in marks if not field or getattr(run, field) == value]
                if len(found) >= limit:
                    break
    else:
        await _closed(processes.client, request, now, found)
    return found[:limit]


async def _outgoing(processes: Processes, request: req.GetProcesses, limit: int) -> list[str]:
    """Return at most `limit` processes that wait for another colony to take them, the first that
    came first: they are in no queue here. With a filter, some of very many only.
    """
    known = (processes.queue.entries, processes.running.entries)
    away = (pid for pid in processes.hooks.away() if not any(pid in each for each in known))
    names = [keys.process(request.colonyname, pid) for pid in islice(away, LOOK)]
    found = list[str]()
    async with aclosing(values(processes.client, names)) as pages:
        async for page in pages:
            for process in (unpack(kv.value, Process) for kv in page):
                if process.state == State.WAITING and is_wanted(request, process):
                    found.append(process.processid)
            if len(found) >= limit:
                break
    return found[:limit]


async def _closed(
    client: EtcdClient, request: req.GetProcesses, now: int, found: list[str]
) -> None:
    """Find closed processes: by the index of their fields, once that is complete."""
    colony, state, limit = request.colonyname, request.state, request.count
    field, value = wanted(request)
    indexed = field and await client.get(keys.closed_by_complete(colony)) is not None
    if indexed:
        prefix = keys.closed_by(colony, state, field, value)
    else:
        prefix = keys.closed_prefix(colony, state)
    # Without the index, most are passed over.
    size = limit if indexed or not field else 500
    async with aclosing(newest_first(client, prefix, now, -1, limit=size)) as pages:
        async for page in pages:
            for kv in page:
                if indexed or not field or getattr(unpack(kv.value, Closed), field) == value:
                    found.append(kv.key.rpartition("/")[2])
            if len(found) >= limit:
                return


def wanted(request: req.GetProcesses) -> tuple[str, str]:
    """Return the filter of a request, as field and value, or two empty strings."""
    values = (request.executortype, request.initiator, request.label)
    given = zip(store.FILTERS, values, strict=True)
    return next((each for each in given if each[1]), ("", ""))


def is_wanted(request: req.GetProcesses, process: Process) -> bool:
    """Return whether a process matches the filter of a request: keys only have a digest of the
    value.
    """
    field, value = wanted(request)
    return not field or getattr(store.closed_of(process), field) == value


async def wired(
    processes: Processes,
    colony: str,
    ids: Sequence[str],
    accept: Callable[[Process], bool] = lambda process: True,
) -> Rows:
    """Return the rows of the processes that still exist and are accepted, in the order of the
    ids.
    """
    names = [keys.process(colony, processid) for processid in ids]
    async with aclosing(values(processes.client, names)) as pages:
        async for page in pages:
            found = [unpack(kv.value, Process) for kv in page]
            yield [wire_process(process) for process in found if accept(process)]


# -- looking back ----------------------------------------------------------------------------------


async def submitted_since(processes: Processes, request: req.GetProcessHistory, now: int) -> Rows:
    """Return the rows of the processes in one state that were submitted in the last seconds, oldest
    first.

    Only those of one executor, if it is given. `now` in Unix ns. Raises Invalid for too many of
    them, and EtcdError.
    """
    colony, since = request.colonyname, now - request.seconds * SECOND
    found: list[tuple[int, str]] = []
    unknown: list[str] = []
    async with aclosing(_candidates(processes, request, since, now)) as pages:
        async for page in pages:
            for submissiontime, processid in page:
                if not submissiontime:
                    unknown.append(processid)
                elif submissiontime > since:
                    found.append((submissiontime, processid))
            _demand_few(len(found) + len(unknown))
    # Their marks are of an earlier version, without times.
    names = [keys.process(colony, processid) for processid in unknown]
    async for kvs in values(processes.client, names):
        for process in (unpack(kv.value, Process) for kv in kvs):
            if process.submissiontime > since:
                found.append((process.submissiontime, process.processid))
    _demand_few(len(found))
    found.sort()

    def accept(process: Process) -> bool:
        return process.state == request.state and request.executorid in (
            "",
            process.assignedexecutorid,
        )

    return wired(processes, colony, [processid for _, processid in found], accept)


def _demand_few(count: int) -> None:
    if count > MAX_HISTORY:
        raise Invalid(
            f"seconds: more than {MAX_HISTORY} processes in this state since then; ask for fewer"
            " seconds, or for one executor"
        )


async def _candidates(
    processes: Processes, request: req.GetProcessHistory, since: int, now: int
) -> Pages[tuple[int, str]]:
    """Return submission time (Unix ns; 0: not known) and id of processes that may match, in
    pages.
    """
    colony, executorid = request.colonyname, request.executorid
    if request.state == State.WAITING:
        if executorid:
            return
        async with aclosing(waiting(processes, colony)) as order:
            async for entries in order:
                yield [(e.waiting.submitted(e.prioritytime), e.processid) for e in entries]
        if colony == processes.hooks.home:
            away = list(processes.hooks.away())
            for start in range(0, len(away), LOOK):
                yield [(0, processid) for processid in away[start : start + LOOK]]
    elif request.state == State.RUNNING and executorid:
        known = processes.running.entries
        mine = processes.running.of_executor(colony, executorid)
        yield [(known[processid][1].submissiontime, processid) for processid in mine]
    elif request.state == State.RUNNING:
        async with aclosing(running(processes, colony)) as runs:
            async for marks in runs:
                yield [(run.submissiontime, processid) for processid, run in marks]
    elif State.SUCCESSFUL <= request.state <= State.CANCELLED:
        ranby = store.checksum(executorid)
        # A process submitted after a time ended after it.
        prefix = keys.closed_prefix(colony, request.state)
        async with aclosing(newest_first(processes.client, prefix, now, since)) as pages:
            async for page in pages:
                closed = [(kv.key.rpartition("/")[2], unpack(kv.value, Closed)) for kv in page]
                yield [
                    (mark.submissiontime, processid)
                    for processid, mark in closed
                    if not executorid or not mark.submissiontime or mark.ranby == ranby
                ]


# -- removing --------------------------------------------------------------------------------------


async def to_remove(processes: Processes, colony: str, state: int, now: int) -> Pages[str]:
    """Return the ids of the processes in a state, or of all (-1), in pages; they may be removed
    meanwhile.

    Waiting ones are read, since some of them may be at other colonies: no index here has that.
    """
    client, prefix = processes.client, keys.processes(colony)
    if state in (-1, State.WAITING):
        found = below(client, prefix, keys_only=state == -1)
    else:
        found = newest_first(client, keys.closed_prefix(colony, state), now, -1)
    async with aclosing(found) as pages:
        async for page in pages:
            if state == State.WAITING:
                page = [kv for kv in page if unpack(kv.value, Process).state == state]
            yield [kv.key.rpartition("/")[2] for kv in page]
