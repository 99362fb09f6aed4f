"""Calls about locations."""

from __future__ import annotations

import msgspec

from node.etcd.pressure import Need
from node.rpc import requests as req
from node.rpc.calls import Caller, Calls, Who
from node.runtime.node import Node
from node.store.locations import Location


class AddLocation(msgspec.Struct):
    location: Location


calls: Calls[Node] = Calls("Locations")


@calls.row("addlocationmsg", AddLocation, Who.OWNER, reply="Location", colony="location.colonyname")
async def add(node: Node, caller: Caller, request: AddLocation) -> Location:
    """Add a named place of executors."""
    return await node.locations.add(request.location)


@calls.row("removelocationmsg", req.MemberNamed, Who.OWNER, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: req.MemberNamed) -> None:
    """Remove a place."""
    await node.locations.remove(request.colonyname, request.name)


@calls.row("getlocationsmsg", req.ColonyOnly, Who.LOOSE, reply="Location[]")
async def get_all(node: Node, caller: Caller, request: req.ColonyOnly) -> list[Location]:
    """List the places."""
    return await node.locations.all_of(request.colonyname)


@calls.row("getlocationmsg", req.MemberNamed, Who.LOOSE, reply="Location")
async def get(node: Node, caller: Caller, request: req.MemberNamed) -> Location:
    """Show a place by name."""
    return await node.locations.get(request.colonyname, request.name)
