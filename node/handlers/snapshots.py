"""Calls about snapshots: the newest files under a label, kept by id.

Files themselves are in `handlers.files`; a snapshot keeps no bytes and no version alive.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.files.catalog import snapshot_ids
from node.files.labels import normalise_label
from node.model.codec import wire_time
from node.model.errors import bad, missing
from node.processes.spec import id_for
from node.rpc.dispatch import Call, Caller, Who, many
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


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for snapshots."""
    files = node.files

    async def create(caller: Caller, request: CreateSnapshot) -> dict[str, Any]:
        name, snapshotid = request.name, ""
        if not 0 < len(name) <= MAX_NAME or "/" in name or not name.isprintable():
            raise bad(f"name: 1 to {MAX_NAME} characters, no '/' and no control characters")
        if caller.nonce:
            # A repeat of the same request, after a lost reply, gives the first one's snapshot.
            snapshotid = id_for(caller.id, caller.nonce)
        label = normalise_label(request.label, "label")
        return _wire(await files.create_snapshot(request.colonyname, label, name, snapshotid))

    async def created(caller: Caller, request: CreateSnapshot, place: str) -> dict[str, Any]:
        found = await files.snapshot(request.colonyname, id_for(caller.id, caller.nonce))
        if found is None:
            raise missing("nonce: the snapshot that this request made was removed")
        return _wire(found)

    async def find(request: OneSnapshot) -> Snapshot | None:
        if request.snapshotid:
            return await files.snapshot(request.colonyname, request.snapshotid)
        if request.name:
            return await files.snapshot_named(request.colonyname, request.name)
        raise bad("snapshotid, name: one is needed")

    async def get(caller: Caller, request: OneSnapshot) -> dict[str, Any]:
        found = await find(request)
        if found is None:
            raise missing("snapshotid, name: no such snapshot in this colony")
        return _wire(found)

    async def get_many(caller: Caller, request: ColonyOnly) -> Rows:
        return each(files.snapshots(request.colonyname), _wire)

    async def remove(caller: Caller, request: OneSnapshot) -> None:
        found = await find(request)
        if found is not None:
            await files.remove_snapshot(found)

    async def remove_all(caller: Caller, request: ColonyOnly) -> None:
        await files.remove_snapshots(request.colonyname)

    def of(request: Any) -> str:
        return str(request.colonyname)

    return [
        Call("createsnapshotmsg", CreateSnapshot, Who.MEMBER, create, of, Once.TOGETHER, created),
        Call("getsnapshotmsg", OneSnapshot, Who.MEMBER, get, of),
        Call("getsnapshotsmsg", ColonyOnly, Who.MEMBER, get_many, of, heavy=many),
        Call("removesnapshotmsg", OneSnapshot, Who.MEMBER, remove, of, need=Need.FREES),
        Call("removeallsnapshotmsg", ColonyOnly, Who.MEMBER, remove_all, of, need=Need.FREES),
    ]


def _wire(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshotid": snapshot.snapshotid,
        "colonyname": snapshot.colonyname,
        "label": snapshot.label,
        "name": snapshot.name,
        "fileids": snapshot_ids(snapshot),
        "added": wire_time(snapshot.added),
    }
