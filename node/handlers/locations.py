"""Calls about locations."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pressure import Need
from node.rpc import requests as req
from node.rpc.dispatch import Call, Caller, Who
from node.runtime.node import Node
from node.store.locations import Location


class AddLocation(msgspec.Struct):
    location: Location


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for locations."""
    locations = node.locations

    async def add(caller: Caller, request: AddLocation) -> Location:
        return await locations.add(request.location)

    async def remove(caller: Caller, request: req.Named) -> None:
        await locations.remove(request.colonyname, request.name)

    async def get(caller: Caller, request: req.Named) -> Location:
        return await locations.get(request.colonyname, request.name)

    async def get_all(caller: Caller, request: req.ColonyOnly) -> list[Location]:
        return await locations.all_of(request.colonyname)

    def of(request: Any) -> str:
        return str(request.colonyname)

    def of_location(request: AddLocation) -> str:
        return request.location.colonyname

    return [
        Call("addlocationmsg", AddLocation, Who.OWNER, add, of_location),
        Call("removelocationmsg", req.Named, Who.OWNER, remove, of, need=Need.FREES),
        Call("getlocationmsg", req.Named, Who.LOOSE, get, of),
        Call("getlocationsmsg", req.ColonyOnly, Who.LOOSE, get_all, of),
    ]
