"""Calls about processes: submit, assign, close, read, cancel, remove."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import Any

from colonyd.errors import Conflict, Denied, Invalid, NotFound, RpcError, TooMany
from node.etcd.pages import Rows
from node.etcd.pressure import Need
from node.etcd.txn import Put, Txn
from node.handlers.work import listings as listings
from node.http.delivery import carry
from node.model.codec import pack, unpack, wire_attribute, wire_process
from node.model.quantities import parse_cpu, parse_memory
from node.model.types import Attribute, Process, State
from node.processes.queue import Candidate
from node.processes.spec import attribute_id, build_process, id_for
from node.rpc import requests as req
from node.rpc.calls import ASSIGNED, MINE, Caller, Calls, Who, every, many
from node.rpc.dispatch import SMALL
from node.rpc.replay import LONGEST, Once, aside, look
from node.runtime.node import Node
from node.store import keys
from node.store.directory import name_of
from node.store.work import graphs as graphs
from node.store.work import processes as store

MAX_POLL = 3600
# Tries of one change, each with fresh values after a lost race. More mean that something is wrong.
_TRIES = 4


calls: Calls[Node] = Calls("Processes")


async def submitted(
    node: Node, caller: Caller, request: req.SubmitProcess, place: str
) -> dict[str, Any]:
    found = await node.client.get(place)
    if found is None:
        raise NotFound("nonce: the process that this request submitted was removed")
    return wire_process(unpack(found.value, Process))


@calls.row(
    "submitfuncspecmsg",
    req.SubmitProcess,
    Who.SIGNED,
    reply="Process",
    rights="member of the colony in spec.conditions, or of the home colony for a peer's",
    once=Once.TOGETHER,
    again=submitted,
    keeps=True,
)
async def submit_spec(node: Node, caller: Caller, request: req.SubmitProcess) -> dict[str, Any]:
    """Submit a function spec; an equal submit with a nonce returns the first process.

    It goes to a hosted colony, or to the trusted peer that the spec names.
    """
    spec = request.spec
    colony, peer = spec.conditions.colonyname, ""
    if node.directory.colony(colony) is None:
        colony, peer = node.home, node.processes.hooks.peer_of(colony) or ""
    member = node.directory.member(colony, caller.id)
    if member is None or (colony != spec.conditions.colonyname and not peer):
        name = spec.conditions.colonyname[:80]
        if member is not None:
            if several := node.processes.hooks.ambiguity(spec.conditions.colonyname):
                raise Conflict(f"spec.conditions.colonyname: {several}")
            found = await node.processes.hooks.stranger(spec.conditions.colonyname)
            raise NotFound(
                f"spec.conditions.colonyname: {name!r} is neither here nor a trusted peer"
                f"{'; ' if found else ''}{found}"
            )
        raise Denied(f"colony {name!r}: only its members may submit")
    process = build_process(
        spec,
        processid=id_for(caller.id, caller.nonce),
        initiatorid=caller.id,
        initiatorname=name_of(member),
        colonyname=colony,
        now=node.clock.now(),
        peer=peer,
        nonce=hashlib.sha256(caller.submission).hexdigest() if caller.nonce else "",
    )
    quotas, name = node.processes.quotas, process.initiatorname
    try:
        with quotas.processes(colony, name, [process.processid]):
            stored = await node.assigner.submit(process, caller.submission)
    except TooMany:
        # A repeat of a request that was served is answered all the same.
        known = await node.processes.load(colony, process.processid) if caller.nonce else None
        if known is None:
            raise
        stored = known[0]
    if stored.nonce != process.nonce:
        raise Denied("nonce: used already for another submission")
    return wire_process(stored)


async def assigned(node: Node, caller: Caller, request: req.Assign, place: str) -> dict[str, Any]:
    found = await node.client.get(place)
    process = unpack(found.value, Process) if found is not None else None
    if (
        process is None
        or process.state != State.RUNNING
        or process.assignedexecutorid != caller.id
        or node.assigner.doubts(process.processid)
    ):
        raise NotFound("nonce: the process that this request was given is not the caller's now")
    carry(node.assigner.deliver(process))
    return wire_process(process)


@calls.row(
    "assignprocessmsg",
    req.Assign,
    Who.MEMBER,
    reply="Process",
    rights="approved executor",
    once=Once.TOGETHER,
    again=assigned,
    need=Need.WORKS,
    most=SMALL,
    polls=lambda request: request.timeout > 0,
)
async def assign(node: Node, caller: Caller, request: req.Assign) -> dict[str, Any]:
    """Take the next process, waiting for one."""
    if request.timeout == 0:
        raise Invalid("timeout: seconds to wait, or a negative number for none; 0 is neither")
    executor = caller.executor
    try:
        cpu = parse_cpu(request.availablecpu) if request.availablecpu else None
        mem = parse_memory(request.availablemem) if request.availablemem else None
    except ValueError as error:
        raise Invalid(f"availablecpu, availablemem: {error}") from None
    candidate = Candidate(
        request.colonyname,
        executor.executortype,
        executor.executorname,
        executor.locationname,
        cpu,
        mem,
    )
    await look()
    with aside():
        await node.members.heard_from(executor)
    timeout = min(request.timeout, LONGEST if caller.nonce else MAX_POLL)
    process = await node.assigner.assign(candidate, executor, timeout)
    carry(node.assigner.deliver(process))
    return wire_process(process)


@calls.row("getprocessmsg", req.ProcessById, Who.SIGNED, reply="Process", rights=MINE)
async def get(node: Node, caller: Caller, request: req.ProcessById) -> dict[str, Any]:
    """Show a process by id."""
    try:
        return wire_process(await locate(node, caller, request.processid))
    except NotFound:
        if "/" in request.processid:
            raise

    async def look(colony: str) -> Process | None:
        return await node.history_reader.find(colony, request.processid)

    found = await node.directory.seek(caller.id, look, "processid", request.processid)
    return wire_process(found)


@calls.row("getprocessesmsg", req.GetProcesses, Who.MEMBER, reply="Process[]", heavy=many)
async def get_many(node: Node, caller: Caller, request: req.GetProcesses) -> Rows:
    """List processes in one state."""
    if request.state == State.WAITING and not request.processgraphid:
        await node.processes.reading.demand_end()
    rows = await list_processes(node, request)
    return _told(node, caller, request.colonyname, request.state, rows)


@calls.row("getprocesshistmsg", req.GetProcessHistory, Who.MEMBER, reply="Process[]", heavy=every)
async def history(node: Node, caller: Caller, request: req.GetProcessHistory) -> Rows:
    """List processes of the last seconds in one state."""
    if request.state == State.WAITING and not request.executorid:
        await node.processes.reading.demand_end()
    rows = await listings.submitted_since(node.processes, request, node.clock.now())
    return _told(node, caller, request.colonyname, request.state, rows)


@calls.row(
    "setoutputmsg", req.Output, Who.SIGNED, rights=ASSIGNED, once=Once.TOGETHER, need=Need.WORKS
)
async def set_output(node: Node, caller: Caller, request: req.Output) -> None:
    """Set the output of a running process."""
    if not request.out:
        return
    colony = (await locate(node, caller, request.processid)).colonyname
    await node.processes.set_output(colony, request.processid, caller.id, request.out)


@calls.row(
    "closesuccessfulmsg",
    req.Output,
    Who.SIGNED,
    rights=ASSIGNED,
    once=Once.TOGETHER,
    need=Need.ENDS,
)
async def close_ok(node: Node, caller: Caller, request: req.Output) -> None:
    """Report success, with the output."""
    # Without a new output, the one that was set before the close stays.
    await _close(
        node,
        caller,
        request.processid,
        State.SUCCESSFUL,
        output=request.out or None,
        ended=lambda process: node.count_function(process, caller.id),
    )


@calls.row(
    "closefailedmsg",
    req.CloseFailed,
    Who.SIGNED,
    rights=ASSIGNED,
    once=Once.TOGETHER,
    need=Need.ENDS,
)
async def close_failed(node: Node, caller: Caller, request: req.CloseFailed) -> None:
    """Report failure, with errors."""
    await _close(node, caller, request.processid, State.FAILED, errors=request.errors)


async def _close(node: Node, caller: Caller, processid: str, state: State, **result: Any) -> None:
    colony = await colony_of(node, caller, processid)
    await node.settle(await node.processes.close(colony, processid, caller.id, state, **result))


@calls.row("cancelprocessmsg", req.ProcessById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def cancel(node: Node, caller: Caller, request: req.ProcessById) -> None:
    """Cancel a waiting or running process."""
    colony = await colony_of(node, caller, request.processid)
    await node.processes.cancel(colony, request.processid)


@calls.row("removeprocessmsg", req.ProcessById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: req.ProcessById) -> None:
    """Remove a process that doesn't run."""
    colony = await colony_of(node, caller, request.processid)
    await node.processes.remove(colony, request.processid)


