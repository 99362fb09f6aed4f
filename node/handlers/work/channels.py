"""Calls about channels: append and read; the subscription is in `daemon.pubsub`."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec

from colonyd.errors import Invalid
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.model.types import Int64
from node.rpc.calls import MANY_TOKENS, PARTY, Caller, Calls, Who
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.work.channels import ChannelEntry
from node.streams.channels import MAX_TYPE, wire

Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_LIGHT = 4  # entries that any member may read at any time


class Append(msgspec.Struct):
    """`payload` in base64, or as the byte values that pycolonies and colonies-ts send."""

    processid: str
    name: str
    sequence: Int64 = 0
    inreplyto: Int64 = 0
    payload: str | list[Byte] | None = None
    payloadtype: str = ""


class Read(msgspec.Struct):
    """`afterseq` is how many entries were read before, whatever its name says."""

    processid: str
    name: str
    afterseq: Int64 = 0
    limit: Int64 = 0


class Subscribe(msgspec.Struct):
    """`timeout` is seconds; 0 means upstream's 30."""

    processid: str
    name: str
    afterseq: Int64 = 0
    timeout: Int64 = 0


calls: Calls[Node] = Calls("Channels")


@calls.row(
    "channelappendmsg", Append, Who.SIGNED, rights=PARTY, once=Once.TOGETHER, tokens=MANY_TOKENS
)
async def append(node: Node, caller: Caller, request: Append) -> None:
    """Send a message."""
    if len(request.payloadtype) > MAX_TYPE:
        raise Invalid(f"payloadtype: at most {MAX_TYPE} characters")
    said = ChannelEntry(
        senderid=caller.id,
        sequence=request.sequence,
        inreplyto=request.inreplyto,
        timestamp=0,
        type=request.payloadtype or "data",
        payload=_bytes(request.payload),
    )
    await node.channels.append(request.processid, request.name, said, caller.nonce)


@calls.row(
    "channelreadmsg",
    Read,
    Who.SIGNED,
    reply="MsgEntry[]",
    rights=PARTY,
    need=Need.FREES,
    heavy=lambda request: not 0 < request.limit <= _LIGHT,
    reads=True,
)
async def read(node: Node, caller: Caller, request: Read) -> Rows:
    """List the messages after so many."""
    process, _ = await node.channels.find(caller.id, request.processid, request.name)
    return each(node.channels.pages(process, request.name, request.afterseq, request.limit), wire)


def _bytes(payload: str | list[Byte] | None) -> bytes:
    """Return the bytes of a payload. Raises Invalid."""
    if not isinstance(payload, str):
        return bytes(payload or ())
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("payload: neither base64 nor an array of byte values") from None
