"""Calls about files: versions, listings, labels, and tickets for their bytes.

Snapshots have their own module; the bytes pass through `daemon.blobs` or an S3 server.
"""

from __future__ import annotations

from typing import Any

import msgspec

from colonyd.errors import Denied, Invalid, NotFound, Unavailable
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.files.labels import check_name, normalise_label
from node.files.tickets import CHECKSUM, PREFIX
from node.model.codec import wire_time
from node.model.ids import new_id
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.calls import Caller, Calls, Who, every
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.files import File, Reference, S3Object

MAX_FIELD = 1024
_PART = 1 << 20


class NewFile(msgspec.Struct):
    """A file as clients send it: id, sequence number and time are set here."""

    colonyname: str
    name: str
    label: str = ""
    size: Int64 = 0
    checksum: str = ""
    checksumalg: str = ""
    ref: Reference = msgspec.field(default_factory=Reference)


class AddFile(msgspec.Struct):
    file: NewFile


class GetFile(msgspec.Struct):
    colonyname: str
    fileid: str = ""
    label: str = ""
    name: str = ""
    latest: bool = False


class GetFiles(msgspec.Struct):
    colonyname: str
    label: str = ""


class GetLabels(msgspec.Struct):
    colonyname: str
    name: str = ""
    exact: bool = False


class RemoveFile(msgspec.Struct):
    colonyname: str
    fileid: str = ""
    label: str = ""
    name: str = ""


class Ticket(msgspec.Struct):
    """`method` GET or PUT, `checksum` the SHA-256 of the bytes, `size` theirs (for a PUT)."""

    colonyname: str
    method: str
    checksum: str
    size: Int64 = 0


def _is_heavy(request: GetFile) -> bool:
    return not request.fileid and not request.latest


calls: Calls[Node] = Calls("Files")


async def added(node: Node, caller: Caller, request: AddFile, place: str) -> dict[str, Any]:
    found = await node.files.get(request.file.colonyname, id_for(caller.id, caller.nonce))
    if found is None:
        raise NotFound("nonce: the file that this request added was removed")
    return wire_file(found)


@calls.row(
    "addfilemsg",
    AddFile,
    Who.MEMBER,
    reply="File",
    colony="file.colonyname",
    once=Once.TOGETHER,
    again=added,
)
async def add(node: Node, caller: Caller, request: AddFile) -> dict[str, Any]:
    """Add a revision of a file; its bytes lie elsewhere."""
    file = _checked(request.file)
    if caller.nonce:
        # A repeat of the same request, after a lost reply, adds nothing.
        file.fileid = id_for(caller.id, caller.nonce)
    added = await node.files.add(file)
    if _content(added) != _content(file):
        raise Denied("nonce: used already for another file")
    return wire_file(added)


@calls.row("getfilemsg", GetFile, Who.MEMBER, reply="File[]", heavy=_is_heavy)
async def get(node: Node, caller: Caller, request: GetFile) -> list[dict[str, Any]] | Rows:
    """List revisions of a file, by id or by label and name."""
    colony = request.colonyname
    if request.fileid:
        file = await node.files.get(colony, request.fileid)
        found = [file] if file else []
    elif request.label and request.name:
        label = normalise_label(request.label, "label")
        name = check_name(request.name, "name")
        found = await node.files.newest(colony, label, name)
        if found and not request.latest:
            return each(node.files.versions(colony, label, name), wire_file)
    else:
        raise Invalid("fileid, label: an id is needed, or a label and a name")
    if not found:
        raise NotFound("fileid, label, name: no such file in this colony")
    return [wire_file(file) for file in found]


@calls.row("getfilesmsg", GetFiles, Who.MEMBER, reply="FileData[]", heavy=every)
async def get_many(node: Node, caller: Caller, request: GetFiles) -> Rows:
    """List the newest revision of each file under a label."""
    return node.files.listing(request.colonyname, normalise_label(request.label, "label"))


@calls.row("getfilelabelsmsg", GetLabels, Who.MEMBER, reply="Label[]", heavy=every)
async def labels(node: Node, caller: Caller, request: GetLabels) -> Rows:
    """List labels."""
    if request.exact and request.name:
        name = normalise_label(request.name, "name")
        return node.files.labels_below(request.colonyname, name)
    prefix = "/" + request.name.lstrip("/")
    return node.files.labels(request.colonyname, prefix)


@calls.row("removefilemsg", RemoveFile, Who.MEMBER, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: RemoveFile) -> None:
    """Remove a revision, or all of a file."""
    if request.fileid:
        await node.files.remove(request.colonyname, request.fileid)
    elif request.label and request.name:
        label = normalise_label(request.label, "label")
        name = check_name(request.name, "name")
        await node.files.remove_all(request.colonyname, label, name)
    else:
        raise Invalid("fileid, label: an id is needed, or a label and a name")


