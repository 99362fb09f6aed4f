"""Calls about log lines of processes and executors."""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from colonyd.errors import Denied, Invalid, NotFound
from node.etcd.pages import Rows, in_memory
from node.etcd.pressure import Need
from node.handlers.work.processes import locate
from node.model.types import DAY, Int64, Log
from node.processes.service import require_assigned
from node.rpc import requests as req
from node.rpc.calls import ASSIGNED, SELF, Caller, Calls, Who, every
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store import keys
from node.streams import logs as logs

MAX_COUNT = 500
MAX_FOUND = 100
_LIGHT = 4  # lines that any member may read at any time, however long they are
MAX_DAYS = 30


class SearchLogs(msgspec.Struct):
    colonyname: str
    text: str = ""
    days: Int64 = 0
    count: Int64 = 0


def _is_heavy(request: req.GetLogs) -> bool:
    return request.count > _LIGHT


calls: Calls[Node] = Calls("Logs")


async def rows(node: Node, prefix: str, request: req.GetLogs) -> Rows:
    some, now = False, node.clock.now()
    count, since, latest = request.count, request.since, request.latest
    begins, last = await _times(node, request)
    lines = logs.lines(
        node.client, prefix, count, since=since, now=now, latest=latest, begins=begins, last=last
    )
    async with aclosing(lines) as pages:
        async for page in pages:
            some = True
            yield page
    if some:
        return
    # Nothing was logged, or there is nothing that could have been.
    if request.executorname:
        node.members.executor(request.colonyname, request.executorname)
    elif await node.processes.load(request.colonyname, request.processid) is None:
        raise NotFound(f"processid: no process {request.processid[:80]!r} in the colony")


async def _times(node: Node, request: req.GetLogs) -> tuple[list[int], int]:
    """Return times at which the first line may have come, and when the last one may have (Unix ns,
    0 if that is not known).
    """
    if request.executorname:
        executors = node.directory.roster(request.colonyname).executors
        if request.executorname in executors:
            executor = node.members.executor(request.colonyname, request.executorname)
            return [executor.commissiontime], executor.lastheardfromtime
    elif request.latest or request.since <= 0:
        known = await node.processes.glance(request.colonyname, request.processid)
        if known is not None:
            return [known.submissiontime, known.starttime], known.endtime
    return [], 0


@calls.row("addlogmsg", req.AddLog, Who.SIGNED, rights=ASSIGNED, once=Once.TOGETHER)
async def add(node: Node, caller: Caller, request: req.AddLog) -> None:
    """Log a line about a process."""
    process = await locate(node, caller, request.processid)
    require_assigned(process, caller.id)
    executor = node.directory.executor_of(process.colonyname, caller.id)
    if executor is None:
        raise Denied("only the assigned executor may log")
    node.processes.quotas.count_line(process.processid)
    await logs.write(
        node.client,
        Log(
            process.processid,
            process.colonyname,
            executor.executorname,
            request.message,
            node.clock.tick(),
        ),
    )
    if process.origin:
        node.processes.hooks.progressed(process)


@calls.row("addexecutorlogmsg", req.AddExecutorLog, Who.MEMBER, rights=SELF, once=Once.TOGETHER)
async def add_executor(node: Node, caller: Caller, request: req.AddExecutorLog) -> None:
    """Log a line about the calling executor."""
    if caller.executor.executorname != request.executorname:
        raise Denied("executorname: an executor may log for itself only")
    name, message = request.executorname, request.message
    line = Log("", request.colonyname, name, message, node.clock.tick())
    await logs.write(node.client, line)


@calls.row("getlogsmsg", req.GetLogs, Who.MEMBER, reply="Log[]", heavy=_is_heavy)
async def get(node: Node, caller: Caller, request: req.GetLogs) -> Rows:
    """List lines of a process or an executor, oldest first."""
    if not 0 <= request.count <= MAX_COUNT:
        raise Denied(f"count: between 0 and {MAX_COUNT}")
    if request.executorname:
        prefix = keys.executor_logs(request.colonyname, request.executorname)
    elif request.processid and "/" not in request.processid:
        prefix = keys.process_logs(request.colonyname, request.processid)
    else:
        raise NotFound("processid or executorname: one is needed")
    return rows(node, prefix, request)


@calls.row(
    "searchlogsmsg", SearchLogs, Who.MEMBER, reply="Log[]", need=Need.FREES, heavy=every, reads=True
)
async def search(node: Node, caller: Caller, request: SearchLogs) -> Rows:
    """List lines that contain a text."""
    if not 0 <= request.count <= MAX_FOUND:
        raise Invalid(f"count: between 0 and {MAX_FOUND}")
    if not 0 <= request.days <= MAX_DAYS:
        raise Invalid(f"days: between 0 and {MAX_DAYS}")
    if request.count == 0 or request.days == 0:
        return in_memory([])
    until = node.clock.tick()
    since = until - request.days * DAY
    colony, text = request.colonyname, request.text
    return logs.search(node.client, colony, text, request.count, since=since, until=until)
