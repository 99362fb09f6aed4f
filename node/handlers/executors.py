"""Calls about executors and the functions they offer."""

from __future__ import annotations

from typing import Any

import msgspec

from colonyd.errors import Denied, Invalid, NotFound
from node.etcd.pages import Rows, each, in_memory
from node.etcd.pressure import Need
from node.model.codec import wire_executor, wire_function
from node.model.types import Executor, ExecutorState, Function
from node.rpc import requests as req
from node.rpc.calls import MINE, SELF, Caller, Calls, Who, every
from node.runtime.node import Node

calls: Calls[Node] = Calls("Executors")


async def unregister(node: Node, colony: str, name: str) -> None:
    executor = await node.members.set_state(colony, name, ExecutorState.UNREGISTERED)
    await node.processes.release(colony, executor.executorid)


@calls.row(
    "addexecutormsg", req.AddExecutor, Who.OWNER, reply="Executor", colony="executor.colonyname"
)
async def add(node: Node, caller: Caller, request: req.AddExecutor) -> dict[str, Any]:
    """Add an executor; it is pending until approved."""
    new = msgspec.convert(msgspec.to_builtins(request.executor), Executor)
    known = node.directory.roster(new.colonyname).executors.get(new.executorname)
    if node.members.reregister and known is not None:
        node.members.check_executor(new)
        # In steps that may be repeated: after an interruption, the next attempt does the rest.
        await unregister(node, new.colonyname, new.executorname)
    return wire_executor(await node.members.add_executor(new))


@calls.row("approveexecutormsg", req.ExecutorNamed, Who.OWNER, need=Need.WORKS)
async def approve(node: Node, caller: Caller, request: req.ExecutorNamed) -> None:
    """Allow an executor to take processes."""
    await node.members.set_state(request.colonyname, request.executorname, ExecutorState.APPROVED)


@calls.row("rejectexecutormsg", req.ExecutorNamed, Who.OWNER, need=Need.FREES)
async def reject(node: Node, caller: Caller, request: req.ExecutorNamed) -> None:
    """Forbid an executor to take processes; what it runs waits again."""
    executor = await node.members.set_state(
        request.colonyname, request.executorname, ExecutorState.REJECTED
    )
    await node.processes.release(request.colonyname, executor.executorid)


@calls.row("removeexecutormsg", req.ExecutorNamed, Who.OWNER, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: req.ExecutorNamed) -> None:
    # May be repeated after an interruption: it then does the rest.
    """Unregister an executor; what it runs waits again."""
    await unregister(node, request.colonyname, request.executorname)


@calls.row("getexecutorsmsg", req.ColonyOnly, Who.LOOSE, reply="Executor[]", heavy=every)
async def get_all(node: Node, caller: Caller, request: req.ColonyOnly) -> Rows:
    """List the executors, unregistered ones too."""
    executors = node.directory.roster(request.colonyname).executors
    found = [node.members.executor(request.colonyname, name) for name in sorted(executors)]
    return each(in_memory(found), wire_executor)


@calls.row("getexecutormsg", req.ExecutorNamed, Who.MEMBER, reply="Executor")
async def get(node: Node, caller: Caller, request: req.ExecutorNamed) -> dict[str, Any]:
    """Show an executor by name."""
    return wire_executor(node.members.executor(request.colonyname, request.executorname))


@calls.row("getexecutorbyidmsg", req.ExecutorById, Who.SIGNED, reply="Executor", rights=MINE)
async def get_by_id(node: Node, caller: Caller, request: req.ExecutorById) -> dict[str, Any]:
    """Show an executor by id."""
    for colony in node.directory.colonies_of(caller.id):
        executor = node.directory.executor_of(colony, request.executorid)
        if executor is not None:
            return wire_executor(node.members.executor(colony, executor.executorname))
    raise NotFound("executorid: no executor of the caller's colonies has this id")


@calls.row("updateexecutormsg", req.UpdateExecutor, Who.LOOSE, rights=SELF, need=Need.WORKS)
async def update(node: Node, caller: Caller, request: req.UpdateExecutor) -> None:
    """Replace the caller's capabilities."""
    if caller.executor.executorname != request.executorname:
        raise Invalid("executorname: an executor may update itself only")
    await node.members.change_executor(
        request.colonyname,
        request.executorname,
        lambda e: msgspec.structs.replace(e, capabilities=request.capabilities),
    )


@calls.row("reportallocationmsg", req.ReportAllocation, Who.LOOSE, rights=SELF, need=Need.WORKS)
async def allocate(node: Node, caller: Caller, request: req.ReportAllocation) -> None:
    """Replace the caller's allocations."""
    if caller.executor.executorname != request.executorname:
        raise Invalid("executorname: an executor may report for itself only")
    await node.members.change_executor(
        request.colonyname,
        request.executorname,
        lambda e: msgspec.structs.replace(e, allocations=request.allocations),
    )


@calls.row(
    "addfunctionmsg",
    req.AddFunction,
    Who.MEMBER,
    reply="Function",
    rights=SELF,
    section="Functions",
    colony="fun.colonyname",
)
async def add_function(node: Node, caller: Caller, request: req.AddFunction) -> dict[str, Any]:
    """Register a function of the caller."""
    if caller.executor.executorname != request.fun.executorname:
        raise Denied("fun.executorname: an executor may register for itself only")
    if not request.fun.funcname:
        raise Invalid("fun.funcname: must not be empty")
    new = msgspec.convert(msgspec.to_builtins(request.fun), Function)
    return wire_function(await node.members.add_function(new))


@calls.row(
    "removefunctionmsg",
    req.FunctionById,
    Who.SIGNED,
    rights="the executor that offers it",
    section="Functions",
    need=Need.FREES,
)
async def remove_function(node: Node, caller: Caller, request: req.FunctionById) -> None:
    """Remove a function of the caller."""
    for colony in node.directory.colonies_of(caller.id):
        function = node.directory.roster(colony).functions.get(request.functionid)
        if function is None:
            continue
        executor = node.directory.executor_of(colony, caller.id)
        if executor is None or executor.executorname != function.executorname:
            raise Denied("functionid: an executor may remove its own functions only")
        await node.members.remove_function(colony, request.functionid)
        return
    raise NotFound("functionid: no function of the caller's colonies has this id")


@calls.row(
    "getfunctionsmsg",
    req.GetFunctions,
    Who.MEMBER,
    reply="Function[]",
    section="Functions",
    heavy=every,
)
async def get_functions(node: Node, caller: Caller, request: req.GetFunctions) -> Rows:
    """List the functions of one executor, or of all."""
    functions = node.directory.roster(request.colonyname).functions.values()
    wanted = request.executorname
    found = [f for f in functions if not wanted or f.executorname == wanted]
    return each(in_memory(found), wire_function)
