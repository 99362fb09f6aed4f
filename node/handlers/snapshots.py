"""Calls about snapshots: the newest files under a label, kept by id.

Files themselves are in `handlers.files`; a snapshot keeps no bytes and no version alive.
"""

from __future__ import annotations

from typing import Any

import msgspec

from colonyd.errors import Invalid, NotFound
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.files.catalog import snapshot_ids
from node.files.labels import normalise_label
from node.model.codec import wire_time
from node.processes.spec import id_for
from node.rpc.calls import Caller, Calls, Who, every
from node.rpc.replay import Once
from node.rpc.requests import ColonyOnly
from node.runtime.node import Node
from node.store.files import Snapshot

MAX_NAME = 256


class CreateSnapshot(msgspec.Struct):
    colonyname: str
    name: str
    label: str = ""


class OneSnapshot(msgspec.Struct):
    colonyname: str
    snapshotid: str = ""
    name: str = ""


calls: Calls[Node] = Calls("Files")


async def find(node: Node, request: OneSnapshot) -> Snapshot | None:
    if request.snapshotid:
        return await node.files.snapshot(request.colonyname, request.snapshotid)
    if request.name:
        return await node.files.snapshot_named(request.colonyname, request.name)
    raise Invalid("snapshotid, name: one is needed")


async def created(
    node: Node, caller: Caller, request: CreateSnapshot, place: str
) -> dict[str, Any]:
    found = await node.files.snapshot(request.colonyname, id_for(caller.id, caller.nonce))
    if found is None:
        raise NotFound("nonce: the snapshot that this request made was removed")
    return _wire(found)


@calls.row(
    "createsnapshotmsg",
    CreateSnapshot,
    Who.MEMBER,
    reply="Snapshot",
    once=Once.TOGETHER,
    again=created,
)
async def create(node: Node, caller: Caller, request: CreateSnapshot) -> dict[str, Any]:
    """Store which files are under a label now."""
    name, snapshotid = request.name, ""
    if not 0 < len(name) <= MAX_NAME or "/" in name or not name.isprintable():
        raise Invalid(f"name: 1 to {MAX_NAME} characters, no '/' and no control characters")
    if caller.nonce:
        # A repeat of the same request, after a lost reply, returns the first one's snapshot.
        snapshotid = id_for(caller.id, caller.nonce)
    label = normalise_label(request.label, "label")
    return _wire(await node.files.create_snapshot(request.colonyname, label, name, snapshotid))


@calls.row("getsnapshotmsg", OneSnapshot, Who.MEMBER, reply="Snapshot")
async def get(node: Node, caller: Caller, request: OneSnapshot) -> dict[str, Any]:
    """Show a snapshot by id or name."""
    found = await find(node, request)
    if found is None:
        raise NotFound("snapshotid, name: no such snapshot in this colony")
    return _wire(found)


@calls.row("getsnapshotsmsg", ColonyOnly, Who.MEMBER, reply="Snapshot[]", heavy=every)
async def get_many(node: Node, caller: Caller, request: ColonyOnly) -> Rows:
    """List the snapshots, newest first."""
    return each(node.files.snapshots(request.colonyname), _wire)


@calls.row("removesnapshotmsg", OneSnapshot, Who.MEMBER, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: OneSnapshot) -> None:
    """Remove a snapshot; the files stay."""
    found = await find(node, request)
    if found is not None:
        await node.files.remove_snapshot(found)


@calls.row("removeallsnapshotmsg", ColonyOnly, Who.MEMBER, need=Need.FREES)
async def remove_all(node: Node, caller: Caller, request: ColonyOnly) -> None:
    """Remove all snapshots of a colony."""
    await node.files.remove_snapshots(request.colonyname)


def _wire(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshotid": snapshot.snapshotid,
        "colonyname": snapshot.colonyname,
        "label": snapshot.label,
        "name": snapshot.name,
        "fileids": snapshot_ids(snapshot),
        "added": wire_time(snapshot.added),
    }