@calls.row("removeallprocessesmsg", req.RemoveAll, Who.OWNER, need=Need.FREES)
async def remove_all(node: Node, caller: Caller, request: req.RemoveAll) -> None:
    """Remove the processes in one state; -1 means all."""
    await remove_by_state(node, request)


@calls.row("pauseassignmentsmsg", req.ColonyOnly, Who.OWNER, need=Need.FREES)
async def pause(node: Node, caller: Caller, request: req.ColonyOnly) -> None:
    """Pause assignments."""
    await node.client.commit(Txn([], [Put(keys.paused(request.colonyname), pack(True))]))
    node.assigner.paused.add(request.colonyname)


@calls.row("resumeassignmentsmsg", req.ColonyOnly, Who.OWNER, need=Need.FREES)
async def resume(node: Node, caller: Caller, request: req.ColonyOnly) -> None:
    """Resume assignments."""
    await node.client.delete(keys.paused(request.colonyname))
    node.assigner.resume(request.colonyname)


@calls.row(
    "getpausestatusmsg",
    req.ColonyOnly,
    Who.LOOSE,
    reply="{colonyname, ispaused}",
    answers="pausestatusreplymsg",
)
async def pause_status(node: Node, caller: Caller, request: req.ColonyOnly) -> dict[str, Any]:
    """Show whether assignments are paused; answers as pausestatusreplymsg."""
    name = request.colonyname
    paused = name in node.assigner.paused
    return {"colonyname": name, "ispaused": paused, "msgtype": "pausestatusreplymsg"}


