"""Calls about executors and the functions they offer."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pages import Rows, each, in_memory
from node.etcd.pressure import Need
from node.model.codec import wire_executor, wire_function
from node.model.errors import bad, denied, missing
from node.model.types import Executor, ExecutorState, Function
from node.rpc import requests as req
from node.rpc.dispatch import Call, Caller, Who, many
from node.runtime.node import Node


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for executors and functions."""
    directory, members = node.directory, node.members

    async def unregister(colony: str, name: str) -> None:
        executor = await members.set_state(colony, name, ExecutorState.UNREGISTERED)
        await node.processes.release(colony, executor.executorid)

    async def add(caller: Caller, request: req.AddExecutor) -> dict[str, Any]:
        new = msgspec.convert(msgspec.to_builtins(request.executor), Executor)
        known = directory.roster(new.colonyname).executors.get(new.executorname)
        if members.reregister and known is not None:
            members.check_executor(new)
            # In steps that may be repeated: whatever is cut off, the next attempt does the rest.
            await unregister(new.colonyname, new.executorname)
        return wire_executor(await members.add_executor(new))

    async def approve(caller: Caller, request: req.ExecutorNamed) -> None:
        await members.set_state(request.colonyname, request.executorname, ExecutorState.APPROVED)

    async def reject(caller: Caller, request: req.ExecutorNamed) -> None:
        executor = await members.set_state(
            request.colonyname, request.executorname, ExecutorState.REJECTED
        )
        await node.processes.release(request.colonyname, executor.executorid)

    async def remove(caller: Caller, request: req.ExecutorNamed) -> None:
        # To be repeated when it was cut off: it then does the rest.
        await unregister(request.colonyname, request.executorname)

    async def get_all(caller: Caller, request: req.ColonyOnly) -> Rows:
        executors = directory.roster(request.colonyname).executors
        found = [members.executor(request.colonyname, name) for name in sorted(executors)]
        return each(in_memory(found), wire_executor)

    async def get(caller: Caller, request: req.ExecutorNamed) -> dict[str, Any]:
        return wire_executor(members.executor(request.colonyname, request.executorname))

    async def get_by_id(caller: Caller, request: req.ExecutorById) -> dict[str, Any]:
        for colony in directory.colonies_of(caller.id):
            executor = directory.executor_of(colony, request.executorid)
            if executor is not None:
                return wire_executor(members.executor(colony, executor.executorname))
        raise missing("executorid: no executor of the caller's colonies has this id")

    async def update(caller: Caller, request: req.UpdateExecutor) -> None:
        if caller.executor.executorname != request.executorname:
            raise bad("executorname: an executor may update itself only")
        await members.change_executor(
            request.colonyname,
            request.executorname,
            lambda e: msgspec.structs.replace(e, capabilities=request.capabilities),
        )

    async def allocate(caller: Caller, request: req.ReportAllocation) -> None:
        if caller.executor.executorname != request.executorname:
            raise bad("executorname: an executor may report for itself only")
        await members.change_executor(
            request.colonyname,
            request.executorname,
            lambda e: msgspec.structs.replace(e, allocations=request.allocations),
        )

    async def add_function(caller: Caller, request: req.AddFunction) -> dict[str, Any]:
        if caller.executor.executorname != request.fun.executorname:
            raise denied("fun.executorname: an executor may register for itself only")
        if not request.fun.funcname:
            raise bad("fun.funcname: must not be empty")
        new = msgspec.convert(msgspec.to_builtins(request.fun), Function)
        return wire_function(await members.add_function(new))

    async def remove_function(caller: Caller, request: req.FunctionById) -> None:
        for colony in directory.colonies_of(caller.id):
            function = directory.roster(colony).functions.get(request.functionid)
            if function is None:
                continue
            executor = directory.executor_of(colony, caller.id)
            if executor is None or executor.executorname != function.executorname:
                raise denied("functionid: an executor may remove its own functions only")
            await members.remove_function(colony, request.functionid)
            return
        raise missing("functionid: no function of the caller's colonies has this id")

    async def get_functions(caller: Caller, request: req.GetFunctions) -> Rows:
        functions = directory.roster(request.colonyname).functions.values()
        wanted = request.executorname
        found = [f for f in functions if not wanted or f.executorname == wanted]
        return each(in_memory(found), wire_function)

    def of(request: Any) -> str:
        return str(request.colonyname)

    def of_executor(request: req.AddExecutor) -> str:
        return request.executor.colonyname

    def of_function(request: req.AddFunction) -> str:
        return request.fun.colonyname

    return [
        Call("addexecutormsg", req.AddExecutor, Who.OWNER, add, of_executor),
        Call("approveexecutormsg", req.ExecutorNamed, Who.OWNER, approve, of, need=Need.WORKS),
        Call("rejectexecutormsg", req.ExecutorNamed, Who.OWNER, reject, of, need=Need.FREES),
        Call("removeexecutormsg", req.ExecutorNamed, Who.OWNER, remove, of, need=Need.FREES),
        Call("getexecutorsmsg", req.ColonyOnly, Who.LOOSE, get_all, of, heavy=many),
        Call("getexecutormsg", req.ExecutorNamed, Who.MEMBER, get, of),
        Call("getexecutorbyidmsg", req.ExecutorById, Who.SIGNED, get_by_id),
        Call("updateexecutormsg", req.UpdateExecutor, Who.LOOSE, update, of, need=Need.WORKS),
        Call("reportallocationmsg", req.ReportAllocation, Who.LOOSE, allocate, of, need=Need.WORKS),
        Call("addfunctionmsg", req.AddFunction, Who.MEMBER, add_function, of_function),
        Call("removefunctionmsg", req.FunctionById, Who.SIGNED, remove_function, need=Need.FREES),
        Call("getfunctionsmsg", req.GetFunctions, Who.MEMBER, get_functions, of, heavy=many),
    ]