async def ticket_again(node: Node, caller: Caller, request: Ticket, place: str) -> dict[str, Any]:
    return await _ticket(node, caller, request, renew=False)


@calls.row(
    "fileticketmsg",
    Ticket,
    Who.MEMBER,
    reply="{method, url, expires, size, offset, complete, partsize}",
    section="Ours",
    once=Once.TOGETHER,
    again=ticket_again,
    harmless=lambda request: request.method == "GET",
    need=Need.FREES,
)
async def ticket(node: Node, caller: Caller, request: Ticket) -> dict[str, Any]:
    """Get a ticket to fetch or store the bytes of a file in the daemon's own directory."""
    if request.method == "PUT":
        node.client.pressure.demand(Need.GROWS)
    return await _ticket(node, caller, request, renew=True)


async def _ticket(node: Node, caller: Caller, request: Ticket, *, renew: bool) -> dict[str, Any]:
    """Return a ticket, how far an upload is, and where the bytes are; `renew` begins their grace
    anew.
    """
    files, colony, checksum = node.files, request.colonyname, request.checksum
    blobs, tickets = files.blobs, files.tickets
    if blobs is None or tickets is None:
        raise Unavailable("this daemon keeps no files")
    if not CHECKSUM.match(checksum):
        raise Invalid("checksum: the SHA-256 as 64 lower-case hex characters is needed")
    held = await files.holding(colony, checksum)
    complete = held is not None and (
        held.holder != blobs.holder or blobs.size_of(checksum) == held.size
    )
    size = request.size
    if request.method == "GET":
        if held is None or not complete:
            raise NotFound("checksum: no bytes of this colony have it")
        if held.holder != blobs.holder:
            raise NotFound(
                f"checksum: these bytes are kept by {held.server}:{held.port}; ask there"
            )
        size = held.size
    query, expires = tickets.issue(request.method, colony, checksum, size, uploader=caller.id)
    offset = 0
    if request.method == "PUT":
        if held is not None and complete:
            if held.size != size:
                raise Invalid(f"size: the bytes with this checksum are {held.size}")
            if renew and held.holder == blobs.holder:
                await files.hold(colony, checksum, size)
            offset = size
        else:
            scope = tickets.check("PUT", checksum, query)
            offset = blobs.offset(scope)
            if not offset:
                blobs.require_room(scope)
    return {
        "method": request.method,
        "url": f"{PREFIX}{checksum}?{query}",
        "expires": expires,
        "size": size,
        "offset": offset,
        "complete": complete,
        "partsize": min(_PART, files.max_body),
    }


def _checked(new: NewFile) -> File:
    """Return the version that a client asks to add. Raises Invalid."""
    given = new.ref.s3object
    if not 0 <= new.size < 1 << 63:
        raise Invalid("file.size: bytes, 0 or more")
    if not 0 <= given.port + 1 <= 65536:
        raise Invalid("file.ref.s3object.port: between -1 and 65535")
    texts = {
        "file.checksum": new.checksum,
        "file.checksumalg": new.checksumalg,
        "file.ref.protocol": new.ref.protocol,
        "file.ref.s3object.server": given.server,
        "file.ref.s3object.region": given.region,
        "file.ref.s3object.object": given.object,
        "file.ref.s3object.bucket": given.bucket,
        "file.ref.s3object.encryptionalg": given.encryptionalg,
    }
    for name, text in texts.items():
        if len(text) > MAX_FIELD:
            raise Invalid(f"{name}: at most {MAX_FIELD} characters")
    protocol = new.ref.protocol or "s3"
    if protocol == "colonyd":
        if not CHECKSUM.match(new.checksum) or new.checksumalg.upper() != "SHA256":
            raise Invalid(
                "file.checksum: bytes kept here are named by their SHA256, lower-case hex"
            )
        if given.object not in ("", new.checksum):
            raise Invalid("file.ref.s3object.object: for bytes kept here it is the checksum")
        given = S3Object(object=new.checksum)
    # Keys that a client put in are dropped: every member could read them.
    place = S3Object(
        server=given.server,
        port=given.port,
        tls=given.tls,
        region=given.region,
        encryptionalg=given.encryptionalg,
        object=given.object,
        bucket=given.bucket,
    )
    return File(
        fileid=new_id(),
        colonyname=new.colonyname,
        label=normalise_label(new.label, "file.label"),
        name=check_name(new.name, "file.name"),
        size=new.size,
        checksum=new.checksum,
        checksumalg=new.checksumalg,
        ref=Reference(protocol, place),
    )


def _content(file: File) -> tuple[str, ...]:
    return file.label, file.name, file.checksum, str(file.size), file.ref.s3object.object


def wire_file(file: File) -> dict[str, Any]:
    """Return a version as upstream's SDKs expect it, ready for JSON."""
    value: dict[str, Any] = msgspec.to_builtins(file)
    value["added"] = wire_time(file.added)
    return value
