"""Calls about the server, its colonies and their users."""

from __future__ import annotations

from typing import Any

from node.etcd.pressure import Need
from node.etcd.txn import Put, Txn
from node.model.codec import pack
from node.model.errors import missing
from node.model.types import Colony, ExecutorState, State, User
from node.rpc import requests as req
from node.rpc.dispatch import Call, Caller, Who
from node.runtime.node import Node
from node.store import keys
from node.version import VERSION


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for server, colonies and users."""
    directory, members = node.directory, node.members

    async def version(caller: Caller, request: req.Empty) -> dict[str, Any]:
        return {"buildversion": VERSION, "buildtime": "", "msgtype": "versionmsg"}

    async def server_info(caller: Caller, request: req.Empty) -> dict[str, Any]:
        backend = {"type": "http", "port": node.rpc_port}
        return {
            "buildversion": VERSION,
            "buildtime": "",
            "backends": [backend],
            # Not upstream's: what a request says in `audience`.
            "serverid": directory.serverid,
            # Nor this, in Unix seconds: a clock that is wrong has signed calls refused.
            "time": node.now() / 1e9,
        }

    async def server_statistics(caller: Caller, request: req.Empty) -> dict[str, int]:
        total: dict[str, int] = {}
        for name in list(directory.rosters):
            for key, value in (await statistics(node, name)).items():
                total[key] = total.get(key, 0) + value
        return total or await statistics(node, "")

    async def add_colony(caller: Caller, request: req.AddColony) -> Colony:
        return await members.add_colony(request.colony)

    async def remove_colony(caller: Caller, request: req.ColonyOnly) -> None:
        await members.remove_colony(request.colonyname)

    async def get_colonies(caller: Caller, request: req.Empty) -> list[Colony]:
        return [roster.colony for roster in directory.rosters.values() if roster.colony]

    async def get_colony(caller: Caller, request: req.ColonyOnly) -> Colony | None:
        return directory.colony(request.colonyname)

    async def colony_statistics(caller: Caller, request: req.ColonyOnly) -> dict[str, int]:
        return await statistics(node, request.colonyname)

    async def add_user(caller: Caller, request: req.AddUser) -> User:
        return await members.add_user(request.user)

    async def remove_user(caller: Caller, request: req.Named) -> None:
        await members.remove_user(request.colonyname, request.name)

    async def get_users(caller: Caller, request: req.ColonyOnly) -> list[User]:
        return list(directory.roster(request.colonyname).users.values())

    async def get_user(caller: Caller, request: req.Named) -> User:
        user = directory.roster(request.colonyname).users.get(request.name)
        if user is None:
            raise missing(f"user {request.name} is not in colony {request.colonyname}")
        return user

    async def get_user_by_id(caller: Caller, request: req.UserById) -> User:
        user = directory.user_of(request.colonyname, request.userid)
        if user is None:
            raise missing(f"no user of colony {request.colonyname} has this id")
        return user

    async def pause(caller: Caller, request: req.ColonyOnly) -> None:
        await node.client.commit(Txn([], [Put(keys.paused(request.colonyname), pack(True))]))
        node.processes.handout.paused.add(request.colonyname)

    async def resume(caller: Caller, request: req.ColonyOnly) -> None:
        await node.client.delete(keys.paused(request.colonyname))
        node.processes.handout.resume(request.colonyname)

    async def pause_status(caller: Caller, request: req.ColonyOnly) -> dict[str, Any]:
        name = request.colonyname
        paused = name in node.processes.handout.paused
        return {"colonyname": name, "ispaused": paused, "msgtype": "pausestatusreplymsg"}

    def of(request: Any) -> str:
        return str(request.colonyname)

    def of_user(request: req.AddUser) -> str:
        return request.user.colonyname

    return [
        Call("versionmsg", req.Empty, Who.ANYONE, version, need=Need.FREES),
        Call("getserverinfomsg", req.Empty, Who.ANYONE, server_info),
        Call("getstatisticsmsg", req.Empty, Who.SERVER, server_statistics),
        Call("addcolonymsg", req.AddColony, Who.SERVER, add_colony),
        Call("removecolonymsg", req.ColonyOnly, Who.SERVER, remove_colony, need=Need.FREES),
        Call("getcoloniesmsg", req.Empty, Who.SERVER, get_colonies),
        Call("getcolonymsg", req.ColonyOnly, Who.MEMBER, get_colony, of),
        Call("getcolonystatsmsg", req.ColonyOnly, Who.MEMBER, colony_statistics, of),
        Call("addusermsg", req.AddUser, Who.OWNER, add_user, of_user),
        Call("removeusermsg", req.Named, Who.OWNER, remove_user, of, need=Need.FREES),
        Call("getusersmsg", req.ColonyOnly, Who.LOOSE, get_users, of),
        Call("getusermsg", req.Named, Who.LOOSE, get_user, of),
        Call("getuserbyidmsg", req.UserById, Who.LOOSE, get_user_by_id, of),
        Call("pauseassignmentsmsg", req.ColonyOnly, Who.OWNER, pause, of, need=Need.FREES),
        Call("resumeassignmentsmsg", req.ColonyOnly, Who.OWNER, resume, of, need=Need.FREES),
        Call("getpausestatusmsg", req.ColonyOnly, Who.LOOSE, pause_status, of),
    ]


async def statistics(node: Node, colony: str) -> dict[str, int]:
    """Upstream's counters for one colony."""
    executors = node.directory.roster(colony).executors.values()
    active = sum(1 for executor in executors if executor.state == ExecutorState.APPROVED)
    unregistered = sum(1 for e in executors if e.state == ExecutorState.UNREGISTERED)
    counts = {
        "colonies": 1 if node.directory.colony(colony) else 0,
        "executors": len(executors),
        "activeexecutors": active,
        "unregisteredexecutors": unregistered,
        "waitingprocesses": node.processes.queue.count(colony),
        "runningprocesses": node.processes.running.count(colony),
    }
    for state in (State.SUCCESSFUL, State.FAILED, State.CANCELLED):
        key = f"{state.name.lower()}processes"
        counts[key] = await node.client.count(keys.closed_prefix(colony, state))
    for state in State:
        counts[f"{state.name.lower()}workflows"] = await node.workflows.count(colony, state)
    return counts