@calls.row("addattributemsg", req.AddAttribute, Who.SIGNED, reply="Attribute", rights=ASSIGNED)
async def add_attribute(node: Node, caller: Caller, request: req.AddAttribute) -> dict[str, Any]:
    """Add a key and value to a process."""
    asked = request.attribute
    colony = await colony_of(node, caller, asked.targetid)
    attribute = Attribute(
        targetid=asked.targetid,
        key=asked.key,
        value=asked.value,
        attributetype=asked.attributetype,
        attributeid=attribute_id(asked.targetid, asked.key, asked.attributetype),
        targetcolonyname=colony,
    )
    await node.processes.add_attribute(caller.id, attribute)
    return wire_attribute(attribute, State.RUNNING)


@calls.row("getattributemsg", req.AttributeById, Who.SIGNED, reply="Attribute", rights=MINE)
async def get_attribute(node: Node, caller: Caller, request: req.AttributeById) -> dict[str, Any]:
    """Show an attribute by id."""
    for colony in node.directory.colonies_of(caller.id):
        found = await node.client.get(keys.attribute(colony, request.attributeid))
        known = await node.processes.load(colony, found.value.decode()) if found else None
        if known is None:
            continue
        for attribute in known[0].attributes:
            if attribute.attributeid == request.attributeid:
                return wire_attribute(attribute, known[0].state)
    raise NotFound("attributeid: no attribute of the caller's colonies has this id")


async def colony_of(node: Node, caller: Caller, processid: str) -> str:
    """Return the colony of a process that the caller may see. Raises Denied or NotFound."""
    node.assigner.heard(processid, caller.id)
    colonies = node.directory.colonies_of(caller.id)
    if len(colonies) == 1:
        return colonies[0]
    return (await locate(node, caller, processid)).colonyname


