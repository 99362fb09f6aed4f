"""Calls that change ids; each is answered with its own fields, as upstream does."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pressure import Need
from node.rpc.calls import SELF, Caller, Calls, Who
from node.runtime.node import Node


class ChangeUserId(msgspec.Struct):
    colonyname: str
    userid: str


class ChangeExecutorId(msgspec.Struct):
    colonyname: str
    executorid: str


class ChangeColonyId(msgspec.Struct):
    colonyname: str
    colonyid: str


class ChangeServerId(msgspec.Struct):
    serverid: str


calls: Calls[Node] = Calls("Users")


@calls.row(
    "changeserveridmsg",
    ChangeServerId,
    Who.SERVER,
    reply="the request",
    section="Server",
    need=Need.FREES,
)
async def change_server(node: Node, caller: Caller, request: ChangeServerId) -> dict[str, Any]:
    """Give the server's owner another id."""
    await node.identities.change_server(request.serverid)
    return _echo("changeserveridmsg", request)


@calls.row(
    "changecolonyidmsg",
    ChangeColonyId,
    Who.OWNER,
    reply="the request",
    section="Colonies",
    need=Need.FREES,
)
async def change_colony(node: Node, caller: Caller, request: ChangeColonyId) -> dict[str, Any]:
    """Give the colony's owner another id."""
    await node.identities.change_colony(request.colonyname, request.colonyid)
    return _echo("changecolonyidmsg", request)


@calls.row(
    "changeuseridmsg",
    ChangeUserId,
    Who.LOOSE,
    reply="the request",
    rights="the user",
    need=Need.FREES,
)
async def change_user(node: Node, caller: Caller, request: ChangeUserId) -> dict[str, Any]:
    """Give the calling user another id."""
    await node.identities.change_user(request.colonyname, caller.id, request.userid)
    return _echo("changeuseridmsg", request)


@calls.row(
    "changeexecutoridmsg",
    ChangeExecutorId,
    Who.LOOSE,
    reply="the request",
    rights=SELF,
    section="Executors",
    need=Need.FREES,
)
async def change_executor(node: Node, caller: Caller, request: ChangeExecutorId) -> dict[str, Any]:
    """Give the calling executor another id."""
    await node.identities.change_executor(request.colonyname, caller.id, request.executorid)
    return _echo("changeexecutoridmsg", request)


def _echo(msgtype: str, request: msgspec.Struct) -> dict[str, Any]:
    return {**msgspec.to_builtins(request), "msgtype": msgtype}
