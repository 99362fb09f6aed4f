"""Calls that change ids; each is answered with its own fields, as upstream does."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pressure import Need
from node.rpc.dispatch import Call, Caller, Who
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


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for changes of ids."""
    identities = node.identities

    async def user(caller: Caller, request: ChangeUserId) -> dict[str, Any]:
        await identities.change_user(request.colonyname, caller.id, request.userid)
        return _echo("changeuseridmsg", request)

    async def executor(caller: Caller, request: ChangeExecutorId) -> dict[str, Any]:
        await identities.change_executor(request.colonyname, caller.id, request.executorid)
        return _echo("changeexecutoridmsg", request)

    async def colony(caller: Caller, request: ChangeColonyId) -> dict[str, Any]:
        await identities.change_colony(request.colonyname, request.colonyid)
        return _echo("changecolonyidmsg", request)

    async def server(caller: Caller, request: ChangeServerId) -> dict[str, Any]:
        await identities.change_server(request.serverid)
        return _echo("changeserveridmsg", request)

    def of(request: Any) -> str:
        return str(request.colonyname)

    return [
        Call("changeuseridmsg", ChangeUserId, Who.LOOSE, user, of, need=Need.FREES),
        Call("changeexecutoridmsg", ChangeExecutorId, Who.LOOSE, executor, of, need=Need.FREES),
        Call("changecolonyidmsg", ChangeColonyId, Who.OWNER, colony, of, need=Need.FREES),
        Call("changeserveridmsg", ChangeServerId, Who.SERVER, server, need=Need.FREES),
    ]


def _echo(msgtype: str, request: msgspec.Struct) -> dict[str, Any]:
    return {**msgspec.to_builtins(request), "msgtype": msgtype}
