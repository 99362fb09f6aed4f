"""Calls about the server, its colonies and their users."""

from __future__ import annotations

from typing import Any

from colonyd.errors import NotFound
from node.etcd.pressure import Need
from node.model.types import Colony, ExecutorState, State, User
from node.rpc import requests as req
from node.rpc.calls import Caller, Calls, Who
from node.runtime.node import Node
from node.store import keys
from node.version import VERSION

calls: Calls[Node] = Calls("Colonies")


@calls.row(
    "versionmsg",
    req.Empty,
    Who.ANYONE,
    reply="{buildversion, buildtime}",
    section="Server",
    need=Need.FREES,
    reads=True,
)
async def version(node: Node, caller: Caller, request: req.Empty) -> dict[str, Any]:
    """Show the version of the server."""
    return {"buildversion": VERSION, "buildtime": "", "msgtype": "versionmsg"}


@calls.row("getserverinfomsg", req.Empty, Who.ANYONE, reply="ServerInfo", section="Server")
async def server_info(node: Node, caller: Caller, request: req.Empty) -> dict[str, Any]:
    """Show version, addresses and id of the server."""
    backend = {"type": "http", "port": node.serving.port}
    return {
        "buildversion": VERSION,
        "buildtime": "",
        "backends": [backend],
        # Not upstream's: the value for `audience` in a request.
        "serverid": node.directory.serverid,
        # Not upstream's, in Unix seconds: a client with a wrong clock gets its signed calls
        # refused.
        "time": node.clock.now() / 1e9,
    }


@calls.row("getstatisticsmsg", req.Empty, Who.SERVER, reply="Statistics", section="Server")
async def server_statistics(node: Node, caller: Caller, request: req.Empty) -> dict[str, int]:
    """Show the counters of all colonies."""
    await node.processes.reading.demand_end()
    total: dict[str, int] = {}
    for name in list(node.directory.rosters):
        for key, value in (await statistics(node, name)).items():
            total[key] = total.get(key, 0) + value
    return total or await statistics(node, "")


@calls.row("addcolonymsg", req.AddColony, Who.SERVER, reply="Colony")
async def add_colony(node: Node, caller: Caller, request: req.AddColony) -> Colony:
    """Host a colony."""
    return await node.members.add_colony(request.colony)


@calls.row("removecolonymsg", req.ColonyOnly, Who.SERVER, need=Need.FREES)
async def remove_colony(node: Node, caller: Caller, request: req.ColonyOnly) -> None:
    """Remove a colony with everything in it."""
    await node.members.remove_colony(request.colonyname)


@calls.row("getcoloniesmsg", req.Empty, Who.SERVER, reply="Colony[]")
async def get_colonies(node: Node, caller: Caller, request: req.Empty) -> list[Colony]:
    """List the colonies."""
    return [roster.colony for roster in node.directory.rosters.values() if roster.colony]


@calls.row("getcolonymsg", req.ColonyOnly, Who.MEMBER, reply="Colony")
async def get_colony(node: Node, caller: Caller, request: req.ColonyOnly) -> Colony | None:
    """Show a colony."""
    return node.directory.colony(request.colonyname)


@calls.row("getcolonystatsmsg", req.ColonyOnly, Who.MEMBER, reply="Statistics")
async def colony_statistics(node: Node, caller: Caller, request: req.ColonyOnly) -> dict[str, int]:
    """Show the counters of one colony."""
    await node.processes.reading.demand_end()
    return await statistics(node, request.colonyname)


@calls.row(
    "addusermsg", req.AddUser, Who.OWNER, reply="User", section="Users", colony="user.colonyname"
)
async def add_user(node: Node, caller: Caller, request: req.AddUser) -> User:
    """Add a user."""
    return await node.members.add_user(request.user)


@calls.row("removeusermsg", req.MemberNamed, Who.OWNER, section="Users", need=Need.FREES)
async def remove_user(node: Node, caller: Caller, request: req.MemberNamed) -> None:
    """Remove a user."""
    await node.members.remove_user(request.colonyname, request.name)


@calls.row("getusersmsg", req.ColonyOnly, Who.LOOSE, reply="User[]", section="Users")
async def get_users(node: Node, caller: Caller, request: req.ColonyOnly) -> list[User]:
    """List the users."""
    return list(node.directory.roster(request.colonyname).users.values())


@calls.row("getusermsg", req.MemberNamed, Who.LOOSE, reply="User", section="Users")
async def get_user(node: Node, caller: Caller, request: req.MemberNamed) -> User:
    """Show a user by name."""
    user = node.directory.roster(request.colonyname).users.get(request.name)
    if user is None:
        raise NotFound(f"user {request.name} is not in colony {request.colonyname}")
    return user


@calls.row("getuserbyidmsg", req.UserById, Who.LOOSE, reply="User", section="Users")
async def get_user_by_id(node: Node, caller: Caller, request: req.UserById) -> User:
    """Show a user by id."""
    user = node.directory.user_of(request.colonyname, request.userid)
    if user is None:
        raise NotFound(f"no user of colony {request.colonyname} has this id")
    return user


async def statistics(node: Node, colony: str) -> dict[str, int]:
    """Return upstream's counters for one colony."""
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
        counts[key] = await node.processes.closed.of(keys.closed_prefix(colony, state))
    for state in State:
        counts[f"{state.name.lower()}workflows"] = await node.workflows.count(colony, state)
    return counts