async def locate(node: Node, caller: Caller, processid: str) -> Process:
    """Return a process in one of the caller's colonies; one of another colony is not found."""

    async def look(colony: str) -> tuple[Process, int] | None:
        return await node.processes.load(colony, processid) if "/" not in processid else None

    node.assigner.heard(processid, caller.id)
    process = (await node.directory.seek(caller.id, look, "processid", processid))[0]
    if process.assignedexecutorid == caller.id and await node.assigner.settle(processid):
        process = (await node.directory.seek(caller.id, look, "processid", processid))[0]
    return process


def require_member(node: Node, colony: str, name: str) -> None:
    """Raise Invalid unless a user or an executor has this name, or it is that of a colony."""
    roster = node.directory.roster(colony)
    if not (name in roster.users or name in roster.executors or name.startswith("colony/")):
        raise Invalid(f"initiator: no user or executor of the colony has the name {name[:80]!r}")


async def list_processes(node: Node, request: req.GetProcesses) -> Rows:
    """Return the processes in one state, or the nodes of a workflow, as pycolonies asks and
    upstream refuses.
    """
    colony, state = request.colonyname, request.state
    if not request.processgraphid:
        found = await listings.matching(node.processes, request, node.clock.now())
        # Processes of a member that is gone can still be listed.
        if not found and request.initiator:
            require_member(node, colony, request.initiator)
        return listings.wired(
            node.processes, colony, found, lambda process: listings.is_wanted(request, process)
        )
    known = "/" not in request.processgraphid
    graph = await node.workflows.load(colony, request.processgraphid) if known else None
    ids = graphs.ids(graph) if graph is not None else []
    return listings.wired(node.processes, colony, ids, lambda p: state in (-1, p.state))


async def _told(node: Node, caller: Caller, colony: str, state: int, pages: Rows) -> Rows:
    """Return the same rows, noting that the caller hears of its processes in them.

    A process of the caller whose assignment is uncertain is put back first. It is left out if it is
    not in `state` then; -1 means every state.
    """
    async with aclosing(pages) as found:
        async for page in found:
            told = []
            for row in page:
                processid = row["processid"]
                if row["assignedexecutorid"] == caller.id and await node.assigner.settle(processid):
                    known = await node.processes.load(colony, processid)
                    if known is None or state not in (-1, known[0].state):
                        continue
                    row = wire_process(known[0])
                node.assigner.heard(processid, caller.id)
                told.append(row)
            yield told


async def remove_by_state(node: Node, request: req.RemoveAll) -> None:
    """Remove all processes of a colony in one state; -1 means every state, running ones too.

    A process that is gone or in another state by then is passed over. Raises Conflict when some had
    to stay, once the others are removed.
    """
    if request.state not in (-1, 0, 2, 3, 4):
        raise Invalid("state: 0 waiting, 2 successful, 3 failed, 4 cancelled, or -1 for all")
    colony = request.colonyname
    refusal: RpcError | None = None
    found = listings.to_remove(node.processes, colony, request.state, node.clock.now())
    async with aclosing(found) as pages:
        async for page in pages:
            for processid in page:
                try:
                    await _remove_in_state(node, colony, processid, request.state)
                except RpcError as error:
                    refusal = refusal or error
    if refusal is not None:
        raise refusal


async def _remove_in_state(node: Node, colony: str, processid: str, state: int) -> None:
    """Remove a process while it is in a state (-1: any); otherwise do nothing.

    A running process is cancelled first. Raises Conflict when it has to stay.
    """
    processes = node.processes
    for _ in range(_TRIES):
        known = await processes.load(colony, processid)
        if known is None or state not in (-1, known[0].state) or known[0].processgraphid:
            return
        process, revision = known
        if process.state == State.RUNNING or (process.peer and not process.closed):
            try:
                await processes.cancel(colony, processid)
            except (Invalid, NotFound):
                pass  # ended by itself, or gone: look again
            else:
                state = -1  # cancelled by us, whatever it was before
            continue
        if reason := processes.hooks.removable(process):
            raise Conflict(reason)
        # Not `processes.remove`: that would also remove a process that ended since it was read.
        if (await node.client.commit(store.remove(process, revision))).succeeded:
            processes.forget(processid)
            return
    raise Conflict(f"process {processid} changes too fast; try again")
